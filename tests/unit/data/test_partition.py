"""Partitions: every example in one part, the same every time, as skewed as asked for."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcore.data.partition import by_id, dirichlet, feature_shift, iid, plot_partition, quantity, shards, train_test
from fedcore.errors import ConfigError, MissingDependency

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


# --- the others ---

SEEDED = {
    "iid": iid,
    "shards": shards,
    "quantity": lambda data, parts, *, seed, min_size=1: quantity(data, parts, 1.0, seed=seed, min_size=min_size),
    "dirichlet": lambda data, parts, *, seed, min_size=1: dirichlet(data, parts, 5.0, seed=seed, min_size=min_size),
    "feature_shift": lambda *args, **named: feature_shift(args[0], args[1], 0.0, 1.0, **named)[0],
}
each = pytest.mark.parametrize("split", SEEDED.values(), ids=SEEDED)


def is_partition(made, count):
    return torch.cat(made).sort().values.tolist() == list(range(count)) and all(
        part.dtype is torch.int64 and bool((part.diff() > 0).all()) for part in made
    )


@each
@given(data=st.data(), count=st.integers(12, 90), parts=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_law_all_are_partitions(split, data, count, parts, seed):
    labels = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    made = split(labels, parts, seed=seed, min_size=0)
    assert len(made) == parts
    assert is_partition(made, count)


@each
def test_all_follow_their_seed(split):
    first, same, other = (split(LABELS, 5, seed=seed) for seed in (7, 7, 8))
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))


@each
def test_all_keep_the_least_size_or_say_what_to_change(split):
    assert min(map(len, split(LABELS, 5, seed=3, min_size=60))) >= 60
    with pytest.raises(ConfigError, match="too few for 5 parts of at least 201: lower parts or min_size"):
        split(LABELS, 5, seed=3, min_size=201)


@each
def test_all_take_data_sets(split):
    plain = split(LABELS, 4, seed=1)
    pairs = [(torch.zeros(2), int(label)) for label in LABELS]
    for data in (SimpleNamespace(targets=LABELS), SimpleNamespace(labels=LABELS.tolist()), pairs, LABELS.numpy()):
        assert all(map(torch.equal, plain, split(data, 4, seed=1)))


def test_iid_parts_differ_by_one_at_most():
    sizes = sorted(map(len, iid(LABELS, 7, seed=0)))
    assert sizes[-1] - sizes[0] == 1


def test_shards_leave_each_part_few_classes():
    made = shards(LABELS, 10, 2, seed=0)
    assert {len(part) for part in made} == {100}
    assert max(len(LABELS[part].unique()) for part in made) == 2
    assert min(len(LABELS[part].unique()) for part in shards(LABELS, 5, 20, seed=0)) > 4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: shards(LABELS, 5, 0, seed=0), "per_part must be at least 1, not 0"),
        (lambda: shards(LABELS, 500, 3, seed=0), "1000 examples are too few for 1500 shards: lower parts or per_part"),
        (lambda: shards(LABELS[:7], 3, 2, seed=4, min_size=3), "too few for 3 parts of at least 3"),
        (lambda: [shards(LABELS[:11], 2, 4, seed=seed, min_size=5) for seed in range(20)], "4 examples, fewer than 5"),
        (lambda: quantity(LABELS, 5, -1.0, seed=0), "alpha must be a number above 0, not -1.0"),
        (lambda: quantity(LABELS, 90, 0.01, seed=0), r"none of 1000 draws .* raise alpha \(0.01\)"),
        (lambda: feature_shift(LABELS, 2, 1.0, 0.0, seed=0), "from a low to a high number, not from 1.0 to 0.0"),
        (lambda: iid(LABELS, 2, seed=-1), "seed must be at least 0, not -1"),
        (lambda: train_test(torch.arange(9), 1.0, seed=0), "fraction must be between 0 and 1, not 1.0"),
        (lambda: train_test(torch.arange(1), 0.5, seed=0), "raise the partition's min_size"),
        (lambda: by_id(["a", "b", "b"], min_size=2), r"1 ids have fewer than 2 examples \(a\): leave them out"),
    ],
)  # fmt: skip
def test_arguments_of_the_others_that_make_no_sense(call, says):
    with pytest.raises(ConfigError, match=says):
        call()


def test_quantity_skews_sizes_and_not_labels():
    def spread(alpha):
        sizes = [len(part) for part in quantity(LABELS, 5, alpha, seed=1, min_size=20)]
        return max(sizes) / min(sizes)

    assert spread(0.3) > 3 > 1.3 > spread(1000.0)
    largest = max(quantity(LABELS, 5, 0.3, seed=1), key=len)
    assert LABELS[largest].bincount(minlength=10).min() > 0.05 * len(largest)


def test_by_id_has_a_part_for_each_id_in_order():
    made = by_id(["b", "a", "b", "c", "a"])
    assert [part.tolist() for part in made] == [[1, 4], [0, 2], [3]]
    assert all(part.dtype is torch.int64 for part in made)
    assert [part.tolist() for part in by_id(torch.tensor([5, 2, 5]))] == [[1], [0, 2]]


def test_feature_shift_spreads_its_levels():
    parts, levels = feature_shift(LABELS, 5, -90.0, 90.0, seed=2)
    assert sorted(levels) == [-90.0, -45.0, 0.0, 45.0, 90.0]
    assert levels != sorted(levels)
    assert levels == feature_shift(LABELS, 5, -90.0, 90.0, seed=2)[1] != feature_shift(LABELS, 5, -90.0, 90.0, seed=3)[1]
    assert len(parts) == 5


@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_law_a_split_has_all_examples_once_and_two_sides(count, fraction, seed):
    indices = torch.arange(count) * 3
    train, test = train_test(indices, fraction, seed=seed)
    assert torch.equal(torch.cat([train, test]).sort().values, indices)
    assert len(train)
    assert len(test)
    assert abs(len(test) - fraction * count) <= 1
    assert bool((train.diff() > 0).all())
    assert bool((test.diff() > 0).all())
    assert torch.equal(test, train_test(indices, fraction, seed=seed)[1])


@pytest.mark.parametrize("classes", [2, 10, 15, 40])
def test_a_picture_shows_every_part_and_class(tmp_path, classes):
    pytest.importorskip("matplotlib")
    labels = np.arange(400) % classes
    path = plot_partition(dirichlet(labels, 8, 0.3, seed=0, min_size=1), labels, tmp_path / "parts.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedcore\[plot\]'"):
        plot_partition(iid(LABELS, 3, seed=0), LABELS, tmp_path / "parts.png")
