"""The client's half of the algorithms that change what a training step does: one loop serves them all.

>>> class MyClient(Client):
...     def get_parameters(self):
...         return model.state_dict()
...     def fit(self, parameters, config):
...         training = Training(model, parameters, config, self.memory)
...         for x, y in training.batches(loader, epochs=2):
...             optimizer.zero_grad()
...             loss(model(x), y).backward()
...             training.step(optimizer)
...         return training.result(len(loader.dataset))

With FedAvg it does what the plain loop does; with FedProx, SCAFFOLD, FedDyn, FedNova and q-FedAvg it corrects gradients, counts
steps and sends what else belongs to them, as the strategy of the server asks in the task's config and parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedcore.algorithm import (
    BUDGET,
    CONTROL,
    DYNAMIC,
    INITIAL_LOSS,
    LOSS,
    NORMALIZED,
    OPTION,
    PROXIMAL,
    STEPS,
    group,
    joined,
    model_of,
)
from fedcore.errors import ConfigError, UpdateRejected
from fedcore.parameters import Parameters
from fedcore.values import Config

B = TypeVar("B")


class Training:
    """One local training, from the round's model to the update.

    Args:
        model: the module that is trained; its parameters and buffers become the round's.
        parameters: what :meth:`Client.fit <fedcore.Client.fit>` was given.
        config: likewise.
        memory: what the client keeps from round to round, :attr:`Client.memory <fedcore.Client.memory>`; SCAFFOLD and FedDyn
            have a tensor for each of the model's there.
        clock: seconds, for :meth:`batches`.

    Attributes:
        steps: how many were made.

    Raises:
        ConfigError: the algorithm needs ``memory``.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        config: Config,
        memory: MutableMapping[str, Parameters] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._model, self._config, self.steps = model, config, 0
        self._start = {name: value.detach().clone() for name, value in model_of(parameters).items()}
        self._control = group(parameters, CONTROL)
        if memory is None and (self._control or DYNAMIC in config):
            raise ConfigError("this algorithm keeps something from round to round: Training(..., memory=self.memory)")
        self._memory: MutableMapping[str, Parameters] = {} if memory is None else memory
        self._seconds, self._clock, self._began = config.get(BUDGET), clock, clock()
        self._lr: float | None = None
        self._anchor: dict[str, Tensor] = {}
        self._loss, self._measured = 0.0, 0  # summed over so many examples
        model.load_state_dict(dict(self._start))
        self._trained = {name: value for name, value in model.named_parameters() if value.requires_grad}

    # --- the loop ---

    def batches(self, loader: Iterable[B], epochs: int = 1) -> Iterator[B]:
        """Yield the batches of so many passes over ``loader``, until the server's time is over; one batch at least.

        A strategy that sets ``time_budget`` takes whatever was made until then: work of stragglers counts, too.
        """
        for _ in range(epochs):
            for batch in loader:
                yield batch
                if self.over:
                    return

    @property
    def over(self) -> bool:
        """Whether the time is over that the server gives for a round's training."""
        return isinstance(self._seconds, int | float) and self._clock() - self._began >= self._seconds

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Correct the gradients as the algorithm wants, and let the optimizer make its step."""
        self._lr = float(optimizer.param_groups[0]["lr"])
        mu, alpha = self._number(PROXIMAL), self._number(DYNAMIC)
        for name, parameter in self._trained.items():
            if parameter.grad is None:
                continue
            with torch.no_grad():
                if mu or alpha:
                    parameter.grad.add_(parameter - self._start[name].to(parameter.device), alpha=mu + alpha)
                if alpha:
                    parameter.grad.sub_(self._kept("feddyn", name).to(parameter.device))
                if self._control:
                    parameter.grad.add_((self._control[name] - self._kept("scaffold", name)).to(parameter.device))
        optimizer.step()
        self.steps += 1

    @property
    def wants_anchor(self) -> bool:
        """Whether the gradient of the round's model is wanted (SCAFFOLD, option I): :meth:`anchor`, before the first step."""
        return bool(self._control) and self._config.get(OPTION) == 1

    @property
    def wants_loss(self) -> bool:
        """Whether the loss of the round's model is wanted (q-FedAvg): :meth:`anchor`, before the first step."""
        return bool(self._config.get(LOSS))

    def anchor(self, loss: Tensor, num_examples: int) -> None:
        """Learn the mean loss of the round's model over some examples; call it for all of them."""
        if self.steps:
            raise ConfigError("Training.anchor belongs before the first step, when the model is still the round's")
        self._loss, self._measured = self._loss + float(loss.detach()) * num_examples, self._measured + num_examples
        if not self.wants_anchor:
            return
        names = list(self._trained)
        for name, found in zip(names, torch.autograd.grad(loss, list(self._trained.values()), allow_unused=True), strict=True):
            if found is not None:
                self._anchor[name] = self._anchor.get(name, torch.zeros_like(found)) + found.detach() * num_examples

    # --- the update ---

    def result(self, num_examples: int, metrics: Mapping[str, Any] | None = None) -> tuple[Parameters, int, dict[str, Any]]:
        """Return what :meth:`Client.fit <fedcore.Client.fit>` is to return.

        Raises:
            UpdateRejected: the algorithm cannot make an update of no steps, or lacks what :meth:`anchor` measures.
        """
        told = dict(metrics or {})
        made = {name: value.detach() for name, value in self._model.state_dict().items()}
        if self._config.get(NORMALIZED):
            self._expect_steps()
            told[STEPS] = self.steps
            start = self._start
            made = {n: start[n] + (v.cpu() - start[n]) / self.steps if n in self._trained else v for n, v in made.items()}
        if self.wants_loss:
            if not self._measured:
                raise UpdateRejected("q-FedAvg goes by the loss of the round's model: measure it with Training.anchor")
            told[INITIAL_LOSS] = self._loss / self._measured
        if alpha := self._number(DYNAMIC):
            self._memory["feddyn"] = {
                n: self._kept("feddyn", n) - alpha * (v.detach().cpu() - self._start[n]) for n, v in self._trained.items()
            }
        return joined(made, CONTROL, self._control_changes()), num_examples, told

    def _control_changes(self) -> Parameters:
        """Change this client's control variate, and return by how much; that of a tensor nobody trains stays zero."""
        if not self._control:
            return {}
        self._expect_steps()
        changes, kept = {name: torch.zeros_like(value) for name, value in self._control.items()}, {}
        for name, parameter in self._trained.items():
            before, after = self._kept("scaffold", name), self._next_control(name, parameter.detach().cpu())
            changes[name], kept[name] = after - before, after
        self._memory["scaffold"] = kept
        return changes

    def _next_control(self, name: str, trained: Tensor) -> Tensor:
        if self.wants_anchor:
            if not self._measured:
                raise UpdateRejected("SCAFFOLD's option I takes the round's model's gradient: measure it with Training.anchor")
            return self._anchor[name].cpu() / self._measured if name in self._anchor else torch.zeros_like(trained)
        per_step = (self._start[name] - trained) / (self.steps * (self._lr or 1.0))
        return self._kept("scaffold", name) - self._control[name] + per_step

    def _expect_steps(self) -> None:
        if not self.steps:
            raise UpdateRejected("no step was made with Training.step, of which this algorithm makes its update")

    def _kept(self, algorithm: str, name: str) -> Tensor:
        kept = self._memory.get(algorithm, {})
        return kept[name] if name in kept else torch.zeros_like(self._start[name])

    def _number(self, key: str) -> float:
        value = self._config.get(key, 0.0)
        return float(value) if isinstance(value, int | float) else 0.0
