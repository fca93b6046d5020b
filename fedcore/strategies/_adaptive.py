"""What the adaptive server optimizers share: one direction, divided by the root of what its squares add up to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.strategies._server_step import ServerStep
from fedcore.strategies.fedavg import EvaluateFn


class Adaptive(ServerStep):
    """FedAvg with an adaptive optimizer at the server; see its subclasses."""

    slots = ("m", "v")
    numbers: tuple[str, ...] = ("server_lr", "beta1", "beta2", "tau")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        server_lr: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, server_lr=server_lr, **shared)
        self.beta1, self.beta2 = self.below_one("beta1", beta1), self.below_one("beta2", beta2)
        self.tau = self.above_zero("tau", tau)

    @abstractmethod
    def squares(self, change: Tensor, before: Tensor) -> Tensor:
        """Return v of this round, given the change and v of the round before."""

    def move(self, change: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """Return the step."""
        memory["m"] = self.beta1 * memory["m"] + (1 - self.beta1) * change
        memory["v"] = self.squares(change, memory["v"])
        return self.server_lr * memory["m"] / (memory["v"].sqrt() + self.tau)
