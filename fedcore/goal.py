"""What makes one model better than another: for keeping the best, and for stopping when none comes that is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedcore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A metric to follow. Rounds then wait for the evaluation of the one before, so that every run stops at the same round.

    Attributes:
        metric: its name in the history: ``"loss"`` or a metric of the server's evaluation, ``"evaluate/..."`` of the clients'.
        mode: whether ``"min"`` or ``"max"`` is better.
        patience: rounds without a better model after which the run ends; None: only the best model is kept.
        min_delta: by how much a model must be better to count as such for ``patience``.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError(f"Goal.mode must be 'min' or 'max', not {self.mode!r}")
        whole = isinstance(self.patience, int) and not isinstance(self.patience, bool)
        if self.patience is not None and not (whole and self.patience >= 1):
            raise ConfigError(f"Goal.patience must be an integer of at least 1, or None, not {self.patience!r}")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"Goal.min_delta must be a number of at least 0, not {self.min_delta!r}")

    @property
    def of_clients(self) -> bool:
        """Whether it is the clients who measure it."""
        return self.metric.startswith("evaluate/")

    def best(self, values: Mapping[int, float]) -> int | None:
        """Return the round with the best value, the first one of equals; None if no value is a number."""
        there = {number: value for number, value in values.items() if not math.isnan(value)}
        return min(there, key=lambda number: (self._badness(there[number]), number), default=None)

    def exhausted(self, values: Mapping[int, float]) -> bool:
        """Return whether ``patience`` rounds went by without a model that is better by ``min_delta``."""
        if self.patience is None:
            return False
        record, since = math.inf, 0
        for _, value in sorted(values.items()):
            if self._badness(value) < record - self.min_delta:
                record, since = self._badness(value), 0
            else:
                since += 1
        return since >= self.patience

    def _badness(self, value: float) -> float:
        return value if self.mode == "min" else -value
