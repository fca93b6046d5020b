"""Messages that changed on the way, between a client and a server that know each other's checksums."""

from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcore import Grpc
from fedcore.errors import ChecksumError
from fedcore.messages import (
    Act,
    Beat,
    BeatReply,
    Command,
    Done,
    Manifest,
    Outcome,
    Pull,
    Register,
    Registered,
    Session,
    Status,
    Submit,
    Submitted,
    Unread,
    Wait,
)
from fedcore.tasks import answer, fail
from fedcore.transport import Reply
from fedcore.transports.grpc import TransferPolicy, checksums

SESSION = Session("run", "a", "t")
BODY = b"abcd"
SENT = Submit(SESSION, "t", 1, "a", "b", 5, Manifest("c", 4096, (4,), "d"))
ASKED = {
    "register": Register("a"), "pull": Pull(SESSION, 1.0), "submit": SENT, "beat": Beat(SESSION, Status.IDLE),
    "command": Command(Act.PAUSE),
}  # fmt: skip
ANSWERS = {
    Register: Registered(SESSION, "safetensors", 1.0, 2.0), Pull: Wait(7), Submit: Submitted(Outcome.ACCEPTED, "ACCEPTED"),
    Beat: BeatReply(True), Command: Done("done"),
}  # fmt: skip


class Between:
    """Stands between a client and a server, and changes the last byte of the first message one way or the other."""

    def __init__(self, target, way):
        self.channel, self.way, self.changed = grpc.insecure_channel(target), way, 0
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers([self])
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def change(self, way, message):
        if way != self.way or self.changed:
            return message
        self.changed += 1
        return message[:-1] + bytes([message[-1] ^ 1])

    def service(self, call):
        start = self.channel.stream_unary(call.method)

        def relay(messages, context):
            changed = (self.change("there", message) for message in messages)
            try:
                reply, done = start.with_call(changed, metadata=list(call.invocation_metadata))
            except grpc.RpcError as error:
                context.set_trailing_metadata(error.trailing_metadata())
                context.abort(error.code(), error.details())
            context.set_trailing_metadata(done.trailing_metadata())
            return self.change("back", reply)

        return grpc.stream_unary_rpc_method_handler(relay)

    def close(self):
        self.server.stop(None).wait()
        self.channel.close()


@pytest.fixture
def through():
    """Return a function that makes a connection through somebody who changes a message one way."""
    ends, seen = [], []

    def handle(request):
        future = Future()
        if isinstance(request.message, Unread):
            fail(future, request.message.problem)
            return future
        seen.append(type(request.message))
        answer(future, Reply(ANSWERS[type(request.message)]))
        return future

    def connect(way, mode):
        wire = Grpc(transfer=TransferPolicy(mode=mode))
        listener = wire.listen("127.0.0.1:0", handle)
        between = Between(listener.address, way)
        connection = wire.connect(between.address)
        ends.extend([connection.close, between.close, listener.stop])
        return connection, between, seen

    yield connect
    for end in ends:
        end()


@pytest.mark.parametrize("mode", ["unary", "stream"])
@pytest.mark.parametrize("way", ["there", "back"])
@pytest.mark.parametrize("asked", ASKED)
def test_f13_a_bit_that_changes_is_noticed_and_asking_again_helps(through, asked, way, mode):
    connection, between, seen = through(way, mode)
    message = ASKED[asked]
    body = [BODY] if isinstance(message, Submit) else ()
    with pytest.raises(ChecksumError) as caught:
        connection.request(message, body, timeout=10)
    assert caught.value.retryable
    assert seen == ([] if way == "there" else [type(message)])
    assert connection.request(message, body, timeout=10).message == ANSWERS[type(message)]
    assert between.changed == 1


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_checksum_is_of_one_message(one, other):
    metadata = [("another", "thing"), checksums.stated(one)]
    checksums.check(one, metadata)
    if one != other:
        with pytest.raises(ChecksumError):
            checksums.check(other, metadata)


def test_where_none_is_stated_none_is_checked():
    checksums.check(b"abc", None)
    checksums.check(b"abc", [("another", "thing")])
