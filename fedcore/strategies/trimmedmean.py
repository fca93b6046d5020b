"""The trimmed mean: of each element the lowest and the highest changes do not count.

Formula: each element of the model changes by the mean of what the clients changed of it, without the f lowest and f highest.

Paper: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.

Needs: ``n > 2 f`` updates. Memory: a few times 4 MiB and the model, whatever the number of clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.robust import Finish, Rows, trimmed_mean
from fedcore.strategies._robust import Robust
from fedcore.strategies.fedavg import EvaluateFn

__all__ = ["TrimmedMean"]


class TrimmedMean(Robust):
    """The mean of each element's changes but the extreme ones.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        f: how many changes do not count at either end.
        fraction: instead of ``f``: so many of the round's n updates, rounded down, from 0 to below 0.5.
        shared: as for :class:`~fedcore.strategies._robust.Robust`.

    Raises:
        ConfigError: an argument makes no sense, or rounds would have too few updates for f.
    """

    numbers = ("fraction",)

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        f: int = 0,
        fraction: float | None = None,
        **shared: Any,
    ):
        given = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if fraction is not None and (f or not given or not 0 <= fraction < 0.5):
            raise ConfigError(f"TrimmedMean takes f, or a fraction from 0 to below 0.5, not f={f!r} and fraction={fraction!r}")
        self.fraction = fraction
        super().__init__(initial_parameters, evaluate_fn, f=f, **shared)

    def least(self, f: int) -> int:
        """Return the fewest updates: one must be left."""
        return 2 * f + 1

    def tolerated(self, count: int) -> int:
        """Return how many updates do not count at either end."""
        return self.f if self.fraction is None else int(self.fraction * count)

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the trimmed mean."""
        return trimmed_mean(f)
