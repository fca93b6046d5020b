"""FedOpt: any optimizer of torch at the server.

Formula: the gradient of each element is ``w - mean(w_i)``, and the optimizer makes one step with it a round.

Paper: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 1.

Memory: beside FedAvg's, what the optimizer keeps, and a copy of the floating-point tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.parameters import Parameters
from fedcore.strategies.fedavg import EvaluateFn, FedAvg

__all__ = ["FedOpt"]


class FedOpt(FedAvg):
    """FedAvg with an optimizer of torch at the server.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        optimizer: makes one of parameters, such as ``lambda parameters: torch.optim.Adam(parameters, lr=0.01)``.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.

    A run is replayed with the same object in code: an optimizer cannot be noted with it.
    """

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, **shared)
        if not callable(optimizer):
            raise ConfigError(f"FedOpt optimizer must be a function of parameters that returns one of torch, not {optimizer!r}")
        self._make, self._state = optimizer, dict[str, Any]()

    def step(self, server_round: int, current: Parameters, aggregate: Parameters) -> Parameters:
        """Return the model after one step of the optimizer."""
        names = [name for name, value in aggregate.items() if value.is_floating_point() and not self.only_averaged(name)]
        moved = {name: torch.nn.Parameter(current[name].clone()) for name in names}
        for name, parameter in moved.items():
            parameter.grad = parameter.detach() - aggregate[name]
        made = self._make(moved.values())
        if self._state:
            made.load_state_dict(_restored(self._state))
        made.step()
        self._state = _kept(made.state_dict())
        return {name: moved[name].detach() if name in moved else value for name, value in aggregate.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizer keeps."""
        return {**super().state_dict(), "optimizer": self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._state = dict(state.get("optimizer", {}))

    def settings(self) -> dict[str, Any] | None:
        """Return None: a function cannot be noted."""
        return None


def _kept(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with names for its numbered parameters."""
    return {"state": {str(number): each for number, each in state["state"].items()}, "groups": state["param_groups"]}


def _restored(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy for the optimizer, which changes it in place."""
    own = copy.deepcopy(dict(state))
    return {"state": {int(number): each for number, each in own["state"].items()}, "param_groups": own["groups"]}
