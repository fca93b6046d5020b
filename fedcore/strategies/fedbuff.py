"""FedBuff: the server moves the model whenever K updates have come, whichever models they were made from.

Formula: ``w = w + server_lr / K * sum s(t_i) * D_i``, where ``D_i`` is what client i changed of the model that it began with,
``t_i`` how many models have been made since, and ``s(t) = (1 + t) ** -staleness_exponent``. The mean is over K, not over the
sum of ``s``: a late update moves the model less, and the others no more.

Paper: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022.

Memory: FedAvg's; a client keeps the model that it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.strategies._server_step import ServerStep
from fedcore.strategies.fedavg import EvaluateFn

__all__ = ["FedBuff"]


class FedBuff(ServerStep):
    """Buffered asynchronous averaging.

    ``server_lr`` is below 1: differences to older models overlap, as each of them goes towards what the others have reached
    meanwhile, and their full sum would overshoot it, the more so the more clients are busy at once.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        buffer_size: K. A client counts once in a buffer, so K should be well below the number of clients.
        server_lr: length of a step.
        concurrency: clients that may be busy at once; None: all.
        staleness_exponent: how fast late updates shrink; 0: not at all.
        max_staleness: models behind which an update does not count any more.
        shared: as for :class:`~fedcore.FedAvg`; ``weighting`` is uniform unless told, as in the paper.

    Raises:
        ConfigError: an argument makes no sense.
    """

    paces = ("async",)
    numbers = ("server_lr",)

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        buffer_size: int = 10,
        server_lr: float = 0.5,
        concurrency: int | None = None,
        staleness_exponent: float = 0.5,
        max_staleness: int = 20,
        **shared: Any,
    ):
        if taken := {"min_fit_clients", "clients_per_round"} & shared.keys():
            raise ConfigError(f"{type(self).__name__} has a buffer_size: leave out {' and '.join(sorted(taken))}")
        shared = {"weighting": "uniform", **shared, "clients_per_round": buffer_size}
        super().__init__(initial_parameters, evaluate_fn, server_lr=server_lr, **shared)
        self.buffer_size, self.settles = buffer_size, min(1.0, self.server_lr)
        self.policy = {
            "pace": "async", "concurrency": concurrency, "staleness_exponent": staleness_exponent,
            "max_staleness": max_staleness,
        }  # fmt: skip

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on."""
        shared = super().settings()
        own = ("min_fit_clients", "clients_per_round")
        return shared and {**{n: v for n, v in shared.items() if n not in own}, "buffer_size": self.buffer_size}
