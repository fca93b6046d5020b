import json
import os
import stat

import numpy as np
import pytest
import safetensors
import safetensors.torch as library
import torch

from fedcore.codec import joined
from fedcore.codecs.safetensors import Safetensors, load, save
from fedcore.errors import DecodeError, SchemaMismatch
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Spec, digest
from fedcore.shards import shards
from fedcore.views import raw_bytes

CODEC = Safetensors()
TWO = {"w": torch.tensor([[1.0, 2.0]]), "on": torch.tensor([True, False])}
SPEC = Spec.of(TWO)
W = '"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}'
ON = '"on":{"dtype":"BOOL","shape":[2],"data_offsets":[8,10]}'
DATA = bytes.fromhex("0000803f000000400100")


def every_dtype():
    return {
        dtype: torch.from_numpy(np.arange(6 * kind.itemsize, dtype=np.uint8) % 2).view(kind).view(2, 3)
        for dtype, kind in DTYPES.items()
    }


def framed(header, data=DATA, length=None):
    text = header if isinstance(header, bytes) else header.encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def refused(frame, spec=SPEC):
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(frame, spec)
    return caught.value


def same(left, right):
    return list(left) == list(right) and all(
        left[n].dtype == right[n].dtype
        and left[n].shape == right[n].shape
        and raw_bytes(left[n]) == raw_bytes(right[n])
        for n in right
    )


# --- the layout -------------------------------------------------------------------------------------------------------


def test_golden_bytes():
    header = "{" + W + "," + ON + "}"
    padded = header + " " * (-len(header) % 8)
    assert joined(CODEC.encode(TWO)) == framed(padded)
    assert same(CODEC.decode(framed(padded), SPEC), TWO)


def test_encoding_copies_no_tensor():
    tensor = torch.arange(6.0)
    _, view = CODEC.encode({"w": tensor})
    assert np.frombuffer(view, np.float32).ctypes.data == tensor.data_ptr()


def test_keeps_the_order_where_the_library_sorts():
    tensors = {"z": torch.ones(1, dtype=torch.int8), "a": torch.ones(1, dtype=torch.float64), "m": torch.ones(1)}
    assert list(CODEC.decode(joined(CODEC.encode(tensors)), Spec.of(tensors))) == ["z", "a", "m"]
    assert "came where 'z' was due" in str(refused(library.save(tensors), Spec.of(tensors)))


def test_a_frame_with_other_spacing_or_metadata_is_the_same():
    header = json.dumps({"__metadata__": {"format": "pt"}, **json.loads("{" + W + "," + ON + "}")}, indent=2)
    assert same(CODEC.decode(framed(header), SPEC), TWO)


def test_no_tensor_can_be_called_metadata():
    with pytest.raises(SchemaMismatch, match="__metadata__"):
        CODEC.encode({"__metadata__": torch.ones(1)})


def test_into_tensors_that_are_not_contiguous():
    into = {"w": torch.zeros(1, 4)[:, ::2], "on": torch.zeros(4, dtype=torch.bool)[::2]}
    assert CODEC.decode(joined(CODEC.encode(TWO)), SPEC, into=into)["on"] is into["on"]
    assert same(into, TWO)


def test_into_parameters_that_need_a_gradient():
    into = {"w": torch.zeros(1, 2, requires_grad=True), "on": torch.zeros(2, dtype=torch.bool)}
    CODEC.decode(joined(CODEC.encode(TWO)), SPEC, into=into)
    assert into["w"].tolist() == [[1.0, 2.0]]


# --- the library reads ours, and we the library's ---------------------------------------------------------------------


def test_the_library_reads_our_frames():
    assert same({n: library.load(joined(CODEC.encode(every_dtype())))[n] for n in every_dtype()}, every_dtype())


def test_we_read_a_frame_of_the_library_in_its_order():
    tensors = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(3), "c": torch.tensor(True)}
    assert same(CODEC.decode(library.save(tensors, {"format": "pt"}), Spec.of(tensors)), tensors)


