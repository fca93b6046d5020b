"""Bodies come in however they were cut, and what is not what it claims is refused before it costs anything."""

import tracemalloc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.broadcast import encode
from fedcore.codec import REFERENCE, Held
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import ChecksumError, ConfigError, ConnectionLost, DecodeError, Incomplete, OutOfStorage, SchemaMismatch
from fedcore.intake import Intake, plan, receive
from fedcore.messages import Manifest, TensorInfo
from fedcore.parameters import Spec, digest
from fedcore.pool import fresh
from fedcore.shards import MOST_SLICES, shards
from fedcore.transport import behind

FAST = settings(max_examples=60, deadline=None, database=None)


def model():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(60, 50, generator=generator)
    return {"w": weight, "s": torch.tensor(1.5), "e": torch.empty(0, 3), "n": torch.tensor(3), "tied": weight}


def encoded(parameters=None, codec=None, shard_bytes=4096):
    parameters = model() if parameters is None else parameters
    spec = Spec.of(parameters)
    payload = encode(parameters, spec, codec or Safetensors(), shard_bytes)
    return payload.manifest, b"".join(bytes(memoryview(part)) for part in payload.body), spec


def cut(body, sizes):
    """Cut a body into buffers of these sizes, over and over; a size of 0 gives an empty buffer."""
    at = 0
    while at < len(body):
        for size in sizes:
            yield memoryview(body)[at : at + size]
            at += size


class Untouchable:
    """A body that must not be read."""

    def __iter__(self):
        raise AssertionError("the body was read")


def refused(manifest, body, spec, reason, kind=DecodeError):
    with pytest.raises(kind) as caught:
        receive(manifest, body, spec, Safetensors())
    assert caught.value.reason == reason


@FAST
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=6).filter(any), st.sampled_from([Safetensors(), Msgpack()]))
def test_any_chunking_gives_the_same_payload(sizes, codec):
    manifest, body, spec = encoded(codec=codec)
    got = receive(manifest, cut(body, sizes), spec, codec)
    assert list(got) == list(model())
    assert digest(got, spec) == digest(model())
    assert got["tied"] is got["w"]


@FAST
@given(
    st.lists(st.integers(0, 9000), min_size=1, max_size=6).filter(any),
    st.sampled_from([Safetensors(), Msgpack()]),
    st.lists(st.integers(0, 20_000), max_size=5),
)
def test_a_body_that_breaks_off_goes_on_where_it_was(sizes, codec, breaks):
    manifest, body, spec = encoded(codec=codec)
    intake, parameters = Intake(manifest, spec, codec), None
    for at in sorted(breaks):
        if intake.received < at < len(body):
            with pytest.raises(Incomplete):
                intake.take(behind(cut(body[:at], sizes), intake.received))
            assert intake.received == at
            assert intake.open
    parameters = intake.take(behind([body], intake.received))
    assert not intake.open
    assert digest(parameters, spec) == manifest.digest


def test_with_what_was_no_frame_nothing_goes_on():
    manifest, body, spec = encoded(codec=Msgpack())
    intake = Intake(manifest, spec, Msgpack())
    with pytest.raises(DecodeError):
        intake.take([bytes(len(body) - 1)])
    assert not intake.open


def test_frames_that_come_in_one_buffer_are_not_copied():
    manifest, body, spec = encoded()
    lent = bytearray(body)

    frames = []

    class Keeps(Safetensors):
        def landing(self, spec, into):
            return None

        def decode(self, frame, spec, *, base=None, into=None):
            frames.append(frame)
            return super().decode(frame, spec, base=base, into=into)

    receive(manifest, [lent], spec, Keeps())
    lent[:] = bytes(len(body))
    assert not any(b"".join(frames))


def test_w11_nothing_has_a_frame_of_its_own():
    manifest, body, spec = encoded({})
    assert len(manifest.frames) == 1
    assert receive(manifest, [body], spec, Safetensors()) == {}


@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_k3_a_body_that_ends_early(missing):
    manifest, body, spec = encoded()
    refused(manifest, cut(body[:-missing], [1000]), spec, "INCOMPLETE", Incomplete)


def test_k1_no_body_at_all():
    manifest, _, spec = encoded()
    refused(manifest, [], spec, "INCOMPLETE", Incomplete)


@pytest.mark.parametrize("chunks", [lambda b: [b + b"x"], lambda b: [b, b"x"], lambda b: [b, b"", b"", b"x"]])
def test_k7_a_body_that_goes_on(chunks):
    manifest, body, spec = encoded()
    refused(manifest, chunks(body), spec, "LENGTH_MISMATCH")


def test_empty_buffers_behind_the_end_are_harmless():
    manifest, body, spec = encoded()
    receive(manifest, [b"", body, b"", b""], spec, Safetensors())


