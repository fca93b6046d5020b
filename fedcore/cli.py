"""The command ``fedcore``: try a federation, ask or tell a running server, look back at a run, make certificates.

Exit status: 0 well done, 1 an error or a run that failed, 2 a mistake in the command line, 130 interrupted. Everything that
imports torch is imported by the commands that need it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from fedcore import __version__, admin_commands, audit_commands, connecting, demo, keys_commands, pki_commands, state_commands
from fedcore.errors import ConfigError, ConnectionLost, FedcoreError
from fedcore.messages import ClientStatus, ServerStatus, StatusQuery
from fedcore.observers.board import headline
from fedcore.observers.units import harmless, metric, natural, size, span, table

if TYPE_CHECKING:
    from fedcore.transport import Connection

__all__ = ["main"]

_SHELVES = ("transports", "codecs", "strategies")
_WATCH_INTERVAL = 1.0  # seconds
_CLEAR = "\x1b[H\x1b[J"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status; a mistake in the command line exits at once."""
    chosen = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        return command(chosen)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except (FedcoreError, OSError) as error:
        hint = " (--insecure says that you trust the network)" if getattr(error, "reason", "") == "INSECURE_ADDRESS" else ""
        sys.stderr.write(f"fedcore: {' '.join(str(error).split())}{hint}\n")
        return 1
    finally:
        drop_output_if_gone()


def drop_output_if_gone() -> None:
    """Write out what standard output still holds; if nobody reads it any more, let that pass in silence."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fedcore", description="Federated learning for PyTorch.")
    parser.add_argument("--version", action="version", version=f"fedcore {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands.add_parser("demo", help="run a whole federation on this machine and show it"))
    _add_status(commands.add_parser("status", help="ask a server how its run stands"))
    admin_commands.add_commands(commands.add_parser)
    audit_commands.add_audit(commands.add_parser("audit", help="look at the log of who did what"))
    state_commands.add_runs(commands.add_parser("runs", help="show what a state directory holds"))
    state_commands.add_replay(commands.add_parser("replay", help="make the models of a run again from its updates"))
    pki_commands.add_pki(commands.add_parser("pki", help="make the certificates of a federation"))
    keys_commands.add_keys(commands.add_parser("keys", help="make the tokens of a federation"))
    listing = commands.add_parser("list", help="show the transports, codecs and strategies there are")
    listing.set_defaults(command=_list)
    return parser


# --- demo -------------------------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    default = demo.Options()
    parser.description = (
        "Train a small network on handwritten digits with one server and some clients, each a process of its own that "
        "speaks gRPC. Leaves history.json, history.png, model.safetensors and the logs in the output folder."
    )
    parser.add_argument("--rounds", type=int, default=default.rounds, help="rounds to train (default %(default)s)")
    parser.add_argument("--clients", type=int, default=default.clients, help="number of clients (default %(default)s)")
    parser.add_argument(
        "--alpha", type=float, default=default.alpha,
        help="how alike the clients' shares are: 0.1 very skewed, 100 hardly (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="the same seed gives the same model, bit for bit")
    parser.add_argument("--out", default=default.out, help="output folder, overwritten (default %(default)s)")
    parser.add_argument(
        "--codec", default=default.codec, help="such as safetensors+lz4 (default %(default)s); see fedcore list"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live display")
    parser.add_argument(
        "--kill-server-at-round", type=int, metavar="N",
        help="kill the server in the middle of round N and start another one, which goes on with the same round",
    )  # fmt: skip
    parser.set_defaults(command=_demo, mistake=parser.error)


def _demo(chosen: argparse.Namespace) -> int:
    named = {name: value for name, value in vars(chosen).items() if name not in ("command", "mistake")}
    try:
        options = demo.Options(**named)
    except ConfigError as error:
        chosen.mistake(str(error))
    return demo.run(options)


# --- status -----------------------------------------------------------------------------------------------------------


def _add_status(parser: argparse.ArgumentParser) -> None:
    connecting.add_options(parser, bearer="an operator, an admin or a client")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", action="store_true", help="ask every second until the run is over")
    parser.set_defaults(command=_status)


def _status(chosen: argparse.Namespace) -> int:
    show = _as_json if chosen.json else _as_text
    with connecting.connect(chosen) as connection:
        status = _ask(connection)
        if not chosen.watch:
            sys.stdout.write(show(status))
        while chosen.watch:
            sys.stdout.write((_CLEAR if sys.stdout.isatty() and not chosen.json else "") + show(status))
            sys.stdout.flush()
            if status.phase == "finished":
                break
            time.sleep(_WATCH_INTERVAL)
            status = _ask_again(connection, status)
    return 0


def _ask(connection: Connection) -> ServerStatus:
    return connecting.ask(connection, StatusQuery(), ServerStatus)


def _ask_again(connection: Connection, before: ServerStatus) -> ServerStatus:
    try:
        return _ask(connection)
    except ConnectionLost as error:
        done = f"{before.committed} of {before.num_rounds} rounds"
        raise ConnectionLost(f"the server went away after {done}: the run is over, or it failed") from error


def _as_json(status: ServerStatus) -> str:
    # JSON has no word for infinity, which a loss may become
    metrics = {name: value if math.isfinite(value) else None for name, value in status.metrics.items()}
    return json.dumps(asdict(replace(status, metrics={})) | {"metrics": metrics}) + "\n"


def _as_text(status: ServerStatus) -> str:
    rows = [_row(client) for client in sorted(status.clients, key=lambda client: natural(client.client_id))]
    shown = table([("client", "does", "round", "heard", "sent", "received"), *rows], left=(0, 1)) if rows else ["no clients"]
    return "".join(f"{harmless(line)}\n" for line in [*_heading(status), "", *shown])


def _heading(status: ServerStatus) -> list[str]:
    done = f"{status.committed} of {status.num_rounds} rounds done"
    lines = [f"{status.run_id}: {status.phase}, {done}, {span(status.elapsed)}"]
    if status.phase == "collecting":
        lines.append(f"round {status.round} has {status.accepted} of {status.target} updates")
    if status.metrics:
        lines.append("  ".join(f"{name} {metric(value)}" for name, value in headline(status.metrics).items()))
    total = status.traffic
    wire = f"{size(total.bytes_sent)} sent, {size(total.bytes_received)} received, as {status.codec}"
    tensors = f"{size(total.tensor_bytes_sent)} and {size(total.tensor_bytes_received)} before the codec"
    lines.append(f"{wire} ({tensors})")
    if status.refused:
        most = sorted(status.refused.items(), key=lambda item: (-item[1], item[0]))
        lines.append("refused: " + ", ".join(f"{reason} {number}" for reason, number in most))
    return lines


def _row(client: ClientStatus) -> tuple[str, ...]:
    progress = f" {client.step}/{client.total}" if client.status == "training" and client.total else ""
    doing = client.status.replace("_", " ") + progress
    traffic = size(client.traffic.bytes_sent), size(client.traffic.bytes_received)
    return client.client_id, doing, str(client.round or ""), f"{span(client.silent)} ago", *traffic


# --- list -------------------------------------------------------------------------------------------------------------


def _list(chosen: argparse.Namespace) -> int:
    from fedcore.registry import survey

    for shelf in _SHELVES:
        sys.stdout.write(f"{shelf}\n")
        for found in survey(shelf):
            sys.stdout.write(f"  {found.name:<14} {found.problem or found.summary}\n")
    return 0
