"""Both codecs of few bits: their blocks and scales, and how far off a number can be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.codec import joined
from fedcore.codecs.int4 import Int4
from fedcore.codecs.int8 import Int8
from fedcore.errors import ConfigError, DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import Spec
from fedcore.tensorwise import fingerprint

BOTH = pytest.mark.parametrize("kind", [Int8, Int4])
INFO = TensorInfo("w", "float32", (3001,))


def encoded(codec, tensor):
    return joined(codec.encode({"w": tensor}))


def trip(codec, tensor):
    return type(codec)().decode(encoded(codec, tensor), Spec.of({"w": tensor}))["w"]


def scales(codec, tensor):
    """Return the scale of each element, as the contract has it."""
    parts = tensor.double().split(codec.block or len(tensor))
    return torch.cat([(part.abs().max() / codec.top).expand(len(part)) for part in parts])


def crafted(payload):
    return fingerprint([INFO]) + b"\1" + len(payload).to_bytes(8, "little") + payload


@BOTH
@given(
    seed=st.integers(0, 1000), count=st.integers(2049, 9000), block=st.one_of(st.none(), st.integers(16, 10_000)),
    spread=st.integers(0, 12), magnitude=st.floats(1e-20, 1e20), double=st.booleans(),
)  # fmt: skip
@settings(deadline=None, derandomize=True, database=None, max_examples=80)
def test_a_number_comes_back_half_a_scale_away_at_most(kind, seed, count, block, spread, magnitude, double):
    draw = torch.Generator().manual_seed(seed)
    tensor = torch.randn(count, generator=draw, dtype=torch.float64) * magnitude
    tensor *= 10.0 ** torch.randint(-spread, 1, (count,), generator=draw)
    tensor = tensor if double else tensor.float()
    codec = kind(block)
    assert ((trip(codec, tensor).double() - tensor.double()).abs() <= 0.5001 * scales(codec, tensor)).all()


@BOTH
@pytest.mark.parametrize("count", [2049, 2050, 3000, 4096, 5001])
@pytest.mark.parametrize("block", [None, 16, 1000, 4096, 1 << 31])
def test_the_largest_of_each_block_comes_back(kind, count, block):
    tensor = torch.zeros(count)
    tensor[:: block or count] = 3.0
    tensor[-1] = -3.0
    assert torch.allclose(trip(kind(block), tensor), tensor, rtol=1e-6)


@BOTH
def test_blocks_of_zeros_and_of_almost_nothing(kind):
    tensor = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    tensor[:1024] = 0
    tensor[1024:2048] = 1e-40
    decoded = trip(kind(256), tensor)
    assert (decoded[:2048] == 0).all()
    assert decoded[2048:].abs().max() > 1


@BOTH
def test_a_block_does_not_feel_the_others(kind):
    tensor = torch.full((4096,), 1e-3)
    tensor[0] = 1e3
    decoded = trip(kind(64), tensor)
    assert torch.allclose(decoded[64:], tensor[64:], rtol=1e-6)
    assert (trip(kind(None), tensor)[1:] == 0).all()


@BOTH
def test_float64_beyond_a_float32_scale_goes_raw(kind):
    tensor = torch.full((4096,), 1e200, dtype=torch.float64)
    assert torch.equal(trip(kind(), tensor), tensor)


def test_golden_bytes():
    tensor = torch.zeros(3001)
    tensor[0], tensor[1], tensor[3000] = 127.0, -3.0, -63.5
    frame = encoded(Int8(3000), tensor)
    assert frame[17:29] == bytes.fromhex("b80b0000 0000803f 0000003f")
    assert frame[29:32] == bytes([127, 253, 0])
    assert frame[-1] == 129
    tensor = tensor.clamp(-7, 7)
    frame = encoded(Int4(None), tensor)
    assert frame[17:25] == bytes.fromhex("00000000 0000803f")
    assert frame[25:27] == bytes([5 << 4 | 15, 8 << 4 | 8])
    assert frame[-1] == 8 << 4 | 1


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\0\0\0", bytes(4), bytes(8), bytes(8 + 3000), bytes(8 + 3002), b"\1\0\0\0" + bytes(3001),
        b"\1\0\0\0" + bytes(5 * 3001), (1501).to_bytes(4, "little") + bytes(4 + 3001),
    ],
)  # fmt: skip
def test_payloads_that_are_none(payload):
    with pytest.raises(DecodeError):
        Int8().decode(crafted(payload), Spec((INFO,)))


def test_a_block_larger_than_the_tensor_is_the_tensor():
    for block in (0, 3001, 3002, 2**32 - 1):
        payload = block.to_bytes(4, "little") + b"\0\0\0\x3f" + bytes([2]) * 3001
        decoded = Int8().decode(crafted(payload), Spec((INFO,)))["w"]
        assert torch.equal(decoded, torch.ones(3001))
        assert decoded.untyped_storage().nbytes() == decoded.nbytes


@BOTH
@pytest.mark.parametrize("block", [0, -2, 1 << 32, 1.5, "64", True, math.inf])
def test_blocks_that_are_none(kind, block):
    with pytest.raises(ConfigError, match=f"{kind.__name__} block must be"):
        kind(block)


@BOTH
def test_repr(kind):
    assert repr(kind(None)) == f"{kind.__name__}(block=None)"
    assert repr(kind(77)) == f"{kind.__name__}(block=77)"
    assert kind(77) == kind()
