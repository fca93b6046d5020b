"""Takes a body in: chunks to frames to tensors, checked against what was expected before anything is touched.

Both ends use it: the server for updates, the worker for models. Every size is bounded by the Spec before it is allocated.
"""

from __future__ import annotations

import numpy as np

from fedcore.codec import Base, Codec, held
from fedcore.errors import ChecksumError, DecodeError, Incomplete
from fedcore.messages import Manifest
from fedcore.parameters import Parameters, Spec, digest
from fedcore.pool import Lender, borrow
from fedcore.shards import Shard, shards
from fedcore.transport import Body

_OVERHEAD, _OVERHEAD_EACH = 1 << 16, 1 << 12  # what a frame may hold beside the tensors
_LENGTHY = 1 << 17  # bytes whose copy takes longer than to hand the interpreter to another thread and to get it back


def receive(
    manifest: Manifest,
    body: Body,
    spec: Spec,
    codec: Codec | None,
    *,
    base: Base | None = None,
    lend: Lender = borrow,
) -> Parameters:
    """Read a body into a payload that looks like ``spec``.

    Args:
        manifest: how the body is cut.
        body: the bytes.
        spec: what must come out.
        codec: what to decode with; None takes over the tensors of a peer in this process, as they are.
        base: what the body tells the difference to.
        lend: gives the memory that the tensors will lie in.

    Raises:
        DecodeError: the body is not an encoding of such a payload.
        ChecksumError: it is, but of other values than announced.
    """
    if codec is None:
        parameters = held(next(iter(body), None))
        spec.check(parameters)
        return parameters
    cut = plan(manifest, spec)
    if manifest.base and (base is None or (base.digest, base.spec) != (manifest.base, spec)):
        raise DecodeError(f"a difference to {manifest.base[:16]!r}, which is not at hand", reason="BASE_MISMATCH")
    blank = spec.blank(lend)
    source = Source(body)
    for shard, length in zip(cut, manifest.frames, strict=True):
        ground = shard.take(base.parameters) if manifest.base and base else None
        _land(source, length, shard, shard.take(blank), codec, ground)
    source.end()
    if digest(blank, spec) != manifest.digest:
        raise ChecksumError("the tensors received do not have the digest that was announced")
    return blank


def _land(
    source: Source, length: int, shard: Shard, into: Parameters, codec: Codec, base: Parameters | None
) -> None:
    """Take one frame from the source: straight into the tensors if the codec can say where, else by decoding it whole."""
    landing = codec.landing(shard.spec, into)
    if landing is None or landing.nbytes != length:
        codec.decode(source.frame(length), shard.spec, base=base, into=into)
        return
    for part in landing.buffers:
        source.fill(part)
    landing.finish()


def plan(manifest: Manifest, spec: Spec) -> tuple[Shard, ...]:
    """Return the shards a body must consist of.

    Raises:
        DecodeError: the manifest cannot be one of such a payload; judged before the body is read.
    """
    if not 4096 <= manifest.shard_bytes <= 1 << 30:
        raise DecodeError(f"shard_bytes is {manifest.shard_bytes}, not 4 KiB to 1 GiB", reason="LENGTH_MISMATCH")
    cut = shards(spec, manifest.shard_bytes)
    if len(cut) != len(manifest.frames):
        raise DecodeError(f"{len(manifest.frames)} frames instead of {len(cut)}", reason="LENGTH_MISMATCH")
    for index, (shard, length) in enumerate(zip(cut, manifest.frames, strict=True)):
        most = shard.spec.nbytes + _OVERHEAD + _OVERHEAD_EACH * len(shard.spec)
        if not 0 <= length <= most:
            raise DecodeError(f"frame {index} claims {length} bytes, at most {most} are possible", reason="TOO_LARGE")
    return cut


class Source:
    """Reads a body in pieces of any size, however it is cut.

    Args:
        body: the buffers.
    """

    def __init__(self, body: Body):
        self._buffers = iter(body)
        self._rest = memoryview(b"")

    def fill(self, target: memoryview) -> None:
        """Fill a buffer with the next bytes.

        Raises:
            Incomplete: there are not so many.
        """
        filled, wanted = 0, target.nbytes
        while filled < wanted:
            if not self._rest.nbytes:
                self._rest = self._next()
            taken = min(wanted - filled, self._rest.nbytes)
            if taken < _LENGTHY:
                target[filled : filled + taken] = self._rest[:taken]
            else:  # numpy's copy lets other threads run meanwhile, that of memoryviews does not
                np.copyto(np.frombuffer(target[filled : filled + taken], np.uint8), np.frombuffer(self._rest[:taken], np.uint8))
            filled, self._rest = filled + taken, self._rest[taken:]

    def frame(self, length: int) -> memoryview:
        """Return the next ``length`` bytes as one buffer, without a copy if they lie together.

        Raises:
            Incomplete: there are not so many.
        """
        if length and not self._rest.nbytes:
            self._rest = self._next()
        if self._rest.nbytes >= length:
            found, self._rest = self._rest[:length], self._rest[length:]
            return found
        whole = np.empty(length, np.uint8).data
        self.fill(whole)
        return whole

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            DecodeError: the body goes on.
        """
        if self._rest.nbytes or any(memoryview(extra).nbytes for extra in self._buffers):
            raise DecodeError("the body goes on after its last frame", reason="LENGTH_MISMATCH")

    def _next(self) -> memoryview:
        for buffer in self._buffers:
            view = memoryview(buffer).cast("B")
            if view.nbytes:
                return view
        raise Incomplete("the body ends before its last frame does")
