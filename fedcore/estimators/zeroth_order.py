"""Zeroth-order steps: what a loss does along random directions says where to go, with no gradient and no second model.

Formula: for P directions z, ``g = (f(x + mu z) - f(x)) / mu`` (forward), or ``(f(x + mu z) - f(x - mu z)) / (2 mu)`` (central);
then ``x = x - (lr / P) sum_p g_p z_p``.

Papers: Malladi et al., Fine-Tuning Language Models with Just Forward Passes (MeZO), NeurIPS 2023. Nesterov and Spokoiny, Random
Gradient-Free Minimization of Convex Functions, 2017.

Memory: stretches of directions, 16 MB at most, whatever the model's size. The model is moved in place and moved back, which
does not restore the last bits: elements drift. Of float32 elements drawn from N(0, 1), after 1000 directions with mu = 0.001,
the root mean square drift is 3e-6 with the central difference, and below 6e-8 with the forward one, where most roundings
cancel. Who needs the very bits keeps a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

from fedcore.directions import KINDS, Kind, seeds, shift
from fedcore.errors import ConfigError
from fedcore.values import check_number

__all__ = ["Estimate", "ZerothOrder"]


@dataclass(frozen=True)
class Estimate:
    """What was measured at one model.

    Attributes:
        loss: there; with the central difference, the mean of those around it.
        seeds: of the directions.
        slopes: of the loss, along each.
    """

    loss: float
    seeds: tuple[int, ...]
    slopes: tuple[float, ...]


class ZerothOrder:
    """Estimates gradients from losses alone.

    >>> estimator = ZerothOrder(perturbations=8)
    >>> for x, y in loader:
    ...     estimator.step(model, lambda: loss(model(x), y), lr=1e-3)

    The loss must be one function in all that is measured for a step: the same batch, no dropout.

    Args:
        mu: how far to go along a direction; too short, and the rounding of the loss hides its slope.
        perturbations: P, directions a step.
        difference: ``"forward"``, which takes P + 1 losses a step, or ``"central"``, with 2 P, exact for quadratics.
        directions: ``"gaussian"``, or ``"rademacher"``, which is some times faster.
        seed: that those of the directions are drawn from.

    Attributes:
        steps: how many estimates were made with seeds of its own; set it, to go on where another one stopped.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        *,
        mu: float = 1e-3,
        perturbations: int = 1,
        difference: Literal["forward", "central"] = "forward",
        directions: Kind = "gaussian",
        seed: int = 0,
    ):
        check_number("ZerothOrder mu", mu, float, math.ulp(0.0))
        check_number("ZerothOrder perturbations", perturbations, int, 1)
        check_number("ZerothOrder seed", seed, int, 0)
        if difference not in ("forward", "central"):
            raise ConfigError(f"ZerothOrder difference must be 'forward' or 'central', not {difference!r}")
        if directions not in KINDS:
            raise ConfigError(f"ZerothOrder directions must be 'rademacher' or 'gaussian', not {directions!r}")
        self.mu, self.perturbations, self.directions, self.seed = mu, perturbations, directions, seed
        self.steps = 0
        self._points = (1.0,) if difference == "forward" else (1.0, -1.0)

    def estimate(
        self, model: nn.Module | Iterable[Tensor], loss: Callable[[], Tensor], seeds: Sequence[int] | None = None
    ) -> Estimate:
        """Measure the loss around a model, which is where it was afterwards, but for rounding.

        Args:
            model: a module, of which the parameters are meant that want gradients; or tensors, in the directions' order.
            loss: returns one number; called with the model moved.
            seeds: of the directions; None: drawn.
        """
        with torch.no_grad():
            return self._measured(_tensors(model), loss, self._drawn() if seeds is None else tuple(seeds))

    def step(
        self,
        model: nn.Module | Iterable[Tensor],
        loss: Callable[[], Tensor],
        *,
        lr: float,
        seeds: Sequence[int] | None = None,
    ) -> Estimate:
        """Measure the loss around a model, and move it downhill; arguments as for :meth:`estimate`."""
        with torch.no_grad():
            tensors = _tensors(model)
            found = self._measured(tensors, loss, self._drawn() if seeds is None else tuple(seeds))
            for seed, slope in zip(found.seeds, found.slopes, strict=True):
                shift(tensors, self.directions, seed, -lr / len(found.seeds) * slope)
        return found

    def _drawn(self) -> tuple[int, ...]:
        self.steps += 1
        return tuple(seeds(self.seed, self.steps, self.perturbations))

    def _measured(self, tensors: list[Tensor], loss: Callable[[], Tensor], drawn: tuple[int, ...]) -> Estimate:
        here = float(loss()) if len(self._points) == 1 else math.nan
        around = [self._along(tensors, loss, seed) for seed in drawn]
        if len(self._points) == 1:
            return Estimate(here, drawn, tuple((ahead - here) / self.mu for (ahead,) in around))
        slopes = tuple((ahead - behind) / (2 * self.mu) for ahead, behind in around)
        return Estimate(fmean(each for both in around for each in both), drawn, slopes)

    def _along(self, tensors: list[Tensor], loss: Callable[[], Tensor], seed: int) -> list[float]:
        at, found = 0.0, []
        try:
            for point in self._points:
                shift(tensors, self.directions, seed, (point - at) * self.mu)
                at = point
                found.append(float(loss()))
        finally:
            shift(tensors, self.directions, seed, -at * self.mu)
        return found


def _tensors(model: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    return [each for each in model.parameters() if each.requires_grad] if isinstance(model, nn.Module) else list(model)
