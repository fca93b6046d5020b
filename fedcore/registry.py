"""Names to parts: the file's name on the shelf is the name the user types.

``find("codecs", "lz4")`` imports ``fedcore.codecs.lz4`` and nothing else; a name no shelf has is looked up among
registered objects and in the entry points of the group ``fedcore.codecs``. Adding a part means adding one file.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from fedcore.codec import Codec, Wrapper
from fedcore.errors import CodecRefused, ConfigError, DecodeError, MissingDependency, UnknownName
from fedcore.transport import Transport

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SHELVES = ("codecs", "transports", "strategies", "filters")
_registered: dict[tuple[str, str], Callable[..., Any]] = {}


@dataclass(frozen=True)
class Found:
    """One part that ``fedcore list`` shows; ``problem`` says what to install, or is empty."""

    shelf: str
    name: str
    summary: str
    problem: str = ""


def register(shelf: str, name: str, factory: Callable[..., Any]) -> None:
    """Make ``factory`` known under ``name`` for this process; a package declares an entry point instead.

    Raises:
        UnknownName: no such shelf.
        ConfigError: the name is not one, or is taken.
    """
    if shelf not in _SHELVES:
        raise UnknownName(f"no shelf {shelf!r}; there are {', '.join(_SHELVES)}")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a name: lower-case letters, digits and underscores, at most 32")
    if name in _on_shelf(shelf) or _registered.setdefault((shelf, name), factory) is not factory:
        raise ConfigError(f"{shelf} already has a {name!r}")


def find(shelf: str, name: str) -> Callable[..., Any]:
    """Return the class or factory called ``name`` on a shelf.

    Raises:
        UnknownName: there is none; the message lists what there is and the nearest match.
        MissingDependency: there is one, but a library it needs is missing.
    """
    if made := _registered.get((shelf, name)):
        return made
    if name in _on_shelf(shelf):
        module = _import(f"fedcore.{shelf}.{name}", f"{shelf} {name!r}")
        return cast(Callable[..., Any], getattr(module, module.__all__[0]))
    for point in entry_points(group=f"fedcore.{shelf}", name=name):
        try:
            return cast(Callable[..., Any], point.load())
        except ImportError as error:
            raise MissingDependency(f"{shelf} {name!r} ({point.value}) cannot be imported: {error}") from error
    known = available(shelf)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UnknownName(f"{shelf} has no {str(name)[:60]!r}{hint}; it has: {', '.join(known)}")


def available(shelf: str) -> list[str]:
    """Return all names on a shelf, its own and those of third parties, sorted."""
    outside = {point.name for point in entry_points(group=f"fedcore.{shelf}")}
    return sorted({*_on_shelf(shelf), *outside, *(name for kind, name in _registered if kind == shelf)})


def survey(shelf: str) -> Iterable[Found]:
    """Describe every part of a shelf, importing each, with what to install for those that cannot be."""
    for name in available(shelf):
        try:
            part = find(shelf, name)
            yield Found(shelf, name, (part.__doc__ or "").strip().split("\n")[0])
        except MissingDependency as error:
            yield Found(shelf, name, "", str(error))


def codec(wanted: str | Codec) -> Codec:
    """Return the codec of a name such as ``"safetensors+lz4"``; a codec is returned as it is.

    Raises:
        UnknownName: a part of the name is on no shelf.
        ConfigError: the name starts with a wrapper, or a later part is none.
    """
    if isinstance(wanted, Codec):
        return wanted
    first, *wrappers = str(wanted).split("+")
    kind = find("codecs", first)
    if isinstance(kind, type) and issubclass(kind, Wrapper):
        raise ConfigError(f"codec {wanted!r}: {first!r} wraps a codec; write 'safetensors+{first}'")
    built = cast(Codec, kind())
    for part in wrappers:
        wrapper = find("codecs", part)
        if not (isinstance(wrapper, type) and issubclass(wrapper, Wrapper)):
            raise ConfigError(f"codec {wanted!r}: {part!r} wraps nothing, it can only stand first")
        built = cast(Codec, wrapper(built))
    return built


def accepted_codec(name: str, accepts: Iterable[str]) -> Codec:
    """Return the codec that a peer named, if each part of its name is accepted. The list is asked before the shelf is.

    Raises:
        CodecRefused: a part is not accepted.
    """
    allowed = set(accepts)
    parts = name.split("+") if len(name) <= 200 else [name[:60]]
    if refused := next((part for part in parts if part not in allowed), None):
        shown = ", ".join(sorted(allowed))
        raise CodecRefused(f"codec {name[:80]!r} is refused: {refused[:40]!r} is not among the accepted ({shown})")
    try:
        return codec(name)
    except ConfigError as error:
        raise CodecRefused(f"codec {name[:80]!r} cannot be used here: {error}") from error


def default_accepts(own: Codec | None) -> tuple[str, ...]:
    """Return what a side accepts unless told: the parts of its own codec and every installed lossless one fit for strangers."""
    parts = set(own.name.split("+")) if own else set()
    return tuple(sorted(parts | _safe_parts()))


def check_accepts(names: Iterable[str], own: Codec | None) -> tuple[str, ...]:
    """Return the parts an explicit accept list names, and those of the own codec.

    Raises:
        UnknownName: no shelf has such a part.
    """
    if isinstance(names, str):
        raise ConfigError(f"accept_codecs must be a list of names, not the string {names!r}")
    parts = {part for name in names for part in str(name).split("+")}
    for part in parts:
        find("codecs", part)
    return tuple(sorted(parts | (set(own.name.split("+")) if own else set())))


def delta_codec(name: str | None) -> Codec | None:
    """Return the codec of a name, if it can tell differences between models; None stays None.

    Raises:
        ConfigError: it makes no use of a base, or loses something.
        UnknownName: no shelf has it.
    """
    found = None if name is None else codec(name)
    if found is not None and not (found.uses_base and found.lossless):
        raise ConfigError(f"ServerConfig.delta_codec {name!r} must be lossless and tell differences, such as 'delta+zstd'")
    return found


def load_model(path: str) -> dict[str, Any]:
    """Read a model from a file, by its ending: ``.safetensors``.

    Raises:
        ConfigError: it cannot be read, or no codec reads such files.
    """
    kind = Path(path).suffix.removeprefix(".")
    known = kind in _on_shelf("codecs")
    load = getattr(import_module(find("codecs", kind).__module__), "load", None) if known else None
    if load is None:
        raise ConfigError(f"{path!r} is no file that can be read as a model: write NAME.safetensors")
    try:
        return cast(dict[str, Any], load(path))
    except (OSError, DecodeError) as error:
        raise ConfigError(f"the model in {path!r} cannot be read: {error}") from error


def transport(wanted: str | Transport) -> Transport:
    """Return the transport of a name such as ``"grpc"``; a transport is returned as it is.

    Raises:
        UnknownName: no shelf has it.
    """
    return wanted if isinstance(wanted, Transport) else cast(Transport, find("transports", wanted)())


@cache
def _safe_parts() -> frozenset[str]:
    safe = set()
    for name in _on_shelf("codecs"):
        try:
            part = find("codecs", name)
        except MissingDependency:
            continue
        if part.lossless and not part.trusted_only:  # type: ignore[attr-defined]
            safe.add(name)
    return frozenset(safe)


@cache
def _on_shelf(shelf: str) -> frozenset[str]:
    spec = find_spec(f"fedcore.{shelf}")
    places = (spec.submodule_search_locations or []) if spec else []
    return frozenset(module.name for module in pkgutil.iter_modules(places) if not module.name.startswith("_"))


def _import(module: str, what: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        raise MissingDependency(f"{what} needs {missing}: pip install {missing}") from error
