"""Hundreds of uploads that never end, beside clients that train: these notice nothing, and those are ended."""

import statistics
import threading

import pytest
import torch
from procs import SCALE, Process, Served, scaled

from fedcore import Client, start_client

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

STALL, RATE = 2.0, 10.0
STRANGERS, MEMBERS, KNOCKS = scaled(150), scaled(50), scaled(20)
CLIENTS, ROUNDS, TRAINING = 5, 25, 1.0
BEHIND = 7  # rounds in which the last wave ends: the server stays until then
FLOATS = 50_000
NOISE = 1.0  # seconds by which a round may last longer, on a machine that does both


class Trains(Client):
    def __init__(self, number):
        self.number = number

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        threading.Event().wait(TRAINING)
        draw = torch.Generator().manual_seed(1000 * config["round"] + self.number)
        return {"w": parameters["w"] + torch.randn(FLOATS, generator=draw)}, 5 + self.number


def train(disturb=None, **config):
    """Run a federation, with a process beside it if that is wanted; return what became of it, and of them."""
    wanted = {"min_fit_clients": CLIENTS, "clients_per_round": CLIENTS}
    config |= {"num_rounds": ROUNDS, "extra_clients": MEMBERS, "start_wait": 0.0, "round_timeout": 60.0, "stop_grace": 20.0}
    with Served(floats=FLOATS, strategy=wanted, config=config, limits={"stall_timeout": STALL}) as server:
        threads = [
            threading.Thread(target=start_client, args=(server.address, Trains(number), f"client-{number}"), daemon=True)
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        server.until("committed")
        ended = None
        if disturb:
            with Process("loris.py", address=server.address, rate=RATE, **disturb) as crowd:
                crowd.until("slow")
                server.until("committed", 300, met=lambda line: line["committed"] >= ROUNDS - BEHIND)
                ended = crowd.ask("enough", 120)
        digest = server.until("digest", 300)["digest"]
        for thread in threads:
            thread.join(60)
        return {
            "digest": digest, "seconds": server.all("seconds"), "accepted": server.all("accepted"),
            "failed": server.all("failed"), "ended": ended,
        }  # fmt: skip


@pytest.mark.parametrize("durable", [False, True], ids=["in memory", "noted on the disk"])
@pytest.mark.timeout(900)
def test_p12_streams_that_never_end_do_not_matter(found, tmp_path, durable):
    def state(name):
        return {"state_dir": str(tmp_path / name)} if durable else {}

    control = train(**state("control"))
    seen = train({"strangers": STRANGERS, "members": MEMBERS, "knocks": KNOCKS}, **state("state"))
    ended = seen["ended"]
    others = sum(n for how, n in ended["how"].items() if how.startswith("stranger") and "EXCEEDED STALLED" not in how)
    bounds = {
        "longest_stranger_s": (round(ended["longest"]["stranger"], 2), STALL + 1 + ended["late_s"]),
        "longest_member_s": (round(ended["longest"]["member"], 2), STALL + 1 + ended["late_s"]),
        "strangers_ended_otherwise": (others, 0),
        "other_digest": (int(seen["digest"] != control["digest"]), 0),
        "other_updates": (int(seen["accepted"] != control["accepted"]), 0),
        "failed_rounds": (len(seen["failed"]), 0),
        "longest_round_s": (round(max(seen["seconds"]), 2), round(max(control["seconds"]) + NOISE, 2)),
        "middle_round_s": (
            round(statistics.median(seen["seconds"]), 3), round(statistics.median(control["seconds"]) + NOISE / 4, 3),
        ),
    }  # fmt: skip
    assert not found("P12", bounds, durable=durable, streams=STRANGERS + MEMBERS, rounds=ROUNDS, **ended, scale=SCALE)
