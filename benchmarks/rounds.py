"""Time and memory of a round over real gRPC between real processes, beside the floor of bare streams in the same run.

benchmarks/rounds.py [--megabytes N] [--tensors T] [--clients K] [--rounds R] [--codec NAME] [--uploads U]
    [--durability D] [--tls] [--no-floor]

Clients add a constant, so a round is transfer, checks, the exact sum, and waiting. A round is timed on the server, from commit
to commit; the first is a warm-up. The floor runs before and after, never at the same time. Memory is the peak of RssAnon +
RssShmem over that of the idle process, which has imported everything and holds no model; RssFile is stated apart. One line.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from memory import Watch, occupied

HERE = Path(__file__).resolve()
FLOOR = HERE.with_name("floor.py")


def model_of(megabytes, tensors):
    import torch

    return {f"layer.{i}.weight": torch.ones(megabytes * 250_000 // tensors) for i in range(tensors)}


def idle():
    """Return what the process occupies before there is a model; fedcore's names are imported when first used, so use them."""
    import fedcore
    from fedcore import registry

    registry.transport("grpc")
    assert fedcore.Server
    assert fedcore.FedAvg
    return occupied()


def kits(folder, clients):
    """Make an authority, and return the folders of the server's kit and of the clients'."""
    from fedcore.pki import Authority

    authority = Authority.init(Path(folder, "pki"))
    server = authority.issue("server", "server", hosts=["127.0.0.1"])
    return [server, *(authority.issue("client", f"client-{number}") for number in range(clients))]


def wire(kit):
    """Return gRPC with mutual TLS, or in plaintext."""
    import fedcore

    return fedcore.Grpc(tls=fedcore.TLS.kit(kit)) if kit else "grpc"


def server(address_file, megabytes, tensors, clients, rounds, codec, at_once, durability, kit=""):
    import fedcore
    from fedcore.events import RoundCommitted, RunFinished

    before, times, over = idle(), [], threading.Event()

    def note(event):
        if isinstance(event, RoundCommitted):
            times.append(event.at)
        elif isinstance(event, RunFinished):
            over.set()

    settings = {"limits": fedcore.Limits(upload_memory=int(at_once * megabytes * 1_000_000))} if at_once else {}
    if durability != "none":
        settings |= {"durability": durability, "state_dir": str(Path(address_file).with_name("state"))}
    strategy = fedcore.FedAvg(model_of(megabytes, tensors), min_fit_clients=clients, clients_per_round=clients)
    config = fedcore.ServerConfig(num_rounds=rounds, heartbeat_timeout=600.0, **settings)
    named = {"config": config, "strategy": strategy, "codec": codec, "transport": wire(kit), "observers": [note]}
    with fedcore.Server("127.0.0.1:0", **named) as running:
        strategy.initial_parameters = None  # or the first model would stay beside the newest
        Path(address_file).write_text(running.address)
        over.wait()
        encodings = running.status().encodings
    assert len(times) == rounds, f"the run ended after {len(times)} rounds"
    gaps = [later - earlier for earlier, later in pairwise(times)]
    print(json.dumps({"times": gaps, "idle": before, "encodings": encodings}))


def client(address, megabytes, tensors, name, kit=""):
    import fedcore

    before = idle()

    class Adds(fedcore.Client):
        def get_parameters(self):
            return model_of(megabytes, tensors)

        def fit(self, parameters, config):
            for tensor in parameters.values():
                tensor += 1
            return parameters, 1

    fedcore.start_client(address, Adds(), name, transport=wire(kit))
    print(json.dumps({"idle": before}))


@contextmanager
def processes():
    """Yield a function that launches Python programs, and the list of them; none outlives the block."""
    launched = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what follows runs then, too

    def launch(*arguments):
        command = [sys.executable, *map(str, arguments)]
        launched.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return launched[-1]

    try:
        yield launch, launched
    finally:
        for process in launched:
            process.kill()
            process.wait()


def wait_for(path, process):
    while not path.exists() or not path.read_text():
        assert process.poll() is None, "the server ended at once"
        time.sleep(0.01)


def answer(process, needed=()):
    """Return what a process prints at its end, unless one that it needs fails before."""
    while process.poll() is None:
        assert all(other.poll() in (None, 0) for other in needed), "a client failed"
        time.sleep(0.05)
    text = process.communicate()[0]
    assert process.returncode == 0, f"a process ended with status {process.returncode}"
    return json.loads(text) if text else None


