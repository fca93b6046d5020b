"""Time, as something that is handed in: real in production, moved by hand in tests."""

from __future__ import annotations

import threading
import time


class Clock:
    """The monotonic clock. Everything that waits or measures asks a clock, so that a test can hand in another."""

    def now(self) -> float:
        """Return seconds since some fixed moment; steps of the wall clock do not show."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout: float | None) -> float:
        """Wait, holding ``condition``, until it is notified or ``timeout`` seconds have passed.

        Returns:
            Seconds beyond ``timeout`` that it took: many, if the whole process stood still.
        """
        began = time.monotonic()
        condition.wait(timeout)
        return 0.0 if timeout is None else max(0.0, time.monotonic() - began - timeout)
