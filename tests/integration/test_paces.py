"""Rounds that are buffers: an update counts in whichever is open, as a difference, and less the later it is."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Memory, RoundPolicy, ServerConfig, SitePolicy
from fedcore.codecs.topk import TopK
from fedcore.replay import AGREES, replay
from fedcore.testing import check_state, run_federation

MODEL = {"w": torch.full((5,), 8.0), "n": torch.tensor(0)}
PATIENCE = 60.0


class Step(Client):
    """Adds one to each weight; waits in between for what ``wait`` waits for."""

    def __init__(self, wait):
        self.wait = wait

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        self.wait(config["round"])
        return {"w": parameters["w"] + 1, "n": parameters["n"] + 1}, 10


def tortoise_and_hare(rounds):
    """Return two clients: one makes so many models alone, of buffers of one, and then the other hands in its first update."""
    done, over = threading.Event(), threading.Event()

    def slow(number):
        assert done.wait(PATIENCE)

    def fast(number):
        if number > rounds:
            done.set()
            over.wait(PATIENCE)

    return [Step(slow), Step(fast)], over


@pytest.mark.parametrize("wire", [Memory(), Grpc()], ids=["memory", "grpc"])
def test_a_late_update_moves_the_newest_model_by_its_discounted_difference(wire, tmp_path):
    clients, over = tortoise_and_hare(3)
    policy = RoundPolicy(target=1, quorum=1, start_wait=0.2, pace="async")
    config = ServerConfig(num_rounds=4, policy=policy, state_dir=str(tmp_path / "s"), keep_updates=9, heartbeat_interval=0.05)

    class Ends(FedAvg):
        def step(self, number, current, aggregate):
            if number == 4:
                over.set()
            return aggregate

    history, final = run_federation(clients, strategy=Ends(MODEL, clients_per_round=2), config=config, transport=wire)
    assert [record.accepted for record in history.rounds] == [["client-1"]] * 3 + [["client-0"]]
    assert torch.equal(final["w"], torch.full((5,), 8.0 + 3 + (1 + 3) ** -0.5))
    assert final["n"] == 1  # a buffer of the late one alone: integers are no differences
    assert [each.outcome for each in replay(tmp_path / "s", FedAvg(MODEL))] == [AGREES] * 4
    assert check_state(tmp_path / "s", late=3).faults == []


def test_the_site_clips_the_difference_that_it_sends():
    config = ServerConfig(num_rounds=2, policy=RoundPolicy(target=1, pace="async"))
    _, final = run_federation(
        [Step(lambda number: None)], strategy=FedAvg(MODEL), config=config, transport=Memory(),
        site=SitePolicy(clip=0.5 * 5**0.5),
    )  # fmt: skip
    assert torch.allclose(final["w"], torch.full((5,), 9.0))


def test_a_sparse_codec_sends_the_largest_differences():
    model = {"w": torch.full((10_000,), 3.0)}

    class Spike(Client):
        def get_parameters(self):
            return model

        def fit(self, parameters, config):
            change = torch.full((10_000,), 0.001)
            change[7] = 5.0
            return {"w": parameters["w"] + change}, 1

    config = ServerConfig(num_rounds=1, policy=RoundPolicy(target=1, pace="async"), accept_codecs=["topk", "safetensors"])
    history, final = run_federation(
        [Spike()], strategy=FedAvg(model), config=config, transport=Grpc(), client_codec=TopK(0.0001)
    )
    assert final["w"][7] == 8.0
    assert torch.equal(final["w"].ne(3.0).nonzero(), torch.tensor([[7]]))
    assert history.rounds[0].bytes_received < 100, history.rounds[0]
