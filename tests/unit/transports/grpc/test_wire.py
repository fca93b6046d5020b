"""Messages to protobuf and back: unknown values are errors, and nothing narrows on the way."""

import dataclasses

import pytest

from fedcore.errors import DecodeError, ProtocolError
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
from fedcore.transports.grpc import wire

BIG = (1 << 40) + 5
SESSION = Session("run", "client", "token")
MATRIX = ("bfloat16", (3, BIG))
TENSORS = (TensorInfo("w", *MATRIX), TensorInfo("s", "float8_e4m3fn", ()), TensorInfo("t", *MATRIX, "w"))
MANIFEST = Manifest("safetensors+lz4", 1 << 30, (0, BIG), "d" * 64, TENSORS, "b" * 64)
CLIENT = ClientStatus("c", Status.TRAINING, BIG, BIG + 1, BIG + 2, 0.25, Traffic(BIG, BIG + 1, BIG + 2, BIG + 3))
STATUS = ServerStatus(
    "r", "waiting", 1, 2, 3, 4, 5, "c", 0.5, (CLIENT,), {"loss": 0.1}, Traffic(BIG, 1, 2, 3), 6, {"RATE": BIG}
)

EVERY = [
    (Register("c", "torch", ("b", "a"), True, 7, "p1"), wire.pack_register, wire.unpack_register),
    (Registered(SESSION, "msgpack", 0.5, 30.25, "delta+zstd", True, 1.5), wire.pack_registered, wire.unpack_registered),
    (Submit(SESSION, "t", BIG, "a", "b", -BIG, MANIFEST, {"x": 1}), wire.pack_submit, wire.unpack_submit),
    (Submitted(Outcome.DUPLICATE, "DUPLICATE", "m", BIG, Directive.STOP), wire.pack_submitted, wire.unpack_submitted),
    (Beat(SESSION, Status.ERROR, BIG, BIG + 1, BIG + 2, "t", "why"), wire.pack_beat, wire.unpack_beat),
    (BeatReply(True, Directive.ABORT_TASK, "m", 2.5, 1.5), wire.pack_beat_reply, wire.unpack_beat_reply),
    (STATUS, wire.pack_status, wire.unpack_status),
    (Fetch(SESSION, "t", BIG, BIG - 1), wire.pack_fetch, wire.unpack_fetch),
    (ModelQuery("d" * 64, BIG, BIG - 1), wire.pack_fetch, wire.unpack_fetch),
    (AuditQuery(BIG), wire.pack_audit_query, wire.unpack_audit_query),
    (AuditPage(b"a\n\xff\n", BIG), wire.pack_audit_page, wire.unpack_audit_page),
    (Command(Act.EVICT, "c", "because", False), wire.pack_command, wire.unpack_command),
    (Task("t", Kind.EVALUATE, BIG, "b", {"a": True}, TENSORS, True, True), wire.pack_task, wire.unpack_task),
    (SESSION, wire.pack_session, wire.unpack_session),
]  # fmt: skip


@pytest.mark.parametrize(("message", "pack", "unpack"), EVERY, ids=lambda v: type(v).__name__)
def test_w11_every_field_comes_back(message, pack, unpack):
    again = unpack(type(pack(message)).FromString(pack(message).SerializeToString()))
    for field in dataclasses.fields(message):
        assert getattr(again, field.name) == getattr(message, field.name), field.name
    defaults = [f.name for f in dataclasses.fields(message) if getattr(message, f.name) == f.default]
    assert defaults == [], "a field that is left at its default is not tested"


@pytest.mark.parametrize(
    "answer", [Wait(BIG), Finished("done"), Assigned(Task("t", Kind.FIT, 3), MANIFEST), Committed(BIG, MANIFEST)]
)
def test_the_answers_to_a_pull(answer):
    assert wire.unpack_pulled(wire.pack_pulled(answer, stream=False)) == answer


def test_whether_a_body_is_streamed_is_said():
    answer = Assigned(Task("t", Kind.FIT, 3), MANIFEST)
    assert wire.pack_pulled(answer, stream=True).stream
    assert not wire.pack_pulled(answer, stream=False).stream


def test_the_body_of_the_last_model_always_comes_as_a_stream():
    assert wire.pack_pulled(Committed(1, MANIFEST), stream=False).stream


