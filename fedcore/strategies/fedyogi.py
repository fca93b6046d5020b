"""FedYogi: as FedAdam, but the squares shrink slowly after a large change.

Formula, for each element, from m = v = 0: ::

    d = mean(w_i) - w
    m = beta1 * m + (1 - beta1) * d
    v = v - (1 - beta2) * d ** 2 * sign(v - d ** 2)
    w = w + server_lr * m / (sqrt(v) + tau)

There is no bias correction, as in the paper.

Paper: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2.

Memory: beside FedAvg's, two numbers an element (m and v), which are kept with each checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedcore.strategies._adaptive import Adaptive

__all__ = ["FedYogi"]


class FedYogi(Adaptive):
    """FedAvg with Yogi at the server.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        server_lr: length of a step, 0.1 unless told.
        beta1: how much of the direction is kept from round to round, 0.9 unless told.
        beta2: how much of the squares is kept, 0.99 unless told.
        tau: the smallest divisor: how adaptive it is.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def squares(self, change: Tensor, before: Tensor) -> Tensor:
        """Return the squares, moved towards those of the change by a part of the latter."""
        square = change.square()
        return before - (1 - self.beta2) * square * torch.sign(before - square)
