"""Zstandard around another codec: slower than LZ4 and smaller; even random float weights shrink by a sixth.

Frame layout:
    that of :class:`fedcore.compression.Compressor`; compressed, it is one Zstandard frame

What survives:
    All that survives in the inner codec.
"""

from __future__ import annotations

from collections.abc import Iterable

import zstandard

from fedcore.compression import Compressor
from fedcore.errors import DecodeError
from fedcore.parameters import expect
from fedcore.transport import Buffer

__all__ = ["Zstd"]

_APART = 4 << 10  # parts of that size get blocks, and so statistics, of their own
_MIN_WINDOW, _MAX_WINDOW = 1 << 10, 1 << 27  # the least there is, and the most that any level uses


class Zstd(Compressor):
    """Zstandard around another codec; what does not shrink goes as it is.

    Args:
        inner: the codec whose frames are compressed.
        level: 1 is the default, 2 to 22 are slower and on weights hardly smaller, below 0 faster and larger. Frames of any
            level are read alike.
    """

    part = "zstd"
    levels = range(-(1 << 17), 23)
    usual = 1

    def compress(self, parts: Iterable[Buffer], length: int) -> list[Buffer]:
        """Return one Zstandard frame that states ``length`` and holds a checksum."""
        # one for each call: they may not be shared between threads
        compressor = zstandard.ZstdCompressor(level=self.level, write_checksum=True).compressobj(size=length)
        frame: list[Buffer] = []
        for part in parts:
            frame.append(compressor.compress(part))
            if len(part) >= _APART:
                frame.append(compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        return [*frame, compressor.flush()]

    def decompress(self, payload: memoryview, length: int) -> Buffer:
        """Return what the Zstandard frame holds, which must be all there is."""
        window = min(max(2 * length, _MIN_WINDOW), _MAX_WINDOW)
        try:
            about = zstandard.get_frame_parameters(payload)
            fits = about.content_size == length > 0 and about.has_checksum and about.dict_id == 0
            expect(fits, f"the Zstandard frame does not state a content of {length} bytes with a checksum")
            decompressor = zstandard.ZstdDecompressor(max_window_size=window)
            return decompressor.decompress(payload, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DecodeError(f"the Zstandard frame cannot be read: {error}") from error
