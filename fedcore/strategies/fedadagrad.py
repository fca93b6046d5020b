"""FedAdagrad: each element's steps shrink with all that it was ever changed by.

Formula, for each element, from ``m = v = 0``: ::

    d = mean(w_i) - w
    m = beta1 * m + (1 - beta1) * d
    v = v + d ** 2
    w = w + server_lr * m / (sqrt(v) + tau)

Paper: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2; its experiments have ``beta1 = 0``.

Memory: beside FedAvg's, two numbers an element (m and v), which are kept with each checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.strategies._adaptive import Adaptive
from fedcore.strategies.fedavg import EvaluateFn

__all__ = ["FedAdagrad"]


class FedAdagrad(Adaptive):
    """FedAvg with Adagrad at the server.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        server_lr: length of a step.
        beta1: how much of the direction is kept from round to round.
        tau: the smallest divisor: how adaptive it is.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    numbers = ("server_lr", "beta1", "tau")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        server_lr: float = 0.1,
        beta1: float = 0.0,
        tau: float = 1e-3,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, server_lr=server_lr, beta1=beta1, tau=tau, **shared)

    def squares(self, change: Tensor, before: Tensor) -> Tensor:
        """Return the sum of all squares."""
        return before + change.square()
