"""What is refused, and to whom: told, counted and noted, but not noted as often as somebody can make it happen."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from fedcore import events as ev
from fedcore.errors import (
    AccessError,
    ConfigError,
    ConnectionLost,
    FedcoreError,
    OutOfStorage,
    ProtocolError,
    RemoteError,
    SessionError,
    TooOften,
    printable,
)
from fedcore.hub import Hub
from fedcore.messages import Message, Outcome, Register, Submitted
from fedcore.pace import Pace
from fedcore.security import Identity

log = logging.getLogger(__name__)

_IN_A_ROW = 10  # refusals of a peer that are not looked at for how often they come
_LONGEST_TEXT = 150  # characters, which may be ten times as many when they are escaped
_NOT_LET_IN = (ConfigError, ProtocolError, SessionError, TooOften)
_ORDINARY = (SessionError, ConnectionLost, OutOfStorage, RemoteError)  # what happens to the best of clients
_LATE = (Outcome.STALE, Outcome.CLOSED)


class Refusals:
    """Counts refusals, and of each peer, known by its address without the port, writes one a second into the log.

    Args:
        hub: passes on the events of those who may not do what they ask for, or are not let in.
        per_minute: how often a peer is told why it may not, beyond a few times in a row.
    """

    def __init__(self, hub: Hub, per_minute: int):
        self._hub, self._lock = hub, threading.Lock()
        self._told, self._lines = Pace(per_minute / 60, _IN_A_ROW), Pace(1.0, 1)
        self._unsaid, self._counts = 0, Counter[str]()

    @property
    def counts(self) -> dict[str, int]:
        """How many there were, by reason."""
        with self._lock:
            return dict(self._counts)

    def note(self, peer: Identity, message: Message, error: FedcoreError) -> FedcoreError:
        """Note a refusal, and return the error to answer with: this one, or that such come too often."""
        now, asked = self._hub.clock.now(), type(message).__name__
        level = logging.INFO if isinstance(error, _ORDINARY) else logging.WARNING
        self._say(peer, asked, error.reason, str(error), now, level=level)
        access = isinstance(error, AccessError)
        if access or (isinstance(message, Register) and isinstance(error, _NOT_LET_IN)):
            self._hub.record(ev.AccessRefused(at=now, peer=peer.name, address=peer.address, asked=asked, reason=error.reason))
        with self._lock:
            wait = self._told.late(_host(peer), now) if access else 0.0
        return TooOften(f"too much was refused to you; you may ask again in {wait:.1f} s", retry_after=wait) if wait else error

    def note_update(self, peer: Identity, refused: Submitted) -> None:
        """Note that an update does not count."""
        level = logging.INFO if refused.outcome in _LATE else logging.WARNING
        self._say(peer, "Submit", refused.reason, refused.message, self._hub.clock.now(), level=level)

    def _say(self, peer: Identity, asked: str, reason: str, text: str, now: float, *, level: int) -> None:
        with self._lock:
            self._counts[reason] += 1
            if not log.isEnabledFor(level):
                return
            quiet = self._lines.late(_host(peer), now) > 0
            unsaid, self._unsaid = self._unsaid, self._unsaid + 1 if quiet else 0
        if not quiet:
            more = f" ({unsaid} more are not in this log)" if unsaid else ""
            who, shown = peer.name or "somebody", printable(text, _LONGEST_TEXT)
            log.log(level, "refused %s of %s at %s: %s%s", asked, who, peer.address, shown, more)


def _host(peer: Identity) -> str:
    return peer.address.rpartition(":")[0]
