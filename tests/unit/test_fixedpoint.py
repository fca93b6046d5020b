"""Exact sums of tensors: the same bits in any order, with or without the second word."""

import math
import re
from fractions import Fraction

import pytest
import torch

from fedcore.errors import OutOfRange
from fedcore.fixedpoint import FixedPointSum
from fedcore.views import raw_bytes

F32 = torch.float32


def tensor(*values, dtype=F32):
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def summed(terms, bound=1.0, dtype=F32, shape=None):
    total = FixedPointSum(shape or terms[0][0].shape, dtype, bound)
    for value, weight in terms:
        total.add("w", value, weight)
    return total


def bits(value):
    return bytes(raw_bytes(value))


def test_the_mean_is_what_fractions_say():
    terms = [(tensor(0.1, -0.7, 1.0), 3), (tensor(0.3, 0.2, -1.0), 5)]
    mean = summed(terms).mean(8)
    for index in range(3):
        exact = sum(Fraction(float(value[index])) * weight for value, weight in terms) / 8
        assert abs(Fraction(float(mean[index])) - exact) <= Fraction(1, 2**25)


def test_c5_any_order_gives_the_same_bits():
    terms = [(tensor(1.0, 1e-7, 3e4), 7), (tensor(-1.0, 1e7, 1e-9), 3), (tensor(0.3, -1e7, -3e4), 11)]
    made = {bits(summed([terms[i] for i in order]).mean(21)) for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0])}
    assert len(made) == 1



def test_the_second_word_gives_the_same_bits_as_one():
    small = [(tensor(0.1, -0.7, 1e-9), 3), (tensor(0.3, 0.2, -1e-9), 5)]
    huge = [(tensor(2.0**40, -(2.0**40), 2.0**40), 1), (tensor(-(2.0**40), 2.0**40, -(2.0**40)), 1)]
    narrow, wide = summed(small), summed([small[0], huge[0], small[1], huge[1]])
    assert "high" not in narrow.parts()
    assert "high" in wide.parts()
    assert bits(wide.mean(8)) == bits(narrow.mean(8))


def test_the_second_word_counts():
    total = summed([(tensor(2.0**40), 1)] * 4 + [(tensor(-3.0), 1)])
    assert "high" in total.parts()
    assert total.mean(1).double().item() == float(torch.tensor(2.0**42 - 3.0))
    assert total.mean(5).item() == pytest.approx((2.0**42 - 3) / 5, rel=1e-7)


def test_many_terms_that_fill_the_low_word_carry_in_time():
    value = tensor(1.0, -1.0)
    total = summed([(value, 1 << 17)] * 40)  # each term is 2 ** 60 units
    assert total.mean(40 << 17).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("split", range(4))
def test_merging_in_any_grouping_gives_the_same_bits(split):
    terms = [(tensor(0.1, 5.0), 3), (tensor(0.3, -7.0), 5), (tensor(2.0**35, 1.0), 2)]
    whole = summed(terms)
    left, right = summed(terms[:split], shape=(2,)), summed(terms[split:], shape=(2,))
    left.merge(right.parts())
    assert bits(left.mean(10)) == bits(whole.mean(10))


def test_a_sum_of_another_model_does_not_merge():
    total = summed([(tensor(1.0), 1)], bound=1.0)
    with pytest.raises(OutOfRange, match=r"does not fit"):
        total.merge(summed([(tensor(1.0), 1)], bound=4.0).parts())
    assert total.mean(1).item() == 1.0


@pytest.mark.parametrize("value", [2.0**60, -(2.0**60), 3.4e38, math.inf, math.nan])
def test_u17_a_term_out_of_range_names_its_tensor_and_changes_nothing(value):
    total = summed([(tensor(0.5, 0.25), 2)])
    before = {name: part.clone() for name, part in total.parts().items()}
    with pytest.raises(OutOfRange, match=r"'layer\.w' holds"):
        total.add("layer.w", tensor(0.0, value), 2)
    after = total.parts()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_message_says_what_would_fit():
    total = FixedPointSum(torch.Size([1]), F32, 1.0)  # the unit is 2 ** -43, the limit 2 ** 90 units
    total.add("w", tensor(2.0**37), 1 << 10)
    with pytest.raises(OutOfRange, match=re.escape(f"at most {2.0**37:.6g} can be summed")):
        total.add("w", tensor(2.0**38), 1 << 10)


def test_the_message_can_be_made_for_the_largest_models():
    with pytest.raises(OutOfRange, match="'w'"):
        FixedPointSum(torch.Size([1]), torch.float64, 1e300).check("w", math.inf, 1)


def test_c4_a_hundred_half_precision_terms_round_once():
    generator = torch.Generator().manual_seed(1)
    values = [torch.rand(200, generator=generator).half() for _ in range(100)]
    mean = summed([(value, 1) for value in values], dtype=torch.float16).mean(100)
    exact = torch.stack(values).double().mean(0)
    spacing = 2.0 ** (torch.frexp(exact)[1] - 11).double()
    assert ((mean.double() - exact).abs() <= spacing / 2 * (1 + 1e-9)).all()


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)])
def test_c4_the_mean_is_rounded_once(dtype, step):
    low, high = tensor(1.0, dtype=dtype), tensor(1 + step, dtype=dtype)
    mean = summed([(low, (1 << 29) - 1), (high, (1 << 29) + 1)], dtype=dtype).mean(1 << 30)  # 1 + step / 2 + a little
    assert mean.item() == 1 + step


@pytest.mark.parametrize("bound", [0.0, 1e-300, 5e-324, 1e-45, 1e30, 1e300, math.nan, math.inf])
def test_any_model_may_start(bound):
    magnitude = bound if math.isfinite(bound) and bound else 1.0
    value = tensor(magnitude, -magnitude / 2, 0.0, dtype=torch.float64)
    mean = summed([(value.clone(), 3)], bound=bound, dtype=torch.float64).mean(3)
    assert mean.tolist() == pytest.approx(value.tolist(), rel=1e-15, abs=1e-170)


def test_a_tensor_may_grow_far_beyond_its_model():
    assert summed([(tensor(1e9), 7)], bound=1e-3).mean(7).item() == 1e9


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3, 4)])
def test_c14_any_shape(shape):
    value = torch.full(shape, 0.5)
    mean = summed([(value, 1), (value * 3, 1)]).mean(2)
    assert mean.shape == shape
    assert torch.equal(mean, torch.ones(shape))


@pytest.mark.parametrize("view", [lambda t: t.t(), lambda t: t[:, ::2], lambda t: t.clone().requires_grad_()])
def test_c14_any_layout(view):
    value = view(torch.arange(12.0).view(3, 4))
    assert torch.equal(summed([(value, 2)], bound=11.0).mean(2), value.detach())


def test_blocks_do_not_show():
    value = torch.linspace(-1, 1, (1 << 18) + 3)
    mean = summed([(value, 5), (value, 3)]).mean(8)
    assert torch.allclose(mean, value, rtol=0, atol=2.0**-24)
    assert mean[-1].item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_c18_the_terms_are_not_changed(dtype):
    value = tensor(0.1, 2.0**15, dtype=dtype)
    before = value.clone()
    summed([(value, 3)], dtype=dtype)
    assert torch.equal(value, before)
