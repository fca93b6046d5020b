"""What lossy codecs share: they take one tensor after the other, and of each only the difference to the base.

A codec of this family packs a row of numbers and unpacks it; which tensors it sees, what it does not have to care for,
and what a frame looks like are decided here.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from blake3 import blake3
from torch import Tensor

from fedcore.codec import Codec, Frame, frame_bytes
from fedcore.errors import DecodeError
from fedcore.extents import extent
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Parameters, Spec, dtype_name, expect, land, nbytes, working
from fedcore.transport import Buffer
from fedcore.views import raw_bytes

RAW, VALUES, DIFFERENCE = range(3)
"""How a tensor was encoded: bit for bit, packed, or as the packed difference to the base."""

FINGERPRINT = 8
"""Bytes of a :func:`fingerprint`."""

_LENGTH = 8
# biases, norms and their statistics: they weigh next to nothing, and a variance rounded below zero spoils a model
_SMALL = 2048


class Tensorwise(Codec):
    """A lossy codec that packs one floating-point tensor after the other, or its difference to the base if there is one.

    Frame layout:
        8 bytes
            fingerprint of names, dtypes and shapes
        then for each tensor, in the order of the Spec
            1 byte
                0: raw; 1: packed; 2: packed, as difference to the base
            8 bytes, unless it is raw
                length of what follows, little-endian; less than the tensor's own
            payload
                the raw little-endian elements, or what :meth:`pack` made

    What survives:
        Names, order, dtypes and shapes. Every bit of a tensor that is not floating-point, has 2048 elements or fewer, holds
        NaN, infinity or numbers above a quarter of what its dtype can hold, or would not become smaller. Numbers of others
        come back rounded, by the same bits on every machine: all is elementwise, in float32, for float64 in float64. How
        far away, a codec says of what it packs; a difference is rounded once more when it is added to the base.
    """

    lossless = False
    uses_base = True

    @abstractmethod
    def pack(self, values: Tensor) -> list[Buffer] | None:
        """Encode a row of finite numbers.

        Args:
            values: float32 or float64, one dimension, not empty; not to be changed.

        Returns:
            Buffers, or None if these numbers must go raw. What :meth:`unpack` makes of them is at most twice as large as
            the largest magnitude in ``values``.
        """

    @abstractmethod
    def unpack(self, payload: memoryview, count: int, dtype: torch.dtype) -> Tensor:
        """Decode a row of numbers that may come from anybody; they need not be finite.

        Args:
            payload: shorter than ``count`` numbers of the tensor's dtype.
            count: how many numbers.
            dtype: float32 or float64.

        Returns:
            A new tensor of that dtype and length.

        Raises:
            DecodeError: the payload is not an encoding of so many numbers.
        """

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return the frame; raw tensors are views of their own memory."""
        infos = [TensorInfo(name, dtype_name(t.dtype, repr(name)), tuple(t.shape)) for name, t in shard.items()]
        frame: list[Buffer] = [fingerprint(infos)]
        for name, tensor in shard.items():
            ground = None if base is None else base[name]
            parts = self.shrink(name, tensor, ground, state)
            if parts is None:
                frame += [bytes([RAW]), raw_bytes(tensor)]
            else:
                mode = VALUES if ground is None else DIFFERENCE
                frame += [bytes([mode]) + frame_bytes(parts).to_bytes(_LENGTH, "little"), *parts]
        return frame

    def shrink(self, name: str, tensor: Tensor, base: Tensor | None, state: dict[str, object] | None) -> list[Buffer] | None:
        """Return one tensor packed, or its difference to ``base`` if there is one; None if it must go raw."""
        values = numbers(tensor, base)
        return None if values is None else smaller(self.pack(values), tensor)

    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Land what is raw, unpack what is packed, and add that to the base if it is a difference."""
        view = memoryview(frame).cast("B")
        check_fingerprint(view, spec)
        tensors, at = {}, FINGERPRINT
        for info in spec:
            expect(at < len(view), f"tensor {info.name[:80]!r} is cut off", "LENGTH_MISMATCH")
            mode, at = view[at], at + 1
            if mode == RAW:
                end = at + nbytes(info)
                tensors[info.name] = land(info.name, view[at:end], info, into)
            else:
                start = at + _LENGTH
                end = start + int.from_bytes(view[at:start], "little")
                fits = end - start < nbytes(info) and end <= len(view)
                expect(fits, f"tensor {info.name[:80]!r} is cut off, or longer than if it were raw", "LENGTH_MISMATCH")
                made = self._unpacked(view[start:end], info, mode, base)
                if into is not None:
                    into[info.name].detach().copy_(made)
                tensors[info.name] = made if into is None else into[info.name]
            at = end
        expect(at == len(view), f"{len(view) - at} bytes behind the last tensor", "LENGTH_MISMATCH")
        return tensors

    def _unpacked(self, payload: memoryview, info: TensorInfo, mode: int, base: Mapping[str, Tensor] | None) -> Tensor:
        shown, dtype = f"tensor {info.name[:80]!r}", DTYPES[info.dtype]
        expect(mode in (VALUES, DIFFERENCE), f"{shown}: unknown mode {mode}")
        expect(dtype.is_floating_point, f"{shown} is packed, but {info.dtype}")
        values = self.unpack(payload, math.prod(info.shape), working(dtype))
        if mode == DIFFERENCE:
            values += flat(beneath(info, base))
        made = values.to(dtype).view(info.shape)
        expect(math.isfinite(extent(made)), f"{shown} is packed, but not finite")
        return made


class Rounding(Tensorwise):
    """Sends each number in a shorter floating-point format, rounded to nearest, ties to even.

    Frame layout:
        that of :class:`Tensorwise`; a payload is the numbers in that format, little-endian

    Attributes:
        kind: the format.
    """

    kind: ClassVar[torch.dtype]

    def pack(self, values: Tensor) -> list[Buffer] | None:
        """Return the numbers rounded, unless one became infinite."""
        rounded = values.to(self.kind)
        return [raw_bytes(rounded)] if math.isfinite(extent(rounded)) else None

    def unpack(self, payload: memoryview, count: int, dtype: torch.dtype) -> Tensor:
        """Return the numbers, all of which the longer format can hold."""
        return row(payload, count, self.kind).to(dtype)


def fingerprint(infos: Iterable[TensorInfo]) -> bytes:
    """Return eight bytes that tell frames of other names, dtypes, shapes or order apart; nothing secret is in them."""
    described = json.dumps([[info.name, info.dtype, info.shape] for info in infos])
    return blake3(described.encode()).digest(FINGERPRINT)


def check_fingerprint(view: memoryview, spec: Spec) -> None:
    """Check that a frame begins with the fingerprint of ``spec``.

    Raises:
        DecodeError: it does not.
    """
    begin, wanted = view[:FINGERPRINT], fingerprint(spec)
    expect(len(begin) == FINGERPRINT, f"{len(view)} bytes are too few for a fingerprint", "LENGTH_MISMATCH")
    expect(begin == wanted, "the frame is of tensors of other names, dtypes, shapes or order", "SCHEMA_MISMATCH")


def beneath(info: TensorInfo, base: Mapping[str, Tensor] | None) -> Tensor:
    """Return the tensor that a difference is to be added to.

    Raises:
        DecodeError: there is none, or it looks unlike ``info``.
    """
    found, shown = (base or {}).get(info.name), f"tensor {info.name[:80]!r}"
    if found is None:
        raise DecodeError(f"{shown} came as a difference, but there is no base", reason="BASE_MISMATCH")
    fits = (found.dtype, tuple(found.shape)) == (DTYPES[info.dtype], info.shape)
    expect(fits, f"{shown} came as a difference, but the base has another dtype or shape", "BASE_MISMATCH")
    return found


def flat(tensor: Tensor) -> Tensor:
    """Return a tensor as one row on the CPU in its working dtype; a view of it where that is possible."""
    return tensor.detach().cpu().reshape(-1).to(working(tensor.dtype))


def numbers(tensor: Tensor, base: Tensor | None) -> Tensor | None:
    """Return a tensor, or its difference to ``base``, as one row of numbers; None if it must go raw.

    With this much room below the largest number, what is rounded and added up again cannot become infinite.
    """
    if not tensor.is_floating_point() or tensor.numel() <= _SMALL:
        return None
    most = torch.finfo(tensor.dtype).max / 4
    if not all(extent(part) <= most for part in (tensor, base) if part is not None):
        return None
    return flat(tensor) if base is None else flat(tensor) - flat(base)


def smaller(parts: list[Buffer] | None, tensor: Tensor) -> list[Buffer] | None:
    """Return what was made of a tensor if it is smaller than its own bytes."""
    return parts if parts is not None and frame_bytes([*parts]) + _LENGTH < tensor.nbytes else None


def row(data: memoryview, count: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` little-endian elements of ``dtype`` as a new tensor of one dimension.

    Raises:
        DecodeError: these are not the bytes of so many.
    """
    return land("payload", data, TensorInfo("payload", dtype_name(dtype, "payload"), (count,)), None)
