"""X: below and beside the calls."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

from attack import SERVICE, SOON, Row, _path, each, first, one
from frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    WINDOW,
    Line,
    frame,
    headers,
    message,
)

from fedcore.protos import fedcore_pb2 as pb

HANDSHAKE = 20.0
SHED = "meanwhile gRPC sheds load: it ends calls of others, too, with CANCELLED, and clients make them again"
HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(507)  # TLS: a ClientHello of 512 bytes


def opens(*opening, within=HANDSHAKE):
    """Return what opens a connection like this, and what becomes of it."""

    def attack(attacker):
        with Line(attacker.siege.address, *opening) as line:
            return "closed" if line.closed(within) else "open"

    return attack


def is_borne(*opening):
    """Return what opens connections that say nothing more, and leaves them open."""

    def attack(attacker):
        lines = [Line(attacker.siege.address, *opening) for _ in range(20)]
        answer = "borne" if attacker.siege.is_serving() else "the server is gone"
        for line in lines:
            line.socket.close()
        return answer

    return attack


def large_metadata(attacker):
    return attacker.unary("GetServerStatus", metadata=(("key", "x" * 65_536),))


def unknown(attacker):
    return one({name: attacker.unary(name) for name in ("Nothing", "/fedcore.v1.Other/Heartbeat", "/x", "/" + "y" * 5000)})


def one_to_a_stream(attacker):
    with attacker.task() as member:
        header, _ = member.update()
        return attacker.unary("SubmitModelUpdateStream", first(header))


def many_to_one(attacker):
    registration = attacker.registration("extra")
    return attacker.stream(registration, registration, method="RegisterClient")


def hurries(attacker):
    with attacker.siege.gate.held():
        request = idle(attacker)
        return one({str(seconds): attacker.unary("GetGlobalModel", request, timeout=seconds) for seconds in (-1.0, 0.0, 0.001)})


def idle(attacker):
    """Return a request that is held back: of a client that has given its task back."""
    member = attacker.assigned()
    member.beat(status=pb.ERROR, task_id=member.given.task.id)
    return pb.GetGlobalModelRequest(session=member.session, wait_seconds=30.0)


def pull(attacker):
    return pb.GetGlobalModelRequest(session=attacker.member().session, wait_seconds=30.0)


def leaves(attacker):
    """Make calls without a deadline, and go away in the middle of them."""
    with attacker.siege.channel() as channel:
        calls = [channel.unary_unary(_path("GetGlobalModel")).future(pull(attacker).SerializeToString()) for _ in range(20)]
        for call in calls[::2]:
            call.cancel()
    return attacker.unary("GetServerStatus")


def nested(depth):
    data = b""
    for _ in range(depth):
        data = b"\x0b" + data + b"\x0c"  # groups of field 1
    return data


def varints(attacker):
    """Send a legal message whose numbers are longer than they need be."""
    name = b"extra"
    return attacker.unary(
        "RegisterClient", b"\x0a\x85\x80\x80\x00" + name + b"\x10\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00\x22\x0bsafetensors"
    )


def many_fields(attacker):
    found = {
        method: attacker.unary(method, b"\xf8\x7f\x01" * 1_000_000)
        for method in ("Heartbeat", "RegisterClient", "SubmitModelUpdate")
    }
    found["stream"] = attacker.stream(b"\xf8\x7f\x01" * 1_000_000)
    return "; ".join(sorted(set(found.values())))


def fields_before_a_body(attacker):
    return attacker.unary("SubmitModelUpdate", b"\xf8\x7f\x01" * 1_000_000 + b"\x7a\x02xx")


def resets(attacker):
    """Open streams and reset them at once, as fast as it goes."""
    asking = headers(SERVICE + "GetServerStatus")
    with Line(attacker.siege.address, PREFACE, frame(SETTINGS)) as line:
        for first_stream in range(1, 4000, 200):
            line.send(*(
                frame(HEADERS, END_HEADERS, stream, asking) + frame(RESET, 0, stream, (8).to_bytes(4, "big"))
                for stream in range(first_stream, first_stream + 200, 2)
            ))  # fmt: skip
        return "borne" if attacker.siege.is_serving() else "the server is gone"


def raw(*datas):
    """Return what sends messages of gRPC by hand, and whether each is answered."""

    def attack(attacker):
        found = []
        for data in datas:
            asking = PREFACE, frame(SETTINGS), frame(HEADERS, END_HEADERS, 1, headers(SERVICE + "GetServerStatus"))
            with Line(attacker.siege.address, *asking, frame(DATA, END_STREAM, 1, data)) as line:
                line.socket.settimeout(SOON)
                try:
                    line.until(RESET, GOAWAY, HEADERS)
                    found.append("answered")
                except TimeoutError:
                    found.append("no answer")
        return one(dict(enumerate(found)))

    return attack


ROWS = [
    Row(
        "X1",
        "HTTP/1.1; 64 zero bytes; a TLS ClientHello",
        "closed",
        each(opens(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), opens(bytes(64)), opens(HELLO)),
    ),
    Row(
        "X1",
        "the greeting of HTTP/2 and garbage; one frame that is none; a frame of 16 MiB",
        "closed",
        each(
            opens(PREFACE, b"\xff" * 1000),
            opens(PREFACE, frame(SETTINGS), frame(WINDOW, 0, 1, b"x")),
            opens(PREFACE, frame(SETTINGS), b"\xff\xff\xff\0\0\0\0\0\1"),
        ),
    ),
    Row(
        "X1",
        "twenty connections that say nothing, half a greeting, or no more than one",
        "borne",
        each(is_borne(), is_borne(PREFACE[:10]), is_borne(PREFACE, frame(SETTINGS))),
        remark="ended after 20 s where the greeting is not whole; others cost no thread",
    ),
    Row("X1", "a thousand pings in one write", "borne", is_borne(PREFACE, frame(SETTINGS), frame(PING, 0, 0, bytes(8)) * 1000)),
    Row("X2", "64 KiB of metadata", "RESOURCE_EXHAUSTED", large_metadata, remark="by gRPC itself"),
    Row("X3", "2,000 streams opened and reset at once", "borne", resets, remark=SHED),
    Row(
        "X4",
        "a message that is longer than it says; compressed without compression; flags that there are not",
        "answered",
        raw(message(bytes(1000), 1), b"\1" + message(b"x")[1:], b"\xff" * 9),
    ),
    Row(
        "X4",
        "a message that ends before its length",
        "no answer",
        raw(message(b"x", 1000)),
        usual=False,
        remark="gRPC waits for the rest of it until the connection ends; that takes no thread, and no call is made",
    ),
    Row("X5", "calls that there are not", "UNIMPLEMENTED", unknown, remark="by gRPC itself"),
    Row(
        "X5",
        "one message to a call that wants a stream",
        "INVALID_ARGUMENT INCOMPLETE",
        one_to_a_stream,
        usual=False,
        remark="on the wire it is a stream of one message",
    ),
    Row(
        "X5",
        "two messages to a call that wants one",
        "OK",
        many_to_one,
        usual=False,
        remark="the first is answered, the second never read",
    ),
    Row("X6", "a deadline of −1 s, 0 s, 1 ms", "DEADLINE_EXCEEDED", hurries),
    Row(
        "X6",
        "calls without a deadline, left in the middle",
        "OK",
        leaves,
        remark="a wait ends after `wait_seconds` at the latest, and one client has one",
    ),
    Row(
        "X8",
        "protobuf nested 120 deep",
        "INVALID_ARGUMENT UNDECODABLE",
        lambda attacker: one({m: attacker.unary(m, nested(120)) for m in ("Heartbeat", "RegisterClient", "SubmitModelUpdate")}),
    ),
    Row(
        "X8",
        "a million unknown fields",
        "INVALID_ARGUMENT UNDECODABLE; RESOURCE_EXHAUSTED TOO_LARGE",
        many_fields,
        soon=1.0,
        usual=False,
        remark="too large for a message without a body, which is judged first",
    ),
    Row("X8", "a million unknown fields before a body", "INVALID_ARGUMENT UNDECODABLE", fields_before_a_body, soon=1.0),
    Row("X8", "numbers that are longer than they need be", "OK", varints, remark="legal protobuf"),
]
