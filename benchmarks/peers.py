"""The same round in fedcore and in Flower, in one call: benchmarks/peers.py [--megabytes N] [--clients K] [--rounds R].

K clients add a constant to a model of 100 float32 tensors. Flower runs twice from an environment of its own (`make bench-peers`
makes .venv-peers): by ``start_server`` and ``start_client`` over gRPC, its older path, deprecated but there, and by SuperLink
and SuperNodes, its present one, at their defaults. fedcore runs before and after. Everything is real processes over TCP on this
machine. A round is timed on the server, from aggregate to aggregate, the first not counted. ``all_GB`` is the peak of RssAnon +
RssShmem over all processes of a run, launchers included. Flower's telemetry is off. One JSON line a run, one with the ratios.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from memory import Watch
from rounds import rounded

HERE = Path(__file__).resolve().parent
APP = """
[project]
name = "bench"
version = "1.0.0"
description = "adds a constant"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "peers_flower:server_app"
clientapp = "peers_flower:client_app"

[tool.flwr.app.config]
megabytes = 0
clients = 0
rounds = 0
out = ""
"""
LINK = """
[superlink]
default = "bench"

[superlink.bench]
address = "{}"
insecure = true
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tree(roots):
    """Return the ids of processes and of all their descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, more = set(), set(roots)
    while more:
        found |= more
        more = {pid for pid, parent in parents.items() if parent in found} - found
    return found


@contextmanager
def launcher(environment, log):
    """Yield a function that launches commands, and the list of them; nothing of them or their children outlives the block."""
    launched = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what follows runs then, too

    def launch(*command, **more):
        more = {"stdout": log, "stderr": log, **more}
        launched.append(subprocess.Popen([*map(str, command)], env=environment, start_new_session=True, text=True, **more))
        return launched[-1]

    try:
        yield launch, launched
    finally:
        for pid in tree([process.pid for process in launched if process.poll() is None]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in launched:  # children whose parent ended by itself
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in launched:
            process.wait()


def watching(launched):
    """Watch the processes and their descendants; who they are is looked up twice a second, because it costs."""
    known = {"at": 0.0, "pids": set()}

    def pids():
        if time.monotonic() - known["at"] > 0.5:
            known.update(pids=tree([process.pid for process in launched if process.poll() is None]), at=time.monotonic())
        return known["pids"]

    return Watch(pids)


def wait_for(condition, what, processes, seconds=900):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        assert all(process.poll() in (None, 0) for process in processes), f"{what}: a process failed"
        time.sleep(0.1)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def by_start_server(options, bin_folder, folder, launch):
    port = free_port()
    address = f"127.0.0.1:{port}"
    python, program, out = bin_folder / "python", HERE / "peers_flower.py", folder / "out"
    with out.open("w") as stdout:
        numbers = (options.megabytes, options.clients, options.rounds + 1)
        server = launch(python, program, "server", address, *numbers, stdout=stdout)
        wait_for(lambda: listens(port), "start_server", [server], 120)
        clients = [launch(python, program, "client", address) for _ in range(options.clients)]
        wait_for(lambda: server.poll() is not None, "start_server", [server, *clients])
    return json.loads(out.read_text())


def by_superlink(options, bin_folder, folder, launch):
    port, app, out = free_port(), folder / "app", folder / "out"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP)
    shutil.copy(HERE / "peers_flower.py", app)
    address = f"127.0.0.1:{port}"
    (folder / "config.toml").write_text(LINK.format(address))
    link = launch(
        bin_folder / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port,
        "--disable-runtime-dependency-installation", cwd=folder,
    )  # fmt: skip
    wait_for(lambda: listens(port), "flower-superlink", [link], 120)
    nodes = [
        launch(bin_folder / "flower-supernode", "--insecure", "--superlink", address, "--port", free_port(), cwd=folder)
        for _ in range(options.clients)
    ]
    rounds = options.superlink_rounds + 1
    numbers = {"megabytes": options.megabytes, "clients": options.clients, "rounds": rounds, "out": f'"{out}"'}
    config = " ".join(f"{name}={value}" for name, value in numbers.items())
    run = launch(bin_folder / "flwr", "run", app, "bench", "--run-config", config, cwd=folder)
    wait_for(lambda: out.exists() and out.read_text(), "the run on SuperLink", [link, run, *nodes])
    return json.loads(out.read_text())


def flower(options, way):
    bin_folder = Path(options.environment).absolute() / "bin"
    with tempfile.TemporaryDirectory() as name, Path(name, "log").open("w") as log:
        folder = Path(name)
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        environment = {
            **os.environ, "PATH": path, "FLWR_HOME": name, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        }  # fmt: skip
        environment.pop("PYTHONPATH", None)
        with launcher(environment, log) as (launch, launched):
            try:
                with watching(launched) as watch:
                    times = way(options, bin_folder, folder, launch)
                assert times, "the run ended early"
            except AssertionError as error:
                log.flush()
                return {"failed": str(error), "log": (folder / "log").read_text()[-2000:]}
    return {**figures(times), "all_GB": rounded(watch.all / 1e9)}


def figures(times):
    least, middle, most = map(rounded, (min(times), statistics.median(times), max(times)))
    return {"rounds": len(times), "seconds": middle, "min_max": [least, most]}


def fedcore(options):
    numbers = {"megabytes": options.megabytes, "clients": options.clients, "rounds": options.fedcore_rounds}
    words = [str(word) for name, value in numbers.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, HERE / "rounds.py", "--no-floor", *words], stdout=subprocess.PIPE, text=True, check=True
    )  # fmt: skip
    line = json.loads(done.stdout)
    return {name: line[name] for name in ("rounds", "seconds", "min_max", "all_GB")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="Flower's by start_server")
    parser.add_argument("--superlink-rounds", type=int, default=3, help="a round takes many seconds there")
    parser.add_argument("--fedcore-rounds", type=int, default=7)
    parser.add_argument("--paths", nargs="*", default=["start_server", "superlink"])
    parser.add_argument("--environment", default=HERE.parent / ".venv-peers", help="where Flower is installed")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    common = {"benchmark": "peers", "megabytes": options.megabytes, "clients": options.clients}
    ways = {"start_server": by_start_server, "superlink": by_superlink}
    runs = {}

    def tell(name, result):
        runs[name] = result
        print(json.dumps({**common, "who": name, **result}), flush=True)

    tell("fedcore before", fedcore(options))
    for path in options.paths:
        tell(f"flower {path}", flower(options, ways[path]))
    tell("fedcore after", fedcore(options))
    both = (runs["fedcore before"], runs["fedcore after"])
    own, memory = statistics.mean(run["seconds"] for run in both), max(run["all_GB"] for run in both)
    ratios = {
        path: {"seconds": round(run["seconds"] / own, 1), "all_GB": round(run["all_GB"] / memory, 1)}
        for path in options.paths
        if "seconds" in (run := runs[f"flower {path}"])
    }
    print(json.dumps({**common, "who": "ratio to fedcore", "fedcore_seconds": rounded(own), **ratios}), flush=True)


if __name__ == "__main__":
    main()
