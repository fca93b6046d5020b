"""A client process that is killed while it trains: the round ends without it, the run goes on, history says what happened."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from fedcore import FedAvg, Server, ServerConfig
from fedcore.events import ClientRegistered

SCRIPT = Path(__file__).with_name("killable.py")


@pytest.mark.parametrize("ends", ["quorum", "deadline"])
def test_the_round_ends_and_the_run_finishes(ends):
    by_quorum = ends == "quorum"
    rounds = 3 if by_quorum else 1
    config = ServerConfig(
        num_rounds=rounds, heartbeat_interval=0.1, start_wait=0.0,
        heartbeat_timeout=2.0 if by_quorum else 60.0, round_timeout=60.0 if by_quorum else 6.0,
    )  # fmt: skip
    strategy = FedAvg({"w": torch.zeros(4)}, min_fit_clients=2, clients_per_round=3)
    registered = threading.Event()

    def watch(event):
        if isinstance(event, ClientRegistered):
            registered.set()

    with Server("127.0.0.1:0", config=config, strategy=strategy, observers=[watch]) as server:
        commands = [[sys.executable, SCRIPT, server.address, name] for name in ("victim", "client-1", "client-2")]
        victim = subprocess.Popen(commands[0], stdout=subprocess.PIPE, text=True)
        assert registered.wait(60)  # a round would open without it
        others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands[1:]]
        assert victim.stdout.readline() == "training\n"
        victim.send_signal(signal.SIGKILL)
        history, final = server.wait(60)
        assert [process.wait(20) for process in others] == [0, 0]
    victim.wait(), victim.stdout.close()
    assert [record.outcome for record in history.rounds] == ["committed"] * rounds
    assert [record.accepted for record in history.rounds] == [["client-1", "client-2"]] * rounds
    reason = history.rounds[0].missing["victim"]
    assert reason.startswith("silent for") if by_quorum else reason == "no answer in time"
    assert final["w"].tolist() == [float(rounds)] * 4