def test_the_library_reads_our_files(tmp_path):
    path = tmp_path / "model.safetensors"
    shared = torch.arange(4.0)
    save(path, every_dtype() | {"embed": shared, "head": shared})
    assert same({n: library.load_file(path)[n] for n in every_dtype()}, every_dtype())
    with safetensors.safe_open(path, "pt") as file:
        assert "head" not in list(file.keys())
        assert file.metadata() == {"format": "pt", "fedcore.aliases": '[[18, "head", "embed"]]'}


def test_we_read_the_files_of_the_library(tmp_path):
    path = tmp_path / "model.safetensors"
    library.save_file(every_dtype(), path, {"format": "pt", "anything": "else"})
    loaded = load(path)
    assert same({n: loaded[n] for n in every_dtype()}, every_dtype())


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_keep_order_ties_and_digest(tmp_path):
    shared, turned = torch.randn(3, 4), torch.randn(4, 3).t()
    model = {
        "z": shared,
        "names.ü": torch.tensor(1),
        "tied": shared,
        "t": turned,
        "again": turned,
        "none": torch.ones(0, 2),
    }
    save(tmp_path / "m", model)
    loaded = load(str(tmp_path / "m"))
    assert digest(loaded) == digest(model)
    assert loaded["tied"] is loaded["z"]
    assert loaded["again"] is loaded["t"]
    assert (tmp_path / "m").stat().st_size < 2 * 12 * 4 + 1000


def test_loaded_tensors_are_ones_own(tmp_path):
    save(tmp_path / "m", TWO)
    before = (tmp_path / "m").read_bytes()
    loaded = load(tmp_path / "m")
    loaded["w"].zero_()
    assert (tmp_path / "m").read_bytes() == before
    assert loaded["w"].untyped_storage().nbytes() == 8


def test_an_empty_payload_has_a_file(tmp_path):
    save(tmp_path / "m", {})
    assert load(tmp_path / "m") == {}


def test_saving_replaces_or_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "m"
    save(path, TWO)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save(path, {"w": torch.zeros(1)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]
    save(path, {"w": torch.zeros(1)})
    assert same(load(path), {"w": torch.zeros(1)})
    assert os.listdir(tmp_path) == ["m"]


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def watched(handle):
        kind = "directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        synced.append((kind, (tmp_path / "m").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", watched)
    save(tmp_path / "m", TWO)
    assert synced[0] == ("file", False)
    assert synced[1:] == ([("directory", True)] if os.name == "posix" else [])


def test_what_cannot_travel_is_not_saved(tmp_path):
    with pytest.raises(SchemaMismatch, match="'c'"):
        save(tmp_path / "m", {"c": torch.ones(1, dtype=torch.complex64)})
    with pytest.raises(SchemaMismatch, match="__metadata__"):
        save(tmp_path / "m", {"__metadata__": torch.ones(1)})
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "m"
    save(path, TWO)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DecodeError):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DecodeError, match="behind the last tensor"):
        load(path)


@pytest.mark.parametrize(
    "aliases",
    [
        "{",
        "7",
        "null",
        "[1]",
        "[[0]]",
        '[[0, "v"]]',
        '[[0, "v", "w", 1]]',
        '[[0, "v", "w"]]',  # before what it is tied to
        '[[9, "v", "w"]]',
        '[[-1, "v", "w"]]',
        '[[true, "v", "w"]]',
        '[[1.0, "v", "w"]]',
        '[[2, "v", "x"]]',
        '[[2, "v", ["w"]]]',
        '[[2, 5, "w"]]',
        '[[2, "", "w"]]',
        '[[2, "w", "w"]]',
        '[[2, "v", "w"], [3, "u", "v"]]',  # tied to what is tied
        "[" * 100_000,
    ],
)
def test_impossible_ties_are_refused(tmp_path, aliases):
    header = '{"__metadata__":' + json.dumps({"fedcore.aliases": aliases}) + "," + W + "," + ON + "}"
    (tmp_path / "m").write_bytes(framed(header))
    with pytest.raises(DecodeError):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [("", [2], "SCHEMA_MISMATCH"), ("a\\u0000", [2], "SCHEMA_MISMATCH"), ("a", [1 << 62], "SCHEMA_MISMATCH"),
     ("a", [1] * 17, "SCHEMA_MISMATCH"), ("a", [3], "LENGTH_MISMATCH"), ("a", [1 << 40], "LENGTH_MISMATCH")],
)  # fmt: skip
def test_files_with_impossible_tensors_are_refused(tmp_path, name, shape, reason):
    header = f'{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}}}'
    (tmp_path / "m").write_bytes(framed(header, bytes(8)))
    with pytest.raises(DecodeError) as caught:
        load(tmp_path / "m")
    assert caught.value.reason == reason


