"""Messages to protobuf and back, field by field."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any

from fedcore.errors import ProtocolError
from fedcore.messages import (
    Act,
    Assigned,
    AuditPage,
    AuditQuery,
    Beat,
    BeatReply,
    ClientStatus,
    Command,
    Committed,
    Directive,
    Fetch,
    Finished,
    Kind,
    Manifest,
    ModelQuery,
    Outcome,
    Pull,
    Register,
    Registered,
    ServerStatus,
    Session,
    Status,
    Submit,
    Submitted,
    Task,
    TensorInfo,
    Traffic,
    Wait,
)
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc.scalars import SHORTEST_BEAT, pack_config, seconds, text, unpack_config

_SPECS = 8  # of how many payloads the description is remembered: all tasks and updates of a round have one or two
_LARGEST_KNOWN = 1 << 18  # bytes of a description that is remembered; a peer may send much larger ones


def _enum(kind: Any, number: int, of: Any) -> Any:
    """Return the enum member that a number on the wire stands for."""
    try:
        return of[kind.Name(number)]
    except (ValueError, KeyError):
        raise ProtocolError(f"{of.__name__} {number} is not known here", reason="UNKNOWN_ENUM") from None


# --- shared parts ---


def pack_session(session: Session) -> pb.Session:
    """Session to protobuf."""
    return pb.Session(run_id=session.run_id, client_id=session.client_id, token=session.token)


def unpack_session(message: pb.Session) -> Session:
    """Protobuf to Session."""
    return Session(message.run_id, message.client_id, message.token)


def _pack_info(info: TensorInfo) -> pb.TensorInfo:
    return pb.TensorInfo(name=info.name, dtype=info.dtype, shape=info.shape, alias_of=info.alias_of)


def _unpack_info(message: pb.TensorInfo) -> TensorInfo:
    return TensorInfo(message.name, message.dtype, tuple(message.shape), message.alias_of)


@lru_cache(maxsize=_SPECS)
def _tensors_bytes(infos: tuple[TensorInfo, ...]) -> bytes:
    return pb.Tensors(infos=map(_pack_info, infos)).SerializeToString()


def _tensors(data: bytes) -> tuple[TensorInfo, ...]:
    return tuple(map(_unpack_info, pb.Tensors.FromString(data).infos))


_known_tensors = lru_cache(maxsize=_SPECS)(_tensors)


def _pack_manifest(manifest: Manifest) -> pb.Manifest:
    packed = pb.Manifest(
        codec=manifest.codec, shard_bytes=manifest.shard_bytes, frames=manifest.frames, digest=manifest.digest,
        base=manifest.base,
    )  # fmt: skip
    packed.tensors.MergeFromString(_tensors_bytes(manifest.tensors))
    return packed


def _unpack_manifest(message: pb.Manifest) -> Manifest:
    data = message.tensors.SerializeToString()
    tensors = _known_tensors(data) if len(data) <= _LARGEST_KNOWN else _tensors(data)
    return Manifest(message.codec, message.shard_bytes, tuple(message.frames), message.digest, tensors, message.base)


# --- registration ---


def pack_register(register: Register) -> pb.RegisterClientRequest:
    """Register to protobuf."""
    return pb.RegisterClientRequest(
        client_id=register.client_id, protocol_version=register.protocol_version, codec=register.codec,
        accepts=register.accepts, evaluates=register.evaluates, instance=register.instance,
    )  # fmt: skip


def unpack_register(message: pb.RegisterClientRequest) -> Register:
    """Protobuf to Register."""
    return Register(
        message.client_id, message.codec, tuple(message.accepts), message.evaluates, message.protocol_version, message.instance
    )


def pack_registered(registered: Registered) -> pb.RegisterClientResponse:
    """Registered to protobuf."""
    return pb.RegisterClientResponse(
        status=pb.RegisterClientResponse.ACCEPTED,
        message=f"Client {registered.session.client_id!r} registered successfully.",
        session=pack_session(registered.session), codec=registered.codec,
        heartbeat_interval=registered.heartbeat_interval, heartbeat_timeout=registered.heartbeat_timeout,
        delta_codec=registered.delta_codec, keeps=registered.keeps, retry_spread=registered.spread,
    )  # fmt: skip


def unpack_registered(message: pb.RegisterClientResponse) -> Registered:
    """Protobuf to Registered."""
    return Registered(
        unpack_session(message.session), message.codec,
        seconds(message.heartbeat_interval, "heartbeat_interval", SHORTEST_BEAT), message.heartbeat_timeout,
        message.delta_codec, message.keeps, seconds(message.retry_spread, "retry_spread"),
    )  # fmt: skip


# --- download ---


def pack_task(task: Task) -> pb.Task:
    """Task to protobuf."""
    return pb.Task(
        id=task.id, kind=task.kind.name, round=task.round, base_digest=task.base_digest,
        config=pack_config(task.config), upload=map(_pack_info, task.upload), difference=task.difference,
        partial=task.partial,
    )  # fmt: skip


def unpack_task(message: pb.Task) -> Task:
    """Protobuf to Task."""
    return Task(
        message.id, _enum(pb.Task.Kind, message.kind, Kind), message.round, message.base_digest,
        unpack_config(message.config), tuple(map(_unpack_info, message.upload)), message.difference,
        message.partial,
    )  # fmt: skip


def pack_pulled(answer: Assigned | Committed | Wait | Finished, *, stream: bool) -> pb.GetGlobalModelResponse:
    """The answer to a pull to protobuf, without the body."""
    if isinstance(answer, Wait):
        return pb.GetGlobalModelResponse(wait=pb.Wait(round=answer.round))
    if isinstance(answer, Finished):
        return pb.GetGlobalModelResponse(finished=pb.Finished(message=answer.message))
    if isinstance(answer, Committed):
        return pb.GetGlobalModelResponse(
            committed=pb.Committed(round=answer.round), manifest=_pack_manifest(answer.manifest), stream=True
        )
    return pb.GetGlobalModelResponse(
        task=pack_task(answer.task), manifest=_pack_manifest(answer.manifest), stream=stream
    )


def unpack_pulled(message: pb.GetGlobalModelResponse) -> Assigned | Committed | Wait | Finished:
    """Protobuf to the answer to a pull."""
    kind = message.WhichOneof("answer")
    if kind == "task":
        return Assigned(unpack_task(message.task), _unpack_manifest(message.manifest))
    if kind == "wait":
        return Wait(message.wait.round)
    if kind == "finished":
        return Finished(message.finished.message)
    if kind == "committed":
        return Committed(message.committed.round, _unpack_manifest(message.manifest))
    raise ProtocolError("the answer to a pull is neither a task, nor a model, nor wait, nor finished", reason="UNKNOWN_ENUM")


def pack_pull(pull: Pull, *, stream: bool) -> pb.GetGlobalModelRequest:
    """Pull to protobuf; ``stream``: a large body is wanted as one."""
    return pb.GetGlobalModelRequest(
        session=pack_session(pull.session), wait_seconds=pull.wait, holds=pull.holds, stream=stream
    )


def unpack_pull(message: pb.GetGlobalModelRequest) -> Pull:
    """Protobuf to Pull."""
    wait, holds = seconds(message.wait_seconds, "wait_seconds"), text(message.holds, "holds")
    return Pull(unpack_session(message.session), wait, holds)


# --- upload ---


def pack_fetch(fetch: Fetch | ModelQuery) -> pb.GetGlobalModelRequest:
    """Return ``fetch`` as protobuf."""
    if isinstance(fetch, ModelQuery):
        last = pb.LastModel(digest=fetch.digest)
        return pb.GetGlobalModelRequest(last=last, offset=fetch.offset, total_bytes=fetch.total_bytes)
    return pb.GetGlobalModelRequest(
        session=pack_session(fetch.session), task_id=fetch.task_id, offset=fetch.offset, total_bytes=fetch.total_bytes
    )


def unpack_fetch(message: pb.GetGlobalModelRequest) -> Fetch | ModelQuery:
    """Return what ``message`` says."""
    if message.HasField("last"):
        return ModelQuery(message.last.digest, message.total_bytes, message.offset)
    return Fetch(unpack_session(message.session), message.task_id, message.total_bytes, message.offset)


def pack_submit(submit: Submit) -> pb.UpdateHeader:
    """Submit to protobuf."""
    return pb.UpdateHeader(
        session=pack_session(submit.session), task_id=submit.task_id, trained_on_round=submit.round,
        attempt_id=submit.attempt_id, base_digest=submit.base_digest, num_examples=submit.num_examples,
        metrics=pack_config(submit.metrics), manifest=_pack_manifest(submit.manifest),
    )  # fmt: skip


def unpack_submit(message: pb.UpdateHeader) -> Submit:
    """Protobuf to Submit."""
    return Submit(
        unpack_session(message.session), message.task_id, message.trained_on_round, text(message.attempt_id, "attempt_id"),
        message.base_digest, message.num_examples, _unpack_manifest(message.manifest), unpack_config(message.metrics),
    )  # fmt: skip


def pack_submitted(submitted: Submitted) -> pb.SubmitModelUpdateResponse:
    """An update that is part of the round to protobuf; the other outcomes are statuses."""
    return pb.SubmitModelUpdateResponse(
        received=True, outcome=submitted.outcome.name,
        message=submitted.message, current_round=submitted.round,
        directive=submitted.directive.name,
    )  # fmt: skip


def unpack_submitted(message: pb.SubmitModelUpdateResponse) -> Submitted:
    """Protobuf to Submitted."""
    outcome: Outcome = _enum(pb.SubmitModelUpdateResponse.Outcome, message.outcome, Outcome)
    directive = _enum(pb.Directive, message.directive, Directive)
    return Submitted(outcome, outcome.name, message.message, message.current_round, directive)


# --- the audit log ---


def pack_audit_query(query: AuditQuery) -> pb.GetAuditLogRequest:
    """AuditQuery to protobuf."""
    return pb.GetAuditLogRequest(after=query.after)


def unpack_audit_query(message: pb.GetAuditLogRequest) -> AuditQuery:
    """Protobuf to AuditQuery."""
    return AuditQuery(message.after)


def pack_audit_page(page: AuditPage) -> pb.GetAuditLogResponse:
    """AuditPage to protobuf."""
    return pb.GetAuditLogResponse(lines=page.lines, total=page.total)


def unpack_audit_page(message: pb.GetAuditLogResponse) -> AuditPage:
    """Protobuf to AuditPage."""
    return AuditPage(message.lines, message.total)


# --- what admins do ---


def pack_command(command: Command) -> pb.ControlRequest:
    """Command to protobuf."""
    return pb.ControlRequest(
        act=command.act.name, client_id=command.client_id, reason=command.reason, for_good=command.for_good
    )


def unpack_command(message: pb.ControlRequest) -> Command:
    """Protobuf to Command."""
    act = _enum(pb.ControlRequest.Act, message.act, Act)
    return Command(act, message.client_id, message.reason, message.for_good)


# --- heartbeat and status ---


def pack_beat(beat: Beat) -> pb.HeartbeatRequest:
    """Beat to protobuf."""
    return pb.HeartbeatRequest(
        session=pack_session(beat.session), status=beat.status.name, current_step=beat.step,
        total_steps=beat.total, current_round=beat.round, task_id=beat.task_id, message=beat.message,
    )  # fmt: skip


def unpack_beat(message: pb.HeartbeatRequest) -> Beat:
    """Protobuf to Beat."""
    return Beat(
        unpack_session(message.session), _enum(pb.ClientState, message.status, Status), message.current_step,
        message.total_steps, message.current_round, message.task_id, text(message.message, "message"),
    )  # fmt: skip


def pack_beat_reply(reply: BeatReply) -> pb.HeartbeatResponse:
    """BeatReply to protobuf."""
    return pb.HeartbeatResponse(
        acknowledged=reply.acknowledged, should_stop=reply.should_stop, message=reply.message,
        directive=reply.directive.name, heartbeat_interval=reply.heartbeat_interval, retry_spread=reply.spread,
    )  # fmt: skip


def unpack_beat_reply(message: pb.HeartbeatResponse) -> BeatReply:
    """Protobuf to BeatReply."""
    directive = _enum(pb.Directive, message.directive, Directive)
    interval = seconds(message.heartbeat_interval, "heartbeat_interval")
    spread = seconds(message.retry_spread, "retry_spread")
    return BeatReply(message.acknowledged, directive, message.message, interval, spread)


def pack_status(status: ServerStatus) -> pb.GetServerStatusResponse:
    """ServerStatus to protobuf."""
    return pb.GetServerStatusResponse(
        run_id=status.run_id, phase=status.phase, round=status.round, committed=status.committed,
        num_rounds=status.num_rounds, accepted=status.accepted, target=status.target, codec=status.codec,
        elapsed_seconds=status.elapsed, clients=map(_pack_client, status.clients), metrics=status.metrics,
        encodings=status.encodings, refused=status.refused, **asdict(status.traffic),
    )  # fmt: skip


def _pack_client(client: ClientStatus) -> pb.ClientStatus:
    return pb.ClientStatus(
        client_id=client.client_id, status=client.status.name, current_round=client.round,
        current_step=client.step, total_steps=client.total, silent_seconds=client.silent,
        **asdict(client.traffic),
    )  # fmt: skip


def unpack_status(message: pb.GetServerStatusResponse) -> ServerStatus:
    """Protobuf to ServerStatus."""
    return ServerStatus(
        message.run_id, message.phase, message.round, message.committed, message.num_rounds, message.accepted,
        message.target, message.codec, message.elapsed_seconds, tuple(map(_unpack_client, message.clients)),
        dict(message.metrics), _unpack_traffic(message), message.encodings, dict(message.refused),
    )  # fmt: skip


def _unpack_client(message: pb.ClientStatus) -> ClientStatus:
    return ClientStatus(
        message.client_id, _enum(pb.ClientState, message.status, Status), message.current_round, message.current_step,
        message.total_steps, message.silent_seconds, _unpack_traffic(message),
    )  # fmt: skip


def _unpack_traffic(message: pb.ClientStatus | pb.GetServerStatusResponse) -> Traffic:
    return Traffic(
        message.bytes_sent, message.bytes_received, message.tensor_bytes_sent, message.tensor_bytes_received
    )