def fedcore_rounds(options):
    size = options.megabytes
    with tempfile.TemporaryDirectory() as folder, processes() as (launch, launched):
        address = Path(folder, "address")
        with Watch(lambda: [process.pid for process in launched], 0.005 if options.megabytes >= 50 else 1.0) as watch:
            numbers = (size, options.tensors, options.clients, options.rounds + 1)
            kit, *kept = kits(folder, options.clients) if options.tls else [""] * (options.clients + 1)
            first = launch(HERE, "server", address, *numbers, options.codec, options.uploads, options.durability, kit)
            wait_for(address, first)
            where = address.read_text()
            others = [launch(HERE, "client", where, *numbers[:2], f"client-{i}", each) for i, each in enumerate(kept)]
            result = answer(first, others)
            clients = [answer(other) for other in others]
    result["memory"] = watch.held[first.pid] - result["idle"]["held"]
    result["mapped"] = max(0, watch.mapped[first.pid] - result["idle"]["mapped"])
    result["client_memory"] = max(watch.held[o.pid] - c["idle"]["held"] for o, c in zip(others, clients, strict=True))
    result["all"] = watch.all
    return result


def floor_rounds(options):
    numbers = (options.megabytes, options.clients, options.rounds + 1)
    with tempfile.TemporaryDirectory() as folder, processes() as (launch, _):
        address = Path(folder, "address")
        first = launch(FLOOR, "server", address, *numbers)
        wait_for(address, first)
        others = [launch(FLOOR, "client", address.read_text(), *numbers) for _ in range(options.clients)]
        times = answer(first, others)
        for other in others:
            answer(other)
    return times


def rounded(value):
    return float(f"{value:.4g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--tensors", type=int, default=100, help="of one size, that the model consists of")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="default: 50 below 50 MB, 7 below 500 MB, else 5")
    parser.add_argument("--codec", default="safetensors")
    parser.add_argument("--uploads", type=int, default=0, help="models that updates may occupy; default: ServerConfig's")
    parser.add_argument("--durability", choices=["none", "update", "round"], default="none", help="with a state directory")
    parser.add_argument("--tls", action="store_true", help="mutual TLS, with certificates of an authority made for it")
    parser.add_argument("--no-floor", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (50 if options.megabytes < 50 else 7 if options.megabytes < 500 else 5)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    before = [] if options.no_floor else floor_rounds(options)
    result = fedcore_rounds(options)
    after = [] if options.no_floor else floor_rounds(options)
    model = options.megabytes * 1_000_000
    line = {
        "benchmark": "rounds", "megabytes": options.megabytes, "tensors": options.tensors, "clients": options.clients,
        "codec": options.codec, "rounds": options.rounds, "seconds": rounded(statistics.median(result["times"])),
        "min_max": [rounded(min(result["times"])), rounded(max(result["times"]))],
        "server_memory_models": rounded(result["memory"] / model), "server_memory_bytes": result["memory"],
        "server_mapped_models": rounded(result["mapped"] / model),
        "client_memory_models": rounded(result["client_memory"] / model), "client_memory_bytes": result["client_memory"],
        "all_GB": rounded(result["all"] / 1e9),
        "encodings_per_round": rounded(result["encodings"] / (options.rounds + 1)),
    }  # fmt: skip
    if options.durability != "none":
        line["durability"] = options.durability
    if options.tls:
        line["tls"] = True
    if options.uploads:
        line["uploads"] = options.uploads
    if before:
        line["floor_seconds"] = rounded(statistics.median(before + after))
        line["floor_before_after"] = [rounded(statistics.median(before)), rounded(statistics.median(after))]
        line["ratio"] = round(line["seconds"] / line["floor_seconds"], 2)
    print(json.dumps(line))


if __name__ == "__main__":
    if sys.argv[1:2] == ["server"]:
        server(sys.argv[2], *map(int, sys.argv[3:7]), sys.argv[7], int(sys.argv[8]), *sys.argv[9:])
    elif sys.argv[1:2] == ["client"]:
        client(sys.argv[2], *map(int, sys.argv[3:5]), *sys.argv[5:])
    else:
        main()
