"""HTTP/2 by hand, for what no gRPC library sends."""

import socket
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def setting(number, value):
    return number.to_bytes(2, "big") + value.to_bytes(4, "big")


def headers(path, **more):
    """Return the headers of a gRPC request, without compression."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers",
        "content-type": "application/grpc", **more,
    }  # fmt: skip
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def message(data, length=None):
    """Return a gRPC message, which may lie about its length."""
    return b"\0" + (len(data) if length is None else length).to_bytes(4, "big") + data


def _text(value):
    data = value.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, size = len(data) - 127, [127]
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*size, rest]) + data


class Line:
    """A connection of bytes."""

    def __init__(self, address, *opening):
        host, _, port = address.rpartition(":")
        self.began = time.monotonic()
        self.socket = socket.create_connection((host, int(port)), timeout=30.0)
        self.send(*opening)

    def send(self, *parts):
        self.socket.sendall(b"".join(parts))

    def frames(self):
        """Yield kind, flags, stream and payload of each frame until the server closes the connection."""
        data = b""
        while True:
            while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
                yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]
                data = data[9 + size :]
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return
            if not more:
                return
            data += more

    def until(self, *kinds):
        """Return the first frame of one of these kinds; None if the connection is closed before."""
        return next((found for found in self.frames() if found[0] in kinds), None)

    def closed(self, within):
        """Return whether the server closes the connection within so many seconds."""
        self.socket.settimeout(within)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()
