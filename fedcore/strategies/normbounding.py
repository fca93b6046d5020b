"""Norm bounding: no update moves the model further than others.

Formula: ``w = w + mean(D_i * min(1, M / ||D_i||))``, where ``D_i`` is what client i changed and M a length, or the median of
the lengths of the round.

Paper: Sun et al., Can You Really Backdoor Federated Learning?, arXiv 1911.07963.

Memory: a few times 4 MiB and the model, whatever the number of clients. Bounds what an attacker can do, and does not tell
attackers from others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.robust import Finish, Rows, bounded, weighted
from fedcore.strategies._robust import Robust
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import check_number

__all__ = ["NormBounding"]


class NormBounding(Robust):
    """The mean of changes that are cut to a length.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        max_norm: M, above 0; None: the median of the lengths of the round.
        shared: as for :class:`~fedcore.strategies._robust.Robust`; f matters for ``pre`` alone.

    Raises:
        ConfigError: an argument makes no sense.
    """

    numbers = ("max_norm",)

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        max_norm: float | None = None,
        **shared: Any,
    ):
        if max_norm is not None:
            check_number("NormBounding max_norm", max_norm, float, 1e-100)
        self.max_norm = max_norm
        super().__init__(initial_parameters, evaluate_fn, **shared)

    def least(self, f: int) -> int:
        """Return 1: it makes something of any updates."""
        return 1

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the mean of what is left."""
        return weighted(bounded(rows, self.max_norm))
