"""The shell around the coordinator: it owns the lock, the clock, the parked requests and the threads that do the work.

A request comes in on a transport's thread. What the coordinator can answer is answered under the lock, in microseconds:
no user code, no arithmetic and no I/O ever runs there. The rest is handed on: large bodies to the intake threads, the
strategy's mathematics to one thread (*lane*), encoding to another; small bodies, up to 1 MiB, are taken in where they arrive,
which is quicker than handing them on. A pull with nothing to do is parked as a future, not a thread,
and every turn of the machine that may have work for somebody looks through the parked ones; nobody polls.

What an update goes through: admit (lock) -> decode and check -> commit (lock) -> acknowledge; the sum is done by the
mathematics lane, in order, and the round is concluded on that same lane behind the last sum.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from secrets import token_hex
from tempfile import gettempdir

from fedcore import events as ev
from fedcore.clock import Clock
from fedcore.codec import Codec
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.cores import Cores
from fedcore.errors import ConnectionLost, FedcoreError, ProtocolError, RemoteError, TooOften
from fedcore.failpoints import reach
from fedcore.journal import Journal
from fedcore.lane import THREADS, Lanes
from fedcore.mapped import Landings
from fedcore.messages import (
    Beat,
    Fetch,
    Finished,
    Pull,
    Register,
    Submit,
    Submitted,
    Wait,
)
from fedcore.pace import Pace
from fedcore.parking import Parked, Parking
from fedcore.phase import Phase
from fedcore.pool import drain
from fedcore.reception import Reception
from fedcore.round import Assignment
from fedcore.strategy import Strategy
from fedcore.tasks import Tasks, answer, fail
from fedcore.transport import Reply, Request
from fedcore.uploads import Arrival, Uploads

log = logging.getLogger(__name__)

_EVENTS_REST = 0.005  # seconds that events may be late, so that those of many clients are passed on together

_BEATS_IN_A_ROW = 5.0  # seconds' worth of a client's heartbeats

_STANDSTILL = 1.0  # seconds that a thread is late if the whole process was stopped, or its machine overloaded


class Turn:
    """Holds the machine while it is entered."""

    def __init__(self, hub: Hub):
        self._hub = hub

    def __enter__(self) -> Coordinator:
        self._hub.condition.acquire()
        return self._hub.coordinator

    def __exit__(self, *error: object) -> None:
        try:
            due = self._hub.end_turn()
        finally:
            self._hub.condition.release()
        for act in due:
            act()


class Hub:
    """Serves one coordinator to any number of clients.

    Args:
        coordinator: the machine.
        strategy: whose hooks say what travels.
        config: intervals and limits.
        codec: what models are sent with.
        accepts: the parts of codec names that are accepted.
        clock: the time.
        observe: receives each event, in order, on a lane of its own.
        conclude: called on the lane of mathematics, behind the last sum of a round, when it has closed.
        lanes: makes the lanes.

    Attributes:
        lanes: makes the lanes.
        condition: held for each turn of the machine, notified when something happened.
        math: the lane of the strategy's mathematics.
        cores: does arithmetic on several cores, for that lane.
        landings: lends the memory for updates and sums.
        tasks: what goes down.
        uploads: what comes up.
        metrics: of the last evaluation, for the status.
        busy: whether the lane of mathematics is at work on a step of the run, and will wake whoever waits at its end.
        reception: takes clients in.
        paused: why the run cannot go on at present, or "".
        suspended: whether this process leaves the run, which a later one goes on with.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        strategy: Strategy,
        config: ServerConfig,
        *,
        codec: Codec,
        accepts: tuple[str, ...],
        clock: Clock,
        observe: Callable[[ev.Event], None],
        conclude: Callable[[], None],
        lanes: Lanes = THREADS,
    ):
        self.coordinator, self.codec, self.accepts, self.clock, self.lanes = coordinator, codec, accepts, clock, lanes
        self.landings = Landings(config.map_above, config.map_folder or gettempdir())
        self.reception = Reception(self.turn, clock, config, codec, accepts, lanes)
        self.condition = lanes.condition()
        self.math = lanes.lane("fedcore-math")
        self.cores = Cores()
        self.tasks = Tasks(
            strategy, self.math, seed=config.seed, shard_bytes=config.shard_bytes, delta=self.reception.delta, lanes=lanes,
            streams=config.limits.streams_per_client,
        )  # fmt: skip
        self.uploads = Uploads(
            self.turn, clock, self.math, accepts=accepts, config=config, base=self.tasks.broadcast.base,
            noted=self.tasks.count, lend=self.landings.lend, lanes=lanes,
        )  # fmt: skip
        self.metrics: dict[str, float] = {}
        self.busy = False
        self.paused, self.suspended = "", False
        self._observing, self._observe = lanes.lane("fedcore-events", rest=_EVENTS_REST), observe
        rate = config.limits.beats_per_second
        self._beats = Pace(rate, int(_BEATS_IN_A_ROW * rate))
        self._parking = Parking()
        self._due: list[Callable[[], object]] = []
        self._seen, self._usual_wait = 0, math.inf
        self._turn = Turn(self)
        self._agreed, self._phase, self._conclude = self._agenda(), coordinator.phase, conclude
        self._alarm = math.inf  # when whoever sleeps wakes up by itself

    # --- the machine ---

    def turn(self) -> Turn:
        """Hold the machine for one turn; afterwards parked clients that got work are answered and events are passed on."""
        return self._turn

    def end_turn(self) -> list[Callable[[], object]]:
        """Do what belongs to the end of a turn, and return what is to be done behind it, without the lock."""
        changed, agenda, phase = self._settle(), self._agenda(), self.coordinator.phase
        if phase is Phase.AGGREGATING and self._phase is not phase:
            reach("quorum.reached")
            self.math.send(self._conclude)
        self._phase = phase
        due, self._due = self._due, []
        happened, self.coordinator.events = self.coordinator.events, []
        if happened:
            self._observing.send(self._tell, happened)
        if (changed or agenda != self._agreed) and (self.over or not self.busy):
            self._agreed = agenda
            self.condition.notify_all()
        return due

    def _agenda(self) -> tuple[object, ...]:
        """Return what must change before whoever waits on the condition has something new to look at.

        Most turns change none of it, and with many clients waking somebody for each would be most of the work. That a round
        has closed is no news to them either: the lane of mathematics is told.
        """
        machine = self.coordinator
        rounds = machine.rounds
        asking = rounds.first_model is not None and rounds.first_model.open
        between = machine.phase in (Phase.WAITING, Phase.FINISHED)
        return between, machine.round, machine.changes, machine.roster.stirs, asking, rounds.evaluation is None

    def sleep(self, *until: float | None) -> None:
        """Wait on the condition until something happens, the machine or a parked request is due, or a moment has come."""
        now, unfinished = self.clock.now(), self.uploads.unfinished
        unfinished.forget(now)
        due = [*until, self.coordinator.next_deadline(now), now + self._usual_wait]  # so that the next to park wakes nobody
        due += [self._parking.next_end, *unfinished.ends()]
        self._alarm = min(when for when in due if when is not None)
        late = self.clock.wait(self.condition, None if self._alarm == math.inf else max(0.0, self._alarm - now))
        if late > _STANDSTILL:  # nobody could be heard meanwhile
            log.warning("this process stood still for %.0f s; leases begin anew, and open rounds last longer", late)
            self.coordinator.excuse(late, self.clock.now())

    def wake(self) -> None:
        """Make whoever waits on the condition look again."""
        with self.condition:
            self.condition.notify_all()

    def stop(self, reason: str) -> None:
        """End the run, unless it has ended: every parked client hears of it."""
        with self.turn() as coordinator:
            coordinator.finish(reason, self.clock.now())

    def suspend(self) -> None:
        """Leave the run as it stands, for a later process: clients are sent away to wait for that one."""
        with self.condition:
            if not self.suspended:
                self.record(ev.ServerLeft(at=self.clock.now()))
            self.suspended = True
            waiting = self._parking.clear()
            self.condition.notify_all()
        for future in waiting:
            fail(future, _leaving())

    def pause(self, why: str) -> None:
        """Say that the run cannot go on at present; "": that it can again."""
        with self.condition:
            before, self.paused = self.paused, why
        if why != before:
            log.log(logging.ERROR if why else logging.INFO, "the run is paused: %s" if why else "the run goes on%s", why)
            self.record(ev.RunPaused(at=self.clock.now(), reason=why))

    def keep(self, journal: Journal) -> None:
        """Have everything noted in this journal from now on."""
        self.uploads.journal = self.reception.journal = journal

    def flush_events(self) -> None:
        """Wait until the observers have received everything that happened so far."""
        self._observing.submit(lambda: None).result()

    def close(self) -> None:
        """End all threads."""
        self.uploads.close()
        self.math.close(timeout=5.0)
        self.reception.noting.close(timeout=5.0)
        self.cores.close()
        drain()
        self.tasks.broadcast.close()
        self._observing.close(timeout=5.0)

    def record(self, event: ev.Event) -> None:
        """Pass an event on to the observers that did not come from the coordinator."""
        self._observing.send(self._tell, [event])

    def wait_for_round_to_complete(self, number: int | None = None, timeout: float | None = None) -> bool:
        """Block until a round has ended, committed or failed; returns whether it has within ``timeout`` seconds.

        Args:
            number: of the round; None: the one that is open, or next.
            timeout: how long to wait.
        """
        with self.condition:
            awaited = self.coordinator.round if number is None else number
            return self.condition.wait_for(lambda: self.coordinator.round > awaited or self.finished, timeout)

    def is_client_alive(self, client_id: str) -> bool:
        """Return whether a client is registered and was heard within its lease."""
        with self.turn() as coordinator:
            coordinator.tick(self.clock.now())
            return client_id in coordinator.roster.members

    # --- requests ---

    def handle(self, request: Request) -> Future[Reply]:
        """Answer a request, now or later; the future carries a FedcoreError if it is refused."""
        future: Future[Reply] = Future()
        try:
            self._dispatch(request, future)
        except FedcoreError as error:
            fail(future, error)
        except Exception:  # noqa: BLE001 - logged, and answered with an error that names the log entry
            self._fail_unexpected(future, "a request")
        return future

    def _dispatch(self, request: Request, future: Future[Reply]) -> None:
        message = request.message
        if self.suspended:
            raise _leaving()
        if isinstance(message, Pull):
            self._pull(message, future)
        elif isinstance(message, Submit):
            self._submit(request, message, future)
        elif isinstance(message, Fetch):
            self._fetch(message, future)
        elif isinstance(message, Beat):
            self._beat(message, future)
        elif isinstance(message, Register):
            self.reception.register(request, message, future)
        else:
            raise ProtocolError(f"no such request: {type(message).__name__}")

    def _beat(self, message: Beat, future: Future[Reply]) -> None:
        session, now = message.session, self.clock.now()
        with self.condition:  # this is no turn of the machine: who beats too often must cost next to nothing
            member = self.coordinator.roster.members.get(session.client_id)
            known = member is not None and member.token == session.token
            wait = self._beats.late(session.client_id, now) if known else 0.0
        if wait:
            raise TooOften(f"client {session.client_id!r} beats too often; it may again in {wait:.1f} s", retry_after=wait)
        with self.turn() as coordinator:
            reply = coordinator.heartbeat(message, now)
            population = len(coordinator.roster.members)
        interval, spread = self.reception.interval(population), self.reception.spread(population)
        answer(future, Reply(replace(reply, heartbeat_interval=interval, spread=spread)))

    # --- tasks ---

    def _pull(self, message: Pull, future: Future[Reply]) -> None:
        now = self.clock.now()
        with self.turn() as coordinator:
            given = coordinator.pull(message.session, now)
            self.reception.routes[message.session.client_id].holds = message.holds
            if isinstance(given, Wait) and message.wait > 0:
                self._park(Parked(message.session, now + message.wait, future))
            else:
                self._due.append(partial(self._give, given, future))

    def _fetch(self, message: Fetch, future: Future[Reply]) -> None:
        with self.turn() as coordinator:
            assignment = coordinator.task_of(message.session, message.task_id, self.clock.now())
        self.tasks.brief(assignment, self.reception.routes[assignment.client_id], future, message)

    def _park(self, parked: Parked) -> None:
        if older := self._parking.park(parked):
            self._due.append(partial(answer, older.future, Reply(Wait(self.coordinator.round))))
        if parked.until < self._alarm:
            self._usual_wait = parked.until - self.clock.now()
            self.condition.notify_all()

    def _settle(self) -> bool:
        """Look through the parked pulls: all of them if something changed, else those whose time is up."""
        changed = self.coordinator.changes != self._seen
        self._seen = self.coordinator.changes
        for given, future in self._parking.settle(self.coordinator, self.clock.now(), everybody=changed):
            self._due.append(partial(self._give, given, future))
        return changed

    def _give(self, given: object, future: Future[Reply]) -> None:
        if isinstance(given, FedcoreError):
            fail(future, given)
        elif isinstance(given, Assignment):
            self.tasks.brief(given, self.reception.routes[given.client_id], future)
        elif isinstance(given, Wait | Finished):
            answer(future, Reply(given))

    # --- updates ---

    def _submit(self, request: Request, header: Submit, future: Future[Reply]) -> None:
        with self.turn() as coordinator:
            ticket = coordinator.admit(header, self.clock.now())
        if isinstance(ticket, Submitted):
            return answer(future, Reply(ticket))
        work = self.tasks.works.get((ticket.assignment.kind, ticket.assignment.round))
        if work is None:
            raise ConnectionLost("the round is just being concluded: try again")
        route = self.reception.routes[ticket.assignment.client_id]
        return self.uploads.take(Arrival(ticket, work, route, request, header, future))

    # --- inside ---

    def _tell(self, happened: list[ev.Event]) -> None:
        for event in happened:
            self._observe(event)

    def _fail_unexpected(self, future: Future[Reply], what: str) -> None:
        name = token_hex(4)
        log.exception("error %s while answering %s", name, what)
        fail(future, RemoteError(f"internal error {name}; the server's log has the details"))

    @property
    def finished(self) -> bool:
        """Whether the run is over."""
        return self.coordinator.phase is Phase.FINISHED

    @property
    def over(self) -> bool:
        """Whether it is over for this process."""
        return self.finished or self.suspended


def _leaving() -> ConnectionLost:
    return ConnectionLost("the server is leaving; another one will go on with the run")
