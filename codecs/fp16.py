"""float16 on the wire: half the bytes of float32, eight times as fine as bfloat16, but in a narrow range.

Frame layout:
    that of :class:`fedcore.tensorwise.Rounding`, in float16

What survives:
    What survives in a :class:`fedcore.tensorwise.Tensorwise` codec, and every bit of a tensor with a number beyond 65504 in
    what would be packed. What is packed, a number or its difference to the base, comes back at most 1/2048 of itself
    away, below 6.1e-5 at most 3e-8 away. float16 and bfloat16 tensors go raw.
"""

from __future__ import annotations

import torch

from fedcore.tensorwise import Rounding

__all__ = ["Fp16"]


class Fp16(Rounding):
    """float16 on the wire, half of float32: of the difference to the base if the receiver has it. Lossy."""

    part = "fp16"
    kind = torch.float16
