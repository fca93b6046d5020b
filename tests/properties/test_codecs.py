"""Any shard goes through any codec and back bit for bit; no frame makes one raise anything but DecodeError."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore import registry
from fedcore.codec import buffers, joined
from fedcore.errors import DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Spec, digest, itemsize
from fedcore.views import raw_bytes

LOSSLESS = [name + tail for tail in ("", "+lz4") for name in ("safetensors", "torch", "msgpack", "protobuf")]
LOSSLESS += ["safetensors+zstd", "delta", "delta+zstd"]
CODECS = [*LOSSLESS, "bf16", "fp16", "int8", "int4+zstd", "topk+lz4"]
QUICK = settings(deadline=None, derandomize=True, database=None, max_examples=40)

names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12).filter(
    lambda name: name.isprintable() and name != "__metadata__"
)
infos = st.tuples(names, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4).map(tuple)).map(
    lambda parts: TensorInfo(*parts)
)
specs = st.lists(infos, max_size=6, unique_by=lambda info: info.name).map(Spec.checked)


@st.composite
def shards(draw):
    spec = draw(specs)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    plain = draw(st.booleans())  # half of them shrink

    def tensor(info):
        size = math.prod(info.shape) * itemsize(info.dtype)
        raw = rng.integers(0, 2 if plain or info.dtype == "bool" else 256, size, dtype=np.uint8)
        return (
            torch.from_numpy(raw).view(DTYPES[info.dtype]).view(info.shape)
            if size
            else torch.empty(info.shape, dtype=DTYPES[info.dtype])
        )

    return spec, {info.name: tensor(info) for info in spec}


def backwards(tensor):
    turned = np.frombuffer(raw_bytes(tensor), np.uint8)[::-1].copy()
    return torch.from_numpy(turned).view(tensor.dtype).view(tensor.shape) if tensor.numel() else tensor


edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "put", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=6,
)


def damaged(frame, changes):
    made = bytearray(frame)
    for kind, where, data in changes:
        at = int(where * (len(made) + 1))
        if kind == "set":
            made[at : at + len(data)] = data
        elif kind == "cut":
            del made[at : at + len(data)]
        elif kind == "put":
            made[at:at] = data
        else:
            made[at:at] = made[at // 2 : at // 2 + len(data)]
    return made


@pytest.mark.parametrize("name", LOSSLESS)
@given(case=shards(), in_place=st.booleans(), based=st.booleans())
@QUICK
def test_any_shard_comes_back(name, case, in_place, based):
    spec, shard = case
    codec = registry.codec(name)
    into = spec.blank() if in_place else None
    base = {key: backwards(tensor) for key, tensor in shard.items()} if based else None
    decoded = codec.decode(joined(buffers(codec.encode(shard, base=base))), spec, base=base, into=into)
    assert list(decoded) == list(shard)
    assert digest(decoded, spec) == digest(shard, spec)


@pytest.mark.parametrize("name", CODECS)
@given(case=shards(), changes=edits)
@QUICK
def test_a_damaged_frame_is_refused_or_a_shard(name, case, changes):
    spec, shard = case
    codec = registry.codec(name)
    try:
        decoded = codec.decode(damaged(joined(buffers(codec.encode(shard))), changes), spec)
    except DecodeError:
        return
    spec.check(decoded)


@pytest.mark.parametrize("name", CODECS)
@given(case=shards(), other=specs)
@QUICK
def test_a_frame_of_another_spec_is_refused(name, case, other):
    spec, shard = case
    codec = registry.codec(name)
    frame = joined(buffers(codec.encode(shard)))
    if other.infos == spec.infos:
        codec.decode(frame, other)
    else:
        with pytest.raises(DecodeError):
            codec.decode(frame, other)


@pytest.mark.parametrize("name", CODECS)
@given(spec=specs, frame=st.binary(max_size=200), flag=st.sampled_from([None, 0, 1, 4]))
@QUICK
def test_any_bytes_are_refused_or_a_shard(name, spec, frame, flag):
    if flag is not None:
        frame = bytes([flag]) + len(frame).to_bytes(8, "little") + frame
    try:
        decoded = registry.codec(name).decode(frame, spec)
    except DecodeError:
        return
    spec.check(decoded)
