"""Bytes that may be in use at once; who does not fit waits in line, as an entry in a list and nothing more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Budget:
    """Admits work by size, in the order it came. Whatever its size, work is admitted when nothing else is in progress.

    Args:
        limit: bytes.

    Attributes:
        used: bytes of the work in progress.
    """

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._line: deque[tuple[int, Callable[[], object]]] = deque()
        self._lock = threading.Lock()

    def enter(self, nbytes: int, start: Callable[[], object]) -> None:
        """Call ``start`` when there is room for ``nbytes`` bytes, now or from another thread's :meth:`leave`."""
        with self._lock:
            self._line.append((nbytes, start))
        self._admit()

    def leave(self, nbytes: int) -> None:
        """Give back the room of work that is done."""
        with self._lock:
            self.used -= nbytes
        self._admit()

    @property
    def waiting(self) -> int:
        """How many wait in line."""
        return len(self._line)

    def _admit(self) -> None:
        while (start := self._next()) is not None:
            start()

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            if not self._line or (self.used and self.used + self._line[0][0] > self.limit):
                return None
            nbytes, start = self._line.popleft()
            self.used += nbytes
            return start
