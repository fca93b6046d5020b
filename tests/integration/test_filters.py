"""Filters go over what an update changes: at the client in order, at the server backwards, and not over anything else."""

import math

import pytest
import torch

from fedcore import Client, Clip, FedAvg, Filter, Gaussian, Grpc, Memory, RoundPolicy, ServerConfig, digest
from fedcore.errors import ConfigError
from fedcore.filter import Context
from fedcore.replay import AGREES, replay
from fedcore.testing import run_federation

MODEL = {"w": torch.full((4,), 2.0), "half": torch.ones(2).bfloat16(), "n": torch.tensor(1)}


class Moves(Client):
    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 3, "half": parameters["half"], "n": parameters["n"] + 1}, 10


class Notes(Filter):
    """Says when it is asked, and of what."""

    def __init__(self, name, said):
        self.name, self.said = name, said

    def __repr__(self):
        return self.name

    def outgoing(self, change, context):
        self.said.append(("out", self.name, change["w"][0].item(), sorted(change), context.client_id, context.updates))
        return {name: value * 2 for name, value in change.items()}

    def incoming(self, change, context):
        self.said.append(("in", self.name, change["w"][0].item(), sorted(change), context.client_id, context.updates))
        return {name: value + 1 for name, value in change.items()}


def run(filters, transport=None, rounds=1, clients=2, **config):
    return run_federation(
        [Moves() for _ in range(clients)], strategy=FedAvg(MODEL, min_fit_clients=clients, clients_per_round=clients),
        config=ServerConfig(num_rounds=rounds, **config), transport=transport or Memory(), filters=filters,
    )[1]  # fmt: skip


def test_in_order_out_and_backwards_in():
    said = []
    final = run([Notes("a", said), Notes("b", said)], clients=1)
    of = ["half", "w"]
    assert said == [
        ("out", "a", 3.0, of, "client-0", 1), ("out", "b", 6.0, of, "client-0", 1),
        ("in", "b", 12.0, of, "", 1), ("in", "a", 13.0, of, "", 1),
    ]  # fmt: skip
    assert final["w"].tolist() == [2.0 + 14.0] * 4
    assert final["n"].item() == 2


def test_a_change_is_cut_to_a_norm():
    final = run([Clip(1.0)])
    assert math.isclose((final["w"] - MODEL["w"]).norm().item(), 1.0, rel_tol=1e-6)
    assert torch.equal(run([Clip(1e6)])["w"], MODEL["w"] + 3)
    assert torch.equal(final["half"], MODEL["half"])


@pytest.mark.parametrize("transport", [Memory(), Grpc()], ids=["memory", "grpc"])
def test_the_servers_noise_is_the_same_when_a_run_is_repeated(transport, tmp_path):
    filters = [Clip(1.0), Gaussian(0.1)]
    first = run(filters, transport, 3, state_dir=str(tmp_path / "s"), keep_updates=5)
    assert digest(first) == digest(run(filters, transport, 3))
    assert digest(first) != digest(run(filters, transport, 3, seed=8))
    assert [each.outcome for each in replay(tmp_path / "s", filters=filters)] == [AGREES] * 3
    with pytest.raises(ConfigError, match="Gaussian"):
        replay(tmp_path / "s")


def test_a_clients_noise_is_its_secret_unless_it_wants_otherwise():
    zeros, context = {"w": torch.zeros(20_000)}, Context(1, 7, "a")
    secret, told = Gaussian(0.5, "client"), Gaussian(0.5, "client", seeded=True)
    assert not torch.equal(secret.outgoing(zeros, context)["w"], secret.outgoing(zeros, context)["w"])
    assert torch.equal(told.outgoing(zeros, context)["w"], told.outgoing(zeros, context)["w"])
    assert told.incoming(zeros, context) is zeros
    assert abs(secret.outgoing(zeros, context)["w"].std().item() - 0.5) < 0.02


def test_differences_are_filtered_as_such():
    final = run_federation(
        [Moves()], strategy=FedAvg(MODEL), transport=Memory(), filters=[Clip(1.0)],
        config=ServerConfig(num_rounds=2, policy=RoundPolicy(target=1, pace="async")),
    )[1]  # fmt: skip
    assert math.isclose((final["w"] - MODEL["w"]).norm().item(), 2.0, rel_tol=1e-5)


@pytest.mark.parametrize("make", [lambda: Clip(0), lambda: Clip(math.nan), lambda: Gaussian(-1), lambda: Gaussian(1, "both")])
def test_settings_that_make_no_sense(make):
    with pytest.raises(ConfigError):
        make()
