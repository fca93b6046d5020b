"""The default format: the layout of safetensors, written without a copy and read with one, files included.

Frame layout:
    8 bytes
        length of the header, little-endian
    header
        ``{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}`` as JSON in UTF-8, padded with
        spaces to a multiple of 8
    data
        the raw little-endian tensors in the order of the header, without gaps; offsets count from here

    The safetensors library reads frames and files alike. It writes tensors in an order of its own, so what it writes is
    a frame only where that order happens to be the Spec's; :func:`load` takes its files in their order.

What survives:
    Names, order, dtypes, shapes and every bit. Ties survive in files (``save`` notes them in ``__metadata__``) and need
    no place in frames: a shard holds every tied tensor once. No tensor can be called ``__metadata__``.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedcore.codec import Codec, Frame, Landing
from fedcore.durable import place
from fedcore.errors import DecodeError, SchemaMismatch
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, check_bools, dtype_name, expect, itemsize, land
from fedcore.transport import Buffer
from fedcore.views import raw_bytes, regions

__all__ = ["Safetensors", "load", "save"]

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}
_METADATA, _ALIASES = "__metadata__", "fedcore.aliases"
_SLACK, _MAX_FILE_HEADER = 64 << 10, 100 << 20


class Safetensors(Codec):
    """The layout of safetensors: a JSON header, then the tensors as they lie in memory. The default."""

    part = "safetensors"

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return the header and a view of each tensor.

        Raises:
            SchemaMismatch: a tensor is called ``__metadata__``.
        """
        header = _encoded_header(tuple((name, tensor.dtype, tensor.shape) for name, tensor in shard.items()))
        return [header, *regions(shard.values())]

    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Read the header, which must be the Spec's, and land each tensor once."""
        limit = 2 * len(_header(spec.entries)) + _SLACK
        found, _ = _parsed(memoryview(frame).cast("B"), limit)
        return _landed(found, spec, into)


    def landing(self, spec: Spec, into: Mapping[str, Tensor]) -> Landing | None:
        """Return the tensors' own memory behind room for the header; None if it is not all of one piece."""
        if not all(tensor.is_cpu and tensor.is_contiguous() for tensor in into.values()):
            return None
        expected = _frame_header(spec.entries)
        header = memoryview(bytearray(len(expected)))

        def finish() -> None:
            if header != expected:
                raise DecodeError("the header is not that of the shard", reason="SCHEMA_MISMATCH")
            for info in spec.entries:
                if info.dtype == "bool":
                    check_bools(info, raw_bytes(into[info.name]))

        return Landing([header, *regions(into[info.name] for info in spec.entries)], finish)


def save(path: str | os.PathLike[str], parameters: Mapping[str, Tensor]) -> None:
    """Write ``parameters`` to a file that the safetensors library reads too; tied tensors are written once.

    The file is there whole or not at all, and on the disk when this returns.

    Raises:
        SchemaMismatch: a value is not a dense tensor of a dtype that travels, or is called ``__metadata__``.
        OSError: the file cannot be written.
    """
    spec = Spec.of(parameters)
    ties = [[place, info.name, info.alias_of] for place, info in enumerate(spec.infos) if info.alias_of]
    metadata = {"format": "pt"} | ({_ALIASES: json.dumps(ties, ensure_ascii=False)} if ties else {})
    target = Path(path)
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")
    place(target, part, [_header(spec.entries, metadata), *(raw_bytes(parameters[info.name]) for info in spec)])


def load(path: str | os.PathLike[str]) -> Parameters:
    """Read a file that :func:`save` or the safetensors library wrote; ties are there again.

    Raises:
        DecodeError: the file is damaged, or holds what cannot travel.
        OSError: the file cannot be read.
    """
    expect(Path(path).stat().st_size > 0, f"{path} is empty")
    found, metadata = _parsed(np.memmap(path, np.uint8, "r").data, _MAX_FILE_HEADER)
    try:
        spec = Spec.checked(_with_aliases([info for info, _ in found], metadata))
    except SchemaMismatch as error:
        raise DecodeError(str(error), reason=error.reason) from error
    return spec.tie(_landed(found, spec, None))


