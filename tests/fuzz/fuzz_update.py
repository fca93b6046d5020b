"""An update as it comes over the wire: its header, and a body of any built-in codec, against the model that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from fields import mutated
from layers import changed
from models import BASE, CODECS, MODEL, PARTS, SPEC
from oracle import Target

from fedcore.broadcast import encode
from fedcore.errors import FedcoreError, ProtocolError
from fedcore.extents import check_finite
from fedcore.intake import Intake
from fedcore.messages import Session, Submit
from fedcore.parameters import Spec
from fedcore.protos import fedcore_pb2 as pb
from fedcore.registry import accepted_codec
from fedcore.registry import codec as codec_of
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.framing import with_body, without_body
from fedcore.values import check_metrics, check_num_examples

_SESSION = Session("run-1", "hospital-1", "0123456789abcdef")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield an update in each codec, as a difference where that makes one, and one that is cut into slices."""
    for name in CODECS:
        yield name, _message(name, 16 << 20, differs=False)
        if codec_of(name).uses_base:
            yield f"{name}-difference", _message(name, 16 << 20, differs=True)
    for name in ("safetensors", "int8", "delta+zstd"):
        yield f"{name}-slices", _message(name, 4096, differs=codec_of(name).uses_base)


def run(data: bytes) -> None:
    """Take an update in as a server does, up to the sum."""
    request, body = without_body(pb.SubmitModelUpdateRequest, data)
    header = wire.unpack_submit(request.header)
    manifest = header.manifest
    if body.nbytes != manifest.total_bytes:
        raise ProtocolError("another length than announced", reason="LENGTH_MISMATCH")
    check_num_examples(header.num_examples, 1 << 32)
    check_metrics(header.metrics)
    codec = accepted_codec(manifest.codec, PARTS)
    if manifest.tensors != SPEC.infos:
        SPEC.expect(Spec.checked(manifest.tensors))
    half = body.nbytes // 2
    check_finite(Intake(manifest, SPEC, codec, base=BASE).take([body[:half], body[half:]]))


def mutate(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    """Change a field of the header, or a layer of one frame."""
    try:
        request, rest = without_body(pb.SubmitModelUpdateRequest, data)
        header, body = request.header, bytes(rest)
        if random.random() < 0.4:
            return _joined(mutated(header, random)[0], body)
        frames, at = [], 0
        for length in header.manifest.frames:
            frames.append(body[at : at + length])
            at += length
        place = random.randrange(len(frames))
        frames[place] = changed(accepted_codec(header.manifest.codec, PARTS), frames[place], random, havoc)
        header.manifest.frames[place] = len(frames[place])
        return _joined(header, b"".join(frames))
    except (FedcoreError, ValueError):  # it was changed before
        return havoc(data, random)


def _message(name: str, shard_bytes: int, *, differs: bool) -> bytes:
    payload = encode(MODEL, SPEC, codec_of(name), shard_bytes, base=BASE if differs else None)
    submit = Submit(_SESSION, "task-1", 3, "attempt-1", BASE.digest, 100, payload.manifest, {"loss": 0.25, "steps": 20})
    return with_body(pb.SubmitModelUpdateRequest(header=wire.pack_submit(submit)), payload.body, payload.manifest.total_bytes)


def _joined(header: pb.UpdateHeader, body: bytes) -> bytes:
    return with_body(pb.SubmitModelUpdateRequest(header=header), [body], len(body))


TARGET = Target("update", seeds, run, mutate)
