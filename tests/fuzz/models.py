"""What the targets expect to be sent: a small model of many kinds of tensors, and the one before it."""

from __future__ import annotations

import torch

from fedcore.codec import Base
from fedcore.parameters import Parameters, Spec, digest

CODECS = (
    "safetensors", "msgpack", "protobuf", "delta", "bf16", "fp16", "int8", "int4", "topk",
    "safetensors+lz4", "safetensors+zstd", "msgpack+zstd", "protobuf+lz4", "delta+lz4", "delta+zstd", "topk+lz4",
    "int8+zstd+lz4",
)  # fmt: skip
"""All that are built in but ``torch``, which strangers are never offered; and chains of them."""

PARTS = tuple(sorted({part for name in CODECS for part in name.split("+")}))


def _model(step: int) -> Parameters:
    row = torch.arange(2304, dtype=torch.float32)
    return {
        "large": (row % 48) / 64 + (row % 97 == 0) * step / 8,  # enough numbers for the codecs that round
        "weight": torch.linspace(-1, 1, 12).view(3, 4) * step,
        "half": torch.linspace(0, 1, 6, dtype=torch.bfloat16).view(2, 3),
        "scale": torch.tensor(0.5 * step),
        "none": torch.empty(0, 3),
        "count": torch.tensor([7 * step, -1], dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
    }


MODEL, BEFORE = _model(2), _model(1)
SPEC = Spec.of(MODEL)
BASE = Base(digest(BEFORE), SPEC, BEFORE)
