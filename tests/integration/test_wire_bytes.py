"""What codecs save on the way: lossy updates as differences, error feedback, delta downloads, and who counts the bytes."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Server, ServerConfig, start_client
from fedcore.errors import ConfigError
from fedcore.events import RoundCommitted
from fedcore.parameters import Spec, digest
from fedcore.testing import run_federation
from fedcore.transports.grpc import Grpc, TransferPolicy
from fedcore.transports.memory import Memory

INITIAL = {"w": torch.linspace(-1, 1, 30_000).view(100, 300), "b": torch.zeros(10), "n": torch.tensor(0)}
WIRES = {
    "memory": Memory,
    "unary": lambda: Grpc(transfer=TransferPolicy(mode="unary")),
    "stream": lambda: Grpc(transfer=TransferPolicy(mode="stream")),
}


class Trains(Client):
    """Moves every weight by a little that depends on the client and the round."""

    def __init__(self, number):
        self.number, self.started_from = number, []

    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        self.started_from.append(digest(parameters))
        draw = torch.Generator().manual_seed(100 * self.number + int(config["round"]))
        parameters["w"] += 0.01 * torch.randn(parameters["w"].shape, generator=draw)
        parameters["n"] += 1
        return parameters, 10 + self.number


def federation(wire="memory", upload=None, rounds=4, **config):
    clients = [Trains(number) for number in range(3)]
    accepts = ["safetensors", *upload.split("+")] if upload else None
    history, final = run_federation(
        clients, strategy=FedAvg(INITIAL, min_fit_clients=3, clients_per_round=3),
        config=ServerConfig(num_rounds=rounds, accept_codecs=accepts, **config),
        transport=WIRES[wire](), client_codec=upload,
    )  # fmt: skip
    return history, final, clients


@pytest.fixture(scope="module")
def plain():
    return federation()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("codec", "most", "error"), [
    ("bf16", 0.52, 3e-4), ("fp16", 0.52, 4e-5), ("int8", 0.27, 1e-3), ("int4", 0.15, 1e-2), ("topk", 0.04, 0.05),
])  # fmt: skip
def test_lossy_updates_are_small_and_near(wire, codec, most, error, plain):
    history, final, _ = federation(wire, codec)
    nbytes = Spec.of(INITIAL).nbytes
    for record in history.rounds:
        assert record.tensor_bytes_received == 3 * nbytes
        assert record.bytes_received < most * record.tensor_bytes_received
        assert {name: t.tensor_bytes_received for name, t in record.traffic.items()} == dict.fromkeys(record.accepted, nbytes)
    assert float((final["w"] - plain[1]["w"]).abs().max()) < error
    assert int(final["n"]) == int(plain[1]["n"])


@pytest.mark.parametrize("wire", WIRES)
def test_what_goes_over_the_wire_is_counted_once(wire):
    history, _, _ = federation(wire, rounds=2)
    nbytes = Spec.of(INITIAL).nbytes
    for record in history.rounds:
        assert record.tensor_bytes_sent == record.tensor_bytes_received == 3 * nbytes
        assert 3 * nbytes < record.bytes_sent == record.bytes_received < 3.1 * nbytes


@pytest.mark.parametrize("codec", ["bf16", "int8", "topk"])
def test_the_same_bits_over_every_transport(codec):
    assert len({digest(federation(wire, codec)[1]) for wire in WIRES}) == 1


def test_a_lossless_difference_changes_no_bit(plain):
    history, final, _ = federation("stream", "delta+zstd")
    assert digest(final) == digest(plain[1])
    assert history.rounds[-1].bytes_received < history.rounds[-1].tensor_bytes_received


def test_what_topk_leaves_out_is_made_up_for():
    """With feedback all that was left out is sent sooner or later: a constant step arrives in full."""

    class Steps(Trains):
        def fit(self, parameters, config):
            parameters["w"] += torch.linspace(0.01, 0.02, 30_000).view(100, 300)
            return parameters, 1

    _, final = run_federation(
        [Steps(0)], strategy=FedAvg(INITIAL, clients_per_round=1),
        config=ServerConfig(num_rounds=30, accept_codecs=["safetensors", "topk"]),
        transport="memory", client_codec="topk",
    )  # fmt: skip
    moved = (final["w"] - INITIAL["w"]).flatten()
    assert int((moved > 0.1).sum()) > 30_000 * 0.05  # without feedback the same largest hundredth would move each round


@pytest.mark.parametrize("wire", WIRES)
def test_delta_download_is_bit_identical_and_smaller(wire, plain):
    history, final, clients = federation(wire, delta_codec="delta+zstd")
    assert digest(final) == digest(plain[1])
    assert [c.started_from for c in clients] == [c.started_from for c in plain[2]]
    first, *later = history.rounds
    assert first.bytes_sent > first.tensor_bytes_sent  # nobody holds anything yet
    for record in later:
        assert record.bytes_sent < 0.95 * record.tensor_bytes_sent


def test_a_client_that_holds_nothing_is_sent_the_whole_model(plain):
    """A newcomer in the middle of the run, beside one that holds the last model."""
    committed = []
    config = ServerConfig(num_rounds=3, delta_codec="delta+zstd")
    strategy, wire = FedAvg(INITIAL, min_fit_clients=2, clients_per_round=2), Memory()
    with Server("", config=config, strategy=strategy, transport=wire, observers=[committed.append]) as server:
        threads = [
            threading.Thread(target=start_client, args=(server.address, Trains(n), f"c{n}"), kwargs={"transport": wire, **more})
            for n, more in enumerate([{}, {"accept_codecs": ["safetensors"]}])
        ]
        for thread in threads:
            thread.start()
        server.wait(30)
        for thread in threads:
            thread.join(10)
    rounds = [event for event in committed if isinstance(event, RoundCommitted)]
    for event in rounds[1:]:
        assert event.traffic["c0"].bytes_sent < event.traffic["c0"].tensor_bytes_sent < event.traffic["c1"].bytes_sent


def test_status_counts_before_and_after_the_codec():
    strategy = FedAvg(INITIAL, clients_per_round=1)
    config = ServerConfig(num_rounds=2, accept_codecs=["safetensors", "int8"])
    with Server("", config=config, strategy=strategy, transport=(wire := Memory())) as server:
        start_client(server.address, Trains(0), "a", transport=wire, codec="int8")
        server.wait(10)
        status = server.status()
    nbytes = 2 * Spec.of(INITIAL).nbytes
    assert status.traffic.tensor_bytes_sent == status.traffic.tensor_bytes_received == nbytes
    assert status.traffic.bytes_received < nbytes * 0.3 < nbytes < status.traffic.bytes_sent
    assert status.clients[0].traffic == status.traffic
    assert status.encodings == 2


@pytest.mark.parametrize("codec", ["safetensors", "int8", "safetensors+zstd"])
def test_delta_codec_must_tell_lossless_differences(codec):
    with pytest.raises(ConfigError, match="delta_codec"):
        Server("", config=ServerConfig(delta_codec=codec), strategy=FedAvg(INITIAL), transport=Memory())
