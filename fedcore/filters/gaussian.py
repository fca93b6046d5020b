"""Gaussian noise on what is sent, or on what the server makes of it.

Formula: each element of a change has a draw from ``N(0, std^2)`` added.

This is the noise alone, drawn from the generator of torch: what privacy it gives takes an accountant, and noise that cannot
be guessed from a seed.
"""

from __future__ import annotations

import math
import secrets
from typing import Literal

import torch

from fedcore.errors import ConfigError
from fedcore.filter import Context, Filter
from fedcore.parameters import Parameters
from fedcore.values import check_number

__all__ = ["Gaussian"]


class Gaussian(Filter):
    """Adds Gaussian noise at one end.

    Args:
        std: standard deviation of the noise in each element.
        at: ``"client"``: on each update before it leaves; ``"server"``: on each aggregate.
        seeded: draw from the round's seed, so that a run can be repeated to the bit. A client whose noise is to hide something
            must not: the server knows the seed.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(self, std: float, at: Literal["client", "server"] = "server", *, seeded: bool | None = None):
        check_number("Gaussian std", std, float, math.ulp(0.0))
        if at not in ("client", "server"):
            raise ConfigError(f"Gaussian at must be 'client' or 'server', not {at!r}")
        self.std, self.at, self.seeded = std, at, at == "server" if seeded is None else seeded

    def __repr__(self) -> str:
        return f"Gaussian(std={self.std}, at={self.at!r}, seeded={self.seeded})"

    def outgoing(self, change: Parameters, context: Context) -> Parameters:
        """Return the change with noise, if it is for clients to add."""
        return self._noisy(change, context) if self.at == "client" else change

    def incoming(self, change: Parameters, context: Context) -> Parameters:
        """Return the change with noise, if it is for the server to add."""
        return self._noisy(change, context) if self.at == "server" else change

    def _noisy(self, change: Parameters, context: Context) -> Parameters:
        seed = context.seed if self.seeded else secrets.randbits(63)
        draw = torch.Generator().manual_seed(seed)
        noise = {name: torch.randn(value.shape, generator=draw, dtype=torch.float32) for name, value in change.items()}
        return {name: (value.double() + self.std * noise[name].double()).to(value.dtype) for name, value in change.items()}
