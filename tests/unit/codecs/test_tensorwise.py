"""What all lossy codecs do alike: what goes raw, what comes back, and what they refuse."""

import hashlib
import math
import tracemalloc

import pytest
import torch

from fedcore.codec import buffers, frame_bytes, joined
from fedcore.codecs.bf16 import Bf16
from fedcore.codecs.fp16 import Fp16
from fedcore.codecs.int4 import Int4
from fedcore.codecs.int8 import Int8
from fedcore.codecs.topk import TopK
from fedcore.errors import DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Spec
from fedcore.tensorwise import fingerprint
from fedcore.views import raw_bytes

ALL = [Bf16(), Fp16(), Int8(), Int4(), TopK()]
EACH = pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
PLAIN = [codec for codec in ALL if codec.name != "topk"]  # which packs differences alone
COUNT = 4000


def normal(count=COUNT, seed=0, dtype=torch.float32):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


def encoded(codec, shard, base=None, state=None):
    return joined(buffers(codec.encode(shard, base=base, state=state)))


def trip(codec, tensor, base=None):
    """Return what comes back, and whether the tensor was packed."""
    beneath = None if base is None else {"w": base}
    frame = encoded(codec, {"w": tensor}, beneath)
    return codec.decode(frame, Spec.of({"w": tensor}), base=beneath)["w"], frame[8] != 0


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and raw_bytes(left) == raw_bytes(right)


def crafted(payload, info, mode=1, length=None):
    length = len(payload) if length is None else length
    return fingerprint([info]) + bytes([mode]) + length.to_bytes(8, "little") + payload


# --- sizes and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "ratio"), [(Bf16(), 0.5), (Fp16(), 0.5), (Int8(), 0.251), (Int4(), 0.1329), (TopK(), 0.02)])
def test_size_on_the_wire(codec, ratio):
    tensor, base = normal(1 << 20), normal(1 << 20, 1)
    size = frame_bytes(codec.encode({"w": tensor}, base={"w": base}))
    assert size / tensor.nbytes == pytest.approx(ratio, abs=0.0002)


@pytest.mark.parametrize("codec", PLAIN, ids=lambda codec: codec.name)
def test_a_difference_comes_back_more_exactly_than_the_numbers(codec):
    base = normal()
    tensor = base + normal(seed=1) / 1000
    alone, beside = trip(codec, tensor)[0], trip(codec, tensor, base)[0]
    assert (beside - tensor).abs().max() * 100 < (alone - tensor).abs().max()


@EACH
def test_all_zeros_and_no_difference(codec):
    for tensor, base in ((torch.zeros(COUNT), None), (normal(), normal()), (torch.zeros(COUNT), torch.zeros(COUNT))):
        assert torch.equal(trip(codec, tensor, base)[0], tensor)


@EACH
@pytest.mark.parametrize("dtype", [kind for kind in DTYPES.values() if kind.is_floating_point], ids=str)
def test_every_floating_dtype(codec, dtype):
    tensor, base = normal(dtype=dtype), normal(seed=1, dtype=dtype)
    decoded, packed = trip(codec, tensor, base)
    assert decoded.dtype == dtype
    if packed:
        before, after = (tensor.double() - base.double()).norm(), (decoded.double() - tensor.double()).norm()
        assert after < before
    else:
        assert same(decoded, tensor)


# --- what goes raw ----------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(COUNT), torch.arange(COUNT) % 2 == 0, normal(2048), normal(1), torch.tensor(1.5), torch.empty(0, 3),
        torch.cat([normal(), torch.tensor([math.nan])]), torch.cat([normal(), torch.tensor([-math.inf])]),
        torch.cat([normal(), torch.tensor([1e38])]), normal(dtype=torch.float64) * 1e300, normal(dtype=torch.float16) * 1e4,
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_base", [False, True])
def test_what_must_not_change_goes_raw(codec, tensor, with_base):
    base = torch.ones_like(tensor) if with_base else None
    decoded, packed = trip(codec, tensor, base)
    assert not packed
    assert same(decoded, tensor)


@EACH
def test_a_base_or_a_difference_that_is_too_large(codec):
    for worst in (1e38, math.inf, math.nan):
        base = normal()
        base[5] = worst
        decoded, packed = trip(codec, normal(seed=1), base)
        assert not packed
        assert same(decoded, normal(seed=1))


