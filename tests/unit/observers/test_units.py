"""Numbers as people read them."""

import doctest
import math

import pytest

from fedcore.observers import units


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(units).failed == 0


SIZES = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_499: "999.5 kB", 999_960: "1.0 MB", 5e9: "5.0 GB", 7e15: "7000.0 TB"}
SPANS = {9.994: "9.99 s", 9.996: "10.0 s", 59.49: "59.5 s", 59.6: "1 min 00 s", 3599: "59 min 59 s", 3600: "1 h 00 min"}
METRICS = {0: "0.000", 0.887: "0.887", -1.5: "-1.500", 1e-5: "1e-05", 123456.0: "1.23e+05", math.inf: "inf"}


@pytest.mark.parametrize(("number", "text"), SIZES.items())
def test_size(number, text):
    assert units.size(number) == text


@pytest.mark.parametrize(("seconds", "text"), SPANS.items())
def test_span(seconds, text):
    assert units.span(seconds) == text


@pytest.mark.parametrize(("value", "text"), METRICS.items())
def test_metric(value, text):
    assert units.metric(value) == text


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([2.0], "▁"), ([2.0, 2.0], "▁▁"), ([0, math.inf, 7], "▁█"), ([9] + [0] * 20, "▁" * 20)]
)
def test_sparkline(values, text):
    assert units.sparkline(values) == text


def test_texts_of_others_cannot_move_the_cursor_or_fill_the_screen():
    assert units.harmless("a\x1b[2J\r\nb\u202ec") == "a [2J  b c"
    assert len(units.harmless("x" * 500)) == 160


def test_names_sort_as_people_count():
    names = ["client-10", "client-2", "alice", "client-1"]
    assert sorted(names, key=units.natural) == ["alice", "client-1", "client-2", "client-10"]


def test_a_sparkline_of_numbers_at_the_end_of_floats():
    assert units.sparkline([-1.7e308, 0.0, 1.7e308]) == "▁▅█"
    assert len(units.sparkline([0.0, 5e-324])) == 2
