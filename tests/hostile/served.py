"""A server for the fleet: says when it started, what became of each round with the SHA-256 of its model, and how it ended.

Settings: ``folder``, in which it has its log, and a folder ``here`` that it works in; arguments of ServerConfig (``config``)
and Limits (``limits``); ``durable``: it has a state directory; ``kit``: a folder with its certificates.
Told ``enough``, it ends the run.
"""

import logging
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "load"))

import torch
from model import CLIENTS, MODEL, sha256
from procs import say, settings, told

from fedcore import FedAvg, Grpc, Limits, Server, ServerConfig, events
from fedcore.errors import FedcoreError, RunFailed
from fedcore.security import TLS


class Hashed(FedAvg):
    """Keeps the SHA-256 of every model."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hashes = {}

    def step(self, server_round, current, aggregate):
        made = super().step(server_round, current, aggregate)
        self.hashes[server_round] = sha256(made)
        return made


def main(folder, config, limits=None, kit=None, durable=True):
    here = Path(folder, "here")
    here.mkdir(exist_ok=True)
    os.chdir(here)
    logging.basicConfig(filename=Path(folder, "log"), level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    strategy = Hashed(MODEL, min_fit_clients=5, clients_per_round=len(CLIENTS))

    def note(event):
        match event:
            case events.RunStarted():
                say(started=event.address, run=event.run_id)
            case events.RoundCommitted():
                say(committed=event.round, sha256=strategy.hashes[event.round], accepted=sorted(event.accepted))
            case events.RoundFailed():
                say(failed=event.round, why=event.reason)

    address = "127.0.0.1:0" if kit is None else "localhost:0"
    wire = Grpc() if kit is None else Grpc(tls=TLS.kit(kit))
    state = {"state_dir": "state"} if durable else {}
    settled = ServerConfig(**state, **config, limits=Limits(**(limits or {})))
    try:
        with Server(address, config=settled, strategy=strategy, transport=wire, observers=[note]) as server:
            threading.Thread(target=obey, args=(server,), daemon=True).start()
            server.wait()
        say(ended="complete")
    except RunFailed as error:
        say(ended=str(error))
    except FedcoreError as error:
        say(refused=error.reason, why=str(error))


def obey(server):
    for _ in told():
        server.hub.stop("enough")


if __name__ == "__main__":
    main(**settings())
