"""DeComFL: a round costs some numbers on the wire, whatever the size of the model.

Formula: in a round each client, from the same model x, makes K steps. In step k it measures P slopes ``g = (f(x + mu z) -
f(x)) / mu`` along directions z whose seeds everybody knows, and moves by ``-(lr / P) sum_p g_p z_p``. It hands in the K x P
slopes alone. The server takes their mean over clients first; then everybody, from the round's model, moves by ``-(lr / P)
sum_p mean(g_kp) z_kp`` for each k. The products ``-(lr / P) mean(g_kp)`` are what the server remembers of a round and sends,
so that there is one scale everywhere.

Paper: Li, Ying, Liu, Dong, Yang, Achieving Dimension-Free Communication in Federated Learning via Zeroth-Order Optimization,
ICLR 2025, arXiv 2405.15861.

Memory: a copy of the model while the next is made, and K x P numbers for each round that is remembered; nothing for a client.
The model-sized work of a round is to move along K x P directions, and the digests.

Clients train with :class:`fedcore.DeComFLClient`. Codecs must be lossless for clients to be sent numbers instead of models, and
there is no place for filters or :class:`~fedcore.Exchange`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedcore.aggregator import Aggregator
from fedcore.directions import KINDS, Kind
from fedcore.errors import ConfigError
from fedcore.messages import Kind as TaskKind
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, copy_parameters, digest
from fedcore.strategies.fedavg import EvaluateFn, FedAvg
from fedcore.trail import DIGEST, LENGTHS, LR, MU, ROUNDS, SLOPES, Trail
from fedcore.values import Value, check_number

__all__ = ["DeComFL"]


class DeComFL(FedAvg):
    """Zeroth-order steps that the clients measure and everybody makes.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        lr: length of a step. What a slope is good for falls with the number of parameters, and so must this.
        mu: how far clients go along a direction.
        steps: K, local steps a round.
        perturbations: P, directions a step.
        directions: ``"rademacher"``: exact and fast; or ``"gaussian"``.
        seed: that those of the directions are drawn from, below 2 ** 63.
        trained: patterns of the names of what is trained; not of buffers such as a BatchNorm's, which stay as they are.
        history: rounds that are remembered: a client that comes back after more is sent the whole model.
        shared: as for :class:`~fedcore.FedAvg`; ``weighting`` and ``max_share`` are the slopes'.

    Raises:
        ConfigError: an argument makes no sense.
    """

    paces = ("sync",)
    carries = False

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        lr: float,
        mu: float = 1e-3,
        steps: int = 1,
        perturbations: int = 10,
        directions: Kind = "rademacher",
        seed: int = 0,
        trained: Sequence[str] = ("*",),
        history: int = 500,
        **shared: Any,
    ):
        super().__init__(initial_parameters, evaluate_fn, **shared)
        for name, value in (("lr", lr), ("mu", mu)):
            check_number(f"DeComFL {name}", value, float, math.ulp(0.0))
        for name, number in (("steps", steps), ("perturbations", perturbations)):
            check_number(f"DeComFL {name}", number, int, 1)
        for name, number in (("seed", seed), ("history", history)):
            check_number(f"DeComFL {name}", number, int, 0)
        if seed >= 1 << 63:
            raise ConfigError(f"DeComFL seed must be below 2 ** 63, not {seed}")
        if directions not in KINDS:
            raise ConfigError(f"DeComFL directions must be 'rademacher' or 'gaussian', not {directions!r}")
        if isinstance(trained, str) or self.exchange is not None:
            raise ConfigError("DeComFL trained is a list of patterns, and there is no exchange: trained says what is moved")
        self.lr, self.mu, self.history = lr, mu, history
        self.trail = Trail(seed, directions, tuple(trained), steps, perturbations)
        self._forget()
        self._named: tuple[Parameters, str] | None = None
        self._down: dict[str, Parameters] = {}

    def _forget(self) -> None:
        self._digests: list[str] = []  # of the models that the rounds began with
        self._rounds = torch.empty(0, dtype=torch.int64)
        self._lengths = torch.empty(0, self.trail.steps, self.trail.perturbations, dtype=torch.float64)

    def configure_fit(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Tell clients how to measure, and how to rebuild the model."""
        return {**self.trail.config(), LR: self.lr, MU: self.mu}

    def configure_evaluate(self, server_round: int, client_id: str) -> Mapping[str, Value]:
        """Tell clients how to rebuild the model."""
        return self.trail.config()

    def download(
        self, kind: TaskKind, server_round: int, client_id: str, parameters: Parameters, holds: str = ""
    ) -> Parameters:
        """Return the rounds since the model that the client holds, or the model, if that is none of those remembered."""
        if kind is TaskKind.INITIALIZE:
            return parameters
        name = self._name(parameters)
        if holds not in self._down:
            since = self._since(holds, name)
            if since is None:
                return parameters
            self._down[holds] = since
        return self._down[holds]

    def _since(self, holds: str, name: str) -> Parameters | None:
        if holds == name:
            start = len(self._digests)
        elif holds in self._digests:
            start = len(self._digests) - 1 - self._digests[::-1].index(holds)
        else:
            return None
        told = torch.tensor(list(bytes.fromhex(name)), dtype=torch.uint8)
        return {DIGEST: told, ROUNDS: self._rounds[start:], LENGTHS: self._lengths[start:].view(torch.int64)}

    def _name(self, parameters: Parameters) -> str:
        if self._named is None or self._named[0] is not parameters:
            self._named, self._down = (parameters, digest(parameters)), {}
        return self._named[1]

    def upload_spec(self, kind: TaskKind, spec: Spec) -> Spec:
        """Return what slopes look like."""
        if kind is not TaskKind.FIT:
            return super().upload_spec(kind, spec)
        return Spec.checked([TensorInfo(SLOPES, "float64", (self.trail.steps, self.trail.perturbations))])

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return an aggregator that keeps the slopes, which are few, until all are there: they fix the unit of their mean."""
        return self.gather(server_round)

    def step(self, server_round: int, current: Parameters, aggregate: Parameters) -> Parameters:
        """Return the next model, and remember how it follows from this one."""
        lengths = aggregate[SLOPES] * (-self.lr / self.trail.perturbations)
        model = copy_parameters(current)
        self.trail.advance(model, server_round, lengths)
        if self.history:
            self._digests = [*self._digests, self._name(current)][-self.history :]
            self._rounds = torch.cat([self._rounds, torch.tensor([server_round])])[-self.history :]
            self._lengths = torch.cat([self._lengths, lengths.unsqueeze(0)])[-self.history :]
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return the rounds that are remembered."""
        facts = {"trail": self.trail.config(), "digests": self._digests, "rounds": self._rounds, "lengths": self._lengths}
        return {**super().state_dict(), **facts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; rounds along other directions than the present ones are forgotten."""
        super().load_state_dict(state)
        self._forget()
        self._named, self._down = None, {}
        if state.get("trail") == self.trail.config():
            self._digests, self._rounds, self._lengths = list(state["digests"]), state["rounds"], state["lengths"]

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on; None if not all can be noted."""
        shared, told = super().settings(), self.trail
        if shared is None or told.trained != ("*",):
            return None
        own = {"lr": self.lr, "mu": self.mu, "steps": told.steps, "perturbations": told.perturbations}
        return {**shared, **own, "directions": told.kind, "seed": told.seed, "history": self.history}
