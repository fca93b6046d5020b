"""Bodies on the wire: one message, or a stream of chunks.

Bodies never pass through protobuf's own code: the field that holds one is written by hand behind the rest of its message,
and read as a view. What is on the wire is an ordinary message all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from fedcore.errors import ChecksumError, DecodeError, Incomplete, ProtocolError
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transport import Body, Buffer

M = TypeVar("M", bound=Message)
ChunkKind: TypeAlias = type[pb.ModelChunk] | type[pb.ModelUpdateChunk]

SMALLEST_CHUNK, LARGEST_CHUNK = 1 << 16, 4 << 20
"""Bounds of a chunk in bytes. Only the last one of a body may be smaller, or a peer could send millions of tiny ones."""

RESUMABLE = 4 * LARGEST_CHUNK
"""Bodies of more bytes are streamed where the connection has broken before, so that they can be gone on with."""

LONGEST_REQUEST, LONGEST_HEADER = 1 << 16, 8 << 20
"""Bytes of a message that describes no payload, and of one that does, without its body. Parsed it takes many times that."""

OFFSET = "fedcore-offset"
"""Initial metadata of the server: how many bytes of an upload it has already; the client sends those behind them."""

_BODY_FIELD = 15
_BODY_TAG = bytes([_BODY_FIELD << 3 | 2])
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_FIELDS = 64  # before a body, those that this side does not know included
_REQUESTS = (
    pb.RegisterClientRequest, pb.GetGlobalModelRequest, pb.GetServerStatusRequest, pb.HeartbeatRequest, pb.ControlRequest,
    pb.GetAuditLogRequest,
)  # fmt: skip


def parse(kind: type[M], data: Buffer, most: int | None = None) -> M:
    """Parse a message of at most ``most`` bytes; None: as many as such a message may have from anybody.

    Raises:
        ProtocolError: it is longer.
        DecodeError: the bytes are none.
    """
    most = most or (LONGEST_REQUEST if kind in _REQUESTS else LONGEST_HEADER)
    if len(data) > most:
        raise ProtocolError(f"a {kind.DESCRIPTOR.name} of {len(data)} bytes, more than {most}", reason="TOO_LARGE")
    try:
        return kind.FromString(bytes(data))
    except ProtobufError as error:
        raise DecodeError(f"not a {kind.DESCRIPTOR.name}: {error}", reason="UNDECODABLE") from None


def with_body(message: Message, body: Iterable[Buffer], length: int) -> bytes:
    """Return a serialised message whose field 15 is the concatenation of ``body``: one copy of it."""
    return b"".join([message.SerializeToString(), _BODY_TAG, _varint(length), *body])


def without_body(kind: type[M], data: bytes, most: int | None = None) -> tuple[M, memoryview]:
    """Parse a message and return it without field 15, and that field as a view.

    Raises:
        ProtocolError: without the field it is longer than ``most`` bytes; see :func:`parse`.
        DecodeError: the bytes are no such message.
    """
    view = memoryview(data)
    for start, end, field, content in _fields(view):
        if field == _BODY_FIELD:
            if end != view.nbytes:
                raise DecodeError("field 15 must be the last of its message", reason="UNDECODABLE")
            return parse(kind, view[:start], most), content
    return parse(kind, data, most), memoryview(b"")


def _fields(view: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Yield start, end, number and content of each length-delimited top-level field."""
    at = count = 0
    while at < view.nbytes:
        start, count = at, count + 1
        if count > _MOST_FIELDS:
            raise DecodeError(f"more than {_MOST_FIELDS} fields", reason="UNDECODABLE")
        tag, at = _read_varint(view, at)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length, at = _read_varint(view, at)
            if length > view.nbytes - at:
                raise DecodeError("a field is longer than its message", reason="UNDECODABLE")
            yield start, at + length, field, view[at : at + length]
            at += length
        elif wire_type == _VARINT:
            _, at = _read_varint(view, at)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise DecodeError(f"wire type {wire_type} is not used here", reason="UNDECODABLE")


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= view.nbytes:
            break
        byte = view[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise DecodeError("a number does not end", reason="UNDECODABLE")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def chunks(kind: ChunkKind, body: Body, total: int, size: int) -> Iterator[bytes]:
    """Cut a body of ``total`` bytes into serialised chunks of ``size`` bytes; an empty body has one, empty chunk."""
    count = max(1, -(-total // size))
    for index, parts in enumerate(_cut(body, size)):
        crc = _crc(parts)
        head = kind(
            chunk_index=index, total_chunks=count, is_final_chunk=index == count - 1, crc32c=crc
        )
        yield with_body(head, parts, sum(part.nbytes for part in parts))


def _crc(parts: Iterable[memoryview]) -> int:
    """Return the CRC32C of buffers; numpy's arrays are the one view of memory that the library takes without a copy."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, np.frombuffer(part, np.uint8)) if part.nbytes else crc
    return int(crc)


def _cut(body: Body, size: int) -> Iterator[list[memoryview]]:
    """Regroup buffers into runs of exactly ``size`` bytes, the last one shorter."""
    run: list[memoryview] = []
    room, sent = size, False
    for buffer in body:
        view = memoryview(buffer).cast("B")
        while view.nbytes:
            taken, view = view[:room], view[room:]
            run.append(taken)
            room -= taken.nbytes
            if not room:
                yield run
                run, room, sent = [], size, True
    if run or not sent:
        yield run


@dataclass
class Assembly:
    """Checks the chunks of one body: sequence, count, sizes, total and checksums. Both ends receive with it.

    Attributes:
        kind: the message that holds a chunk.
        total: length of the body.
        largest: a chunk may have this many bytes.
        smallest: all but the last must have this many.
    """

    kind: ChunkKind
    total: int
    largest: int
    smallest: int = 1
    _next: int = 0
    _size: int = 0
    _received: int = 0
    _final: bool = False

    def take(self, data: bytes) -> memoryview:
        """Return the data of the next chunk, as a view.

        Raises:
            ProtocolError: it is not the next chunk of such a body.
            ChecksumError: its bytes changed on the way.
        """
        chunk, content = without_body(self.kind, data)
        if self._final:
            raise ProtocolError("a chunk after the final one", reason="PROTOCOL_ORDER")
        if isinstance(chunk, pb.ModelUpdateChunk) and chunk.HasField("header"):
            raise ProtocolError("a second header", reason="PROTOCOL_ORDER")
        if chunk.chunk_index != self._next:
            raise ProtocolError(f"chunk {chunk.chunk_index} instead of {self._next}", reason="BAD_SEQUENCE")
        self._check_size(content.nbytes, chunk.total_chunks, final=chunk.is_final_chunk)
        if _crc([content]) != chunk.crc32c:
            raise ChecksumError(f"chunk {self._next} changed on the way")
        self._next += 1
        self._received += content.nbytes
        self._final = chunk.is_final_chunk
        return content

    def end(self) -> None:
        """Check that the body is whole.

        Raises:
            Incomplete: it is not.
        """
        if not self._final:
            raise Incomplete(f"the stream ended after {self._received} of {self.total} bytes")

    def _check_size(self, nbytes: int, count: int, *, final: bool) -> None:
        if nbytes > self.largest:
            raise ProtocolError(f"a chunk of {nbytes} bytes, more than {self.largest}", reason="TOO_LARGE")
        self._size = self._size or nbytes
        small = nbytes < self.smallest and not final
        if small or count != max(1, -(-self.total // max(1, self._size))) or (nbytes != self._size and not final):
            raise ProtocolError("chunks must have one size, which fits the declared total", reason="BAD_CHUNK_SIZE")
        if final != (self._next == count - 1) or self._received + nbytes > self.total:
            raise ProtocolError(f"the chunks do not add up to {self.total} bytes", reason="LENGTH_MISMATCH")
        if final and self._received + nbytes != self.total:
            raise ProtocolError(f"{self._received + nbytes} bytes instead of {self.total}", reason="LENGTH_MISMATCH")
