"""FedAvg as users write it."""

import pytest
import torch
from torch import nn

from fedcore import FedAvg
from fedcore.aggregator import Update
from fedcore.averaging import FedAvgAggregator
from fedcore.errors import ConfigError, SchemaMismatch


def update(value, examples, client=""):
    return Update({"w": torch.full((2,), float(value))}, examples, client)


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="min_clients"):
        FedAvg(min_clients=2)


def test_the_order_of_positional_arguments_is_the_documented_one():
    def evaluate(server_round, parameters):
        return 0.0, {}

    strategy = FedAvg({"w": torch.ones(1)}, evaluate, 2, 5)
    assert strategy.evaluate_fn is evaluate
    assert (strategy.min_fit_clients, strategy.clients_per_round) == (2, 5)
    assert strategy.initialize_parameters()["w"].item() == 1.0
    with pytest.raises(TypeError):
        FedAvg(None, None, 1, 2, "uniform")


def test_l8_contradictory_numbers_name_both():
    with pytest.raises(ConfigError, match="min_fit_clients is 3, above clients_per_round 2"):
        FedAvg(min_fit_clients=3, clients_per_round=2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"evaluate_fn": 0.5}, "evaluate_fn"), ({"weighting": "bytes"}, "weighting"), ({"max_share": 0}, "max_share"),
        ({"max_share": 2}, "max_share"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(options, text):
    with pytest.raises(ConfigError, match=text):
        FedAvg(**options)


def test_c18_initial_parameters_are_copied():
    model = nn.Linear(2, 1)
    strategy = FedAvg(model.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9)
    assert all(torch.equal(strategy.initialize_parameters()[name], before[name]) for name in before)


def test_initial_parameters_are_checked():
    with pytest.raises(SchemaMismatch, match="'w'"):
        FedAvg({"w": [1.0, 2.0]})


def test_l1_without_an_evaluate_fn_there_is_nothing_to_evaluate():
    strategy = FedAvg()
    assert not strategy.evaluates
    assert strategy.evaluate(1, {}) is None
    assert strategy.initialize_parameters() is None


def test_evaluate_asks_the_function():
    strategy = FedAvg(evaluate_fn=lambda server_round, parameters: (server_round / 2, parameters))
    assert strategy.evaluates
    assert strategy.evaluate(3, {"a": 1}) == (1.5, {"a": 1})


def test_a_subclass_that_evaluates_does_so_without_a_function():
    class Mine(FedAvg):
        def evaluate(self, server_round, parameters):
            return 1.0, {}

    assert Mine().evaluates


def test_a_round_streams_into_an_exact_mean_with_the_strategys_options():
    aggregator = FedAvg(weighting="uniform").start_round(1, {"w": torch.zeros(2)})
    assert isinstance(aggregator, FedAvgAggregator)
    assert not aggregator.retains
    for one in (update(0, 1), update(4, 1000)):
        aggregator.add(one)
    assert aggregator.result()["w"].tolist() == [2.0, 2.0]
    assert FedAvg(max_share=0.5).start_round(1, {"w": torch.zeros(2)}).retains


def test_aggregate_fit_is_the_same_mean():
    assert FedAvg().aggregate_fit(1, [update(0, 1, "a"), update(4, 3, "b")])["w"].tolist() == [3.0, 3.0]
    assert FedAvg().aggregate_fit(1, [tuple(update(0, 1)), tuple(update(4, 3))])["w"].tolist() == [3.0, 3.0]
    assert FedAvg().aggregate_fit(1, []) is None


def test_y6_a_share_can_be_capped():
    made = FedAvg(max_share=0.5).aggregate_fit(1, [update(0, 10**9, "liar"), update(4, 1000, "a"), update(4, 3000, "b")])
    assert made["w"].tolist() == pytest.approx([2.0, 2.0], rel=1e-3)
