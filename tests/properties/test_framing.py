"""Laws of the framing: what is written by hand is what protobuf would write, and any cut of a body is put together again."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import Incomplete, ProtocolError
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc.framing import Assembly, chunks, with_body, without_body

FAST = settings(max_examples=100, deadline=None, database=None)
CHUNKS = [pb.ModelChunk, pb.ModelUpdateChunk]
pieces = st.lists(st.binary(max_size=300), max_size=6)
counts = st.integers(0, (1 << 64) - 1)


@st.composite
def heads(draw):
    """A message with a body field, its kind, and the name of the field."""
    if draw(st.booleans()):
        kind = draw(st.sampled_from(CHUNKS))
        crc, final = draw(st.integers(0, (1 << 32) - 1)), draw(st.booleans())
        head = kind(chunk_index=draw(counts), total_chunks=draw(counts), is_final_chunk=final, crc32c=crc)
        return head, kind, "chunk_data"
    manifest = pb.Manifest(codec=draw(st.text(max_size=9)), frames=draw(st.lists(counts, max_size=4)))
    if draw(st.booleans()):
        answer = pb.GetGlobalModelResponse(task=pb.Task(id=draw(st.text(max_size=9))), manifest=manifest)
        return answer, pb.GetGlobalModelResponse, "body"
    header = pb.UpdateHeader(task_id=draw(st.text(max_size=9)), num_examples=draw(st.integers(-9, 9)), manifest=manifest)
    return pb.SubmitModelUpdateRequest(header=header), pb.SubmitModelUpdateRequest, "body"


@FAST
@given(heads(), pieces)
def test_what_is_written_is_a_message_that_protobuf_reads(made, body):
    head, kind, field = made
    data = with_body(head, body, sum(map(len, body)))
    whole = kind.FromString(data)
    assert getattr(whole, field) == b"".join(body)
    whole.ClearField(field)
    assert whole == head


@FAST
@given(heads(), pieces)
def test_what_protobuf_writes_is_read(made, body):
    head, kind, field = made
    whole = kind.FromString(head.SerializeToString())
    setattr(whole, field, b"".join(body))
    assert_read(kind, whole.SerializeToString(), head, b"".join(body))


@FAST
@given(heads(), pieces)
def test_reading_gives_back_what_was_written(made, body):
    head, kind, _ = made
    assert_read(kind, with_body(head, body, sum(map(len, body))), head, b"".join(body))


def assert_read(kind, data, head, body):
    message, content = without_body(kind, data)
    assert message == head
    assert bytes(content) == body


@pytest.mark.parametrize("kind", CHUNKS)
@FAST
@given(body=pieces, size=st.integers(1, 700))
def test_any_body_cut_anywhere_is_put_together(kind, body, size):
    whole = b"".join(body)
    made = list(chunks(kind, body, len(whole), size))
    assert len(made) == max(1, -(-len(whole) // size))
    assert all(len(kind.FromString(data).chunk_data) == size for data in made[:-1])
    assembly = Assembly(kind, len(whole), size)
    assert b"".join(bytes(assembly.take(data)) for data in made) == whole
    assembly.end()


@FAST
@given(body=st.binary(min_size=1, max_size=600), size=st.integers(20, 200), data=st.data())
def test_w5_no_other_sequence_of_the_chunks_is_taken(body, size, data):
    made = list(chunks(pb.ModelChunk, [body], len(body), size))
    right = list(range(len(made)))
    indexes = data.draw(st.lists(st.sampled_from(right), max_size=len(made) + 2).filter(lambda indexes: indexes != right))
    with pytest.raises((ProtocolError, Incomplete)):
        assembled([made[i] for i in indexes], len(body))


def assembled(made, total):
    assembly = Assembly(pb.ModelChunk, total, 1 << 20)
    body = b"".join([bytes(assembly.take(data)) for data in made])
    assembly.end()
    return body


@FAST
@given(body=st.binary(min_size=1, max_size=600), data=st.data())
def test_k17_any_flipped_bit_is_noticed_or_does_no_harm(body, data):
    (made,) = chunks(pb.ModelChunk, [body], len(body), len(body))
    bit = data.draw(st.integers(0, 8 * len(made) - 1))
    flipped = bytearray(made)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        got = assembled([bytes(flipped)], len(body))
    except (ProtocolError, Incomplete):
        return
    assert got == body  # an unknown field, for instance


@FAST
@given(st.binary(max_size=200), st.sampled_from([*CHUNKS, pb.GetGlobalModelResponse, pb.SubmitModelUpdateRequest]))
def test_r13_random_bytes_raise_nothing_but_protocol_errors(data, kind):
    try:
        message, body = without_body(kind, data)
    except ProtocolError:
        return
    assert isinstance(message, kind)
    assert len(body) <= len(data)


@FAST
@given(st.lists(st.binary(max_size=60), max_size=4), st.integers(0, 1 << 63))
def test_c4_random_chunks_raise_nothing_but_protocol_errors(made, total):
    with pytest.raises((ProtocolError, Incomplete)):
        assembled(made, total + 1)


@FAST
@given(pieces, st.integers(1, 50))
def test_how_a_body_lies_in_memory_does_not_matter(body, size):
    whole = b"".join(body)
    cut = [whole[a:b] for a, b in itertools.pairwise([0, len(whole) // 3, len(whole) // 2, len(whole)])]
    assert list(chunks(pb.ModelChunk, body, len(whole), size)) == list(chunks(pb.ModelChunk, cut, len(whole), size))
