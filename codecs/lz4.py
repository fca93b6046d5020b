"""LZ4 around another codec, for updates that are sparse, quantised or partly zero; float weights do not shrink.

Frame layout:
    1 byte
        0: the inner frame follows as it is; 1: it follows compressed
    8 bytes
        length of the inner frame, little-endian
    payload
        the inner frame, or one LZ4 frame that states that length and holds a checksum of the content

    A sample of the inner frame is compressed first. If it does not shrink to nine tenths, the inner frame is sent as it
    is, without a copy.

What survives:
    All that survives in the inner codec.
"""

from __future__ import annotations

from collections.abc import Mapping

import lz4.frame
from torch import Tensor

from fedcore.codec import Codec, Frame, Wrapper, buffers, frame_bytes
from fedcore.errors import ConfigError, DecodeError
from fedcore.parameters import Parameters, Spec, expect
from fedcore.transport import Buffer

__all__ = ["Lz4"]

_RAW, _COMPRESSED = 0, 1
_HEADER = 9
_WORTH = 0.9
_PLACES, _SAMPLE = 8, 64 << 10
_MIN_LEVEL, _MAX_LEVEL = -65537, 12


class Lz4(Wrapper):
    """LZ4 around another codec; what does not shrink goes as it is.

    Args:
        inner: the codec whose frames are compressed.
        level: 0 is the fast default, 3 to 12 are slower and smaller, below 0 faster and larger. Frames of any level are
            read alike.
    """

    part = "lz4"

    def __init__(self, inner: Codec, level: int = 0):
        super().__init__(inner)
        if isinstance(level, bool) or not isinstance(level, int) or not _MIN_LEVEL <= level <= _MAX_LEVEL:
            raise ConfigError(f"Lz4 level must be an integer from {_MIN_LEVEL} to {_MAX_LEVEL}, not {level!r}")
        self.level = level

    def __repr__(self) -> str:
        return f"Lz4({self.inner!r}, level={self.level})" if self.level else f"Lz4({self.inner!r})"

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return the inner frame compressed, or its own buffers behind a header if that would not pay."""
        inner = buffers(self.inner.encode(shard, base=base, state=state))
        length = frame_bytes(inner)
        compressed = self._compressed(inner, length) if self._pays(inner, length) else None
        flag, payload = (_RAW, inner) if compressed is None else (_COMPRESSED, compressed)
        return [bytes([flag]) + length.to_bytes(8, "little"), *payload]

    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Decompress to no more than such a shard can need, and hand that to the inner codec."""
        view = memoryview(frame).cast("B")
        expect(len(view) >= _HEADER, f"{len(view)} bytes are too few for a header")
        flag, length, payload = view[0], int.from_bytes(view[1:_HEADER], "little"), view[_HEADER:]
        expect(flag in (_RAW, _COMPRESSED), f"unknown flag {flag}")
        limit = _limit(spec)
        expect(length <= limit, f"an inner frame of {length} bytes is longer than any such shard needs ({limit})")
        inner = payload if flag == _RAW else _decompressed(payload, length)
        expect(len(inner) == length, f"the inner frame has {len(inner)} bytes, not {length}")
        return self.inner.decode(inner, spec, base=base, into=into)

    def _pays(self, inner: list[Buffer], length: int) -> bool:
        sample = _sample(inner, length)
        return len(lz4.frame.compress(sample, compression_level=self.level)) < _WORTH * len(sample)

    def _compressed(self, inner: list[Buffer], length: int) -> list[Buffer] | None:
        """Return the LZ4 frame in pieces, or nothing if it is no shorter after all."""
        compressor = lz4.frame.LZ4FrameCompressor(compression_level=self.level, content_checksum=True)
        pieces: list[Buffer] = [compressor.begin(source_size=length)]
        pieces += [compressor.compress(part) for part in inner if len(part)]
        pieces.append(compressor.flush())
        return pieces if frame_bytes(pieces) < length else None


def _sample(inner: list[Buffer], length: int) -> bytes:
    """Return 64 KiB from eight places spread over the buffers, or all of what is shorter."""
    if length <= _SAMPLE:
        return b"".join(inner)
    width = _SAMPLE // _PLACES
    due = [place * (length - width) // (_PLACES - 1) for place in range(_PLACES)]
    pieces, begin = [], 0
    for part in inner:
        view = memoryview(part).cast("B")
        end = begin + len(view)
        pieces += [view[at - begin : at - begin + width] for at in due if begin <= at < end]
        begin = end
    return b"".join(pieces)


def _limit(spec: Spec) -> int:
    """Return what an inner frame can need at most: the tensors, and for each a description and its name, twice."""
    return spec.nbytes + (64 << 10) + sum(1024 + 2 * len(info.name.encode()) for info in spec)


def _decompressed(payload: memoryview, length: int) -> bytes:
    try:
        about = lz4.frame.get_frame_info(payload)
        fits = about["content_size"] == length and about["content_checksum"] and not about["skippable"]
        expect(fits, f"the LZ4 frame does not state a content of {length} bytes with a checksum")
        decompressor = lz4.frame.LZ4FrameDecompressor()
        inner: bytes = decompressor.decompress(payload, max_length=length + 1)
    except (RuntimeError, ValueError, EOFError) as error:
        raise DecodeError(f"the LZ4 frame cannot be read: {error}") from error
    expect(decompressor.eof, "the LZ4 frame is cut off")
    expect(not decompressor.unused_data, "bytes behind the LZ4 frame")
    return inner
