"""Takes a body in: chunks to frames to tensors, checked against what was expected before anything is touched.

Both ends use it: the server for updates, the worker for models. Every size is bounded by the Spec before it is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedcore.codec import Codec, held
from fedcore.errors import ChecksumError, DecodeError, Incomplete
from fedcore.messages import Manifest
from fedcore.parameters import Parameters, Shard, Spec, digest, shards
from fedcore.transport import Body, Buffer

_OVERHEAD, _OVERHEAD_EACH = 1 << 16, 1 << 12  # what a frame may hold beside the tensors


def receive(manifest: Manifest, body: Body, spec: Spec, codec: Codec | None) -> Parameters:
    """Read a body into a payload that looks like ``spec``.

    Args:
        manifest: how the body is cut.
        body: the bytes.
        spec: what must come out.
        codec: what to decode with; None takes over the tensors of a peer in this process, as they are.

    Raises:
        DecodeError: the body is not an encoding of such a payload.
        ChecksumError: it is, but of other values than announced.
    """
    if codec is None:
        parameters = held(next(iter(body), None))
        spec.check(parameters)
        return parameters
    cut = plan(manifest, spec)
    blank = spec.blank()
    for shard, frame in zip(cut, frames(manifest, body), strict=True):
        codec.decode(frame, shard.spec, into=shard.take(blank))
    if digest(blank, spec) != manifest.digest:
        raise ChecksumError("the tensors received do not have the digest that was announced")
    return blank


def plan(manifest: Manifest, spec: Spec) -> list[Shard]:
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


def frames(manifest: Manifest, body: Body) -> Iterator[Buffer]:
    """Cut a body into its frames. A frame is valid until the next one is asked for.

    Raises:
        Incomplete: the body is shorter than the manifest says.
        DecodeError: it is longer.
    """
    source = iter(body)
    rest = memoryview(b"")
    scratch = np.empty(max(manifest.frames, default=0), np.uint8).data
    for length in manifest.frames:
        filled = 0
        while filled + rest.nbytes < length:
            scratch[filled : filled + rest.nbytes] = rest
            filled += rest.nbytes
            chunk = next(source, None)
            if chunk is None:
                raise Incomplete("the body ends before its last frame does")
            rest = memoryview(chunk).cast("B")
        taken, rest = rest[: length - filled], rest[length - filled :]
        if filled:
            scratch[filled:length] = taken
            taken = scratch[:length]
        yield taken
    if rest.nbytes or any(memoryview(extra).nbytes for extra in source):
        raise DecodeError("the body goes on after its last frame", reason="LENGTH_MISMATCH")
