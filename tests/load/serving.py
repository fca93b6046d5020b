"""A server: says when it started, whom it lost, what became of each round, and at last the digest of the model.

Settings: ``floats`` of the model, and arguments of FedAvg (``strategy``), ServerConfig (``config``), Limits (``limits``) and
Grpc (``grpc``); ``address``.
"""

import threading

import torch
from procs import say, settings, told

from fedcore import FedAvg, Grpc, Limits, ServerConfig, digest, events, start_server


def note(event):
    match event:
        case events.RunStarted():
            say(started=event.address, run=event.run_id)
        case events.RoundOpened():
            say(opened=event.round)
        case events.RoundCommitted():
            say(committed=event.round, seconds=event.seconds, accepted=sorted(event.accepted))
        case events.RoundFailed():
            say(failed=event.round, why=event.reason)
        case events.ClientLost():
            say(lost=event.client_id)


def obey():
    for _ in told():  # no words are for a server, but it must not outlive the test
        pass


def main(floats=1000, address="127.0.0.1:0", strategy=None, config=None, limits=None, grpc=None):
    threading.Thread(target=obey, daemon=True).start()
    torch.set_num_threads(1)
    model = FedAvg({"w": torch.zeros(floats)}, **(strategy or {}))
    wire = Grpc(**(grpc or {}))
    wanted = ServerConfig(limits=Limits(**(limits or {})), **(config or {}))
    _, final = start_server(address, wanted, model, transport=wire, observers=[note])
    say(digest=digest(final))


if __name__ == "__main__":
    main(**settings())
