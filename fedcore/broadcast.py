"""Sends one model to many: each payload is encoded once per codec, however many clients ask, and all get the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from fedcore.codec import REFERENCE, Base, Codec, Frame, Held, buffers, frame_bytes, joined
from fedcore.lane import THREADS, Lanes
from fedcore.messages import Manifest
from fedcore.parameters import Parameters, Spec, digest
from fedcore.shards import Shard, shards
from fedcore.transport import Buffer
from fedcore.views import contiguous


@dataclass(frozen=True)
class Payload:
    """An encoded payload, and what the receiver will have. The body may hold views of the model's memory."""

    manifest: Manifest
    body: list[Buffer]
    received: Base


def encode(
    parameters: Parameters,
    spec: Spec,
    codec: Codec | None,
    shard_bytes: int,
    *,
    name: str = "",
    base: Base | None = None,
    state: dict[str, object] | None = None,
) -> Payload:
    """Encode a payload shard by shard.

    Args:
        parameters: what to encode; views of it may end up in the body.
        spec: what it looks like.
        codec: what to encode with; None hands the tensors over as they are, inside one process.
        shard_bytes: where to cut.
        name: the payload's digest, if it is known.
        base: what the receiver holds; made use of if the codec can, and if it looks the same.
        state: what the codec remembers between payloads.
    """
    if codec is None:
        return Payload(Manifest(REFERENCE, shard_bytes, (0,), "", spec.infos), [Held(parameters)], Base("", spec, parameters))
    plain, cut = contiguous(parameters), shards(spec, shard_bytes)
    ground = base if base is not None and codec.uses_base and base.spec == spec else None
    frames = [codec.encode(shard.take(plain), base=_taken(shard, ground), state=state) for shard in cut]
    received = parameters if codec.lossless else _decoded(frames, cut, spec, codec, ground)
    if not (name and codec.lossless):
        name = digest(received, spec)
    lengths = tuple(frame_bytes(frame) for frame in frames)
    manifest = Manifest(codec.name, shard_bytes, lengths, name, spec.infos, ground.digest if ground else "")
    return Payload(manifest, [part for frame in frames for part in buffers(frame)], Base(name, spec, received))


def _decoded(frames: list[Frame], cut: tuple[Shard, ...], spec: Spec, codec: Codec, base: Base | None) -> Parameters:
    blank = spec.blank()
    for frame, shard in zip(frames, cut, strict=True):
        codec.decode(joined(buffers(frame)), shard.spec, base=_taken(shard, base), into=shard.take(blank))
    return blank


def _taken(shard: Shard, base: Base | None) -> Parameters | None:
    return None if base is None else shard.take(base.parameters)


class Broadcast:
    """A small cache of encoded payloads, and of what their receivers hold.

    Args:
        shard_bytes: where payloads are cut.
        delta: what differences to the payloads before are encoded with; those are kept for one generation, then.
        lanes: makes the lane that encodes.

    Attributes:
        encodings: how often something was encoded.
    """

    def __init__(self, shard_bytes: int, delta: Codec | None = None, lanes: Lanes = THREADS):
        self.encodings = 0
        self._shard_bytes, self._delta = shard_bytes, delta
        self._lock = threading.Lock()
        self._cache: dict[tuple[str, str, str], Future[Payload]] = {}
        self._before: dict[str, Base] = {}
        self._lane = lanes.lane("fedcore-encode")

    def payload(
        self, parameters: Parameters, spec: Spec, digest: str, codec: Codec | None, holds: str = ""
    ) -> Future[Payload]:
        """Return the encoded payload, now or when it is ready.

        Args:
            parameters: the payload.
            spec: what it looks like.
            digest: its digest.
            codec: what to encode it with.
            holds: digest of what the receiver holds; it is sent the difference to that if that is known here, and smaller.
        """
        base = self.base(holds) if self._delta and holds else None
        whole = partial(encode, parameters, spec, codec, self._shard_bytes, name=digest)
        with self._lock:
            sent = self._cached((digest, "", codec.name if codec else REFERENCE), whole)
            if base is None or self._delta is None:
                return sent
            change = partial(encode, parameters, spec, self._delta, self._shard_bytes, name=digest, base=base)
            return self._cached((digest, holds, self._delta.name), partial(_smaller, change, sent))

    def base(self, digest: str) -> Base | None:
        """Return the payload with this digest, if it was sent in this generation (or the one before, if those are kept)."""
        with self._lock:
            return self._sent().get(digest) or self._before.get(digest)

    def keep(self, digests: Iterable[str]) -> None:
        """Begin a generation: forget all payloads but those with these digests."""
        kept = set(digests)
        with self._lock:
            if self._delta is not None:
                self._before = self._sent()
            self._cache = {key: payload for key, payload in self._cache.items() if key[0] in kept}

    def close(self) -> None:
        """End the thread that encodes."""
        self._lane.close(timeout=5.0)

    def _cached(self, key: tuple[str, str, str], job: Callable[[], Payload]) -> Future[Payload]:
        if key not in self._cache:
            self.encodings += 1
            self._cache[key] = self._lane.submit(job)
        return self._cache[key]

    def _sent(self) -> dict[str, Base]:
        done = [payload.result() for payload in self._cache.values() if payload.done() and not payload.exception()]
        return {payload.received.digest: payload.received for payload in done}


def _smaller(change: Callable[[], Payload], sent: Future[Payload]) -> Payload:
    made, whole = change(), sent.result()  # which went down the lane before this one
    return made if made.manifest.total_bytes < whole.manifest.total_bytes else whole
