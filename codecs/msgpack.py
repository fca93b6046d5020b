"""A flat msgpack array: the format for peers in other languages, which all have a reader for it.

Frame layout:
    ``[[name, dtype, shape, data], ...]``: text, text such as ``"float32"``, an array of integers, and a bin of the raw
    little-endian elements; in the order of the Spec, nothing behind it

What survives:
    Names, order, dtypes, shapes and every bit. Ties need no place: a shard holds every tied tensor once. A tensor of
    4 GiB or more fits no bin: keep ``shard_bytes`` below that.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgpack
from torch import Tensor

from fedcore.codec import Codec, Frame
from fedcore.errors import ConfigError, DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, dtype_name, expect, land
from fedcore.transport import Buffer
from fedcore.views import raw_bytes

__all__ = ["Msgpack"]

_BIN_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # first byte of a bin: bytes of the length that follows
_WINDOW = 8192  # more than name, dtype and shape can need; all that is ever unpacked at once


class Msgpack(Codec):
    """A flat msgpack array of names, dtypes, shapes and raw bytes."""

    part = "msgpack"

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return a few packed bytes and a view for each tensor.

        Raises:
            ConfigError: a tensor has 4 GiB or more.
        """
        packer = msgpack.Packer()
        head = packer.pack_array_header(len(shard))
        frame: list[Buffer] = []
        for name, tensor in shard.items():
            head += packer.pack_array_header(4) + packer.pack(name) + packer.pack(dtype_name(tensor.dtype, repr(name)))
            frame += [head + packer.pack(tuple(tensor.shape)) + _bin_header(name, tensor.nbytes), raw_bytes(tensor)]
            head = b""
        return frame or [head]

    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Unpack what describes each tensor, a few bytes at a time, and land its data straight from the frame."""
        view = memoryview(frame).cast("B")
        count, at = _count(view)
        tensors: Parameters = {}
        for place in range(count):
            found, start, end = _entry(view, at)
            expect(place < len(spec), f"tensor {found.name[:80]!r} is not part of the shard", "SCHEMA_MISMATCH")
            info = spec.entries[place]
            tensors[info.name] = land(found.name, view[start:end], info, into, found)
            at = end
        missing = spec.entries[len(tensors) :]
        expect(not missing, f"tensor {missing[0].name if missing else ''!r} is missing", "SCHEMA_MISMATCH")
        expect(at == len(view), f"{len(view) - at} bytes behind the last tensor")
        return tensors


def _bin_header(name: str, nbytes: int) -> bytes:
    for kind, width in _BIN_WIDTHS.items():
        if nbytes < 1 << 8 * width:
            return bytes([kind]) + nbytes.to_bytes(width, "big")
    raise ConfigError(f"tensor {name!r} has {nbytes} bytes; msgpack takes less than 4 GiB: lower shard_bytes")


def _count(view: memoryview) -> tuple[int, int]:
    """Return how many tensors follow, and where."""
    unpacker = _unpacker(view[:5])
    try:
        return unpacker.read_array_header(), unpacker.tell()
    except (ValueError, msgpack.UnpackException) as error:
        raise DecodeError("the frame is not an array") from error


def _entry(view: memoryview, at: int) -> tuple[TensorInfo, int, int]:
    """Return what the tensor at ``at`` is said to be, and where its data starts and ends."""
    unpacker = _unpacker(view[at : at + _WINDOW])
    try:
        fields = unpacker.read_array_header()
        name, dtype, shape = (unpacker.unpack() for _ in range(3))
    except (ValueError, msgpack.UnpackException) as error:
        raise DecodeError(f"what should describe a tensor cannot be read: {error!r:.200}") from error
    are_counts = isinstance(shape, list) and all(type(item) is int and item >= 0 for item in shape)
    if fields != 4 or not isinstance(name, str) or not isinstance(dtype, str) or not are_counts:
        raise DecodeError("a tensor is not described by name, dtype, shape and data")
    at += unpacker.tell()
    width = _BIN_WIDTHS.get(view[at] if at < len(view) else 0, 0)
    start = at + 1 + width
    end = start + int.from_bytes(view[at + 1 : start], "big")
    expect(width > 0 and end <= len(view), f"tensor {name[:80]!r}: the data is cut off, or no bin")
    return TensorInfo(name, dtype, tuple(shape)), start, end


def _unpacker(window: memoryview) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=_WINDOW,
        max_str_len=_WINDOW,
        max_bin_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(window)
    return unpacker
