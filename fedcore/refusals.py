"""What is refused, and to whom: told and noted, but not as often as somebody can make it happen."""

from __future__ import annotations

import logging
import threading

from fedcore import events as ev
from fedcore.errors import AccessError, FedcoreError, TooOften
from fedcore.hub import Hub
from fedcore.messages import Message
from fedcore.pace import Pace
from fedcore.security import Identity

log = logging.getLogger(__name__)

_IN_A_ROW = 10  # refusals of a peer that are not looked at for how often they come


class Refusals:
    """Notes refusals: each as an event, and of each peer, known by its address without the port, one a second in the log.

    Args:
        hub: passes the events on.
        per_minute: how often a peer is told why it may not do what it asks for, beyond a few times in a row.
    """

    def __init__(self, hub: Hub, per_minute: int):
        self._hub, self._lock = hub, threading.Lock()
        self._told, self._lines = Pace(per_minute / 60, _IN_A_ROW), Pace(1.0, 1)
        self._unsaid = 0

    def note(self, peer: Identity, message: Message, error: FedcoreError) -> FedcoreError:
        """Note a refusal, and return the error to answer with: this one, or that such come too often."""
        now, asked, host = self._hub.clock.now(), type(message).__name__, peer.address.rpartition(":")[0]
        with self._lock:
            wait = self._told.late(host, now) if isinstance(error, AccessError) else 0.0
            quiet = self._lines.late(host, now) > 0
            unsaid, self._unsaid = self._unsaid, self._unsaid + 1 if quiet else 0
        if not quiet:
            more = f" ({unsaid} more are not in this log)" if unsaid else ""
            log.warning("refused %s of %s at %s: %s%s", asked, peer.name or "somebody", peer.address, error, more)
        self._hub.record(ev.AccessRefused(at=now, peer=peer.name, address=peer.address, asked=asked, reason=error.reason))
        if not wait:
            return error
        return TooOften(f"too much was refused to you; you may ask again in {wait:.1f} s", retry_after=wait)
