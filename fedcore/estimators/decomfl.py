"""The client's half of DeComFL; the server's is :class:`fedcore.DeComFL`.

Memory: the model, and a copy of the round's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from fedcore.client import Client
from fedcore.errors import ConfigError, ProtocolError
from fedcore.estimators.zeroth_order import ZerothOrder
from fedcore.parameters import Parameters, copy_parameters, digest
from fedcore.trail import DIGEST, LENGTHS, LR, MU, ROUNDS, SLOPES, Trail
from fedcore.values import Value

__all__ = ["DeComFLClient"]


class DeComFLClient(Client):
    """Trains by losses alone: it receives the model once, and from then on some numbers a round, and sends as few.

    >>> class MyClient(DeComFLClient):
    ...     def batch(self, step, config):
    ...         return self.batches[(config["round"] + step) % len(self.batches)]
    ...     def loss(self, batch):
    ...         return cross_entropy(self.model(batch.x), batch.y)

    To evaluate, too, override :meth:`Client.evaluate`, and have :meth:`catch_up` bring ``self.model`` to the model in question.

    Args:
        model: the module that is trained; on any device. Dropout must be off.
        num_examples: how many this client's data has.

    Attributes:
        model: that module.
        holds: digest of the copy of the round's model that this client keeps, or "".
    """

    def __init__(self, model: nn.Module, num_examples: int):
        self.model, self.num_examples = model, num_examples
        self._kept: Parameters = {}

    @abstractmethod
    def batch(self, step: int, config: dict[str, Value]) -> Any:
        """Return what a local step, numbered from 0, measures losses on: the same for all its directions."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the loss of ``self.model`` as it is now: one number."""

    def get_parameters(self) -> Parameters:
        """Return the model."""
        return dict(self.model.state_dict())

    def fit(self, parameters: Parameters, config: dict[str, Value]) -> tuple[Mapping[str, Tensor], int, dict[str, float]]:
        """Make the local steps, return the slopes that were measured, and the mean loss; then be back at the round's model.

        Raises:
            ProtocolError: see :meth:`catch_up`.
            ConfigError: a buffer of the model would be moved.
        """
        self.catch_up(parameters, config)
        trail, found = Trail.told(config), []
        estimator = ZerothOrder(mu=_number(config, MU), perturbations=trail.perturbations, directions=trail.kind)
        tensors = self._trained(trail)
        try:
            for step, seeds in enumerate(trail.seeds(int(str(config["round"])))):
                loss = partial(self.loss, self.batch(step, config))
                found.append(estimator.step(tensors, loss, lr=_number(config, LR), seeds=seeds))
                self.report_progress(step + 1, trail.steps)
        finally:
            self.model.load_state_dict(self._kept)
        slopes = torch.tensor([each.slopes for each in found], dtype=torch.float64)
        return {SLOPES: slopes}, self.num_examples, {"loss": fmean(each.loss for each in found)}

    def catch_up(self, parameters: Parameters, config: dict[str, Value]) -> None:
        """Bring ``self.model``, and the copy of it that is kept, to the model that a task is about.

        Args:
            parameters: what :meth:`fit` or :meth:`evaluate` was given: that model, or how it follows from the one that is kept.
            config: likewise.

        Raises:
            ProtocolError: what the rounds since lead to is not what the server has. Begun anew, it gets the whole model.
        """
        begun, self.holds = self.holds, ""
        if DIGEST in parameters:
            self._retrace(parameters, Trail.told(config), begun)
            self.holds = bytes(parameters[DIGEST].tolist()).hex()
        else:
            self._kept = copy_parameters(parameters)
            self.holds = digest(self._kept)
        self.model.load_state_dict(self._kept)

    def _retrace(self, parameters: Parameters, trail: Trail, begun: str) -> None:
        wanted, rounds = bytes(parameters[DIGEST].tolist()).hex(), parameters[ROUNDS].tolist()
        for number, lengths in zip(rounds, parameters[LENGTHS].view(torch.float64), strict=True):
            trail.advance(self._kept, number, lengths)
        found = digest(self._kept) if rounds else begun
        if found != wanted:
            raise ProtocolError(
                f"the model rebuilt over the rounds {rounds} is {found}, the server's is {wanted}: one of the two computes "
                "otherwise. Start this client again, and it is sent the whole model",
                reason="BASE_MISMATCH",
            )

    def _trained(self, trail: Trail) -> list[Tensor]:
        names, present = trail.names(self._kept), dict(self.model.named_parameters(remove_duplicate=False))
        if strange := next((name for name in names if name not in present), None):
            raise ConfigError(
                f"tensor {strange!r} would be trained, but is no parameter of this client's model: say at the server which are "
                'some, as in DeComFL(..., trained=["*.weight", "*.bias"])'
            )
        return [present[name] for name in names]


def _number(config: Mapping[str, Value], key: str) -> float:
    return float(str(config[key]))
