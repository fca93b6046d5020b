"""Pulls that wait for work: each is a future, not a thread, and nobody polls."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass

from fedcore.coordinator import Coordinator
from fedcore.errors import FedcoreError
from fedcore.messages import Session, Wait
from fedcore.transport import Reply


@dataclass
class Parked:
    """A pull that waits for work."""

    session: Session
    until: float
    future: Future[Reply]


class Parking:
    """The pulls that wait, one a client."""

    def __init__(self) -> None:
        self._places: dict[str, Parked] = {}
        self._next_due = math.inf

    def park(self, parked: Parked) -> Parked | None:
        """Let a pull wait; returns an older one of the same client, which it takes the place of."""
        older = self._places.pop(parked.session.client_id, None)
        self._places[parked.session.client_id] = parked
        self._next_due = min(self._next_due, parked.until)
        return older

    def ends(self) -> list[float]:
        """Return when each has waited long enough."""
        return [parked.until for parked in self._places.values()]

    def settle(self, machine: Coordinator, now: float, *, everybody: bool) -> list[tuple[object, Future[Reply]]]:
        """Let go of those that have something to hear, and of those whose time is up; returns what each is given.

        Args:
            machine: knows what there is to do.
            now: the time.
            everybody: look at all of them, not only at those whose time is up.
        """
        if not everybody and now < self._next_due:
            return []
        given: list[tuple[object, Future[Reply]]] = []
        for name, parked in list(self._places.items()):
            if not everybody and now < parked.until:
                continue
            try:
                found: object = machine.pull(parked.session, now)
            except FedcoreError as error:
                found = error
            if not isinstance(found, Wait) or now >= parked.until:
                del self._places[name]
                given.append((found, parked.future))
        self._next_due = min(self.ends(), default=math.inf)
        return given

    def clear(self) -> list[Future[Reply]]:
        """Let go of all, and return them unanswered."""
        places, self._places = self._places, {}
        return [parked.future for parked in places.values()]
