"""A run that was interrupted goes on where it was: the same round, the same updates, the same bits."""

import threading
from contextlib import contextmanager

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Memory, Server, ServerConfig, digest, events, start_client
from fedcore.errors import ConfigError, StateError
from fedcore.transports.grpc import TransferPolicy

INITIAL = {"w": torch.zeros(2000), "n": torch.tensor(0)}
TRANSPORTS = {"memory": Memory, "grpc": Grpc, "stream": lambda: Grpc(transfer=TransferPolicy(mode="stream"))}


class Moves(Client):
    """Its update depends on the round and on its name; it counts how often it trains."""

    def __init__(self, name, gate=None):
        self.name, self.gate, self.trained = name, gate, []

    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        if self.gate:
            self.gate(self.name, config["round"])
        self.trained.append(config["round"])
        draw = torch.Generator().manual_seed(1000 * config["round"] + int(self.name))
        return {"w": parameters["w"] + torch.randn(2000, generator=draw), "n": parameters["n"] + 1}, 5 + int(self.name)


class Federation:
    """Clients that outlive their servers."""

    def __init__(self, transport, count=3, gate=None):
        self.wire = transport
        self.clients = [Moves(str(number), gate) for number in range(count)]
        self.threads, self.failures, self.address = [], [], None

    def serve(self, folder, rounds=4, observers=(), **config):
        strategy = FedAvg(INITIAL, min_fit_clients=3, clients_per_round=3)
        made = ServerConfig(
            num_rounds=rounds, state_dir=folder and str(folder), heartbeat_interval=0.05, heartbeat_timeout=20.0, **config
        )
        where = self.address or self.wire.anywhere
        server = Server(where, config=made, strategy=strategy, transport=self.wire, observers=observers).start()
        self.address = server.address
        return server

    def join(self):
        def work(client):
            try:
                start_client(self.address, client, f"client-{client.name}", transport=self.wire, patience=30)
            except Exception as error:
                self.failures.append(error)

        self.threads = [threading.Thread(target=work, args=(client,)) for client in self.clients]
        for thread in self.threads:
            thread.start()

    def leave(self):
        for thread in self.threads:
            thread.join(30)
        assert not self.failures


@contextmanager
def federation(transport, **settings):
    made = Federation(transport, **settings)
    yield made
    made.leave()


@pytest.fixture(scope="module")
def control():
    with federation(Memory()) as whole:
        server = whole.serve(None)
        whole.join()
        with server:
            return digest(server.wait(30)[1])


class Stops:
    """Suspends a server at a certain event, on a thread of its own."""

    def __init__(self, wanted):
        self.wanted, self.server, self.reached = wanted, None, threading.Event()

    def __call__(self, event):
        if not self.reached.is_set() and self.wanted(event):
            self.reached.set()


MOMENTS = {
    "round 2 is open": lambda event: isinstance(event, events.RoundOpened) and event.round == 2,
    "one update": lambda event: isinstance(event, events.UpdateAccepted) and (event.round, event.accepted) == (2, 1),
    "two updates": lambda event: isinstance(event, events.UpdateAccepted) and (event.round, event.accepted) == (2, 2),
    "closed": lambda event: isinstance(event, events.RoundClosed) and event.round == 2,
    "committed": lambda event: isinstance(event, events.RoundCommitted) and event.round == 2,
}


@pytest.mark.parametrize("durability", ["update", "round"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_another_server_goes_on_and_ends_with_the_same_bits(transport, moment, durability, tmp_path, control):
    stops = Stops(MOMENTS[moment])
    with federation(TRANSPORTS[transport]()) as whole:
        first = whole.serve(tmp_path / "state", observers=[stops], durability=durability)
        whole.join()
        assert stops.reached.wait(20)
        first.suspend()
        second = whole.serve(tmp_path / "state", durability=durability)
        with second:
            history, final = second.wait(30)
    assert digest(final) == control
    assert [record.number for record in history.rounds] == [1, 2, 3, 4]
    assert all(record.accepted == ["client-0", "client-1", "client-2"] for record in history.rounds)
    for client in whole.clients:
        assert client.trained == [1, 2, 3, 4]  # nothing is trained twice


def test_the_history_is_whole_again(tmp_path):
    seen = []
    with federation(Memory()) as whole:
        first = whole.serve(tmp_path / "state", rounds=2)
        whole.join()
        with first:
            before, model = first.wait(30)
    again = Federation(Memory())
    with again.serve(tmp_path / "state", rounds=2, observers=[seen.append], stop_grace=0) as second:
        after, same = second.wait(30)
    assert after.rounds == before.rounds
    assert digest(same) == digest(model)
    started = next(event for event in seen if isinstance(event, events.RunStarted))
    assert started.run_id == first.hub.coordinator.run_id
    assert [event.round for event in started.past if isinstance(event, events.RoundCommitted)] == [1, 2]


def test_clients_hear_of_the_end_from_a_server_that_finds_the_run_complete(tmp_path):
    whole = Federation(Memory())
    over = Stops(lambda event: isinstance(event, events.RoundCommitted) and event.round == 2)
    first = whole.serve(tmp_path / "state", rounds=2, observers=[over])
    whole.join()
    assert over.reached.wait(20)
    first.hub.suspend()  # as sudden as it can be: nobody is told
    first.stop()
    with whole.serve(tmp_path / "state", rounds=2) as second:
        history, _ = second.wait(30)
    assert len(history.rounds) == 2
    whole.leave()


def test_more_rounds_may_be_asked_for(tmp_path):
    for rounds in (1, 3):
        with federation(Memory()) as whole:
            server = whole.serve(tmp_path / "state", rounds=rounds)
            whole.join()
            with server:
                history, _ = server.wait(30)
        assert len(history.rounds) == rounds


def test_f22_two_servers_cannot_share_a_state_directory(tmp_path):
    one = Federation(Memory())
    with one.serve(tmp_path / "state", stop_grace=0), pytest.raises(StateError, match="in use by another process"):
        Federation(Memory()).serve(tmp_path / "state")


def test_another_seed_and_another_model_are_refused(tmp_path):
    folder = tmp_path / "state"
    Federation(Memory()).serve(folder, stop_grace=0).suspend()
    with pytest.raises(ConfigError, match=r"began with seed 0; ServerConfig\.seed is 1"):
        Federation(Memory()).serve(folder, seed=1)
    strategy = FedAvg({"v": torch.zeros(3)})
    with pytest.raises(StateError, match="looks different"):
        Server("", config=ServerConfig(state_dir=str(folder)), strategy=strategy, transport=Memory()).start()


def test_without_a_state_directory_nothing_can_be_suspended():
    server = Federation(Memory()).serve(None, stop_grace=0)
    with server, pytest.raises(ConfigError, match="state_dir"):
        server.suspend()
