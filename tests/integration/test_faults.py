"""Lost requests, lost replies, repeated requests and bodies that break off change nothing about the result."""

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Memory, ServerConfig, digest
from fedcore.testing import Faulty, run_federation
from fedcore.transports.grpc import TransferPolicy

pytestmark = pytest.mark.chaos

INITIAL = {"w": torch.zeros(3000), "n": torch.tensor(0)}


class Moves(Client):
    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        draw = torch.Generator().manual_seed(config["seed"])
        return {"w": parameters["w"] + torch.randn(3000, generator=draw), "n": parameters["n"] + 1}, 10 + config["round"]


def train(transport):
    return run_federation(
        [Moves() for _ in range(3)],
        strategy=FedAvg(INITIAL, min_fit_clients=3, clients_per_round=3),
        config=ServerConfig(num_rounds=6, heartbeat_interval=0.05),
        transport=transport,
    )


@pytest.fixture(scope="module")
def undisturbed():
    return digest(train(Memory())[1])


@pytest.mark.parametrize("inner", [Memory, lambda: Grpc(transfer=TransferPolicy(mode="stream"))], ids=["memory", "grpc"])
@pytest.mark.parametrize(
    "faults",
    [
        {"drop_request": 0.2},
        {"drop_reply": 0.2},
        {"duplicate": 0.5},
        {"cut": 0.2, "cut_after": 5000},
        {"drop_request": 0.1, "drop_reply": 0.1, "duplicate": 0.2, "cut": 0.1, "cut_after": 100},
    ],
    ids=lambda faults: "+".join(faults),
)
def test_same_bits(inner, faults, undisturbed):
    transport = Faulty(inner(), seed=3, **faults)
    history, final = train(transport)
    assert transport.faults > 0
    assert digest(final) == undisturbed
    assert all(record.accepted == ["client-0", "client-1", "client-2"] for record in history.rounds)
