"""Memory: client and server in one process, for unit tests and simulation.

Address form: any string; one listener each.

Options: ``by_reference`` hands tensors over as objects, without encoding or copying downloads (uploads are copied on
arrival). Off by default, so that a test meets the codec that production uses.

Guarantees: the handler runs on the caller's thread; nothing is reordered, lost or duplicated.

Limits: one process.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout

from fedcore.errors import AddressError, ConnectionLost, DeadlineExceeded
from fedcore.limits import Limits
from fedcore.messages import Message
from fedcore.security import Identity
from fedcore.transport import Body, Connection, Handler, Listener, Reply, Request, Transport

__all__ = ["Memory"]

_listeners: dict[str, _Listener] = {}
_lock = threading.Lock()
_numbers = itertools.count(1)


class Memory(Transport):
    """Connects clients and a server of one process.

    Args:
        by_reference: hand tensors over as objects. Clients must not change the tensors they are given.
    """

    def __init__(self, *, by_reference: bool = False):
        self.by_reference = by_reference

    def listen(self, address: str, handler: Handler, limits: Limits = Limits()) -> Listener:
        """Serve at any name; an empty one is replaced by a free one."""
        with _lock:
            name = address or f"memory-{next(_numbers)}"
            if name in _listeners:
                raise AddressError(f"something listens at {name!r} already")
            _listeners[name] = _Listener(name, handler)
            return _listeners[name]

    def connect(self, address: str, limits: Limits = Limits()) -> Connection:
        """Prepare to speak to the listener at ``address``."""
        if not address:
            raise AddressError("the address is empty")
        return _Connection(address, Identity(address=f"memory:{address}", by_reference=self.by_reference))

    def __repr__(self) -> str:
        return f"Memory(by_reference={self.by_reference})"


class _Listener(Listener):
    def __init__(self, address: str, handler: Handler):
        self._address, self._handler = address, handler
        self._open: set[Future[Reply]] = set()

    @property
    def address(self) -> str:
        return self._address

    def serve(self, request: Request) -> Future[Reply]:
        future = self._handler(request)
        if not future.done():
            self._open.add(future)
            future.add_done_callback(self._open.discard)
        return future

    def stop(self, grace: float = 0.0) -> None:
        with _lock:
            if _listeners.get(self._address) is self:
                del _listeners[self._address]
        wait(list(self._open), timeout=grace)
        for future in list(self._open):
            future.cancel()



class _Connection(Connection):
    takes_turns = True  # the handler runs on the caller's thread: only the waiting is spent away

    def __init__(self, address: str, peer: Identity):
        self._address, self._peer = address, peer
        self._open: set[Future[Reply]] = set()
        self._closed = False

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        listener = None if self._closed else _listeners.get(self._address)
        if listener is None:
            raise ConnectionLost(f"nothing listens at {self._address!r}" if not self._closed else "the connection is closed")
        future = listener.serve(Request(message, body, self._peer))
        self._open.add(future)
        try:
            return self.wait(future, timeout)
        except FutureTimeout as error:
            if future.done():  # the handler's own DeadlineExceeded is a TimeoutError, too
                raise
            future.cancel()
            raise DeadlineExceeded(f"{self._address!r} did not answer within {timeout} s") from error
        except CancelledError as error:
            raise ConnectionLost(f"{self._address!r} went away") from error
        finally:
            self._open.discard(future)

    def close(self) -> None:
        self._closed = True
        for future in list(self._open):
            future.cancel()
