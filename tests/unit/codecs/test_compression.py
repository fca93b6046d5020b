"""What both compressors do alike: when they compress, in which width, and what they refuse."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.codec import Codec, Wrapper, buffers, frame_bytes, joined
from fedcore.codecs.delta import Delta
from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.zstd import Zstd
from fedcore.errors import ConfigError, DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import Spec

BOTH = pytest.mark.parametrize("kind", [Lz4, Zstd])
ROOMY = Spec((TensorInfo("w", "uint8", (8 << 20,)),))


class Bytes(Codec):
    """Its frames are what it was made with; what it is given to decode it keeps."""

    part = "bytes"

    def __init__(self, frame=b""):
        self.frame = frame

    def encode(self, shard, *, base=None, state=None):
        return self.frame

    def decode(self, frame, spec, *, base=None, into=None):
        self.frame = bytes(frame)
        return {}


def encoded(kind, *parts, **options):
    return joined(buffers(kind(Bytes(list(parts)), **options).encode({})))


def decoded(kind, frame):
    inner = Bytes()
    kind(inner).decode(frame, ROOMY)
    return inner.frame


def noise(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


def alike(width, count):
    """Return groups of bytes, of which the first is noise and the others are the same in all groups."""
    made = np.tile(np.arange(width, dtype=np.uint8), (count, 1))
    made[:, 0] = np.frombuffer(noise(count), np.uint8)
    return made.tobytes()


@BOTH
@pytest.mark.parametrize("width", [2, 4, 8])
def test_the_width_that_shrinks_most_is_taken(kind, width):
    frame = encoded(kind, alike(width, 300_000 // width))
    assert frame[0] in (width, 2 * width)
    assert len(frame) < 300_000 * (1.1 / width)
    assert decoded(kind, frame) == alike(width, 300_000 // width)


@BOTH
def test_what_does_not_look_alike_is_not_shuffled(kind):
    text = b"the quick brown fox jumps over the lazy dog, " * 5000
    frame = encoded(kind, text)
    assert frame[0] == 1
    assert decoded(kind, frame) == text


@BOTH
@pytest.mark.parametrize("size", [0, 1, 7, 9, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 3, 3_333_333])
@pytest.mark.parametrize("cuts", [(), (1,), (5, 6, 1000), (1 << 20, (1 << 20) + 1)])
def test_any_length_in_any_pieces(kind, size, cuts):
    whole = alike(4, size // 4 + 1)[:size]
    edges = [0, *(min(cut, size) for cut in cuts), size]
    frame = encoded(kind, *(memoryview(whole)[a:b] for a, b in pairwise(edges)))
    assert frame[0] == (4 if size > 4000 else 0)
    assert decoded(kind, frame) == whole


@BOTH
@given(data=st.binary(max_size=300), repeat=st.integers(1, 60))
@settings(deadline=None, derandomize=True, database=None, max_examples=100)
def test_any_bytes_come_back(kind, data, repeat):
    frame = encoded(kind, data * repeat)
    assert decoded(kind, frame) == data * repeat
    assert len(frame) <= len(data) * repeat + 9


@BOTH
def test_what_does_not_shrink_goes_without_a_copy(kind):
    parts = [bytearray(noise(100_000)), bytearray(noise(100_000, 1))]
    head, *sent = kind(Bytes(parts)).encode({})
    assert head == b"\0" + (200_000).to_bytes(8, "little")
    parts[1][-1] ^= 255
    assert b"".join(sent) == b"".join(parts)


@BOTH
def test_the_sample_sees_many_small_buffers_as_one(kind):
    small = [bytes(50) if place % 2 else noise(50, place) for place in range(10_000)]
    frame = encoded(kind, *small)
    assert frame[0] in (1, 2, 4, 8)
    assert decoded(kind, frame) == b"".join(small)


def test_random_floats_go_raw_by_lz4_and_lose_a_sixth_by_zstd():
    weights = {"w": 0.05 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))}
    raw, packed = Lz4(Safetensors()).encode(weights), Zstd(Safetensors()).encode(weights)
    assert raw[0][0] == 0
    assert packed[0][0] == 4
    assert 0.8 < frame_bytes(packed) / weights["w"].nbytes < 0.86


@BOTH
def test_a_bomb_is_refused_before_it_goes_off(kind):
    bomb = encoded(kind, bytes(4 << 20))
    assert len(bomb) < 40_000
    small = Spec((TensorInfo("w", "uint8", (1000,)),))
    for length in (4 << 20, 60_000, 1, 0, 2**64 - 1):
        lying = bomb[:1] + length.to_bytes(8, "little") + bomb[9:]
        tracemalloc.start()
        with pytest.raises(DecodeError):
            kind(Bytes()).decode(lying, small)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300_000


@BOTH
def test_cut_extended_or_of_another_width(kind):
    whole = alike(4, 5000)
    frame = bytes(encoded(kind, whole))
    assert frame[0] == 4
    for length in [*range(40), *range(40, len(frame), 97), len(frame) - 1]:
        with pytest.raises(DecodeError):
            decoded(kind, frame[:length])
    for tail in (b"\0", frame, frame[9:]):
        with pytest.raises(DecodeError):
            decoded(kind, frame + tail)
    for width in (3, 5, 6, 7, 9, 16, 255):
        with pytest.raises(DecodeError, match=f"unknown width {width}"):
            decoded(kind, bytes([width]) + frame[1:])
    with pytest.raises(DecodeError):
        decoded(kind, b"\0" + frame[1:])
    assert decoded(kind, b"\1" + frame[1:]) != whole


@BOTH
def test_a_wrapper_takes_over_what_its_inner_codec_is(kind):
    class Rough(Bytes):
        lossless, trusted_only = False, True

    assert (kind(Rough()).lossless, kind(Rough()).trusted_only, kind(Rough()).uses_base) == (False, True, False)
    assert (kind(Delta()).lossless, kind(Delta()).trusted_only, kind(Delta()).uses_base) == (True, False, True)
    assert kind(kind(Delta())).uses_base
    assert issubclass(kind, Wrapper)
    assert kind(Delta()).landing(ROOMY, {}) is None


@pytest.mark.parametrize(("kind", "level"), [(Lz4, 13), (Lz4, -70_000), (Zstd, 23), (Zstd, 1 << 20), (Zstd, True), (Zstd, 1.0)])
def test_levels_that_are_none(kind, level):
    with pytest.raises(ConfigError, match=f"{kind.__name__} level must be an integer from"):
        kind(Safetensors(), level=level)
