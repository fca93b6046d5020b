import pytest
import torch

from fedcore.codecs.protobuf import Protobuf, parameters_to_proto, proto_to_parameters
from fedcore.errors import ConfigError, DecodeError, SchemaMismatch
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Spec, digest
from fedcore.protos.fedcore_pb2 import ModelParameters

CODEC = Protobuf()
TWO = {"w": torch.tensor([[1.0, 2.0]]), "on": torch.tensor([True, False])}
SPEC = Spec.of(TWO)


def message(change=None):
    proto = parameters_to_proto(TWO, 0)
    if change:
        change(proto)
    return proto


def refused(frame, spec=SPEC):
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(frame, spec)
    return caught.value


def doubted(change):
    with pytest.raises(DecodeError) as caught:
        proto_to_parameters(message(change))
    return caught.value


def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data


def test_golden_bytes():
    on = field(1, field(1, b"on") + field(2, field(1, b"\1\0") + field(2, b"\2") + field(3, b"bool")))
    data = bytes.fromhex("0000803f00000040")
    w = field(1, field(1, b"w") + field(2, field(1, data) + field(2, b"\1\2") + field(3, b"float32")))
    frame = on + w + field(3, b"w") + field(3, b"on")
    assert CODEC.encode(TWO) == frame
    assert torch.equal(CODEC.decode(frame, SPEC)["w"], TWO["w"])
    assert torch.equal(CODEC.decode(w + on + frame[-7:], SPEC)["w"], TWO["w"])  # a map has no order


def test_c15_the_order_is_kept():
    names = ["z", "y", "x", "a", "b", "c"]
    shard = {name: torch.tensor(float(place)) for place, name in enumerate(names)}
    assert list(ModelParameters.FromString(CODEC.encode(shard)).order) == names
    assert list(CODEC.decode(CODEC.encode(shard), Spec.of(shard))) == names
    assert list(proto_to_parameters(parameters_to_proto(shard, 1))[0]) == names


def test_equal_shards_give_equal_bytes():
    shard = {f"layer.{i}": torch.tensor(i) for i in range(100)}
    assert len({CODEC.encode(shard) for _ in range(5)}) == 1


# --- the two functions of the reference design ------------------------------------------------------------------------


def test_every_dtype_goes_there_and_back():
    parameters = {dtype: torch.ones(2, 3).to(kind) for dtype, kind in DTYPES.items()}
    parameters |= {"scalar": torch.tensor(-0.0), "empty": torch.ones(0, 3), "turned": torch.randn(3, 2).t()}
    proto = ModelParameters.FromString(parameters_to_proto(parameters, 600).SerializeToString())
    back, num_examples = proto_to_parameters(proto)
    assert num_examples == 600
    assert digest(back) == digest(parameters)


def test_the_parameters_are_ones_own():
    proto = message()
    back, _ = proto_to_parameters(proto)
    back["w"].zero_()
    assert proto == message()


def test_no_parameters_are_parameters():
    assert proto_to_parameters(parameters_to_proto({}, 0)) == ({}, 0)


def test_what_does_not_travel():
    with pytest.raises(SchemaMismatch, match="'w'"):
        parameters_to_proto({"w": torch.ones(1) * 1j}, 1)
    with pytest.raises(ConfigError, match="lower shard_bytes"):
        parameters_to_proto({"w": torch.zeros(1).expand(1 << 29)}, 1)


@pytest.mark.parametrize(
    "dtype", ["S4", "i2,i2", ">f4", "<f4", "object", "M8[s]", "", "complex64", "Float32", "f" * 10_000]
)
def test_w12_dtypes(dtype):
    error = doubted(lambda proto: setattr(proto.tensors["w"], "dtype", dtype))
    assert error.reason == "BAD_DTYPE"
    assert "'w'" in str(error)
    assert len(str(error)) < 200


@pytest.mark.parametrize("dims", [[-1, 2], [-1, -2], [2**62, 2**62], [2**63 - 1], [1] * 64])
def test_w12_dims_that_are_no_shape(dims):
    error = doubted(lambda proto: proto.tensors["w"].ClearField("dims") or proto.tensors["w"].dims.extend(dims))
    assert error.reason == "SCHEMA_MISMATCH"
    assert "'w'" in str(error)


@pytest.mark.parametrize("dims", [[], [1], [3], [0, 2], [2**40]])
def test_w12_dims_that_do_not_fit_the_data(dims):
    error = doubted(lambda proto: proto.tensors["w"].ClearField("dims") or proto.tensors["w"].dims.extend(dims))
    assert error.reason == "LENGTH_MISMATCH"
    assert "'w'" in str(error)


