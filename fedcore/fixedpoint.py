"""Sums of floating-point tensors that do not depend on the order of the terms.

Floating-point addition rounds, so its result depends on who came first. Here each term is rounded once, to a multiple of
a unit fixed before the first term, and integers are added, which is exact: any order and any grouping give the same bits.

The unit of a tensor is ``2 ** (e - precision)``, where ``2 ** e`` bounds the tensor's values in the model the round
started from. Terms are integer weights times values. The mean of K terms of total weight W is off by at most
``K / (2 W)`` units before its one rounding to the tensor's dtype. Sums that outgrow 64 bits carry into a second word,
which is allocated only then, so a tensor may grow far beyond its bound in a round and is still summed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedcore.errors import OutOfRange
from fedcore.parameters import extent

_PRECISION = {torch.float64: 58}  # bits below the bound; all other dtypes have at most 24 significant bits
_DEFAULT_PRECISION = 44
_BLOCK = 1 << 18  # elements: the temporaries of a block stay in cache
_CARRY = 40  # bits of a sum that stay in the low word once there is a high one
_ROOM = 62  # bits a low word may fill before it carries
_LIMIT = 90  # bits a term may have, so that 8,192 of the largest fit
_LOW = (1 << _CARRY) - 1


class FixedPointSum:
    """The exact sum of ``weight * value`` over tensors of one shape: 8 bytes an element, 16 once sums outgrow 64 bits.

    Args:
        shape: of every term.
        dtype: of every term, and of the mean.
        bound: the magnitude that sets the unit; 0 stands for 1.
        fraction_bits: how many bits of the weights stand for a fraction; the unit is as much coarser, the mean is not.
        memory: int64 zeros to use, one an element; None allocates them.
    """

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        bound: float,
        fraction_bits: int = 0,
        memory: Tensor | None = None,
    ):
        self.shape, self.dtype = shape, dtype
        exponent = math.frexp(bound)[1] if bound > 0 and math.isfinite(bound) else 0
        self.shift = _PRECISION.get(dtype, _DEFAULT_PRECISION) - max(exponent, -512) - fraction_bits
        self.low = torch.zeros(math.prod(shape), dtype=torch.int64) if memory is None else memory
        self.high: Tensor | None = None
        self._filled = 0.0  # a bound of |low|

    def check(self, name: str, magnitude: float, weight: int) -> float:
        """Return the size in units of a term with this largest magnitude, times ``weight``.

        Raises:
            OutOfRange: the term cannot be represented.
        """
        bits = math.log2(magnitude) + math.log2(weight) + self.shift if magnitude else 0.0
        if not bits <= _LIMIT:
            most = math.ldexp(1.0, min(_LIMIT - self.shift, 1023)) / weight
            raise OutOfRange(f"tensor {name!r} holds {magnitude:.6g}; with weight {weight} at most {most:.6g} can be summed")
        return float(2.0**bits)

    def add(self, name: str, value: Tensor, weight: int, magnitude: float | None = None) -> None:
        """Add ``weight * value``, whose largest ``magnitude`` is measured if it is not given; all or nothing.

        Raises:
            OutOfRange: the term cannot be represented.
        """
        size = self.check(name, extent(value) if magnitude is None else magnitude, weight)
        wide = size + self._filled >= 2.0**_ROOM
        if wide:
            self._carry()
        scale = math.ldexp(weight, self.shift)
        flat = value.detach().reshape(-1)
        for start in range(0, flat.numel(), _BLOCK):
            term = flat[start : start + _BLOCK].to(torch.float64, copy=True).mul_(scale).round_()
            if wide:
                self._add_wide(start, term)
            else:
                self.low[start : start + _BLOCK] += term.to(torch.int64)
        if wide:
            self._carry()
        else:
            self._filled += size

    def mean(self, weight: int, into: Tensor | None = None) -> Tensor:
        """Return the sum divided by ``weight``, rounded to the dtype of the terms; in ``into`` if that is given."""
        out = torch.empty(self.shape, dtype=self.dtype) if into is None else into
        flat = out.view(-1)
        for start in range(0, flat.numel(), _BLOCK):
            block = slice(start, start + _BLOCK)
            flat[block] = _rounded(self._total(block).div_(weight).mul_(math.ldexp(1.0, -self.shift)), self.dtype)
        return out

    def parts(self) -> dict[str, Tensor]:
        """Return the exact state, from which :meth:`merge` goes on."""
        words = {"low": self.low.clone(), "shift": torch.tensor(self.shift)}
        return words if self.high is None else {**words, "high": self.high.clone()}

    def merge(self, parts: Mapping[str, Tensor]) -> None:
        """Add the state of another sum.

        Raises:
            OutOfRange: the other sum has another unit, because it started from another model.
        """
        if int(parts["shift"]) != self.shift:
            raise OutOfRange(f"a partial sum in units of 2**-{int(parts['shift'])} does not fit one of 2**-{self.shift}")
        high = self._carry()
        high += parts["low"] >> _CARRY
        if "high" in parts:
            high += parts["high"]
        self.low += parts["low"] & _LOW
        self._carry()

    def _add_wide(self, start: int, term: Tensor) -> None:
        top = (term * 2.0**-_CARRY).floor_()
        self.high[start : start + term.numel()] += top.to(torch.int64)  # type: ignore[index]
        self.low[start : start + term.numel()] += (term - top * 2.0**_CARRY).to(torch.int64)

    def _carry(self) -> Tensor:
        """Move all but the lowest bits of the low word to the high one, and return that."""
        if self.high is None:
            self.high = torch.zeros_like(self.low)
        self.high += self.low >> _CARRY
        self.low &= _LOW
        self._filled = float(1 << _CARRY)
        return self.high

    def _total(self, block: slice) -> Tensor:
        low = self.low[block]
        if self.high is None:
            return low.double()
        # normalised words: both conversions are exact, so the one rounding is the same as with a single word
        high = self.high[block] + (low >> _CARRY)
        return high.double().mul_(2.0**_CARRY) + (low & _LOW).double()


def _rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to ``dtype`` once.

    torch goes to 8 and 16 bits by way of float32, which rounds twice. Rounding to odd on the way makes the two one: of the
    float32 neighbours of an inexact value the odd one is taken, which is never a tie of the narrower type.
    """
    if dtype.itemsize >= torch.float32.itemsize:
        return exact.to(dtype)
    near = exact.float()
    error = exact - near.double()
    other = torch.nextafter(near, torch.copysign(torch.full_like(near, torch.inf), error.float()))
    keep = (error == 0) | (near.view(torch.int32) & 1 == 1)
    return torch.where(keep, near, other).to(dtype)
