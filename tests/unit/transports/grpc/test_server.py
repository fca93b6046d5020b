"""The server on a real socket, met by clients that do not keep to the contract."""

import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from fedcore import Grpc, Limits
from fedcore.errors import AddressError, SchemaMismatch
from fedcore.messages import (
    Beat,
    BeatReply,
    Manifest,
    Outcome,
    Pull,
    Rest,
    Session,
    Status,
    Submit,
    Submitted,
    Wait,
)
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transport import Reply
from fedcore.transports.grpc import TransferPolicy, wire
from fedcore.transports.grpc.framing import SMALLEST_CHUNK, chunks, with_body

SERVICE = "/fedcore.v1.FederatedLearningService/"
SESSION = Session("run", "a", "t")
Code = grpc.StatusCode
CALLS = ["RegisterClient", "GetGlobalModel", "GetServerStatus", "Heartbeat", "SubmitModelUpdate"]


def header(total, **changes):
    return wire.pack_submit(Submit(SESSION, "t", 1, "a", "b", 5, Manifest("c", 4096, (total,), "d"), **changes))


class Desk:
    """A handler: bodies are read on a thread each, everything else is answered at once."""

    def __init__(self, answer=None):
        self.pool, self.bodies, self.answer = ThreadPoolExecutor(16), [], answer
        self.reading = threading.Semaphore(0)

    def __call__(self, request):
        if self.answer is None and isinstance(request.message, Submit):
            return self.pool.submit(self.read, request)
        future = Future()
        try:
            made = (self.answer or self.beat)(request)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(made if isinstance(made, Reply) else Reply(made))
        return future

    def beat(self, request):
        return BeatReply(True) if isinstance(request.message, Beat) else Wait(7)

    def read(self, request):
        self.reading.release()
        self.bodies.append(b"".join(bytes(part) for part in request.body))
        return Reply(Submitted(Outcome.ACCEPTED, "ACCEPTED"))


@contextmanager
def served(answer=None, limits=Limits(), **options):
    """Yield a raw channel to a server, and its handler."""
    desk = Desk(answer)
    own = [("grpc.use_local_subchannel_pool", 1)]
    with (
        Grpc(**options).listen("127.0.0.1:0", desk, limits) as listener,
        grpc.insecure_channel(listener.address, own) as channel,
    ):
        yield channel, desk
    desk.pool.shutdown(wait=True)


def refused(call, *args, timeout=10):
    """Return code, reason and text of a call that must fail."""

    def made():
        answer = call(*args, timeout=timeout)
        return list(answer) if hasattr(answer, "__next__") else answer

    with pytest.raises(grpc.RpcError) as caught:
        made()
    error = caught.value
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        detail.Unpack(info)
    return error.code(), info.reason, error.details()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xff\x07"], ids=["noise", "short", "no utf-8"])
def test_r13_w13_undecodable_bytes(name, data):
    with served() as (channel, _):
        code, reason, _ = refused(channel.unary_unary(SERVICE + name), data)
        assert (code, reason) == (Code.INVALID_ARGUMENT, "UNDECODABLE")


def test_r13_undecodable_bytes_on_the_streams():
    with served() as (channel, _):
        upload = channel.stream_unary(SERVICE + "SubmitModelUpdateStream")
        assert refused(upload, iter([b"\xff\xff"]))[:2] == (Code.INVALID_ARGUMENT, "UNDECODABLE")
        download = channel.unary_stream(SERVICE + "GetGlobalModelStream")
        assert refused(download, b"\xff\xff")[:2] == (Code.INVALID_ARGUMENT, "UNDECODABLE")


def test_x8_unknown_fields_are_passed_over_unless_they_are_a_million():
    beat, unknown = wire.pack_beat(Beat(SESSION, Status.IDLE)).SerializeToString(), b"\xa0\x06\x01"
    with served() as (channel, _):
        call = channel.unary_unary(SERVICE + "Heartbeat")
        assert pb.HeartbeatResponse.FromString(call(beat + unknown * 20_000, timeout=10)).acknowledged
        assert refused(call, beat + unknown * 300_000)[:2] == (Code.RESOURCE_EXHAUSTED, "TOO_LARGE")


def test_x5_an_unknown_method():
    with served() as (channel, _):
        assert refused(channel.unary_unary(SERVICE + "Format"), b"")[0] is Code.UNIMPLEMENTED
        assert refused(channel.unary_unary("/other.Service/Heartbeat"), b"")[0] is Code.UNIMPLEMENTED


def test_b2_an_unknown_enum_value():
    with served() as (channel, _):
        beat = pb.HeartbeatRequest(session=wire.pack_session(SESSION), status=99)
        code, reason, _ = refused(channel.unary_unary(SERVICE + "Heartbeat"), beat.SerializeToString())
        assert (code, reason) == (Code.INVALID_ARGUMENT, "UNKNOWN_ENUM")


