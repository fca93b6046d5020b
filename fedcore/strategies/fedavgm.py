"""FedAvgM: FedAvg with momentum at the server.

Formula, for each element, from ``m = 0``: ``m = momentum * m + (mean(w_i) - w)``, and ``w = w + server_lr * m``.

Paper: Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification,
arXiv 1909.06335, 2019.

Memory: beside FedAvg's, one number an element (m), which is kept with each checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.strategies._server_step import ServerStep
from fedcore.strategies.fedavg import EvaluateFn

__all__ = ["FedAvgM"]


class FedAvgM(ServerStep):
    """FedAvg with momentum at the server.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        server_lr: length of a step.
        momentum: how much of the last step is made again.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    slots = ("m",)
    numbers = ("server_lr", "momentum")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        server_lr: float = 1.0,
        momentum: float = 0.9,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, server_lr=server_lr, **shared)
        self.momentum = self.below_one("momentum", momentum)

    def move(self, change: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """Return the step."""
        memory["m"] = self.momentum * memory["m"] + change
        return self.server_lr * memory["m"]
