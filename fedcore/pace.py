"""How often somebody may come: the one bucket of all rates."""

from __future__ import annotations

_REMEMBERED = 16_384  # names of which it is known how often they came


class Pace:
    """Lets each name pass a number of times in a row, and from then on at a steady rate.

    Args:
        rate: times a second.
        row: times in a row.
    """

    def __init__(self, rate: float, row: int):
        self._step, self._reach = 1 / rate, row / rate
        self._rested: dict[str, float] = {}  # when a name may pass a whole row again; the last to pass is last

    def __len__(self) -> int:
        return len(self._rested)

    def late(self, name: str, now: float) -> float:
        """Return in how many seconds a name may pass: 0.0 if it does now."""
        before = self._rested.pop(name, now)
        rested = max(before, now) + self._step
        wait = max(0.0, round(rested - self._reach - now, 6))  # sums of steps are not exact
        self._rested[name] = before if wait else rested
        while len(self._rested) > _REMEMBERED or next(iter(self._rested.values())) <= now:
            del self._rested[next(iter(self._rested))]
        return wait
