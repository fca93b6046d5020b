"""Time and memory of a round over real gRPC between real processes, beside the floor of bare streams in the same run.

benchmarks/rounds.py [--megabytes N] [--clients K] [--rounds R] [--codec NAME] [--no-floor]

Clients add a constant, so a round is transfer, checks, the exact sum, and waiting. A round is timed on the server, from commit
to commit; the first is a warm-up. Memory is the peak of RssAnon + RssShmem over that of the idle process, as a multiple of the
model. One JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve()
FLOOR = HERE.with_name("floor.py")


class Memory:
    """Watches what this process occupies, in bytes."""

    def __init__(self):
        self.idle, self.peak, self.done = self.now(), 0, threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    @staticmethod
    def now():
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))

    def watch(self):
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.now())

    def over_idle(self):
        return max(self.peak, self.now()) - self.idle


def model_of(megabytes):
    import torch

    return {f"layer.{i}.weight": torch.ones(megabytes * 2_500) for i in range(100)}


def server(address_file, megabytes, clients, rounds, codec):
    import fedcore
    from fedcore.events import RoundCommitted

    memory, times, began = Memory(), [], [time.perf_counter()]

    def note(event):
        if isinstance(event, RoundCommitted):
            times.append(event.at)

    initial = model_of(megabytes)
    strategy = fedcore.FedAvg(initial, min_fit_clients=clients, clients_per_round=clients)
    del initial
    config = fedcore.ServerConfig(num_rounds=rounds, heartbeat_timeout=600.0)
    with fedcore.Server("127.0.0.1:0", config=config, strategy=strategy, codec=codec, observers=[note]) as running:
        strategy.initial_parameters = None
        Path(address_file).write_text(running.address)
        running._done.wait()
        status = running.status()
    assert len(times) == rounds, f"the run ended after {len(times)} rounds, {time.perf_counter() - began[0]:.1f} s"
    gaps = [later - earlier for earlier, later in pairwise(times)]
    print(json.dumps({"times": gaps, "memory": memory.over_idle(), "encodings": status.encodings}))


def client(address, megabytes, name):
    import fedcore

    memory = Memory()

    class Adds(fedcore.Client):
        def get_parameters(self):
            return model_of(megabytes)

        def fit(self, parameters, config):
            for tensor in parameters.values():
                tensor += 1
            return parameters, 1

    fedcore.start_client(address, Adds(), name)
    print(json.dumps({"memory": memory.over_idle()}))


def launch(*arguments):
    return subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def fedcore_rounds(options):
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder, "address")
        size = options.megabytes
        first = launch(HERE, "server", address, size, options.clients, options.rounds + 1, options.codec)
        wait_for(address, first)
        others = [launch(HERE, "client", address.read_text(), size, f"client-{i}") for i in range(options.clients)]
        result = json.loads(first.communicate()[0])
        clients = [json.loads(other.communicate()[0]) for other in others]
    return result, max(c["memory"] for c in clients)


def floor_rounds(options):
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder, "address")
        numbers = (options.megabytes, options.clients, options.rounds + 1)
        first = launch(FLOOR, "server", address, *numbers)
        wait_for(address, first)
        others = [launch(FLOOR, "client", address.read_text(), *numbers) for _ in range(options.clients)]
        times = json.loads(first.communicate()[0])
        for other in others:
            other.communicate()
    return times


def wait_for(path, process):
    while not path.exists() or not path.read_text():
        assert process.poll() is None, "the server ended at once"
        time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--codec", default="safetensors")
    parser.add_argument("--no-floor", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    before = [] if options.no_floor else floor_rounds(options)
    result, client_memory = fedcore_rounds(options)
    floor = before + ([] if options.no_floor else floor_rounds(options))
    model = options.megabytes * 1_000_000
    line = {
        "benchmark": "rounds", "megabytes": options.megabytes, "clients": options.clients, "codec": options.codec,
        "seconds": round(statistics.median(result["times"]), 4),
        "min_max": [round(min(result["times"]), 4), round(max(result["times"]), 4)],
        "server_memory_models": round(result["memory"] / model, 2),
        "client_memory_models": round(client_memory / model, 2),
        "encodings_per_round": round(result["encodings"] / (options.rounds + 1), 2),
    }  # fmt: skip
    if floor:
        line["floor_seconds"] = round(statistics.median(floor), 4)
        line["ratio"] = round(line["seconds"] / line["floor_seconds"], 2)
    print(json.dumps(line))


if __name__ == "__main__":
    if sys.argv[1:2] == ["server"]:
        server(sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
    elif sys.argv[1:2] == ["client"]:
        client(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
