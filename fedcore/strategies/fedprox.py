"""FedProx: clients stay near the round's model, and whatever a straggler has made until the time is over counts.

Formula: client i lowers ``F_i(x) + mu / 2 * ||x - w||^2`` (its steps' gradients have ``mu * (x - w)`` added); the server takes
FedAvg's mean.

Paper: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020.

Memory: FedAvg's; a client keeps the round's model.

Clients train with :class:`fedcore.Training`, or read ``config["fedprox.mu"]`` themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.algorithm import BUDGET, PROXIMAL
from fedcore.strategies.fedavg import EvaluateFn, FedAvg
from fedcore.values import Value, check_number

__all__ = ["FedProx"]


class FedProx(FedAvg):
    """FedAvg whose clients stay near the round's model.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        mu: how strongly they are held.
        time_budget: seconds after which a client hands in what it has made; None: it makes all its epochs.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        mu: float = 0.1,
        time_budget: float | None = None,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, **shared)
        check_number("FedProx mu", mu, float, 0)
        if time_budget is not None:
            check_number("FedProx time_budget", time_budget, float, 1e-9)
        self.mu, self.time_budget = mu, time_budget

    def configure_fit(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Tell clients how strongly they are held, and how long they have."""
        return {PROXIMAL: self.mu, **({} if self.time_budget is None else {BUDGET: self.time_budget})}

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on."""
        shared = super().settings()
        return shared if shared is None else {**shared, "mu": self.mu, "time_budget": self.time_budget}
