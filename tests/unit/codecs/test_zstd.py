import sys

import pytest
import torch
import zstandard

from fedcore import registry
from fedcore.codec import buffers, joined
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.zstd import Zstd
from fedcore.errors import DecodeError, MissingDependency
from fedcore.parameters import Spec

CODEC = Zstd(Safetensors())
ZEROS = {"w": torch.zeros(1000), "b": torch.ones(3)}
SPEC = Spec.of(ZEROS)
INNER = b"".join(Safetensors().encode(ZEROS))


def encoded(codec, shard):
    return joined(buffers(codec.encode(shard)))


def framed(payload, width=1, length=None):
    return bytes([width]) + (len(INNER) if length is None else length).to_bytes(8, "little") + payload


def squeezed(data, **options):
    return zstandard.ZstdCompressor(**{"write_checksum": True} | options).compress(data)


def refused(frame):
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(frame, SPEC)
    return str(caught.value)


def test_any_zstd_reads_it():
    frame = encoded(CODEC, ZEROS)
    assert frame[0] == 1
    assert len(frame) < len(INNER) / 10
    assert zstandard.decompress(frame[9:]) == INNER
    about = zstandard.get_frame_parameters(frame[9:])
    assert (about.content_size, about.has_checksum) == (len(INNER), True)


def test_reads_what_any_zstd_writes():
    for level in (-5, 1, 19, 22):
        decoded = CODEC.decode(framed(squeezed(INNER, level=level)), SPEC)
        assert torch.equal(decoded["w"], ZEROS["w"])


def test_frames_of_any_level_are_read():
    pattern = {"w": (torch.arange(50_000) % 1000 // 7).to(torch.int16)}
    fast, small = encoded(Zstd(Safetensors(), level=-20), pattern), encoded(Zstd(Safetensors(), level=19), pattern)
    assert len(small) < len(fast)
    for frame in (fast, small):
        assert torch.equal(CODEC.decode(frame, Spec.of(pattern))["w"], pattern["w"])
    assert Zstd(Safetensors(), level=19) == CODEC
    assert repr(Zstd(Safetensors(), level=19)) == "Zstd(Safetensors(), level=19)"
    assert repr(CODEC) == "Zstd(Safetensors())"


def test_what_a_frame_must_state():
    without_size = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(INNER)
    for payload in (squeezed(INNER, write_checksum=False), without_size, squeezed(INNER[:-1]), squeezed(b""), b"", INNER):
        refused(framed(payload))
    dictionary = zstandard.ZstdCompressionDict(INNER * 4, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    refused(framed(squeezed(INNER, dict_data=dictionary)))


def test_anything_more():
    whole, skippable = squeezed(INNER), bytes.fromhex("502a4d18 04000000 deadbeef")
    for payload in (whole + b"\0", whole + whole, skippable + whole, whole + skippable, whole + squeezed(b""), skippable):
        refused(framed(payload))
    refused(framed(squeezed(b"") + b"x", length=0))


def test_a_size_that_is_a_lie():
    whole = bytearray(squeezed(bytes(60_000)))
    assert whole[4] >> 6 == 1  # the size takes two bytes, and is stored less 256
    whole[5:7] = (len(INNER) - 256).to_bytes(2, "little")
    assert zstandard.frame_content_size(bytes(whole)) == len(INNER)
    assert "cannot be read" in refused(framed(bytes(whole)))


def test_a_window_larger_than_the_shard_needs():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_checksum=True)
    streamed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    payload = bytearray(streamed.compress(INNER) + streamed.flush())
    assert zstandard.get_frame_parameters(bytes(payload)).window_size == 1 << 27
    refused(framed(bytes(payload)))


def test_a_flipped_bit_does_not_go_unseen():
    frame = bytes(encoded(CODEC, ZEROS))
    for place in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[place // 8] ^= 1 << place % 8
        try:
            decoded = CODEC.decode(changed, SPEC)
        except DecodeError:
            continue
        assert all(torch.equal(decoded[name], ZEROS[name]) for name in ZEROS)


def test_the_library_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.delitem(sys.modules, "fedcore.codecs.zstd")
    with pytest.raises(MissingDependency, match="pip install zstandard"):
        registry.codec("safetensors+zstd")