@pytest.mark.parametrize("codec", [Bf16(), Fp16()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_go_raw(codec, dtype):
    decoded, packed = trip(codec, normal(dtype=dtype), normal(seed=1, dtype=dtype))
    assert not packed
    assert same(decoded, normal(dtype=dtype))


@EACH
def test_raw_tensors_are_views(codec):
    tensor = torch.arange(1000)
    sent = codec.encode({"w": tensor})[-1]
    tensor[0] = 7
    assert sent[0] == 7


# --- decoding ---------------------------------------------------------------------------------------------------------


@EACH
def test_decodes_over_its_own_base(codec):
    base, tensor = normal(), normal(seed=1)
    shard, spec = {"w": tensor, "n": torch.arange(5)}, Spec.of({"w": tensor, "n": torch.arange(5)})
    held = {"w": base, "n": torch.zeros(5, dtype=torch.int64)}
    frame = encoded(codec, shard, held)
    wanted = codec.decode(frame, spec, base=held)
    got = codec.decode(frame, spec, base=held, into=held)
    assert got["w"] is base
    assert all(same(got[name], wanted[name]) for name in wanted)


# the digest of what a receiver holds is that of what the sender decodes, so these bits may differ nowhere
@pytest.mark.parametrize(
    ("codec", "digest"),
    [
        (Bf16(), "3ed214d3b14ff8b7"),
        (Fp16(), "5d18570a4315aef8"),
        (Int8(), "7e2a14166bc0b2e5"),
        (Int4(), "f2fb7f1a3270620c"),
        (TopK(), "45384a871adde6fe"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_same_bits_on_every_machine(codec, digest):
    hasher = hashlib.sha256()
    numbers = (torch.arange(COUNT, dtype=torch.int64) * 7919 % 20011 - 10005).double() / 3000
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor, base = numbers.to(dtype), (numbers.flip(0) / 7).to(dtype)
        hasher.update(raw_bytes(trip(codec, tensor, base)[0]))
    assert hasher.hexdigest()[:16] == digest


@EACH
def test_a_difference_without_its_base(codec):
    tensor = normal()
    frame = encoded(codec, {"w": tensor}, {"w": normal(seed=1)})
    for base, why in ((None, "no base"), ({}, "no base"), ({"w": tensor[1:]}, "shape"), ({"w": tensor.double()}, "dtype")):
        with pytest.raises(DecodeError, match=why) as caught:
            codec.decode(frame, Spec.of({"w": tensor}), base=base)
        assert caught.value.reason == "BASE_MISMATCH"


@EACH
def test_hostile_frames(codec):
    tensor, base = normal(), {"w": normal(seed=1)}
    spec = Spec.of({"w": tensor})
    (info,) = spec
    frame = bytes(encoded(codec, {"w": tensor}, base))
    payload = frame[17:]
    for bad in (
        *(frame[:length] for length in range(0, len(frame), 41)), frame[:-1], frame + b"\0", b"\0" + frame[1:],
        *(crafted(payload, info, mode) for mode in (3, 4, 255)),
        *(crafted(payload, info, 2, length) for length in (0, 1, len(payload) - 1, len(payload) + 1, 1 << 40, 2**64 - 1)),
        crafted(payload[:-1], info, 2), crafted(payload + b"\0", info, 2), crafted(b"", info, 2),
        crafted(bytes(tensor.nbytes), info, 2), crafted(bytes(tensor.nbytes + 4), info, 2), crafted(payload[:3], info, 2),
    ):  # fmt: skip
        tracemalloc.start()
        with pytest.raises(DecodeError):
            codec.decode(bad, spec, base=base)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@EACH
@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_what_is_packed_is_never_infinite(codec, number):
    info, base = TensorInfo("w", "float32", (COUNT,)), {"w": torch.zeros(COUNT)}
    payload = bytearray(encoded(codec, {"w": normal()}, base)[17:])
    # a number, or a scale
    kind, start = {
        "bf16": (torch.bfloat16, 1000), "fp16": (torch.float16, 1000), "int8": (torch.float32, 4), "int4": (torch.float32, 8),
        "topk": (torch.float32, 4 * 40),
    }[codec.name]  # fmt: skip
    payload[start : start + kind.itemsize] = raw_bytes(torch.tensor(number, dtype=kind))
    with pytest.raises(DecodeError, match="not finite"):
        codec.decode(crafted(bytes(payload), info, 2), Spec((info,)), base=base)


@EACH
@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_only_floats_are_packed(codec, dtype):
    info = TensorInfo("w", dtype, (COUNT,))
    with pytest.raises(DecodeError):
        codec.decode(crafted(bytes(600), info), Spec((info,)))


@EACH
def test_a_bool_is_one(codec):
    info = TensorInfo("w", "bool", (3,))
    with pytest.raises(DecodeError, match="neither 0 nor 1"):
        codec.decode(fingerprint([info]) + b"\0\0\1\2", Spec((info,)))


@EACH
def test_looks(codec):
    assert not codec.lossless
    assert codec.uses_base
    assert repr(codec) == f"{type(codec).__name__}()"
