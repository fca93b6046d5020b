"""Directs a run: opens rounds, makes models of those that closed, has them noted, and publishes them.

A thread waits for the machine to need something and hands that to the lane of mathematics. The thread does no work itself, so
that deadlines are kept however long the arithmetic takes.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from fedcore.aggregator import Update
from fedcore.clock import Clock
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.errors import AggregationError, ConfigError, NonFinite, OutOfStorage, SchemaMismatch, StateError
from fedcore.evaluation import Evaluations
from fedcore.failpoints import reach
from fedcore.hub import Hub
from fedcore.journal import Journal, Past
from fedcore.ledger import Entry
from fedcore.messages import Kind
from fedcore.packing import pack
from fedcore.parameters import Parameters, Spec, digest
from fedcore.phase import Phase
from fedcore.round import Counted
from fedcore.strategy import Strategy, aggregator_of, mean_metrics
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
        journal: where the run is noted.
        spec: what the model looks like.
        parameters: the current model, or None before there is one.
    """

    def __init__(self, hub: Hub, strategy: Strategy, config: ServerConfig, clock: Clock, evaluations: Evaluations):
        self.hub, self.journal = hub, Journal()
        self.done = threading.Event()
        self.spec: Spec | None = None
        self.parameters: Parameters | None = None
        self._strategy, self._config, self._clock, self._evaluations = strategy, config, clock, evaluations
        self._extents: dict[str, float] = {}
        self._elapse_due = math.inf
        self._thread = threading.Thread(target=self._direct, name="fedcore-director", daemon=True)

    @property
    def started(self) -> bool:
        """Whether it was told to begin."""
        return self._thread.ident is not None

    def begin(self) -> None:
        """Start directing."""
        self._thread.start()

    # --- where a run begins ---

    def prepare(self, journal: Journal) -> Past | None:
        """Take the run up again that the journal knows, and return it; or adopt the strategy's first model, if it has one.

        Raises:
            StateError: what the journal knows is damaged, or another run's.
            FedcoreError: the strategy's initial parameters cannot travel.
        """
        self.journal = journal
        self.hub.keep(journal)
        pack(self._strategy.state_dict())  # what cannot be kept is said now rather than after a round
        past = journal.restore(self._clock.now())
        initial = self._strategy.initialize_parameters()
        spec = None if initial is None else Spec.of(initial)
        if past is not None:
            self._resume(past, spec)
        elif initial is not None and spec is not None:
            self.adopt(spec.copy(initial, self.hub.landings.lend), spec)
        return past

    def adopt(self, parameters: Parameters, spec: Spec) -> None:
        """Make these the model that rounds start from."""
        name, self._extents = self.hub.cores.measured(parameters, spec)
        facts = {
            "seed": self._config.seed, "strategy": _named(self._strategy), "settings": self._strategy.settings(),
            "num_rounds": self._config.num_rounds,
        }  # fmt: skip
        machine = self.hub.coordinator
        self.journal.begin(machine.run_id, facts, parameters, spec, name)
        self.spec, self.parameters = spec, parameters
        with self.hub.turn() as machine:
            machine.adopt(name)

    def _resume(self, past: Past, spec: Spec | None) -> None:
        if spec is not None and spec != past.spec:
            difference = next(iter(set(spec.infos) ^ set(past.spec.infos)), None)
            raise StateError(
                f"the state directory holds {past.run_id}, whose model looks different from the strategy's (in "
                f"{difference.name if difference else 'the order of its tensors'!r}): name another state_dir"
            )
        if past.facts["seed"] != self._config.seed:
            raise ConfigError(f"{past.run_id} began with seed {past.facts['seed']}; ServerConfig.seed is {self._config.seed}")
        if past.facts["strategy"] != _named(self._strategy):
            log.warning("%s began with strategy %s, and goes on with another", past.run_id, past.facts["strategy"])
        self._strategy.load_state_dict(past.memory)
        self.spec, self.parameters = past.spec, past.parameters
        _, self._extents = self.hub.cores.measured(past.parameters, past.spec)
        with self.hub.turn() as machine:
            machine.resume(past.run_id, number=past.number, digest=past.digest, outcomes=past.outcomes)
            machine.roster.remember(past.clients)
        if past.page is not None:
            self._reopen(past)
        for number in past.unmeasured:
            if self._strategy.evaluates:
                self._evaluations.server_side(number, self.journal.model(number))

    def _reopen(self, past: Past) -> None:
        page, now = past.page, self._clock.now()
        if page is None:
            return
        work = self._work(page.number, past.digest)
        for entry in past.entries:
            work.updates.append(Update({}, entry.weight, entry.client_id, entry.counted, entry.metrics, entry.digest))
            self.hub.math.send(self._add_again, work, entry)
        accepted = [Counted(e.task_id, e.client_id, e.round, e.digest, e.num_examples) for e in past.entries]
        with self.hub.turn() as machine:
            machine.reopen(page.invited, accepted, page.elapsed, now, closed=page.state == "closed")

    def _add_again(self, work: Work, entry: Entry) -> None:
        """Read an update that was acknowledged before the interruption, and add it to the sums once more."""
        try:
            if work.aggregator is not None:
                parameters = self.journal.read(entry)
                kept = Update(parameters, entry.weight, entry.client_id, entry.counted, entry.metrics, entry.digest)
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
                needed = not self.hub.busy and self._next_job(machine, now) is not None
            if not needed:
                if not self.hub.over:
                    self._wait(self._elapse_due)
                return
            self.hub.busy = True
        self.hub.math.send(self.look)

    def _next_job(self, machine: Coordinator, now: float) -> Callable[[], None] | None:
        asking = machine.rounds.first_model
        if machine.phase is Phase.AGGREGATING:
            return self._conclude
        if not machine.digest and asking is None:
            nothing = digest({}, Spec(()))
            self.hub.tasks.works[Kind.INITIALIZE, 0] = Work(Kind.INITIALIZE, 0, {}, Spec(()), nothing, None)
            machine.ask_for_model(now, nothing)
        elif not machine.digest and asking and not asking.open:
            return self._take_first_model
        elif machine.candidates(now) is not None and len(self._evaluations.pending) < _EVALUATIONS_BEHIND:
            return self._open
        return None

    def _note_time(self, machine: Coordinator, now: float) -> None:
        """Have it noted now and then how long the open round has lasted."""
        fit = machine.rounds.fit
        if not self.journal.lasting or fit is None or not fit.open:
            self._elapse_due = math.inf
            return
        if self._elapse_due <= now:
            self.hub.reception.noting.send(self.journal.elapse, fit.number, now - fit.opened_at)
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
                self._wait()
                self._evaluations.overdue(self._clock.now())
            until = self._clock.now() + self._config.stop_grace
            while self.hub.coordinator.roster.untold and self._clock.now() < until:
                self._wait(until)
        self.hub.flush_events()

    def _lastingly(self, note: Callable[[], T]) -> T:
        """Have something noted; while the disk has no room for it the run is paused.

        Raises:
            OutOfStorage: it still has none, and the run is over for this process.
        """
        while True:
            try:
                result = note()
            except OutOfStorage as error:
                if self.hub.over:
                    raise
                self.hub.pause(str(error))
            else:
                self.hub.pause("")
                return result
            until = self._clock.now() + _DISK_PAUSE
            with self.hub.condition:
                while not self.hub.over and (left := until - self._clock.now()) > 0:
                    self._clock.wait(self.hub.condition, left)

    # --- steps of a round, on the mathematics lane ---

    def _work(self, number: int, name: str) -> Work:
        """Return what a training round is about, ready for its updates."""
        spec, parameters = self._model()
        aggregator = aggregator_of(self._strategy, number, parameters)
        aggregator.each, aggregator.lend = self.hub.cores.each, self.hub.landings.lend
        aggregator.prepare(spec, self._extents)
        upload = self._strategy.upload_spec(Kind.FIT, spec)
        work = Work(Kind.FIT, number, parameters, spec, name, upload, aggregator)
        self.hub.tasks.works[Kind.FIT, number] = work
        return work

    def _open(self) -> None:
        with self.hub.turn() as machine:
            number, available, name = machine.round, machine.candidates(self._clock.now()), machine.digest
        if available is None:
            return
        rng = random.Random(f"{self._config.seed}/select/{number}")  # noqa: S311 - a seeded choice, no secret
        chosen = list(self._strategy.select(number, available, rng))[: machine.policy.invitations]
        self._work(number, name)
        self._lastingly(lambda: self.journal.open(number, name, chosen))
        with self.hub.turn() as machine:
            machine.open_round(chosen, self._clock.now())

    def _conclude(self) -> None:
        """Make the next model of the closed round. Runs behind the last sum of the round."""
        with self.hub.turn() as machine:
            fit = machine.rounds.fit
        if fit is None:
            raise AssertionError("no round to conclude")
        work = self.hub.tasks.works[Kind.FIT, fit.number]
        self._lastingly(lambda: self.journal.close(fit.number, [each.id for each in fit.accepted]))
        try:
            if fit.doomed:
                raise AggregationError(fit.doomed)
            parameters, model_digest, found = self._next_model(work)
        except Exception as error:
            if not fit.doomed:
                log.exception("round %d made no model", fit.number)
            self._fail(fit.doomed or f"the aggregation failed: {error}")
        else:
            self._extents = found
            self._publish(work, parameters, model_digest)
        self.hub.tasks.works.pop((Kind.FIT, fit.number), None)

    def _fail(self, reason: str) -> None:
        with self.hub.turn() as machine:
            outcome = machine.rounds.fit and machine.rounds.fit.failed(reason, self._clock.now())
        if outcome:
            self._lastingly(lambda: self.journal.fail(outcome))
        with self.hub.turn() as machine:
            machine.fail(reason, self._clock.now())

    def _next_model(self, work: Work) -> tuple[Parameters, str, dict[str, float]]:
        if work.aggregator is None:
            raise AssertionError("a training round has an aggregator")
        self.hub.uploads.sum_up(work)
        if work.failure is not None:
            raise work.failure
        reach("agg.half")
        aggregate = work.aggregator.result()
        reach("agg.done")
        proposed = self._strategy.step(work.number, work.parameters, aggregate)
        try:
            work.spec.check(proposed)
            # a strategy that gathers is user code, which may keep what it returned
            kept = work.aggregator.retains
            parameters = work.spec.copy(proposed, self.hub.landings.lend) if kept else work.spec.tie(dict(proposed))
            return parameters, *self.hub.cores.measured(parameters, work.spec)
        except (SchemaMismatch, NonFinite) as error:
            raise AggregationError(f"the strategy's result is no model: {error}") from error

    def _publish(self, work: Work, parameters: Parameters, model_digest: str) -> None:
        number, spec = work.number, work.spec
        metrics = {f"fit/{name}": value for name, value in mean_metrics(work.updates).items()}
        with self.hub.turn() as machine:
            fit, now = machine.rounds.fit, self._clock.now()
            outcome = fit and fit.committed(model_digest, now, metrics, dict(work.traffic))
        if outcome and self.journal.lasting:
            memory = self._strategy.state_dict()
            self._lastingly(lambda: self.journal.commit(outcome, parameters, spec, memory, work.entries))
        self.parameters = parameters
        upload = self._strategy.upload_spec(Kind.EVALUATE, spec)
        self.hub.tasks.works[Kind.EVALUATE, number] = Work(Kind.EVALUATE, number, parameters, spec, model_digest, upload)
        self.hub.tasks.broadcast.keep([model_digest])
        if self._strategy.evaluates:
            self._evaluations.server_side(number, spec.copy(parameters))
        with self.hub.turn() as machine:
            machine.publish(model_digest, now, metrics=metrics, traffic=outcome.traffic if outcome else {})
            if machine.rounds.evaluation is None:  # nobody offered, and nobody will hand anything in
                del self.hub.tasks.works[Kind.EVALUATE, number]

    def _take_first_model(self) -> None:
        """Adopt the parameters that a client handed in."""
        (update,) = self.hub.tasks.works.pop((Kind.INITIALIZE, 0)).updates
        log.info("the first model comes from client %s", update.client_id)
        self._lastingly(lambda: self.adopt(update.parameters, Spec.of(update.parameters)))

    def _model(self) -> tuple[Spec, Parameters]:
        if self.spec is None or self.parameters is None:
            raise AssertionError("no round opens before there is a model")
        return self.spec, self.parameters


def _named(strategy: Strategy) -> str:
    return f"{type(strategy).__module__}.{type(strategy).__qualname__}"
