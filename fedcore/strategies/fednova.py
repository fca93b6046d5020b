"""FedNova: clients that make more steps do not pull the model towards themselves.

Formula: client i changes the model by ``D_i`` in ``t_i`` steps, and hands in ``D_i / t_i``; with ``p_i`` its part of the
weights, the server makes ``w = w + server_lr * (sum p_i t_i) * (sum p_i D_i / t_i)``.

Paper: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS 2020; of its
normalizations the one for plain SGD. Clients with momentum or decay make steps that it takes for plain ones.

Memory: FedAvg's; a client keeps the round's model.

Clients train with :class:`fedcore.Training`; others hand in the model moved by ``D_i / t_i`` (``running_mean`` and
``running_var`` as they are), and ``t_i`` as the metric ``steps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.aggregator import Aggregator, Update
from fedcore.algorithm import NORMALIZED, STEPS
from fedcore.averaging import FedAvgAggregator
from fedcore.errors import UpdateRejected
from fedcore.parameters import Parameters
from fedcore.strategies._server_step import ServerStep
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import Value

__all__ = ["FedNova"]


class FedNova(ServerStep):
    """FedAvg over the clients' mean steps.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        server_lr: length of a step.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    paces = ("sync",)

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        server_lr: float = 1.0,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, server_lr=server_lr, **shared)
        self._steps = 0.0

    def configure_fit(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Ask clients for the mean of their steps."""
        return {NORMALIZED: True}

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return a mean that counts steps, too."""
        self._mean = _StepMean(parameters, weighting=self.weighting, max_share=self.max_share, exchange=self.exchange)
        return self._mean

    def step(self, server_round: int, current: Parameters, aggregate: Parameters) -> Parameters:
        """Return the model moved by as many mean steps as clients made."""
        self._steps = self._mean.steps
        return super().step(server_round, current, aggregate)

    def move(self, change: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """Return the step."""
        return self.server_lr * self._steps * change


class _StepMean(FedAvgAggregator):
    """The weighted mean, and beside it that of the numbers of steps."""

    _sum = 0

    def check(self, update: Update) -> None:
        """Check an update, and that it says how many steps it is made of."""
        if not update.metrics.get(STEPS, 0.0) >= 1:
            raise UpdateRejected(
                f"FedNova needs the metric {STEPS!r}, from 1, of client {update.client_id!r}: train with fedcore.Training"
            )
        super().check(update)

    def _fold(self, update: Update, weight: int) -> None:
        super()._fold(update, weight)
        self._sum += weight * round(update.metrics[STEPS])

    @property
    def steps(self) -> float:
        """The weighted mean of the numbers of steps."""
        return self._sum / self.weight
