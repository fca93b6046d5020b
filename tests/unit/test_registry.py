"""Names to parts: the shelves, third parties, and what is accepted from strangers."""

import importlib
import sys

import pytest

from fedcore import FedAvg, Grpc, Memory, registry
from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.torch import Torch
from fedcore.errors import CodecRefused, ConfigError, MissingDependency, UnknownName


@pytest.fixture
def own_parts(monkeypatch):
    """Let a test register parts that other tests do not see."""
    monkeypatch.setattr(registry, "_registered", {})


@pytest.mark.parametrize(
    ("shelf", "name", "part"),
    [
        ("codecs", "safetensors", Safetensors), ("codecs", "lz4", Lz4), ("codecs", "torch", Torch),
        ("transports", "grpc", Grpc), ("transports", "memory", Memory), ("strategies", "fedavg", FedAvg),
    ],
)  # fmt: skip
def test_the_name_of_the_file_is_the_name_of_the_part(shelf, name, part):
    assert registry.find(shelf, name) is part
    assert name in registry.available(shelf)


def test_names_are_sorted():
    assert registry.available("codecs") == sorted(registry.available("codecs"))
    assert {"safetensors", "torch", "msgpack", "protobuf", "lz4", "zstd"} <= set(registry.available("codecs"))
    assert {"bf16", "fp16", "int8", "int4", "topk", "delta"} <= set(registry.available("codecs"))


