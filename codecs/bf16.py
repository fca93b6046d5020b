"""bfloat16 on the wire: half the bytes of float32, its whole range, and about three significant digits.

Frame layout:
    that of :class:`fedcore.tensorwise.Rounding`, in bfloat16

What survives:
    What survives in a :class:`fedcore.tensorwise.Tensorwise` codec. What is packed, a number or its
    difference to the base, comes back at most 1/256 of itself away. float16 and bfloat16 tensors go raw.
"""

from __future__ import annotations

import torch

from fedcore.tensorwise import Rounding

__all__ = ["Bf16"]


class Bf16(Rounding):
    """bfloat16 on the wire, half of float32: of the difference to the base if the receiver has it. Lossy."""

    part = "bf16"
    kind = torch.bfloat16
