"""Clipping: no update changes the model by more than so much.

Formula: a client's change D, over all floating-point tensors as one vector, becomes ``D * min(1, norm / ||D||)``.

Paper: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018 ("flat clipping").
"""

from __future__ import annotations

import math

from fedcore.errors import ConfigError
from fedcore.filter import Context, Filter
from fedcore.parameters import Parameters

__all__ = ["Clip"]


class Clip(Filter):
    """Scales a client's change down to an L2 norm, before it leaves. At the server it does nothing.

    A server that must not trust its clients bounds norms itself: :class:`fedcore.NormBounding`.

    Args:
        norm: the largest that a change may have.

    Raises:
        ConfigError: it is no number above 0.
    """

    def __init__(self, norm: float):
        if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf:
            raise ConfigError(f"Clip norm must be a number above 0, not {norm!r}")
        self.norm = norm

    def __repr__(self) -> str:
        return f"Clip(norm={self.norm})"

    def outgoing(self, change: Parameters, context: Context) -> Parameters:
        """Return the change, scaled down if it is too long; one that is not finite stays, for the server to refuse by name."""
        length = norm_of(change)
        if not length > self.norm:
            return change
        return {name: (value.double() * (self.norm / length)).to(value.dtype) for name, value in change.items()}


def norm_of(change: Parameters) -> float:
    """Return the L2 norm of tensors as one vector, in float64."""
    return math.sqrt(math.fsum(float(value.double().square().sum()) for value in change.values()))
