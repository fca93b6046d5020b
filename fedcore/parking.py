"""Pulls that wait for work: each is a future, not a thread, and nobody polls."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count

from fedcore.coordinator import Coordinator
from fedcore.errors import FedcoreError
from fedcore.messages import Session, Wait
from fedcore.transport import Reply


@dataclass(eq=False)
class Parked:
    """A pull that waits for work."""

    session: Session
    until: float
    future: Future[Reply]


class Parking:
    """The pulls that wait, one a client; that the time of one is up costs no look at the others."""

    def __init__(self) -> None:
        self._places: dict[str, Parked] = {}
        self._ends: list[tuple[float, int, Parked]] = []  # a heap, in which some may have left their places
        self._numbers = count()

    def park(self, parked: Parked) -> Parked | None:
        """Let a pull wait; returns an older one of the same client, which it takes the place of."""
        older = self._places.pop(parked.session.client_id, None)
        self._places[parked.session.client_id] = parked
        heappush(self._ends, (parked.until, next(self._numbers), parked))
        return older

    @property
    def next_end(self) -> float:
        """When the first of them has waited long enough; infinite if none waits."""
        if len(self._ends) > 2 * len(self._places) + 16:
            self._ends = [each for each in self._ends if self._waits(each[2])]
            heapify(self._ends)
        while self._ends and not self._waits(self._ends[0][2]):
            heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def settle(self, machine: Coordinator, now: float, *, everybody: bool) -> list[tuple[object, Future[Reply]]]:
        """Let go of those that have something to hear, and of those whose time is up; returns what each is given.

        Args:
            machine: knows what there is to do.
            now: the time.
            everybody: look at all of them, not only at those whose time is up.
        """
        over: list[Parked] = []
        while self.next_end <= now:
            over.append(heappop(self._ends)[2])
        given: list[tuple[object, Future[Reply]]] = []
        for parked in list(self._places.values()) if everybody else over:
            try:
                found: object = machine.pull(parked.session, now)
            except FedcoreError as error:
                found = error
            if not isinstance(found, Wait) or now >= parked.until:
                del self._places[parked.session.client_id]
                given.append((found, parked.future))
        return given

    def clear(self) -> list[Future[Reply]]:
        """Let go of all, and return them unanswered."""
        places, self._places = self._places, {}
        return [parked.future for parked in places.values()]

    def _waits(self, parked: Parked) -> bool:
        return self._places.get(parked.session.client_id) is parked
