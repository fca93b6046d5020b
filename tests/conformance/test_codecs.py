"""Every lossless codec keeps the laws, the laws notice one that does not, and bytes on the wire stay what they are."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fedcore import registry
from fedcore.codec import Codec, buffers, joined
from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.protobuf import Protobuf
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.torch import Torch
from fedcore.errors import DecodeError
from fedcore.parameters import DTYPES, Spec, raw_bytes
from fedcore.testing.codecs import check_codec

CODECS = [name + tail for tail in ("", "+lz4") for name in ("safetensors", "torch", "msgpack", "protobuf")]
KINDS = {"Lz4": Lz4, "Msgpack": Msgpack, "Protobuf": Protobuf, "Safetensors": Safetensors, "Torch": Torch}
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CODECS)
def test_keeps_the_laws(name, seed):
    check_codec(registry.codec(name), seed=seed)


@pytest.mark.parametrize("codec", [Lz4(Safetensors(), level=9), Lz4(Safetensors(), level=-5), Lz4(Lz4(Msgpack()))])
def test_keeps_the_laws_with_other_arguments(codec):
    check_codec(codec)


@pytest.mark.parametrize("name", [*CODECS, Lz4(Protobuf(), level=3)])
def test_repr_makes_an_equal_codec(name):
    codec = registry.codec(name)
    again = eval(repr(codec), KINDS)
    assert again == codec
    assert repr(again) == repr(codec)


def test_strangers_may_use_all_codecs_but_torch():
    assert {"safetensors", "msgpack", "protobuf", "lz4"} <= set(registry.default_accepts(None))
    assert "torch" not in registry.default_accepts(None)
    assert "torch" in registry.default_accepts(Torch())


# --- the laws bite ----------------------------------------------------------------------------------------------------


class Broken(Safetensors):
    """A codec of a third party; each subclass breaks one law."""

    part = "broken"


class TakesTrailingBytes(Broken):
    def decode(self, frame, spec, *, base=None, into=None):
        view = memoryview(frame)
        header = int.from_bytes(view[:8], "little") + 8
        return super().decode(view[: header + spec.nbytes], spec, into=into)


class RaisesValueError(Broken):
    def decode(self, frame, spec, *, base=None, into=None):
        try:
            return super().decode(frame, spec, into=into)
        except DecodeError as error:
            raise ValueError(str(error)) from error


class SortsNames(Broken):
    def decode(self, frame, spec, *, base=None, into=None):
        decoded = super().decode(frame, spec, into=into)
        return {name: decoded[name] for name in sorted(decoded)}


class IgnoresInto(Broken):
    def decode(self, frame, spec, *, base=None, into=None):
        return super().decode(frame, spec)


class KeepsTheFrame(Broken):
    def decode(self, frame, spec, *, base=None, into=None):
        decoded = super().decode(frame, spec, into=into)
        if into is None and not memoryview(frame).readonly:
            at = len(frame) - spec.nbytes
            for info in spec:
                size = decoded[info.name].nbytes
                if size:
                    piece = torch.frombuffer(frame, dtype=torch.uint8, count=size, offset=at).view(-1)
                    if at % 8 == 0:
                        decoded[info.name] = piece.view(DTYPES[info.dtype]).view(info.shape)
                at += size
        return decoded


class ChangesWhatItEncodes(Broken):
    def encode(self, shard, *, base=None, state=None):
        frame = b"".join(super().encode(shard))
        for tensor in shard.values():
            tensor.zero_()
        return frame


class LosesNanBits(Broken):
    def encode(self, shard, *, base=None, state=None):
        return super().encode({n: t.nan_to_num() if t.dtype == torch.float32 else t for n, t in shard.items()})


class LosesNegativeZero(Broken):
    def encode(self, shard, *, base=None, state=None):
        return super().encode({n: t + 0.0 if t.dtype == torch.float64 else t for n, t in shard.items()})


class DropsEmptyTensors(Broken):
    def decode(self, frame, spec, *, base=None, into=None):
        return {n: t for n, t in super().decode(frame, spec, into=into).items() if t.numel()}


class FlattensScalars(Broken):
    def decode(self, frame, spec, *, base=None, into=None):
        return {n: t if t.dim() else t.view(1) for n, t in super().decode(frame, spec, into=into).items()}


class SendsTiedTensorsOnce(Broken):
    def encode(self, shard, *, base=None, state=None):
        return super().encode({info.name: shard[info.name] for info in Spec.of(shard)})


class NeedsNoNames(Broken):
    def encode(self, shard, *, base=None, state=None):
        return super().encode({str(place): tensor for place, tensor in enumerate(shard.values())})

    def decode(self, frame, spec, *, base=None, into=None):
        names = Spec(tuple(type(i)(str(place), i.dtype, i.shape) for place, i in enumerate(spec)))
        decoded = super().decode(
            frame, names, into=into and dict(zip(map(str, range(len(spec))), into.values(), strict=True))
        )
        return dict(zip((i.name for i in spec), decoded.values(), strict=True))


class BoundToOneThread(Broken):
    def __init__(self):
        self.home = threading.get_ident()

    def encode(self, shard, *, base=None, state=None):
        at_home = threading.get_ident() == self.home
        return super().encode(shard if at_home else {name: t.logical_not().to(t.dtype) for name, t in shard.items()})


@pytest.mark.parametrize("broken", Broken.__subclasses__(), ids=lambda kind: kind.__name__)
def test_the_laws_notice(broken):
    with pytest.raises(AssertionError, match=broken.__name__):
        check_codec(broken())


def test_the_laws_notice_a_wrong_name():
    class Shouting(Safetensors):
        part = "SAFE TENSORS"

    with pytest.raises(AssertionError, match="lower-case"):
        check_codec(Shouting())


class Halves(Codec):
    """A lossy codec: what it loses is its own business, what shape things have is not."""

    part = "halves"
    lossless = False

    def encode(self, shard, *, base=None, state=None):
        return Safetensors().encode({n: t.half() if t.dtype == torch.float32 else t for n, t in shard.items()})

    def decode(self, frame, spec, *, base=None, into=None):
        halved = Spec(tuple(type(i)(i.name, "float16" if i.dtype == "float32" else i.dtype, i.shape) for i in spec))
        decoded = Safetensors().decode(frame, halved)
        whole = {i.name: decoded[i.name].to(DTYPES[i.dtype]) for i in spec}
        return whole if into is None else {name: into[name].copy_(tensor) for name, tensor in whole.items()}


class HalvesForgetful(Halves):
    def decode(self, frame, spec, *, base=None, into=None):
        return super().decode(frame, spec, into=into) | {i.name: torch.zeros(1) for i in spec if i.dtype == "bool"}


def test_of_a_lossy_codec_only_the_looks_are_judged():
    check_codec(Halves())
    check_codec(Lz4(Halves()))
    with pytest.raises(AssertionError, match="came back as"):
        check_codec(HalvesForgetful())
    with pytest.raises(AssertionError, match="other bits"):
        check_codec(type("Claims", (Halves,), {"lossless": True})())


# --- golden bytes: to change one is to change the protocol ------------------------------------------------------------


def payload():
    tensors = {"zeros": torch.zeros(2, 300), "empty": torch.zeros(0, 3), "scalar": torch.tensor(-0.0)}
    for dtype, kind in DTYPES.items():
        raw = np.arange(6 * kind.itemsize, dtype=np.uint8) % (2 if dtype == "bool" else 251)
        tensors[f"层.{dtype}"] = torch.from_numpy(raw).view(kind).view(2, 3)
    return tensors


def bits(parameters):
    return {name: (tensor.dtype, tensor.shape, bytes(raw_bytes(tensor))) for name, tensor in parameters.items()}


@pytest.mark.parametrize("name", CODECS)
def test_reads_the_golden_frame(name):
    frame = (GOLDEN / f"{name}.bin").read_bytes()
    decoded = registry.codec(name).decode(frame, Spec.of(payload()))
    assert list(decoded) == list(payload())
    assert bits(decoded) == bits(payload())


# torch.save and liblz4 promise no particular bytes, and write others from version to version
@pytest.mark.parametrize("name", ["safetensors", "msgpack", "protobuf"])
def test_writes_the_golden_frame(name):
    assert joined(buffers(registry.codec(name).encode(payload()))) == (GOLDEN / f"{name}.bin").read_bytes()
