"""Laws that robust rules keep, whatever the numbers."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore import (
    Bulyan,
    CenteredClipping,
    FLTrust,
    GeoMedian,
    Krum,
    Median,
    MultiKrum,
    NormBounding,
    TrimmedMean,
    Update,
)

N, D, F = 8, 3, 1
SETTINGS = settings(max_examples=12, deadline=None)


def rooted(server_round, model):
    return {"w": model["w"] + 1}


RULES = {
    "median": lambda **a: Median(f=F, clients_per_round=N, **a),
    "trimmed": lambda **a: TrimmedMean(f=F, clients_per_round=N, **a),
    "krum": lambda **a: Krum(f=F, clients_per_round=N, **a),
    "multikrum": lambda **a: MultiKrum(f=F, clients_per_round=N, **a),
    "bulyan": lambda **a: Bulyan(f=F, clients_per_round=N, **a),
    "geomedian": lambda **a: GeoMedian(f=F, clients_per_round=N, **a),
    "bounding": lambda **a: NormBounding(f=F, clients_per_round=N, **a),
    "clipping": lambda **a: CenteredClipping(f=F, clients_per_round=N, tau=1e9, **a),
    "fltrust": lambda **a: FLTrust(f=F, clients_per_round=N, root_update=rooted, **a),
}
LINEAR = {name: rule for name, rule in RULES.items() if name != "fltrust"}
FREE = {name: rule for name, rule in LINEAR.items() if name != "bounding"}
PRES = [{}, {"pre": "nnm"}]
numbers = st.integers(-1000, 1000).map(lambda value: value / 64)
matrices = st.lists(st.lists(numbers, min_size=D, max_size=D), min_size=N, max_size=N).map(np.array)


def aggregated(strategy, matrix, names=None, dtype=torch.float64):
    base = {"w": torch.zeros(D, dtype=dtype)}
    aggregator = strategy.start_round(1, base)
    names = [f"client-{index}" for index in range(len(matrix))] if names is None else names
    updates = [Update({"w": torch.tensor(row).to(dtype)}, 1, name) for row, name in zip(matrix, names, strict=True)]
    return aggregator.aggregate(updates)["w"]


def rules(which):
    return pytest.mark.parametrize(
        "make",
        [pytest.param(lambda rule=rule, pre=pre: rule(**pre), id="+".join((name, *pre.values())))
         for (name, rule), pre in chain.from_iterable([((each, pre) for pre in PRES) for each in which.items()])],
    )  # fmt: skip


@rules(RULES)
@SETTINGS
@given(matrix=matrices, order=st.permutations(range(N)))
def test_order_of_arrival_changes_no_bit(make, matrix, order):
    names = [f"client-{index}" for index in order]
    assert torch.equal(aggregated(make(), matrix), aggregated(make(), matrix[order], names))


@rules(FREE)
@SETTINGS
@given(matrix=matrices, shift=st.lists(st.integers(-100, 100), min_size=D, max_size=D))
def test_what_is_added_to_all_is_added_to_the_result(make, matrix, shift):
    np.testing.assert_allclose(aggregated(make(), matrix + shift), aggregated(make(), matrix).numpy() + shift, atol=1e-6)


@rules(LINEAR)
@SETTINGS
@given(matrix=matrices, power=st.integers(-3, 3))
def test_what_all_are_multiplied_by_the_result_is(make, matrix, power):
    factor = 2.0**power
    np.testing.assert_allclose(aggregated(make(), matrix * factor), aggregated(make(), matrix).numpy() * factor, atol=1e-6)


@rules(LINEAR)
@SETTINGS
@given(row=st.lists(numbers, min_size=D, max_size=D))
def test_what_all_agree_on_is_the_result(make, row):
    np.testing.assert_allclose(aggregated(make(), np.array([row] * N)), row, rtol=1e-12, atol=1e-12)


wild = st.sampled_from([-1e5, -1.0, 0.0, 1.0, 1e5])


@pytest.mark.parametrize("name", ["median", "trimmed"])
@SETTINGS
@given(matrix=matrices, bad=st.lists(wild, min_size=D, max_size=D))
def test_an_attacker_cannot_leave_the_range_of_the_honest(name, matrix, bad):
    honest = matrix[:-F]
    found = aggregated(RULES[name](), np.vstack([honest, bad])).numpy()
    assert (honest.min(axis=0) <= found).all()
    assert (found <= honest.max(axis=0)).all()


@SETTINGS
@given(matrix=matrices)
def test_krum_chooses_an_update(matrix):
    assert aggregated(RULES["krum"](), matrix).tolist() in matrix.tolist()


@SETTINGS
@given(matrix=matrices)
def test_nothing_trimmed_is_the_mean(matrix):
    np.testing.assert_allclose(aggregated(TrimmedMean(), matrix), matrix.mean(axis=0), rtol=1e-12, atol=1e-12)


@rules(RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@settings(max_examples=5, deadline=None)
@given(matrix=matrices)
def test_half_precision_is_rounded_at_the_end_alone(make, dtype, matrix):
    rounded = torch.tensor(matrix).to(dtype).double().numpy()
    found, wanted = aggregated(make(), rounded, dtype=dtype), aggregated(make(), rounded)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8 if dtype == torch.bfloat16 else 2**-11, atol=1e-6)