def test_w19_the_health_service_says_serving():
    with served() as (channel, _):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for name in ("", "fedcore.v1.FederatedLearningService"):
            answer = check(health_pb2.HealthCheckRequest(service=name).SerializeToString(), timeout=10)
            assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING
        assert refused(check, health_pb2.HealthCheckRequest(service="other").SerializeToString())[0] is Code.NOT_FOUND


SECRET = "/home/ada/secret.key"


def breaks(request):
    raise RuntimeError(f"cannot open {SECRET}")


@pytest.mark.parametrize("name", ["RegisterClient", "GetGlobalModel", "GetServerStatus", "Heartbeat", "SubmitModelUpdate"])
def test_w13_an_unexpected_error_is_answered_with_its_number_and_nothing_else(name, caplog):
    data = {
        "Heartbeat": wire.pack_beat(Beat(SESSION, Status.IDLE)).SerializeToString(),
        "SubmitModelUpdate": with_body(pb.SubmitModelUpdateRequest(header=header(0)), [], 0),
    }.get(name, b"")
    with served(breaks) as (channel, _):
        code, reason, text = refused(channel.unary_unary(SERVICE + name), data)
    assert (code, reason) == (Code.INTERNAL, "INTERNAL")
    assert SECRET not in text
    assert "RuntimeError" not in text
    number = re.search(r"internal error ([0-9a-f]{8})", text)[1]
    (record,) = [record for record in caplog.records if number in record.getMessage()]
    assert SECRET in str(record.exc_info[1])


def test_w13_nor_does_a_download_tell_secrets(caplog):
    with served(breaks) as (channel, _):
        code, reason, text = refused(channel.unary_stream(SERVICE + "GetGlobalModelStream"), b"")
    assert SECRET not in text
    assert (code, reason) == (Code.INTERNAL, "INTERNAL")


def test_w13_nor_does_a_body_that_breaks_off():
    def body():
        yield b"abc"
        raise RuntimeError(f"cannot read {SECRET}")

    def answer(request):
        return Reply(Rest(10), body())

    with served(answer) as (channel, _):
        code, _, text = refused(channel.unary_stream(SERVICE + "GetGlobalModelStream"), b"")
    assert SECRET not in text
    assert code is Code.INTERNAL


def test_w14_the_text_of_an_error_is_escaped():
    def refuse(request):
        raise SchemaMismatch("tensor 'a\nb\x1b[2J'")

    with served(refuse) as (channel, _):
        code, reason, text = refused(channel.unary_unary(SERVICE + "GetGlobalModel"), b"")
    assert (code, reason, text) == (Code.INVALID_ARGUMENT, "SCHEMA_MISMATCH", r"tensor 'a\nb\x1b[2J'")


LONG = bytes(range(256)) * 600  # three chunks


def cut(body):
    return list(chunks(pb.ModelUpdateChunk, [body], len(body), SMALLEST_CHUNK))


def upload(total, *more, first=None):
    yield pb.ModelUpdateChunk(header=header(total) if first is None else first).SerializeToString()
    yield from more


def test_an_upload_arrives():
    with served() as (channel, desk):
        answer = channel.stream_unary(SERVICE + "SubmitModelUpdateStream")(upload(len(LONG), *cut(LONG)), timeout=10)
        assert pb.SubmitModelUpdateResponse.FromString(answer).received
        assert desk.bodies == [LONG]


