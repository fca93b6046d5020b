"""A transport that loses, cuts and repeats, on a schedule that a seed fixes."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

from fedcore.errors import ConnectionLost
from fedcore.limits import Limits
from fedcore.messages import Message
from fedcore.transport import Body, Buffer, Connection, Handler, Listener, Reply, Transport, leave


class Faulty(Transport):
    """Wraps a transport; clients that connect through it meet faults, the server does not know.

    Args:
        inner: the transport that does the work.
        drop_request: probability that a request is lost before it is sent.
        drop_reply: probability that the reply to a request that *was* handled is lost.
        duplicate: probability that a request without a body is sent twice.
        cut_after: bytes after which a body breaks off, each time with probability ``cut``.
        cut: see ``cut_after``.
        seed: of the schedule.

    Attributes:
        faults: how many faults there were.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        drop_request: float = 0.0,
        drop_reply: float = 0.0,
        duplicate: float = 0.0,
        cut_after: int = 0,
        cut: float = 0.0,
        seed: int = 0,
    ):
        self.inner, self.anywhere = inner, inner.anywhere
        self.drop_request, self.drop_reply, self.duplicate = drop_request, drop_reply, duplicate
        self.cut_after, self.cut = cut_after, cut
        self.faults = 0
        self._random = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self._lock = threading.Lock()

    def listen(self, address: str, handler: Handler, limits: Limits = Limits()) -> Listener:
        """Listen with the inner transport."""
        return self.inner.listen(address, handler, limits)

    def connect(self, address: str, limits: Limits = Limits()) -> Connection:
        """Connect with the inner transport, through the faults."""
        return _FaultyConnection(self, self.inner.connect(address, limits))

    def happens(self, probability: float) -> bool:
        """Draw whether a fault happens now."""
        with self._lock:
            hit = self._random.random() < probability
            self.faults += hit
            return hit


class _FaultyConnection(Connection):
    def __init__(self, faults: Faulty, inner: Connection):
        self._faults, self._inner = faults, inner

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        faults = self._faults
        if faults.happens(faults.drop_request):
            raise ConnectionLost("the request was lost, as planned")
        if not isinstance(body, tuple) and faults.cut and faults.happens(faults.cut):
            body = _cut(body, faults.cut_after)
        elif faults.happens(faults.duplicate):
            leave(self._inner.request(message, body, timeout).body)
        reply = self._inner.request(message, body, timeout)
        if faults.happens(faults.drop_reply):
            leave(reply.body)
            raise ConnectionLost("the reply was lost, as planned")
        if faults.cut and reply.body and faults.happens(faults.cut):
            return Reply(reply.message, _cut(reply.body, faults.cut_after))
        return reply

    def close(self) -> None:
        self._inner.close()


def _cut(body: Body, after: int) -> Iterator[Buffer]:
    left, parts = after, iter(body)
    for buffer in parts:
        view = memoryview(buffer).cast("B")
        if view.nbytes > left:
            yield view[:left]
            leave(parts)
            raise ConnectionLost("the body broke off, as planned")
        yield view
        left -= view.nbytes
