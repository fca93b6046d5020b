"""What a server may send to a client: answers, models and errors. One byte says which; the client is a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

import grpc
from fields import mutated, picked
from fuzz_header import SESSION
from google.protobuf.message import DecodeError as ProtobufError
from google.rpc import error_details_pb2, status_pb2
from layers import changed
from models import BASE, BEFORE, MODEL, PARTS, SPEC
from oracle import Target

from fedcore.broadcast import encode
from fedcore.errors import ConnectionLost, FedcoreError, NonFinite, TooOften
from fedcore.last_model import fetch
from fedcore.link import Link
from fedcore.messages import (
    Assigned,
    Beat,
    BeatReply,
    ClientStatus,
    Committed,
    Directive,
    Fetch,
    Finished,
    Kind,
    Manifest,
    Message,
    ModelQuery,
    Outcome,
    Pull,
    Register,
    Registered,
    Rest,
    ServerStatus,
    Status,
    Submit,
    Submitted,
    Task,
    TensorInfo,
    Wait,
)
from fedcore.parameters import Spec
from fedcore.pool import drain
from fedcore.protos import fedcore_pb2 as pb
from fedcore.registry import accepted_codec
from fedcore.registry import codec as codec_of
from fedcore.site import SitePolicy
from fedcore.transport import Body, Connection, Reply
from fedcore.transports.grpc import status, wire
from fedcore.transports.grpc.framing import LARGEST_CHUNK, SMALLEST_CHUNK, Assembly, chunks, parse, with_body, without_body

KINDS = (
    pb.RegisterClientResponse, pb.GetGlobalModelResponse, pb.ModelChunk, pb.SubmitModelUpdateResponse, pb.HeartbeatResponse,
    pb.GetServerStatusResponse, pb.ControlResponse, status_pb2.Status,
)  # fmt: skip
_ERROR = bytes([KINDS.index(status_pb2.Status)])
_WELCOME = Registered(SESSION, "int8+zstd", 5.0, 30.0, "delta+zstd", True, 1.5)
_SITE = SitePolicy(max_model_bytes=1 << 20, config={"lr": (0.0, 1.0), "local_epochs": (1, 5)})
_PAYLOAD = encode(MODEL, SPEC, codec_of("safetensors"), 16 << 20)
_TASK = Task("task-1", Kind.FIT, 3, "d" * 64, {"round": 3, "seed": 7, "lr": 0.5, "local_epochs": 2})


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield a valid answer of each kind, models in several codecs, and an error."""
    for name, message in _answers():
        yield name, bytes([KINDS.index(type(message))]) + message.SerializeToString()
    for codec in ("safetensors", "safetensors+lz4", "msgpack+zstd", "protobuf", "delta+zstd", "int8", "topk+lz4"):
        base = BASE if codec_of(codec).uses_base else None
        payload = encode(MODEL, SPEC, codec_of(codec), 16 << 20, base=base)
        answer = wire.pack_pulled(Assigned(_TASK, payload.manifest), stream=False)
        data = with_body(answer, payload.body, payload.manifest.total_bytes)
        yield f"model-{codec}", bytes([KINDS.index(pb.GetGlobalModelResponse)]) + data
    (chunk,) = chunks(pb.ModelChunk, [bytes(4096)], 4096, SMALLEST_CHUNK)
    yield "chunk", bytes([KINDS.index(pb.ModelChunk)]) + chunk
    refused = Submitted(Outcome.STALE, "STALE", "too late", 4, Directive.CONTINUE)
    for name, size in (("slices", 4096), ("memory", 1 << 30)):
        huge = Manifest("safetensors", size, (100,) * 4096, "d" * 64, (TensorInfo("w", "uint8", (1 << 42,)),))
        data = wire.pack_pulled(Committed(3, huge), stream=True).SerializeToString()
        yield f"refused-{name}", bytes([KINDS.index(pb.GetGlobalModelResponse)]) + data
    yield "refused-update", _ERROR + status.of_outcome(refused).SerializeToString()
    yield "refused-error", _ERROR + status.of_error(NonFinite("tensor 'w' holds NaN")).SerializeToString()
    yield "refused-later", _ERROR + status.of_error(TooOften("registers too often", retry_after=2.5)).SerializeToString()


def _answers() -> Iterator[tuple[str, Any]]:
    yield "registered", wire.pack_registered(_WELCOME)
    yield "wait", wire.pack_pulled(Wait(3), stream=False)
    yield "finished", wire.pack_pulled(Finished("done"), stream=False)
    yield "committed", wire.pack_pulled(Committed(3, _PAYLOAD.manifest), stream=True)
    yield "submitted", wire.pack_submitted(Submitted(Outcome.DUPLICATE, "DUPLICATE", "seen", 3, Directive.CONTINUE))
    yield "beat", wire.pack_beat_reply(BeatReply(True, Directive.CONTINUE, "fine", 2.5, 1.5))
    client = ClientStatus("hospital-1", Status.TRAINING, 3, 1, 10, 0.25)
    stands = ServerStatus("run-1", "waiting", 3, 2, 10, 1, 2, "safetensors", 9.5, (client,), {"loss": 0.5})
    yield "status", wire.pack_status(stands)
    yield "control", pb.ControlResponse(message="paused")


