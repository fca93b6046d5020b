"""Threads that run one at a time, in an order that a seed fixes, on a clock that moves only when all of them wait.

What runs on it is ordinary code that blocks. It gives others a chance wherever threads meet: when it takes a lock, or waits for
a condition, a future, or time to pass. Between two such points nothing else happens, so that the same seed makes the same
things happen in the same order.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf, nextafter

from fedcore.testing.journal import Crashed

log = logging.getLogger(__name__)

_ENDLESS = 1000  # stretches of each fiber in which no time passes


class Fiber:
    """Work that the scheduler lets run, for a stretch at a time.

    Attributes:
        name: what it is called.
        group: what it belongs to, and crashes with.
        dead: whether it must end.
    """

    def __init__(self, name: str, group: str, work: Callable[[], object]):
        self.name, self.group, self.work = name, group, work
        self.dead, self.woken, self.ticket = False, False, 0
        self.waits = False
        self.carrier: _Carrier | None = None


class Scheduler:
    """Decides which of its fibers goes on next. The thread that calls :meth:`step` is none of them.

    Args:
        seed: of the order.

    Attributes:
        random: draws who is next.
        now: the time, in seconds.
        current: the fiber that runs, or None.
        crashed: called with the name of a group that has crashed.
    """

    def __init__(self, seed: int | str = 0):
        self.random = random.Random(seed)  # noqa: S311 - an order, no secret
        self.now = 0.0
        self.current: Fiber | None = None
        self.crashed: Callable[[str], object] = str
        self._ready: list[Fiber] = []
        self._alive: dict[Fiber, None] = {}
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers, self._crashing = count(), list[str]()
        self._back, self._round = _shut(), 0  # stretches since time passed
        self._idle: list[_Carrier] = []
        self._carriers: list[_Carrier] = []

    # --- what fibers call ---

    def spawn(self, name: str, work: Callable[[], object], group: str = "") -> Fiber:
        """Let a new fiber take part."""
        fiber = Fiber(name, group, work)
        self._alive[fiber] = None
        self._ready.append(fiber)
        return fiber

    def pause(self) -> None:
        """Let others go on first, perhaps."""
        fiber = self._running()
        if fiber is not None and self._ready:
            self._ready.append(fiber)
            self._give_way(fiber)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until :meth:`wake` is called or time has passed; returns whether it was the former.

        Raises:
            AssertionError: no fiber runs.
        """
        fiber = self._running()
        if fiber is None:
            raise AssertionError("only a fiber can wait")
        fiber.ticket, fiber.woken, fiber.waits = fiber.ticket + 1, False, True
        if timeout is not None:
            ticket = fiber.ticket
            later = nextafter(self.now, inf) if timeout > 0 else self.now  # time passes, however little
            self.at(max(self.now + timeout, later), lambda: self._ring(fiber, ticket))
        self._give_way(fiber)
        return fiber.woken

    def wake(self, fiber: Fiber) -> None:
        """Let a fiber go on that waits."""
        if fiber.waits:
            fiber.waits, fiber.woken = False, True
            self._ready.append(fiber)

    def at(self, when: float, act: Callable[[], object]) -> None:
        """Do something at a time, between two stretches of fibers."""
        heappush(self._due, (when, next(self._numbers), act))

    def crash(self, group: str) -> None:
        """End a group as suddenly as a process ends that is killed. A fiber of it that calls this goes no further.

        Raises:
            Crashed: in such a fiber.
        """
        if group not in self._crashing:
            self._crashing.append(group)
        for fiber in self.fibers(group):
            fiber.dead = True
        if self.current is None:
            self._bury()
        elif self.current.group == group:
            raise Crashed(group)

    # --- what whoever watches calls ---

    def step(self) -> bool:
        """Let one fiber run for a stretch; time passes if none can. Returns whether anything was left to happen.

        Raises:
            AssertionError: fibers wait for one another without end, and no time passes.
        """
        if not self._ready and self._due:
            self._round = self._round if self._due[0][0] <= self.now else 0
            self.now = max(self.now, self._due[0][0])
        before = len(self._due)
        while self._due and self._due[0][0] <= self.now:
            heappop(self._due)[2]()
            self._bury()
        if not self._ready:
            return before > 0
        fiber = self._ready.pop(self.random.randrange(len(self._ready)))
        self._round += 1
        if self._round > _ENDLESS * len(self._alive):
            raise AssertionError(f"{fiber.name} goes round in circles: no time passes any more")
        self._let(fiber)
        self._bury()
        return True

    def settle(self) -> None:
        """Let fibers run until all of them wait; no time passes."""
        while self._ready or (self._due and self._due[0][0] <= self.now):
            self.step()

    def advance(self, seconds: float) -> None:
        """Let time pass, and happen what is due meanwhile."""
        until = self.now + seconds
        self.settle()
        while self._due and self._due[0][0] <= until:
            self.step()
            self.settle()
        self.now = until

    def fibers(self, group: str) -> list[Fiber]:
        """Return the fibers of a group that have not ended."""
        return [fiber for fiber in self._alive if fiber.group == group]

    def close(self) -> None:
        """End all fibers, and the threads that carried them."""
        for fiber in list(self._alive):
            self._end(fiber)
        for carrier in self._carriers:
            carrier.leave()

    # --- inside ---

    def _running(self) -> Fiber | None:
        if self.current is not None and self.current.dead:
            raise Crashed(self.current.group)
        return self.current

    def _ring(self, fiber: Fiber, ticket: int) -> None:
        if fiber.waits and fiber.ticket == ticket:
            fiber.waits = False
            self._ready.append(fiber)

    def _bury(self) -> None:
        while self._crashing:
            group = self._crashing[0]
            for fiber in self.fibers(group):
                self._end(fiber)
            self._crashing.remove(group)
            self.crashed(group)

    def _end(self, fiber: Fiber) -> None:
        fiber.dead, fiber.waits = True, False
        if fiber in self._ready:
            self._ready.remove(fiber)
        while fiber in self._alive:
            self._let(fiber)

    def _let(self, fiber: Fiber) -> None:
        if fiber.carrier is None:
            if not self._idle:
                self._idle.append(_Carrier(self))
                self._carriers.append(self._idle[-1])
            fiber.carrier = self._idle.pop()
            fiber.carrier.fiber = fiber
        self.current = fiber
        fiber.carrier.go.release()
        self._back.acquire()
        self.current = None

    def _give_way(self, fiber: Fiber) -> None:
        if fiber.carrier is None:
            raise AssertionError("a fiber that runs has a thread")
        self._back.release()
        fiber.carrier.go.acquire()
        self._running()

    def done(self, carrier: _Carrier, fiber: Fiber) -> None:
        """Take back the thread of a fiber that has ended."""
        del self._alive[fiber]
        fiber.carrier = None
        self._idle.append(carrier)
        self._back.release()


class _Carrier:
    """A thread that fibers run on, one after the other."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler, self.go = scheduler, _shut()
        self.fiber: Fiber | None = None
        self._thread = threading.Thread(target=self._carry, name="fedcore-fiber", daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        while True:
            self.go.acquire()
            fiber = self.fiber
            if fiber is None:
                return
            try:
                if not fiber.dead:
                    fiber.work()
            except Crashed:
                pass
            except Exception:
                log.exception("%s failed", fiber.name)
            self.fiber = None
            self._scheduler.done(self, fiber)

    def leave(self) -> None:
        """End the thread."""
        self.fiber = None
        self.go.release()
        self._thread.join()


def _shut() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
