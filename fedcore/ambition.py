"""Follows a goal through a run: what was measured, and the best model so far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fedcore import events as ev
from fedcore.errors import StateError
from fedcore.goal import Goal
from fedcore.parameters import Parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The best model of a run: the round that made it, the goal's metric, and the parameters."""

    round: int
    value: float
    parameters: Parameters


class Ambition:
    """Remembers what a goal needs.

    Args:
        goal: what to follow; None: nothing.

    Attributes:
        best: the best model so far, or None.
    """

    def __init__(self, goal: Goal | None):
        self.best: Best | None = None
        self._goal = goal
        self._values: dict[int, float] = {}
        self._awaited: int | None = None

    @property
    def waits(self) -> bool:
        """Whether the next round must wait until more is known of the last model."""
        return self._awaited is not None

    def expect(self, number: int, *, by_server: bool, by_clients: bool) -> None:
        """Wait for the evaluation of a round's model, if it is made by whom the goal is about."""
        if self._goal is not None:
            self._awaited = number if (by_clients if self._goal.of_clients else by_server) else None

    def settle(self, number: int, *, of_clients: bool) -> None:
        """Wait no longer for the evaluation of a round's model: it was made, or will not be."""
        if self._goal is not None and (number, of_clients) == (self._awaited, self._goal.of_clients):
            self._awaited = None

    def measured(self, number: int, metrics: Mapping[str, float]) -> bool:
        """Note what was measured of a round's model; returns whether it is the best now."""
        if self._goal is None or self._goal.metric not in metrics:
            return False
        self._values[number] = metrics[self._goal.metric]
        return self._goal.best(self._values) == number

    def keep(self, number: int, parameters: Parameters) -> None:
        """Keep a model as the best one."""
        self.best = Best(number, self._values[number], parameters)

    @property
    def exhausted(self) -> bool:
        """Whether the run is to end, because no better model came."""
        return self._goal is not None and self._goal.exhausted(self._values)

    def recall(self, events: Iterable[ev.Event], model: Callable[[int], Parameters]) -> int | None:
        """Take up again what was measured before a restart, and return the round of the best model, if it was kept.

        Args:
            events: what happened before.
            model: reads the model of a round.
        """
        for event in events:
            if isinstance(event, ev.Evaluated):
                self.measured(event.round, event.metrics)
        number = None if self._goal is None else self._goal.best(self._values)
        if number is None:
            return None
        try:
            self.keep(number, model(number))
        except StateError as error:
            log.warning("the best model so far, of round %d, was not kept: %s", number, error)
            return None
        return number
