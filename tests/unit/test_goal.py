"""What a better model is, and when none is to be expected any more."""

import math

import pytest

from fedcore import Goal
from fedcore.errors import ConfigError

LOSSES = {1: 1.0, 2: 0.5, 3: 0.4, 4: 0.45, 5: 0.39}


@pytest.mark.parametrize(
    "change", [{"mode": "least"}, {"patience": 0}, {"patience": 1.5}, {"patience": True}, {"min_delta": -1}], ids=str
)
def test_goals_that_make_no_sense(change):
    with pytest.raises(ConfigError, match=f"Goal.{next(iter(change))}"):
        Goal(**change)


@pytest.mark.parametrize(("mode", "best"), [("min", 5), ("max", 1)])
def test_the_best_round(mode, best):
    assert Goal(mode=mode).best(LOSSES) == best


def test_the_first_of_equals_is_best_and_what_is_no_number_never_is():
    assert Goal().best({1: math.nan, 2: 0.5, 3: 0.5}) == 2
    assert Goal().best({1: math.nan}) is None
    assert Goal().best({}) is None


@pytest.mark.parametrize(
    ("patience", "min_delta", "exhausted"),
    [(None, 0.0, False), (1, 0.0, False), (2, 0.0, False), (1, 0.05, True), (2, 0.05, True), (3, 0.2, True), (4, 0.2, False)],
)
def test_patience(patience, min_delta, exhausted):
    assert Goal(patience=patience, min_delta=min_delta).exhausted(LOSSES) is exhausted


def test_values_that_are_no_numbers_use_patience_up():
    assert Goal(patience=2).exhausted({1: 0.5, 2: math.nan, 3: math.nan})
    assert Goal(patience=1, mode="max").exhausted({1: -math.inf, 2: math.nan})
