"""Bodies on the wire: what a stream of chunks may look like, and what it may not."""

import google_crc32c
import pytest

from fedcore.errors import ChecksumError, DecodeError, FedcoreError, ProtocolError
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc.framing import Assembly, chunks, parse, with_body, without_body

LIMIT = 1 << 16


def chunk(index, total, data, *, final=None, crc=None, **more):
    """Serialise a chunk with protobuf's own code."""
    final = index == total - 1 if final is None else final
    crc = google_crc32c.value(data) if crc is None else crc
    return pb.ModelUpdateChunk(
        chunk_index=index, total_chunks=total, is_final_chunk=final, crc32c=crc, chunk_data=data, **more
    ).SerializeToString()


def ten(*pieces, total=10):
    """Assemble chunks of a body that was announced with 10 bytes."""
    assembly = Assembly(pb.ModelUpdateChunk, total, LIMIT)
    body = b"".join(bytes(assembly.take(piece)) for piece in pieces)
    assembly.end()
    return body


HEADER = pb.ModelUpdateChunk(header=pb.UpdateHeader()).SerializeToString()
A, B, C = chunk(0, 3, b"abcd"), chunk(1, 3, b"efgh"), chunk(2, 3, b"ij")


def test_chunks_in_order_are_the_body():
    assert ten(A, B, C) == b"abcdefghij"
    assert ten(chunk(0, 1, b"abcdefghij")) == b"abcdefghij"


def test_w11_an_empty_body_has_one_empty_chunk():
    assert ten(chunk(0, 1, b""), total=0) == b""
    assert len(list(chunks(pb.ModelChunk, [], 0, 100))) == 1


