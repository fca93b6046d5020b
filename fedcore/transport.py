"""The contract of a transport: it carries a request to a handler and its reply back, and has no word for a tensor.

A body is an iterable of bytes-like buffers, read at most once and only if somebody wants it. Its length is known from
the manifest in the message. What a transport promises about a body: the buffers arrive in order, whole and unchanged,
or reading them raises a :class:`~fedcore.errors.FedcoreError`; where one buffer ends and the next begins may change.
A body that broke off is gone on with: of a model by a :class:`~fedcore.messages.Fetch` from an offset, of an update by
sending it again, of which the receiver reads only what is :func:`behind` the bytes that it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

from fedcore.limits import Limits
from fedcore.messages import Answer, Message
from fedcore.security import Identity

Buffer: TypeAlias = bytes | bytearray | memoryview
Body: TypeAlias = Iterable[Buffer]


@dataclass(frozen=True)
class Request:
    """One message from a client, with its body and the peer that the transport verified."""

    message: Message
    body: Body = ()
    peer: Identity = field(default_factory=Identity)


@dataclass(frozen=True)
class Reply:
    """The answer to a request, with its body."""

    message: Answer
    body: Body = ()


def behind(body: Body, offset: int) -> Body:
    """Return the part of a body behind its first ``offset`` bytes.

    A body that is still to come may have a method ``behind`` of its own, which has its sender leave them out.
    """
    if offset <= 0:
        return body
    own = getattr(body, "behind", None)
    return own(offset) if own else _cut_off(body, offset)


def leave(body: object) -> None:
    """Read a body no further; what waits for its reader is told, if it is one that can be told."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _cut_off(body: Body, offset: int) -> Iterator[Buffer]:
    left = offset
    for buffer in body:
        view = memoryview(buffer).cast("B")
        if left < view.nbytes:
            yield view[left:]
        left = max(0, left - view.nbytes)


Handler: TypeAlias = Callable[[Request], "Future[Reply]"]
"""Answers a request, now or later. It must not block; a future that fails carries a FedcoreError to the caller."""


class Listener(ABC):
    """The server's end: hands every request to a handler until it is stopped."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The address clients connect to; the real port if 0 was asked for."""

    @abstractmethod
    def stop(self, grace: float = 0.0) -> None:
        """Take no new requests, give those in progress ``grace`` seconds, then cut them off. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class Connection(ABC):
    """The client's end. Any number of threads may make requests at once; a beat never waits behind a body.

    Attributes:
        takes_turns: whether :meth:`request` waits with :attr:`wait` and with nothing else; if not, the caller's turn among
            the threads of its process is given up for the whole request.
        wait: waits for a future up to a number of seconds and returns its result; the link puts in one that takes turns.
    """

    takes_turns: bool = False
    wait: Callable[[Future[Reply], float | None], Reply] = staticmethod(Future.result)

    @abstractmethod
    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        """Send one message and wait for its reply.

        Args:
            message: the request.
            body: its body, read while it is sent.
            timeout: seconds until :class:`~fedcore.errors.DeadlineExceeded`; None waits as long as the connection lives.

        Raises:
            TransportError: the network failed; ``retryable`` says whether to try again.
            FedcoreError: the very error that the handler failed with.
        """

    @abstractmethod
    def close(self) -> None:
        """Cut off what is in progress and free everything. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Transport(ABC):
    """Two ends under one name, so that they cannot drift apart.

    Attributes:
        anywhere: an address on this machine that ``listen`` turns into a free one.
    """

    anywhere: str = ""

    @abstractmethod
    def listen(self, address: str, handler: Handler, limits: Limits = Limits()) -> Listener:
        """Serve ``handler`` at ``address``.

        Args:
            address: where.
            handler: answers requests.
            limits: how long to wait for a peer, and for what.

        Raises:
            AddressError: the address is malformed, taken, or not safe to serve on.
        """

    @abstractmethod
    def connect(self, address: str, limits: Limits = Limits()) -> Connection:
        """Prepare to speak to ``address``. Nothing is sent yet: the server need not run.

        Args:
            address: where the server listens.
            limits: how long to wait for it when nothing moves.

        Raises:
            AddressError: the address is malformed, or not safe to speak to.
        """
