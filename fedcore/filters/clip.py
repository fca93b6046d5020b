"""Clipping: no update changes the model by more than so much.

Formula: a client's change D, over all floating-point tensors as one vector, becomes ``D * min(1, norm / ||D||)``.

Paper: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018 ("flat clipping").
"""

from __future__ import annotations

import math

from fedcore.extents import squared_norm
from fedcore.filter import Context, Filter
from fedcore.parameters import Parameters
from fedcore.values import check_number

__all__ = ["Clip"]


class Clip(Filter):
    """Scales a client's change down to an L2 norm, before it leaves. At the server it does nothing.

    It is the client's own restraint: a server that must not trust its clients cannot rely on it.

    Args:
        norm: the largest that a change may have.

    Raises:
        ConfigError: it is no number above 0.
    """

    def __init__(self, norm: float):
        check_number("Clip norm", norm, float, math.ulp(0.0))
        self.norm = norm

    def __repr__(self) -> str:
        return f"Clip(norm={self.norm})"

    def outgoing(self, change: Parameters, context: Context) -> Parameters:
        """Return the change, scaled down if it is too long; one that is not finite stays, for the server to refuse by name."""
        length = math.sqrt(squared_norm(change.values()))
        if not length > self.norm:
            return change
        return {name: (value.double() * (self.norm / length)).to(value.dtype) for name, value in change.items()}
