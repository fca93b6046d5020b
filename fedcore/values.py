"""What configurations and metrics may hold, numbers of examples, and what a client may be called."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from blake3 import blake3

from fedcore.errors import BadMetric, ConfigError, InvalidWeight

Scalar: TypeAlias = bool | int | float | str | bytes
Value: TypeAlias = Scalar | Sequence[Scalar]
Config: TypeAlias = Mapping[str, Value]

_MAX_FIELDS, _MAX_KEY, _MAX_TEXT = 256, 128, 1 << 16
_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_config(config: Config, what: str = "config") -> dict[str, Value]:
    """Return a copy of ``config`` if its values are scalars (bool, int64, float, str, bytes) or flat lists of them.

    Raises:
        BadMetric: naming the key.
    """
    if len(config) > _MAX_FIELDS:
        raise BadMetric(f"{what} has {len(config)} keys, more than {_MAX_FIELDS}", reason="TOO_MANY_FIELDS")
    return {_check_key(key, what): _check_value(value, f"{what}[{key!r}]") for key, value in config.items()}


def _check_key(key: object, what: str) -> str:
    if not isinstance(key, str) or len(key) > _MAX_KEY:
        raise BadMetric(f"{what}: key {str(key)[:40]!r} must be a string of at most {_MAX_KEY} characters")
    return str(_check_scalar(key, f"{what}: a key"))


def _check_value(value: object, what: str) -> Value:
    if isinstance(value, list | tuple):
        if len(value) > _MAX_TEXT:
            raise BadMetric(f"{what} is longer than {_MAX_TEXT} items")
        return [_check_scalar(item, f"an item of {what}") for item in value]
    return _check_scalar(value, what)


def _check_scalar(value: object, what: str) -> Scalar:
    if isinstance(value, str | bytes):
        if len(value) > _MAX_TEXT:
            raise BadMetric(f"{what} is longer than {_MAX_TEXT}")
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise BadMetric(f"{what} holds a lone surrogate, which is not text")
        return value
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise BadMetric(f"{what} does not fit 64 bits")
    if isinstance(value, bool | int | float):
        return value
    raise BadMetric(f"{what} is a {type(value).__name__}; allowed: bool, int, float, str, bytes, or a flat list of them")


def check_metrics(metrics: Config) -> dict[str, float]:
    """Return a client's metrics as floats. Values that are not finite are dropped: a bad number is no reason to lose an update.

    Raises:
        BadMetric: a value is not a number, or there are too many keys.
    """
    checked: dict[str, float] = {}
    for key, value in check_config(metrics, "metrics").items():
        if not isinstance(value, bool | int | float):
            raise BadMetric(f"metrics[{key!r}] is a {type(value).__name__}, not a number")
        if math.isfinite(value):
            checked[key] = float(value)
    return checked


def check_num_examples(num_examples: object, cap: int) -> int:
    """Return ``num_examples`` if it is an integer from 1 to ``cap``.

    Raises:
        InvalidWeight: otherwise.
    """
    if isinstance(num_examples, bool) or not isinstance(num_examples, int) or not 1 <= num_examples <= cap:
        raise InvalidWeight(f"num_examples must be an integer from 1 to {cap}, not {num_examples!r}")
    return num_examples


def check_number(name: str, value: object, kind: type, least: float) -> None:
    """Check a setting.

    Args:
        name: of the setting, for the error.
        value: what it was set to.
        kind: ``int``, or ``float``, of which integers are some.
        least: the smallest number that it may be; one between 0 and 1 stands for whatever is above 0.

    Raises:
        ConfigError: it is none of this kind, is infinite, or smaller.
    """
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not number or not least <= value < math.inf:  # type: ignore[operator]
        what = "an integer" if kind is int else "a number"
        bound = "above 0" if 0 < least < 1 else f"of at least {least:g}"
        raise ConfigError(f"{name} must be {what} {bound}, not {value!r}")


def drawn(*parts: object) -> int:
    """Return a seed, from 0 to ``2 ** 63 - 1``, that follows from what it is for."""
    return int.from_bytes(blake3("/".join(map(str, parts)).encode()).digest(8), "little") >> 1


def check_client_id(client_id: str) -> str:
    """Return ``client_id`` if it is one: 1 to 64 of ``A-Z a-z 0-9 . _ -``, starting with a letter or a digit.

    Raises:
        ConfigError: with reason ``BAD_CLIENT_ID``.
    """
    if not isinstance(client_id, str) or not _CLIENT_ID.fullmatch(client_id):
        shown = repr(client_id if len(str(client_id)) <= 80 else str(client_id)[:77] + "...")
        raise ConfigError(
            f"client_id {shown} must be 1 to 64 characters of A-Z a-z 0-9 . _ -, starting with a letter or digit",
            reason="BAD_CLIENT_ID",
        )
    return client_id
