"""Multi-Krum: the mean of the updates that have the nearest neighbours.

Formula: scores as for :class:`~fedcore.Krum`; the model becomes the unweighted mean of the m updates with the lowest ones.

Paper: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017. Its proof asks
for ``n - m > 2 f + 2``; the default is ``m = n - f``, as is usual: all that may be honest.

Needs: ``n >= 2 f + 3`` updates, and ``m <= n - f``. Memory: a few times 4 MiB and the model, whatever the number of clients;
time: n^2 models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.robust import Finish, Rows, krum_scores, lowest, mean_of, squared_distances
from fedcore.strategies._robust import Robust
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import check_number

__all__ = ["MultiKrum"]


class MultiKrum(Robust):
    """The mean of the updates amid the others.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        m: how many updates count; None: ``n - f``.
        shared: as for :class:`~fedcore.strategies._robust.Robust`.

    Raises:
        ConfigError: an argument makes no sense, or rounds would have too few updates for f and m.
    """

    numbers = ("m",)

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        m: int | None = None,
        **shared: Any,
    ):
        if m is not None:
            check_number("MultiKrum m", m, int, 1)
        self.m = m
        super().__init__(initial_parameters, evaluate_fn, **shared)

    def least(self, f: int) -> int:
        """Return the fewest updates."""
        return max(2 * f + 3, (self.m or 0) + f)

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the mean of the chosen."""
        scores = krum_scores(squared_distances(rows), rows.count - f - 2)
        return mean_of(lowest(scores, self.m or rows.count - f))