class Hostile(Connection):
    """Answers one kind of request with the bytes at hand, the others as they should be."""

    def __init__(self, kind: type, data: bytes):
        self._kind, self._data = kind, data
        self.pulls = 0

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        """Answer like gRPC's end of the wire, with what came over it."""
        if self._kind is status_pb2.Status:
            if isinstance(message, Submit) and (refused := status.outcome_of(_Failed(self._data))):
                return Reply(refused)
            raise status.error_of(_Failed(self._data), "server")
        if isinstance(message, Register):
            theirs = self._kind is pb.RegisterClientResponse
            return Reply(wire.unpack_registered(parse(self._kind, self._data)) if theirs else _WELCOME)
        if isinstance(message, Pull):
            return self._pulled()
        if isinstance(message, ModelQuery) and message.digest:
            return Reply(Rest(message.total_bytes), [memoryview(b"".join(_PAYLOAD.body))[message.offset :]])
        if isinstance(message, ModelQuery):
            return Reply(wire.unpack_pulled(parse(pb.GetGlobalModelResponse, self._data)))
        if isinstance(message, Fetch):
            raise ConnectionLost("no more of it")
        if isinstance(message, Beat):
            theirs = self._kind is pb.HeartbeatResponse
            return Reply(wire.unpack_beat_reply(parse(self._kind, self._data)) if theirs else BeatReply(True))
        return Reply(wire.unpack_submitted(parse(pb.SubmitModelUpdateResponse, self._data)))

    def _pulled(self) -> Reply:
        self.pulls += 1
        if self.pulls > 1 or self._kind is not pb.GetGlobalModelResponse:
            return Reply(Finished("enough"))
        response, body = without_body(pb.GetGlobalModelResponse, self._data)
        answer = wire.unpack_pulled(response)
        return Reply(answer, [body] if isinstance(answer, Assigned) else [])

    def close(self) -> None:
        """Nothing is open."""


class _Failed(grpc.RpcError):
    """A call that failed, with the status that the other side sent."""

    def __init__(self, packed: bytes):
        self._packed = packed

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INVALID_ARGUMENT

    def details(self) -> str:
        return "refused"

    def trailing_metadata(self) -> Iterable[tuple[str, bytes]]:
        return [(status.DETAILS, self._packed)]


def run(data: bytes) -> None:
    """Let a client speak to a server that answers so."""
    kind, rest = picked(KINDS, data[0] if data else 0), data[1:]
    if kind is pb.GetServerStatusResponse:
        wire.unpack_status(parse(kind, rest))
    elif kind is pb.ControlResponse:
        parse(kind, rest)
    elif kind is pb.GetGlobalModelResponse and without_body(kind, rest)[0].HasField("committed"):
        fetch(Hostile(kind, rest))
    elif kind is pb.ModelChunk:
        assembly = Assembly(kind, 4096, LARGEST_CHUNK, SMALLEST_CHUNK)
        assembly.take(rest)
        assembly.end()
    else:
        _speak(Hostile(kind, rest))


def _speak(server: Hostile) -> None:
    link = Link(server, "hospital-1", accept_codecs=list(PARTS), patience=0.0, check=_SITE.check_model)
    link._inbox.base = BASE
    try:
        try:
            link.register()
        except FedcoreError:
            if server._kind is not status_pb2.Status:
                raise
            link._welcomed(Reply(_WELCOME))
        link.send_heartbeat() if server._kind is pb.HeartbeatResponse else None
        given = link.next_task()
        if isinstance(given, Finished):
            if server._kind in (pb.SubmitModelUpdateResponse, status_pb2.Status):
                link.submit(_TASK, SPEC, BEFORE, 10, {})
            return
        task, parameters = given
        _SITE.check_config(task.config)
        spec = Spec.checked(task.upload) if task.upload else link.spec
        assert spec is not None
        if not task.upload:
            spec.check(parameters)
    finally:
        drain()


def mutate(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    """Change a field of an answer, or a layer of the model in it."""
    kind, rest = picked(KINDS, data[0] if data else 0), data[1:]
    try:
        if kind is status_pb2.Status:
            return data[:1] + _error_mutated(rest, random, havoc)
        message, view = without_body(kind, rest)
        body = bytes(view)
        if not body or len(message.manifest.frames) != 1 or random.random() < 0.5:
            made = mutated(message, random, havoc)[0]
            return data[:1] + with_body(made, [body], len(body))
        body = changed(accepted_codec(message.manifest.codec, PARTS), body, random, havoc)
        message.manifest.frames[0] = len(body)
        return data[:1] + with_body(message, [body], len(body))
    except (FedcoreError, ProtobufError, ValueError, AttributeError):  # it was changed before
        return havoc(data, random)


def _error_mutated(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    packed = parse(status_pb2.Status, data)
    detail = random.choice(list(packed.details) or [None])
    info = error_details_pb2.RetryInfo() if detail and "RetryInfo" in detail.type_url else error_details_pb2.ErrorInfo()
    if detail is None or random.random() < 0.2 or not detail.Unpack(info):
        return mutated(packed, random, havoc)[0].SerializeToString()
    detail.Pack(mutated(info, random, havoc)[0])
    return packed.SerializeToString()


TARGET = Target("client", seeds, run, mutate)
