"""What a strategy and its clients tell each other beside the model: groups of tensors, and keys of a task's config.

A group's tensors travel in the same payload as the model, ``GROUP/NAME`` being what belongs to the model's ``NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.parameters import Parameters

CONTROL = "control"
"""The control variates of SCAFFOLD."""

GROUPS = (CONTROL,)

PROXIMAL = "fedprox.mu"
DYNAMIC = "feddyn.alpha"
NORMALIZED = "fednova.normalized"
OPTION = "scaffold.option"
BUDGET = "training.seconds"
LOSS = "qfedavg.initial_loss"
STEPS, INITIAL_LOSS = "steps", "initial_loss"
"""The first are keys of configs, by which strategies say what they want; the last two are metrics that answer."""


def group(parameters: Mapping[str, Tensor], name: str) -> Parameters:
    """Return the tensors of a group, under the model's names."""
    return {each.removeprefix(f"{name}/"): value for each, value in parameters.items() if each.startswith(f"{name}/")}


def model_of(parameters: Mapping[str, Tensor]) -> Parameters:
    """Return what belongs to no group."""
    return {name: value for name, value in parameters.items() if name.partition("/")[0] not in GROUPS or "/" not in name}


def joined(model: Mapping[str, Tensor], name: str, beside: Mapping[str, Tensor]) -> Parameters:
    """Return a payload of a model and a group.

    Raises:
        ConfigError: a tensor of the model has a name like those of the group.
    """
    if taken := next((each for each in model if each.startswith(f"{name}/")), None):
        raise ConfigError(f"tensor {taken!r} has a name that is kept for the group {name!r}: rename it")
    return {**model, **{f"{name}/{each}": value for each, value in beside.items()}}
