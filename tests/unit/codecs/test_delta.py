import numpy as np
import pytest
import torch

from fedcore import registry
from fedcore.codec import frame_bytes, joined
from fedcore.codecs.delta import Delta
from fedcore.errors import DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Spec
from fedcore.tensorwise import fingerprint
from fedcore.views import raw_bytes

CODEC = Delta()


def wild(seed):
    """Return any bits in every dtype."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, dtype in DTYPES.items():
        raw = rng.integers(0, 2 if name == "bool" else 256, 1000 * dtype.itemsize, dtype=np.uint8)
        made[name] = torch.from_numpy(raw).view(dtype).view(10, 100)
    return made


def same(left, right):
    return all(raw_bytes(left[name]) == raw_bytes(right[name]) for name in right)


def decoded(frame, spec, base=None):
    return CODEC.decode(joined(frame), spec, base=base)


def test_every_bit_of_every_dtype_survives():
    shard, spec = wild(0), Spec.of(wild(0))
    for base in (None, wild(1), wild(0), {name: torch.zeros_like(tensor) for name, tensor in shard.items()}):
        frame = CODEC.encode(shard, base=base)
        assert same(decoded(frame, spec, base), shard)
        assert frame_bytes(frame) == 9 + spec.nbytes


def test_decodes_over_its_own_base():
    shard, base = wild(0), wild(1)
    frame = joined(CODEC.encode(shard, base=base))
    made = CODEC.decode(frame, Spec.of(shard), base=base, into=base)
    assert made["float32"] is base["float32"]
    assert same(made, shard)


def test_small_changes_are_small_numbers():
    base = {"w": torch.tensor([10, 10, 10, 10, -128, 127], dtype=torch.int8)}
    shard = {"w": torch.tensor([10, 9, 11, 8, 127, -128], dtype=torch.int8)}
    assert joined(CODEC.encode(shard, base=base))[9:] == bytes([0, 1, 2, 3, 1, 2])
    one = {"w": torch.tensor([1.0])}
    next_up = {"w": torch.nextafter(one["w"], torch.tensor([2.0]))}
    assert joined(CODEC.encode(next_up, base=one))[9:] == bytes([2, 0, 0, 0])


def test_without_a_base_the_bits_go_as_they_are():
    tensor = torch.arange(5)
    head, view = CODEC.encode({"w": tensor})
    tensor[0] = 7
    assert view[0] == 7
    assert head[8] == 0


@pytest.mark.parametrize(("codec", "most"), [("delta+zstd", 0.75), ("delta+lz4", 0.82)])
def test_a_step_of_training_shrinks(codec, most):
    draw = torch.Generator().manual_seed(0)
    base = {"w": 0.05 * torch.randn(1 << 18, generator=draw)}
    shard = {"w": base["w"] + 0.001 * torch.randn(1 << 18, generator=draw)}
    wrapped = registry.codec(codec)
    frame = joined(wrapped.encode(shard, base=base))
    assert len(frame) < most * shard["w"].nbytes
    assert same(wrapped.decode(frame, Spec.of(shard), base=base), shard)


def test_hostile_frames():
    shard, base, spec = {"w": torch.ones(50)}, {"w": torch.zeros(50)}, Spec((TensorInfo("w", "float32", (50,)),))
    frame = bytes(joined(CODEC.encode(shard, base=base)))
    cut = [frame[:length] for length in range(len(frame))]
    for bad in (*cut, frame + b"\0", b"\0" + frame[1:], frame[:8] + b"\2" + frame[9:]):
        with pytest.raises(DecodeError):
            CODEC.decode(bad, spec, base=base)
    with pytest.raises(DecodeError, match="no base") as caught:
        CODEC.decode(frame, spec)
    assert caught.value.reason == "BASE_MISMATCH"


def test_a_bool_is_one_after_the_sum_too():
    info = TensorInfo("w", "bool", (1,))
    frame = fingerprint([info]) + b"\1" + b"\2"  # one more than it was
    assert CODEC.decode(frame, Spec((info,)), base={"w": torch.tensor([False])})["w"].item() is True
    with pytest.raises(DecodeError, match="neither 0 nor 1"):
        CODEC.decode(frame, Spec((info,)), base={"w": torch.tensor([True])})


def test_looks():
    assert CODEC.lossless
    assert CODEC.uses_base
    assert registry.codec("delta+zstd").name == "delta+zstd"
    assert "delta" in registry.default_accepts(None)
