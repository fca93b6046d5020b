"""Every codec keeps the laws, the laws notice one that does not, and bytes on the wire stay what they are."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fedcore import registry
from fedcore.codec import Codec, buffers, joined
from fedcore.codecs.bf16 import Bf16
from fedcore.codecs.delta import Delta
from fedcore.codecs.fp16 import Fp16
from fedcore.codecs.int4 import Int4
from fedcore.codecs.int8 import Int8
from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.protobuf import Protobuf
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.topk import TopK
from fedcore.codecs.torch import Torch
from fedcore.codecs.zstd import Zstd
from fedcore.errors import DecodeError
from fedcore.parameters import DTYPES, Spec, digest
from fedcore.testing.codecs import check_codec
from fedcore.views import raw_bytes

LOSSLESS = [name + tail for tail in ("", "+lz4", "+zstd") for name in ("safetensors", "torch", "msgpack", "protobuf", "delta")]
LOSSY = ["bf16", "fp16", "int8", "int4", "topk"]
CODECS = [*LOSSLESS, *LOSSY, "bf16+zstd", "int8+zstd", "int4+lz4", "topk+lz4"]
KINDS = {
    kind.__name__: kind
    for kind in (Bf16, Delta, Fp16, Int4, Int8, Lz4, Msgpack, Protobuf, Safetensors, TopK, Torch, Zstd)
}
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CODECS)
def test_keeps_the_laws(name, seed):
    check_codec(registry.codec(name), seed=seed)


@pytest.mark.parametrize(
    "codec",
    [
        Lz4(Safetensors(), level=9), Lz4(Safetensors(), level=-5), Lz4(Lz4(Msgpack())), Zstd(Delta(), level=19),
        Zstd(Lz4(Int8())), Int8(None), Int8(16), Int4(None), Int4(5000), TopK(0.3), TopK(1e-6),
    ],
)  # fmt: skip
def test_keeps_the_laws_with_other_arguments(codec):
    check_codec(codec)


@pytest.mark.parametrize("name", [*CODECS, Lz4(Protobuf(), level=3), Zstd(Int4(block=64), level=-1), Int8(None), TopK(0.1)])
def test_repr_makes_an_equal_codec(name):
    codec = registry.codec(name)
    again = eval(repr(codec), KINDS)
    assert again == codec
    assert repr(again) == repr(codec)


def test_strangers_may_use_all_lossless_codecs_but_torch():
    assert {"safetensors", "msgpack", "protobuf", "delta", "lz4", "zstd"} <= set(registry.default_accepts(None))
    assert not {"torch", *LOSSY} & set(registry.default_accepts(None))
    assert "torch" in registry.default_accepts(Torch())
    assert "int8" in registry.default_accepts(Zstd(Int8()))


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


class HidesThatItNeedsTheBase(Broken):
    uses_base = False

    def encode(self, shard, *, base=None, state=None):
        return Delta().encode(shard, base=base)

    def decode(self, frame, spec, *, base=None, into=None):
        return Delta().decode(frame, spec, base=base, into=into)


class ChangesTheBase(Broken):
    def encode(self, shard, *, base=None, state=None):
        frame = b"".join(super().encode(shard))
        for name in base or ():
            base[name].zero_()
        return frame


class ChangesItsState(Broken):
    def encode(self, shard, *, base=None, state=None):
        if state is not None:
            state.setdefault("count", torch.zeros(1)).add_(1)
        return super().encode(shard)


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


def zeros(parameters):
    return {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}


@pytest.mark.parametrize("name", LOSSLESS)
def test_reads_the_golden_frame(name):
    frame = (GOLDEN / f"{name}.bin").read_bytes()
    decoded = registry.codec(name).decode(frame, Spec.of(payload()), base=zeros(payload()))
    assert list(decoded) == list(payload())
    assert bits(decoded) == bits(payload())


# torch.save, liblz4 and libzstd promise no particular bytes, and write others from version to version
@pytest.mark.parametrize("name", ["safetensors", "msgpack", "protobuf", "delta"])
def test_writes_the_golden_frame(name):
    frame = joined(buffers(registry.codec(name).encode(payload(), base=zeros(payload()))))
    assert frame == (GOLDEN / f"{name}.bin").read_bytes()


def update():
    """Return a model and its base; all numbers are the same on every machine."""
    numbers = (torch.arange(2500) * 7919 % 4999 - 2499).double() / 1024
    tensors = {dtype: numbers.to(DTYPES[dtype]).view(50, 50) for dtype in ("float32", "float64", "bfloat16")}
    tensors |= {"small": numbers[:7].float(), "count": torch.tensor(5)}
    return tensors, {name: tensor.flip(-1) if tensor.dim() else tensor - 1 for name, tensor in tensors.items()}


DIGESTS = {
    "bf16": "91edf87909a6793002dae77f60f2ad059b36f09e4d09fe9050380e946e27268d",
    "fp16": "7f046fdc38abd4e76f585ef6ec2a45ecb2ca56906e1fa06c1e0d2ad4b5873a07",
    "int8": "48977c1771c48361ff7ce9565814331c32fe28ac4cc39b9bb423d83b3f53bb5c",
    "int4": "f83f7fb94b6aa79f8a2f1576034ff3b196c4840946473d255d0c11f1aae3e694",
    "topk": "e78d62dbf9cc8de2a0bff1b9e0eff87569a9eec149c8c3e2851deb05b59b3f06",
}


@pytest.mark.parametrize("name", LOSSY)
def test_the_golden_frame_of_a_lossy_codec(name):
    shard, base = update()
    codec, frame = registry.codec(name), (GOLDEN / f"{name}.bin").read_bytes()
    assert joined(buffers(codec.encode(shard, base=base))) == frame
    decoded = codec.decode(frame, Spec.of(shard), base=base)
    assert digest(decoded) == DIGESTS[name]
    assert bits(decoded)["count"] == bits(shard)["count"]
