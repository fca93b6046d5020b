"""Payloads: described, checked, cut and hashed, whatever dtypes, ties and layouts they have."""

import math

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import ConfigError, SchemaMismatch
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Spec, copy_parameters, digest, itemsize
from fedcore.shards import shards
from fedcore.views import contiguous, raw_bytes

FAST = settings(max_examples=60, deadline=None, database=None)


def model():
    weight = torch.arange(6.0).view(2, 3)
    return {"w": weight, "s": torch.tensor(1.5), "e": torch.empty(0, 3), "n": torch.tensor(3), "tied": weight}


def info(name="w", dtype="float32", shape=(2, 3), alias_of=""):
    return TensorInfo(name, dtype, shape, alias_of)


def some(dtype, count=4):
    return torch.tensor([0, 1, 3, 2][:count]).to(DTYPES[dtype])


class TestOf:
    def test_order_shapes_and_ties(self):
        spec = Spec.of(model())
        assert spec.infos == (
            info(), info("s", shape=()), info("e", shape=(0, 3)), info("n", "int64", ()), info("tied", alias_of="w"),
        )  # fmt: skip
        assert [entry.name for entry in spec] == ["w", "s", "e", "n"]
        assert len(spec) == 4
        assert spec.nbytes == 24 + 4 + 0 + 8

    def test_c13_a_view_of_another_shape_or_place_is_no_tie(self):
        whole = torch.arange(8.0)
        spec = Spec.of({"a": whole, "b": whole[:4], "c": whole[4:], "d": whole.view(2, 4), "e": whole.int()})
        assert [i.alias_of for i in spec.infos] == [""] * 5

    def test_c13_equal_values_in_other_memory_are_no_tie(self):
        assert [i.alias_of for i in Spec.of({"a": torch.ones(2), "b": torch.ones(2)}).infos] == ["", ""]

    def test_c13_three_names_of_one_storage_all_point_at_the_first(self):
        one = torch.ones(2)
        assert [i.alias_of for i in Spec.of({"a": one, "b": one, "c": one.view(2)}).infos] == ["", "a", "a"]

    def test_c14_empty_tensors_are_never_tied(self):
        empty = torch.empty(0)
        assert [i.alias_of for i in Spec.of({"a": empty, "b": empty}).infos] == ["", ""]

    @pytest.mark.parametrize("name", DTYPES)
    def test_every_dtype_has_a_name_and_a_size(self, name):
        (entry,) = Spec.of({"w": some(name)}).infos
        assert entry.dtype == name
        bits = int("".join(filter(str.isdigit, name.split("_")[0])) or 8)
        assert itemsize(name) == bits // 8

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: torch.ones(2, 2).to_sparse(), id="sparse"),
            pytest.param(lambda: torch.ones(2, 2).to_sparse_csr(), id="csr"),
            pytest.param(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), id="quantised"),
            pytest.param(lambda: torch.ones(2, device="meta"), id="meta"),
            pytest.param(lambda: torch.ones(2, dtype=torch.complex64), id="complex"),
            pytest.param(lambda: torch.ones(2, dtype=torch.complex64).conj(), id="conjugate"),
            pytest.param(lambda: [1.0, 2.0], id="list"),
            pytest.param(lambda: np.ones(2), id="numpy"),
            pytest.param(lambda: None, id="none"),
        ],
    )
    def test_c3_what_does_not_travel_is_refused_by_name(self, make):
        with pytest.raises(SchemaMismatch, match=r"'layer\.w'"):
            Spec.of({"fine": torch.ones(1), "layer.w": make()})

    def test_a_name_that_is_not_text_is_refused(self):
        with pytest.raises(SchemaMismatch):
            Spec.of({3: torch.ones(2)})