# --- S: what must be refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 100_000_001, 70_000])
def test_s1_header_lengths(length):
    refused(framed("{" + W + "," + ON + "}", length=length))
    assert "longer than any such shard needs" in str(refused(framed(b"{}" + b" " * 70_000)))


@pytest.mark.parametrize("size", range(8))
def test_s1_fewer_than_eight_bytes(size):
    assert "too few" in str(refused(bytes(size)))


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"nul", b" {}", b"\xef\xbb\xbf{}", b"{", b'{"\xff":1}', b'{"a":NaN}', b'{"w":1e400}', b"\x80\x04N.",
     b'{"a":' + b"[" * 60_000, b'{"a":' * 10_000, b"{}{}", b'{"a":' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_s2_headers_that_are_no_json_object(header):
    assert refused(framed(header)).reason == "MALFORMED"


@pytest.mark.parametrize(
    ("offsets", "data"),
    [
        ([0, 8, 7, 9], DATA),  # overlap
        ([0, 8, 9, 11], DATA + b"\0"),  # hole
        ([0, 8, 8, 10], DATA + b"\0"),  # trailing
        ([0, 8, 8, 10], DATA[:-1]),  # short
        ([0, 8, 10, 8], DATA),  # reversed
        ([2, 10, 0, 2], DATA),  # another order than the header's
        ([8, 16, 16, 18], bytes(8) + DATA),  # does not start at 0
        ([0, 8, 8, 2**70], DATA),
        ([-8, 0, 0, 2], DATA),
    ],
)
def test_s3_offsets(offsets, data):
    a, b, c, d = offsets
    header = "{" + W.replace("[0,8]", f"[{a},{b}]") + "," + ON.replace("[8,10]", f"[{c},{d}]") + "}"
    assert refused(framed(header, data)).reason == "MALFORMED"


@pytest.mark.parametrize(
    "offsets", ["[0]", "[0,8,8]", "8", "null", '"08"', "[0.0,8]", "[false,8]", "[0,8.0]", '["0",8]', "{}"]
)
def test_s3_offsets_that_are_not_two_counts(offsets):
    assert refused(framed("{" + W.replace("[0,8]", offsets) + "," + ON + "}")).reason == "MALFORMED"


@pytest.mark.parametrize("shape", ["null", "2", '"12"', "[true,2]", "[1.0,2]", "[1,-2]", '["1",2]', "[[1],2]", "{}"])
def test_s3_shapes_that_are_not_counts(shape):
    assert refused(framed("{" + W.replace("[1,2]", shape) + "," + ON + "}")).reason == "MALFORMED"


@pytest.mark.parametrize("shape", ["[2,1]", "[2]", "[]", "[1,2,1]", "[8589934592,8589934592]", "[1,3]"])
def test_s3_shapes_of_another_tensor(shape):
    error = refused(framed("{" + W.replace("[1,2]", shape) + "," + ON + "}"))
    assert error.reason == "SCHEMA_MISMATCH"
    assert "'w'" in str(error)


