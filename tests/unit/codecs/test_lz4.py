import tracemalloc

import lz4.frame
import pytest
import torch

from fedcore import registry
from fedcore.codec import Codec, buffers, joined
from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.protobuf import Protobuf
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.torch import Torch
from fedcore.errors import ConfigError, DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Spec

CODEC = Lz4(Safetensors())
ZEROS = {"w": torch.zeros(1000), "b": torch.ones(3)}
SPEC = Spec.of(ZEROS)
INNER = b"".join(Safetensors().encode(ZEROS))


def noise(size):
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def encoded(codec, shard):
    return b"".join(codec.encode(shard))


def framed(payload, flag=1, length=None):
    return bytes([flag]) + (len(INNER) if length is None else length).to_bytes(8, "little") + payload


def squeezed(data, **options):
    return lz4.frame.compress(data, **{"content_checksum": True, "store_size": True} | options)


def claiming(payload, size):
    """Return an LZ4 frame whose header states another content size, with the header checksum made right again."""
    forged = bytearray(payload)
    forged[6:14] = size.to_bytes(8, "little")
    for check in range(256):
        forged[14] = check
        try:
            if lz4.frame.get_frame_info(forged)["content_size"] == size:
                return bytes(forged)
        except RuntimeError:
            continue
    raise AssertionError("no checksum fits")


def refused(frame, spec=SPEC):
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(frame, spec)
    return caught.value


# --- when it compresses -----------------------------------------------------------------------------------------------


def test_golden_bytes():
    shard = {"w": noise(5)}
    assert encoded(CODEC, shard) == bytes.fromhex("00 4500000000000000") + encoded(Safetensors(), shard)
    # an LZ4 frame: magic number, linked blocks of 64 KiB, content size and content checksum
    assert encoded(CODEC, ZEROS).startswith(framed(bytes.fromhex("04224d18 4c40")))


def test_what_shrinks_is_compressed():
    frame = encoded(CODEC, ZEROS)
    assert frame[0] == 1
    assert len(frame) < len(INNER) / 10
    assert lz4.frame.decompress(frame[9:]) == INNER


def test_what_does_not_shrink_goes_without_a_copy():
    tensor = noise(200_000)
    head, _, view = CODEC.encode({"w": tensor})
    assert head[0] == 0
    tensor[0] = 7
    assert view[0] == 7


def test_float_weights_do_not_shrink():
    assert encoded(CODEC, {"w": torch.randn(100_000)})[0] == 0


def test_a_third_of_zeros_is_worth_it_wherever_they_lie():
    for place in range(3):
        parts = [noise(100_000), noise(100_000)]
        parts.insert(place, torch.zeros(100_000, dtype=torch.uint8))
        assert encoded(CODEC, {"w": torch.cat(parts)})[0] == 1
        assert encoded(CODEC, {str(n): part for n, part in enumerate(parts)})[0] == 1


def test_a_sample_that_promised_too_much():
    flat = noise(1_000_000)
    for place in range(8):  # zeros exactly where the sample is taken
        start = place * (1_000_000 - 8192) // 7
        flat[start : start + 8192] = 0
    frame = encoded(CODEC, {"w": flat})
    assert len(frame) <= 1_000_000 + 200
    assert torch.equal(CODEC.decode(frame, Spec.of({"w": flat}))["w"], flat)


