"""A clock that stands still until it is told to move."""

from __future__ import annotations

import threading

from fedcore.clock import Clock


class FakeClock(Clock):
    """Time for tests: it passes only when :meth:`advance` is called, and wakes whoever waited for it."""

    def __init__(self, now: float = 0.0):
        self._now = now
        self._waiting: set[threading.Condition] = set()
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the time that was set."""
        return self._now

    def wait(self, condition: threading.Condition, timeout: float | None) -> float:
        """Wait, holding ``condition``, until it is notified or :meth:`advance` moves the time."""
        if timeout is not None and timeout <= 0:
            return 0.0
        with self._lock:
            self._waiting.add(condition)
        condition.wait()
        return 0.0

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        with self._lock:
            self._now += seconds
            waiting, self._waiting = self._waiting, set()
        for condition in waiting:
            with condition:
                condition.notify_all()