@pytest.mark.parametrize("act", Act)
@pytest.mark.parametrize("for_good", [False, True])
def test_every_act_travels(act, for_good):
    assert wire.unpack_command(wire.pack_command(Command(act, "c", "", for_good))) == Command(act, "c", "", for_good)


@pytest.mark.parametrize("status", Status)
def test_every_client_state_travels(status):
    assert wire.unpack_beat(wire.pack_beat(Beat(SESSION, status))).status is status


@pytest.mark.parametrize("directive", Directive)
def test_every_directive_travels(directive):
    assert wire.unpack_beat_reply(wire.pack_beat_reply(BeatReply(False, directive))).directive is directive
    assert wire.pack_beat_reply(BeatReply(True, directive)).should_stop is (directive is Directive.STOP)


UNKNOWN = {
    "unset task kind": (wire.unpack_task, pb.Task(id="t")),
    "new task kind": (wire.unpack_task, pb.Task(id="t", kind=99)),
    "unset client state": (wire.unpack_beat, pb.HeartbeatRequest()),
    "new client state": (wire.unpack_beat, pb.HeartbeatRequest(status=99)),
    "unset directive": (wire.unpack_beat_reply, pb.HeartbeatResponse()),
    "new directive": (wire.unpack_beat_reply, pb.HeartbeatResponse(directive=99)),
    "unset act": (wire.unpack_command, pb.ControlRequest()),
    "new act": (wire.unpack_command, pb.ControlRequest(act=99)),
    "unset outcome": (wire.unpack_submitted, pb.SubmitModelUpdateResponse(directive=1)),
    "new outcome": (wire.unpack_submitted, pb.SubmitModelUpdateResponse(outcome=99, directive=1)),
    "new state of a client": (wire.unpack_status, pb.GetServerStatusResponse(clients=[pb.ClientStatus(status=99)])),
    "no answer to a pull": (wire.unpack_pulled, pb.GetGlobalModelResponse()),
}


@pytest.mark.parametrize("fault", UNKNOWN)
def test_r15_b2_w16_an_unknown_enum_value_is_refused(fault):
    unpack, message = UNKNOWN[fault]
    with pytest.raises(ProtocolError) as caught:
        unpack(message)
    assert caught.value.reason == "UNKNOWN_ENUM"


@pytest.mark.parametrize(
    "scalar", [pb.Scalar(), pb.Scalar(list=pb.ScalarList(items=[pb.Scalar(list=pb.ScalarList())])),
               pb.Scalar(list=pb.ScalarList(items=[pb.Scalar(integer=1), pb.Scalar()]))]
)  # fmt: skip
def test_p7_a_value_of_no_known_type_is_refused_by_its_key(scalar):
    with pytest.raises(DecodeError, match="'culprit'") as caught:
        wire.unpack_config({"culprit": scalar})
    assert caught.value.reason == "BAD_TYPE"


NO_SECONDS = [float("nan"), float("inf"), float("-inf"), -1.0, 1e300]


@pytest.mark.parametrize("value", NO_SECONDS)
def test_c2_a_server_cannot_set_a_clock_that_nobody_can_wait_for(value):
    welcome = pb.RegisterClientResponse(heartbeat_interval=5.0, heartbeat_timeout=30.0)
    for message, unpack, field in (
        (welcome, wire.unpack_registered, "heartbeat_interval"),
        (welcome, wire.unpack_registered, "retry_spread"),
        (pb.HeartbeatResponse(directive=1), wire.unpack_beat_reply, "heartbeat_interval"),
        (pb.HeartbeatResponse(directive=1), wire.unpack_beat_reply, "retry_spread"),
        (pb.GetGlobalModelRequest(), wire.unpack_pull, "wait_seconds"),
    ):
        changed = type(message).FromString(message.SerializeToString())
        setattr(changed, field, value)
        unpack(message)
        with pytest.raises(DecodeError, match=field) as caught:
            unpack(changed)
        assert caught.value.reason == "BAD_TYPE"


def test_c2_a_heart_that_never_rests_is_refused():
    with pytest.raises(DecodeError, match="heartbeat_interval"):
        wire.unpack_registered(pb.RegisterClientResponse(heartbeat_timeout=30.0))
