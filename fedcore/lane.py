"""A lane: one daemon thread that does jobs one after the other, in the order they came."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Runs jobs in order on a thread of its own. The thread is a daemon: user code that never returns cannot keep a process.

    Args:
        name: of the thread.
        rest: seconds it lets pass when it wakes up, so that it need not wake up for each of many small jobs.
    """

    def __init__(self, name: str, *, rest: float = 0.0):
        self._rest, self._closing = rest, threading.Event()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a job and return the future of its result."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - the future carries it to whoever asked
                future.set_exception(error)

        self._jobs.put(run)
        return future

    def send(self, job: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a job whose end nobody waits for. Should it raise, that is logged."""

        def run() -> None:
            try:
                job(*args, **kwargs)
            except Exception:
                log.exception("a job on the lane %s failed", self._thread.name)

        self._jobs.put(run)

    def close(self, timeout: float | None = None) -> None:
        """Let the jobs that are queued finish, then end the thread; wait for that up to ``timeout`` seconds."""
        self._jobs.put(None)
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
            del job

    def _next(self) -> Callable[[], None] | None:
        if not self._rest or not self._jobs.empty():
            return self._jobs.get()
        job = self._jobs.get()
        self._closing.wait(self._rest)
        return job


class Lanes:
    """Makes what a server works on: threads. A simulation hands in other lanes, and decides itself what goes on when."""

    def lane(self, name: str, *, rest: float = 0.0) -> Lane:
        """Return a new lane; see :class:`Lane`."""
        return Lane(name, rest=rest)

    def pool(self, name: str, count: int) -> Executor:
        """Return ``count`` threads that do jobs beside one another."""
        return ThreadPoolExecutor(count, name)

    def condition(self) -> threading.Condition:
        """Return a condition for what lanes share; whoever holds it may take it once more."""
        return threading.Condition(threading.RLock())


THREADS = Lanes()
