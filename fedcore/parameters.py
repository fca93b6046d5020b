"""Models as named tensors: what they look like (:class:`Spec`), how they are cut for the wire, and their digest.

``Parameters`` is an ordinary ``dict[str, Tensor]`` whose order matters, such as ``model.state_dict()``. A :class:`Spec`
describes one without holding it, and every payload is checked against one before it is believed.

A tied tensor (two names, one storage) is one entry and one *alias*: it travels, is summed and is hashed once, and the
tie is there again at the other end.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from fedcore.errors import DecodeError, SchemaMismatch
from fedcore.messages import TensorInfo
from fedcore.pool import Lender, Memory, borrow
from fedcore.views import NUMPY, raw_bytes, regions

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("fedcore needs a little-endian machine: tensors cross the wire as they lie in memory")

Parameters: TypeAlias = dict[str, Tensor]

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
    )
}  # fmt: skip
"""The closed list of dtypes a payload may have: every one torch trains in or keeps in a buffer."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_DIMS, _MAX_NAME = 16, 1024


def dtype_name(dtype: torch.dtype, what: str) -> str:
    """Return the wire name of ``dtype``, such as ``"bfloat16"``.

    Raises:
        SchemaMismatch: complex and quantised dtypes do not travel.
    """
    if dtype not in _NAMES:
        raise SchemaMismatch(f"{what}: dtype {dtype} does not travel; allowed: {', '.join(DTYPES)}", reason="BAD_DTYPE")
    return _NAMES[dtype]


def itemsize(dtype: str) -> int:
    """Bytes of one element of the dtype named ``dtype``."""
    return DTYPES[dtype].itemsize


