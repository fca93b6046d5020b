"""How examples are spread over clients: completely, the same way twice, and as skewed as asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore import ConfigError
from fedcore.data.partition import dirichlet

LABELS = torch.arange(10).repeat_interleave(100)


def lists(parts):
    return [part.tolist() for part in parts]


def skew(parts):
    """Return how far the parts' shares of labels are from even, on average: 0 is even, 1 is far."""
    shares = [LABELS[part].bincount(minlength=10) / len(part) for part in parts]
    return sum((share - 0.1).abs().sum().item() / 2 for share in shares) / len(shares)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), max_size=60), parts=st.integers(1, 6), alpha=st.floats(0.01, 100), seed=st.integers(0, 99)
)
def test_every_example_is_in_exactly_one_part(labels, parts, alpha, seed):
    made = lists(dirichlet(labels, parts, alpha, seed=seed, min_size=0))
    assert len(made) == parts
    assert all(part == sorted(part) for part in made)
    assert sorted(index for part in made for index in part) == list(range(len(labels)))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_no_part_is_smaller_than_asked(alpha):
    for seed in range(10):
        parts = dirichlet(LABELS, 5, alpha, seed=seed, min_size=40)
        assert min(map(len, parts)) >= 40
        assert all(part.dtype == torch.int64 for part in parts)


def test_the_same_arguments_give_the_same_parts():
    first = lists(dirichlet(LABELS, 5, 0.5, seed=1))
    assert lists(dirichlet(LABELS, 5, 0.5, seed=1)) == first
    assert lists(dirichlet(LABELS.tolist(), 5, 0.5, seed=1)) == first
    assert lists(dirichlet(LABELS, 5, 0.5, seed=2)) != first


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    dirichlet(LABELS, 5, 0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_smaller_alpha_is_the_more_the_parts_differ():
    skews = [sum(skew(dirichlet(LABELS, 5, alpha, seed=seed)) for seed in range(8)) / 8 for alpha in (100.0, 1.0, 0.1)]
    assert skews == sorted(skews)
    assert skews[0] < 0.1
    assert skews[2] > 0.5


def test_sizes_differ_too():
    sizes = [len(part) for part in dirichlet(LABELS, 5, 0.5, seed=0)]
    assert max(sizes) > 1.2 * min(sizes)


def test_one_part_is_everything():
    assert lists(dirichlet(LABELS, 1, 0.5, seed=0)) == [list(range(1000))]


def test_as_many_as_fit_is_possible():
    parts = dirichlet([0] * 4, 2, 1000.0, seed=0, min_size=2)
    assert [len(part) for part in parts] == [2, 2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": torch.zeros(4, 2)}, r"labels must have one dimension, not the shape \(4, 2\)"),
        ({"labels": 3}, "labels must have one dimension"),
        ({"parts": 0}, "parts must be at least 1, not 0"),
        ({"parts": -2}, "parts must be at least 1, not -2"),
        ({"alpha": 0.0}, "alpha must be a number above 0, not 0.0"),
        ({"alpha": -1.0}, "alpha must be a number above 0, not -1.0"),
        ({"alpha": float("nan")}, "alpha must be a number above 0, not nan"),
        ({"alpha": float("inf")}, "alpha must be a number above 0, not inf"),
        ({"parts": 101}, "1000 examples are too few for 101 parts of at least 10"),
        ({"min_size": 201}, "1000 examples are too few for 5 parts of at least 201"),
    ],
)
def test_what_makes_no_sense_is_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        dirichlet(**({"labels": LABELS, "parts": 5, "alpha": 0.5, "seed": 0} | changed))


def test_a_draw_that_never_works_says_what_to_change():
    labels = [0] * 40  # one class, which lies with one part alone
    with pytest.raises(ConfigError, match=r"at least 10 of 40 examples: raise alpha \(0.001\), or lower parts or min_size"):
        dirichlet(labels, 4, 0.001, seed=0)
