"""Whether a server can be reached, as all threads of a client know it together; and when each tries again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from fedcore import turns
from fedcore.clock import Clock


class Contact:
    """What a client's threads know of the server.

    Args:
        clock: the time.
        jitter: spreads what many clients do at the same moment.
        condition: returns what the threads wait on.
        ended: whether nobody need wait any longer.

    Attributes:
        lost: whether the last attempt to reach the server failed.
        spread: seconds over which all clients together spread their attempts to come back, as the server told.
    """

    def __init__(
        self, clock: Clock, jitter: random.Random, condition: Callable[[], threading.Condition], ended: Callable[[], bool]
    ):
        self.lost, self.spread = False, 0.0
        self._clock, self._jitter, self._condition, self._ended = clock, jitter, condition, ended
        self._found = 0

    def made(self) -> None:
        """Take note that the server answered: whoever pauses need not any longer."""
        if self.lost:
            with self._condition():
                self.lost, self._found = False, self._found + 1
                self._condition().notify_all()

    def pause(self, seconds: float) -> None:
        """Wait after a failure, but no longer than until the server answers somebody, or the run is over."""
        self.lost, found = True, self._found
        self._wait(seconds, lambda: self._found != found)

    def obey(self, seconds: float) -> None:
        """Wait because the server said so, but no longer than until the run is over."""
        self._wait(seconds, lambda: False)

    def _wait(self, seconds: float, enough: Callable[[], bool]) -> None:
        until = self._clock.now() + seconds
        with turns.away(), self._condition():
            while not self._ended() and not enough() and (left := until - self._clock.now()) > 0:
                self._clock.wait(self._condition(), left)

    def rest(self, interval: float, stopped: Callable[[], bool]) -> None:
        """Wait until the next heartbeat is due, holding the condition; one that has lost the server waits apart from others."""
        known = self.lost
        for seconds in (max(interval, self._apart() if known else 0.0), self._apart()):
            left, until, found = seconds, self._clock.now() + seconds, self._found - 1
            while not stopped() and left > 0 and self._found != found:  # others are woken up when the server is found
                found = self._found
                self._clock.wait(self._condition(), left)
                left = until - self._clock.now()
            if known or not self.lost:  # else it was lost meanwhile, for many at the same moment
                return

    def _apart(self) -> float:
        return self._jitter.uniform(0.5, 1.5) * self.spread
