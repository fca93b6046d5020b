"""A client that takes nothing of a download is not waited for."""

import socket
import struct
import threading
from concurrent.futures import Future

import pytest

from fedcore.limits import Limits
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


class Desk:
    """Answers every fetch with 4 MiB; ``taken`` says how many of 64 pieces were asked for, and ``ended`` when it is over."""

    def __init__(self):
        self.read, self.ended, self.taken = threading.Event(), threading.Event(), 0

    def body(self):
        try:
            for number in range(64):
                self.taken = number
                self.read.set()
                yield bytes(1 << 16)
        finally:
            self.ended.set()

    def __call__(self, request):
        future = Future()
        future.set_result(Reply(Rest(4 << 20), self.body()))
        return future


class Peer:
    """Asks for a body as HTTP/2 allows; the first 64 KiB of it may come, and then as much as is let through."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(10)
        asked = wire.pack_fetch(Fetch(Session("run", "a", "token"), "fit-1-a", 4 << 20)).SerializeToString()
        headers = b"".join(
            literal(*pair)
            for pair in [
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{SERVICE}/GetGlobalModelStream".encode()),
                (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
            ]
        )  # fmt: skip
        message = b"\x00" + struct.pack(">I", len(asked)) + asked
        self.socket.sendall(PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, headers) + frame(0, 1, 1, message))

    def let(self, nbytes):
        """Let so many bytes more come."""
        more = struct.pack(">I", nbytes)
        self.socket.sendall(frame(8, 0, 0, more) + frame(8, 0, 1, more))

    def until_the_end(self):
        """Read until the trailers of the answer, and return them."""
        whole = self.socket.makefile("rb")
        while True:
            head = whole.read(9)
            payload = whole.read(int.from_bytes(head[:3], "big"))
            if head[3] == 1 and head[4] & 1:
                return payload


def fetch(connection):
    return b"".join(connection.request(Fetch(Session("run", "b", "token"), "fit-1-b", 4 << 20)).body)


def test_m6_a_client_that_opens_no_window():
    """It takes the first 64 KiB, and lets no more come."""
    transport, desk = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=1 << 16), Desk()
    with transport.listen("127.0.0.1:0", desk, Limits(stall_timeout=0.3)) as listener:
        peer = Peer(listener.address)
        with peer.socket:
            assert desk.read.wait(10)
            assert desk.ended.wait(10)
            assert desk.taken < 16
            with transport.connect(listener.address) as other:  # others are served as ever
                assert fetch(other) == bytes(4 << 20)


def test_m6_a_client_that_reads_on_after_all_is_told():
    """Or an honest one that was stopped for a while would wait for ever."""
    transport, desk = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=1 << 16), Desk()
    with transport.listen("127.0.0.1:0", desk, Limits(stall_timeout=0.3)) as listener:
        peer = Peer(listener.address)
        with peer.socket:
            assert desk.ended.wait(10)
            peer.let(4 << 20)
            assert b"grpc-status" in peer.until_the_end()


@pytest.mark.parametrize(("least", "whole"), [(100 << 20, False), (0, True)])
def test_m6_a_client_that_opens_its_window_bit_by_bit(least, whole):
    """Every chunk is taken well within the time, and all of them together far too slowly."""
    transport, desk, pause = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=1 << 16), Desk(), threading.Event()
    with transport.listen("127.0.0.1:0", desk, Limits(stall_timeout=0.5, least_rate=least)) as listener:
        peer = Peer(listener.address)
        with peer.socket:
            for _ in range(80):
                pause.wait(0.03)
                peer.let(1 << 16)
                if desk.ended.is_set():
                    break
            assert b"grpc-status" in peer.until_the_end()
            assert (desk.taken == 63) is whole
