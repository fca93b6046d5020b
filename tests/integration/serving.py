"""A server in a process of its own: serving.py FOLDER ADDRESS JSON; prints what happens, and at the end the digest."""

import json
import sys

import torch

from fedcore import ServerConfig, digest, events, start_server
from fedcore.registry import find

MODEL = {"w": torch.zeros(20_000), "n": torch.tensor(0)}


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def note(event):
    match event:
        case events.RunStarted():
            say("started", event.run_id, event.address)
        case events.RoundOpened():
            say("opened", event.round)
        case events.UpdateAccepted():
            say("accepted", event.round, event.client_id)
        case events.RoundCommitted():
            say("committed", event.round, event.digest)
        case events.ClientLost():
            say("lost", event.client_id)
        case events.RunPaused():
            say("paused", event.reason or "no more")


def main(folder, address, settings):
    torch.set_num_threads(1)
    given = json.loads(settings)
    kind, more = given.pop("strategy", ["fedavg", {}])
    strategy = find("strategies", kind)(
        MODEL, lambda number, _: (float(number), {}), min_fit_clients=3, clients_per_round=3, **more
    )
    wanted = {"num_rounds": 4, "heartbeat_interval": 0.2, "heartbeat_timeout": 20.0, "stop_grace": 2.0, **given}
    config = ServerConfig(state_dir=folder, **wanted)
    history, final = start_server(address, config, strategy, observers=[note])
    say("digest", digest(final), len(history.rounds), *(f"{record.metrics.get('loss')}" for record in history.rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
