"""A transport of your own: client and server exchange requests through a queue, and a log of what went by is kept.

A transport moves requests, replies and the buffers of bodies; it never sees a tensor. This one lives in one process, to stay
short. `check_transport` says whether it keeps every promise.
"""

import queue
import threading
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as LateError

import torch

import fedcore
from fedcore.errors import AddressError, ConnectionLost, DeadlineExceeded
from fedcore.security import Identity
from fedcore.transport import Request


class Mailbox(fedcore.Transport):
    """Carries requests through a queue; `log` lists what went by."""

    anywhere = "mailbox"
    boxes = {}  # noqa: RUF012 - one post office for all

    def __init__(self):
        self.log = []

    def listen(self, address, handler, limits=fedcore.Limits()):
        if address in self.boxes:
            raise AddressError(f"mailbox {address!r} is taken")
        self.boxes[address] = Office(self, address, handler)
        return self.boxes[address]

    def connect(self, address, limits=fedcore.Limits()):
        return Sender(self, address)


class Office(fedcore.Listener):
    """Takes requests out of the queue and answers them."""

    def __init__(self, transport, address, handler):
        self.transport, self.name, self.handler = transport, address, handler
        self.mail, self.open = queue.SimpleQueue(), set()
        self.thread = threading.Thread(target=self.deliver, daemon=True)
        self.thread.start()

    @property
    def address(self):
        return self.name

    def deliver(self):
        while (item := self.mail.get()) is not None:
            request, reply = item
            self.transport.log.append(type(request.message).__name__)
            answer = self.handler(request)
            self.open.add(answer)
            answer.add_done_callback(lambda done, reply=reply: forward(done, reply))

    def stop(self, grace=0.0):
        if self.transport.boxes.pop(self.name, None):
            self.mail.put(None)
            self.thread.join()
            for answer in list(self.open):
                answer.cancel()


class Sender(fedcore.Connection):
    """Puts requests into the queue and waits for their answers."""

    def __init__(self, transport, address):
        self.transport, self.address, self.waiting, self.closed = transport, address, set(), False

    def request(self, message, body=(), timeout=None):
        office = None if self.closed else self.transport.boxes.get(self.address)
        if office is None:
            raise ConnectionLost(f"nobody empties mailbox {self.address!r}")
        reply = Future()
        self.waiting.add(reply)
        office.mail.put((Request(message, body, Identity("mailbox")), reply))
        try:
            return reply.result(timeout)
        except CancelledError:
            raise ConnectionLost("the mailbox was closed") from None
        except LateError:
            if reply.done():
                raise
            raise DeadlineExceeded(f"no answer within {timeout} s") from None
        finally:
            self.waiting.discard(reply)

    def close(self):
        self.closed = True
        for reply in list(self.waiting):
            reply.cancel()


def forward(done, reply):
    """Hand an answer on, unless nobody waits for it any more."""
    if done.cancelled():
        reply.cancel()
    elif reply.set_running_or_notify_cancel():
        if done.exception():
            reply.set_exception(done.exception())
        else:
            reply.set_result(done.result())


class Steps(fedcore.Client):
    """Stands for your training code."""

    def get_parameters(self):
        return {"w": torch.zeros(3)}

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 1}, 1


if __name__ == "__main__":
    fedcore.testing.check_transport(Mailbox)
    transport = Mailbox()
    _, final = fedcore.testing.run_federation(
        [Steps(), Steps()],
        strategy=fedcore.FedAvg({"w": torch.zeros(3)}, min_fit_clients=2),
        transport=transport,
    )
    print(f"{len(transport.log)} requests went by, the model is {final['w'].tolist()}")
