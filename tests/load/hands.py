"""Clients that take a task, say so, and all send their updates, or fetch the model, at the same moment: told ``go``.

Settings: ``address``, ``count``, ``floats`` of the model, ``fetch`` (the model is fetched, and nothing sent).
The clients share one update, and of what they fetch they keep nothing, so that this process stays small.
Says ``ready`` when all have a task, and ``done`` when all have ended.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from procs import say, settings, told

from fedcore import Grpc
from fedcore.link import Link
from fedcore.messages import Assigned, Pull, Register

FETCHES = 2  # of those that later send, at a time


def sender(connection, name, model, gates):
    """Register; return what takes a task, waits, and sends an update."""
    link = Link(connection, name)
    link.register()
    link.start_heartbeat()

    def run():
        with gates["fetch"]:
            task, _ = link.next_task()
        gates["ready"].wait()
        gates["go"].wait()
        outcome = link.submit(task, link.spec, model, 1, {}).outcome.value
        at = time.monotonic()
        link.stop_heartbeat()
        connection.close()
        return outcome, at

    return run


def fetcher(connection, name, _, gates):
    """Register; return what takes a task, waits, and fetches the model to its last byte."""
    session = connection.request(Register(name, accepts=("safetensors",))).message.session

    def run():
        reply = connection.request(Pull(session, 60.0))
        assert isinstance(reply.message, Assigned)
        gates["ready"].wait()
        gates["go"].wait()
        fetched, at = sum(memoryview(piece).nbytes for piece in reply.body), time.monotonic()
        connection.close()
        return ("fetched" if fetched == reply.message.manifest.total_bytes else f"{fetched} bytes"), at

    return run


def main(address, count, floats, fetch=False):
    model, wire = {"w": torch.linspace(-1, 1, floats)}, Grpc()
    gates = {
        "fetch": threading.Semaphore(FETCHES), "go": threading.Event(),
        "ready": threading.Barrier(count, action=lambda: say(ready=count)),
    }  # fmt: skip
    kind = fetcher if fetch else sender
    hands = [kind(wire.connect(address), f"hand-{number}", model, gates) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(hand) for hand in hands]
        next(told())
        began = time.monotonic()
        gates["go"].set()
        ended = [each.result() for each in running]
    say(done=[outcome for outcome, _ in ended], seconds=[round(at - began, 2) for _, at in ended])
    for _ in told():
        pass


if __name__ == "__main__":
    main(**settings())
