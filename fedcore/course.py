"""The rounds of a run, step by step, on the lane of mathematics: open, conclude, have it noted, publish."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

from fedcore.ambition import Ambition
from fedcore.clock import Clock
from fedcore.config import ServerConfig
from fedcore.errors import AggregationError, NonFinite, OutOfStorage, SchemaMismatch
from fedcore.evaluation import Evaluations
from fedcore.failpoints import reach
from fedcore.filter import Filter, incoming
from fedcore.hub import Hub
from fedcore.journal import Journal
from fedcore.last_model import LastModel
from fedcore.messages import Kind
from fedcore.parameters import Parameters, Spec
from fedcore.strategy import Strategy, aggregator_of, mean_metrics
from fedcore.tasks import Work

log = logging.getLogger(__name__)
T = TypeVar("T")

_DISK_PAUSE = 1.0  # seconds until a full disk is tried again


class Course:
    """Takes a run from one model to the next.

    Args:
        hub: the machine, and what surrounds it.
        strategy: the mathematics.
        config: how the run goes.
        clock: the time.
        evaluations: take the models that are made.
        ambition: waits for what they find.

    Attributes:
        journal: where the run is noted.
        spec: what the model looks like.
        parameters: the current model, or None before there is one.
        last: offers it to those who may have it as a whole.
        filters: go over each aggregate.
    """

    def __init__(
        self,
        hub: Hub,
        strategy: Strategy,
        config: ServerConfig,
        clock: Clock,
        evaluations: Evaluations,
        ambition: Ambition,
    ):
        self.hub, self.journal, self._ambition = hub, Journal(), ambition
        self.spec: Spec | None = None
        self.parameters: Parameters | None = None
        self.last = LastModel(hub.tasks.broadcast)
        self.filters: Sequence[Filter] = ()
        self._strategy, self._config, self._clock, self._evaluations = strategy, config, clock, evaluations
        self._extents: dict[str, float] = {}

    @property
    def model(self) -> tuple[Spec, Parameters]:
        """The current model, which must be there."""
        if self.spec is None or self.parameters is None:
            raise AssertionError("no round opens before there is a model")
        return self.spec, self.parameters

    def adopt(self, parameters: Parameters, spec: Spec) -> None:
        """Make these the model that rounds start from."""
        name, self._extents = self.hub.cores.measured(parameters, spec)
        policy = self.hub.coordinator.policy
        facts = {
            "seed": self._config.seed, "strategy": named(self._strategy), "settings": self._strategy.settings(),
            "num_rounds": self._config.num_rounds, "filters": [repr(each) for each in self.filters],
            "pace": asdict(policy) if policy.asynchronous else None,
        }  # fmt: skip
        machine = self.hub.coordinator
        self.journal.begin(machine.run_id, facts, parameters, spec, name)
        self._make_known(0, parameters, spec, name)
        with self.hub.turn() as machine:
            machine.adopt(name)

    def take_up(self, number: int, parameters: Parameters, spec: Spec) -> None:
        """Go on from the model that a round made before."""
        name, self._extents = self.hub.cores.measured(parameters, spec)
        self._make_known(number, parameters, spec, name)

    def _make_known(self, number: int, parameters: Parameters, spec: Spec, name: str) -> None:
        self.spec, self.parameters = spec, parameters
        self.last.put(number, parameters, spec, name)

    def work(self, number: int, name: str) -> Work:
        """Return what a training round is about, ready for its updates."""
        spec, parameters = self.model
        aggregator = aggregator_of(self._strategy, number, parameters)
        aggregator.each, aggregator.lend = self.hub.cores.each, self.hub.landings.lend
        aggregator.folder = self.hub.landings.folder
        aggregator.difference = self.hub.coordinator.policy.asynchronous
        aggregator.prepare(spec, self._extents)
        upload = self._strategy.upload_spec(Kind.FIT, spec)
        work = Work(Kind.FIT, number, parameters, spec, name, upload, aggregator, difference=aggregator.difference)
        self.hub.tasks.works[Kind.FIT, number] = work
        return work

    def open(self) -> None:
        """Open the next round, if one may open."""
        with self.hub.turn() as machine:
            number, available, name = machine.round, machine.candidates(self._clock.now()), machine.digest
        if available is None:
            return
        rng = random.Random(f"{self._config.seed}/select/{number}")  # noqa: S311 - a seeded choice, no secret
        chosen = list(self._strategy.select(number, available, rng))[: machine.policy.invitations]
        self.work(number, name)
        self._lastingly(lambda: self.journal.open(number, name, chosen))
        with self.hub.turn() as machine:
            machine.open_round(chosen, self._clock.now())

    def conclude(self) -> None:
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
        aggregate = incoming(
            self.filters, aggregate, work.parameters, difference=work.difference, seed=self._config.seed, number=work.number,
            updates=len(work.updates),
        )  # fmt: skip
        before = self._strategy.state_dict()
        try:
            return self._step(work, aggregate)
        except Exception:
            self._strategy.load_state_dict(before)  # a round that makes no model leaves nothing behind
            raise

    def _step(self, work: Work, aggregate: Parameters) -> tuple[Parameters, str, dict[str, float]]:
        proposed = self._strategy.step(work.number, work.parameters, aggregate)
        try:
            work.spec.check(proposed)
            # a strategy that gathers is user code, which may keep what it returned
            kept = work.aggregator is None or work.aggregator.retains
            parameters = work.spec.copy(proposed, self.hub.landings.lend) if kept else work.spec.tie(dict(proposed))
            return parameters, *self.hub.cores.measured(parameters, work.spec)
        except (SchemaMismatch, NonFinite) as error:
            raise AggregationError(f"the strategy's result is no model: {error}") from error

    def _publish(self, work: Work, parameters: Parameters, model_digest: str) -> None:
        number, spec = work.number, work.spec
        metrics = {f"fit/{name}": value for name, value in mean_metrics(work.updates).items()}
        self._strategy.observe(number, sorted(work.updates, key=lambda update: update.client_id))
        with self.hub.turn() as machine:
            fit, now = machine.rounds.fit, self._clock.now()
            outcome = fit and fit.committed(model_digest, now, metrics, dict(work.traffic))
        if outcome and self.journal.lasting:
            memory = self._strategy.state_dict()
            self._lastingly(lambda: self.journal.commit(outcome, parameters, spec, memory, work.entries))
        self._make_known(number, parameters, spec, model_digest)
        upload = self._strategy.upload_spec(Kind.EVALUATE, spec)
        self.hub.tasks.works[Kind.EVALUATE, number] = Work(Kind.EVALUATE, number, parameters, spec, model_digest, upload)
        self.hub.tasks.broadcast.keep([model_digest])
        # before the turn, which may end the run: the end waits for it
        expected = self._evaluations.expect(number) if self._strategy.evaluates else None
        with self.hub.turn() as machine:
            machine.publish(model_digest, now, metrics=metrics, traffic=outcome.traffic if outcome else {})
            asked = machine.rounds.evaluation is not None
            self._ambition.expect(number, by_server=self._strategy.evaluates, by_clients=asked)
            if not asked:  # nobody offered, and nobody will hand anything in
                del self.hub.tasks.works[Kind.EVALUATE, number]
        if expected is not None:
            self._evaluations.server_side(number, spec.copy(parameters), expected)

    def take_first_model(self) -> None:
        """Adopt the parameters that a client handed in."""
        (update,) = self.hub.tasks.works.pop((Kind.INITIALIZE, 0)).updates
        log.info("the first model comes from client %s", update.client_id)
        self._lastingly(lambda: self.adopt(update.parameters, Spec.of(update.parameters)))

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


def named(strategy: Strategy) -> str:
    """Return what a strategy is called in the journal."""
    return f"{type(strategy).__module__}.{type(strategy).__qualname__}"
