"""Single values of messages: those of a configuration keep their type on the way; texts and times have bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcore.errors import DecodeError, ProtocolError
from fedcore.protos import fedcore_pb2 as pb
from fedcore.values import Config, Scalar, Value

SHORTEST_BEAT, _LONGEST = 1e-3, 604800.0
"""Seconds that a peer may speak of: with others a thread would spin, or end."""

_LONGEST_TEXT = 1024

_SCALAR_FIELDS: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),  # before int, of which bool is a kind
    (int, "integer"),
    (float, "real"),
    (str, "text"),
    (bytes, "raw"),
)


def seconds(value: float, name: str, least: float = 0.0) -> float:
    """Return a number of seconds.

    Raises:
        DecodeError: it is none that anybody can wait.
    """
    if not least <= value <= _LONGEST:
        raise DecodeError(f"{name} must be from {least:g} to {_LONGEST:g} seconds, not {value!r}", reason="BAD_TYPE")
    return value


def text(value: str, name: str) -> str:
    """Return a text that will be kept.

    Raises:
        ProtocolError: it is too long for that.
    """
    if len(value) > _LONGEST_TEXT:
        raise ProtocolError(f"{name} has {len(value)} characters, more than {_LONGEST_TEXT}", reason="TOO_LARGE")
    return value


def _scalar(value: Scalar) -> pb.Scalar:
    field = next(field for kind, field in _SCALAR_FIELDS if isinstance(value, kind))
    return pb.Scalar(**{field: value})  # type: ignore[arg-type]


def pack_config(config: Config) -> dict[str, pb.Scalar]:
    """Return typed values as messages."""
    return {key: _value(value) for key, value in config.items()}


def _value(value: Value) -> pb.Scalar:
    if isinstance(value, bool | int | float | str | bytes):
        return _scalar(value)
    return pb.Scalar(list=pb.ScalarList(items=[_scalar(item) for item in value]))


def unpack_config(fields: Mapping[str, pb.Scalar]) -> dict[str, Value]:
    """Return messages as values of the type they left with.

    Raises:
        DecodeError: a value has no kind this side knows, or a list holds a list.
    """
    return {key: _plain(scalar, key) for key, scalar in fields.items()}


def _plain(scalar: pb.Scalar, key: str, *, nested: bool = False) -> Any:
    kind = scalar.WhichOneof("kind")
    if kind is None or (kind == "list" and nested):
        raise DecodeError(f"the value of {key[:80]!r} is of no known type", reason="BAD_TYPE")
    if kind == "list":
        return [_plain(item, key, nested=True) for item in scalar.list.items]
    return getattr(scalar, kind)
