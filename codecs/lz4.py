"""LZ4 around another codec: the fastest, for updates that are sparse, quantised or partly zero; float weights do not shrink.

Frame layout:
    that of :class:`fedcore.compression.Compressor`; compressed, it is one LZ4 frame

What survives:
    All that survives in the inner codec.
"""

from __future__ import annotations

from collections.abc import Iterable

import lz4.frame

from fedcore.compression import Compressor
from fedcore.errors import DecodeError
from fedcore.parameters import expect
from fedcore.transport import Buffer

__all__ = ["Lz4"]


class Lz4(Compressor):
    """LZ4 around another codec; what does not shrink goes as it is.

    Args:
        inner: the codec whose frames are compressed.
        level: 0 is the fast default, 3 to 12 are slower and smaller, below 0 faster and larger. Frames of any level are
            read alike.
    """

    part = "lz4"
    levels = range(-65537, 13)
    usual = 0

    def compress(self, parts: Iterable[Buffer], length: int) -> list[Buffer]:
        """Return one LZ4 frame that states ``length`` and holds a checksum."""
        compressor = lz4.frame.LZ4FrameCompressor(compression_level=self.level, content_checksum=True)
        return [compressor.begin(source_size=length), *map(compressor.compress, parts), compressor.flush()]

    def decompress(self, payload: memoryview, length: int) -> Buffer:
        """Return what the LZ4 frame holds, which must be all there is."""
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
