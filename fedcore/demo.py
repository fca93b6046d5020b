"""``fedcore demo``: a whole federation on this machine, each part a process of its own, over gRPC.

The parent launches one server and some clients, each with a skewed share of the handwritten digits, and watches over them.
The server shows the run and leaves its history, a picture of it and the model in the output folder. What the processes do
is in :mod:`fedcore.demo_roles`; nothing here imports torch, so that the demo begins at once.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedcore.children import Child, Children
from fedcore.errors import ConfigError, MissingDependency
from fedcore.observers.units import count, size, span

__all__ = ["Options", "run", "summary"]

ADDRESS, HISTORY, PICTURE, MODEL = "address", "history.json", "history.png", "model.safetensors"
STATE, STRUCK = "state", "struck"
QUORUM = 2
GOODBYE = 3.0  # seconds between the end of the run and the end of the clients

_REPORTS = 3


@dataclass(frozen=True)
class Options:
    """What the demo can be asked for.

    Attributes:
        rounds: rounds of federated averaging.
        clients: how many clients, at least 2.
        alpha: how much the clients' shares look alike: see :func:`fedcore.data.partition.dirichlet`.
        seed: of the split, the shares, the model and the training.
        out: the folder for what the run leaves.
        codec: what models are sent with.
        plain: show plain lines on a terminal, too.
        kill_server_at_round: the round in which the server is killed and started again, or None.
    """

    rounds: int = 20
    clients: int = 5
    alpha: float = 0.5
    seed: int = 0
    out: str = "runs/demo"
    codec: str = "safetensors"
    plain: bool = False
    kill_server_at_round: int | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"the demo needs at least one round, not {self.rounds}")
        if self.clients < QUORUM:
            raise ConfigError(f"the demo needs at least {QUORUM} clients, not {self.clients}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha must be a number above 0, not {self.alpha}")
        if self.seed < 0:
            raise ConfigError(f"the seed must be at least 0, not {self.seed}")
        if self.kill_server_at_round is not None and not 1 <= self.kill_server_at_round <= self.rounds:
            raise ConfigError(f"the server can be killed in a round from 1 to {self.rounds}, not {self.kill_server_at_round}")

    @property
    def folder(self) -> Path:
        """The folder for what the run leaves."""
        return Path(self.out)


def run(options: Options) -> int:
    """Run the demo and return its exit status: 0 if every process ended well.

    Raises:
        MissingDependency: the data come with a library that is not installed.
        OSError: the output folder cannot be written.
    """
    if find_spec("sklearn") is None:
        raise MissingDependency("the demo's digits come with scikit-learn: pip install 'fedcore[demo]'")
    began = time.monotonic()
    _clear(options)
    _say(f"Starting a server and {count(options.clients, 'client')}, each a process of its own. Logs: {options.folder}/*.log")
    with Children() as children:
        reports = _run_processes(options, children)
    if (history := options.folder / HISTORY).exists():
        _say(summary(options, json.loads(history.read_text()), time.monotonic() - began))
    for report in reports[:_REPORTS]:
        sys.stderr.write(f"fedcore demo: {report}\n")
    if len(reports) > _REPORTS:
        sys.stderr.write(f"fedcore demo: and {len(reports) - _REPORTS} more; see {options.folder}/*.log\n")
    return 1 if reports else 0


def _run_processes(options: Options, children: Children) -> list[str]:
    """Launch everything, watch over it to the end, and return what is to be said of processes that failed."""
    server = children.launch(_child(options, "server", shown=True))
    address = _address_of(server, options, children)
    clients = []
    if address:
        numbers = range(1, options.clients + 1)
        clients = [children.launch(_child(options, f"client-{n}", str(n), address)) for n in numbers]
        if options.kill_server_at_round:
            server = _kill(server, address, clients, options, children)
    left = _watch(server, clients, children)
    stuck = [f"{client.name} did not end with the run" for client in left if server not in left and not server.failed]
    return [child.report() for child in (server, *clients) if child.failed] + stuck


def _child(options: Options, name: str, *arguments: str, shown: bool = False) -> Child:
    role = name.partition("-")[0]
    words = ["fedcore.demo_roles", role, json.dumps(asdict(options)), *arguments]
    return Child(name, words, options.folder / f"{name}.log", shown=shown)


def _address_of(server: Child, options: Options, children: Children) -> str:
    """Wait until the server has written down where it listens; "" if it has ended instead."""
    file = options.folder / ADDRESS
    while not file.exists():
        if children.next_ended(timeout=0.02) is server:
            return ""
    address = file.read_text()
    file.unlink()
    return address


def _kill(server: Child, address: str, clients: list[Child], options: Options, children: Children) -> Child:
    """Kill the server in the middle of a round, start another one at the same place, and return that."""
    file = options.folder / STRUCK
    while not file.exists():
        if children.next_ended(timeout=0.02) is server or _hopeless(server, clients):
            return server
    server.process.kill()
    server.process.wait()
    file.unlink()
    _say(f"The server was killed in round {options.kill_server_at_round}. Another process takes its place; the clients stay.")
    another = children.launch(_child(options, "server-again", address, shown=True))
    _address_of(another, options, children)
    return another


def _watch(server: Child, clients: list[Child], children: Children) -> set[Child]:
    """Wait for the server and then the clients to end, and return who is left if the rest cannot come to an end."""
    left = {child for child in (server, *clients) if child.process.poll() is None} if clients else set()
    while left and not server.failed and not (server in left and _hopeless(server, clients)):
        # the server tells the clients of the end: they are not far behind it
        ended = children.next_ended(timeout=None if server in left else 2 * GOODBYE)
        if ended is None:
            break
        left.discard(ended)
    return left


def _hopeless(server: Child, clients: list[Child]) -> bool:
    return server.failed or sum(not client.failed for client in clients) < QUORUM


def _clear(options: Options) -> None:
    """Make the output folder, and remove what an earlier run left there."""
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in (ADDRESS, STRUCK, HISTORY, PICTURE, MODEL, "server.log", "server-again.log"):
        (options.folder / old).unlink(missing_ok=True)
    for old_log in options.folder.glob("client-*.log"):
        old_log.unlink()
    if (options.folder / STATE / "ledger.db").exists():
        shutil.rmtree(options.folder / STATE)


def summary(options: Options, record: dict[str, Any], seconds: float) -> str:
    """Return what the demo says at its end.

    Args:
        options: what it was asked for.
        record: the history file.
        seconds: how long everything took.
    """
    rounds, struck = record["rounds"], options.kill_server_at_round
    made = [each for each in rounds if each["outcome"] == "committed"]
    sent, received = (sum(each[f"bytes_{way}"] for each in rounds) for way in ("sent", "received"))
    lines = [
        "",
        *(f"  {name:<10} {_shown(value)}" for name, value in sorted(made[-1]["metrics"].items()) if "/" not in name),
        f"  {'rounds':<10} {len(made)} committed, {len(rounds) - len(made) or 'none'} failed",
        *([f"  {'server':<10} killed in round {struck}, and started again"] if struck else []),
        f"  {'time':<10} {span(sum(each['seconds'] for each in rounds))} in rounds, {span(seconds)} in all",
        f"  {'traffic':<10} {size(sent)} to clients, {size(received)} back, as {options.codec}",
        f"  {'model':<10} {options.folder / MODEL}, digest {record['digest'][:16]}",
        f"  {'history':<10} {options.folder / HISTORY}" + (f", {PICTURE}" if record["picture"] else ""),
        "",
        f"  {'client':<10} examples  updates",
        *(f"  {name:<10} {each['examples']:>8}  {each['updates']:>7}" for name, each in record["clients"].items()),
    ]
    for each in rounds:
        lines += [f"  round {each['number']} went on without {name}: {why}" for name, why in each["missing"].items()]
        lines += [f"  round {each['number']} failed: {each['reason']}"] if each["outcome"] == "failed" else []
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
