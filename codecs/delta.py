"""What changed since the base, to the bit: no smaller by itself, but ``delta+zstd`` is about a third smaller than the model.

Frame layout:
    8 bytes
        fingerprint of names, dtypes and shapes
    1 byte
        0: the tensors follow as they are; 1: as difference to the base
    data
        the little-endian elements of the tensors in the order of the Spec, without gaps. As a difference, each element is
        taken as an integer of its size, the base's is subtracted, and the sign moved to the lowest bit: 0, -1, 1, -2, ...
        become 0, 1, 2, 3, ...; small changes of either sign so leave the high bytes zero

What survives:
    Names, order, dtypes, shapes and every bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedcore.codec import Codec, Frame
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, dtype_name, expect, itemsize, land, nbytes
from fedcore.tensorwise import FINGERPRINT, beneath, check_fingerprint, fingerprint
from fedcore.transport import Buffer
from fedcore.views import raw_bytes

__all__ = ["Delta"]

_BITS, _DIFFERENCE = 0, 1


class Delta(Codec):
    """What changed since the base the receiver holds, to the bit; for a compressor, as in ``delta+zstd``."""

    part = "delta"
    uses_base = True

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return the differences, or without a base views of the tensors."""
        infos = [TensorInfo(name, dtype_name(t.dtype, repr(name)), tuple(t.shape)) for name, t in shard.items()]
        if base is None:
            return [fingerprint(infos) + bytes([_BITS]), *map(raw_bytes, shard.values())]
        head = fingerprint(infos) + bytes([_DIFFERENCE])
        return [head, *(_difference(info.dtype, shard[info.name], base[info.name]) for info in infos)]

    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Add the differences to the base, and land each tensor."""
        view = memoryview(frame).cast("B")
        check_fingerprint(view, spec)
        start = FINGERPRINT + 1
        expect(len(view) == start + spec.nbytes, f"{len(view)} bytes instead of {start + spec.nbytes}", "LENGTH_MISMATCH")
        mode = view[FINGERPRINT]
        expect(mode in (_BITS, _DIFFERENCE), f"unknown mode {mode}")
        tensors = {}
        for info in spec:
            data = view[start : start + nbytes(info)]
            if mode == _DIFFERENCE:
                data = _sum(info.dtype, data, beneath(info, base))
            tensors[info.name] = land(info.name, data, info, into)
            start += nbytes(info)
        return tensors


def _difference(dtype: str, tensor: Tensor, base: Tensor) -> memoryview:
    size = itemsize(dtype)
    change = _integers(raw_bytes(tensor), size) - _integers(raw_bytes(base), size)  # modulo 2 ** bits
    signs = (change.view(f"i{size}") >> 8 * size - 1).view(change.dtype)  # 0, or all ones
    change <<= 1
    change ^= signs
    return memoryview(change.view(np.uint8).data)


def _sum(dtype: str, data: memoryview, base: Tensor) -> memoryview:
    coded = _integers(data, itemsize(dtype))
    change = coded & 1
    np.negative(change, out=change)
    change ^= coded >> 1
    change += _integers(raw_bytes(base), itemsize(dtype))
    return memoryview(change.view(np.uint8).data)


def _integers(data: memoryview, size: int) -> NDArray[Any]:
    return np.frombuffer(data, f"<u{size}")
