"""One model to many: encoded once, the same bytes for all, and forgotten when it is old."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedcore import registry
from fedcore.broadcast import Broadcast, encode
from fedcore.codec import REFERENCE, Base
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import DecodeError
from fedcore.intake import receive
from fedcore.parameters import Spec, digest

MODEL = {"w": torch.arange(5000.0), "s": torch.tensor(2)}
SPEC = Spec.of(MODEL)
DIGEST = digest(MODEL)
NEXT = {"w": MODEL["w"] + 0.001, "s": torch.tensor(3)}
NEXT_DIGEST = digest(NEXT)


@pytest.fixture
def broadcast():
    made = Broadcast(4096)
    yield made
    made.close()


class Slow(Safetensors):
    """Waits for a gate before it encodes."""

    gate = threading.Event()

    def encode(self, shard, **options):
        assert self.gate.wait(5)
        return super().encode(shard, **options)


def test_w6_encoded_once_for_many_who_ask_at_once(broadcast):
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(broadcast.payload, MODEL, SPEC, DIGEST, Slow()) for _ in range(64)]
        futures = [one.result(5) for one in asked]
        Slow.gate.set()
        payloads = {id(future.result(5)) for future in futures}
    assert len(payloads) == 1
    assert broadcast.encodings == 1


def test_asking_does_not_wait_for_the_encoding(broadcast):
    Slow.gate.clear()
    future = broadcast.payload(MODEL, SPEC, DIGEST, Slow())
    assert not future.done()
    Slow.gate.set()
    assert future.result(5).manifest.digest == DIGEST


def test_once_for_each_codec_and_model(broadcast):
    for codec in (Safetensors(), Msgpack(), Safetensors(), None, None):
        broadcast.payload(MODEL, SPEC, DIGEST, codec).result(5)
    assert broadcast.encodings == 3
    broadcast.payload(MODEL, SPEC, "another", Safetensors()).result(5)
    assert broadcast.encodings == 4


def test_keep_forgets_the_others(broadcast):
    for name in ("old", "new"):
        broadcast.payload(MODEL, SPEC, name, Safetensors()).result(5)
    broadcast.keep(["new"])
    broadcast.payload(MODEL, SPEC, "new", Safetensors()).result(5)
    assert broadcast.encodings == 2
    broadcast.payload(MODEL, SPEC, "old", Safetensors()).result(5)
    assert broadcast.encodings == 3
    broadcast.keep([])
    broadcast.payload(MODEL, SPEC, "new", Safetensors()).result(5)
    assert broadcast.encodings == 4


def test_a_codec_that_fails_tells_everybody_who_asked(broadcast):
    class Broken(Safetensors):
        def encode(self, shard, **options):
            raise DecodeError("cannot")

    for _ in range(2):
        with pytest.raises(DecodeError, match="cannot"):
            broadcast.payload(MODEL, SPEC, DIGEST, Broken()).result(5)


def test_the_manifest_describes_the_body():
    payload = encode(MODEL, SPEC, Safetensors(), 4096, name=DIGEST)
    assert payload.manifest.codec == "safetensors"
    assert payload.manifest.shard_bytes == 4096
    assert payload.manifest.tensors == SPEC.infos
    assert payload.manifest.total_bytes == sum(memoryview(part).nbytes for part in payload.body)
    assert len(payload.manifest.frames) == 6  # 20,000 bytes in slices of 4,096, and the scalar


def test_c12_the_body_holds_the_tensors_and_little_else():
    body = encode({"w": torch.zeros(1_000_000)[:10]}, Spec.of({"w": torch.zeros(10)}), Safetensors(), 4096).body
    assert sum(memoryview(part).nbytes for part in body) < 40 + 200


def test_c14_any_layout_is_encoded():
    turned = {"w": torch.arange(12.0).view(3, 4).t()}
    plain = {"w": turned["w"].contiguous()}
    spec = Spec.of(plain)

    def joined(parameters):
        return b"".join(bytes(memoryview(part)) for part in encode(parameters, spec, Safetensors(), 4096).body)

    assert joined(turned) == joined(plain)


def test_by_reference_nothing_is_encoded():
    payload = encode(MODEL, SPEC, None, 4096)
    assert payload.manifest.codec == REFERENCE
    assert payload.body[0].parameters is MODEL
    assert payload.manifest.total_bytes == 0


class TestDifferences:
    """Payloads as differences to what the receiver holds."""

    @pytest.fixture
    def broadcast(self):
        made = Broadcast(1 << 20, registry.codec("delta+zstd"))
        yield made
        made.close()

    def second(self, broadcast, holds):
        broadcast.payload(MODEL, SPEC, DIGEST, Safetensors()).result(5)
        broadcast.keep([NEXT_DIGEST])
        return broadcast.payload(NEXT, SPEC, NEXT_DIGEST, Safetensors(), holds).result(5)

    def test_who_holds_the_model_before_is_sent_the_difference(self, broadcast):
        payload = self.second(broadcast, DIGEST)
        assert (payload.manifest.codec, payload.manifest.base) == ("delta+zstd", DIGEST)
        assert payload.manifest.total_bytes < SPEC.nbytes
        got = receive(
            payload.manifest, payload.body, SPEC, registry.codec("delta+zstd"), base=Base(DIGEST, SPEC, MODEL)
        )
        assert digest(got) == NEXT_DIGEST

    @pytest.mark.parametrize("holds", ["", "something else"])
    def test_others_are_sent_the_whole(self, broadcast, holds):
        payload = self.second(broadcast, holds)
        assert (payload.manifest.codec, payload.manifest.base) == ("safetensors", "")

    def test_the_whole_is_sent_where_the_difference_is_no_smaller(self, broadcast):
        noise = {"w": torch.randn(5000, generator=torch.Generator().manual_seed(1)), "s": torch.tensor(3)}
        broadcast.payload(MODEL, SPEC, DIGEST, registry.codec("safetensors+zstd")).result(5)
        payload = broadcast.payload(noise, SPEC, "noise", registry.codec("safetensors+zstd"), DIGEST).result(5)
        assert payload.manifest.codec == "safetensors+zstd"

    def test_one_difference_for_all_who_hold_the_same(self, broadcast):
        first = self.second(broadcast, DIGEST)
        again = broadcast.payload(NEXT, SPEC, NEXT_DIGEST, Safetensors(), DIGEST).result(5)
        assert again is first
        assert broadcast.encodings == 3  # the first model, the second whole, the difference

    def test_only_one_generation_is_kept(self, broadcast):
        self.second(broadcast, DIGEST)
        broadcast.keep(["third"])
        broadcast.keep(["fourth"])
        assert broadcast.base(DIGEST) is None
        assert broadcast.base(NEXT_DIGEST) is None


def test_without_a_delta_codec_nothing_old_is_kept(broadcast):
    broadcast.payload(MODEL, SPEC, DIGEST, Safetensors()).result(5)
    assert broadcast.base(DIGEST).parameters is MODEL
    broadcast.keep(["another"])
    assert broadcast.base(DIGEST) is None


def test_of_a_lossy_codec_the_digest_is_of_what_arrives():
    codec = registry.codec("bf16")
    payload = encode({"w": torch.linspace(0, 1, 5000)}, Spec.of({"w": torch.zeros(5000)}), codec, 1 << 20, name="exact")
    got = receive(payload.manifest, payload.body, payload.received.spec, codec)
    assert digest(got) == payload.manifest.digest == payload.received.digest != "exact"


def test_a_difference_to_something_else_is_refused():
    codec, base = registry.codec("delta"), Base(DIGEST, SPEC, MODEL)
    payload = encode(NEXT, SPEC, codec, 1 << 20, base=base)
    for held in (None, Base("other", SPEC, MODEL), Base(DIGEST, Spec.of({"w": MODEL["w"]}), {"w": MODEL["w"]})):
        with pytest.raises(DecodeError) as caught:
            receive(payload.manifest, payload.body, SPEC, codec, base=held)
        assert caught.value.reason == "BASE_MISMATCH"
