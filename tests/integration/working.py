"""Clients in a process of their own: working.py ADDRESS JSON. Each line that it reads is the name of one that starts.

Settings: ``floats`` is the size of the model, and ``hang`` says how many seconds a round takes to train for, by its number.
Prints "ready" and the time when it can be told names, then what the clients do: "training NAME ROUND", "told NAME ROUND
OUTCOME" and the rest of what is known of the answer as JSON, "ended NAME", and "failed NAME ERROR REASON".
"""

import json
import sys
import threading
import time
from dataclasses import asdict

import torch

from fedcore import Client, Grpc, outbox, start_client
from fedcore.errors import FedcoreError
from fedcore.testing import Recorder
from fedcore.transports.grpc import TransferPolicy

SETTINGS = {"floats": 20_000, "hang": {}, **json.loads(sys.argv[2])}
LOCK = threading.Lock()
outbox.SHARD_BYTES = 1 << 20  # so that an upload has several parts, and there are places between them


def say(*words):
    with LOCK:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()


class Moves(Client):
    """What it answers depends on its name's number and the round, and nothing else."""

    def __init__(self, name):
        self.name, self.number = name, int(name.rpartition("-")[2])

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        say("training", self.name, config["round"])
        threading.Event().wait(SETTINGS["hang"].get(str(config["round"]), 0.0))
        draw = torch.Generator().manual_seed(1000 * config["round"] + self.number)
        moved = parameters["w"] + torch.randn(SETTINGS["floats"], generator=draw)
        return {"w": moved, "n": parameters["n"] + 1}, 5 + self.number


class Loud(Recorder):
    def note(self, submit, submitted):
        super().note(submit, submitted)
        told = self.told[-1]
        say("told", told.client_id, told.round, told.outcome, json.dumps(asdict(told)))


def work(name):
    try:
        start_client(sys.argv[1], Moves(name), name, transport=Loud(Grpc(transfer=TransferPolicy(mode="stream"))), patience=60)
        say("ended", name)
    except FedcoreError as error:
        say("failed", name, type(error).__name__, error.reason)


def main():
    torch.set_num_threads(1)
    say("ready", time.time())
    for line in sys.stdin:
        threading.Thread(target=work, args=(line.strip(),)).start()


if __name__ == "__main__":
    main()
