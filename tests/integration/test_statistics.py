"""What normalization layers measure is averaged, and nothing else: no optimizer's step, no sum of changes."""

import threading

import pytest
import torch
from torch import nn

from fedcore import (
    Client,
    Exchange,
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedOpt,
    FedProx,
    FedYogi,
    QFedAvg,
    Scaffold,
    ServerConfig,
    Training,
)
from fedcore.testing import run_federation

PATIENCE = 60.0
PLAIN = {"min_fit_clients": 2, "clients_per_round": 2}


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class Trains(Client):
    """Measures variances near 1e-4, where the model begins with 1."""

    def __init__(self, seed, ready=lambda times: None):
        self.x = 0.01 * torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
        self.model, self.ready, self.measured = network(), ready, []

    def get_parameters(self):
        return self.model.state_dict()

    def loss(self):
        return (self.model(self.x) - 1).square().mean()

    def fit(self, parameters, config):
        training = Training(self.model, parameters, config, self.memory)
        if training.wants_loss:
            training.anchor(self.loss(), len(self.x))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        for _ in training.batches(range(50)):
            optimizer.zero_grad()
            self.loss().backward()
            training.step(optimizer)
        self.measured.append(self.model.state_dict()["1.running_var"].clone())
        self.ready(len(self.measured))
        return training.result(len(self.x))


@pytest.mark.parametrize(
    "make",
    [
        FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedNova, FedProx,
        lambda start, **plain: FedDyn(start, num_clients=2, **plain),
        lambda start, **plain: Scaffold(start, num_clients=2, **plain),
        lambda start, **plain: QFedAvg(start, client_lr=0.01, **plain),
        lambda start, **plain: FedOpt(start, optimizer=lambda of: torch.optim.SGD(of, lr=1.0, momentum=0.9), **plain),
    ],
    ids=[
        "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fednova", "fedprox", "feddyn", "scaffold", "qfedavg",
        "fedopt",
    ],
)  # fmt: skip
def test_they_are_between_those_of_the_clients(make):
    clients = [Trains(1), Trains(2)]
    _, final = run_federation(clients, strategy=make(network().state_dict(), **PLAIN), config=ServerConfig(num_rounds=3))
    least, most = torch.stack([client.measured[-1] for client in clients]).aminmax(dim=0)
    assert (final["1.running_var"] >= least * 0.999).all()
    assert (final["1.running_var"] <= most * 1.001).all()
    assert final["1.num_batches_tracked"] >= 150


@pytest.mark.parametrize("make", [FedAsync, lambda *given, **more: FedBuff(*given, buffer_size=1, server_lr=1.0, **more)])
def test_differences_to_one_and_the_same_model_do_not_add_up_to_negative_variances(make):
    both, first, over, seen = threading.Barrier(2), threading.Event(), threading.Event(), []

    def soon(times):
        if times == 1:
            both.wait(PATIENCE)
        else:
            over.wait(PATIENCE)

    def late(times):
        soon(times)
        first.wait(PATIENCE)

    def evaluate(number, parameters):
        seen.append(parameters["1.running_var"].clone())
        (first if number == 1 else over).set()
        return 0.0, {}

    strategy = make(network().state_dict(), evaluate, concurrency=2)
    clients = [Trains(1, soon), Trains(2, late)]
    history, _ = run_federation(clients, strategy=strategy, config=ServerConfig(num_rounds=2, start_clients=2))
    assert [record.accepted for record in history.rounds] == [["client-0"], ["client-1"]]
    assert (torch.stack(seen) > 0).all()
    assert (torch.stack(seen) < 1).all()


def test_what_an_exchange_has_averaged_is_no_optimizers_either():
    class Counts(Client):
        def get_parameters(self):
            return start

        def fit(self, parameters, config):
            return {name: value + 1 for name, value in parameters.items()}, 1

    start = {"w": torch.zeros(2), "seen": torch.zeros(2)}
    strategy = FedAvgM(start, server_lr=0.5, exchange=Exchange(buffers={"seen": "average"}), **PLAIN)
    _, final = run_federation([Counts(), Counts()], strategy=strategy, config=ServerConfig(num_rounds=1))
    assert {name: value.tolist() for name, value in final.items()} == {"w": [0.5, 0.5], "seen": [1.0, 1.0]}
