"""The message ``ModelParameters`` of ``protos/fedcore.proto``: the format of the reference design.

Frame layout:
    one serialized ``ModelParameters``: ``tensors`` maps each name to dtype, dims and raw little-endian bytes; ``order``
    lists the names, because a map has no order; ``num_examples_trained`` is not set (an update's header holds it)

    Whatever another writer could add is refused: unknown fields, a name that occurs twice, bytes that mean nothing.

What survives:
    Names, order, dtypes, shapes and every bit. Ties need no place: a shard holds every tied tensor once. A message of
    2 GiB or more cannot be: keep ``shard_bytes`` below that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest

from google.protobuf import message
from torch import Tensor

from fedcore.codec import Codec, Frame
from fedcore.errors import ConfigError, DecodeError, SchemaMismatch
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, dtype_name, expect, itemsize, land
from fedcore.protos.fedcore_pb2 import ModelParameters
from fedcore.transport import Buffer
from fedcore.views import raw_bytes

__all__ = ["Protobuf", "parameters_to_proto", "proto_to_parameters"]

_TENSORS, _ORDER = 0x0A, 0x1A  # the tags of the two fields that a frame has


class Protobuf(Codec):
    """One protobuf message, ``ModelParameters``."""

    part = "protobuf"

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return the serialized message; equal shards give equal bytes.

        Raises:
            ConfigError: the shard has 2 GiB or more.
        """
        return parameters_to_proto(shard, 0).SerializeToString(deterministic=True)

    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Parse the message, which must be the Spec's and nothing more, and land each tensor."""
        view = memoryview(frame).cast("B")
        _check_fields(view, most=2 * len(spec) + 1024)
        try:
            proto = ModelParameters.FromString(view)  # type: ignore[arg-type]  # any buffer will do
        except message.DecodeError as error:
            raise DecodeError(f"the frame is no ModelParameters: {error}") from error
        tensors = _landed(proto, spec, into)
        idle = len(view) - sum(map(_entry_size, spec))
        expect(idle == 0, f"the frame holds {idle} bytes that mean nothing")
        return tensors


def parameters_to_proto(parameters: Mapping[str, Tensor], num_examples: int) -> ModelParameters:
    """Return ``parameters`` and the number of examples they were trained on as a message. Ties are not kept.

    Raises:
        SchemaMismatch: a dtype does not travel.
        ConfigError: the message would have 2 GiB or more.
    """
    if sum(tensor.nbytes for tensor in parameters.values()) >= 1 << 31:
        raise ConfigError("protobuf takes less than 2 GiB in one message: lower shard_bytes")
    proto = ModelParameters(num_examples_trained=num_examples, order=list(parameters))
    for name, tensor in parameters.items():
        entry = proto.tensors[name]
        entry.data = raw_bytes(tensor).tobytes()
        entry.dims.extend(tensor.shape)
        entry.dtype = dtype_name(tensor.dtype, repr(name))
    return proto


def proto_to_parameters(proto: ModelParameters) -> tuple[Parameters, int]:
    """Return the parameters of a message that may come from anybody, in order, and the number of examples.

    Raises:
        DecodeError: a dtype, a shape, a length, the order or the number of examples is not possible.
    """
    expect(proto.num_examples_trained >= 0, f"num_examples_trained is {proto.num_examples_trained}")
    _check_order(proto)
    try:
        spec = Spec.checked([_described(proto, name) for name in proto.order])
    except SchemaMismatch as error:
        raise DecodeError(str(error), reason=error.reason) from error
    return _landed(proto, spec, None), proto.num_examples_trained


def _check_fields(view: memoryview, most: int) -> None:
    """Walk the outermost fields: there may be tensors and names alone, and at most ``most`` of them.

    Protobuf allocates tens of bytes for an empty field of two, so they are counted before it sees them.
    """
    at = fields = 0
    while at < len(view):
        expect(view[at] in (_TENSORS, _ORDER), f"field {view[at]:#x} is no part of a frame")
        fields += 1
        expect(fields <= most, f"more than {most} fields")
        length, at = _varint(view, at + 1)
        at += length
    expect(at == len(view), "the last field is cut off")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number at ``at``, of at most five bytes, and where it ends."""
    number = 0
    for shift, byte in enumerate(view[at : at + 5]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, at + shift + 1
    raise DecodeError("a field without a length")


def _entry_size(info: TensorInfo) -> int:
    """Return how long a tensor and its name in ``order`` are, written as protobuf libraries write them."""
    nbytes = math.prod(info.shape) * itemsize(info.dtype)
    dims = sum(_varint_size(dim) for dim in info.shape)
    tensor = sum(_field_size(n) for n in (nbytes, dims, len(info.dtype)) if n)
    name = _field_size(len(info.name.encode()))
    return _field_size(name + _field_size(tensor)) + name


def _field_size(length: int) -> int:
    return 1 + _varint_size(length) + length


def _varint_size(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def _check_order(proto: ModelParameters) -> None:
    known = set(proto.order)
    expect(len(known) == len(proto.order), "order names a tensor twice", "SCHEMA_MISMATCH")
    for name in proto.order:
        expect(name in proto.tensors, f"tensor {name[:80]!r} is missing", "SCHEMA_MISMATCH")
    for name in proto.tensors:
        expect(name in known, f"tensor {name[:80]!r} has no place in order", "SCHEMA_MISMATCH")


def _described(proto: ModelParameters, name: str) -> TensorInfo:
    entry = proto.tensors[name]
    return TensorInfo(name, entry.dtype, tuple(entry.dims))


def _landed(proto: ModelParameters, spec: Spec, into: Mapping[str, Tensor] | None) -> Parameters:
    _check_order(proto)
    tensors: Parameters = {}
    for info, name in zip_longest(spec, proto.order):
        if info is None:
            raise DecodeError(f"tensor {name[:80]!r} is not part of the shard", reason="SCHEMA_MISMATCH")
        if name is None:
            raise DecodeError(f"tensor {info.name!r} is missing", reason="SCHEMA_MISMATCH")
        tensors[name] = land(name, proto.tensors[name].data, info, into, _described(proto, name))
    return tensors
