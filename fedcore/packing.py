"""What a strategy remembers, taken apart into tensors and plain values, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.errors import StateError
from fedcore.parameters import Parameters

_MARK = "tensor"  # {"tensor": name} stands for a tensor, {"dict": {...}} for a dict


def pack(state: Mapping[str, Any]) -> tuple[Parameters, Any]:
    """Take a state apart: the tensors by their path, and the rest as what JSON can say.

    Args:
        state: of None, bool, int, float, str, tensors, and lists, tuples and dicts of them; tuples come back as lists.

    Raises:
        StateError: naming a value that is none of these.
    """
    tensors: Parameters = {}
    return tensors, _packed(state, "state", tensors)


def unpack(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """Put a state together that :meth:`pack` took apart.

    Raises:
        StateError: it is none.
    """
    try:
        return _unpacked(tensors, plain)
    except RecursionError:
        raise _senseless("lists in lists without end") from None


def _unpacked(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    if isinstance(plain, list):
        return [_unpacked(tensors, each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    name, items = plain.get(_MARK), plain.get("dict")
    if len(plain) == 1 and isinstance(name, str) and name in tensors:
        return tensors[name]
    if len(plain) == 1 and isinstance(items, dict):
        return {key: _unpacked(tensors, each) for key, each in items.items()}
    raise _senseless(f"{plain!r:.80}")


def _senseless(what: str) -> StateError:
    return StateError(f"what the strategy remembered cannot be put together again: {what}", reason="STATE_DAMAGED")


def _packed(value: Any, path: str, tensors: Parameters) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value
        return {_MARK: path}
    if isinstance(value, list | tuple):
        return [_packed(each, f"{path}/{index}", tensors) for index, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(each, f"{path}/{key}", tensors) for key, each in value.items()}}
    raise StateError(f"the strategy's {path} is a {type(value).__name__}, which cannot be kept: see Strategy.state_dict")
