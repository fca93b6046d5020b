import tracemalloc

import msgpack
import numpy as np
import pytest
import torch

from fedcore.codec import joined
from fedcore.codecs.msgpack import Msgpack
from fedcore.errors import ConfigError, DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import Spec

CODEC = Msgpack()
TWO = {"w": torch.tensor([[1.0, 2.0]]), "on": torch.tensor([True, False])}
SPEC = Spec.of(TWO)
W = ["w", "float32", [1, 2], bytes.fromhex("0000803f00000040")]
ON = ["on", "bool", [2], b"\1\0"]


def refused(frame, spec=SPEC):
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(frame, spec)
    return caught.value


def test_golden_bytes():
    frame = bytes.fromhex("92 94 a1 77 a7") + b"float32" + bytes.fromhex("92 01 02 c4 08 00 00 80 3f 00 00 00 40")
    frame += bytes.fromhex("94 a2 6f 6e a4") + b"bool" + bytes.fromhex("91 02 c4 02 01 00")
    assert joined(CODEC.encode(TWO)) == frame
    assert torch.equal(CODEC.decode(frame, SPEC)["w"], TWO["w"])


def test_encoding_copies_no_tensor():
    tensor = torch.arange(6.0)
    _, view = CODEC.encode({"w": tensor})
    assert np.frombuffer(view, np.float32).ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536])
def test_the_library_reads_it_and_we_what_it_writes(size):
    tensors = {"w": torch.arange(size).to(torch.uint8), "scalar": torch.tensor(1.0)}
    frame = joined(CODEC.encode(tensors))
    entries = [[n, str(t.dtype)[6:], list(t.shape), t.numpy().tobytes()] for n, t in tensors.items()]
    assert msgpack.unpackb(frame) == entries
    assert msgpack.packb(entries) == frame
    assert torch.equal(CODEC.decode(msgpack.packb(entries), Spec.of(tensors))["w"], tensors["w"])


def test_longer_forms_of_the_same_are_read():
    frame = bytes.fromhex("dd00000001 dc0004 db00000001 77 d907") + b"float32"
    frame += bytes.fromhex("dc0002 d30000000000000001 cd0002 c600000008") + W[3]
    assert CODEC.decode(frame, Spec(SPEC.infos[:1]))["w"].tolist() == [[1.0, 2.0]]


def test_a_tensor_that_fits_no_bin():
    with pytest.raises(ConfigError, match="lower shard_bytes"):
        CODEC.encode({"w": torch.zeros(1).expand(1 << 30)})


@pytest.mark.parametrize(
    "head", ["dd ffffffff", "dc ffff", "df ffffffff", "db ffffffff", "c6 ffffffff", "c9 ffffffff 00"]
)
def test_p1_lengths_that_nothing_follows(head):
    head = bytes.fromhex(head)
    for frame in (head, b"\x92" + head, b"\x92\x94" + head, b"\x92\x94\xa1w" + head, b"\x92\x94\xa1w\xa7float32" + head,
                  b"\x92\x94\xa1w\xa7float32\x92\1\2" + head):  # fmt: skip
        refused(frame)
        refused(frame + bytes(10_000))


@pytest.mark.parametrize("depth", [16, 500, 100_000])
def test_p2_nesting(depth):
    for nest in (b"\x91", b"\x81\1", b"\xd9\0"):
        refused(nest * depth)
        refused(b"\x92\x94" + nest * depth)
        refused(b"\x92\x94\xa1w\xa7float32" + nest * depth)


