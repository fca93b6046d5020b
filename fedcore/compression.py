"""What compressors share: they ask a sample first, and bring bytes that look alike together before they compress.

The numbers of a tensor differ in their low bytes and resemble each other in their high ones. Shuffled, all first bytes
come first, then all second bytes, and so on: general compressors find little in floats as they lie, and more then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedcore.codec import Codec, Frame, Wrapper, buffers, frame_bytes, joined
from fedcore.errors import ConfigError
from fedcore.parameters import Parameters, Spec, expect
from fedcore.transport import Buffer

_RAW, _WIDTHS = 0, (1, 2, 4, 8)
_HEADER = 9
_BLOCK = 1 << 20  # shuffled at once: small enough for the cache, large enough for rows that compress
_PLACES, _SAMPLE = 8, 64 << 10
# a core packs a few hundred MB a second: to save a tenth pays on links below some 0.5 Gbit/s, to save less hardly anywhere
_WORTH = 0.9


class Compressor(Wrapper):
    """A wrapper that compresses the frames of another codec; what does not shrink goes as it is.

    Frame layout:
        1 byte
            0: the inner frame follows as it is; 1, 2, 4 or 8: it follows compressed, shuffled by that width
        8 bytes
            length of the inner frame, little-endian
        payload
            the inner frame, or one compressed frame that states that length and holds a checksum of the content

        The inner frame is shuffled in blocks of 1 MiB: byte 0 of each group of ``width`` bytes, then byte 1, and so on;
        the last bytes of the last block that make no group follow as they are. Width 1 changes nothing.

        A sample from eight places is compressed first, in every width. If it does not shrink to nine tenths in any, the
        inner frame is sent as it is, without a copy.

    What survives:
        All that survives in the inner codec.

    Args:
        inner: the codec whose frames are compressed.
        level: how hard to try; frames of any level are read alike. ``None`` is the subclass's ``usual``.

    Attributes:
        levels: those there are.
        usual: the one that is used unless told.
    """

    levels: ClassVar[range]
    usual: ClassVar[int]

    def __init__(self, inner: Codec, level: int | None = None):
        super().__init__(inner)
        self.level = self.usual if level is None else level
        if isinstance(level, bool) or not isinstance(self.level, int) or self.level not in self.levels:
            allowed = f"an integer from {self.levels[0]} to {self.levels[-1]}"
            raise ConfigError(f"{type(self).__name__} level must be {allowed}, not {level!r}")

    def __repr__(self) -> str:
        level = "" if self.level == self.usual else f", level={self.level}"
        return f"{type(self).__name__}({self.inner!r}{level})"

    @abstractmethod
    def compress(self, parts: Iterable[Buffer], length: int) -> list[Buffer]:
        """Return one compressed frame, in pieces, that states ``length`` and holds a checksum.

        Args:
            parts: what to compress, none of it empty; bytes that look alike are in one part.
            length: bytes in all of them.
        """

    @abstractmethod
    def decompress(self, payload: memoryview, length: int) -> Buffer:
        """Return what one compressed frame holds, and allocate no more than ``length`` for it.

        Raises:
            DecodeError: it states another length or no checksum, is damaged or cut off, or is not all there is.
        """

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return the inner frame compressed, or its own buffers behind a header if that would not pay."""
        inner = [memoryview(part).cast("B") for part in buffers(self.inner.encode(shard, base=base, state=state)) if len(part)]
        length = sum(map(len, inner))
        width, payload = self._width(inner, length), list[Buffer](inner)
        if width != _RAW:
            packed = self.compress(inner if width == 1 else _shuffled(inner, width), length)
            if frame_bytes(packed) < length:
                payload = [piece for piece in packed if len(piece)]
            else:  # the sample promised too much
                width = _RAW
        return [bytes([width]) + length.to_bytes(8, "little"), *payload]

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
        width, length, payload = view[0], int.from_bytes(view[1:_HEADER], "little"), view[_HEADER:]
        expect(width in (_RAW, *_WIDTHS), f"unknown width {width}")
        limit = _limit(spec)
        expect(length <= limit, f"an inner frame of {length} bytes is longer than any such shard needs ({limit})")
        inner = payload if width == _RAW else self.decompress(payload, length)
        expect(len(inner) == length, f"the inner frame has {len(inner)} bytes, not {length}")
        return self.inner.decode(inner if width < 2 else _restored(inner, width), spec, base=base, into=into)

    def _width(self, inner: list[memoryview], length: int) -> int:
        """Return the width by which a sample shrinks most, or that of a raw frame if it does not shrink enough."""
        sample = _sample(inner, length)
        if not sample:
            return _RAW
        sizes = {w: frame_bytes(self.compress(_shuffle(sample, w), len(sample))) for w in _WIDTHS}
        best = min(sizes, key=sizes.__getitem__)
        return best if sizes[best] < _WORTH * len(sample) else _RAW


def _sample(inner: list[memoryview], length: int) -> bytes:
    """Return 64 KiB from eight places spread over the buffers, or all of what is shorter."""
    if length <= _SAMPLE:
        return b"".join(inner)
    size = _SAMPLE // _PLACES
    last = (length - size) // _WIDTHS[-1]  # all at the same place in a group of bytes
    starts = [place * last // (_PLACES - 1) * _WIDTHS[-1] for place in range(_PLACES)]
    pieces, begin = [], 0
    for part in inner:
        pieces += [part[max(0, at - begin) : max(0, at - begin + size)] for at in starts]
        begin += len(part)
    return b"".join(pieces)


def _shuffled(inner: Iterable[memoryview], width: int) -> Iterator[memoryview]:
    """Yield what makes the buffers, taken together and block by block, shuffled."""
    pieces: list[memoryview] = []
    room = _BLOCK
    for part in inner:
        rest = part
        while len(rest) >= room:
            yield from _shuffle(joined([*pieces, rest[:room]]), width)
            pieces, rest, room = [], rest[room:], _BLOCK
        if len(rest):
            pieces.append(rest)
            room -= len(rest)
    if pieces:
        yield from _shuffle(joined(pieces), width)


def _shuffle(block: Buffer, width: int) -> list[memoryview]:
    """Return all first bytes, all second bytes, and so on, and what is left."""
    source = np.frombuffer(block, np.uint8)
    columns = np.ascontiguousarray(_rows(source, width).T)
    parts = [*columns, source[columns.size :]]
    return [memoryview(part.data) for part in parts if part.size]


def _restored(data: Buffer, width: int) -> memoryview:
    """Undo :func:`_shuffled`."""
    source = np.frombuffer(data, np.uint8)
    made = np.empty_like(source)
    for start in range(0, len(source), _BLOCK):
        block, target = source[start : start + _BLOCK], made[start : start + _BLOCK]
        rows = _rows(target, width)
        for place, column in enumerate(block[: rows.size].reshape(width, -1)):  # thrice as fast as a transposed copy
            rows[:, place] = column
        target[rows.size :] = block[rows.size :]
    return made.data


def _rows(block: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return a view with the groups of ``width`` bytes as rows."""
    return block[: len(block) // width * width].reshape(-1, width)


def _limit(spec: Spec) -> int:
    """Return what an inner frame can need at most: the tensors, and for each a description and its name, twice."""
    return spec.nbytes + (64 << 10) + sum(1024 + 2 * len(info.name.encode()) for info in spec)
