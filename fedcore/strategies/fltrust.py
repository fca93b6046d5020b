"""FLTrust: updates count as far as they point where the server's own goes.

Formula: the server makes an update of its own on a small root data set, which changes the model by ``g``; client i changes it
by ``D_i`` and is trusted with ``t_i = max(0, cos(D_i, g))``; ``w = w + sum(t_i * D_i * ||g|| / ||D_i||) / sum(t_i)``. If nobody
is trusted, the model stays as it is.

Paper: Cao et al., FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS 2021.

Memory: a few times 4 MiB and the model, whatever the number of clients, and the server's own update. Needs root data that
nobody can poison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fedcore.errors import AggregationError, ConfigError, UpdateRejected
from fedcore.extents import check_finite
from fedcore.parameters import Parameters, Spec, copy_parameters
from fedcore.robust import Finish, Rows, trust, weighted
from fedcore.strategies._robust import Robust
from fedcore.strategies.fedavg import EvaluateFn

__all__ = ["FLTrust"]


class FLTrust(Robust):
    """The mean of changes by their angle to the server's own.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        root_update: called as ``root_update(server_round, parameters)`` at the end of each round, with a copy of the model that
            it began with; returns what the server makes of it. A round that is made once more calls it again.
        shared: as for :class:`~fedcore.strategies._robust.Robust`; f matters for ``pre`` alone.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        root_update: Callable[[int, Parameters], Parameters],
        **shared: Any,
    ):
        if not callable(root_update):
            raise ConfigError(f"FLTrust root_update must be a function of (server_round, parameters), not {root_update!r}")
        self.root_update = root_update
        super().__init__(initial_parameters, evaluate_fn, **shared)

    def least(self, f: int) -> int:
        """Return 1: it makes something of any updates."""
        return 1

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the mean by trust."""
        return weighted(trust(rows)[1])

    def anchor(self, server_round: int, parameters: Parameters) -> Mapping[str, Tensor]:
        """Return what the server's own update changes."""
        root = self.root_update(server_round, copy_parameters(parameters))
        try:
            Spec.of(parameters).check(root)
            check_finite(root)
        except UpdateRejected as error:
            raise AggregationError(f"FLTrust root_update returned no update of the model: {error}") from error
        return {name: value.double() - parameters[name].double() for name, value in root.items() if value.is_floating_point()}

    def settings(self) -> dict[str, Any] | None:
        """Return None: a function cannot be noted."""
        return None
