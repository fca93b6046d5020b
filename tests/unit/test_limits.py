"""Limits that cannot work are refused by name, before anything runs."""

import dataclasses
import math

import pytest

from fedcore import Limits
from fedcore.errors import ConfigError

COUNTS = [
    "max_examples", "max_model_bytes", "max_tensors", "streams_per_client", "registrations_per_minute", "beats_per_second",
    "refusals_per_minute",
]  # fmt: skip
COUNTS_FROM_ZERO = ["least_rate"]
TIMES = ["stall_timeout"]
LEFT_TO_THE_SERVER = {"upload_memory": 1, "resume_memory": 0}  # unless it is a count of at least so much


def test_every_field_is_looked_at_here():
    fields = {field.name for field in dataclasses.fields(Limits)}
    assert fields == {*COUNTS, *COUNTS_FROM_ZERO, *TIMES, *LEFT_TO_THE_SERVER}


def refused(name, value):
    with pytest.raises(ConfigError, match=rf"Limits\.{name}\b") as caught:
        Limits(**{name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("name", COUNTS + COUNTS_FROM_ZERO)
@pytest.mark.parametrize("value", [-1, 1.0, 2.5, True, "3", None, math.nan])
def test_counts_are_integers(name, value):
    refused(name, value)


@pytest.mark.parametrize("name", COUNTS)
def test_some_counts_are_at_least_one(name):
    refused(name, 0)
    assert getattr(Limits(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", COUNTS_FROM_ZERO)
def test_others_may_be_zero(name):
    assert getattr(Limits(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [0, -0.5, math.nan, math.inf, True, "3", None])
def test_times_are_above_zero(name, value):
    refused(name, value)


@pytest.mark.parametrize("name", LEFT_TO_THE_SERVER)
@pytest.mark.parametrize("value", [-1, 1.5, True, "3"])
def test_some_are_counts_or_left_to_the_server(name, value):
    refused(name, value)
    refused(name, LEFT_TO_THE_SERVER[name] - 1)
    assert getattr(Limits(**{name: LEFT_TO_THE_SERVER[name]}), name) == LEFT_TO_THE_SERVER[name]
    assert getattr(Limits(), name) is None


def test_the_defaults_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().max_examples = 5
