"""A client that takes nothing of a download is not waited for."""

import socket
import struct
import threading
from concurrent.futures import Future

from fedcore.messages import Fetch, Rest, Session
from fedcore.transport import Reply
from fedcore.transports.grpc import Grpc, TransferPolicy, wire
from fedcore.transports.grpc.client import SERVICE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """Return one header as HPACK writes it without any compression."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def test_m6_a_client_that_opens_no_window():
    """It asks for 4 MiB as HTTP/2 allows, takes the first 64 KiB, and lets no more come."""
    read, ended, taken = threading.Event(), threading.Event(), [0]

    def body():
        try:
            for number in range(64):
                taken[0] = number
                read.set()
                yield bytes(1 << 16)
        finally:
            ended.set()

    def handler(request):
        future = Future()
        future.set_result(Reply(Rest(4 << 20), body()))
        return future

    wire_ = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=1 << 16, stall_timeout=0.3)
    with wire_.listen("127.0.0.1:0", handler) as listener:
        host, _, port = listener.address.rpartition(":")
        with socket.create_connection((host, int(port))) as peer:
            peer.settimeout(10)
            asked = wire.pack_fetch(Fetch(Session("run", "a", "token"), "fit-1-a", 4 << 20)).SerializeToString()
            headers = b"".join(
                literal(*pair)
                for pair in [
                    (b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{SERVICE}/GetGlobalModelStream".encode()),
                    (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
                ]
            )  # fmt: skip
            message = b"\x00" + struct.pack(">I", len(asked)) + asked
            peer.sendall(PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, headers) + frame(0, 1, 1, message))
            assert read.wait(10)
            assert ended.wait(10)
            assert taken[0] < 16
            with wire_.connect(listener.address) as other:  # others are served as ever
                assert b"".join(other.request(Fetch(Session("run", "b", "token"), "fit-1-b", 4 << 20)).body) == bytes(4 << 20)