def test_p2_many_small_objects_are_not_made():
    tracemalloc.start()
    for frame in (b"\xdd\0\x0f\xff\xff" + b"\x90" * (1 << 20), b"\x92\x94\xdd\0\x0f\xff\xff" + b"\x90" * (1 << 20)):
        refused(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # the frame itself, twice; as objects it would be 72 MiB


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"w": W[3], "on": ON[3]},
        {"tensors": [W, ON]},
        [W, dict(zip("abcd", ON, strict=True))],
        [W[:3], ON],
        [[*W, 0], ON],
        [["w", "float32", {1: 2}, W[3]], ON],
        [["w", "float32", {1: 2, "1": 3}, W[3]], ON],
        [["w", "float32", 2, W[3]], ON],
        [["w", "float32", "12", W[3]], ON],
        [["w", "float32", [1.0, 2], W[3]], ON],
        [["w", "float32", [True, 2], W[3]], ON],
        [["w", "float32", [-1, -2], W[3]], ON],
        [["w", "float32", [None, 2], W[3]], ON],
        [["w", "float32", [float("nan"), 2], W[3]], ON],
        [["w", "float32", [[1], 2], W[3]], ON],
        [[b"w", "float32", [1, 2], W[3]], ON],
        [[None, "float32", [1, 2], W[3]], ON],
        [["w", b"float32", [1, 2], W[3]], ON],
        [["w", None, [1, 2], W[3]], ON],
        [["w", "float32", [1, 2], "x" * 8], ON],
        [["w", "float32", [1, 2], list(W[3])], ON],
        [["w", "float32", [1, 2], None], ON],
        [["w", "float32", [1, 2], msgpack.ExtType(5, W[3])], ON],
        [["w", "float32", msgpack.ExtType(5, b""), W[3]], ON],
        [["w", "float32", msgpack.Timestamp(1, 2), W[3]], ON],
        [msgpack.ExtType(5, b"x"), ON],
        5,
        None,
        "text",
        W[3],
    ],
)
def test_p4_p7_other_values(value):
    assert refused(msgpack.packb(value)).reason == "MALFORMED"


def test_p5_trailing_bytes_and_bad_text():
    frame = msgpack.packb([W, ON])
    for tail in (b"\0", b"\xc0", frame):
        assert "behind the last tensor" in str(refused(frame + tail))
    assert refused(b"").reason == "MALFORMED"
    assert refused(frame.replace(b"\xa1w", b"\xa1\xff")).reason == "MALFORMED"
    assert refused(frame.replace(b"\xa1w", b"\xa3\xed\xa0\x80")).reason == "MALFORMED"


@pytest.mark.parametrize(
    ("entries", "reason", "message"),
    [
        ([["v", *W[1:]], ON], "SCHEMA_MISMATCH", "tensor 'v' came where 'w' was due"),
        ([ON, W], "SCHEMA_MISMATCH", "tensor 'on' came where 'w' was due"),
        ([W, W], "SCHEMA_MISMATCH", "tensor 'w' came where 'on' was due"),
        ([W], "SCHEMA_MISMATCH", "tensor 'on' is missing"),
        ([], "SCHEMA_MISMATCH", "tensor 'w' is missing"),
        ([W, ON, ["x", *ON[1:]]], "SCHEMA_MISMATCH", "tensor 'x' is not part of the shard"),
        ([["w", "int32", *W[2:]], ON], "SCHEMA_MISMATCH", "tensor 'w' is int32, not float32"),
        ([["w", "float32", [2, 1], W[3]], ON], "SCHEMA_MISMATCH", "tensor 'w' has shape (2, 1), not (1, 2)"),
        ([["w", "float32", [2**63, 2**63], W[3]], ON], "SCHEMA_MISMATCH", "tensor 'w' has shape (9223372036854775808,"),
        ([["w", "complex64", *W[2:]], ON], "BAD_DTYPE", "tensor 'w': unknown dtype 'complex64'"),
        ([["w", "S4", *W[2:]], ON], "BAD_DTYPE", "tensor 'w': unknown dtype 'S4'"),
        ([[*W[:3], W[3][:4]], ON], "LENGTH_MISMATCH", "tensor 'w' has 4 bytes, not 8"),
        ([[*W[:3], W[3] * 2], ON], "LENGTH_MISMATCH", "tensor 'w' has 16 bytes, not 8"),
        ([W, [*ON[:3], b"\1\2"]], "MALFORMED", "tensor 'on' holds a bool that is neither 0 nor 1"),
    ],
)
def test_tensors_of_another_spec(entries, reason, message):
    error = refused(msgpack.packb(entries))
    assert error.reason == reason
    assert str(error).startswith(message)


def test_a_count_that_is_not_the_number_of_tensors():
    frame = msgpack.packb([W, ON])
    refused(b"\x93" + frame[1:])
    refused(b"\x91" + frame[1:])
    refused(b"\xdd\xff\xff\xff\xff" + frame[1:])
    assert "behind the last" in str(refused(b"\x90\0", Spec(())))


def test_names_as_long_as_names_can_be():
    name = "語" * 1024
    spec = Spec((TensorInfo(name, "float32", (1,) * 16),))
    shard = {name: torch.ones((1,) * 16)}
    assert torch.equal(CODEC.decode(joined(CODEC.encode(shard)), spec)[name], shard[name])
