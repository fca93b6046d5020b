"""FedDyn: each client's aim is bent, from round to round, until all have the same one.

Formula: client i lowers ``F_i(x) - <h_i, x> + alpha / 2 * ||x - w||^2``, and keeps ``h_i = h_i - alpha * (x_i - w)``. The
server, over the S clients of the round out of N: ``h = h - alpha / N * sum(x_i - w)``, and ``w = mean(x_i) - h / alpha``, an
unweighted mean.

Paper: Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021.

Memory: at the server, beside FedAvg's, one number an element (h), which is kept with each checkpoint; as much at a client.

Clients train with :class:`fedcore.Training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.aggregator import Aggregator
from fedcore.algorithm import DYNAMIC
from fedcore.averaging import FedAvgAggregator
from fedcore.errors import ConfigError
from fedcore.parameters import Parameters
from fedcore.strategies._server_step import ServerStep
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import Value, check_number

__all__ = ["FedDyn"]


class FedDyn(ServerStep):
    """FedAvg with dynamic regularization.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        alpha: how strongly clients are held, and how fast their aims are bent.
        num_clients: N, the clients of the federation, whether or not they are in a round.
        shared: as for :class:`~fedcore.FedAvg`, but for ``weighting``: all clients weigh the same.

    Raises:
        ConfigError: an argument makes no sense.
    """

    paces = ("sync",)
    slots = ("h",)
    numbers = ("alpha", "num_clients")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        alpha: float = 0.01,
        num_clients: int,
        **shared: Any,
    ):
        if shared.get("weighting", "uniform") != "uniform":
            raise ConfigError("FedDyn takes the unweighted mean: leave out weighting")
        super().__init__(initial_parameters, evaluate_fn, **{**shared, "weighting": "uniform"})
        check_number("FedDyn num_clients", num_clients, int, 1)
        self.alpha, self.num_clients = self.above_zero("alpha", alpha), num_clients

    def configure_fit(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Tell clients how strongly they are held."""
        return {DYNAMIC: self.alpha}

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return a mean that counts the clients, too."""
        self._mean = _CountedMean(parameters, weighting="uniform", max_share=self.max_share, exchange=self.exchange)
        return self._mean

    def move(self, change: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """Return the step."""
        memory["h"] = memory["h"] - self.alpha * self._mean.count / self.num_clients * change
        return change - memory["h"] / self.alpha


class _CountedMean(FedAvgAggregator):
    """The mean, and of how many."""

    count = 0

    def fold(self, update: Any) -> None:
        """Fold in an update that has passed :meth:`check`."""
        super().fold(update)
        self.count += 1