@lru_cache(maxsize=1024)
def _encoded_header(looks: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> bytes:
    return _frame_header(tuple(TensorInfo(name, dtype_name(dtype, name), tuple(shape)) for name, dtype, shape in looks))


@lru_cache(maxsize=1024)
def _frame_header(infos: tuple[TensorInfo, ...]) -> bytes:
    return _header(infos)


def _header(infos: Iterable[TensorInfo], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, object] = {_METADATA: metadata} if metadata else {}
    at = 0
    for info in infos:
        if info.name == _METADATA:
            raise SchemaMismatch(f"safetensors has no room for a tensor called {_METADATA!r}: use another codec")
        end = at + math.prod(info.shape) * itemsize(info.dtype)
        header[info.name] = {"dtype": _NAMES[info.dtype], "shape": info.shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parsed(view: memoryview, limit: int) -> tuple[list[tuple[TensorInfo, memoryview]], dict[str, str]]:
    """Return what the header says each tensor is, with its bytes, and the metadata."""
    length = int.from_bytes(view[:8], "little")
    expect(len(view) >= 8, f"{len(view)} bytes are too few for a length")
    expect(length <= limit, f"a header of {length} bytes is longer than any such shard needs ({limit})")
    text, body = bytes(view[8 : 8 + length]), view[8 + length :]
    expect(len(text) == length, f"the header ends after {len(text)} of {length} bytes")
    expect(text.startswith(b"{"), "the header is not a JSON object")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique, parse_float=_no_count, parse_constant=_no_count)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the header cannot be read: {error}") from error
    metadata = header.pop(_METADATA, {})
    expect(
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()),
        f"{_METADATA} is not a mapping of text to text",
    )
    found, at = [], 0
    for name, entry in header.items():
        info, start, end = _entry(name, entry)
        expect(start == at <= end, f"tensor {name[:80]!r} lies at {start}:{end}, but {at} was due")
        expect(end <= len(body), f"tensor {name[:80]!r} ends beyond the data")
        found.append((info, body[start:end]))
        at = end
    expect(at == len(body), f"{len(body) - at} bytes behind the last tensor")
    return found, metadata


def _entry(name: str, entry: object) -> tuple[TensorInfo, int, int]:
    shown = repr(name[:80])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DecodeError(f"tensor {shown} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    expect(isinstance(dtype, str) and dtype in _DTYPES, f"tensor {shown}: unknown dtype {dtype!r:.40}", "BAD_DTYPE")
    expect(_are_counts(shape), f"tensor {shown}: the shape is not a list of counts")
    expect(_are_counts(offsets) and len(offsets) == 2, f"tensor {shown}: data_offsets are not two counts")
    return TensorInfo(name, _DTYPES[dtype], tuple(shape)), *offsets


def _landed(found: list[tuple[TensorInfo, memoryview]], spec: Spec, into: Mapping[str, Tensor] | None) -> Parameters:
    tensors: Parameters = {}
    for info, entry in zip_longest(spec, found):
        if info is None:
            raise DecodeError(f"tensor {entry[0].name[:80]!r} is not part of the shard", reason="SCHEMA_MISMATCH")
        if entry is None:
            raise DecodeError(f"tensor {info.name!r} is missing", reason="SCHEMA_MISMATCH")
        tensors[info.name] = land(entry[0].name, entry[1], info, into, entry[0])
    return tensors


def _with_aliases(infos: list[TensorInfo], metadata: Mapping[str, str]) -> list[TensorInfo]:
    """Return ``infos`` with the aliases at the places that the metadata gives, as ``[[place, name, tied to], ...]``."""
    twins = {info.name: info for info in infos}
    try:
        for place, name, tied in json.loads(metadata.get(_ALIASES, "[]")):
            fits = _are_counts([place]) and place <= len(infos) and isinstance(name, str)
            expect(fits, f"{_ALIASES}: no place for {name!r:.80}")
            infos.insert(place, TensorInfo(name, twins[tied].dtype, twins[tied].shape, tied))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DecodeError(f"{_ALIASES} cannot be read: {error}") from error
    return infos


def _are_counts(value: object) -> bool:
    # JSON's true is an int in Python, and equal to 1
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key appears twice")
    return made


def _no_count(text: str) -> object:
    raise ValueError(f"{text[:40]!r} is no count")
