"""Turns: of many threads in one process so many work at a time, and the others sleep until one of those has to wait.

Threads that all want the interpreter hand it to each other whenever one lets go of it, which nearly every call into torch or
numpy does: with 64 clients in a process that is most of the work. In turns they do the same in less time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from fedcore.errors import ConfigError

T = TypeVar("T")


class Turns:
    """A number of turns; a thread has one inside the ``with`` block, except while it is :func:`away`.

    Args:
        count: how many threads may have one at a time.

    Raises:
        ConfigError: ``count`` is not positive.
    """

    def __init__(self, count: int):
        if not count > 0:
            raise ConfigError(f"at_once must be positive, not {count!r}")
        self._free = count
        self._line: deque[threading.Lock] = deque()  # of those whose turn it is next; releasing a lock hands the turn over
        self._lock = threading.Lock()

    def __enter__(self) -> Turns:
        self.take()
        _mine.turns = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _mine.turns = None
        self.give()

    def take(self) -> None:
        """Wait for a turn, behind those who came before."""
        place = _place()
        self.queue(place)
        place.acquire()

    def give(self) -> None:
        """Hand the turn to whoever is next."""
        with self._lock:
            if self._line:
                self._line.popleft().release()
            else:
                self._free += 1

    def queue(self, place: threading.Lock) -> None:
        """Release ``place`` when it is its turn."""
        with self._lock:
            if self._free:
                self._free -= 1
                place.release()
            else:
                self._line.append(place)


class _Mine(threading.local):
    turns: Turns | None = None


_mine = _Mine()


@contextmanager
def away() -> Iterator[None]:
    """Let others have this thread's turn meanwhile, if it has one."""
    turns = _mine.turns
    if turns is None:
        yield
        return
    _mine.turns = None
    turns.give()
    try:
        yield
    finally:
        turns.take()
        _mine.turns = turns


def result(future: Future[T], timeout: float | None = None) -> T:
    """Return a future's result; while this thread waits, others have its turn, and it sleeps until it has both.

    Raises:
        TimeoutError: there is none after ``timeout`` seconds.
        Exception: what the future failed with.
    """
    turns = _mine.turns
    if turns is None or future.done():
        return future.result(timeout)
    if timeout is not None:
        with away():
            return future.result(timeout)
    place = _place()
    future.add_done_callback(lambda _: turns.queue(place))
    turns.give()
    place.acquire()
    return future.result()


def _place() -> threading.Lock:
    place = threading.Lock()
    place.acquire()
    return place