@pytest.mark.parametrize("lie", [1 << 40, 1 << 62, (1 << 63) - 1, -1])
@pytest.mark.parametrize("index", [0, -1])
def test_k8_w7_a_frame_of_impossible_length_is_refused_before_anything_is_read_or_allocated(lie, index):
    manifest, _, spec = encoded()
    lengths = list(manifest.frames)
    lengths[index] = lie
    tracemalloc.start()
    try:
        refused(replace(manifest, frames=tuple(lengths)), Untouchable(), spec, "TOO_LARGE")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("change", [lambda f: (*f, 0), lambda f: f[:-1], lambda f: (), lambda f: f * 1000])
def test_k8_more_or_fewer_frames_than_the_payload_has(change):
    manifest, _, spec = encoded()
    refused(replace(manifest, frames=change(manifest.frames)), Untouchable(), spec, "LENGTH_MISMATCH")


@pytest.mark.parametrize("size", [0, 1, 4095, (1 << 30) + 1, 1 << 62, -1])
def test_k8_shards_of_impossible_size(size):
    manifest, _, spec = encoded()
    refused(replace(manifest, shard_bytes=size), Untouchable(), spec, "LENGTH_MISMATCH")


@pytest.mark.parametrize("size", [4096, 4097, 65536])
def test_k8_a_cut_into_millions_of_slices_is_refused_before_it_is_made(size):
    spec = Spec.checked((TensorInfo("w", "float32", (1 << 40,)),))
    manifest = Manifest("safetensors", size, (100,) * 50, "d" * 64, spec.infos)
    refused(manifest, Untouchable(), spec, "LENGTH_MISMATCH")  # else this takes minutes, and gigabytes


def test_a_payload_of_128_gib_can_be_cut_and_no_larger_one():
    fits = Spec.checked((TensorInfo("w", "float32", (32 << 30,)),))
    assert len(shards(fits)) == MOST_SLICES
    with pytest.raises(ConfigError, match="8193 slices"):
        shards(Spec.checked((TensorInfo("w", "float32", ((32 << 30) + 1,)),)))


def test_a_model_for_which_there_is_no_memory_is_a_lack_of_room():
    for nbytes in (1 << 62, 1 << 70):
        with pytest.raises(OutOfStorage, match="no memory for"):
            fresh(nbytes)


def test_another_cut_than_the_manifests_is_noticed():
    manifest, body, spec = encoded(shard_bytes=4096)
    refused(replace(manifest, shard_bytes=8192), [body], spec, "LENGTH_MISMATCH")


def test_the_plan_is_the_cut_of_the_sender():
    manifest, _, spec = encoded()
    assert [shard.spec.nbytes <= length for shard, length in zip(plan(manifest, spec), manifest.frames, strict=True)] == [
        True
    ] * len(manifest.frames)


def test_u24_a_bit_that_changed_is_a_checksum_error_that_may_be_retried():
    manifest, body, spec = encoded()
    changed = bytearray(body)
    changed[-5] ^= 1  # inside the last tensor
    refused(manifest, [changed], spec, "CHECKSUM", ChecksumError)
    assert ChecksumError.retryable


def test_u24_a_digest_of_another_payload():
    manifest, body, spec = encoded()
    refused(replace(manifest, digest="0" * 64), [body], spec, "CHECKSUM", ChecksumError)
    refused(replace(manifest, digest=""), [body], spec, "CHECKSUM", ChecksumError)


def test_w12_bytes_that_are_no_frame():
    manifest, body, spec = encoded()
    with pytest.raises(DecodeError):
        receive(manifest, [bytes(len(body))], spec, Safetensors())


def test_what_breaks_off_raises_what_the_transport_raised():
    manifest, body, spec = encoded()

    def breaks():
        yield body[:100]
        raise ConnectionLost("gone")

    with pytest.raises(ConnectionLost, match="gone"):
        receive(manifest, breaks(), spec, Safetensors())


class TestByReference:
    def test_the_tensors_themselves_arrive(self):
        parameters = model()
        spec = Spec.of(parameters)
        payload = encode(parameters, spec, None, 4096)
        assert (payload.manifest.codec, payload.manifest.digest) == (REFERENCE, "")
        assert receive(payload.manifest, payload.body, spec, None)["w"] is parameters["w"]

    def test_they_are_checked(self):
        with pytest.raises(SchemaMismatch, match="'s' is missing"):
            receive(Manifest(REFERENCE, 4096, (0,)), [Held({"w": model()["w"]})], Spec.of(model()), None)

    @pytest.mark.parametrize("body", [[], [b""], [b"bytes"]])
    def test_bytes_are_no_objects(self, body):
        with pytest.raises(DecodeError, match="by reference"):
            receive(Manifest(REFERENCE, 4096, (0,)), body, Spec.of(model()), None)
