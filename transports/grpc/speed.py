"""How fast a body moves: too slow is as bad as not at all, for it keeps memory and a place for as long."""

from __future__ import annotations

from fedcore.errors import DeadlineExceeded
from fedcore.limits import Limits


class Speed:
    """Judges a body by what moves while this side waits for the other one, over ``stall_timeout`` seconds of that at a time.

    Args:
        limits: the least rate.
    """

    def __init__(self, limits: Limits):
        self._least, self._window = limits.least_rate, limits.stall_timeout
        self._nbytes, self._waited = 0, 0.0

    def moved(self, nbytes: int, waited: float) -> None:
        """Take note of bytes, and of the seconds that they were waited for.

        Raises:
            DeadlineExceeded: it is too slow.
        """
        self._nbytes, self._waited = self._nbytes + nbytes, self._waited + waited
        if self._waited < self._window:
            return
        if self._nbytes < self._least * self._waited:
            raise DeadlineExceeded(
                f"{self._nbytes} bytes moved in {self._waited:.0f} s, less than Limits.least_rate, {self._least} a second",
                reason="STALLED_STREAM",
            )
        self._nbytes, self._waited = 0, 0.0
