"""Knows who calls, and cuts off whoever is no longer believed, in the middle of a call if need be."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedcore.errors import PermissionDenied
from fedcore.messages import Act, Command
from fedcore.security import TLS, Identity, Role
from fedcore.transport import Handler, Request
from fedcore.transports.grpc import credentials

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds
_MOST_KNOWN = 1 << 16


class Guard:
    """Stands at the door of a server. Everything here runs on the event loop.

    Args:
        handler: told of clients that are no longer believed.
        tls: how callers are known; None: nobody is.
    """

    def __init__(self, handler: Handler, tls: TLS | None):
        self._handler, self._verifies = handler, tls is not None
        self._revoked = credentials.Revoked(tls.revoked if tls else None)
        self._calls: dict[str, set[asyncio.Task[Any]]] = defaultdict(set)
        self._clients: dict[str, str] = {}  # names by fingerprint, of those that called

    def identity(self, context: Any) -> Identity:
        """Return who calls."""
        if not self._verifies:
            return Identity(context.peer())
        return credentials.identity(context.peer(), context.auth_context())

    @contextmanager
    def known(self, context: Any) -> Iterator[None]:
        """Let a call go on for as long as its caller is believed.

        Raises:
            PermissionDenied: it is not.
        """
        peer, task = self.identity(context), asyncio.current_task()
        own = peer.fingerprint
        if own in self._revoked:
            raise _revoked()
        if not own or task is None:
            yield
            return
        if peer.role is Role.CLIENT and (own in self._clients or len(self._clients) < _MOST_KNOWN):
            self._clients[own] = peer.name
        self._calls[own].add(task)
        try:
            yield
        except asyncio.CancelledError:
            if own in self._revoked:
                raise _revoked() from None
            raise
        finally:
            self._calls[own].discard(task)
            if not self._calls[own]:
                del self._calls[own]

    async def watch(self) -> None:
        """Look for changes for as long as the server runs."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            if self._revoked.refresh():
                self._turn_out()

    def _turn_out(self) -> None:
        for own in [each for each in self._calls if each in self._revoked]:
            for task in self._calls[own]:
                task.cancel()
        for own in [each for each in self._clients if each in self._revoked]:
            name = self._clients.pop(own)
            log.warning("the certificate of %s was revoked", name)
            command = Command(Act.EVICT, name, "its certificate was revoked", for_good=False)
            done = self._handler(Request(command, peer=Identity("the transport", "the transport", Role.ADMIN)))
            done.add_done_callback(lambda future: future.exception())  # it may not even have registered


def _revoked() -> PermissionDenied:
    return PermissionDenied("this certificate was revoked", reason="REVOKED")
