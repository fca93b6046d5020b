"""The geometric median (RFA): the point with the least sum of distances to all updates.

Formula: the model changes by z after ``iterations`` smoothed Weiszfeld steps, the first from the mean of the changes D_i: ::

    b_i = 1 / max(nu, ||D_i - z||)
    z = sum(b_i * D_i) / sum(b_i)

Paper: Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing, 2022.

Needs: ``n >= 2 f + 1`` updates. Memory: a few times 4 MiB and the model, whatever the number of clients; each step reads all
updates once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.robust import Finish, Rows, geometric_median, weighted
from fedcore.strategies._robust import Robust
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import check_number

__all__ = ["GeoMedian"]


class GeoMedian(Robust):
    """The point that is nearest to all updates.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        nu: the smallest distance that a weight is divided by, above 0.
        iterations: how many steps.
        shared: as for :class:`~fedcore.strategies._robust.Robust`.

    Raises:
        ConfigError: an argument makes no sense, or rounds would have too few updates for f.
    """

    numbers = ("nu", "iterations")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        nu: float = 1e-6,
        iterations: int = 8,
        **shared: Any,
    ):
        check_number("GeoMedian nu", nu, float, 1e-100)
        check_number("GeoMedian iterations", iterations, int, 1)
        self.nu, self.iterations = nu, iterations
        super().__init__(initial_parameters, evaluate_fn, **shared)

    def least(self, f: int) -> int:
        """Return the fewest updates: honest ones must be more than half."""
        return 2 * f + 1

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the weighted mean that is near the geometric median."""
        return weighted(geometric_median(rows, self.nu, self.iterations))
