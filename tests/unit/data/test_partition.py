"""Partitions: every example in one part, the same every time, as skewed as asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcore.data.partition import dirichlet
from fedcore.errors import ConfigError

LABELS = torch.arange(1000) % 10


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    parts=st.integers(1, 6),
    alpha=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
)
def test_law_it_is_a_partition(labels, parts, alpha, seed):
    made = dirichlet(labels, parts, alpha, seed=seed, min_size=0)
    assert len(made) == parts
    assert torch.cat(made).sort().values.tolist() == list(range(len(labels)))
    assert all(part.dtype is torch.int64 and part.tolist() == sorted(part.tolist()) for part in made)


def test_the_same_seed_gives_the_same_parts():
    first, same, other = (dirichlet(LABELS, 5, 0.5, seed=seed) for seed in (7, 7, 8))
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))


def test_lists_and_tensors_give_the_same_parts():
    assert all(map(torch.equal, dirichlet(LABELS.tolist(), 4, 1.0, seed=0), dirichlet(LABELS, 4, 1.0, seed=0)))


@pytest.mark.parametrize("seed", range(10))
def test_no_part_is_smaller_than_asked_for(seed):
    assert min(map(len, dirichlet(LABELS, 10, 0.3, seed=seed, min_size=40))) >= 40


def test_a_small_alpha_skews_the_labels_and_a_large_one_does_not():
    def classes_for_most(alpha):
        """Return the mean number of classes that hold nine tenths of a part."""
        counts = [
            LABELS[part].bincount(minlength=10).sort(descending=True).values for part in dirichlet(LABELS, 5, alpha, seed=1)
        ]
        return sum(int((c.cumsum(0) < 0.9 * c.sum()).sum()) + 1 for c in counts) / len(counts)

    assert classes_for_most(0.05) < 4 < 8 < classes_for_most(1000.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"parts": 0}, "parts must be at least 1, not 0"),
        ({"alpha": 0.0}, "alpha must be a number above 0, not 0.0"),
        ({"alpha": float("nan")}, "alpha must be a number above 0, not nan"),
        ({"alpha": float("inf")}, "alpha must be a number above 0, not inf"),
        ({"parts": 101}, "1000 examples are too few for 101 parts of at least 10"),
        ({"labels": LABELS.reshape(2, 500)}, r"labels must have one dimension, not the shape \(2, 500\)"),
    ],
)
def test_arguments_that_make_no_sense(arguments, says):
    with pytest.raises(ConfigError, match=says):
        dirichlet(**({"labels": LABELS, "parts": 5, "alpha": 0.5, "seed": 0} | arguments))


def test_what_no_draw_can_give_is_an_error_after_a_bounded_number_of_tries():
    with pytest.raises(ConfigError, match=r"none of 1000 draws .* 2 parts at least 10 of 20 examples: raise alpha \(0.001\)"):
        dirichlet([0] * 20, 2, 0.001, seed=0)


def test_a_negative_seed_is_named():
    with pytest.raises(ConfigError, match="seed"):
        dirichlet(LABELS, 2, 0.5, seed=-1)
