"""Sends one model to many: each payload is encoded once per codec, however many clients ask, and all get the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from fedcore.codec import REFERENCE, Codec, Held, buffers, frame_bytes
from fedcore.lane import Lane
from fedcore.messages import Manifest
from fedcore.parameters import Parameters, Spec, contiguous
from fedcore.shards import shards
from fedcore.transport import Buffer


@dataclass(frozen=True)
class Payload:
    """An encoded payload. The body may hold views of the model's memory."""

    manifest: Manifest
    body: list[Buffer]


def encode(parameters: Parameters, spec: Spec, digest: str, codec: Codec | None, shard_bytes: int) -> Payload:
    """Encode a payload shard by shard.

    Args:
        parameters: what to encode; views of it may end up in the body.
        spec: what it looks like.
        digest: of the payload as it will be decoded.
        codec: what to encode with; None hands the tensors over as they are, inside one process.
        shard_bytes: where to cut.
    """
    if codec is None:
        return Payload(Manifest(REFERENCE, shard_bytes, (0,), "", spec.infos), [Held(parameters)])
    plain = contiguous(parameters)
    frames = [codec.encode(shard.take(plain)) for shard in shards(spec, shard_bytes)]
    lengths = tuple(frame_bytes(frame) for frame in frames)
    manifest = Manifest(codec.name, shard_bytes, lengths, digest, spec.infos)
    return Payload(manifest, [part for frame in frames for part in buffers(frame)])


class Broadcast:
    """A small cache of encoded payloads, keyed by digest and codec.

    Attributes:
        encodings: how often something was encoded.
    """

    def __init__(self, shard_bytes: int):
        self.encodings = 0
        self._shard_bytes = shard_bytes
        self._lock = threading.Lock()
        self._cache: dict[tuple[str, str], Future[Payload]] = {}
        self._lane = Lane("fedcore-encode")

    def payload(self, parameters: Parameters, spec: Spec, digest: str, codec: Codec | None) -> Future[Payload]:
        """Return the encoded payload, now or when it is ready."""
        key = (digest, codec.name if codec else REFERENCE)
        with self._lock:
            if key not in self._cache:
                self.encodings += 1
                self._cache[key] = self._lane.submit(encode, parameters, spec, digest, codec, self._shard_bytes)
            return self._cache[key]

    def keep(self, digests: Iterable[str]) -> None:
        """Forget all payloads but those with these digests."""
        kept = set(digests)
        with self._lock:
            self._cache = {key: payload for key, payload in self._cache.items() if key[0] in kept}

    def close(self) -> None:
        """End the thread that encodes."""
        self._lane.close(timeout=5.0)
