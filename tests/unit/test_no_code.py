"""Nothing in the package can run what it was sent: no way to code is named anywhere but in the places that are listed here."""

import ast
from pathlib import Path

import pytest
import torch

from fedcore import Grpc, Server, ServerConfig, registry
from fedcore.codecs.torch import Torch
from fedcore.errors import CodecRefused
from fedcore.link import Link
from fedcore.messages import Assigned, Finished, Kind, Manifest, Pull, Register, Registered, Session, Submit, Task
from fedcore.parameters import Spec
from fedcore.strategies.fedavg import FedAvg
from fedcore.transport import Connection, Reply

ROOT = Path(__file__).parents[2]
FOLDERS = ("fedcore", "codecs", "transports", "protos")

MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "marshal", "shelve", "joblib", "dbm", "yaml",
    "jsonpickle", "msgpack_numpy", "multiprocessing", "torch.multiprocessing", "torch.package", "torch.hub", "torch.jit",
    "runpy", "code", "codeop", "ctypes", "cffi", "imp", "xmlrpc", "concurrent.futures.process", "logging.config",
}  # fmt: skip
"""Modules that unpickle, load or compile."""

NAMES = {"eval", "exec", "compile", "__import__", "__builtins__", "breakpoint"}
"""Functions that run text, wherever they are named."""

ENDINGS = {
    "torch.load", "torch.jit", "torch.hub", "torch.package", "torch.multiprocessing", "torch.serialization", "np.load",
    "numpy.load", "np.fromregex", "yaml.load", "builtins.eval", "builtins.exec", "builtins.compile", "importlib.reload",
    "import_module", "exec_module", "load_module", "spec_from_file_location", "SourceFileLoader", "ProcessPoolExecutor",
    "os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "enable_load_extension", "load_extension", "point.load",
    "find_class", "allow_pickle", "Unpickler", "json_format",
}  # fmt: skip
"""Attributes, and names that are imported."""

ALLOWED = {
    ("codecs/torch.py", "torch.load"): "with weights_only=True, and only where an operator names the codec: see below",
    ("fedcore/__init__.py", "import_module"): "a module of fedcore, from a table in the file",
    ("fedcore/registry.py", "import_module"): "a shelf's own module, found among the files of the shelf: see below",
    ("fedcore/registry.py", "point.load"): "a part that an installed package declares; the name is checked first",
    ("fedcore/state_commands.py", "spec_from_file_location"): "the operator's own file, named on the command line",
    ("fedcore/state_commands.py", "exec_module"): "the same",
}
"""Where one is named all the same, and why that is no way in for bytes of a network or a state directory."""