FAULTS = {
    "K1 nothing": ([], "EMPTY_STREAM"),
    "K2 a chunk before the header": (list(chunks(pb.ModelUpdateChunk, [b"ab"], 2, 2)), "PROTOCOL_ORDER"),
    "K2 two headers": (list(upload(2, *upload(2))), "PROTOCOL_ORDER"),
    "K3 the header alone": (list(upload(2)), "INCOMPLETE"),
    "K3 W5 an early end": (list(upload(len(LONG), *cut(LONG)[:1])), "INCOMPLETE"),
    "K4 a chunk is missing": (list(upload(len(LONG), *cut(LONG)[::2])), "BAD_SEQUENCE"),
    "K9 tiny chunks": (list(upload(5000, *chunks(pb.ModelUpdateChunk, [bytes(5000)], 5000, 1))), "BAD_CHUNK_SIZE"),
    "K7 more than announced": (list(upload(2, *chunks(pb.ModelUpdateChunk, [b"abcd"], 4, 4))), "LENGTH_MISMATCH"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_w5_a_broken_upload_is_refused(fault):
    messages, reason = FAULTS[fault]
    with served() as (channel, desk):
        code, given, _ = refused(channel.stream_unary(SERVICE + "SubmitModelUpdateStream"), iter(messages))
        assert (code, given) == (Code.INVALID_ARGUMENT, reason)
        assert desk.bodies == []


def test_k8_a_body_of_another_length_than_announced():
    with served() as (channel, desk):
        data = with_body(pb.SubmitModelUpdateRequest(header=header(5)), [b"abcd"], 4)
        assert refused(channel.unary_unary(SERVICE + "SubmitModelUpdate"), data)[:2] == (
            Code.INVALID_ARGUMENT, "LENGTH_MISMATCH",
        )  # fmt: skip
        assert desk.bodies == []


def test_u25_a_message_above_the_limit():
    policy = TransferPolicy(threshold_bytes=1000)
    with served(transfer=policy) as (channel, desk):
        code, _, _ = refused(channel.unary_unary(SERVICE + "SubmitModelUpdate"), bytes(policy.message_limit + 1000))
        assert code is Code.RESOURCE_EXHAUSTED
        assert desk.bodies == []


class Stalled:
    """The messages of an upload that never ends, until it is released."""

    def __init__(self, total=None, begins=True):
        self.total, self.begins, self.release = total or len(LONG), begins, threading.Event()

    def __iter__(self):
        if self.begins:
            yield from upload(self.total, cut(LONG)[0])
        self.release.wait(20)


def test_l10_ten_stalled_uploads_do_not_delay_a_heartbeat():
    stalled = [Stalled() for _ in range(10)]
    with served(limits=Limits(stall_timeout=60.0)) as (channel, desk):
        call = channel.stream_unary(SERVICE + "SubmitModelUpdateStream")
        futures = [call.future(iter(one)) for one in stalled]
        for _ in stalled:
            assert desk.reading.acquire(timeout=10)
        beat = wire.pack_beat(Beat(SESSION, Status.IDLE)).SerializeToString()
        for _ in range(20):
            answer = channel.unary_unary(SERVICE + "Heartbeat")(beat, timeout=2)
            assert pb.HeartbeatResponse.FromString(answer).acknowledged
        assert not any(future.done() for future in futures)
        for one, future in zip(stalled, futures, strict=True):
            one.release.set()
            future.cancel()
    assert desk.bodies == []


@pytest.mark.parametrize("begins", [True, False], ids=["after a chunk", "before the header"])
def test_k12_a_stalled_upload_is_ended(begins):
    one = Stalled(begins=begins)
    with served(limits=Limits(stall_timeout=0.2)) as (channel, desk):
        code, reason, _ = refused(channel.stream_unary(SERVICE + "SubmitModelUpdateStream"), iter(one))
        one.release.set()
        assert (code, reason) == (Code.DEADLINE_EXCEEDED, "STALLED_STREAM")
    assert desk.bodies == []


def test_k15_an_upload_that_breaks_off_frees_its_reader():
    one = Stalled()
    with served(limits=Limits(stall_timeout=60.0)) as (channel, desk):
        future = channel.stream_unary(SERVICE + "SubmitModelUpdateStream").future(iter(one))
        assert desk.reading.acquire(timeout=10)
        future.cancel()
        one.release.set()
        desk.pool.shutdown(wait=True)  # returns only if the reader has ended
    assert desk.bodies == []


def test_l12_a_second_server_on_the_same_port_is_refused():
    with Grpc().listen("127.0.0.1:0", Desk()) as listener, pytest.raises(AddressError, match="taken"):
        Grpc().listen(listener.address, Desk())


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(AddressError, match=r"192\.0\.2\.1:5"):
        Grpc(insecure=True).listen("192.0.2.1:5", Desk())


class TestUnixSocket:
    def test_it_serves_and_leaves_nothing_behind(self, tmp_path):
        address = f"unix:{tmp_path}/fl.sock"
        with Grpc().listen(address, Desk()) as listener:
            assert listener.address == address
            with Grpc().connect(address) as connection:
                assert connection.request(Pull(SESSION), timeout=10).message == Wait(7)
        assert list(tmp_path.iterdir()) == []

    def test_l12_it_is_not_taken_over(self, tmp_path):
        address = f"unix:{tmp_path}/fl.sock"
        with Grpc().listen(address, Desk()), pytest.raises(AddressError, match="taken"):
            Grpc().listen(address, Desk())

    def test_a_socket_left_by_a_dead_server_is_no_hindrance(self, tmp_path):
        import socket

        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{tmp_path}/fl.sock")
        with Grpc().listen(f"unix:{tmp_path}/fl.sock", Desk()) as listener, Grpc().connect(listener.address) as connection:
            assert connection.request(Pull(SESSION), timeout=10).message == Wait(7)

    def test_a_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(AddressError, match="cannot listen"):
            Grpc().listen(f"unix:{tmp_path}/nowhere/fl.sock", Desk())
