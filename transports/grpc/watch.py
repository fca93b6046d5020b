"""Ends a transfer in which nothing moves any more, however long the whole of it may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Watch:
    """Looks after a transfer while it is entered, on a thread of its own.

    Args:
        seconds: how long nothing may move; it may take twice as long until that is noticed.
        alive: asked then whether the transfer may go on.
        end: ends it otherwise.

    Attributes:
        ended: whether it was ended.
    """

    def __init__(self, seconds: float, alive: Callable[[], bool], end: Callable[[], object]):
        self._seconds, self._alive, self._end, self.ended = seconds, alive, end, False
        self._moved, self._over = False, threading.Event()
        self._thread = threading.Thread(target=self._look, name="fedcore-watch", daemon=True)

    def progress(self) -> None:
        """Say that something moved."""
        self._moved = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.leave()

    def leave(self) -> None:
        """Look no more: the transfer is over."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(self._seconds):
            if not self._moved and not self._alive():
                self.ended = True
                self._end()
                return
            self._moved = False