@pytest.mark.parametrize(
    ("shelf", "name", "near"),
    [("codecs", "safetensor", "safetensors"), ("codecs", "lz", "lz4"), ("transports", "rgpc", "grpc"),
     ("transports", "memroy", "memory"), ("strategies", "FedAvg", "fedavg")],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest(shelf, name, near):
    with pytest.raises(UnknownName, match=f"{shelf} has no {name!r}.*did you mean '{near}'") as caught:
        registry.find(shelf, name)
    for known in registry.available(shelf):
        assert known in str(caught.value)


@pytest.mark.parametrize("name", ["", "xyzzy", "../codec", "os.path", "__init__", "a" * 5000])
def test_nothing_near_is_claimed_for_nonsense(name):
    with pytest.raises(UnknownName) as caught:
        registry.find("codecs", name)
    assert "did you mean" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_shelf_is_described():
    found = {part.name: part for part in registry.survey("codecs")}
    assert set(found) == set(registry.available("codecs"))
    assert all(part.summary and not part.problem for part in found.values())


class TestCodec:
    @pytest.mark.parametrize(
        ("name", "built"),
        [("safetensors", Safetensors()), ("safetensors+lz4", Lz4(Safetensors())), ("msgpack+lz4", Lz4(Msgpack())),
         ("torch+lz4+lz4", Lz4(Lz4(Torch())))],
    )  # fmt: skip
    def test_a_name_is_built_part_by_part(self, name, built):
        assert registry.codec(name) == built
        assert registry.codec(name).name == name

    def test_a_codec_is_returned_as_it_is(self):
        codec = Lz4(Torch())
        assert registry.codec(codec) is codec

    def test_a_wrapper_cannot_stand_first(self):
        with pytest.raises(ConfigError, match=r"'lz4' wraps a codec; write 'safetensors\+lz4'"):
            registry.codec("lz4")
        with pytest.raises(ConfigError, match="'lz4' wraps a codec"):
            registry.codec("lz4+safetensors")

    def test_a_codec_can_only_stand_first(self):
        with pytest.raises(ConfigError, match="'msgpack' wraps nothing"):
            registry.codec("safetensors+msgpack")

    @pytest.mark.parametrize("name", ["", "+", "safetensors+", "+lz4", "safetensors lz4", "zip", "safetensors+zip", None, 5])
    def test_what_is_no_name(self, name):
        with pytest.raises(UnknownName):
            registry.codec(name)


class TestAccepts:
    def test_w10_a_name_is_judged_part_by_part(self):
        assert registry.accepted_codec("safetensors+lz4", ["lz4", "safetensors"]) == Lz4(Safetensors())
        with pytest.raises(CodecRefused, match="'lz4' is not among the accepted"):
            registry.accepted_codec("safetensors+lz4", ["safetensors"])
        with pytest.raises(CodecRefused, match="'torch' is not among"):
            registry.accepted_codec("torch+lz4", ["lz4", "safetensors"])

    def test_r10_what_is_not_accepted_is_not_even_looked_up(self):
        before = set(sys.modules)
        with pytest.raises(CodecRefused):
            registry.accepted_codec("antigravity", ["safetensors"])
        assert "fedcore.codecs.antigravity" not in set(sys.modules) - before

    @pytest.mark.parametrize("name", ["", "safetensors\n", "lz4", "lz4+safetensors", "safetensors+" * 50, "x" * 10**6])
    def test_r10_names_that_cannot_be_used_are_refused_shortly(self, name):
        with pytest.raises(CodecRefused) as caught:
            registry.accepted_codec(name, ["safetensors", "lz4"])
        assert caught.value.reason == "NO_COMMON_CODEC"
        assert len(str(caught.value)) < 400

    def test_w1_torch_is_never_accepted_unless_it_is_named(self):
        assert "torch" not in registry.default_accepts(None)
        assert "torch" not in registry.default_accepts(Lz4(Safetensors()))
        assert registry.default_accepts(None) == registry.default_accepts(Safetensors())
        assert {"safetensors", "msgpack", "protobuf", "lz4"} <= set(registry.default_accepts(None))

    def test_ones_own_codec_is_accepted(self):
        assert "torch" in registry.default_accepts(Lz4(Torch()))
        assert registry.check_accepts([], Lz4(Torch())) == ("lz4", "torch")

    def test_an_explicit_list_is_all_there_is(self):
        assert registry.check_accepts(["msgpack+lz4", "msgpack"], None) == ("lz4", "msgpack")
        assert registry.check_accepts(["msgpack"], Safetensors()) == ("msgpack", "safetensors")

    def test_an_explicit_list_is_checked(self):
        with pytest.raises(UnknownName, match="safetensor"):
            registry.check_accepts(["safetensor"], None)
        with pytest.raises(ConfigError, match="list of names, not the string"):
            registry.check_accepts("safetensors", None)


class TestTransport:
    def test_by_name_or_as_it_is(self):
        assert isinstance(registry.transport("memory"), Memory)
        given = Memory()
        assert registry.transport(given) is given

    def test_unknown(self):
        with pytest.raises(UnknownName, match="did you mean 'grpc'"):
            registry.transport("gprc")


@pytest.mark.usefixtures("own_parts")
class TestRegister:
    def test_what_is_registered_is_found(self):
        class Mine(Safetensors):
            part = "mine"

        registry.register("codecs", "mine", Mine)
        registry.register("codecs", "mine", Mine)
        assert registry.find("codecs", "mine") is Mine
        assert "mine" in registry.available("codecs")
        assert registry.codec("mine+lz4").name == "mine+lz4"

    def test_a_stranger_part_is_not_accepted_by_default(self):
        registry.register("codecs", "mine", Safetensors)
        assert "mine" not in registry.default_accepts(None)

    def test_a_name_is_taken_once(self):
        registry.register("codecs", "mine", Safetensors)
        with pytest.raises(ConfigError, match="already has a 'mine'"):
            registry.register("codecs", "mine", Torch)
        assert registry.find("codecs", "mine") is Safetensors

    def test_a_built_in_name_is_taken(self):
        with pytest.raises(ConfigError, match="already has a 'safetensors'"):
            registry.register("codecs", "safetensors", Torch)

    @pytest.mark.parametrize("name", ["", "Mine", "my-codec", "9lives", "a+b", "a" * 33, "größe", "../x"])
    def test_names_are_plain(self, name):
        with pytest.raises(ConfigError, match="is not a name"):
            registry.register("codecs", name, Safetensors)

    def test_shelves_are_known(self):
        with pytest.raises(UnknownName, match="no shelf 'codec'"):
            registry.register("codec", "mine", Safetensors)


class TestEntryPoints:
    @pytest.fixture
    def install(self, tmp_path, monkeypatch):
        def install(entries, **modules):
            info = tmp_path / "stranger-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(entries)
            for name, text in modules.items():
                (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.syspath_prepend(tmp_path)
            importlib.invalidate_caches()

        before = set(sys.modules)
        yield install
        for name in set(sys.modules) - before:
            del sys.modules[name]

    def test_a_package_adds_a_part(self, install):
        text = "from fedcore.codecs.safetensors import Safetensors\n"
        text += "class Far(Safetensors):\n    'Far away.'\n    part = 'far'\n"
        install("[fedcore.codecs]\nfar = stranger_codec:Far\n", stranger_codec=text)
        assert "stranger_codec" not in sys.modules
        assert "far" in registry.available("codecs")
        assert registry.codec("far+lz4").name == "far+lz4"
        assert "far" not in registry.default_accepts(None)
        assert {part.name: part.summary for part in registry.survey("codecs")}["far"] == "Far away."

    def test_a_package_that_cannot_be_imported_says_what_is_missing(self, install):
        install("[fedcore.codecs]\nbroken = stranger_broken:Broken\n", stranger_broken="import no_such_library\n")
        with pytest.raises(MissingDependency, match=r"'broken' .*stranger_broken.*no_such_library"):
            registry.find("codecs", "broken")
        problems = {part.name: part.problem for part in registry.survey("codecs")}
        assert "no_such_library" in problems["broken"]

    def test_a_package_cannot_replace_a_built_in_part(self, install):
        install("[fedcore.codecs]\nsafetensors = stranger_evil:Evil\n", stranger_evil="class Evil: pass\n")
        assert registry.find("codecs", "safetensors") is Safetensors
        assert registry.available("codecs").count("safetensors") == 1
