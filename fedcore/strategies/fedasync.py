"""FedAsync: every update moves the model as soon as it comes.

Formula: ``w = w + server_lr * s(t) * D``, where D is what a client changed of the model that it began with, t how many models
have been made since, and ``s(t) = (1 + t) ** -staleness_exponent``. (In the paper the server mixes in the client's whole model;
that undoes a part of what others have done meanwhile, which the difference does not.)

Paper: Xie, Koyejo and Gupta, Asynchronous Federated Optimization, arXiv 1903.03934, 2019.

Memory: FedAvg's; a client keeps the model that it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.strategies.fedbuff import FedBuff

__all__ = ["FedAsync"]


class FedAsync(FedBuff):
    """FedBuff with a buffer of one.

    ``server_lr`` is below 1 because it is the part that a single client, whose data is like nobody else's, moves the model by.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        server_lr: length of a step.
        concurrency: clients that may be busy at once; None: all.
        staleness_exponent: how fast late updates shrink; 0: not at all.
        max_staleness: models behind which an update does not count any more.
        shared: as for :class:`~fedcore.FedAvg`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        server_lr: float = 0.6,
        concurrency: int | None = None,
        staleness_exponent: float = 0.5,
        max_staleness: int = 200,
        **shared: Any,
    ):
        if "buffer_size" in shared:
            raise ConfigError("the buffer of FedAsync holds one update: take FedBuff for more")
        super().__init__(
            initial_parameters, evaluate_fn, buffer_size=1, server_lr=server_lr, concurrency=concurrency,
            staleness_exponent=staleness_exponent, max_staleness=max_staleness, **shared,
        )  # fmt: skip

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on."""
        shared = super().settings()
        return shared and {name: value for name, value in shared.items() if name != "buffer_size"}
