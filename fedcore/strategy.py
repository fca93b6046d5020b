"""The contract of a strategy: the mathematics of a federation. Subclass it and write ``aggregate_fit``, or one hook more."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fedcore.aggregator import Aggregator, Gather, Update
from fedcore.exchange import Exchange
from fedcore.messages import Kind
from fedcore.parameters import Parameters, Spec
from fedcore.values import Value


class Strategy(ABC):
    """What a federation computes. fedcore calls every method on a thread of its own, one at a time, never under a lock.

    Attributes:
        min_fit_clients: the fewest updates a round may be made of.
        clients_per_round: how many updates close a round.
        exchange: what of the model travels; None: all of it.
        paces: at which of ``RoundPolicy``'s paces it makes sense.
        carries: whether an update may count in a later round than its own.
        policy: settings of ``RoundPolicy`` that it wants, where ``ServerConfig.policy`` does not replace them.
    """

    min_fit_clients: int = 1
    clients_per_round: int = 2
    exchange: Exchange | None = None
    paces: tuple[str, ...] = ("sync", "async")
    carries: bool = True
    policy: Mapping[str, Any] = MappingProxyType({})

    def initialize_parameters(self) -> Parameters | None:
        """Return the model the first round starts from; None asks the first registered client for its own."""
        return None

    @abstractmethod
    def aggregate_fit(self, server_round: int, results: list[Update]) -> Parameters | None:
        """Make a model of a round's updates.

        Args:
            server_round: the number of the round, from 1.
            results: the updates by client id, never empty; each unpacks as ``(parameters, num_examples)``.

        Returns:
            The aggregate; None fails the round.
        """

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Mapping[str, Any]] | None:
        """Evaluate a model on the server.

        Args:
            server_round: the round that made it.
            parameters: a copy, yours to change.

        Returns:
            ``(loss, metrics)``, or None if there is nothing to evaluate with. What it raises is logged and breaks no round.
        """
        return None

    @property
    def evaluates(self) -> bool:
        """Whether :meth:`evaluate` has anything to say; a copy of each model is made for it only then."""
        return type(self).evaluate is not Strategy.evaluate

    def select(self, server_round: int, available: Sequence[str], rng: random.Random) -> Sequence[str]:
        """Order the clients that may be invited; the round invites as many as its policy wants, the first ones first.

        Args:
            server_round: the number of the round.
            available: the registered clients, sorted.
            rng: a generator seeded by the run and the round, so that the choice can be repeated.
        """
        return rng.sample(available, len(available))

    def configure_fit(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Return what to tell a client about its training task: scalars by name. ``round`` and ``seed`` are reserved."""
        return {}

    def configure_evaluate(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Return what to tell a client about its evaluation task."""
        return {}

    def download(
        self, kind: Kind, server_round: int, client_id: str, parameters: Parameters, holds: str = ""
    ) -> Parameters:
        """Return what travels down to a client for a task: the model, unless overridden.

        What is the same for several clients should be the same object: it is described and encoded once.

        Args:
            kind: of the task.
            server_round: the number of the round.
            client_id: whose task it is.
            parameters: the model.
            holds: what the client says that it still has, :attr:`Client.holds <fedcore.Client.holds>`.
        """
        return parameters

    def upload_spec(self, kind: Kind, spec: Spec) -> Spec:
        """Return what an update must look like: the model, unless overridden. An evaluation brings no tensors."""
        return Spec(()) if kind is Kind.EVALUATE else spec

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return the aggregator of a round; unless overridden one that gathers all updates for :meth:`aggregate_fit`."""
        return self.gather(server_round)

    def gather(self, server_round: int) -> Aggregator:
        """Return an aggregator that keeps all updates and calls :meth:`aggregate_fit` with them."""
        return Gather(lambda results: self.aggregate_fit(server_round, results))

    def step(self, server_round: int, current: Parameters, aggregate: Parameters) -> Parameters:
        """Return the next model, given the current one and the round's aggregate: the aggregate, unless overridden.

        The returned tensors belong to fedcore from then on.
        """
        return aggregate

    def aggregate_evaluate(self, server_round: int, results: list[Update]) -> Mapping[str, float]:
        """Make one set of metrics of those that clients sent after evaluating; the mean by examples, unless overridden."""
        return mean_metrics(results)

    def observe(self, server_round: int, updates: Sequence[Update]) -> None:
        """Learn what a committed round was made of: its updates, without tensors. What it remembers of that is kept with it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy must remember to go on after a restart."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that make it compute the same once more, by name: None, bool, int, float, str.

        They are noted with the run, for replaying it. None: there is no saying it in such, as it is unless overridden.
        """
        return None


def aggregator_of(strategy: Strategy, server_round: int, parameters: Parameters) -> Aggregator:
    """Return a round's aggregator: of ``aggregate_fit`` and ``start_round`` the one overridden lower in the class tree wins."""
    for kind in type(strategy).__mro__:
        if "start_round" in vars(kind):
            return strategy.start_round(server_round, parameters)
        if "aggregate_fit" in vars(kind):
            return strategy.gather(server_round)
    raise AssertionError("Strategy itself has both")


def mean_metrics(results: Sequence[Update]) -> dict[str, float]:
    """Return the mean of each metric over the clients that sent it, weighted by their examples."""
    keys = sorted({key for update in results for key in update.metrics})
    means = {}
    for key in keys:
        having = [u for u in results if key in u.metrics]
        means[key] = sum(u.metrics[key] * u.num_examples for u in having) / sum(u.num_examples for u in having)
    return means
