"""Errors to statuses and back: the class, the reason and the text survive, and nothing else goes along."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import fedcore.errors
from fedcore.errors import (
    ConnectionLost,
    DeadlineExceeded,
    FedcoreError,
    OutOfStorage,
    ProtocolError,
    RemoteError,
    SchemaMismatch,
    TooLarge,
    TooMany,
    TooOften,
)
from fedcore.messages import Directive, Outcome, Submitted
from fedcore.transports.grpc import status

Code = grpc.StatusCode


def tree(root=FedcoreError):
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


CLASSES = [kind for kind in tree() if kind.__module__ == fedcore.errors.__name__]


class Failed(grpc.RpcError):
    """A failed call, as a client sees it."""

    def __init__(self, code, details="", trailers=()):
        self._answers = code, details, trailers

    def code(self):
        return self._answers[0]

    def details(self):
        return self._answers[1]

    def trailing_metadata(self):
        return self._answers[2]


def across(refusal):
    """Carry a status over the wire."""
    return Failed(*status.code_and_trailer(status_pb2.Status.FromString(refusal.SerializeToString())))


def info_of(refusal):
    info = error_details_pb2.ErrorInfo()
    assert refusal.details[0].Unpack(info)
    return info


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_comes_back_as_itself(kind):
    again = status.error_of(across(status.of_error(kind("tensor 'w' is odd"))), "server:1")
    assert type(again) is kind
    assert (str(again), again.reason, again.retryable) == ("tensor 'w' is odd", kind.reason, kind.retryable)


@pytest.mark.parametrize("seconds", [None, 0.0, 0.25, 1.0, 3600.5])
def test_l21_when_there_is_sense_in_trying_again_is_said_in_retry_info(seconds):
    refusal, retry = status.of_error(TooOften("later", retry_after=seconds)), error_details_pb2.RetryInfo()
    assert info_of(refusal).reason == "RATE"
    assert [detail.Unpack(retry) for detail in refusal.details[1:]] == ([] if seconds is None else [True])
    assert retry.retry_delay.ToMicroseconds() == (seconds or 0) * 1e6
    assert status.error_of(across(refusal), "server:1").retry_after == seconds


def test_l21_nobody_is_told_to_come_too_early():
    assert status.error_of(across(status.of_error(TooOften("later", retry_after=1e-9))), "server:1").retry_after == 1e-6


@pytest.mark.parametrize("kind", [TooMany, OutOfStorage])
def test_l21_a_lack_of_room_says_when_to_look_again(kind):
    refusal = status.of_error(kind("full"))
    assert refusal.code == Code.RESOURCE_EXHAUSTED.value[0]
    assert status.error_of(across(refusal), "server:1").retry_after == 1.0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("NotRegistered", Code.FAILED_PRECONDITION), ("Fenced", Code.FAILED_PRECONDITION),
        ("RunChanged", Code.FAILED_PRECONDITION), ("CodecRefused", Code.FAILED_PRECONDITION),
        ("ChecksumError", Code.DATA_LOSS), ("TooLarge", Code.RESOURCE_EXHAUSTED), ("SchemaMismatch", Code.INVALID_ARGUMENT),
        ("NonFinite", Code.INVALID_ARGUMENT), ("InvalidWeight", Code.INVALID_ARGUMENT), ("DecodeError", Code.INVALID_ARGUMENT),
        ("ConfigError", Code.INVALID_ARGUMENT), ("ConnectionLost", Code.UNAVAILABLE),
        ("DeadlineExceeded", Code.DEADLINE_EXCEEDED), ("RemoteError", Code.INTERNAL), ("AggregationError", Code.INTERNAL),
    ],
)  # fmt: skip
def test_the_code_of_an_error(error, code):
    assert across(status.of_error(getattr(fedcore.errors, error)("x"))).code() is code


@pytest.mark.parametrize(
    ("kind", "reason", "code"),
    [
        (ProtocolError, "UNDECODABLE", Code.INVALID_ARGUMENT), (ProtocolError, "STALLED_STREAM", Code.DEADLINE_EXCEEDED),
        (ProtocolError, "PROTOCOL_VERSION", Code.FAILED_PRECONDITION), (SchemaMismatch, "BAD_DTYPE", Code.INVALID_ARGUMENT),
        (ProtocolError, "TOO_LARGE", Code.RESOURCE_EXHAUSTED), (ProtocolError, "NOT_SELECTED", Code.PERMISSION_DENIED),
    ],
)  # fmt: skip
def test_a_finer_reason_has_its_code_and_travels(kind, reason, code):
    refusal = status.of_error(kind("x", reason=reason))
    assert across(refusal).code() is code
    assert (info_of(refusal).reason, info_of(refusal).domain) == (reason, "fedcore")
    assert status.error_of(across(refusal), "server:1").reason == reason


@pytest.mark.parametrize(
    "error", [DeadlineExceeded("x", reason="STALLED_STREAM"), SchemaMismatch("x", reason="BAD_DTYPE")], ids=repr
)
def test_a_finer_reason_keeps_its_class_and_whether_it_may_be_retried(error):
    again = status.error_of(across(status.of_error(error)), "server:1")
    assert isinstance(again, type(error))
    assert again.retryable == error.retryable


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "a\0b", "a\u2028b", "\u202egpj", "tab\t", "\x7f"])
def test_w14_control_characters_are_escaped(text):
    refusal = status.of_error(SchemaMismatch(f"tensor {text}"))
    assert refusal.message.isprintable()
    assert refusal.message.startswith("tensor ")
    assert str(status.error_of(across(refusal), "x")).isprintable()


def test_plain_text_in_any_script_is_left_alone():
    assert status.of_error(SchemaMismatch("größe 模型")).message == "größe 模型"


def test_a_message_is_short():
    assert len(status.of_error(SchemaMismatch("x" * 10**6)).message) == 1024


class TestOutcomes:
    @pytest.mark.parametrize(
        ("outcome", "reason", "code"),
        [
            (Outcome.STALE, "STALE_ROUND", Code.FAILED_PRECONDITION),
            (Outcome.FUTURE, "FUTURE_ROUND", Code.FAILED_PRECONDITION),
            (Outcome.CLOSED, "ROUND_CLOSED", Code.FAILED_PRECONDITION),
            (Outcome.NOT_SELECTED, "NOT_SELECTED", Code.PERMISSION_DENIED),
            (Outcome.REJECTED, "NON_FINITE", Code.INVALID_ARGUMENT), (Outcome.REJECTED, "CHECKSUM", Code.DATA_LOSS),
            (Outcome.REJECTED, "BASE_MISMATCH", Code.FAILED_PRECONDITION),
            (Outcome.REJECTED, "ROUND_ALREADY_ANSWERED", Code.ALREADY_EXISTS),
            (Outcome.REJECTED, "TOO_LARGE", Code.RESOURCE_EXHAUSTED),
        ],
    )  # fmt: skip
    def test_l16_an_outcome_comes_back_whole(self, outcome, reason, code):
        for directive in Directive:
            refused = Submitted(outcome, reason, "because", (1 << 40) + 5, directive)
            call = across(status.of_outcome(refused))
            assert call.code() is code
            assert status.outcome_of(call) == refused

    def test_an_error_is_no_outcome(self):
        assert status.outcome_of(across(status.of_error(SchemaMismatch("x")))) is None
        assert status.outcome_of(Failed(Code.UNAVAILABLE)) is None

    @pytest.mark.parametrize(("key", "value"), [("outcome", "maybe"), ("directive", "dance"), ("round", "five")])
    def test_an_outcome_from_the_future_is_a_protocol_error(self, key, value):
        refusal = status.of_outcome(Submitted(Outcome.STALE, "STALE_ROUND"))
        info = info_of(refusal)
        info.metadata[key] = value
        refusal.details[0].Pack(info)
        with pytest.raises(ProtocolError) as caught:
            status.outcome_of(across(refusal))
        assert caught.value.reason == "UNKNOWN_ENUM"


class TestForeignErrors:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (Code.UNAVAILABLE, ConnectionLost), (Code.CANCELLED, ConnectionLost), (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
            (Code.RESOURCE_EXHAUSTED, TooLarge), (Code.UNIMPLEMENTED, ProtocolError), (Code.INTERNAL, RemoteError),
            (Code.UNKNOWN, RemoteError), (Code.DATA_LOSS, RemoteError),
        ],
    )  # fmt: skip
    def test_a_status_without_details_is_judged_by_its_code(self, code, kind):
        again = status.error_of(Failed(code, "text"), "server:1")
        assert type(again) is kind
        assert "server:1" in str(again)

    def test_w13_internal_is_not_retried(self):
        assert not status.error_of(Failed(Code.INTERNAL), "x").retryable

    def test_details_of_another_domain_are_not_believed(self):
        refusal = status.of_error(SchemaMismatch("x"))
        info = info_of(refusal)
        info.domain = "googleapis.com"
        refusal.details[0].Pack(info)
        assert type(status.error_of(across(refusal), "x")) is RemoteError

    @pytest.mark.parametrize("packed", [b"\xff\xff\xff", b"\x1a\x7f"])
    def test_c1_details_that_are_no_details_are_ignored(self, packed):
        again = status.error_of(Failed(Code.UNAVAILABLE, "gone", ((status.DETAILS, packed),)), "x")
        assert type(again) is ConnectionLost

    def test_c1_a_detail_that_does_not_hold_what_it_says_is_ignored(self):
        refusal = status.of_error(SchemaMismatch("x"))
        refusal.details[0].value = b"\xff\xff"
        assert type(status.error_of(across(refusal), "x")) is RemoteError
        assert status.outcome_of(across(refusal)) is None

    def test_c1_no_pause_is_longer_than_a_day(self):
        refusal = status.of_error(fedcore.errors.TooOften("x", retry_after=1.0))
        info = error_details_pb2.RetryInfo()
        info.retry_delay.seconds = (1 << 63) - 1
        refusal.details[1].Pack(info)
        assert status.error_of(across(refusal), "x").retry_after == 86400.0
        info.retry_delay.seconds = -5
        refusal.details[1].Pack(info)
        assert status.error_of(across(refusal), "x").retry_after == 0.0

    def test_c1_an_outcome_without_end_is_not_repeated(self):
        refusal = status.of_error(SchemaMismatch("x"))
        info = info_of(refusal)
        info.metadata["outcome"] = "x" * 5000
        refusal.details[0].Pack(info)
        with pytest.raises(ProtocolError) as caught:
            status.outcome_of(across(refusal))
        assert len(str(caught.value)) < 200