def test_levels():
    pattern = {"w": (torch.arange(50_000) % 1000 // 7).to(torch.int16)}
    fast, small = encoded(CODEC, pattern), encoded(Lz4(Safetensors(), level=12), pattern)
    assert len(small) < len(fast)
    assert torch.equal(CODEC.decode(small, Spec.of(pattern))["w"], pattern["w"])
    assert Lz4(Safetensors(), level=12) == CODEC
    assert repr(Lz4(Safetensors(), level=12)) == "Lz4(Safetensors(), level=12)"


@pytest.mark.parametrize("level", [13, -70_000, 1.0, "0", True])
def test_levels_that_are_none(level):
    with pytest.raises(ConfigError, match="level"):
        Lz4(Safetensors(), level=level)


def test_wraps_codecs_alone():
    with pytest.raises(ConfigError, match="wraps a codec"):
        Lz4("safetensors")
    with pytest.raises(ConfigError, match="wraps a codec"):
        registry.codec("lz4")


def test_base_state_and_into_reach_the_inner_codec():
    seen = []

    class Inner(Codec):
        part = "inner"

        def encode(self, shard, *, base=None, state=None):
            seen.append((base, state))
            return b"x"

        def decode(self, frame, spec, *, base=None, into=None):
            seen.append((bytes(frame), base, into))
            return {}

    base, state, into = {"b": 1}, {}, {"i": 2}
    frame = b"".join(Lz4(Inner()).encode({}, base=base, state=state))
    Lz4(Inner()).decode(frame, SPEC, base=base, into=into)
    assert seen == [(base, state), (b"x", base, into)]


# --- Z1, W8: no more memory than the shard needs ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bomb():
    return squeezed(bytes(8 << 20))


def test_z1_a_bomb_that_tells(bomb):
    assert len(bomb) < 40_000
    assert "longer than any such shard needs" in str(refused(framed(bomb, length=8 << 20)))
    assert "does not state" in str(refused(framed(bomb)))


def test_z1_a_bomb_that_lies(bomb):
    tracemalloc.start()
    error = refused(framed(claiming(bomb, len(INNER))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "cut off" in str(error)
    assert peak < 500_000


@pytest.mark.parametrize("inner", [Safetensors(), Torch(), Msgpack(), Protobuf(), Lz4(Safetensors())])
@pytest.mark.parametrize("name", ["n", "語" * 1024, '"\\' * 512])
def test_the_bound_has_room_for_any_shard(inner, name):
    shapes = [(), (0,), (1,) * 16]
    shard = {f"{place}{name}"[:1024]: torch.zeros(shapes[place % 3]) for place in range(300)}
    frame = joined(buffers(inner.encode(shard)))
    for whole in (encoded(Lz4(inner), shard), framed(frame, 0, len(frame))):
        assert list(Lz4(inner).decode(whole, Spec.of(shard))) == list(shard)


def test_the_bound_has_room_for_tensors_of_one_element_of_every_dtype():
    shard = {f"{place}.{dtype}": torch.zeros(1, dtype=kind) for place in range(60) for dtype, kind in DTYPES.items()}
    frame = bytes(Torch().encode(shard))
    assert list(Lz4(Torch()).decode(framed(frame, 0, len(frame)), Spec.of(shard))) == list(shard)


# --- Z2 to Z7, W9 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 40, 0, len(INNER) - 1, len(INNER) + 1])
def test_z2_declared_sizes(size):
    assert "does not state" in str(refused(framed(claiming(squeezed(INNER), size))))
    refused(framed(claiming(squeezed(INNER), size), length=size))


def test_z2_no_declared_size():
    assert "does not state" in str(refused(framed(squeezed(INNER, store_size=False))))


def test_z3_cut_anywhere():
    frame = encoded(CODEC, ZEROS)
    for length in range(len(frame)):
        refused(frame[:length])


def test_z4_anything_more():
    whole = squeezed(INNER)
    skippable = bytes.fromhex("502a4d18 04000000 deadbeef")
    for payload in (
        whole + b"\0",
        whole + whole,
        skippable + whole,
        whole + skippable,
        whole + squeezed(b""),
        skippable,
    ):
        refused(framed(payload))


def test_z7_a_flag_that_does_not_fit():
    refused(framed(INNER, flag=1))
    refused(framed(squeezed(INNER), flag=0))
    refused(framed(squeezed(INNER), flag=0, length=len(squeezed(INNER))))
    for flag in (2, 4, 8):
        refused(framed(INNER, flag))
    for flag in (3, 128, 255):
        assert f"unknown width {flag}" in str(refused(framed(INNER, flag)))


def test_raw_frames_have_their_length():
    assert "not" in str(refused(framed(INNER + b"\0", flag=0)))
    assert "not" in str(refused(framed(INNER[:-1], flag=0)))
    for length in (2**64 - 1, 0, len(INNER) + 1):
        refused(framed(INNER, flag=0, length=length))


def test_w9_a_flipped_bit_does_not_go_unseen():
    frame = encoded(CODEC, ZEROS)
    unseen = 0
    for place in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[place // 8] ^= 1 << place % 8
        try:
            decoded = CODEC.decode(changed, SPEC)
        except DecodeError:
            continue
        # in a row of zeros it does not matter which of them is copied
        assert all(torch.equal(decoded[name], ZEROS[name]) for name in ZEROS)
        unseen += 1
    assert unseen < 20


def test_w9_a_frame_without_checksum():
    assert "checksum" in str(refused(framed(squeezed(INNER, content_checksum=False))))


def test_what_the_inner_codec_refuses():
    other = Spec((TensorInfo("v", "float32", (1000,)), SPEC.infos[1]))
    error = refused(encoded(CODEC, ZEROS), other)
    assert error.reason == "SCHEMA_MISMATCH"
    assert "'v' was due" in str(error)
