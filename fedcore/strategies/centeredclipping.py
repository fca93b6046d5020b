"""Centered clipping: updates count as far as they are near what the last round changed.

Formula: ``v = v + mean(clip(D_i - v, tau))``, ``iterations`` times, beginning with what the last round changed, 0 in the first;
then ``w = w + v``. ``D_i`` is what client i changed, and ``clip`` cuts a vector to the length tau.

Paper: Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021. An attacker who knows v can
stay within tau of it (arXiv 2208.09894).

Memory: a few times 4 MiB and the model, whatever the number of clients, and the last change, which each checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.parameters import Parameters, working
from fedcore.robust import Finish, Rows, centered_clipping
from fedcore.strategies._robust import Robust
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import check_number

__all__ = ["CenteredClipping"]


class CenteredClipping(Robust):
    """The mean of changes that are cut to a distance from the last one.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        tau: the distance, above 0.
        iterations: how often it is done over.
        shared: as for :class:`~fedcore.strategies._robust.Robust`; f matters for ``pre`` alone.

    Raises:
        ConfigError: an argument makes no sense.
    """

    numbers = ("tau", "iterations")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        tau: float = 1.0,
        iterations: int = 1,
        **shared: Any,
    ):
        check_number("CenteredClipping tau", tau, float, 1e-100)
        check_number("CenteredClipping iterations", iterations, int, 1)
        self.tau, self.iterations = tau, iterations
        self.previous: Parameters = {}
        super().__init__(initial_parameters, evaluate_fn, **shared)

    def least(self, f: int) -> int:
        """Return 1: it makes something of any updates."""
        return 1

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the new change."""
        return centered_clipping(rows, self.tau, self.iterations)

    def anchor(self, server_round: int, parameters: Parameters) -> Mapping[str, Tensor]:
        """Return what the last round changed."""
        return self.previous

    def step(self, server_round: int, current: Parameters, aggregate: Parameters) -> Parameters:
        """Return the aggregate; what it changes is remembered."""
        self.previous = {
            name: value.to(working(value.dtype)) - current[name].to(working(value.dtype))
            for name, value in aggregate.items()
            if value.is_floating_point()
        }
        return super().step(server_round, current, aggregate)

    def state_dict(self) -> dict[str, Any]:
        """Return what the last round changed."""
        return {**super().state_dict(), "previous": self.previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.previous = dict(state.get("previous", {}))
