"""SCAFFOLD: control variates take the drift out of the clients' steps.

Formula: client i, which keeps ``c_i``, steps along ``g - c_i + c`` from the round's x and c to ``y_i`` in K steps of length l;
then ``c_i' = grad F_i(x)`` (option I), or ``c_i' = c_i - c + (x - y_i) / (K * l)`` (option II). It hands in ``y_i`` and
``c_i' - c_i``. The server: ``x = x + server_lr * (mean(y_i) - x)``, and ``c = c + S / N * mean(c_i' - c_i)`` over the S clients
of the round.

Paper: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020.

Memory: at the server, beside FedAvg's, the control variate and an exact sum of as many elements; as much at a client, and both
travel beside the model in both directions.

Clients train with :class:`fedcore.Training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedcore.aggregator import Aggregator, CheckingAggregator, Update
from fedcore.algorithm import CONTROL, OPTION, group, joined, model_of
from fedcore.averaging import FedAvgAggregator, Weighting
from fedcore.errors import ConfigError
from fedcore.messages import Kind
from fedcore.parameters import DTYPES, Parameters, Spec
from fedcore.strategies._server_step import ServerStep
from fedcore.strategies.fedavg import EvaluateFn
from fedcore.values import Value, check_number

__all__ = ["Scaffold"]


class Scaffold(ServerStep):
    """FedAvg with control variates.

    Attributes:
        controls_weighting: what control variates weigh in their mean: the same each (the paper), or "examples".

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        num_clients: N, the clients of the federation, whether or not they are in a round.
        option: 1: clients measure the gradient of the round's model on all their data
            (:meth:`Training.anchor <fedcore.Training.anchor>`); 2: they take it from the steps they made.
        server_lr: length of a step.
        shared: as for :class:`~fedcore.FedAvg`; ``weighting`` is the models'.

    Raises:
        ConfigError: an argument makes no sense.
    """

    controls_weighting: Weighting = "uniform"
    paces = ("sync",)
    numbers = ("server_lr", "num_clients", "option")

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        num_clients: int,
        option: int = 2,
        server_lr: float = 1.0,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, server_lr=server_lr, **shared)
        check_number("Scaffold num_clients", num_clients, int, 1)
        if option not in (1, 2):
            raise ConfigError(f"Scaffold option must be 1 or 2, not {option!r}")
        self.num_clients, self.option = num_clients, option
        self.control: Parameters = {}
        self._down: tuple[Parameters, Parameters] | None = None

    def configure_fit(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Tell clients which option to take."""
        return {OPTION: self.option}

    def download(
        self, kind: Kind, server_round: int, client_id: str, parameters: Parameters, holds: str = ""
    ) -> Parameters:
        """Return the model and the control variate; the same object in a round, so that it is encoded once."""
        if kind is not Kind.FIT:
            return parameters
        if self._down is None or self._down[0] is not parameters:
            self._down = parameters, joined(parameters, CONTROL, self._control_of(parameters))
        return self._down[1]

    def upload_spec(self, kind: Kind, spec: Spec) -> Spec:
        """Return the model's, and beside it that of the control variate's change."""
        if kind is not Kind.FIT:
            return super().upload_spec(kind, spec)
        floating = [info for info in spec.infos if DTYPES[info.dtype].is_floating_point]
        beside = [info._replace(name=f"{CONTROL}/{info.name}", alias_of="") for info in floating]
        return Spec.checked((*spec.infos, *beside))

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return two means, of the models and of the control variates' changes."""
        return _TwoMeans(
            FedAvgAggregator(parameters, weighting=self.weighting, max_share=self.max_share, exchange=self.exchange),
            FedAvgAggregator(self._control_of(parameters), weighting=self.controls_weighting),
        )

    def step(self, server_round: int, current: Parameters, aggregate: Parameters) -> Parameters:
        """Return the next model; the control variate moves with it."""
        sums, before = group(aggregate, CONTROL), self._control_of(current)
        self.control = {name: before[name] + sums[name] / self.num_clients for name in before}
        return super().step(server_round, current, model_of(aggregate))

    def state_dict(self) -> dict[str, Any]:
        """Return the control variate."""
        return {**super().state_dict(), CONTROL: self.control}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.control = dict(state.get(CONTROL, {}))

    def _control_of(self, model: Mapping[str, Tensor]) -> Parameters:
        floating = {name: value for name, value in model.items() if value.is_floating_point()}
        return self.control or {name: torch.zeros_like(value) for name, value in floating.items()}


class _TwoMeans(CheckingAggregator):
    """The mean of the models, and the sum of the control variates' changes."""

    def __init__(self, models: FedAvgAggregator, controls: FedAvgAggregator):
        self._models, self._controls, self.retains, self._count = models, controls, models.retains, 0

    def prepare(self, spec: Spec, extents: Mapping[str, float]) -> None:
        """Have both sum with what this one was given."""
        for each in (self._models, self._controls):
            each.each, each.lend = self.each, self.lend
        self._models.prepare(spec, extents)

    def check(self, update: Update) -> None:
        """Check both parts."""
        models, controls = _parts(update)
        self._models.check(models)
        self._controls.check(controls)

    def fold(self, update: Update) -> None:
        """Add both parts of an update that has passed :meth:`check`."""
        models, controls = _parts(update)
        self._models.fold(models)
        self._controls.fold(controls)
        self._count += 1

    def result(self) -> Parameters:
        """Return the mean of the models, and beside it the sum of the changes."""
        mean = self._models.result()
        changes = self._controls.result()
        return joined(mean, CONTROL, {name: value * self._count for name, value in changes.items()})


def _parts(update: Update) -> tuple[Update, Update]:
    """Return an update's model and its control variate's change, with their magnitudes."""
    changes = group(update.parameters, CONTROL)
    measured = {name: update.extent(f"{CONTROL}/{name}") for name in changes}
    return replace(update, parameters=model_of(update.parameters)), replace(update, parameters=changes, extents=measured)
