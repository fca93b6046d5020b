"""How the models of DeComFL follow from one another: what its strategy and its clients must do alike, to the bit.

A round has a number, and for each of K steps and P perturbations a length: the model moves by that length along the direction
whose seed belongs to the round, the step and the perturbation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from fedcore.directions import KINDS, Kind, seeds, shift
from fedcore.errors import ProtocolError
from fedcore.exchange import fits
from fedcore.parameters import DTYPES, Spec
from fedcore.values import Config, Value

SLOPES = "decomfl/slopes"
"""What a client sends: float64, of shape (K, P)."""

ROUNDS, LENGTHS, DIGEST = "decomfl/rounds", "decomfl/lengths", "decomfl/digest"
"""What a client is sent that has an earlier model: the rounds since then (int64, R), their lengths (the bits of float64 as
int64, which no codec rounds, (R, K, P)), and the digest of what it must come to (uint8, 32)."""

LR, MU = "decomfl.lr", "decomfl.mu"
_SEED, _KIND, _TRAINED = "decomfl.seed", "decomfl.directions", "decomfl.trained"
_STEPS, _PERTURBATIONS = "decomfl.steps", "decomfl.perturbations"


@dataclass(frozen=True)
class Trail:
    """What the models depend on beside the lengths.

    Attributes:
        seed: that all others are drawn from.
        kind: of the directions.
        trained: patterns of the names of tensors that are moved.
        steps: K.
        perturbations: P.
    """

    seed: int
    kind: Kind
    trained: tuple[str, ...]
    steps: int
    perturbations: int

    @classmethod
    def told(cls, config: Config) -> Trail:
        """Return the one that a task's config tells of.

        Raises:
            ProtocolError: it tells of none.
        """
        trained, kind = config.get(_TRAINED), config.get(_KIND)
        numbers = [config.get(key) for key in (_SEED, _STEPS, _PERTURBATIONS)]
        if kind not in KINDS or not isinstance(trained, Sequence) or not all(isinstance(each, int) for each in numbers):
            raise ProtocolError("the task is none of DeComFL's: a DeComFLClient wants a server with strategy=DeComFL(...)")
        seed, steps, perturbations = cast("list[int]", numbers)
        return cls(seed, kind, tuple(map(str, trained)), steps, perturbations)

    def config(self) -> dict[str, Value]:
        """Return what :meth:`told` understands."""
        return {
            _SEED: self.seed, _KIND: self.kind, _TRAINED: list(self.trained), _STEPS: self.steps,
            _PERTURBATIONS: self.perturbations,
        }  # fmt: skip

    def names(self, model: Mapping[str, Tensor]) -> list[str]:
        """Return the tensors of a model that are moved, in the order in which directions run through them."""
        floating = [info.name for info in Spec.of(model) if DTYPES[info.dtype].is_floating_point]
        return [name for name in floating if fits(name, self.trained)]

    def seeds(self, number: int) -> list[list[int]]:
        """Return the seeds of a round: K times P."""
        drawn = seeds(self.seed, number, self.steps * self.perturbations)
        return [drawn[start : start + self.perturbations] for start in range(0, len(drawn), self.perturbations)]

    def advance(self, model: Mapping[str, Tensor], number: int, lengths: Tensor) -> None:
        """Move a model in place as a round did, given its lengths, of shape (K, P)."""
        moved = [model[name] for name in self.names(model)]
        for row, along in zip(self.seeds(number), lengths.tolist(), strict=True):
            for seed, length in zip(row, along, strict=True):
                shift(moved, self.kind, seed, length)
