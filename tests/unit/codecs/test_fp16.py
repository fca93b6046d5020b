import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.codec import joined
from fedcore.codecs.fp16 import Fp16
from fedcore.parameters import Spec

CODEC = Fp16()


def trip(tensor):
    return CODEC.decode(joined(CODEC.encode({"w": tensor})), Spec.of({"w": tensor}))["w"]


@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=50))
@settings(deadline=None, derandomize=True, database=None, max_examples=60)
def test_comes_back_rounded_to_nearest(drawn):
    tensor = torch.tensor(drawn).repeat(3000 // len(drawn) + 1)
    assert torch.equal(trip(tensor), tensor.half().float())
    assert ((trip(tensor) - tensor).abs() <= (tensor.abs() / 2048).clamp(min=3e-8)).all()


@pytest.mark.parametrize("worst", [65520.0, 1e6, -1e30])
def test_a_tensor_beyond_its_range_goes_raw(worst):
    tensor = torch.linspace(-1, 1, 3000)
    tensor[7] = worst
    assert torch.equal(trip(tensor), tensor)


def test_the_largest_there_is():
    tensor = torch.full((3000,), 65504.0)
    assert torch.equal(trip(tensor), tensor)
    assert len(joined(CODEC.encode({"w": tensor}))) < tensor.nbytes * 0.51
