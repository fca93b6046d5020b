"""Takes a body in: chunks to frames to tensors, checked against what was expected before anything is touched.

Both ends use it: the server for updates, the worker for models. Every size is bounded by the Spec before it is allocated.
A body that breaks off loses nothing of what had come: the intake goes on with the rest of it, whoever brings that.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

import numpy as np

from fedcore.codec import Base, Codec, held
from fedcore.errors import ChecksumError, ConfigError, DecodeError, Incomplete
from fedcore.messages import Manifest
from fedcore.parameters import Parameters, Spec, digest
from fedcore.pool import Lender, borrow, fresh
from fedcore.shards import Shard, shards
from fedcore.transport import Body

_OVERHEAD, _OVERHEAD_EACH = 1 << 16, 1 << 12  # what a frame may hold beside the tensors
_LENGTHY = 1 << 17  # bytes whose copy takes longer than to hand the interpreter to another thread and to get it back

R = TypeVar("R")
_Reading: TypeAlias = Generator[None, memoryview, R]
"""Work that stands still where it needs the next buffer, until that is sent to it."""


def receive(
    manifest: Manifest,
    body: Body,
    spec: Spec,
    codec: Codec | None,
    *,
    base: Base | None = None,
    lend: Lender = borrow,
) -> Parameters:
    """Read a body into a payload that looks like ``spec``; see :class:`Intake`. Without a codec it is tensors, not bytes.

    Raises:
        DecodeError: the body is not an encoding of such a payload.
        ChecksumError: it is, but of other values than announced.
    """
    if codec is None:
        parameters = held(next(iter(body), None))
        spec.check(parameters)
        return parameters
    return Intake(manifest, spec, codec, base=base, lend=lend).take(body)


class Intake:
    """Takes one body in, however it is cut, and in as many pieces as it takes to get it whole.

    Args:
        manifest: how the body is cut.
        spec: what must come out.
        codec: what to decode with.
        base: what the body tells the difference to.
        lend: gives the memory that the tensors will lie in.

    Attributes:
        received: how many bytes have come.
        open: whether more can be taken in: False when the body is whole, and when something was wrong with it.

    Raises:
        DecodeError: the manifest cannot be one of such a payload, or the base is not at hand.
    """

    def __init__(
        self, manifest: Manifest, spec: Spec, codec: Codec, *, base: Base | None = None, lend: Lender = borrow
    ):
        cut = plan(manifest, spec)
        if manifest.base and (base is None or (base.digest, base.spec) != (manifest.base, spec)):
            raise DecodeError(f"a difference to {manifest.base[:16]!r}, which is not at hand", reason="BASE_MISMATCH")
        self.received, self.open = 0, True
        self._manifest, self._spec, self._codec = manifest, spec, codec
        self._base = base if manifest.base else None
        self._blank, self._rest = spec.blank(lend), memoryview(b"")
        self._reading = self._read(cut)
        self._go_on(None)

    def take(self, body: Body) -> Parameters:
        """Take in what is missing, and return the payload.

        Raises:
            Incomplete: the body ends too early; what had come stays. The same holds for whatever ``body`` raises itself.
            DecodeError: the body is not an encoding of such a payload.
            ChecksumError: it is, but of other values than announced.
        """
        for buffer in body:
            view = memoryview(buffer).cast("B")
            if view.nbytes and not self.open:
                raise DecodeError("the body goes on after its last frame", reason="LENGTH_MISMATCH")
            if view.nbytes:
                self.received += view.nbytes
                self._go_on(view)
        if self.open:
            raise Incomplete("the body ends before its last frame does")
        if digest(self._blank, self._spec) != self._manifest.digest:
            raise ChecksumError("the tensors received do not have the digest that was announced")
        return self._blank

    def _go_on(self, view: memoryview | None) -> None:
        going_on, self.open = self.open, False
        try:
            self._reading.send(view) if view is not None else next(self._reading)
        except StopIteration:
            if self._rest.nbytes:
                raise DecodeError("the body goes on after its last frame", reason="LENGTH_MISMATCH") from None
        else:
            self.open = going_on

    def _read(self, cut: tuple[Shard, ...]) -> _Reading[None]:
        for shard, length in zip(cut, self._manifest.frames, strict=True):
            ground = None if self._base is None else shard.take(self._base.parameters)
            yield from self._land(length, shard, shard.take(self._blank), ground)

    def _land(self, length: int, shard: Shard, into: Parameters, base: Parameters | None) -> _Reading[None]:
        """Take one frame in: straight into the tensors if the codec can say where, else by decoding it whole."""
        landing = self._codec.landing(shard.spec, into)
        if landing is None or landing.nbytes != length:
            frame = yield from self._frame(length)
            self._codec.decode(frame, shard.spec, base=base, into=into)
            return
        for part in landing.buffers:
            yield from self._fill(part)
        landing.finish()

    def _frame(self, length: int) -> _Reading[memoryview]:
        """Return the next ``length`` bytes as one buffer, without a copy if they lie together."""
        if length and not self._rest.nbytes:
            self._rest = yield
        if self._rest.nbytes >= length:
            found, self._rest = self._rest[:length], self._rest[length:]
            return found
        whole = fresh(length).data
        yield from self._fill(whole)
        return whole

    def _fill(self, target: memoryview) -> _Reading[None]:
        filled, wanted = 0, target.nbytes
        while filled < wanted:
            if not self._rest.nbytes:
                self._rest = yield
            taken = min(wanted - filled, self._rest.nbytes)
            if taken < _LENGTHY:
                target[filled : filled + taken] = self._rest[:taken]
            else:  # numpy's copy lets other threads run meanwhile, that of memoryviews does not
                np.copyto(np.frombuffer(target[filled : filled + taken], np.uint8), np.frombuffer(self._rest[:taken], np.uint8))
            filled, self._rest = filled + taken, self._rest[taken:]


def plan(manifest: Manifest, spec: Spec) -> tuple[Shard, ...]:
    """Return the shards a body must consist of.

    Raises:
        DecodeError: the manifest cannot be one of such a payload; judged before the body is read.
    """
    if not 4096 <= manifest.shard_bytes <= 1 << 30:
        raise DecodeError(f"shard_bytes is {manifest.shard_bytes}, not 4 KiB to 1 GiB", reason="LENGTH_MISMATCH")
    try:
        cut = shards(spec, manifest.shard_bytes)
    except ConfigError as error:
        raise DecodeError(str(error), reason="LENGTH_MISMATCH") from error
    if len(cut) != len(manifest.frames):
        raise DecodeError(f"{len(manifest.frames)} frames instead of {len(cut)}", reason="LENGTH_MISMATCH")
    for index, (shard, length) in enumerate(zip(cut, manifest.frames, strict=True)):
        most = shard.spec.nbytes + _OVERHEAD + _OVERHEAD_EACH * len(shard.spec)
        if not 0 <= length <= most:
            raise DecodeError(f"frame {index} claims {length} bytes, at most {most} are possible", reason="TOO_LARGE")
    return cut