class TestChecked:
    def test_what_a_spec_says_is_taken_back(self):
        infos = Spec.of(model()).infos
        assert Spec.checked(list(infos)) == Spec(infos)

    @pytest.mark.parametrize("name", ["", "a" * 1025, "a\nb", "a\0", "\x1b[2J", "a\u2028b", "\ud800"], ids=ascii)
    def test_w14_names_are_printable_and_short(self, name):
        with pytest.raises(SchemaMismatch, match="tensor name") as caught:
            Spec.checked([info(name)])
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize("name", ["../../x", "__proto__", "größe", "a b"])
    def test_s9_odd_names_are_only_names(self, name):
        assert Spec.checked([info(name)]).infos[0].name == name

    def test_u9_a_name_comes_once(self):
        with pytest.raises(SchemaMismatch, match="'w' appears twice"):
            Spec.checked([info(), info()])

    @pytest.mark.parametrize("dtype", ["object", "S4", "i2,i2", ">f4", "M8[s]", "", "f" * 10240, "complex64", "torch.float32"])
    def test_w12_u13_a_dtype_is_one_of_a_closed_list(self, dtype):
        with pytest.raises(SchemaMismatch, match="'w': unknown dtype") as caught:
            Spec.checked([info(dtype=dtype)])
        assert caught.value.reason == "BAD_DTYPE"
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize("shape", [(-1,), (2, -3), (1,) * 17, (1 << 48,), (1 << 33, 1 << 33), (1 << 63,)], ids=str)
    def test_w12_a_shape_is_possible(self, shape):
        with pytest.raises(SchemaMismatch, match="'w': impossible shape"):
            Spec.checked([info(shape=shape)])

    @pytest.mark.parametrize("shape", [(0, 1 << 63), (0, (1 << 64) - 1), (0, 1 << 62, 4)], ids=str)
    def test_w12_an_empty_tensor_of_impossible_dimensions_is_refused(self, shape):
        with pytest.raises(SchemaMismatch, match="impossible shape"):
            Spec.checked([info(shape=shape)]).blank()

    @pytest.mark.parametrize(
        "infos",
        [
            [info(alias_of="w")],
            [info("b", alias_of="w"), info()],
            [info(), info("b", "float64", alias_of="w")],
            [info(), info("b", shape=(3, 2), alias_of="w")],
            [info(), info("b", alias_of="w"), info("c", alias_of="b")],
            [info(), info("b", alias_of="nobody")],
        ],
    )
    def test_a_tie_points_at_an_earlier_twin(self, infos):
        with pytest.raises(SchemaMismatch, match="no earlier twin"):
            Spec.checked(infos)


class TestCheck:
    def test_any_order_is_fine(self):
        parameters = model()
        Spec.of(parameters).check(dict(reversed(parameters.items())))

    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            (lambda p: p.pop("s"), "'s' is missing"),
            (lambda p: p.update(x=torch.ones(1)), "'x' is not part of the model"),
            (lambda p: p.update(W=p.pop("w")), "'w' is missing"),
            (lambda p: p.update(w=torch.ones(3, 2)), r"'w' has shape \(3, 2\) instead of \(2, 3\)"),
            (lambda p: p.update(w=torch.ones(1)), r"'w' has shape \(1,\)"),
            (lambda p: p.update(w=torch.ones(1, 2, 3)), r"'w' has shape \(1, 2, 3\)"),
            (lambda p: p.update(s=torch.ones(1)), r"'s' has shape \(1,\) instead of \(\)"),
            (lambda p: p.update(w=p["w"].double()), "'w' has dtype float64 instead of float32"),
            (lambda p: p.update(w=p["w"].half()), "'w' has dtype float16"),
            (lambda p: p.update(n=p["n"].int()), "'n' has dtype int32 instead of int64"),
            (lambda p: p.update(tied=torch.zeros(2, 3)), "'tied' is tied to 'w' but differs"),
        ],
    )
    def test_c6_c7_c8_the_first_difference_is_named(self, spoil, text):
        spec, parameters = Spec.of(model()), model()
        spoil(parameters)
        with pytest.raises(SchemaMismatch, match=text):
            spec.check(parameters)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_tie_that_was_copied_is_still_a_tie(self, dtype):
        Spec((info("a", dtype, (4,)), info("b", dtype, (4,), "a"))).check({"a": some(dtype), "b": some(dtype)})

    def test_a_copied_tie_that_holds_nan_is_no_schema_mismatch(self):
        spec = Spec((info("a", shape=(1,)), info("b", shape=(1,), alias_of="a")))
        spec.check({"a": torch.tensor([math.nan]), "b": torch.tensor([math.nan])})


class TestExpect:
    def test_itself(self):
        Spec.of(model()).expect(Spec.of(model()))

    @pytest.mark.parametrize(
        ("theirs", "text"),
        [
            ([info()], "'b' is missing"),
            ([info(), info("b"), info("c")], "'c' is not part"),
            ([info(shape=(3, 2)), info("b")], r"'w' is float32\[3, 2\] instead of float32\[2, 3\]"),
            ([info(dtype="float16"), info("b")], r"'w' is float16\[2, 3\]"),
            ([info(), info("b", alias_of="w")], "'b' is .* tied to 'w' instead of"),
            ([info("b"), info()], "another order"),
        ],
    )
    def test_the_first_difference_is_named(self, theirs, text):
        with pytest.raises(SchemaMismatch, match=text):
            Spec((info(), info("b"))).expect(Spec(tuple(theirs)))


