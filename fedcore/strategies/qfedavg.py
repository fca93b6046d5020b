"""q-FedAvg: clients whose loss is high weigh more, so that the model serves all about as well.

Formula, with ``L = 1 / client_lr`` and ``F_i`` the loss of the round's model w at client i, which made ``w_i`` of it: ::

    D_i = F_i ** q * L * (w - w_i)
    h_i = q * F_i ** (q - 1) * ||L * (w - w_i)|| ** 2 + L * F_i ** q
    w = w - sum(D_i) / sum(h_i)

With ``q = 0`` it is the unweighted FedAvg.

Paper: Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, algorithm 2.

Memory: FedAvg's.

Clients train with :class:`fedcore.Training`, or hand in the loss of the round's model as the metric ``initial_loss``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.aggregator import Aggregator, Update
from fedcore.algorithm import INITIAL_LOSS, LOSS
from fedcore.averaging import FedAvgAggregator
from fedcore.errors import ConfigError, UpdateRejected
from fedcore.exchange import Exchange
from fedcore.extents import squared_norm
from fedcore.parameters import Parameters, moves
from fedcore.strategies._server_step import ServerStep
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import Value, check_number

__all__ = ["QFedAvg"]


class QFedAvg(ServerStep):
    """FedAvg that favours clients whose loss is high.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        q: how strongly; 0: not at all.
        client_lr: the learning rate that clients train with.
        shared: as for :class:`~fedcore.FedAvg`, but for ``weighting``, which is by loss.

    Raises:
        ConfigError: an argument makes no sense.
    """

    paces = ("sync",)
    numbers = ("q", "client_lr")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        q: float = 1.0,
        client_lr: float,
        **shared: Any,
    ):
        if {"weighting", "max_share"} & shared.keys():
            raise ConfigError("QFedAvg weighs clients by their loss: leave out weighting and max_share")
        super().__init__(initial_parameters, evaluate_fn, **shared)
        check_number("QFedAvg q", q, float, 0)
        self.q, self.client_lr = q, self.above_zero("client_lr", client_lr)

    def configure_fit(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Ask clients for the loss of the round's model."""
        return {LOSS: True}

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return a mean by loss that measures how far clients moved, too."""
        self._mean = _LossMean(parameters, self.q, 1 / self.client_lr, self.exchange)
        return self._mean

    def move(self, change: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """Return the step."""
        return change * self._mean.length

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on."""
        shared = super().settings() or {}
        return {name: value for name, value in shared.items() if name not in ("weighting", "max_share")}


class _LossMean(FedAvgAggregator):
    """The mean by ``F ** q``, and the length of the step along it."""

    def __init__(self, base: Parameters, q: float, lipschitz: float, exchange: Exchange | None):
        super().__init__(base, weighting=self._power, exchange=exchange)
        self._from, self._q, self._lipschitz = base, q, lipschitz
        self._terms: list[tuple[float, float]] = []

    def _power(self, update: Update) -> float:
        return float(1024 * update.metrics[INITIAL_LOSS] ** self._q)  # weights are rounded to 2 ** -20

    def check(self, update: Update) -> None:
        """Check an update, and that it says what the loss was."""
        if not update.metrics.get(INITIAL_LOSS, 0.0) > 0:
            whose = f"of client {update.client_id!r}: train with fedcore.Training"
            raise UpdateRejected(f"q-FedAvg needs the metric {INITIAL_LOSS!r}, above 0, {whose}")
        super().check(update)

    def fold(self, update: Update) -> None:
        """Fold in an update that has passed :meth:`check`."""
        super().fold(update)
        moved = (name for name, value in update.parameters.items() if moves(name, value))
        squares = squared_norm(update.parameters[name].double() - self._from[name].double() for name in moved)
        loss = update.metrics[INITIAL_LOSS]
        power, size = loss**self._q, self._lipschitz**2 * squares
        self._terms.append((power, self._q * loss ** (self._q - 1) * size + self._lipschitz * power))

    @property
    def length(self) -> float:
        """What the mean change is to be multiplied by; summed exactly, so that no order changes it."""
        powers, bounds = (math.fsum(each) for each in zip(*self._terms, strict=True))
        return self._lipschitz * powers / bounds
