"""What the codecs of few bits share: the numbers of a block are whole multiples of its scale."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedcore.errors import ConfigError
from fedcore.parameters import expect
from fedcore.tensorwise import Tensorwise, row
from fedcore.transport import Buffer
from fedcore.views import raw_bytes

_STATED = 4
_TINY = torch.finfo(torch.float32).tiny  # some machines take smaller ones for zero


class Blockwise(Tensorwise):
    """Sends each number as a whole multiple, from ``-top`` to ``top``, of the scale of its block.

    Frame layout:
        that of :class:`fedcore.tensorwise.Tensorwise`; a payload is

        4 bytes
            numbers in a block, little-endian; 0: all are one block
        4 bytes for each block
            its scale as float32, little-endian: the largest magnitude in the block, divided by ``top``
        multiples
            what :meth:`squeeze` makes of them

    What survives:
        What survives in a Tensorwise codec; what is packed, a number or its difference to the base, comes back less
        than 0.5001 scales away, or less than 1.5e-36 in a block where no magnitude is larger than that.

    Args:
        block: numbers in a block, None for the whole tensor; frames of any are read alike.

    Attributes:
        top: the largest multiple.
        usual: the block that is used unless told.
    """

    top: ClassVar[int]
    usual: ClassVar[int]

    def __init__(self, block: int | None = -1):
        self.block = self.usual if block == -1 else block
        whole = isinstance(self.block, int) and not isinstance(self.block, bool)
        if self.block is not None and not (whole and 0 < self.block < 1 << 32):
            raise ConfigError(f"{type(self).__name__} block must be None or an integer from 1 to 2**32 - 1, not {block!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.block == self.usual else f'block={self.block}'})"

    @abstractmethod
    def squeeze(self, multiples: Tensor) -> Buffer:
        """Return a row of int8, each from ``-top`` to ``top``, as bytes."""

    @abstractmethod
    def spread(self, data: memoryview, count: int) -> Tensor:
        """Return the row of int8 that was squeezed.

        Raises:
            DecodeError: these are not the bytes of so many.
        """

    def pack(self, values: Tensor) -> list[Buffer] | None:
        """Return scales and multiples, unless a scale is larger than a float32 can be."""
        width, missing = _cut(values.numel(), self.block or 0)
        blocks = (functional.pad(values, (0, missing)) if missing else values).view(-1, width)
        scales = (torch.maximum(blocks.amax(1), -blocks.amin(1)) / self.top).float()
        if not scales.isfinite().all():
            return None
        scales[scales < _TINY] = 0
        divisors = torch.where(scales == 0, 1, scales).to(values.dtype)
        multiples = (blocks / divisors[:, None]).round_().clamp_(-self.top, self.top).to(torch.int8).view(-1)
        stated = (self.block or 0).to_bytes(_STATED, "little")
        return [stated, raw_bytes(scales), self.squeeze(multiples[: values.numel()])]

    def unpack(self, payload: memoryview, count: int, dtype: torch.dtype) -> Tensor:
        """Return each multiple times the scale of its block."""
        expect(len(payload) >= _STATED, f"{len(payload)} bytes are too few for the size of a block")
        width, missing = _cut(count, int.from_bytes(payload[:_STATED], "little"))
        blocks = (count + missing) // width if count else 0
        begin = _STATED + 4 * blocks
        scales = row(payload[_STATED:begin], blocks, torch.float32)
        values = torch.zeros(count + missing, dtype=dtype)
        values[:count] = self.spread(payload[begin:], count)
        values.view(blocks, width).mul_(scales.to(dtype)[:, None])
        return values[:count]


def _cut(count: int, block: int) -> tuple[int, int]:
    """Return how many of ``count`` numbers are in a block, and how many the last block lacks; never more than ``count``."""
    width = max(1, min(block or count, count))
    return width, -count % width
