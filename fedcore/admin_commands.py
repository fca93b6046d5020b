"""What operators and admins do about a run from the command line: stop, pause, resume and evict, and fetch its model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fedcore import connecting
from fedcore.errors import ConfigError
from fedcore.messages import Act, Command, Done
from fedcore.observers.units import harmless, size
from fedcore.values import check_client_id

__all__ = ["add_commands"]

_SHORT = 16  # characters of a digest
_MODEL_TIMEOUT = 60.0  # seconds until there must be an answer; a large model may have to be encoded first


class _Deed(NamedTuple):
    help: str
    answer: str
    says: str


_DEEDS = {
    Act.STOP: _Deed(
        "have a server end its run", "the run ends, and its clients are told",
        "End the run with the rounds it has. With a state directory, a later server goes on with it.",
    ),
    Act.PAUSE: _Deed(
        "have a server open no more rounds",
        "the run is paused: an open round goes on to its end, and the next one waits for `fedcore resume`",
        "Open no more rounds until `fedcore resume`; one that is open goes on to its end, and clients stay.",
    ),
    Act.RESUME: _Deed("have a server open rounds again", "the run goes on", "Open rounds again, after `fedcore pause`."),
    Act.EVICT: _Deed(
        "have a server send a client away", "{name} was sent away, and may register again",
        "Send a client away: its place in the round is free, and what counted of it counts.",
    ),
}  # fmt: skip


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; ``add`` makes a parser for one, by its name and its help."""
    for act, deed in _DEEDS.items():
        parser = add(act.value, help=deed.help)
        parser.description = f"{deed.says} For admins; without certificates, for whoever is on the server's machine."
        connecting.add_options(parser, bearer="an admin")
        parser.add_argument("--reason", metavar="TEXT", default="", help="why: it is told to the clients, and logged")
        if act is Act.EVICT:
            parser.add_argument("name", metavar="NAME", help="the client")
            parser.add_argument("--for-good", action="store_true", help="not let it in again while this server runs")
        parser.set_defaults(command=_do, act=act)
    _add_model(add("model", help="fetch the last model of a run"))


def _do(chosen: argparse.Namespace) -> int:
    act, name, for_good = chosen.act, getattr(chosen, "name", ""), getattr(chosen, "for_good", False)
    if act is Act.EVICT:
        check_client_id(name)
    with connecting.connect(chosen) as connection:
        connecting.ask(connection, Command(act, name, chosen.reason, for_good), Done)
    answer = "{name} was sent away, and is not let in again while this server runs" if for_good else _DEEDS[act].answer
    sys.stdout.write(f"{answer.format(name=name)}\n")
    return 0


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch the last model of a run, as a safetensors file. For operators and admins, and for clients if the server shares "
        "it (ServerConfig.share_model)."
    )
    connecting.add_options(parser, bearer="an operator, an admin or a client")
    parser.add_argument("--out", metavar="FILE", required=True, help="where to; a file that is there is replaced")
    parser.set_defaults(command=_model)


def _model(chosen: argparse.Namespace) -> int:
    out = Path(chosen.out)
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out {chosen.out} must be a file, in a folder that is there")
    with connecting.connect(chosen) as connection:
        from fedcore.codecs.safetensors import save
        from fedcore.last_model import fetch

        found, parameters = fetch(connection, _MODEL_TIMEOUT)
    save(out, parameters)
    which = f"the model of round {found.round}" if found.round else "the model that the run began with"
    digest = found.manifest.digest[:_SHORT]
    sys.stdout.write(f"{which}, digest {digest}, is in {harmless(str(out))} ({size(out.stat().st_size)})\n")
    return 0