class TestCopy:
    def test_c18_a_copy_shares_no_memory(self):
        parameters = model()
        copied = copy_parameters(parameters)
        parameters["w"].fill_(9)
        parameters["s"].fill_(9)
        assert copied["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        assert copied["s"].item() == 1.5

    def test_c13_ties_are_kept(self):
        copied = copy_parameters(model())
        assert copied["tied"] is copied["w"]
        assert list(copied) == list(model())

    def test_c12_a_view_is_copied_without_the_rest_of_its_storage(self):
        copied = copy_parameters({"w": torch.zeros(10_000)[:10]})
        assert copied["w"].untyped_storage().nbytes() == 40

    @pytest.mark.parametrize(
        "view",
        [lambda t: t.t(), lambda t: t[:, 1:3], lambda t: t[::2], lambda t: t[:1].expand(4, 5), lambda t: t.requires_grad_()],
    )
    def test_c14_any_layout(self, view):
        tensor = view(torch.arange(20.0).view(4, 5))
        copied = copy_parameters({"w": tensor})["w"]
        assert copied.tolist() == tensor.tolist()
        assert copied.is_contiguous()
        assert not copied.requires_grad

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype(self, dtype):
        tensor = some(dtype)
        copied = copy_parameters({"w": tensor})["w"]
        assert copied.dtype == tensor.dtype
        assert bytes(raw_bytes(copied)) == bytes(raw_bytes(tensor))

    def test_in_the_order_of_the_spec(self):
        parameters = model()
        shuffled = dict(reversed(parameters.items()))
        assert list(Spec.of(parameters).copy(shuffled)) == list(parameters)

    def test_a_copy_is_checked(self):
        with pytest.raises(SchemaMismatch, match="'w' is missing"):
            Spec.of(model()).copy({})


class TestBlank:
    def test_looks_like_the_spec_and_is_tied(self):
        spec = Spec.of(model())
        blank = spec.blank()
        assert Spec.of(blank) == spec
        assert blank["tied"] is blank["w"]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype_may_follow_an_odd_number_of_bytes(self, dtype):
        spec = Spec((info("odd", "uint8", (3,)), info("w", dtype, (2, 2)), info("z", dtype, ())))
        blank = spec.blank()
        spec.check(blank)
        blank["odd"].fill_(7)
        blank["w"].copy_(some(dtype).view(2, 2))
        blank["z"].copy_(some(dtype)[1])
        assert blank["odd"].tolist() == [7, 7, 7]
        assert blank["w"].to(torch.float64).flatten().tolist() == some(dtype).to(torch.float64).tolist()

    def test_nothing_at_all(self):
        assert Spec(()).blank() == {}


@st.composite
def payloads(draw):
    """A payload of a few random tensors, and a size to cut it at."""
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    parameters = {}
    for index in range(draw(st.integers(0, 5))):
        dtype = draw(st.sampled_from(["float32", "float64", "bfloat16", "int8", "bool", "float8_e5m2"]))
        shape = draw(st.lists(st.integers(0, 90), max_size=2))
        count = math.prod(shape) * itemsize(dtype)
        data = generator.integers(0, 2 if dtype == "bool" else 256, count, dtype=np.uint8)
        flat = torch.from_numpy(data).view(DTYPES[dtype]) if count else torch.empty(0, dtype=DTYPES[dtype])
        parameters[f"t{index}"] = flat.view(shape)
    return parameters, draw(st.integers(4096, 20_000))


class TestShards:
    @FAST
    @given(payloads())
    def test_every_byte_is_in_exactly_one_shard_in_order(self, payload):
        parameters, size = payload
        spec = Spec.of(parameters)
        pieces = [b"".join(map(bytes, map(raw_bytes, s.take(parameters).values()))) for s in shards(spec, size)]
        assert b"".join(pieces) == b"".join(bytes(raw_bytes(t)) for t in parameters.values())
        assert [len(piece) for piece in pieces] == [shard.spec.nbytes for shard in shards(spec, size)]
        assert all(len(piece) <= size for piece in pieces)
        assert len(pieces) <= 1 + len(parameters) + 2 * spec.nbytes // size

    @FAST
    @given(payloads())
    def test_writing_into_shards_writes_the_payload(self, payload):
        parameters, size = payload
        spec = Spec.of(parameters)
        blank = spec.blank()
        for shard in shards(spec, size):
            for name, tensor in shard.take(blank).items():
                tensor.copy_(shard.take(parameters)[name])
        assert digest(blank, spec) == digest(parameters, spec)

    def test_slices_are_called_after_their_first_element(self):
        cut = shards(Spec((info("w", "float32", (3, 1000)),)), 4096)
        assert [shard.spec.infos for shard in cut] == [
            (info("w@0", shape=(1024,)),), (info("w@1024", shape=(1024,)),), (info("w@2048", shape=(952,)),),
        ]  # fmt: skip

    def test_a_tied_tensor_is_in_one_shard_alone(self):
        (shard,) = shards(Spec.of(model()))
        assert [entry.name for entry in shard.spec.infos] == ["w", "s", "e", "n"]

    def test_w11_nothing_has_one_shard(self):
        assert [len(shard.spec) for shard in shards(Spec(()))] == [0]

    def test_taking_copies_nothing(self):
        parameters = {"w": torch.zeros(3000)}
        for shard in shards(Spec.of(parameters), 4096):
            next(iter(shard.take(parameters).values())).fill_(1)
        assert parameters["w"].sum() == 3000

    def test_too_small_to_be_useful(self):
        with pytest.raises(ConfigError, match="4096"):
            shards(Spec(()), 4095)


class TestDigest:
    GOLDEN = "91af4c2be59a6f2b10722d8786925b01e4c1acd871dee0f1a1b0a3483ba25fc3"

    def test_golden(self):
        assert digest(model()) == self.GOLDEN

    def test_by_the_definition(self):
        expected = blake3()
        expected.update(b"[('w', 'float32', (2, 3), ''), ('s', 'float32', (), ''), ('e', 'float32', (0, 3), ''), ")
        expected.update(b"('n', 'int64', (), ''), ('tied', 'float32', (2, 3), 'w')]")
        expected.update(np.arange(6, dtype="<f4").tobytes())
        expected.update(np.array(1.5, "<f4").tobytes())
        expected.update(np.array(3, "<i8").tobytes())
        assert digest(model()) == expected.hexdigest()

    @pytest.mark.parametrize(
        "layout",
        [
            pytest.param(lambda t: t.t().contiguous().t(), id="column major"),
            pytest.param(lambda t: torch.cat([t, t])[2:4], id="offset"),
            pytest.param(lambda t: torch.stack([t, t], -1)[..., 0], id="strided"),
            pytest.param(lambda t: t.clone().requires_grad_(), id="with gradient"),
            pytest.param(lambda t: torch.nn.Parameter(t), id="parameter"),
            pytest.param(lambda t: torch.complex(t, -t).conj().imag, id="negative bit"),
        ],
    )
    def test_memory_layout_does_not_matter(self, layout):
        plain = torch.arange(6.0).view(2, 3)
        laid = layout(plain)
        assert laid.tolist() == plain.tolist()
        assert digest({"w": laid}) == digest({"w": plain})

    def test_every_bit_matters(self):
        data = np.arange(1, 9, dtype=np.uint8)
        seen = {digest({"w": torch.from_numpy(data.copy()).view(torch.float32)})}
        for bit in range(64):
            flipped = data.copy()
            flipped[bit // 8] ^= 1 << bit % 8
            seen.add(digest({"w": torch.from_numpy(flipped).view(torch.float32)}))
        assert len(seen) == 65

    def test_u18_the_sign_of_zero_matters(self):
        assert digest({"w": torch.tensor(0.0)}) != digest({"w": torch.tensor(-0.0)})

    def test_names_dtypes_shapes_order_and_ties_matter(self):
        zeros = torch.zeros(2, 2)
        seen = [
            digest({"a": zeros, "b": zeros.clone()}),
            digest({"b": zeros, "a": zeros.clone()}),
            digest({"a": zeros, "c": zeros.clone()}),
            digest({"a": zeros, "b": zeros}),
            digest({"a": zeros, "b": zeros.view(4).clone()}),
            digest({"a": zeros, "b": zeros.int()}),
            digest({"a": zeros, "b": zeros.clone().bfloat16().view(2, 2)}),
            digest({"a": zeros}),
            digest({"a": zeros, "b": zeros.clone(), "c": torch.empty(0)}),
        ]
        assert len(set(seen)) == len(seen)

    def test_w11_where_one_tensor_ends_and_the_next_begins_matters(self):
        a, b = torch.tensor([1.0]), torch.tensor([2.0, 3.0])
        c, d = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
        assert digest({"a": a, "b": b}) != digest({"a": c, "b": d})

    def test_with_a_spec_the_order_of_the_dict_does_not_matter(self):
        parameters = model()
        assert digest(dict(reversed(parameters.items())), Spec.of(parameters)) == self.GOLDEN

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype(self, dtype):
        expected = blake3(f"[('w', '{dtype}', (4,), '')]".encode())
        expected.update(some(dtype).view(torch.uint8).numpy().tobytes())
        assert digest({"w": some(dtype)}) == expected.hexdigest()


class TestRawBytes:
    def test_a_contiguous_tensor_is_not_copied(self):
        tensor = torch.zeros(4)
        view = raw_bytes(tensor)
        tensor.fill_(1)
        assert bytes(view) == np.ones(4, "<f4").tobytes()

    def test_contiguous_copies_only_what_must_be(self):
        flat, turned = torch.zeros(4), torch.zeros(2, 3).t()
        made = contiguous({"flat": flat, "turned": turned})
        assert made["flat"].data_ptr() == flat.data_ptr()
        assert made["turned"].is_contiguous()
