"""A thousand clients that wait cost no thread, and the next round opens for all of them soon (alone, within a second)."""

import subprocess
import sys
import threading
from pathlib import Path

import torch

from fedcore import FedAvg, Server, ServerConfig
from fedcore.events import RoundOpened

CROWD = Path(__file__).with_name("crowd.py")
COUNT = 1000


def native_threads():
    return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "Threads:" in line))


def parked(server):
    return sum(client.status == "waiting" for client in server.status().clients)


def wait_until(condition, what):
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"not within 30 s: {what}")


def test_a_thousand_waiting_clients():
    opened = []
    strategy = FedAvg({"w": torch.zeros(1000)}, min_fit_clients=COUNT + 1, clients_per_round=COUNT + 1)
    server = Server(
        "127.0.0.1:0", config=ServerConfig(num_rounds=1, stop_grace=0), strategy=strategy,
        observers=[lambda event: opened.append(event.at) if isinstance(event, RoundOpened) else None],
    )  # fmt: skip
    with server, subprocess.Popen(
        [sys.executable, CROWD, server.address, str(COUNT)], stdout=subprocess.PIPE, text=True
    ) as crowd:
        wait_until(lambda: parked(server) >= 10, "the first ten clients are parked")
        few = native_threads()
        wait_until(lambda: parked(server) == COUNT, "all clients are parked")
        many = native_threads()
        with server.hub.turn() as machine:  # the one that was missing
            machine.register("last", "token", now=server.hub.clock.now())
        assert crowd.stdout.readline() == "parked\n"
        served = float(crowd.stdout.readline())
    assert many <= few + 2, f"{few} threads with ten clients, {many} with {COUNT}"
    assert served - opened[0] < 5.0, f"the last client was served {served - opened[0]:.2f} s after the round opened"
