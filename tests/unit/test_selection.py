"""Who is invited: laws of each selection, and that it remembers."""

import random
from collections import Counter

import pytest
import torch

from fedcore import Client, FedAvg, ServerConfig
from fedcore.aggregator import Update
from fedcore.errors import ConfigError
from fedcore.selection import All, BySize, Oort, PowerOfChoice, RoundRobin, Uniform, weighted
from fedcore.testing import run_federation

NAMES = ["a", "b", "c", "d", "e"]
EVERY = [All, Uniform, RoundRobin, BySize, lambda: PowerOfChoice(3), Oort]


def seen(selection, number, **clients):
    """Tell of a round: for each client its examples, loss and seconds."""
    selection.observe(number, [
        Update({}, size, name, number, {} if loss is None else {"loss": loss}, seconds=took)
        for name, (size, loss, took) in clients.items()
    ])  # fmt: skip
    return selection


def order(selection, number=2, available=NAMES, wanted=2, seed=0):
    return list(selection.order(number, available, wanted, random.Random(seed)))


@pytest.mark.parametrize("make", EVERY)
def test_everybody_is_in_the_order_once_and_the_same_seed_gives_the_same(make):
    facts = {"a": (10, 1.0, 2.0), "c": (30, None, 0.0), "e": (5, 0.5, 9.0)}
    for known in ({}, facts):
        one, other = seen(make(), 1, **known), make()
        other.load_state_dict(one.state_dict())
        for seed in range(20):
            found = order(one, seed=seed)
            assert sorted(found) == NAMES
            assert order(other, seed=seed) == found


def test_turns():
    selection = seen(seen(RoundRobin(), 1, a=(1, 0, 0), b=(1, 0, 0)), 2, c=(1, 0, 0), a=(1, 0, 0))
    assert order(selection) == ["d", "e", "b", "a", "c"]


def test_large_ones_come_first_in_proportion():
    selection = seen(BySize(), 1, a=(10, 0, 0), b=(20, 0, 0), c=(30, 0, 0), d=(40, 0, 0))
    first = Counter(order(selection, available=["a", "b", "c", "d"], seed=seed)[0] for seed in range(4000))
    for name, part in zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True):
        assert abs(first[name] / 4000 - part) < 0.03
    assert selection.sizes(["a", "e"]) == [10.0, 10.0]
    assert selection.sizes(["b", "c", "d", "e"]) == [20.0, 30.0, 40.0, 30.0]


def test_a_draw_in_proportion():
    pairs = Counter(tuple(weighted(["x", "y"], [3.0, 1.0], random.Random(seed))) for seed in range(4000))
    assert abs(pairs["x", "y"] / 4000 - 0.75) < 0.03


def test_of_the_candidates_those_with_the_highest_loss():
    facts = {name: (1, loss, 0) for name, loss in zip(NAMES, (0.1, 0.9, 0.5, 0.7, 0.3), strict=True)}
    selection = seen(PowerOfChoice(5), 1, **facts)
    assert order(selection) == ["b", "d", "c", "e", "a"]
    del selection.seen["a"]
    assert order(selection)[0] == "a"  # it was never heard
    few = seen(PowerOfChoice(2), 1, **facts)
    first = {order(few, wanted=1, seed=seed).pop(0) for seed in range(50)}
    assert first == {"b", "d", "c", "e"}  # of two, never the lowest


def test_oort_goes_by_loss_speed_and_novelty():
    facts = {"a": (10, 1.0, 1.0), "b": (10, 3.0, 1.0), "c": (10, 2.0, 1.0), "d": (10, 3.1, 50.0)}
    selection = seen(Oort(explore=0.5, fast=0.5), 9, **facts)
    assert order(selection, number=10, available=list("abcd")) == ["b", "c", "a", "d"]
    assert order(selection, number=10)[0] == "e"  # half of two places is for the unknown one
    assert order(seen(Oort(explore=0.0, fast=0.5), 9, **facts), number=10)[-1] == "e"
    assert order(Oort(), wanted=3) == order(Oort(), wanted=3)
    rested = seen(seen(Oort(explore=0, penalty=0), 1, a=(10, 1.0, 1.0)), 99, b=(10, 1.1, 1.0))
    assert order(rested, number=100, available=["a", "b"])[0] == "a"  # not heard for so long


BAD = [lambda: PowerOfChoice(0), lambda: Oort(explore=2), lambda: Oort(penalty=-1), lambda: Oort(fast=-1)]


@pytest.mark.parametrize("make", BAD)
def test_settings_that_make_no_sense(make):
    with pytest.raises(ConfigError):
        make()


def test_in_a_federation_it_is_told_what_came_of_a_round(tmp_path):
    model = {"w": torch.zeros(2)}

    class Says(Client):
        def __init__(self, number):
            self.number = number

        def get_parameters(self):
            return model

        def fit(self, parameters, config):
            return parameters, 10 * self.number, {"loss": 1.0 / self.number}

    def strategy():
        return FedAvg(model, min_fit_clients=2, clients_per_round=2, selection=RoundRobin())

    config = ServerConfig(num_rounds=3, state_dir=str(tmp_path / "s"), start_wait=0.0)
    told = strategy()
    run_federation([Says(n + 1) for n in range(2)], strategy=told, config=config)
    assert {name: (s.num_examples, s.loss, s.round) for name, s in told.selection.seen.items()} == {
        "client-0": (10, 1.0, 3), "client-1": (20, 0.5, 3),
    }  # fmt: skip
    assert all(0 < s.seconds < 60 for s in told.selection.seen.values())
    again = strategy()
    run_federation([Says(n + 1) for n in range(2)], strategy=again, config=ServerConfig(
        num_rounds=4, state_dir=str(tmp_path / "s"), start_wait=0.0))  # fmt: skip
    assert again.selection.seen["client-0"].round == 4
