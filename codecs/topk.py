"""The few largest changes of a tensor; what is not sent is remembered and added to the next.

Frame layout:
    that of :class:`fedcore.tensorwise.Tensorwise`; a payload is

    4 bytes for each number
        how many numbers are left out before it, since the one before, little-endian
    4 bytes for each number
        the number as float32, little-endian

What survives:
    What survives in a Tensorwise codec, and every bit if there is no base. Of other tensors the elements that changed most
    come back to within rounding, all others are those of the base.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.extents import extent
from fedcore.parameters import expect, working
from fedcore.tensorwise import Tensorwise, flat, numbers, row, smaller
from fedcore.transport import Buffer
from fedcore.views import raw_bytes

__all__ = ["TopK"]

_LONGEST = 1 << 31  # so that no sum of gaps leaves 64 bits
_EACH = 8


class TopK(Tensorwise):
    """The few largest changes, and with error feedback none is lost: one percent is a fiftieth of float32. Lossy.

    With a ``state``, what is left of each tensor is kept there under the name of its entry, and added to its next difference:
    over all rounds, the differences that were decoded and what is left add up to the true ones. The tensors in a state are
    replaced, never changed, so a shallow copy of it is enough to go back.

    Args:
        fraction: of the elements of each tensor, rounded up, above 0 and at most 0.5; frames of any are read alike.
    """

    part = "topk"

    def __init__(self, fraction: float = 0.01):
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 0.5:
            raise ConfigError(f"TopK fraction must be a number above 0 and at most 0.5, not {fraction!r}")
        self.fraction = fraction

    def __repr__(self) -> str:
        return "TopK()" if self.fraction == 0.01 else f"TopK(fraction={self.fraction})"

    def shrink(self, name: str, tensor: Tensor, base: Tensor | None, state: dict[str, object] | None) -> list[Buffer] | None:
        """Return the largest of difference and what was left before, and note what is left now; None without a base."""
        values = None if base is None else numbers(tensor, base)
        if base is None or values is None:
            return None
        if state is not None and name in state:
            values += cast(Tensor, state[name])
        parts = smaller(self.pack(values), tensor)
        if parts is not None and state is not None:
            state[name] = self._left(values, parts, base)
        return parts

    def pack(self, values: Tensor) -> list[Buffer] | None:
        """Return the largest, unless one is larger than a float32 can be."""
        if values.numel() > _LONGEST:
            return None
        places = _largest(values, max(1, math.ceil(self.fraction * values.numel())))
        chosen = values[torch.from_numpy(places)].float()
        gaps = np.diff(places, prepend=-1) - 1
        room = torch.finfo(torch.float32).max / 2
        return [gaps.astype(np.uint32).data.cast("B"), raw_bytes(chosen)] if extent(chosen) <= room else None

    def unpack(self, payload: memoryview, count: int, dtype: torch.dtype) -> Tensor:
        """Return the numbers in their places, zeros between them."""
        values = torch.zeros(count, dtype=dtype)
        places, chosen = _read(payload, count)
        values[places] = chosen.to(dtype)
        return values

    def _left(self, values: Tensor, parts: list[Buffer], base: Tensor) -> Tensor:
        """Return ``values`` less what the receiver will see its base change by."""
        places, chosen = _read(memoryview(b"".join(parts)), values.numel())
        before = flat(base)[places]
        after = (before + chosen.to(values.dtype)).to(base.dtype).to(working(base.dtype))
        values[places] -= after - before
        return values


def _largest(values: Tensor, number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the places of the largest magnitudes, ascending; of equal ones the first are taken."""
    sizes = values.abs().numpy()
    least = np.partition(sizes, len(sizes) - number)[len(sizes) - number]
    above = np.flatnonzero(sizes > least)
    equal = np.flatnonzero(sizes == least)[: number - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _read(payload: memoryview, count: int) -> tuple[Tensor, Tensor]:
    """Return places, which ascend whatever the bytes are, and numbers."""
    number = len(payload) // _EACH
    expect(len(payload) == number * _EACH > 0, f"{len(payload)} bytes are not places and numbers", "LENGTH_MISMATCH")
    expect(count <= _LONGEST, f"{count} elements are too many")
    gaps = np.frombuffer(payload[: 4 * number], np.uint32).astype(np.int64)
    places = np.cumsum(gaps + 1) - 1
    expect(places[-1] < count, f"place {places[-1]} is beyond the last of {count} elements")
    return torch.from_numpy(places), row(payload[4 * number :], number, torch.float32)
