"""Evaluations of committed models: outside every lock, on a lane of their own, and never able to break a round."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedcore import events as ev
from fedcore.aggregator import Update
from fedcore.clock import Clock
from fedcore.failpoints import reach
from fedcore.lane import THREADS, Lanes
from fedcore.parameters import Parameters
from fedcore.strategy import Strategy

log = logging.getLogger(__name__)


@dataclass
class Pending:
    """An evaluation that is queued or running."""

    number: int
    since: float
    of_clients: bool
    told: bool = False


class Evaluations:
    """Runs the strategy's evaluations in order.

    Args:
        strategy: whose ``evaluate`` and ``aggregate_evaluate`` are called.
        clock: the time.
        timeout: seconds after which an evaluation is given up.
        report: receives ``Evaluated`` and ``EvaluationFailed``, on any thread.
        wake: called when one is over, and was reported.
        lanes: makes the lane.
    """

    def __init__(
        self,
        strategy: Strategy,
        clock: Clock,
        timeout: float,
        report: Callable[[ev.Event], None],
        wake: Callable[[], None],
        lanes: Lanes = THREADS,
    ):
        self._strategy, self._clock, self._timeout, self._lanes = strategy, clock, timeout, lanes
        self._report, self._wake = report, wake
        self._lane = self._lanes.lane("fedcore-evaluate")
        self._lock = threading.Lock()
        self.pending: tuple[Pending, ...] = ()

    def expect(self, number: int, *, of_clients: bool = False) -> Pending:
        """Have whoever waits for evaluations wait for one that is about to begin."""
        pending = Pending(number, self._clock.now(), of_clients)
        with self._lock:
            self.pending += (pending,)
        return pending

    def server_side(self, number: int, parameters: Parameters, expected: Pending | None = None) -> None:
        """Evaluate the model of a round with ``Strategy.evaluate``; ``parameters`` are a copy for it to keep."""
        self._lane.send(self._run, expected or self.expect(number), lambda: self._evaluate(number, parameters))

    def client_side(self, number: int, results: list[Update]) -> None:
        """Combine what clients measured with ``Strategy.aggregate_evaluate``."""
        by_client = sorted(results, key=lambda update: update.client_id)
        pending = self.expect(number, of_clients=True)
        self._lane.send(self._run, pending, lambda: _prefixed("evaluate", self._strategy.aggregate_evaluate(number, by_client)))

    def overdue(self, now: float) -> None:
        """Give up evaluations that have taken too long; a new thread takes the ones behind them."""
        with self._lock:
            late = [p for p in self.pending if now >= p.since + self._timeout and not p.told]
            self.pending = tuple(p for p in self.pending if p not in late)
        if late:
            self._lane.close(timeout=0)  # it ends when the user's code returns, if it does
            self._lane = self._lanes.lane("fedcore-evaluate")
        for pending in late:
            reason = f"it took longer than evaluate_timeout, {self._timeout:g} s"
            log.warning("the evaluation of round %d was given up: %s", pending.number, reason)
            self._report(ev.EvaluationFailed(at=now, round=pending.number, reason=reason, of_clients=pending.of_clients))

    def next_deadline(self) -> float | None:
        """Return when the next evaluation would be given up."""
        return min((p.since + self._timeout for p in self.pending), default=None)

    def close(self) -> None:
        """End the thread, unless user code holds it."""
        self._lane.close(timeout=0 if self.pending else 5.0)

    def _run(self, pending: Pending, job: Callable[[], Mapping[str, float] | None]) -> None:
        event: ev.Event | None = None
        try:
            metrics = job()
            if metrics is not None:
                event = ev.Evaluated(at=self._clock.now(), round=pending.number, metrics=metrics, of_clients=pending.of_clients)
        except Exception as error:
            log.exception("the evaluation of round %d failed; the round stands", pending.number)
            reason = f"{type(error).__name__}: {error}"
            now = self._clock.now()
            event = ev.EvaluationFailed(at=now, round=pending.number, reason=reason, of_clients=pending.of_clients)
        with self._lock:
            awaited, pending.told = pending in self.pending, True  # else it was given up
        if awaited:
            nothing = ev.Evaluated(at=self._clock.now(), round=pending.number, metrics={}, of_clients=pending.of_clients)
            self._report(event or nothing)
        with self._lock:  # only now, because the end of the run waits for what is pending
            self.pending = tuple(p for p in self.pending if p is not pending)
        self._wake()

    def _evaluate(self, number: int, parameters: Parameters) -> dict[str, float] | None:
        reach("eval.start")
        result = self._strategy.evaluate(number, parameters)
        if result is None:
            return None
        loss, metrics = result
        if "loss" in metrics:
            log.warning("evaluate returned a metric called 'loss' beside the loss; the loss is kept")
        return {**_numbers(metrics), **_numbers({"loss": loss})}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {str(name): float(value) for name, value in metrics.items()}
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in _numbers(metrics).items()}
