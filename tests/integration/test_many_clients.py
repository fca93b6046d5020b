"""Several clients of one process take part in turns."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Memory, Server, ServerConfig, digest, errors, start_clients
from fedcore.testing import Faulty, run_federation

INITIAL = {"w": torch.zeros(50)}


class Moves(Client):
    working, most, lock = 0, 0, threading.Lock()

    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        with self.lock:
            Moves.working += 1
            Moves.most = max(Moves.most, Moves.working)
        draw = torch.Generator().manual_seed(config["seed"])
        moved = {"w": parameters["w"] + torch.randn(50, generator=draw)}
        with self.lock:
            Moves.working -= 1
        return moved, 10


@pytest.fixture(autouse=True)
def nobody_yet():
    Moves.working = Moves.most = 0


def train(wire, at_once, kind=Moves):
    clients = {f"client-{number}": kind() for number in range(12)}
    strategy = FedAvg(INITIAL, min_fit_clients=12, clients_per_round=12)
    with Server(wire.anywhere, config=ServerConfig(num_rounds=4), strategy=strategy, transport=wire) as server:
        start_clients(server.address, clients, at_once=at_once, transport=wire)
        return server.wait(30)


@pytest.mark.parametrize("at_once", [1, 2, None])
@pytest.mark.parametrize(
    "wire", [Memory, lambda: Memory(by_reference=True), Grpc, lambda: Faulty(Memory(), drop_reply=0.1, seed=1)]
)
def test_the_same_bits_however_many_work_at_once(wire, at_once):
    history, final = train(wire(), at_once)
    assert all(len(record.accepted) == 12 for record in history.rounds)
    assert Moves.most <= (at_once or 64)
    strategy = FedAvg(INITIAL, min_fit_clients=12, clients_per_round=12)
    config = ServerConfig(num_rounds=4)
    assert digest(final) == digest(run_federation([Moves() for _ in range(12)], strategy=strategy, config=config)[1])


def test_the_first_error_is_raised_when_all_have_ended():
    class Breaks(Moves):
        def fit(self, parameters, config):
            raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        train(Memory(), 1, Breaks)


def test_what_cannot_be_is_said_at_once():
    with pytest.raises(errors.ConfigError, match="at_once must be positive"):
        start_clients("", {"a": Moves()}, at_once=0)
    with pytest.raises(errors.ConfigError, match="client must be an instance"):
        start_clients("nowhere", {"a": object()}, transport="memory")