def sources():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def found(tree):
    """Yield each way to code that a module names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if banned(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if banned(module):
                yield module
            for alias in node.names:
                if alias.name in NAMES | ENDINGS:
                    yield alias.name
                elif banned(f"{module}.{alias.name}") or f"{module}.{alias.name}" in ENDINGS:
                    yield f"{module}.{alias.name}"
        elif isinstance(node, ast.Name) and (node.id in NAMES or node.id in ENDINGS):
            yield node.id
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            yield from (end for end in ENDINGS if text == end or text.endswith(f".{end}"))
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            yield node.arg
        elif isinstance(node, ast.Constant) and node.value in ("__import__", "__builtins__"):
            yield node.value


def banned(module):
    parts = module.split(".")
    return any(".".join(parts[: count + 1]) in MODULES for count in range(len(parts)))


@pytest.mark.parametrize(("name", "tree"), list(sources()), ids=lambda value: value if isinstance(value, str) else "")
def test_t5_no_module_names_a_way_to_code(name, tree):
    assert [each for each in found(tree) if (name, each) not in ALLOWED] == []


def test_t5_each_exception_is_still_needed():
    named = {(name, each) for name, tree in sources() for each in found(tree)}
    assert ALLOWED.keys() <= named


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "import os, marshal", "from dill import loads", "import torch.package", "from torch import load",
        "from torch import hub", "from multiprocessing import Process", "def f():\n    import shelve", "import joblib as j",
        "torch.load(file)", "load = torch.load", "torch.jit.load(file)", "np.load(file)", "numpy.load(file, allow_pickle=True)",
        "eval(text)", "run = exec", "compile(text, '', 'exec')", "__import__(name)", "importlib.import_module(name)",
        "getattr(builtins, '__import__')", "subprocess.run(text, shell=True)", "os.system(text)", "yaml.load(text)",
        "loader.exec_module(module)", "database.enable_load_extension(True)", "from google.protobuf import json_format",
        "from concurrent.futures import ProcessPoolExecutor", "pickle.Unpickler(file)",
    ],
)  # fmt: skip
def test_each_way_would_be_seen(code):
    assert list(found(ast.parse(code)))


def test_torch_load_is_always_restricted():
    tree = ast.parse((ROOT / "codecs/torch.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert len(calls) == 1
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}["weights_only"] == "True"


# --- what the exceptions rest on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["os", "../fedcore", "torch.hub", "codecs.torch", "__init__", "a" * 5000, "", "lz4\0", "Torch"]
)
def test_no_name_imports_more_than_a_shelf_has(name, monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "import_module", lambda module: asked.append(module))
    with pytest.raises(CodecRefused):
        registry.accepted_codec(name, ["safetensors", "lz4"])
    with pytest.raises(registry.UnknownName):
        registry.find("codecs", name)
    assert asked == []


def test_torch_is_on_no_list_that_is_not_written_out():
    assert Torch.trusted_only
    for own in (None, registry.codec("safetensors"), registry.codec("delta+zstd")):
        assert "torch" not in registry.default_accepts(own)


MODEL = {"w": torch.zeros(3)}
SPEC = Spec.of(MODEL)


def test_a_server_with_default_settings_refuses_torch(monkeypatch):
    monkeypatch.setattr(Torch, "decode", lambda *_, **__: pytest.fail("it was decoded"))
    config, strategy = ServerConfig(num_rounds=1, stop_grace=0.2), FedAvg(MODEL, min_fit_clients=1, clients_per_round=1)
    server = Server("127.0.0.1:0", config=config, strategy=strategy, transport=Grpc())
    with server, Grpc().connect(server.address) as wire:
        with pytest.raises(CodecRefused, match="'torch' is refused"):
            wire.request(Register("mallory", "torch", ("safetensors", "torch")))
        welcome = wire.request(Register("mallory", "", ("safetensors", "torch"))).message
        assert "torch" not in welcome.codec + welcome.delta_codec
        task = wire.request(Pull(welcome.session, 10.0)).message.task
        body = bytes(registry.codec("torch").encode(MODEL))
        manifest = Manifest("torch", 1 << 20, (len(body),), "d" * 64, SPEC.infos)
        header = Submit(welcome.session, task.id, task.round, "attempt", task.base_digest, 10, manifest)
        answer = wire.request(header, [body]).message
        assert (answer.counted, answer.reason) == (False, "NO_COMMON_CODEC")


class Says(Connection):
    """A server that names a codec, when it welcomes a client or when it sends a model."""

    def __init__(self, welcome, sent):
        self.welcome, self.sent = welcome, sent

    def request(self, message, body=(), timeout=None):
        if isinstance(message, Register):
            assert "torch" not in message.accepts
            return Reply(Registered(Session("run", "me", "t"), self.welcome, 5.0, 30.0))
        if isinstance(message, Pull):
            encoded = bytes(registry.codec("torch").encode(MODEL))
            manifest = Manifest(self.sent, 1 << 20, (len(encoded),), "d" * 64, SPEC.infos)
            return Reply(Assigned(Task("t", Kind.FIT, 1), manifest), [encoded])
        return Reply(Finished())

    def close(self):
        pass


@pytest.mark.parametrize(("welcome", "sent"), [("torch", "torch"), ("safetensors", "torch"), ("safetensors", "torch+lz4")])
def test_a_client_with_default_settings_refuses_torch(welcome, sent, monkeypatch):
    monkeypatch.setattr(Torch, "decode", lambda *_, **__: pytest.fail("it was decoded"))
    link = Link(Says(welcome, sent), "me", patience=0.0)

    def speak():
        link.register()
        link.next_task()

    with pytest.raises(CodecRefused, match="'torch' is not among the accepted"):
        speak()