def test_orders_that_are_not_the_names():
    assert "'w' is missing" in str(doubted(lambda proto: proto.tensors.pop("w")))
    assert "'w' has no place" in str(doubted(lambda proto: proto.order.remove("w")))
    assert "'v' is missing" in str(doubted(lambda proto: proto.order.append("v")))
    assert "twice" in str(doubted(lambda proto: proto.order.append("w")))
    assert "no place in order" in str(doubted(lambda proto: proto.ClearField("order")))


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "n" * 2000])
def test_names_that_are_none(name):
    proto = ModelParameters(order=[name])
    proto.tensors[name].dtype = "float32"
    with pytest.raises(DecodeError) as caught:
        proto_to_parameters(proto)
    assert caught.value.reason == "SCHEMA_MISMATCH"


def test_numbers_of_examples():
    assert "num_examples_trained" in str(doubted(lambda proto: setattr(proto, "num_examples_trained", -1)))
    assert proto_to_parameters(parameters_to_proto({}, 2**63 - 1))[1] == 2**63 - 1


def test_bools_are_0_or_1():
    assert "'on' holds a bool" in str(doubted(lambda proto: setattr(proto.tensors["on"], "data", b"\1\2")))


# --- frames: whatever is not the shard is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        (lambda p: setattr(p, "num_examples_trained", 5), "MALFORMED", "field 0x10 is no part of a frame"),
        (lambda p: p.order.reverse(), "SCHEMA_MISMATCH", "tensor 'on' came where 'w' was due"),
        (lambda p: p.order.append("w"), "SCHEMA_MISMATCH", "order names a tensor twice"),
        (lambda p: p.order.remove("on"), "SCHEMA_MISMATCH", "tensor 'on' has no place in order"),
        (lambda p: p.tensors.pop("on"), "SCHEMA_MISMATCH", "tensor 'on' is missing"),
        (lambda p: setattr(p.tensors["w"], "dtype", "int32"), "SCHEMA_MISMATCH", "tensor 'w' is int32, not float32"),
        (lambda p: setattr(p.tensors["w"], "dtype", "S4"), "BAD_DTYPE", "tensor 'w': unknown dtype 'S4'"),
        (lambda p: p.tensors["w"].dims.reverse(), "SCHEMA_MISMATCH", "tensor 'w' has shape (2, 1), not (1, 2)"),
        (lambda p: setattr(p.tensors["w"], "data", b"1234"), "LENGTH_MISMATCH", "tensor 'w' has 4 bytes, not 8"),
        (lambda p: setattr(p.tensors["on"], "data", b"\1\2"), "MALFORMED", "tensor 'on' holds a bool"),
    ],
)
def test_tensors_of_another_spec(change, reason, text):
    error = refused(message(change).SerializeToString())
    assert error.reason == reason
    assert str(error).startswith(text)


def test_missing_and_extra_tensors():
    frame = CODEC.encode(TWO)
    more = Spec((*SPEC.infos, TensorInfo("v", "float32", (0,))))
    assert "tensor 'v' is missing" in str(refused(frame, more))
    assert "tensor 'on' is not part of the shard" in str(refused(frame, Spec(SPEC.infos[:1])))


@pytest.mark.parametrize(
    "tail", [b"\0", b"\x22\0", b"\x22\3abc", b"\x20\1", b"\x0a", b"\x1a\5abc", b"\x1a\x80\0", b"PK\5\6"]
)
def test_bytes_behind(tail):
    refused(CODEC.encode(TWO) + tail)


def test_an_entry_that_occurs_twice():
    frame = CODEC.encode(TWO)
    entry = frame[: 2 + frame[1]]
    assert "mean nothing" in str(refused(entry + frame))


def test_unknown_fields_within():
    data = field(1, TWO["w"].numpy().tobytes())
    described = data + field(2, b"\1\2") + field(3, b"float32")
    spec, order, hidden = Spec(SPEC.infos[:1]), field(3, b"w"), field(9, b"hidden")
    CODEC.decode(field(1, field(1, b"w") + field(2, described)) + order, spec)
    assert "mean nothing" in str(refused(field(1, field(1, b"w") + field(2, described + hidden)) + order, spec))
    refused(field(1, field(1, b"w") + field(2, described) + hidden) + order, spec)


def test_text_that_is_no_utf8():
    assert refused(CODEC.encode(TWO).replace(b"on", b"\xffn")).reason == "MALFORMED"


@pytest.mark.parametrize("two", [b"\x0a\0", b"\x1a\0"])
def test_many_empty_fields_are_counted_before_they_are_made(two):
    assert "more than 1028 fields" in str(refused(two * 100_000))


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\1", b"\x80", b""])
def test_lengths_that_nothing_follows(length):
    assert refused(b"\x0a" + length).reason == "MALFORMED"
