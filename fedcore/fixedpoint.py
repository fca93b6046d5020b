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
from collections.abc import Iterator, Mapping
from itertools import accumulate
from operator import mul

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcore.errors import OutOfRange
from fedcore.extents import extent
from fedcore.views import NUMPY, elements, regions

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_PRECISION = {torch.float64: 58}  # bits below the bound; all other dtypes have at most 24 significant bits
_DEFAULT_PRECISION = 44
_BLOCK = 1 << 16  # elements: the temporaries of a block stay in the cache of a core
_CARRY = 40  # bits of a sum that stay in the low word once there is a high one
_ROOM = 62  # bits a low word may fill before it carries
_LIMIT = 90  # bits a term may have, so that 8,192 of the largest fit
LARGEST_TERM = 2.0**_LIMIT
_LOW = (1 << _CARRY) - 1
_MAGIC = 1.5 * 2.0**52  # the last bit of a float64 near it stands for one: adding it rounds, and leaves an integer in the bits
_MAGIC_BITS = int(np.float64(_MAGIC).view(np.int64))
_MAGIC_LIMIT = 2.0**51


class FixedPointSum:
    """The exact sum of ``weight * value`` over tensors of one shape: 8 bytes an element, 16 once sums outgrow 64 bits.

    Args:
        shape: of every term.
        dtype: of every term, and of the mean.
        bound: the magnitude that sets the unit; 0 stands for 1.
        fraction_bits: how many bits of the weights stand for a fraction; the unit is as much coarser, the mean is not.
    """

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        bound: float,
        fraction_bits: int = 0,
    ):
        self.shape, self.dtype = shape, dtype
        exponent = math.frexp(bound)[1] if bound > 0 and math.isfinite(bound) else 0
        self.shift = _PRECISION.get(dtype, _DEFAULT_PRECISION) - max(exponent, -512) - fraction_bits
        self.scale = 2.0**self.shift  # units in 1
        self.size = math.prod(shape)
        self.low: Integers = np.empty(0, np.int64)
        self.high: Integers | None = None
        self.empty = True  # the low word holds nothing yet, not even zeros
        self.filled = 0.0  # a bound of |low|

    def place(self, memory: Integers) -> None:
        """Use ``memory``, one int64 an element, whatever it holds; only before the first term. Else it is allocated then."""
        self.low = memory

    def check(self, name: str, magnitude: float, weight: int) -> float:
        """Return the size in units of a term with this largest magnitude, times ``weight``.

        Raises:
            OutOfRange: the term cannot be represented.
        """
        size = magnitude * self.scale * weight
        if not size <= LARGEST_TERM:
            most = math.ldexp(1.0, min(_LIMIT - self.shift, 1023)) / weight
            raise OutOfRange(f"tensor {name!r} holds {magnitude:.6g}; with weight {weight} at most {most:.6g} can be summed")
        return size

    def add(self, name: str, value: Tensor, weight: int, magnitude: float | None = None) -> None:
        """Add ``weight * value``, whose largest ``magnitude`` is measured if it is not given; all or nothing.

        Raises:
            OutOfRange: the term cannot be represented.
        """
        size = self.check(name, extent(value) if magnitude is None else magnitude, weight)
        if self.outgrown_by(size):
            self._carry()
            for block, term in _blocks(value, math.ldexp(weight, self.shift)):
                self._add_wide(block, np.rint(term, out=term))
            self._carry()
            return
        self._allocate()
        for block, term in _blocks(value, math.ldexp(weight, self.shift)):
            units = _units(term, size)
            if self.empty:
                self.low[block] = units
            else:
                self.low[block] += units
        self.empty = False
        self.filled += size

    def outgrown_by(self, size: float) -> bool:
        """Return whether a term of this size may not fit the low word any more."""
        return size + self.filled >= 2.0**_ROOM

    def mean(self, weight: int, into: Tensor | None = None) -> Tensor:
        """Return the sum divided by ``weight``, rounded to the dtype of the terms; in ``into`` if that is given."""
        out = torch.empty(self.shape, dtype=self.dtype) if into is None else into
        self.begin()
        room = elements(out) if self.dtype in NUMPY else None
        for start in range(0, self.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            exact = self._total(block)
            exact /= weight
            exact *= math.ldexp(1.0, -self.shift)
            if room is None:
                out.view(-1)[block] = _rounded(torch.from_numpy(exact), self.dtype)
            else:
                room[block] = exact
        return out

    def parts(self) -> dict[str, Tensor]:
        """Return the exact state, from which :meth:`merge` goes on."""
        self.begin()
        words = {"low": torch.from_numpy(self.low.copy()), "shift": torch.tensor(self.shift)}
        return words if self.high is None else {**words, "high": torch.from_numpy(self.high.copy())}

    def merge(self, parts: Mapping[str, Tensor]) -> None:
        """Add the state of another sum.

        Raises:
            OutOfRange: the other sum has another unit, because it started from another model.
        """
        if int(parts["shift"]) != self.shift:
            raise OutOfRange(f"a partial sum in units of 2**-{int(parts['shift'])} does not fit one of 2**-{self.shift}")
        high, low = self._carry(), parts["low"].numpy()
        high += low >> _CARRY
        if "high" in parts:
            high += parts["high"].numpy()
        self.low += low & _LOW
        self._carry()

    def _allocate(self) -> None:
        if self.low.size != self.size:
            self.low = np.empty(self.size, np.int64)

    def begin(self) -> None:
        """Fill the low word with zeros if there was no term yet."""
        if self.empty:
            self._allocate()
            self.low[:] = 0
            self.empty = False

    def _add_wide(self, block: slice, term: Floats) -> None:
        top = np.floor(term * 2.0**-_CARRY)
        self.high[block] += top.astype(np.int64)  # type: ignore[index]
        self.low[block] += (term - top * 2.0**_CARRY).astype(np.int64)

    def _carry(self) -> Integers:
        """Move all but the lowest bits of the low word to the high one, and return that."""
        self.begin()
        if self.high is None:
            self.high = np.zeros_like(self.low)
        self.high += self.low >> _CARRY
        self.low &= _LOW
        self.filled = float(1 << _CARRY)
        return self.high

    def _total(self, block: slice) -> Floats:
        low = self.low[block]
        if self.high is None:
            return low.astype(np.float64)
        # normalised words: both conversions are exact, so the one rounding is the same as with a single word
        high = self.high[block] + (low >> _CARRY)
        return high.astype(np.float64) * 2.0**_CARRY + (low & _LOW).astype(np.float64)


class Batch:
    """Sums that lie side by side; of small ones a whole batch costs what one would.

    Args:
        sums: by name, all of one dtype; each has had no term yet.
        memory: int64, one an element.
    """

    def __init__(self, sums: Mapping[str, FixedPointSum], memory: Integers):
        self.sums, self.memory = dict(sums), memory
        ends = list(accumulate(total.size for total in sums.values()))
        self._stretches = [slice(end - total.size, end) for total, end in zip(sums.values(), ends, strict=True)]
        self._dtype = next(iter(sums.values())).dtype
        self._as_one = memory.size <= _BLOCK and self._dtype in NUMPY
        self._scales = [total.scale for total in sums.values()]
        self._empty, self._filled = True, 0.0  # as for a sum, while they are taken as one
        for total, stretch in zip(sums.values(), self._stretches, strict=True):
            total.place(memory[stretch])

    def add(self, values: Mapping[str, Tensor], weight: int, magnitudes: Mapping[str, float]) -> None:
        """Add ``weight * value`` to each sum, given the largest magnitude of each.

        Raises:
            OutOfRange: a term cannot be represented; nothing has changed.
        """
        size = weight * max(map(mul, map(magnitudes.__getitem__, self.sums), self._scales)) if self._as_one else math.inf
        if not size + self._filled < 2.0**_ROOM:
            self.part()
            for name, total in self.sums.items():
                total.check(name, magnitudes[name], weight)
            for name, total in self.sums.items():
                total.add(name, values[name], weight, magnitudes[name])
            return
        row = np.empty(self.memory.size)
        for place, piece in _pieces(regions(values[name] for name in self.sums), self._dtype):
            row[place] = piece
        self._scale(row, [weight * scale for scale in self._scales])
        units = _units(row, size)
        if self._empty:
            self.memory[:] = units
        else:
            self.memory += units
        self._empty = False
        self._filled += size

    def mean(self, weight: int, into: Mapping[str, Tensor]) -> None:
        """Write the sums divided by ``weight``, rounded to their dtype, into tensors."""
        if not self._as_one or self._empty:
            self.part()
            for name, total in self.sums.items():
                total.mean(weight, into[name])
            return
        exact = self.memory.astype(np.float64)
        exact /= weight
        self._scale(exact, [1 / scale for scale in self._scales])
        for place, piece in _pieces(regions(into[name] for name in self.sums), self._dtype):
            piece[:] = exact[place]

    def part(self) -> None:
        """Let each sum go on for itself from here."""
        if self._as_one:
            self._as_one = False
            for total in self.sums.values():
                total.empty, total.filled = self._empty, self._filled

    def _scale(self, row: Floats, factors: list[float]) -> None:
        if len(set(factors)) == 1:
            row *= factors[0]
            return
        for stretch, factor in zip(self._stretches, factors, strict=True):
            row[stretch] *= factor


def batches(sums: Mapping[str, FixedPointSum], memory: Integers) -> list[Batch]:
    """Place sums in ``memory`` one after the other; small neighbours of one dtype make a batch."""
    made: list[Batch] = []
    run: dict[str, FixedPointSum] = {}
    begin = end = 0
    for name, total in sums.items():
        if run and (end + total.size - begin > _BLOCK or total.dtype is not next(iter(run.values())).dtype):
            made.append(Batch(run, memory[begin:end]))
            run, begin = {}, end
        run[name] = total
        end += total.size
    return [*made, Batch(run, memory[begin:end])] if run else made


def _pieces(views: list[memoryview], dtype: torch.dtype) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Yield each view as numbers, and where it lies in a row of all."""
    at = 0
    for view in views:
        piece = np.frombuffer(view, NUMPY[dtype])
        yield slice(at, at + piece.size), piece
        at += piece.size


def _blocks(value: Tensor, scale: float) -> Iterator[tuple[slice, Floats]]:
    """Yield ``scale * value`` in float64, block by block; the memory of a block is used again for the next."""
    flat = elements(value)
    room = np.empty(min(_BLOCK, flat.size))
    for start in range(0, flat.size, _BLOCK):
        piece = flat[start : start + _BLOCK]
        term = room[: piece.size]
        np.copyto(term, piece)
        term *= scale
        yield slice(start, start + _BLOCK), term


def _units(term: Floats, size: float) -> Integers:
    """Return float64 values of magnitude at most ``size``, rounded to integers; ``term`` is overwritten."""
    if size >= _MAGIC_LIMIT:
        return np.rint(term, out=term).astype(np.int64)
    term += _MAGIC
    units = term.view(np.int64)
    units -= _MAGIC_BITS
    return units


def _rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to an 8- or 16-bit ``dtype`` once.

    torch goes to 8 and 16 bits by way of float32, which rounds twice. Rounding to odd on the way makes the two one: of the
    float32 neighbours of an inexact value the odd one is taken, which is never a tie of the narrower type.
    """
    near = exact.float()
    error = exact - near.double()
    other = torch.nextafter(near, torch.copysign(torch.full_like(near, torch.inf), error.float()))
    keep = (error == 0) | (near.view(torch.int32) & 1 == 1)
    return torch.where(keep, near, other).to(dtype)
