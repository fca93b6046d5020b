import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.codec import joined
from fedcore.codecs.bf16 import Bf16
from fedcore.parameters import Spec

CODEC = Bf16()


def trip(tensor):
    return CODEC.decode(joined(CODEC.encode({"w": tensor})), Spec.of({"w": tensor}))["w"]


@given(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=50))
@settings(deadline=None, derandomize=True, database=None, max_examples=60)
def test_comes_back_rounded_to_nearest(drawn):
    tensor = torch.tensor(drawn).repeat(3000 // len(drawn) + 1)
    assert torch.equal(trip(tensor), tensor.bfloat16().float())
    normal = tensor.abs() > 1e-37
    assert ((trip(tensor) - tensor).abs() <= tensor.abs() / 256)[normal].all()


def test_float64_beyond_its_range_goes_raw():
    tensor = torch.full((3000,), 1e300, dtype=torch.float64)
    assert torch.equal(trip(tensor), tensor)
    assert torch.equal(trip(tensor / 1e290), (tensor / 1e290).bfloat16().double())
