"""A bad update is refused with an error that names the field; the round and the other clients do not notice."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Memory, Server, ServerConfig, errors, start_client
from fedcore.averaging import FedAvgAggregator
from fedcore.testing import run_federation
from fedcore.transports.grpc import TransferPolicy

INITIAL = {"w": torch.zeros(2, 3), "b": torch.zeros(()), "n": torch.tensor(0)}


class Good(Client):
    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        return {name: tensor + 1 for name, tensor in parameters.items()}, 10


class Bad(Good):
    def __init__(self, spoil):
        self.spoil = spoil

    def fit(self, parameters, config):
        return self.spoil({name: tensor + 1 for name, tensor in parameters.items()})


def without(parameters, name):
    return {key: value for key, value in parameters.items() if key != name}


FAULTS = {
    "missing": (lambda p: (without(p, "b"), 1), errors.SchemaMismatch, "'b' is missing"),
    "extra": (lambda p: ({**p, "x": torch.zeros(1)}, 1), errors.SchemaMismatch, "'x'"),
    "renamed": (lambda p: ({**without(p, "w"), "W": p["w"]}, 1), errors.SchemaMismatch, "'w' is missing"),
    "shape": (lambda p: ({**p, "w": torch.zeros(3, 2)}, 1), errors.SchemaMismatch, "'w' has shape"),
    "broadcastable": (lambda p: ({**p, "w": torch.zeros(1)}, 1), errors.SchemaMismatch, "'w' has shape"),
    "dtype": (lambda p: ({**p, "w": p["w"].double()}, 1), errors.SchemaMismatch, "'w' has dtype float64"),
    "sparse": (lambda p: ({**p, "w": p["w"].to_sparse()}, 1), errors.SchemaMismatch, "'w' is a torch.sparse_coo"),
    "no tensor": (lambda p: ({**p, "w": [1.0]}, 1), errors.SchemaMismatch, "'w' is a list"),
    "nan": (lambda p: ({**p, "w": p["w"] * float("nan")}, 1), errors.NonFinite, "'w'"),
    "inf": (lambda p: ({**p, "b": torch.tensor(float("inf"))}, 1), errors.NonFinite, "'b'"),
    "huge": (lambda p: ({**p, "w": p["w"] + 3e38}, 1), errors.OutOfRange, "'w'"),
    "zero examples": (lambda p: (p, 0), errors.InvalidWeight, "num_examples"),
    "negative examples": (lambda p: (p, -5), errors.InvalidWeight, "num_examples"),
    "fractional examples": (lambda p: (p, 1.5), errors.InvalidWeight, "num_examples"),
    "too many examples": (lambda p: (p, 1 << 40), errors.InvalidWeight, "num_examples"),
    "text metric": (lambda p: (p, 1, {"note": "fine"}), errors.BadMetric, "'note'"),
    "one item": (lambda p: (p,), errors.SchemaMismatch, "fit must return"),
    "nothing": (lambda p: None, errors.SchemaMismatch, "fit must return"),
}
TRANSPORTS = {"memory": Memory, "grpc": Grpc, "stream": lambda: Grpc(transfer=TransferPolicy(mode="stream"))}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_is_named_and_nobody_else_is_affected(fault, transport):
    spoil, kind, text = FAULTS[fault]
    wire = TRANSPORTS[transport]()
    raised = []

    def work(client, name):
        try:
            start_client(server.address, client, name, transport=wire, patience=5)
        except errors.FedcoreError as error:
            raised.append((name, error))

    # three are invited, two are enough
    strategy = FedAvg(INITIAL, min_fit_clients=2, clients_per_round=3)
    with Server(wire.anywhere, config=ServerConfig(num_rounds=1), strategy=strategy, transport=wire) as server:
        threads = [
            threading.Thread(target=work, args=pair)
            for pair in ((Good(), "good-1"), (Good(), "good-2"), (Bad(spoil), "bad"))
        ]
        for thread in threads:
            thread.start()
        history, final = server.wait(30)
    for thread in threads:
        thread.join(10)
    assert [name for name, _ in raised] == ["bad"]
    assert isinstance(raised[0][1], kind), raised[0][1]
    assert text in str(raised[0][1])
    assert [record.accepted for record in history.rounds] == [["good-1", "good-2"]]
    assert list(history.rounds[0].missing) == ["bad"]
    assert final["w"].tolist() == [[1.0] * 3] * 2


def test_a_client_whose_code_fails_tells_why_and_raises_its_own_error():
    class Breaks(Good):
        def fit(self, parameters, config):
            raise RuntimeError("out of memory")

    wire, raised = Memory(), []

    def work():
        try:
            start_client(server.address, Breaks(), "breaks", transport=wire)
        except RuntimeError as error:
            raised.append(str(error))

    with Server("", config=ServerConfig(num_rounds=1), strategy=FedAvg(INITIAL, min_fit_clients=2), transport=wire) as server:
        threads = [threading.Thread(target=work)]
        threads += [
            threading.Thread(target=start_client, args=(server.address, Good(), f"good-{i}"), kwargs={"transport": wire})
            for i in range(2)
        ]
        threads[0].start()
        threads[1].start()
        threads[0].join(10)
        threads[2].start()
        history, _ = server.wait(30)
        for thread in threads:
            thread.join(10)
    assert raised == ["out of memory"]
    assert history.rounds[0].missing == {"breaks": "RuntimeError"}  # what it says stays at home: it may tell of the data
    assert history.rounds[0].accepted == ["good-0", "good-1"]


def test_a_strategy_that_makes_no_model_fails_the_round_and_three_end_the_run():
    class Breaks(FedAvg):
        def aggregate_fit(self, server_round, results):
            return None if server_round == 1 else {"w": torch.zeros(1)}

    with pytest.raises(errors.RunFailed, match="3 rounds in a row failed"):
        run_federation([Good(), Good()], strategy=Breaks(INITIAL))


def test_a_failed_round_keeps_its_number_and_the_run_goes_on():
    class FailsOnce(FedAvg):
        def aggregate_fit(self, server_round, results):
            if server_round == 2:
                raise ValueError("not today")
            return FedAvgAggregator().aggregate(results)

    history, final = run_federation([Good(), Good()], strategy=FailsOnce(INITIAL), config=ServerConfig(num_rounds=3))
    assert [(r.number, r.outcome) for r in history.rounds] == [
        (1, "committed"), (2, "failed"), (3, "committed"), (4, "committed"),
    ]  # fmt: skip
    assert history[1] == (2, {})
    assert "not today" in history.rounds[1].reason
    assert final["w"].tolist() == [[3.0] * 3] * 2


def test_an_aggregator_that_fails_on_an_acknowledged_update_fails_the_round():
    class Drops(FedAvgAggregator):
        def fold(self, update):
            if update.round == 1 and update.client_id == "client-1":
                raise ValueError("lost it")
            super().fold(update)

    class Strategy(FedAvg):
        def start_round(self, server_round, parameters):
            return Drops(parameters)

    strategy = Strategy(INITIAL, min_fit_clients=2, clients_per_round=2)
    history, final = run_federation([Good(), Good()], strategy=strategy, config=ServerConfig(num_rounds=1))
    assert [(r.number, r.outcome) for r in history.rounds] == [(1, "failed"), (2, "committed")]
    assert "lost it" in history.rounds[0].reason
    assert final["w"].tolist() == [[1.0] * 3] * 2
