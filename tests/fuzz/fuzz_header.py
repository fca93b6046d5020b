"""Each message from a client to the server, without what a body holds: one byte says which, the rest is the message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from fields import mutated, picked
from oracle import Target

from fedcore.errors import FedcoreError
from fedcore.messages import (
    Act,
    Beat,
    Command,
    Fetch,
    Manifest,
    ModelQuery,
    Pull,
    Register,
    Session,
    Status,
    Submit,
    TensorInfo,
)
from fedcore.parameters import Spec
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.framing import LARGEST_CHUNK, SMALLEST_CHUNK, Assembly, chunks, parse, with_body, without_body
from fedcore.values import check_client_id, check_metrics, check_num_examples

KINDS = (
    pb.RegisterClientRequest, pb.GetGlobalModelRequest, pb.SubmitModelUpdateRequest, pb.ModelUpdateChunk, pb.HeartbeatRequest,
    pb.ControlRequest, pb.GetServerStatusRequest,
)  # fmt: skip
SESSION = Session("run-1", "hospital-1", "0123456789abcdef")
_BODY = bytes(range(256)) * (SMALLEST_CHUNK // 128)
_TOTAL = len(_BODY)


def messages() -> Iterator[tuple[str, object]]:
    """Yield a valid message of each kind."""
    infos = (TensorInfo("a", "float32", (2, 3)), TensorInfo("b", "bfloat16", (0,)), TensorInfo("c", "float32", (2, 3), "a"))
    manifest = Manifest("delta+zstd", 16 << 20, (64, 7), "d" * 64, infos, "e" * 64)
    yield "register", wire.pack_register(Register("hospital-1", "safetensors+lz4", ("lz4", "safetensors"), True, instance="i1"))
    yield "fetch", wire.pack_fetch(Fetch(SESSION, "task-1", 1 << 20, 4096))
    yield "pull", wire.pack_pull(Pull(SESSION, 30.0, "f" * 64), stream=True)
    yield "model", wire.pack_fetch(ModelQuery("f" * 64, 1 << 20, 4096))
    submit = Submit(SESSION, "task-1", 3, "attempt-1", "e" * 64, 100, manifest, {"loss": 0.25, "steps": 20, "done": True})
    yield "submit", pb.SubmitModelUpdateRequest(header=wire.pack_submit(submit))
    yield "stream", pb.ModelUpdateChunk(header=wire.pack_submit(submit))
    yield "beat", wire.pack_beat(Beat(SESSION, Status.TRAINING, 3, 10, 2, "task-1", "so far so good"))
    yield "control", wire.pack_command(Command(Act.EVICT, "hospital-2", "asked to"))
    yield "status", pb.GetServerStatusRequest()


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield them with the byte in front; and the last chunk of a stream."""
    for name, message in messages():
        body = [b"abcd"] if name == "submit" else []
        data = with_body(message, body, 4) if body else message.SerializeToString()
        yield name, bytes([KINDS.index(type(message))]) + data
    *_, last = chunks(pb.ModelUpdateChunk, [_BODY[:4096]], 4096, SMALLEST_CHUNK)
    yield "chunk", bytes([len(KINDS)]) + last


def run(data: bytes) -> None:
    """Take a message apart, and check what is checked before a state is touched."""
    kind, rest = picked((*KINDS, None), data[0] if data else 0), data[1:]
    if kind is None:
        assembly = Assembly(pb.ModelUpdateChunk, 4096, LARGEST_CHUNK, SMALLEST_CHUNK)
        assembly.take(rest)
        assembly.end()
    elif kind is pb.SubmitModelUpdateRequest:
        _check_submit(wire.unpack_submit(without_body(kind, rest)[0].header))
    else:
        _unpack(parse(kind, rest))


def mutate(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    """Change a field."""
    kind = picked((*KINDS, None), data[0] if data else 0)
    if kind is None:
        kind = pb.ModelUpdateChunk
    try:
        message, body = without_body(kind, data[1:])
    except FedcoreError:  # it was changed before
        return havoc(data, random)
    made, _ = mutated(message, random, havoc)
    return data[:1] + with_body(made, [bytes(body)], len(body))


def _unpack(message: object) -> None:
    if isinstance(message, pb.RegisterClientRequest):
        check_client_id(wire.unpack_register(message).client_id)
    elif isinstance(message, pb.GetGlobalModelRequest):
        wire.unpack_fetch(message)
        wire.unpack_pull(message)
    elif isinstance(message, pb.ModelUpdateChunk):
        _check_submit(wire.unpack_submit(message.header))
    elif isinstance(message, pb.HeartbeatRequest):
        wire.unpack_beat(message)
    elif isinstance(message, pb.ControlRequest):
        wire.unpack_command(message)


def _check_submit(submit: Submit) -> None:
    check_num_examples(submit.num_examples, 1 << 32)
    check_metrics(submit.metrics)
    Spec.checked(submit.manifest.tensors)


TARGET = Target("header", seeds, run, mutate)
