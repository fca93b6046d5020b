"""Knows who calls, and cuts off whoever is no longer believed, in the middle of a call if need be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from fedcore.errors import PermissionDenied, Unauthenticated
from fedcore.messages import Act, Command
from fedcore.security import TLS, Identity, Role
from fedcore.tokens import Claims, Tokens, Verifier
from fedcore.transport import Handler, Request
from fedcore.transports.grpc import credentials

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds
_MOST_KNOWN = 1 << 16

Shown: TypeAlias = tuple[str | Claims, ...]
"""What a caller is known by: the fingerprint of its certificate, its token, both, or nothing."""


class Call(NamedTuple):
    """A call in progress: who makes it, and what it has shown."""

    peer: Identity
    shown: Shown


class Guard:
    """Stands at the door of a server. Everything here runs on the event loop.

    Args:
        handler: told of clients that are no longer believed.
        tls: certificates that callers are known by; None: nobody is known.
        tokens: tokens that they are known by; None: none are looked at.

    Raises:
        ConfigError: a file that says what is good cannot be used.
    """

    def __init__(self, handler: Handler, tls: TLS | None, tokens: Tokens | None = None):
        self._handler, self._verifies = handler, tls is not None
        self._revoked = credentials.Revoked(tls.revoked if tls else None)
        self._tokens = None if tokens is None else Verifier(tokens)
        self._calls: dict[asyncio.Task[Any] | None, Call] = {}
        self._clients: dict[str, Shown] = {}  # what each showed last

    @property
    def caller(self) -> Identity:
        """Who makes the call that this runs in."""
        return self._calls[asyncio.current_task()].peer

    @contextmanager
    def known(self, context: Any) -> Iterator[Identity]:
        """Let a call go on for as long as its caller is believed; gives who that is, and whether it is not (``revoked``).

        Raises:
            PermissionDenied: it no longer is.
        """
        self._refresh()
        call, task = self._look(context), asyncio.current_task()
        if bad := next(filter(self._is_revoked, call.shown), None):
            call = call._replace(peer=replace(call.peer, revoked=_kind(bad)))
        elif call.peer.role is Role.CLIENT and (call.peer.name in self._clients or len(self._clients) < _MOST_KNOWN):
            self._clients[call.peer.name] = call.shown
        self._calls[task] = call
        try:
            yield call.peer
        except asyncio.CancelledError:
            self._check(call)
            raise
        finally:
            del self._calls[task]

    async def watch(self) -> None:
        """Look for changes for as long as the server runs."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self._refresh()

    def _look(self, context: Any) -> Call:
        address = context.peer()
        if not self._verifies:
            return Call(Identity(address), ())
        peer = credentials.identity(address, context.auth_context())
        shown: Shown = (peer.fingerprint,) if peer.fingerprint else ()
        if self._tokens is None:
            return Call(peer, shown)
        try:
            token = credentials.bearer(context.invocation_metadata())
            if token is None:
                return Call(peer, shown)
            claims = self._tokens.verify(token)
            if peer.role is not Role.ANONYMOUS and (peer.role, peer.name) != (claims.role, claims.name):
                raise Unauthenticated("this token is another's than the certificate of the connection")
        except Unauthenticated as error:
            return Call(replace(peer, name="", role=Role.ANONYMOUS, problem=str(error)), shown)
        return Call(replace(peer, name=claims.name, role=claims.role), (*shown, claims))

    def _check(self, call: Call) -> None:
        for each in call.shown:
            if self._is_revoked(each):
                raise PermissionDenied(f"this {_kind(each)} was revoked", reason="REVOKED")

    def _is_revoked(self, shown: str | Claims) -> bool:
        if isinstance(shown, Claims):
            return self._tokens is not None and self._tokens.is_revoked(shown)
        return shown in self._revoked

    def _refresh(self) -> None:
        changed = [each.refresh() for each in (self._revoked, self._tokens) if each is not None]
        if any(changed):
            self._turn_out()

    def _turn_out(self) -> None:
        """End what those are doing who are no longer believed."""
        for task, call in self._calls.items():
            if task is not None and any(map(self._is_revoked, call.shown)):
                task.cancel()
        for name, shown in list(self._clients.items()):
            if bad := next(filter(self._is_revoked, shown), None):
                del self._clients[name]
                log.warning("the %s of %s was revoked", _kind(bad), name)
                command = Command(Act.EVICT, name, f"its {_kind(bad)} was revoked", for_good=False)
                done = self._handler(Request(command, peer=Identity("the transport", "the transport", Role.ADMIN)))
                done.add_done_callback(lambda future: future.exception())  # it may not even have registered


def _kind(shown: str | Claims) -> str:
    return "token" if isinstance(shown, Claims) else "certificate"
