"""What threads are made of and meet at, for fibers of a scheduler: a clock, locks, conditions, lanes."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from fedcore.clock import Clock
from fedcore.lane import Lane, Lanes
from fedcore.testing.scheduler import Fiber, Scheduler

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class FiberClock(Clock):
    """The scheduler's time."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler

    def now(self) -> float:
        """Return the scheduler's time."""
        return self._scheduler.now

    def wait(self, condition: threading.Condition, timeout: float | None) -> float:
        """Wait, holding ``condition``, until it is notified or time has passed; never longer."""
        condition.wait(timeout)
        return 0.0


class FiberLock:
    """A lock that whoever holds it may take once more. To take it is a point where others may come first."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._holder: Fiber | None = None
        self._held, self._waiting = 0, list[Fiber]()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, sooner or later."""
        mine = self._scheduler.current
        if self._held and self._holder is mine:
            self._held += 1
            return True
        self._scheduler.pause()
        while self._held:
            if mine is None:
                raise AssertionError(f"{self._holder and self._holder.name} holds a lock while everybody waits")
            self._waiting.append(mine)
            self._scheduler.wait()
        self._holder, self._held = mine, 1
        return True

    def release(self) -> None:
        """Let others have it."""
        self._held = max(0, self._held - 1)
        if not self._held:
            waiting, self._waiting = self._waiting, []
            for fiber in waiting:
                self._scheduler.wake(fiber)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def lay_down(self) -> int:
        """Let others have it, however often it was taken; returns how often that was."""
        held, self._held = self._held, 1
        self.release()
        return held

    def take_up(self, held: int) -> None:
        """Take it as often as it was."""
        mine = self._scheduler.current
        if mine is None or not mine.dead:
            self.acquire()
        self._holder, self._held = mine, held


class FiberCondition(threading.Condition):
    """A condition that fibers wait on."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler, self._taken = scheduler, FiberLock(scheduler)
        super().__init__(self._taken)  # type: ignore[arg-type]
        self._sleepers: list[Fiber] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is notified, or ``timeout`` seconds have passed."""
        mine = self._scheduler.current
        if mine is None:
            raise AssertionError("only a fiber can wait")
        self._sleepers.append(mine)
        held = self._taken.lay_down()
        try:
            return self._scheduler.wait(timeout)
        finally:
            if mine in self._sleepers:
                self._sleepers.remove(mine)
            self._taken.take_up(held)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until something is so, or ``timeout`` seconds have passed."""
        until = None if timeout is None else self._scheduler.now + timeout
        while not (result := predicate()):
            left = None if until is None else until - self._scheduler.now
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        """Wake up some that wait."""
        woken, self._sleepers = self._sleepers[:n], self._sleepers[n:]
        for fiber in woken:
            self._scheduler.wake(fiber)

    def notify_all(self) -> None:
        """Wake up all that wait."""
        self.notify(len(self._sleepers))


class Awaited(Future[T]):
    """A future whose result a fiber can wait for."""

    def __init__(self, scheduler: Scheduler):
        super().__init__()
        self._scheduler = scheduler

    def result(self, timeout: float | None = None) -> T:
        """Return the result when it is there."""
        fiber = self._scheduler.current
        if fiber is not None and not self.done():
            self.add_done_callback(lambda _: self._scheduler.wake(fiber))
            while not self.done() and self._scheduler.wait(timeout):
                pass
        return super().result(0)


class FiberLane(Lane):
    """A lane whose thread is a fiber."""

    def __init__(self, scheduler: Scheduler, name: str, group: str):
        self._scheduler, self._closed = scheduler, False
        self._todo: deque[Callable[[], object]] = deque()
        self._fiber = scheduler.spawn(name, self._run, group)

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a job and return the future of its result."""
        future: Future[T] = Awaited(self._scheduler)
        self._put(lambda: _fulfil(future, lambda: job(*args, **kwargs)))
        return future

    def send(self, job: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a job whose end nobody waits for."""
        self._put(lambda: job(*args, **kwargs))

    def close(self, timeout: float | None = None) -> None:
        """Let the jobs that are queued finish, then end the fiber; nobody waits for that."""
        self._closed = True
        self._scheduler.wake(self._fiber)

    def _put(self, job: Callable[[], object]) -> None:
        self._todo.append(job)
        self._scheduler.wake(self._fiber)

    def _run(self) -> None:
        while self._todo or not self._closed:
            if not self._todo:
                self._scheduler.wait()
                continue
            job = self._todo.popleft()
            try:
                job()
            except Exception:
                log.exception("a job on the lane %s failed", self._fiber.name)
            del job
            self._scheduler.pause()


class _Pool(Executor):
    """A fiber for each job."""

    def __init__(self, scheduler: Scheduler, name: str, group: str):
        self._scheduler, self._name, self._group = scheduler, name, group

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Awaited(self._scheduler)
        self._scheduler.spawn(self._name, lambda: _fulfil(future, lambda: fn(*args, **kwargs)), self._group)
        return future


class FiberLanes(Lanes):
    """Makes lanes of fibers.

    Args:
        scheduler: lets them run.
        group: what they belong to.
    """

    def __init__(self, scheduler: Scheduler, group: str):
        self._scheduler, self._group = scheduler, group

    def lane(self, name: str, *, rest: float = 0.0) -> Lane:
        """Return a new lane."""
        return FiberLane(self._scheduler, name, self._group)

    def pool(self, name: str, count: int) -> Executor:
        """Return what runs each job on a fiber of its own."""
        return _Pool(self._scheduler, name, self._group)

    def condition(self) -> threading.Condition:
        """Return a condition for fibers."""
        return FiberCondition(self._scheduler)


def _fulfil(future: Future[Any], job: Callable[[], object]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except Exception as error:  # noqa: BLE001 - the future carries it to whoever asked
        future.set_exception(error)