def _storage(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _check_plain(name: str, tensor: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise SchemaMismatch(f"{name!r} is a {type(tensor).__name__}, not a tensor")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        raise SchemaMismatch(f"{name!r} is a {kind} tensor; only dense tensors travel: call .to_dense() or similar first")
    return tensor


@dataclass(frozen=True)
class Spec:
    """Names, dtypes and shapes of a payload, in order. Iterating gives the entries that travel (no aliases)."""

    infos: tuple[TensorInfo, ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Spec:
        """Describe ``parameters``; tensors that share one storage become an entry and its aliases.

        Raises:
            SchemaMismatch: a value is not a dense tensor of a known dtype, or a name is not text.
        """
        first: dict[tuple[object, ...], str] = {}
        infos = []
        for name, value in parameters.items():
            tensor = _check_plain(name, value)
            tied = first.setdefault(_storage(tensor), name) if tensor.numel() else name
            alias = "" if tied == name else tied
            infos.append(TensorInfo(name, dtype_name(tensor.dtype, repr(name)), tuple(tensor.shape), alias))
        return cls.checked(infos)

    @classmethod
    def checked(cls, infos: tuple[TensorInfo, ...] | list[TensorInfo]) -> Spec:
        """Build a Spec from entries that came from outside.

        Raises:
            SchemaMismatch: an entry is not one; the message names it.
        """
        seen: dict[str, TensorInfo] = {}
        for info in infos:
            shown = repr(str(info.name)[:80])
            if not isinstance(info.name, str) or not 0 < len(info.name) <= _MAX_NAME or not info.name.isprintable():
                raise SchemaMismatch(f"tensor name {shown} must be 1 to {_MAX_NAME} printable characters")
            if info.name in seen:
                raise SchemaMismatch(f"tensor {shown} appears twice")
            if info.dtype not in DTYPES:
                raise SchemaMismatch(f"tensor {shown}: unknown dtype {info.dtype[:40]!r}", reason="BAD_DTYPE")
            sizes = [*info.shape, math.prod(size or 1 for size in info.shape)]
            if len(info.shape) > _MAX_DIMS or any(not 0 <= size < 1 << 48 for size in sizes):
                raise SchemaMismatch(f"tensor {shown}: impossible shape {info.shape[:_MAX_DIMS]}")
            target = seen.get(info.alias_of)
            if info.alias_of and (
                target is None or target.alias_of or (target.dtype, target.shape) != (info.dtype, info.shape)
            ):
                raise SchemaMismatch(f"tensor {shown} is tied to {info.alias_of[:80]!r}, which is no earlier twin of it")
            seen[info.name] = info
        return cls(tuple(infos))

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def entries(self) -> tuple[TensorInfo, ...]:
        """The tensors that travel: all but aliases."""
        return tuple(info for info in self.infos if not info.alias_of)

    @cached_property
    def text(self) -> bytes:
        """What a digest covers beside the tensors' bytes."""
        return repr([(info.name, info.dtype, info.shape, info.alias_of) for info in self.infos]).encode()

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors that travel."""
        return sum(nbytes(info) for info in self.entries)

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Check that ``parameters`` looks exactly like this: the same names in any order, dtypes, shapes and ties.

        Raises:
            SchemaMismatch: naming the first difference.
        """
        if len(parameters) > len(self.infos):
            known = {info.name for info in self.infos}
            extra = next(name for name in parameters if name not in known)
            raise SchemaMismatch(f"tensor {str(extra)[:80]!r} is not part of the model")
        for info in self.infos:
            name, dtype, shape, alias_of = info
            if name not in parameters:
                raise SchemaMismatch(f"tensor {name!r} is missing")
            tensor = _check_plain(name, parameters[name])
            if tensor.shape != shape:
                raise SchemaMismatch(f"tensor {name!r} has shape {tuple(tensor.shape)} instead of {shape}")
            if tensor.dtype is not DTYPES[dtype]:
                raise SchemaMismatch(f"tensor {name!r} has dtype {dtype_name(tensor.dtype, repr(name))} instead of {dtype}")
            if alias_of and not _same(tensor, parameters[alias_of]):
                raise SchemaMismatch(f"tensor {name!r} is tied to {alias_of!r} but differs from it")

    def expect(self, other: Spec) -> None:
        """Check that a payload which claims to look like ``other`` looks like this.

        Raises:
            SchemaMismatch: naming the first difference.
        """
        mine, theirs = {i.name: i for i in self.infos}, {i.name: i for i in other.infos}
        if missing := next((name for name in mine if name not in theirs), None):
            raise SchemaMismatch(f"tensor {missing!r} is missing")
        if extra := next((name for name in theirs if name not in mine), None):
            raise SchemaMismatch(f"tensor {extra[:80]!r} is not part of the model")
        for name, info in mine.items():
            if theirs[name] != info:
                raise SchemaMismatch(f"tensor {name!r} is {_shown(theirs[name])} instead of {_shown(info)}")
        if list(mine) != list(theirs):
            raise SchemaMismatch("the tensors are in another order than the model's")

    def tie(self, parameters: Parameters) -> Parameters:
        """Return ``parameters`` in this order, aliases pointing at the tensors they are tied to."""
        return {name: parameters[alias_of or name] for name, _, _, alias_of in self.infos}

    def blank(self, lend: Lender = borrow) -> Parameters:
        """Return a payload of this shape in one buffer that ``lend`` gives; the contents are arbitrary.

        Tensors lie side by side, as they do in a frame, so that many are copied and hashed as one.
        """
        memory = lend(self._layout[-1].stop if self._layout else 0)
        rows: dict[str, NDArray[np.floating]] = {}
        laid: Parameters = {}
        for info, place in zip(self.entries, self._layout, strict=True):
            name, dtype, shape, _ = info
            kind = NUMPY.get(DTYPES[dtype])
            if kind is None or place.start == place.stop:
                laid[name] = _laid(memory[place], info)
                continue
            size = itemsize(dtype)
            if dtype not in rows:
                rows[dtype] = memory[: memory.size // size * size].view(kind)
            laid[name] = torch.from_numpy(rows[dtype][place.start // size : place.stop // size].reshape(shape))
        return self.tie(laid)

    @cached_property
    def _layout(self) -> tuple[slice, ...]:
        """Where in one buffer each entry's bytes lie: side by side, each at a multiple of its element's size."""
        places, end = [], 0
        for info in self.entries:
            start = end + -end % itemsize(info.dtype)
            end = start + nbytes(info)
            places.append(slice(start, end))
        return tuple(places)

    def copy(self, parameters: Mapping[str, Tensor], lend: Lender | None = None) -> Parameters:
        """Check ``parameters`` and return a copy on the CPU that shares no memory with it, in this order.

        Args:
            parameters: what to copy.
            lend: gives one buffer for all tensors, as for :meth:`blank`. None: each has memory of its own, so that whoever
                saves one does not write the others.

        Raises:
            SchemaMismatch: naming the first difference.
        """
        self.check(parameters)
        copied = self.blank(lend) if lend else self.tie({i.name: torch.empty(i.shape, dtype=DTYPES[i.dtype]) for i in self})
        for info in self.entries:
            copied[info.name].copy_(parameters[info.name].detach())
        return copied


def copy_parameters(parameters: Mapping[str, Tensor]) -> Parameters:
    """Return a copy of ``parameters`` on the CPU that shares no memory with it; ties are kept.

    Raises:
        SchemaMismatch: a value is not a dense tensor of a dtype that travels.
    """
    return Spec.of(parameters).copy(parameters)


def working(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that is calculated in for tensors of ``dtype``."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def is_statistic(name: str) -> bool:
    """Return whether a tensor is what normalization layers of torch measure: ``running_mean``, ``running_var``.

    Such a tensor may become a mean of others, and nothing else: sums of changes and long steps make negative variances.
    """
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def moves(name: str, value: Tensor) -> bool:
    """Return whether a tensor is moved by changes; others are replaced."""
    return value.is_floating_point() and not is_statistic(name)


def difference(parameters: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Parameters:
    """Return ``parameters`` with what was changed of ``base`` in place of each tensor that :func:`moves`."""
    return {name: value - base[name] if moves(name, value) else value for name, value in parameters.items()}


def changed(base: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Parameters:
    """Return what ``base`` becomes with a :func:`difference`."""
    return {name: base[name] + value if moves(name, value) else value for name, value in change.items()}


def digest(parameters: Mapping[str, Tensor], spec: Spec | None = None) -> str:
    """Return the BLAKE3 digest of a payload, in hexadecimal.

    It covers name, dtype and shape of each tensor in the order of the Spec, for an alias the name it is tied to, and then
    the little-endian bytes of those that travel, in that order. It never covers a frame, so it is one and the same for
    every codec and transport.
    """
    described = spec or Spec.of(parameters)
    hasher = blake3(described.text)
    for region in regions(parameters[info.name] for info in described.entries):
        hasher.update(region)
    return hasher.hexdigest()


def expect(condition: bool, message: str, reason: str | None = None) -> None:
    """Raise :class:`DecodeError` with ``message``, and with ``reason`` if one is given, unless ``condition`` holds."""
    if not condition:
        raise DecodeError(message, reason=reason)


def check_bools(info: TensorInfo, data: memoryview | bytes | bytearray) -> None:
    """Check the raw bytes of a boolean tensor; those of others may be anything.

    Raises:
        DecodeError: a byte is neither 0 nor 1.
    """
    if info.dtype == "bool":
        source = np.frombuffer(data, np.uint8)
        expect(not source.size or int(source.max()) <= 1, f"tensor {info.name[:80]!r} holds a bool that is neither 0 nor 1")


def land(
    name: str,
    data: memoryview | bytes | bytearray,
    info: TensorInfo,
    into: Mapping[str, Tensor] | None,
    found: TensorInfo | None = None,
) -> Tensor:
    """Turn the raw bytes of one tensor into the tensor ``info`` describes, in place where ``into`` is given.

    Args:
        name: what messages call it.
        data: its bytes, little-endian.
        info: what it must be.
        into: tensors to fill; ``None`` makes a new one.
        found: what the frame says it is, where the format says so.

    Raises:
        DecodeError: it is another tensor, of another length, or holds a bool that is neither 0 nor 1.
    """
    shown = repr(name[:80])
    if found is not None:
        expect(found.name == info.name, f"tensor {shown} came where {info.name!r} was due", "SCHEMA_MISMATCH")
        expect(found.dtype in DTYPES, f"tensor {shown}: unknown dtype {found.dtype[:40]!r}", "BAD_DTYPE")
        expect(found.dtype == info.dtype, f"tensor {shown} is {found.dtype}, not {info.dtype}", "SCHEMA_MISMATCH")
        shape = str(found.shape)[:80]
        expect(found.shape == info.shape, f"tensor {shown} has shape {shape}, not {info.shape}", "SCHEMA_MISMATCH")
    expect(len(data) == nbytes(info), f"tensor {shown} has {len(data)} bytes, not {nbytes(info)}", "LENGTH_MISMATCH")
    check_bools(info, data)
    source = np.frombuffer(data, np.uint8)
    tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype]) if into is None else into[name]
    if source.size:
        plain = tensor if tensor.is_cpu and tensor.is_contiguous() else torch.empty(info.shape, dtype=tensor.dtype)
        # numpy lets other threads run while it copies; a memoryview does not
        np.copyto(np.frombuffer(raw_bytes(plain), np.uint8), source)
        if plain is not tensor:
            tensor.detach().copy_(plain)
    return tensor


def _shown(info: TensorInfo) -> str:
    return f"{info.dtype}{list(info.shape)}" + (f" tied to {info.alias_of!r}" if info.alias_of else "")


def nbytes(info: TensorInfo) -> int:
    """Bytes of the tensor that ``info`` describes."""
    return math.prod(info.shape) * itemsize(info.dtype)


def _laid(memory: Memory, info: TensorInfo) -> Tensor:
    if not memory.size:
        return torch.empty(info.shape, dtype=DTYPES[info.dtype])
    return torch.from_numpy(memory).view(DTYPES[info.dtype]).view(info.shape)


def _same(a: Tensor, b: Tensor) -> bool:
    return _storage(a) == _storage(b) or np.array_equal(raw_bytes(a), raw_bytes(b))
