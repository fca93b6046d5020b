"""Laws of the weighted mean: no order and no grouping changes a bit, and it is as near to the truth as a float can be."""

import bisect
import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.aggregator import Update
from fedcore.averaging import FedAvgAggregator
from fedcore.parameters import DTYPES, digest

FAST = settings(max_examples=80, deadline=None, database=None)
SHAPE = 3

weights = st.integers(1, 1 << 30)
floats = st.floats(-(2.0**20), 2.0**20, width=32)
wide = st.one_of(floats, st.floats(-(2.0**30), 2.0**30, width=32), st.sampled_from([0.0, -0.0, 1e-30, 2.0**30]))


def vector(values):
    return torch.tensor(values, dtype=torch.float32)


@st.composite
def rounds(draw, values=wide, most=6):
    """A base model and some updates of it, whose values may be far beyond the base's."""
    row = draw(st.lists(floats, min_size=SHAPE - 1, max_size=SHAPE - 1))
    base = {"w": vector([draw(st.sampled_from([1.0, -3.0, 0.75 * 2.0**20])), *row]), "n": torch.tensor(0)}
    updates = []
    for index in range(draw(st.integers(1, most))):
        row = draw(st.lists(values, min_size=SHAPE, max_size=SHAPE))
        parameters = {"w": vector(row), "n": torch.tensor(draw(st.integers(-5, 5)))}
        updates.append(Update(parameters, draw(st.integers(1, 1 << 16)), f"c{index}"))
    return base, updates


def mean(base, updates):
    aggregator = FedAvgAggregator(base)
    for update in updates:
        aggregator.add(update)
    return aggregator.result()


@FAST
@given(rounds(), st.randoms(use_true_random=False))
def test_c5_no_order_changes_a_bit(made, random):
    base, updates = made
    shuffled = random.sample(updates, len(updates))
    assert digest(mean(base, updates)) == digest(mean(base, shuffled))


def grouped(base, updates, random):
    """Fold the updates in a random tree of aggregators that merge one another's partial sums."""
    aggregator = FedAvgAggregator(base)
    if len(updates) == 1 or random.random() < 0.3:
        for update in updates:
            aggregator.add(update)
        return aggregator
    cut = random.randrange(len(updates) + 1)
    parts = [grouped(base, part, random) for part in (updates[:cut], updates[cut:]) if part]
    for part in random.sample(parts, len(parts)):
        aggregator.merge(part.partial())
    return aggregator


@FAST
@given(rounds(), st.randoms(use_true_random=False))
def test_no_grouping_changes_a_bit(made, random):
    base, updates = made
    shuffled = random.sample(updates, len(updates))
    assert digest(grouped(base, shuffled, random).result()) == digest(mean(base, updates))


@FAST
@given(rounds(), st.integers(1, 3))
def test_the_same_update_twice_is_the_same_update_of_twice_the_weight(made, times):
    base, updates = made
    repeated = [update for update in updates for _ in range(times)]
    assert digest(mean(base, repeated)) == digest(mean(base, updates))


@FAST
@given(rounds())
def test_identical_updates_have_that_mean(made):
    _, updates = made
    same = [Update(updates[0].parameters, update.num_examples) for update in updates]
    got = FedAvgAggregator().aggregate(same)["w"].double()
    wanted = updates[0].parameters["w"].double()
    unit = 2.0 ** (math.frexp(float(wanted.abs().max()))[1] - 44)
    assert ((got - wanted).abs() <= unit).all()


@FAST
@given(rounds(values=floats))
def test_i5_within_one_ulp_of_the_exact_mean(made):
    base, updates = made
    total = sum(update.num_examples for update in updates)
    got = mean(base, updates)["w"]
    bound = float(base["w"].abs().max())
    unit = Fraction(2) ** (math.frexp(bound)[1] - 44)
    for index in range(SHAPE):
        exact = sum(Fraction(float(u.parameters["w"][index])) * u.num_examples for u in updates) / total
        ulp = Fraction(float(np.spacing(np.float32(abs(float(exact))))))
        assert abs(Fraction(float(got[index])) - exact) <= unit * len(updates) / (2 * total) + ulp * 3 / 5
        if abs(exact) >= Fraction(bound) / 2**20:
            assert abs(Fraction(float(got[index])) - exact) <= ulp


@FAST
@given(rounds(values=floats))
def test_c10_the_mean_is_between_the_updates(made):
    base, updates = made
    got = mean(base, updates)["w"].double()
    rows = torch.stack([update.parameters["w"] for update in updates]).double()
    slack = 2.0 ** (math.frexp(float(base["w"].abs().max()))[1] - 44)
    assert (got >= rows.min(0).values - slack).all()
    assert (got <= rows.max(0).values + slack).all()


@FAST
@given(rounds())
def test_c1_counters_take_the_largest(made):
    base, updates = made
    got = mean(base, updates)["n"]
    assert got.dtype == torch.int64
    assert got.item() == max(int(update.parameters["n"]) for update in updates)


@cache
def values_of(name):
    """Return every finite value of a dtype of at most 16 bits, sorted."""
    dtype = DTYPES[name]
    size = dtype.itemsize
    patterns = np.arange(1 << 8 * size, dtype=np.uint64).astype({1: np.uint8, 2: np.uint16}[size])
    numbers = torch.from_numpy(patterns.view(np.uint8)).view(dtype).double().numpy()
    return sorted({float(number) for number in numbers if math.isfinite(number)})


SMALL = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


@pytest.mark.parametrize("name", SMALL)
@FAST
@given(data=st.data())
def test_c4_small_dtypes_come_out_as_the_value_nearest_to_the_exact_mean(name, data):
    table = [value for value in values_of(name) if abs(value) <= 100]
    rows = data.draw(st.lists(st.tuples(st.sampled_from(table), weights), min_size=1, max_size=5))
    pairs = [({"w": torch.tensor([value], dtype=torch.float64).to(DTYPES[name])}, weight) for value, weight in rows]
    got = FedAvgAggregator().aggregate(pairs)["w"]
    assert got.dtype == DTYPES[name]
    exact = sum(Fraction(value) * weight for value, weight in rows) / sum(weight for _, weight in rows)
    at = bisect.bisect_left(table, exact)
    nearest = min(abs(Fraction(value) - exact) for value in table[max(0, at - 1) : at + 1])
    unit = Fraction(2) ** (math.frexp(max(abs(value) for value, _ in rows) or 1.0)[1] - 43)
    assert abs(Fraction(got.double().item()) - exact) <= nearest + 2 * unit


@FAST
@given(st.lists(st.tuples(st.floats(-1e9, 1e9), weights), min_size=1, max_size=5))
def test_float64_is_averaged_in_float64(rows):
    pairs = [({"w": torch.tensor([value], dtype=torch.float64)}, weight) for value, weight in rows]
    got = FedAvgAggregator().aggregate(pairs)["w"]
    assert got.dtype == torch.float64
    exact = sum(Fraction(value) * weight for value, weight in rows) / sum(weight for _, weight in rows)
    largest = max(2.0**-500, *(abs(value) for value, _ in rows))
    assert abs(Fraction(got.item()) - exact) <= Fraction(largest) / 2**51


@FAST
@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_c1_uint64_takes_the_largest(first, second):
    pairs = [({"n": torch.from_numpy(np.array(value, np.uint64))}, 1) for value in (first, second)]
    assert int(FedAvgAggregator().aggregate(pairs)["n"].numpy()) == max(first, second)
