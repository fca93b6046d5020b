import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from fedcore import registry
from fedcore.codec import buffers
from fedcore.codecs.torch import Torch
from fedcore.errors import CodecRefused, DecodeError, MissingDependency
from fedcore.messages import TensorInfo
from fedcore.parameters import Spec

CODEC = Torch()
TWO = {"w": torch.tensor([[1.0, 2.0]]), "on": torch.tensor([True, False])}
SPEC = Spec.of(TWO)
ALL = [name + tail for tail in ("", "+lz4") for name in ("safetensors", "torch", "msgpack", "protobuf")]


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def refused(frame, spec=SPEC, codec=CODEC):
    with pytest.raises(DecodeError) as caught:
        codec.decode(frame, spec)
    return caught.value


class Touch:
    """Unpickled by anything but a restricted unpickler, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_any_torch_reads_it_in_order():
    loaded = torch.load(io.BytesIO(CODEC.encode(TWO)), weights_only=True)
    assert list(loaded) == ["w", "on"]
    assert all(torch.equal(loaded[name], TWO[name]) for name in TWO)


def test_reads_what_any_torch_saves():
    decoded = CODEC.decode(saved(TWO), SPEC)
    assert all(torch.equal(decoded[name], TWO[name]) for name in TWO)


def test_reads_tensors_that_are_strided_or_part_of_more():
    whole = torch.arange(24.0).view(4, 6)
    tensors = {"turned": whole.t(), "part": whole[1], "every": whole[::2, ::3], "one": whole[:1, :1].expand(2, 2)}
    decoded = CODEC.decode(saved(tensors), Spec.of(tensors))
    for name, tensor in decoded.items():
        assert torch.equal(tensor, tensors[name])
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


# --- T1: nothing that was sent is run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_t1_a_pickle_is_not_run(tmp_path, name):
    canary = tmp_path / "canary"
    attack = Touch(canary)
    inside = {"w": TWO["w"], "on": attack}
    for frame in (saved(attack), saved(inside), pickle.dumps(attack), pickle.dumps(inside),
                  saved(inside, _use_new_zipfile_serialization=False)):  # fmt: skip
        refused(frame, codec=registry.codec(name))
        for flag in (b"\0", b"\1"):
            refused(flag + len(frame).to_bytes(8, "little") + frame, codec=registry.codec(name))
    assert not canary.exists()
    pickle.loads(pickle.dumps(attack)).close()
    assert canary.exists()  # so the attack is one


def test_always_loads_weights_only_and_to_the_cpu(monkeypatch):
    asked = []
    real = torch.load

    def watched(file, **options):
        asked.append(options)
        return real(file, **options)

    monkeypatch.setattr(torch, "load", watched)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    CODEC.decode(CODEC.encode(TWO), SPEC)
    assert asked == [{"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1", "2.6.0", "2.9.1+cu128", "2.10.0a0+git1234"])
def test_an_unsafe_torch_is_refused(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(MissingDependency, match=r"torch>=2\.10.*CVE-2026-24747"):
        Torch()
    with pytest.raises(MissingDependency):
        registry.codec("torch+lz4")
    with pytest.raises(CodecRefused):
        registry.accepted_codec("torch", ["torch"])


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0+cpu", "2.13.0", "3.0.0"])
def test_a_safe_torch_is_not(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert Torch() == CODEC


# --- C12: nothing that was not asked for is sent ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_c12_a_view_does_not_take_the_rest_along(name):
    secret = torch.full((100_000,), 12345.678)
    secret[:10] = torch.randn(10)
    frame = b"".join(bytes(part) for part in buffers(registry.codec(name).encode({"view": secret[:10]})))
    assert len(frame) < 4096
    assert bytes(secret[10:11].numpy()) not in frame


def test_tied_tensors_of_a_shard_are_copied_too():
    one = torch.ones(3)
    spec = Spec((TensorInfo("a", "float32", (3,)), TensorInfo("b", "float32", (3,))))
    decoded = CODEC.decode(CODEC.encode({"a": one, "b": one}), spec)
    decoded["a"].zero_()
    assert decoded["b"].tolist() == [1, 1, 1]


# --- what must be refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [TWO["w"], TWO["on"]],
        TWO["w"],
        OrderedDict(TWO),
        {"parameters": TWO, "num_examples": 5},
        {"w": TWO["w"], "on": [True, False]},
        {"w": TWO["w"], "on": None},
        {"w": TWO["w"].to_sparse(), "on": TWO["on"]},
        {"w": torch.empty(1, 2, device="meta"), "on": TWO["on"]},
        {"w": torch.nn.Parameter(TWO["w"]), "on": TWO["on"]},
        {b"w": TWO["w"], "on": TWO["on"]},
        {None: TWO["w"], "on": TWO["on"]},
        {("w",): TWO["w"], "on": TWO["on"]},
        {},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_values_that_are_no_dict_of_tensors(value):
    refused(saved(value))


def test_tensors_of_another_spec():
    def other(**changes):
        error = refused(saved({**TWO, **changes}))
        return error.reason, str(error)

    assert other(w=torch.ones(2, 1)) == ("SCHEMA_MISMATCH", "tensor 'w' has shape (2, 1), not (1, 2)")
    assert other(w=torch.ones(1, 2).int()) == ("SCHEMA_MISMATCH", "tensor 'w' is int32, not float32")
    assert other(w=torch.ones(1, 2) * 1j)[0] == "BAD_DTYPE"
    assert other(v=torch.ones(1)) == ("SCHEMA_MISMATCH", "tensor 'v' is not part of the shard")
    assert str(refused(saved({"w": TWO["w"]}))) == "tensor 'on' is missing"
    assert str(refused(saved({"on": TWO["on"], "w": TWO["w"]}))) == "tensor 'on' came where 'w' was due"


def test_a_tensor_expanded_beyond_all_memory_is_not_made():
    error = refused(saved({"w": torch.ones(1).expand(1 << 40), "on": TWO["on"]}))
    assert "has shape (1099511627776,)" in str(error)


def test_a_frame_longer_than_the_shard_needs():
    assert "longer than" in str(refused(saved({"w": torch.zeros(100_000), "on": TWO["on"]})))
    assert "longer than" in str(refused(saved({**TWO, "x" * 80_000: torch.ones(1)})))


def test_a_pickle_longer_than_the_shard_needs():
    large = Spec((TensorInfo("w", "float32", (100_000,)),))
    assert "of pickle" in str(refused(saved({"w": torch.zeros(1), "x": ["spam"] * 100_000}), large))


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive(how):
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(TWO))) as source, zipfile.ZipFile(packed, "w", how) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    assert "compressed" in str(refused(packed.getvalue()))


def test_bytes_before_behind_and_between():
    frame = bytes(CODEC.encode(TWO))
    assert "behind" in str(refused(frame + b"\0"))
    assert "behind" in str(refused(frame[:-2] + b"\4\0" + b"note"))
    assert "no zip archive" in str(refused(b"\0" + frame))
    assert "does not begin" in str(refused(b"PK\x03\x04" + frame))
    assert "does not begin" in str(refused(frame + frame))


def test_members_that_lie_upon_each_other():
    frame = bytearray(CODEC.encode(TWO))
    at = frame.index(b"PK\x01\x02")
    frame[at + 20 : at + 28] = (2 * len(frame)).to_bytes(4, "little") * 2
    assert "more than its own length" in str(refused(frame))
