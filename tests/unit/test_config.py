"""Settings that cannot work are refused by name, before anything runs."""

import dataclasses
import math

import pytest

from fedcore import FedAvg, RoundPolicy, ServerConfig
from fedcore.errors import ConfigError

COUNTS = ["num_rounds", "max_failures", "shard_bytes", "map_above"]
COUNTS_FROM_ZERO = ["start_clients", "extra_clients", "seed", "keep_updates"]
TIMES = ["round_timeout", "heartbeat_interval", "heartbeat_timeout"]
TIMES_FROM_ZERO = ["start_wait", "evaluate_timeout", "stop_grace"]
OTHERS = [  # None, or checked where they are used
    "accept_codecs", "policy", "limits", "delta_codec", "map_folder", "state_dir", "audit_log",
    "durability", "initial_model", "share_model", "goal", "max_run_time",
]  # fmt: skip


def test_every_field_is_looked_at_here():
    fields = {field.name for field in dataclasses.fields(ServerConfig)}
    assert fields == {*COUNTS, *COUNTS_FROM_ZERO, *TIMES, *TIMES_FROM_ZERO, *OTHERS}


def refused(name, value):
    with pytest.raises(ConfigError, match=rf"ServerConfig\.{name}\b") as caught:
        ServerConfig(**{name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("name", COUNTS + COUNTS_FROM_ZERO)
@pytest.mark.parametrize("value", [-1, 1.0, 2.5, True, "3", None, math.nan])
def test_counts_are_integers(name, value):
    refused(name, value)


@pytest.mark.parametrize("name", COUNTS)
def test_some_counts_are_at_least_one(name):
    refused(name, 0)


@pytest.mark.parametrize("name", TIMES + TIMES_FROM_ZERO)
@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, True, "3", None])
def test_times_are_numbers(name, value):
    refused(name, value)


@pytest.mark.parametrize("name", TIMES)
def test_some_times_are_above_zero(name):
    refused(name, 0)


@pytest.mark.parametrize("name", COUNTS_FROM_ZERO + TIMES_FROM_ZERO)
def test_others_may_be_zero(name):
    assert getattr(ServerConfig(**{name: 0}), name) == 0


def test_what_is_kept_needs_a_place():
    with pytest.raises(ConfigError, match="keep_updates needs a state_dir"):
        ServerConfig(keep_updates=1)
    with pytest.raises(ConfigError, match="durability 'update'"):
        ServerConfig(keep_updates=1, state_dir="x", durability="round")
    assert ServerConfig(keep_updates=1, state_dir="x").keep_updates == 1


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "3"])
def test_a_limit_of_time_is_above_zero_or_none(value):
    refused("max_run_time", value)


def test_a_goal_is_a_goal():
    refused("goal", "loss")


def test_durability_is_one_of_two():
    refused("durability", "sometimes")


@pytest.mark.parametrize("size", [1, 4095, (1 << 30) + 1])
def test_shards_have_a_useful_size(size):
    refused("shard_bytes", size)


@pytest.mark.parametrize(("interval", "timeout"), [(5.0, 5.0), (10.0, 5.0)])
def test_a_lease_is_longer_than_a_heartbeat(interval, timeout):
    with pytest.raises(ConfigError, match=r"ServerConfig\.heartbeat_timeout.*heartbeat_interval"):
        ServerConfig(heartbeat_interval=interval, heartbeat_timeout=timeout)


def test_the_defaults_work_and_cannot_be_changed():
    config = ServerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_rounds = 5


def test_l8_the_policy_is_made_of_the_strategys_numbers_and_the_settings():
    config = ServerConfig(round_timeout=60.0, extra_clients=2, start_wait=3.0, start_clients=12, max_failures=7)
    strategy = FedAvg(min_fit_clients=4, clients_per_round=9)
    assert config.policy_for(strategy) == RoundPolicy(
        target=9, quorum=4, deadline=60.0, extra=2, start_wait=3.0, start_clients=12, max_failures=7
    )


def test_a_policy_that_is_given_replaces_them():
    given = RoundPolicy(target=1)
    assert ServerConfig(policy=given, extra_clients=5).policy_for(FedAvg()) is given


def test_numbers_that_contradict_one_another_are_refused():
    strategy = FedAvg()
    strategy.min_fit_clients = 5
    with pytest.raises(ConfigError, match="quorum is 5, above target 2"):
        ServerConfig().policy_for(strategy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", "fast"), ("policy", {"target": 2}), ("limits", None), ("limits", {"max_examples": 2}),
        ("accept_codecs", "lz4"), ("accept_codecs", 5),
    ],
)  # fmt: skip
def test_objects_of_the_wrong_kind_are_refused_at_once(name, value):
    refused(name, value)
