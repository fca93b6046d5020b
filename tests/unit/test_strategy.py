"""The contract of a strategy: which hook wins, and what the defaults do."""

import random

import pytest
import torch

from fedcore import FedAvg, Strategy
from fedcore.aggregator import Gather, Update
from fedcore.averaging import FedAvgAggregator
from fedcore.messages import Kind
from fedcore.parameters import Spec
from fedcore.strategy import aggregator_of, mean_metrics

MODEL = {"w": torch.zeros(2)}


class Plain(Strategy):
    def aggregate_fit(self, server_round, results):
        return {"w": torch.full((2,), float(server_round))}


class Streams(Plain):
    def start_round(self, server_round, parameters):
        return FedAvgAggregator(parameters)


class StreamsThenGathers(Streams):
    def aggregate_fit(self, server_round, results):
        return {"w": torch.full((2,), -1.0)}


class BothOverridden(StreamsThenGathers):
    def start_round(self, server_round, parameters):
        return FedAvgAggregator(parameters, weighting="uniform")

    def aggregate_fit(self, server_round, results):
        return None


class FedAvgWithFit(FedAvg):
    def aggregate_fit(self, server_round, results):
        return {"w": torch.ones(2)}


class Mixin:
    def start_round(self, server_round, parameters):
        return FedAvgAggregator(parameters)


class MixedIn(Mixin, StreamsThenGathers):
    pass


class MixedBehind(StreamsThenGathers, Mixin):
    pass


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Plain, Gather), (Streams, FedAvgAggregator), (StreamsThenGathers, Gather), (BothOverridden, FedAvgAggregator),
        (FedAvg, FedAvgAggregator), (FedAvgWithFit, Gather), (MixedIn, FedAvgAggregator), (MixedBehind, Gather),
        (type("Deeper", (FedAvgWithFit,), {}), Gather), (type("Empty", (FedAvg,), {}), FedAvgAggregator),
    ],
)  # fmt: skip
def test_of_two_ways_to_aggregate_the_one_overridden_lower_wins(kind, wanted):
    assert type(aggregator_of(kind(), 1, MODEL)) is wanted


def test_a_gathering_aggregator_calls_aggregate_fit_with_the_round():
    aggregator = aggregator_of(Plain(), 7, MODEL)
    aggregator.add(Update(MODEL, 1, "a"))
    assert aggregator.result()["w"].tolist() == [7.0, 7.0]


def test_a_strategy_must_aggregate():
    with pytest.raises(TypeError, match="aggregate_fit"):
        Strategy()


def test_selection_is_a_seeded_permutation():
    names = [f"c{n:02}" for n in range(30)]
    picks = [Plain().select(1, names, random.Random(seed)) for seed in (1, 1, 2)]
    assert picks[0] == picks[1] != picks[2]
    assert all(sorted(pick) == names for pick in picks)
    assert picks[0] != names


def test_selection_is_fair():
    names = ["a", "b", "c", "d"]
    rng = random.Random(0)
    firsts = [Plain().select(1, names, rng)[0] for _ in range(800)]
    assert all(150 < firsts.count(name) < 250 for name in names)


def test_the_defaults():
    strategy, spec = Plain(), Spec.of(MODEL)
    assert strategy.initialize_parameters() is None
    assert strategy.evaluate(1, MODEL) is None
    assert strategy.configure_fit(1, "a") == strategy.configure_evaluate(1, "a") == {}
    assert strategy.download(Kind.FIT, 1, "a", MODEL) is MODEL
    assert strategy.upload_spec(Kind.FIT, spec) is spec
    assert len(strategy.upload_spec(Kind.EVALUATE, spec)) == 0
    assert strategy.step(1, {}, MODEL) is MODEL
    assert strategy.state_dict() == {}


def test_l1_whether_there_is_an_evaluation_shows():
    class Evaluates(Plain):
        def evaluate(self, server_round, parameters):
            return 0.0, {}

    assert not Plain().evaluates
    assert Evaluates().evaluates


def test_metrics_are_averaged_by_examples_over_those_who_sent_them():
    results = [
        Update({}, 10, "a", metrics={"loss": 1.0, "acc": 0.5}), Update({}, 30, "b", metrics={"loss": 3.0}), Update({}, 5, "c"),
    ]  # fmt: skip
    assert mean_metrics(results) == {"acc": 0.5, "loss": 2.5}
    assert Plain().aggregate_evaluate(1, results) == {"acc": 0.5, "loss": 2.5}
    assert mean_metrics([]) == {}
