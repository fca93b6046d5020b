"""What the processes of ``fedcore demo`` do: be the server, or be one of the clients."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from fedcore.children import obey_parent
from fedcore.cli import drop_output_if_gone
from fedcore.codecs.safetensors import save
from fedcore.config import ServerConfig
from fedcore.data.digits import Digits, DigitsClient, DigitsModel, evaluate, load_digits
from fedcore.data.partition import dirichlet
from fedcore.demo import ADDRESS, GOODBYE, HISTORY, MODEL, PICTURE, QUORUM, STATE, STRUCK, Options
from fedcore.errors import FedcoreError, MissingDependency
from fedcore.events import Event, Observer, UpdateAccepted
from fedcore.history import History
from fedcore.messages import Kind
from fedcore.observers.board import Board
from fedcore.observers.console import Console
from fedcore.observers.units import natural
from fedcore.parameters import Parameters
from fedcore.server import Server
from fedcore.strategies.fedavg import FedAvg
from fedcore.worker import start_client

__all__ = ["main", "serve", "train"]

log = logging.getLogger("fedcore.demo")


def main(arguments: list[str]) -> int:
    """Play the role that :mod:`fedcore.demo` gives, and return the exit status."""
    role, options, *rest = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(1)  # the processes share few cores, and one thread adds up in one order
    try:
        if role == "server":
            serve(Options(**json.loads(options)), *rest)
        else:
            train(Options(**json.loads(options)), *rest)
    except FedcoreError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def serve(options: Options, address: str = "") -> None:
    """Run the federation, show it, and write down what it made.

    Args:
        options: what the demo was asked for.
        address: where the server listened that was killed, and whose run this one goes on with; "" for the first one.

    Raises:
        FedcoreError: it could not begin, or ended early.
    """
    console = Console(force_plain=options.plain)
    obey_parent(lambda: _leave(console))
    whole, test = load_digits(options.seed)
    _shares(whole, options)  # what cannot be shared out fails here rather than in every client
    strategy = FedAvg(
        DigitsModel(options.seed).state_dict(), lambda _, parameters: evaluate(parameters, test),
        min_fit_clients=QUORUM, clients_per_round=options.clients,
    )  # fmt: skip
    struck = options.kill_server_at_round is not None
    config = ServerConfig(
        num_rounds=options.rounds, seed=options.seed, heartbeat_interval=0.5, heartbeat_timeout=30.0 if struck else 10.0,
        start_wait=30.0, stop_grace=GOODBYE, state_dir=str(options.folder / STATE) if struck else None,
    )  # fmt: skip
    board = Board()

    def hold_still(event: Event) -> None:
        """Stop where the round has its first updates, for the parent to kill this process there."""
        number = None if address else options.kill_server_at_round
        if isinstance(event, UpdateAccepted) and event.kind is Kind.FIT and event.round == number:
            with server.hub.condition:  # no other update is counted meanwhile
                console.close()  # half a frame would stay on the terminal
                (options.folder / STRUCK).touch()
                if hasattr(signal, "SIGSTOP"):  # elsewhere the round may go on for a moment
                    os.kill(os.getpid(), signal.SIGSTOP)

    where = address or "127.0.0.1:0"
    observers: list[Observer] = [board.note, console, hold_still]
    with console, Server(where, config=config, strategy=strategy, codec=options.codec, observers=observers) as server:
        _tell_address(options, server.address)
        history, parameters = server.wait()
    _write_down(options, board, history, parameters)


def train(options: Options, number: str, address: str) -> None:
    """Take part with one share of the digits.

    Raises:
        FedcoreError: the server refused, or could not be reached any more.
    """
    obey_parent(lambda: os._exit(1))
    whole, _ = load_digits(options.seed)
    share = _shares(whole, options)[int(number) - 1]
    log.info("client-%s has %d examples, by digit: %s", number, len(share.labels), share.labels.bincount(minlength=10).tolist())
    start_client(address, DigitsClient(share), f"client-{number}", patience=120.0)


def _leave(console: Console) -> None:
    """End at once, but leave the terminal in order; the parent ends the clients."""
    console.close()
    os._exit(1)


def _shares(whole: Digits, options: Options) -> list[Digits]:
    parts = dirichlet(whole.labels, options.clients, options.alpha, seed=options.seed)
    return [whole.take(part) for part in parts]


def _tell_address(options: Options, address: str) -> None:
    part = options.folder / f"{ADDRESS}.part"
    part.write_text(address)
    part.replace(options.folder / ADDRESS)


def _write_down(options: Options, board: Board, history: History, parameters: Parameters) -> None:
    save(options.folder / MODEL, parameters)
    picture: Path | None = None
    with suppress(MissingDependency):
        title = f"Handwritten digits, {options.clients} clients, alpha {options.alpha:g}"
        picture = history.plot(options.folder / PICTURE, title)
    clients = sorted(board.clients.items(), key=lambda item: natural(item[0]))
    record = history.to_json(
        run_id=board.run_id, options=asdict(options), digest=history.rounds[-1].digest, picture=picture is not None,
        clients={name: {"examples": desk.examples, "updates": desk.updates} for name, desk in clients},
    )  # fmt: skip
    (options.folder / HISTORY).write_text(record)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    drop_output_if_gone()
    sys.exit(status)