FAULTS = {
    "K1 nothing": ([], 10, "INCOMPLETE"),
    "K1 nothing of an empty body": ([], 0, "INCOMPLETE"),
    "K2 a second header": ([A, chunk(1, 3, b"efgh", header=pb.UpdateHeader(task_id="t"))], 10, "PROTOCOL_ORDER"),
    "K2 W4 a header instead of a chunk": ([HEADER], 10, "PROTOCOL_ORDER"),
    "K3 all but the last": ([A, B], 10, "INCOMPLETE"),
    "K3 only the first": ([A], 10, "INCOMPLETE"),
    "K3 W5 an early final mark": ([A, chunk(1, 3, b"efgh", final=True)], 10, "LENGTH_MISMATCH"),
    "K3 no final mark": ([A, B, chunk(2, 3, b"ij", final=False)], 10, "BAD_CHUNK_SIZE"),
    "K3 no final mark, full last chunk": ([chunk(0, 2, b"abcde"), chunk(1, 2, b"fghij", final=False)], 10, "LENGTH_MISMATCH"),
    "K4 repeated": ([A, A], 10, "BAD_SEQUENCE"),
    "K4 repeated later": ([A, B, B], 10, "BAD_SEQUENCE"),
    "K4 skipped": ([A, C], 10, "BAD_SEQUENCE"),
    "K4 starts with 1": ([B], 10, "BAD_SEQUENCE"),
    "K4 index -1 as it travels": ([chunk((1 << 64) - 1, 3, b"abcd")], 10, "BAD_SEQUENCE"),
    "K4 index 2**31": ([chunk(1 << 31, 3, b"abcd")], 10, "BAD_SEQUENCE"),
    "K4 W11 index 2**32": ([chunk(1 << 32, 3, b"abcd")], 10, "BAD_SEQUENCE"),
    "K5 swapped": ([B, A, C], 10, "BAD_SEQUENCE"),
    "K5 the last two swapped": ([A, C, B], 10, "BAD_SEQUENCE"),
    "K7 one byte more": ([chunk(0, 1, b"abcdefghijk")], 10, "LENGTH_MISMATCH"),
    "K7 one byte more in the last": ([A, B, chunk(2, 3, b"ijk")], 10, "LENGTH_MISMATCH"),
    "K7 one byte less in the last": ([A, B, chunk(2, 3, b"i")], 10, "LENGTH_MISMATCH"),
    "K7 goes on": ([A, B, C, chunk(3, 3, b"k")], 10, "PROTOCOL_ORDER"),
    "K7 goes on with nothing": ([A, B, C, chunk(3, 3, b"")], 10, "PROTOCOL_ORDER"),
    "K8 another count": ([chunk(0, 4, b"abcd")], 10, "BAD_CHUNK_SIZE"),
    "K8 a count that changes": ([A, chunk(1, 4, b"efgh")], 10, "BAD_CHUNK_SIZE"),
    "K8 a huge count": ([chunk(0, (1 << 64) - 1, b"abcd")], 10, "BAD_CHUNK_SIZE"),
    "K8 no count": ([chunk(0, 0, b"abcd", final=False)], 10, "BAD_CHUNK_SIZE"),
    "K8 data where none was announced": ([chunk(0, 1, b"a")], 0, "LENGTH_MISMATCH"),
    "K9 another size": ([A, chunk(1, 3, b"efg")], 10, "BAD_CHUNK_SIZE"),
    "K9 a larger one": ([A, chunk(1, 3, b"efghi")], 10, "BAD_CHUNK_SIZE"),
    "K10 above the limit": ([chunk(0, 1, bytes(LIMIT + 1))], LIMIT + 1, "TOO_LARGE"),
    "K17 a wrong checksum": ([A, chunk(1, 3, b"efgh", crc=7)], 10, "CHECKSUM"),
    "K17 no checksum": ([chunk(0, 3, b"abcd", crc=0)], 10, "CHECKSUM"),
    "no chunk": ([b"\xff\xff\xff"], 10, "UNDECODABLE"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_w5_every_fault_has_its_reason(fault):
    pieces, total, reason = FAULTS[fault]
    with pytest.raises(FedcoreError) as caught:
        ten(*pieces, total=total)
    assert caught.value.reason == reason
    assert caught.value.retryable is (reason in ("CHECKSUM", "INCOMPLETE"))


def test_k10_a_chunk_of_exactly_the_limit_is_taken():
    assert len(ten(chunk(0, 1, bytes(LIMIT)), total=LIMIT)) == LIMIT


@pytest.mark.parametrize("size", [1, 0])
def test_k9_a_million_tiny_chunks_are_refused_at_the_first(size):
    with pytest.raises(ProtocolError) as caught:
        Assembly(pb.ModelUpdateChunk, 1_000_000, LIMIT, 1 << 16).take(chunk(0, 1_000_000, bytes(size)))
    assert caught.value.reason == "BAD_CHUNK_SIZE"


def test_only_the_last_chunk_may_be_small():
    body = bytes((1 << 16) + 1)
    assembly = Assembly(pb.ModelUpdateChunk, len(body), LIMIT, 1 << 16)
    assert b"".join(bytes(assembly.take(data)) for data in chunks(pb.ModelUpdateChunk, [body], len(body), 1 << 16)) == body
    assembly.end()


def test_a_fault_is_noticed_at_the_chunk_that_has_it():
    assembly = Assembly(pb.ModelUpdateChunk, 10, LIMIT)
    assert bytes(assembly.take(A)) == b"abcd"
    with pytest.raises(ChecksumError, match="chunk 1"):
        assembly.take(chunk(1, 3, b"efgx", crc=google_crc32c.value(b"efgh")))


def test_the_checksum_is_crc32c():
    # the check value of CRC-32C in the catalogue of parametrised CRC algorithms
    (made,) = chunks(pb.ModelChunk, [b"1234", b"56789"], 9, 100)
    assert pb.ModelChunk.FromString(made).crc32c == 0xE3069283


class TestWithoutBody:
    def test_a_view_and_not_a_copy(self):
        data = bytearray(with_body(pb.SubmitModelUpdateRequest(), [b"abc"], 3))
        _, body = without_body(pb.SubmitModelUpdateRequest, data)
        data[-1:] = b"x"
        assert bytes(body) == b"abx"

    def test_without_field_15_the_body_is_empty(self):
        message, body = without_body(pb.GetGlobalModelResponse, pb.GetGlobalModelResponse(stream=True).SerializeToString())
        assert message.stream
        assert bytes(body) == b""

    @pytest.mark.parametrize(
        "data",
        [
            b"\x7a", b"\x7a\x05abc", b"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\xff" * 11, b"\x80", b"\x7b\x7c",
            b"\x7a\x01a\x7a\x01b", b"\x7a\x01a\x28\x01", b"\x0a\x02\xff\xff", b"\x2d\x00", b"\x29\x00\x00", b"\x00\x01",
        ],
    )  # fmt: skip
    def test_r13_what_is_no_message_is_undecodable(self, data):
        with pytest.raises(DecodeError) as caught:
            without_body(pb.GetGlobalModelResponse, data)
        assert caught.value.reason == "UNDECODABLE"

    def test_r15_unknown_fields_are_passed_over(self):
        extra = b"\xa0\x06\x01" + b"\xa2\x06\x02hi" + b"\xa5\x06abcd" + b"\xa1\x06abcdefgh"  # field 100 of each wire type
        data = extra + with_body(pb.GetGlobalModelResponse(stream=True), [b"xyz"], 3)
        message, body = without_body(pb.GetGlobalModelResponse, data)
        assert message.stream
        assert bytes(body) == b"xyz"


def test_parse_names_the_message():
    with pytest.raises(DecodeError, match="not a HeartbeatRequest") as caught:
        parse(pb.HeartbeatRequest, b"\xff\xff")
    assert caught.value.reason == "UNDECODABLE"
    assert parse(pb.Wait, memoryview(pb.Wait(round=1 << 60).SerializeToString())).round == 1 << 60
