"""The contract of a codec: it turns a few named tensors into one frame and back, and has no word for a network.

A codec that takes a codec wraps it: ``"safetensors+lz4"`` is ``Lz4(Safetensors())``. The name is what a user types, what
is negotiated, and what a manifest says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from torch import Tensor

from fedcore.errors import ConfigError, DecodeError
from fedcore.parameters import Parameters, Spec
from fedcore.transport import Buffer

Frame: TypeAlias = Buffer | list[Buffer]
"""One encoded shard: a buffer, or a list of buffers that are sent one after the other without being joined."""

ZERO = "0" * 64
"""What takes the place of a digest in a manifest whose base is zeros."""


@dataclass(frozen=True)
class Base:
    """A payload that both ends hold, so that the next can be told by its difference to it."""

    digest: str
    spec: Spec
    parameters: Parameters

    @classmethod
    def zero(cls, spec: Spec) -> Base:
        """Return the base that everybody holds: zeros. For what is a difference itself; pages nobody writes cost nothing."""
        return cls(ZERO, spec, spec.blank(lambda nbytes: np.zeros(nbytes, np.uint8)))


@dataclass(frozen=True)
class Landing:
    """Where the bytes of one frame go.

    Attributes:
        buffers: to be filled one after the other.
        finish: called when they are; raises DecodeError if what came is no encoding of the shard.
    """

    buffers: list[memoryview]
    finish: Callable[[], object]

    @property
    def nbytes(self) -> int:
        """The only length a frame that lands like this can have."""
        return sum(part.nbytes for part in self.buffers)


class Codec(ABC):
    """Turns a shard into a frame and back. Instances are immutable and may be used by many threads at once.

    Attributes:
        part: the name on the shelf, a part of :attr:`name`.
        lossless: whether ``decode(encode(x))`` is bit-identical to ``x``.
        trusted_only: whether the format is fit only for peers that the operator named it for; never accepted by default.
        uses_base: whether ``encode`` makes use of ``base``; callers then keep the model that the receiver holds.
    """

    part: ClassVar[str]
    lossless: bool = True
    trusted_only: bool = False
    uses_base: bool = False

    @property
    def name(self) -> str:
        """The full name, such as ``"safetensors+lz4"``: from it :func:`fedcore.registry.codec` builds an equal codec."""
        return self.part

    @abstractmethod
    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Encode a shard.

        Args:
            shard: named tensors, contiguous, on the CPU; none is changed.
            base: the same shard of the model that the receiver holds, for codecs that send differences.
            state: what a codec with memory (error feedback) keeps between rounds; owned by the caller. Its values are
                replaced, never changed in place, so the caller takes a call back by putting a shallow copy in its place.

        Returns:
            The frame. It may hold views of the tensors' own memory: send it before they change.
        """

    @abstractmethod
    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Decode a frame that may come from anybody.

        Args:
            frame: the bytes; never run as code.
            spec: what the shard must look like. It bounds every size before anything is allocated.
            base: the shard that ``encode`` was given as base.
            into: tensors of that shape to fill, so that bytes land once; else new ones are made.

        Returns:
            The tensors in the order of ``spec``.

        Raises:
            DecodeError: the frame is not an encoding of such a shard.
        """

    def landing(self, spec: Spec, into: Mapping[str, Tensor]) -> Landing | None:
        """Return where the bytes of a frame go, for a format whose frames can be written straight into the tensors.

        A receiver that gets one puts the bytes there as they arrive and never holds the frame; others decode whole frames.

        Args:
            spec: what the shard must look like.
            into: the tensors to fill.
        """
        return None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Codec) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Wrapper(Codec):
    """A codec that takes a codec and works on its frames."""

    def __init__(self, inner: Codec):
        if not isinstance(inner, Codec):  # a plain name, most often
            name = type(self).__name__
            raise ConfigError(f"{name} wraps a codec, such as {name}(Safetensors()), not {inner!r}")
        self.inner = inner
        self.lossless = type(self).lossless and inner.lossless
        self.trusted_only = type(self).trusted_only or inner.trusted_only
        self.uses_base = type(self).uses_base or inner.uses_base

    @property
    def name(self) -> str:
        """The inner codec's name, a plus sign and this part."""
        return f"{self.inner.name}+{self.part}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"


REFERENCE = "reference"
"""What a manifest says instead of a codec's name when a transport of one process hands over objects instead of bytes."""


class Held(bytes):
    """An empty buffer with tensors attached: what a body by reference looks like to a transport."""

    parameters: Parameters

    def __new__(cls, parameters: Parameters) -> Held:
        """Attach ``parameters`` to an empty buffer."""
        made = super().__new__(cls)
        made.parameters = parameters
        return made


def held(frame: object) -> Parameters:
    """Return what a by-reference frame holds.

    Raises:
        DecodeError: it is an ordinary buffer.
    """
    if not isinstance(frame, Held):
        raise DecodeError("no object was handed over by reference")
    return frame.parameters


def buffers(frame: Frame) -> list[Buffer]:
    """Return a frame as a list of buffers."""
    return frame if isinstance(frame, list) else [frame]


def frame_bytes(frame: Frame) -> int:
    """Return the length of a frame in bytes."""
    return sum(memoryview(part).nbytes for part in buffers(frame))


def joined(parts: Iterable[Buffer]) -> Buffer:
    """Return buffers as one; a single one is not copied."""
    listed = list(parts)
    return listed[0] if len(listed) == 1 else b"".join(listed)
