"""Connections as the network sees them: separate for heartbeats, and kept while a client idles."""

import threading

import pytest
import torch

from fedcore import AddressError, Client, FedAvg, Grpc, Limits, Server, ServerConfig, Transport, start_client
from fedcore.messages import Fetch, Pull, Register


class Quick(Client):
    def get_parameters(self):
        return {"w": torch.zeros(2)}

    def fit(self, parameters, config):
        return parameters, 1


class Watched(Transport):
    """Notes which peer address each kind of request came from."""

    def __init__(self):
        self.inner, self.peers = Grpc(), {}

    def listen(self, address, handler, limits=Limits()):
        def watch(request):
            self.peers.setdefault(type(request.message).__name__, set()).add(request.peer.address)
            return handler(request)

        return self.inner.listen(address, watch, limits)

    def connect(self, address, limits=Limits()):
        return self.inner.connect(address, limits)


def join(server, name):
    thread = threading.Thread(target=start_client, args=(server.address, Quick(), name), daemon=True)
    thread.start()
    return thread


def beats(server, seconds):
    """Wait until the first client was heard again and again for this long."""
    waiting = threading.Event()
    return not waiting.wait(seconds) and server.status().clients[0].silent < 10


def test_heartbeats_have_a_connection_of_their_own():
    wire = Watched()
    config = ServerConfig(num_rounds=3, heartbeat_interval=0.05, heartbeat_timeout=30)
    with Server("127.0.0.1:0", config=config, strategy=FedAvg({"w": torch.zeros(2)}), transport=wire) as server:
        first = join(server, "a")
        while "Beat" not in wire.peers:
            threading.Event().wait(0.01)
        second = join(server, "b")
        server.wait(30)
    first.join(10), second.join(10)
    assert not wire.peers["Beat"] & (wire.peers["Pull"] | wire.peers["Submit"])
    assert wire.peers["Pull"] == wire.peers["Submit"] == wire.peers["Register"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_idle_client_stays_connected_for_twenty_minutes():
    wire = Watched()
    strategy = FedAvg({"w": torch.zeros(2)}, min_fit_clients=2, clients_per_round=2)
    with Server("127.0.0.1:0", config=ServerConfig(), strategy=strategy, transport=wire) as server:
        first = join(server, "idle")
        for _ in range(20):
            assert beats(server, 60.0)
        assert {kind: len(peers) for kind, peers in wire.peers.items()} == {"Register": 1, "Pull": 1, "Beat": 1}
        second = join(server, "late")
        history, _ = server.wait(60)
    first.join(10), second.join(10)
    assert [record.accepted for record in history.rounds] == [["idle", "late"]] * 3


def test_a_second_server_on_the_same_port_is_refused():
    strategy = FedAvg({"w": torch.zeros(2)})
    with Server("127.0.0.1:0", strategy=strategy) as server:
        other = Server(server.address, strategy=strategy)
        with pytest.raises(AddressError, match="taken"):
            other.start()


def test_a_download_that_nobody_reads_to_its_end_leaves_with_its_connection():
    before = set(threading.enumerate())
    strategy = FedAvg({"w": torch.zeros(1 << 18)}, clients_per_round=1)  # two chunks of the least size and more
    with Server("127.0.0.1:0", config=ServerConfig(stop_grace=0), strategy=strategy) as server:
        with Grpc().connect(server.address) as connection:
            session = connection.request(Register("a", accepts=("safetensors",))).message.session
            assigned = connection.request(Pull(session, 10.0)).message
            reply = connection.request(Fetch(session, assigned.task.id, assigned.manifest.total_bytes))
            [watch] = [each for each in set(threading.enumerate()) - before if each.name == "fedcore-watch"]
        watch.join(10)
        assert not watch.is_alive()
        del reply
