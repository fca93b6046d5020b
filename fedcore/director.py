"""Directs a run: begins it or takes it up again, sees what the machine needs, and brings it to its end.

A thread waits for the machine to need something and hands that to the lane of mathematics. The thread does no work itself, so
that deadlines are kept however long the arithmetic takes.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import TypeVar

from fedcore import events as ev
from fedcore.ambition import Ambition
from fedcore.clock import Clock
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.course import Course, named
from fedcore.errors import ConfigError, StateError
from fedcore.evaluation import Evaluations
from fedcore.hub import Hub
from fedcore.journal import Journal, Past
from fedcore.lane import Lane
from fedcore.ledger import Entry
from fedcore.messages import Kind
from fedcore.packing import pack
from fedcore.parameters import Parameters, Spec, digest
from fedcore.phase import Phase
from fedcore.registry import load_model
from fedcore.round import Counted
from fedcore.strategy import Strategy
from fedcore.tasks import Work

log = logging.getLogger(__name__)
T = TypeVar("T")

_EVALUATIONS_BEHIND = 2  # models that may wait for their evaluation before the next round is held back
_ELAPSE_NOTES = 50  # how often in a round it is noted how long it has lasted
_DISK_PAUSE = 1.0  # seconds until a full disk is tried again


class Director:
    """Brings a run from its first model to its end.

    Args:
        hub: the machine, and what surrounds it.
        strategy: the mathematics.
        config: how the run goes.
        clock: the time.
        evaluations: take the models that are made.

    Attributes:
        done: set when the run is over for this process.
        course: the rounds.
        ambition: what is known of the goal.
    """

    def __init__(self, hub: Hub, strategy: Strategy, config: ServerConfig, clock: Clock, evaluations: Evaluations):
        self.hub, self.ambition = hub, Ambition(config.goal)
        self.course = Course(hub, strategy, config, clock, evaluations, self.ambition)
        self.done = threading.Event()
        self._strategy, self._config, self._clock, self._evaluations = strategy, config, clock, evaluations
        self._elapse_due = math.inf
        self._ends_at = math.inf
        self._lane: Lane | None = None

    @property
    def started(self) -> bool:
        """Whether it was told to begin."""
        return self._lane is not None

    def begin(self) -> None:
        """Start directing, on a lane of its own that ends with the run."""
        self._lane = self.hub.lanes.lane("fedcore-director")
        self._lane.send(self._direct)
        self._lane.close(timeout=0)

    # --- where a run begins ---

    def prepare(self, journal: Journal) -> Past | None:
        """Take the run up again that the journal knows, and return it; or adopt the strategy's first model, if it has one.

        Raises:
            StateError: what the journal knows is damaged, or another run's.
            FedcoreError: the strategy's initial parameters cannot travel.
        """
        self.course.journal = journal
        self.hub.keep(journal)
        goal = self._config.goal
        if goal is not None and not goal.of_clients and not self._strategy.evaluates:
            raise ConfigError(f"the goal is the server's {goal.metric!r}, but the strategy evaluates nothing on the server")
        pack(self._strategy.state_dict())  # what cannot be kept is said now rather than after a round
        past = journal.restore(self._clock.now())
        initial = self._first_parameters()
        spec = None if initial is None else Spec.of(initial)
        if self._config.max_run_time is not None:
            self._ends_at = self._clock.now() + self._config.max_run_time - (past.spent if past else 0.0)
        if past is not None:
            self._resume(past, spec)
        elif initial is not None and spec is not None:
            self.course.adopt(spec.copy(initial, self.hub.landings.lend), spec)
        return past

    def _first_parameters(self) -> Parameters | None:
        own, file = self._strategy.initialize_parameters(), self._config.initial_model
        if file is None:
            return own
        loaded = load_model(file)
        if own is not None:
            Spec.of(own).check(loaded)
        return loaded

    def _resume(self, past: Past, spec: Spec | None) -> None:
        if spec is not None and spec != past.spec:
            difference = next(iter(set(spec.infos) ^ set(past.spec.infos)), None)
            raise StateError(
                f"the state directory holds {past.run_id}, whose model looks different from the strategy's (in "
                f"{difference.name if difference else 'the order of its tensors'!r}): name another state_dir"
            )
        if past.facts["seed"] != self._config.seed:
            raise ConfigError(f"{past.run_id} began with seed {past.facts['seed']}; ServerConfig.seed is {self._config.seed}")
        if past.facts["strategy"] != named(self._strategy):
            log.warning("%s began with strategy %s, and goes on with another", past.run_id, past.facts["strategy"])
        if past.memory:  # after the first model nothing is remembered yet
            self._strategy.load_state_dict(past.memory)
        self.course.take_up(past.made, past.parameters, past.spec)
        with self.hub.turn() as machine:
            machine.resume(past.run_id, number=past.number, digest=past.digest, outcomes=past.outcomes)
            machine.roster.remember(past.clients)
            if machine.progress.complete:  # who was in it to the end may not have heard of that
                for name in next((e.accepted for e in reversed(past.events) if isinstance(e, ev.RoundCommitted)), ()):
                    machine.roster.expect(name, self._clock.now())
            for number, entries in groupby(past.recent, lambda entry: entry.counted):
                machine.rounds.recall(number, map(_counted, entries), machine.policy)
        self.hub.reception.noted = dict(past.clients)
        if past.page is not None:
            self._reopen(past)
        best = self.ambition.recall(past.events, self.course.journal.model)
        if best is not None:
            self.course.journal.cherish(best)
        self._aspire()
        self.course.journal.tidy()
        for number in past.unmeasured:
            if self._strategy.evaluates:
                self.ambition.expect(number, by_server=True, by_clients=False)
                self._evaluations.server_side(number, self.course.journal.model(number))

    def _reopen(self, past: Past) -> None:
        page, now = past.page, self._clock.now()
        if page is None:
            return
        work = self.course.work(page.number, past.digest)
        for entry in past.entries:
            work.updates.append(entry.update({}, self.hub.coordinator.policy))
            self.hub.math.send(self._add_again, work, entry)
        with self.hub.turn() as machine:
            machine.reopen(page.invited, map(_counted, past.entries), page.elapsed, now, closed=page.state == "closed")

    def _add_again(self, work: Work, entry: Entry) -> None:
        """Read an update that was acknowledged before the interruption, and add it to the sums once more."""
        try:
            if work.aggregator is not None:
                parameters = self.course.journal.read(entry)
                kept = entry.update(parameters, self.hub.coordinator.policy)
                work.aggregator.add(kept)
        except Exception as error:
            log.exception("an update that was acknowledged cannot be read again")
            self.hub.stop(f"an update that was acknowledged cannot be read again: {error}")

    # --- the thread ---

    def _direct(self) -> None:
        try:
            while not self.hub.over:
                self._step()
            if not self.hub.suspended:
                self._say_goodbye()
        except Exception:
            log.exception("the director failed; the run is over")
            self.hub.stop("of an internal error; see the server's log")
        finally:
            self.done.set()

    def _step(self) -> None:
        """Hand on what the machine needs now, or wait until something happens or is due."""
        with self.hub.condition:
            with self.hub.turn() as machine:
                now = self._clock.now()
                machine.tick(now)
                self._evaluations.overdue(now)
                self._note_time(machine, now)
                if now >= self._ends_at and machine.phase in (Phase.WAITING, Phase.COLLECTING):
                    machine.finish("" if machine.progress.committed else "max_run_time was over before a round was done", now)
                needed = not self.hub.busy and self._next_job(machine, now) is not None
            if not needed:
                if not self.hub.over:
                    self._wait(min(self._elapse_due, self._ends_at))
                return
            self.hub.busy = True
        self.hub.math.send(self.look)

    def _next_job(self, machine: Coordinator, now: float) -> Callable[[], None] | None:
        asking = machine.rounds.first_model
        if machine.phase is Phase.AGGREGATING:
            return self.course.conclude
        if not machine.digest and asking is None:
            nothing = digest({}, Spec(()))
            self.hub.tasks.works[Kind.INITIALIZE, 0] = Work(Kind.INITIALIZE, 0, {}, Spec(()), nothing, None)
            machine.ask_for_model(now, nothing)
        elif not machine.digest and asking and not asking.open:
            return self.course.take_first_model
        elif machine.candidates(now) is not None and not self._waits_for_evaluation:
            return self.course.open
        return None

    @property
    def _waits_for_evaluation(self) -> bool:
        return self.ambition.waits or len(self._evaluations.pending) >= _EVALUATIONS_BEHIND

    def _note_time(self, machine: Coordinator, now: float) -> None:
        """Have it noted now and then how long the open round has lasted."""
        fit = machine.rounds.fit
        if not self.course.journal.lasting or fit is None or not fit.open:
            self._elapse_due = math.inf
            return
        if self._elapse_due <= now:
            self.hub.reception.noting.send(self.course.journal.elapse, fit.number, now - fit.opened_at)
        if not now < self._elapse_due < math.inf:
            self._elapse_due = now + max(1.0, fit.policy.deadline / _ELAPSE_NOTES)

    def _wait(self, until: float | None = None) -> None:
        self.hub.sleep(until, self._evaluations.next_deadline())

    def look(self) -> None:
        """Do what the machine needs now, and what that makes due; on the mathematics lane."""
        try:
            while (job := self._due()) is not None:
                self.hub.busy = True
                job()
        except Exception as error:
            if not self.hub.over:
                log.exception("the strategy failed; the run is over")
                self.hub.stop(f"the strategy failed: {type(error).__name__}: {error}")
        finally:
            if self.hub.busy:
                self.hub.busy = False
                self.hub.wake()

    def _due(self) -> Callable[[], None] | None:
        with self.hub.turn() as machine:
            return None if self.hub.over else self._next_job(machine, self._clock.now())

    def _say_goodbye(self) -> None:
        """Wait for evaluations, then for the clients to hear that the run is over."""
        self.hub.flush_events()
        with self.hub.condition:
            while self._evaluations.pending:
                self._linger()
            until = self._clock.now() + self._config.stop_grace
            while self.hub.coordinator.roster.untold and self._clock.now() < until:
                self._linger(until)
        self.hub.flush_events()

    def _linger(self, until: float | None = None) -> None:
        """Wait until something happens; leases and evaluations end meanwhile, as ever."""
        self._wait(until)
        with self.hub.turn() as machine:
            machine.tick(self._clock.now())
            self._evaluations.overdue(self._clock.now())

    def evaluated(self, number: int, metrics: Mapping[str, float] | None, *, of_clients: bool) -> None:
        """Learn what an evaluation found, or (None) that it found nothing."""
        if self._config.goal is not None:
            self.hub.math.send(self._evaluated, number, metrics or {}, of_clients=of_clients)

    def _evaluated(self, number: int, metrics: Mapping[str, float], *, of_clients: bool) -> None:
        spec, parameters = self.course.model
        with self.hub.turn() as machine:
            newest = machine.round - 1
        if self.ambition.measured(number, metrics) and number == newest:
            self.ambition.keep(number, spec.copy(parameters))
            self.course.journal.cherish(number)
        self._aspire()
        self.ambition.settle(number, of_clients=of_clients)
        self.hub.wake()

    def _aspire(self) -> None:
        """End the run if no better model is to be expected."""
        if self.ambition.exhausted:
            with self.hub.turn() as machine:
                log.info("no better model for as many rounds as the goal has patience: the run ends")
                machine.progress.num_rounds = machine.progress.committed + machine.progress.skipped
                machine.tick(self._clock.now())


def _counted(entry: Entry) -> Counted:
    return Counted(entry.task_id, entry.client_id, entry.round, entry.digest, entry.num_examples)