def test_s3_a_tensor_whose_length_is_not_its_shape():
    error = refused(framed("{" + W.replace("[0,8]", "[0,4]") + "," + ON.replace("[8,10]", "[4,6]") + "}", DATA[:6]))
    assert error.reason == "LENGTH_MISMATCH"
    assert "'w'" in str(error)


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("I32", "SCHEMA_MISMATCH"),
        ("F16", "SCHEMA_MISMATCH"),
        ("C64", "BAD_DTYPE"),
        ("f32", "BAD_DTYPE"),
        ("float32", "BAD_DTYPE"),
        ("", "BAD_DTYPE"),
    ],
)
def test_s3_other_dtypes(dtype, reason):
    assert refused(framed("{" + W.replace("F32", dtype) + "," + ON + "}")).reason == reason


@pytest.mark.parametrize("dtype", ["null", "1", "[]", "{}"])
def test_s3_dtypes_that_are_no_text(dtype):
    assert refused(framed("{" + W.replace('"F32"', dtype) + "," + ON + "}")).reason == "BAD_DTYPE"


@pytest.mark.parametrize("byte", [2, 3, 128, 255])
def test_bools_are_0_or_1(byte):
    error = refused(framed("{" + W + "," + ON + "}", DATA[:-1] + bytes([byte])))
    assert "'on' holds a bool" in str(error)


def test_s4_keys_that_appear_twice():
    assert "twice" in str(refused(framed("{" + W + "," + W + "," + ON + "}")))
    assert "twice" in str(refused(framed("{" + W.replace("}", ',"dtype":"F32"}') + "," + ON + "}")))


@pytest.mark.parametrize("entry", ['"w":{}', '"w":null', '"w":[]', '"w":"F32"', W.replace("}", ',"extra":1}'),
                                   W.replace('"shape":[1,2],', "")])  # fmt: skip
def test_s6_entries_with_other_fields(entry):
    assert refused(framed("{" + entry + "," + ON + "}")).reason == "MALFORMED"


@pytest.mark.parametrize(
    "metadata", ["null", "[]", '"x"', '{"a":1}', '{"a":null}', '{"a":{"b":"c"}}', '{"a":"b","a":"c"}']
)
def test_s7_metadata_that_is_not_text_to_text(metadata):
    assert refused(framed('{"__metadata__":' + metadata + "," + W + "," + ON + "}")).reason == "MALFORMED"


def test_s7_metadata_without_end():
    metadata = json.dumps({"a": "x" * 70_000})
    assert "longer than" in str(refused(framed('{"__metadata__":' + metadata + "," + W + "," + ON + "}")))


@pytest.mark.parametrize(
    "name", ["", "../../x", "__proto__", "__class__", "n" * 2000, "W", "w ", "w\\u0000", "\\ud800"]
)
def test_s9_names_of_other_tensors(name):
    error = refused(framed("{" + W.replace('"w"', f'"{name}"') + "," + ON + "}"))
    assert error.reason == "SCHEMA_MISMATCH"
    assert "'w' was due" in str(error)
    assert len(str(error)) < 300


def test_s9_missing_extra_and_disordered_tensors():
    header = "{" + W + "," + ON + "}"
    more = Spec((*SPEC.infos, TensorInfo("v", "float32", (0,))))
    assert "tensor 'v' is missing" in str(refused(framed(header), more))
    assert "tensor 'on' is not part of the shard" in str(refused(framed(header), Spec(SPEC.infos[:1])))
    assert "'w' came where 'on' was due" in str(refused(framed(header), Spec(SPEC.infos[::-1])))
    assert {refused(framed(header), s).reason for s in (more, Spec(SPEC.infos[:1]))} == {"SCHEMA_MISMATCH"}


@pytest.mark.parametrize("tail", [b"PK\x05\x06" + bytes(18), b"\x80\x04N.", b"\0", b" "])
def test_s10_polyglots(tail):
    assert "behind the last tensor" in str(refused(framed("{" + W + "," + ON + "}") + tail))


def test_a_shard_whose_tensors_share_memory_has_them_all():
    one = torch.ones(3)
    spec = Spec((TensorInfo("a", "float32", (3,)), TensorInfo("b", "float32", (3,))))
    (shard,) = shards(spec)
    assert same(CODEC.decode(joined(CODEC.encode(shard.take({"a": one, "b": one}))), spec), {"a": one, "b": one})
