"""Federated averaging.

Formula: ``w = sum(n_i * w_i) / sum(n_i)``, where ``w_i`` is what client i made of the round's model on ``n_i`` examples.

Paper: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.

Memory: the model and an exact sum of 8 bytes an element, whatever the number of clients.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from fedcore.aggregator import Aggregator, Update
from fedcore.averaging import FedAvgAggregator, Weighting
from fedcore.errors import ConfigError
from fedcore.exchange import Exchange
from fedcore.parameters import Parameters, copy_parameters, is_statistic
from fedcore.selection import Selection, Uniform
from fedcore.strategy import Strategy

__all__ = ["FedAvg"]

EvaluateFn: TypeAlias = Callable[[int, Parameters], tuple[float, Mapping[str, Any]] | None]


class FedAvg(Strategy):
    """The mean of the clients' models, weighted by their numbers of examples.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: called as ``evaluate_fn(server_round, parameters)`` after each round, returns ``(loss, metrics)``.
        min_fit_clients: the fewest updates a round may be made of.
        clients_per_round: how many updates close a round.
        weighting: ``"examples"``, ``"uniform"``, or a function of the :class:`~fedcore.aggregator.Update`.
        max_share: the largest part of the total weight that one client may have.
        exchange: what of the model travels, and how buffers are joined; None: all, by dtype.
        selection: who is invited; None: :class:`~fedcore.selection.Uniform`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        min_fit_clients: int = 1,
        clients_per_round: int = 2,
        *,
        weighting: Weighting = "examples",
        max_share: float | None = None,
        exchange: Exchange | None = None,
        selection: Selection | None = None,
    ):
        if evaluate_fn is not None and not callable(evaluate_fn):
            raise ConfigError(f"evaluate_fn must be a function of (server_round, parameters), not {evaluate_fn!r}")
        if min_fit_clients > clients_per_round:
            raise ConfigError(
                f"min_fit_clients is {min_fit_clients}, above clients_per_round {clients_per_round}: no round could close"
            )
        FedAvgAggregator(weighting=weighting, max_share=max_share)
        if exchange is not None and initial_parameters is None:
            raise ConfigError("with an exchange give initial_parameters: a client asked for its own would send its whole model")
        self.exchange, self.selection = exchange, selection or Uniform()
        common = initial_parameters if exchange is None or initial_parameters is None else exchange.common(initial_parameters)
        self.initial_parameters = None if common is None else copy_parameters(common)
        self.evaluate_fn = evaluate_fn
        self.min_fit_clients = min_fit_clients
        self.clients_per_round = clients_per_round
        self.weighting: Weighting = weighting
        self.max_share = max_share

    def select(self, server_round: int, available: Sequence[str], rng: random.Random) -> Sequence[str]:
        """Return the clients in the order of the selection."""
        return self.selection.order(server_round, available, self.clients_per_round, rng)

    def observe(self, server_round: int, updates: Sequence[Update]) -> None:
        """Tell the selection."""
        self.selection.observe(server_round, updates)

    def state_dict(self) -> dict[str, Any]:
        """Return what the selection remembers."""
        return {"selection": self.selection.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.selection.load_state_dict(state.get("selection", {}))

    def initialize_parameters(self) -> Parameters | None:
        """Return the initial parameters."""
        return self.initial_parameters

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return a streaming, exact weighted mean."""
        return FedAvgAggregator(
            parameters, weighting=self.weighting, max_share=self.max_share, exchange=self.exchange
        )

    def aggregate_fit(self, server_round: int, results: list[Update]) -> Parameters | None:
        """Return the weighted mean of ``results``, or None if there are none."""
        if not results:
            return None
        made = FedAvgAggregator(weighting=self.weighting, max_share=self.max_share, exchange=self.exchange)
        return made.aggregate(results)

    def only_averaged(self, name: str) -> bool:
        """Return whether a tensor is no business of a server's optimizer: a statistic, or what the exchange has averaged."""
        return is_statistic(name) or (self.exchange is not None and self.exchange.rule(name) == "average")

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on; None if there is an exchange, or a function, which cannot be noted."""
        if callable(self.weighting) or self.exchange is not None:
            return None
        return {
            "min_fit_clients": self.min_fit_clients, "clients_per_round": self.clients_per_round,
            "weighting": self.weighting, "max_share": self.max_share,
        }  # fmt: skip

    @property
    def evaluates(self) -> bool:
        """Whether there is an ``evaluate_fn``."""
        return self.evaluate_fn is not None or type(self).evaluate is not FedAvg.evaluate

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Mapping[str, Any]] | None:
        """Return what ``evaluate_fn`` says of the model, or None without one."""
        return None if self.evaluate_fn is None else self.evaluate_fn(server_round, parameters)
