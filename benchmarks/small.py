"""Many small clients, in one process.

benchmarks/small.py [--clients K] [--parameters N] [--rounds R] [--idle S] [--at-once N] [--transports NAME ...]

Each client has a thread and a connection, and they take turns, as ``start_clients`` does it. Over gRPC the server is a process
of its own, in memory it is in the same one; ``reference`` is memory without a codec. Clients add a constant. First all but one
register, and no round can open: for S seconds the processor time of the processes is taken, ``idle_cpu_percent`` of one core.
Then the last one comes, and rounds are timed on the server from commit to commit, the first not counted. ``rounds_per_s`` is
that of the median. One JSON line a transport.
"""

import argparse
import json
import os
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from rounds import processes, rounded

HERE = Path(__file__).resolve()


def federation(transport, address, clients, parameters, rounds, at_once, serves, trains):
    """Be the server, the clients, or both. Lines on stdout tell how it goes; a line on stdin calls the last client."""
    from contextlib import ExitStack

    import torch

    import fedcore
    from fedcore.events import ClientRegistered, RoundCommitted, RunFinished

    torch.set_num_threads(1)
    wire = fedcore.Memory(by_reference=True) if transport == "reference" else transport
    registered, times, over = set(), [], threading.Event()

    def note(event):
        if isinstance(event, ClientRegistered):
            registered.add(event.client_id)
            if len(registered) == clients - 1:
                print(json.dumps("registered"), flush=True)
        elif isinstance(event, RoundCommitted):
            times.append(event.at)
        elif isinstance(event, RunFinished):
            over.set()

    class Adds(fedcore.Client):
        def get_parameters(self):
            return {"weight": torch.zeros(parameters)}

        def fit(self, parameters, config):
            return {"weight": parameters["weight"] + 1}, 1

    with ExitStack() as stack:
        if serves:
            strategy = fedcore.FedAvg(Adds().get_parameters(), min_fit_clients=clients, clients_per_round=clients)
            config = fedcore.ServerConfig(num_rounds=rounds, round_timeout=60.0, max_failures=1)
            server = fedcore.Server(address, config=config, strategy=strategy, transport=wire, observers=[note])
            address = stack.enter_context(server).address
            print(json.dumps(address), flush=True)
        if trains:
            adds = {f"client-{i}": Adds() for i in range(clients)}
            last = {f"client-{clients - 1}": adds.pop(f"client-{clients - 1}")}
            first = partial(fedcore.start_clients, address, adds, at_once=at_once, transport=wire)
            threading.Thread(target=first).start()
            sys.stdin.readline()
            threading.Thread(target=fedcore.start_clients, args=(address, last), kwargs={"transport": wire}).start()
        if serves:
            over.wait()
    if serves:
        print(json.dumps([later - earlier for earlier, later in pairwise(times)]))


def processor_seconds(pid):
    """Return the processor time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(transport, options):
    numbers = (options.clients, options.parameters, options.rounds + 1, options.at_once)
    with processes() as (launch, launched):
        if transport != "grpc":
            server = clients = launch(HERE, "run", transport, transport, *numbers, 1, 1)
            json.loads(server.stdout.readline())
        else:
            server = launch(HERE, "run", transport, "127.0.0.1:0", *numbers, 1, 0)
            clients = launch(HERE, "run", transport, json.loads(server.stdout.readline()), *numbers, 0, 1)
        assert json.loads(server.stdout.readline()) == "registered"
        time.sleep(1)
        before = [processor_seconds(process.pid) for process in launched]
        time.sleep(options.idle)
        used = [processor_seconds(process.pid) - b for process, b in zip(launched, before, strict=True)]
        busy = [processor_seconds(process.pid) for process in launched]
        clients.stdin.write("\n")
        clients.stdin.flush()
        times = json.loads(server.stdout.readline())
        assert len(times) == options.rounds, f"the run ended after {len(times)} rounds"
        busy = [processor_seconds(process.pid) - b for process, b in zip(launched, busy, strict=True)]
        server.wait()
        clients.wait()
    percent = [rounded(100 * seconds / options.idle) for seconds in used]
    line = {
        "benchmark": "small", "transport": transport, "clients": options.clients, "parameters": options.parameters,
        "rounds": options.rounds, "at_once": options.at_once, "rounds_per_s": rounded(1 / median(times)),
        "mean_rounds_per_s": rounded(len(times) / sum(times)), "median_ms": rounded(1000 * median(times)),
        "idle_clients": options.clients - 1, "idle_s": options.idle, "idle_cpu_percent": percent[0],
        "cpu_s_per_round": rounded(sum(busy) / (options.rounds + 1)),
    }  # fmt: skip
    return line if len(percent) == 1 else {**line, "clients_idle_cpu_percent": percent[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--idle", type=float, default=10.0)
    parser.add_argument("--at-once", type=int, default=1, help="clients that work at a time")
    parser.add_argument("--transports", nargs="*", default=["memory", "reference", "grpc"])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for transport in options.transports:
        print(json.dumps(measure(transport, options)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        federation(*sys.argv[2:4], *map(int, sys.argv[4:10]))
    else:
        main()
