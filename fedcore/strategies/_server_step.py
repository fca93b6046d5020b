"""What strategies share whose server takes a step of its own: the mean change of the clients is its negative gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.parameters import Parameters, working
from fedcore.strategies.fedavg import EvaluateFn, FedAvg
from fedcore.values import check_number


class ServerStep(FedAvg):
    """FedAvg whose server moves each floating-point tensor by a rule of its own; other tensors become the aggregate's.

    So do the ``running_mean`` and ``running_var`` of normalization layers, which are measured, not trained, and what the
    exchange has averaged: :attr:`settles` of the way at once.

    Arithmetic is done in float32, in float64 for float64 tensors, and rounded once to the tensor's dtype.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        server_lr: what a step is multiplied by.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    slots: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ("server_lr",)
    settles: float = 1.0

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        server_lr: float = 1.0,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, **shared)
        self.server_lr = self.above_zero("server_lr", server_lr)
        self.memory: dict[str, Parameters] = {slot: {} for slot in self.slots}

    def move(self, change: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """Return what to add to a tensor of the model: ``server_lr`` times the change, unless overridden.

        Args:
            change: the clients' mean, less the model.
            memory: by slot, what was left there for this tensor; zeros at first. To be replaced, not changed in place.
        """
        return self.server_lr * change

    def step(self, server_round: int, current: Parameters, aggregate: Parameters) -> Parameters:
        """Return the model moved by the rule."""
        made: dict[int, Tensor] = {}  # what is tied is moved once
        for name, value in aggregate.items():
            if id(value) not in made:
                made[id(value)] = self._stepped(name, current[name], value)
        return {name: made[id(value)] for name, value in aggregate.items()}

    def _stepped(self, name: str, old: Tensor, mean: Tensor) -> Tensor:
        if not mean.is_floating_point():
            return mean
        kind = working(mean.dtype)
        before = old.to(kind)
        change = mean.to(kind) - before
        if self.only_averaged(name):
            return mean if self.settles == 1.0 else (before + self.settles * change).to(mean.dtype)
        memory = {slot: self.memory[slot].get(name, torch.zeros_like(change)) for slot in self.slots}
        made = before + self.move(change, memory)
        for slot in self.slots:
            self.memory[slot][name] = memory[slot]
        return made.to(mean.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return what the server keeps between rounds: for each slot a tensor of each name."""
        return {**super().state_dict(), **{slot: dict(tensors) for slot, tensors in self.memory.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.memory = {slot: dict(state.get(slot, {})) for slot in self.slots}

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on."""
        shared = super().settings()
        return shared if shared is None else {**shared, **{name: getattr(self, name) for name in self.numbers}}

    def above_zero(self, name: str, value: float) -> float:
        """Return a setting that must be a number above 0."""
        check_number(f"{type(self).__name__} {name}", value, float, math.ulp(0.0))
        return value

    def below_one(self, name: str, value: float) -> float:
        """Return a setting that must be a number from 0 to below 1."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"{type(self).__name__} {name} must be a number from 0 to below 1, not {value!r}")
        return value
