"""The rules of the house: who may import whom, what is nowhere imported, and that every package is shipped."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELVES = ("codecs", "transports", "protos", "strategies", "filters", "estimators", "data", "engines", "observers", "adapters")
ROWS = [
    {"errors", "parameters", "messages", "values", "shards", "pool", "views", "extents"},
    {
        "codec", "transport", "client", "aggregator", "averaging", "fixedpoint", "strategy", "policy", "registry", "security",
        "site", "access", "config", "events", "history", "compression", "tensorwise", "blockwise", "durable", "goal", "limits",
        "pace", "private", "tokens", "watched", "algorithm", "directions", "trail", "exchange", "filter", "selection",
        "robust", "spool",
    },
    {"coordinator", "round", "rounds", "roster", "phase", "progress"},
    {
        "audit", "border", "hub", "parking", "reception", "director", "course", "ambition", "tasks", "uploads", "intake",
        "unfinished", "broadcast", "evaluation", "server", "link", "contact", "inbox", "outbox", "download", "retry",
        "worker", "personal", "training", "lane", "clock", "testing", "cores", "mapped", "budget", "turns", "journal",
        "packing", "ledger", "rows", "database", "replay", "blobs", "failpoints", "last_model", "refusals", "streams",
        "audit_pages",
    },
    set(SHELVES),
    {
        "cli", "demo", "demo_roles", "children", "state_commands", "pki", "pki_commands", "__main__", "connecting",
        "keys", "keys_commands", "admin_commands", "audit_commands",
    },
]  # fmt: skip
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


def modules():
    """Yield the dotted name below fedcore and the file of each module, shelves included."""
    for folder, prefix in ((ROOT / "fedcore", ()), *((ROOT / name, (name,)) for name in ("codecs", "transports", "protos"))):
        for path in sorted(folder.rglob("*.py")):
            if "_pb2" not in path.name:
                parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
                yield tuple(part for part in parts if part != "__init__"), path


def imports(path):
    """Yield every module a file imports, wherever in the file, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            if node.module in ("fedcore", "fedcore.protos"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = [(parts, path) for parts, path in modules() if parts]


def test_every_module_has_its_place():
    assert {parts[0] for parts, _ in MODULES} <= ROW_OF.keys()


@pytest.mark.parametrize(("parts", "path"), MODULES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else "")
def test_imports_point_downward(parts, path):
    mine = ROW_OF[parts[0]]
    for name in imports(path):
        if not name.startswith("fedcore."):
            continue
        other = name.split(".")[1]
        if other == "__version__":
            continue
        row = ROW_OF[other]
        assert row <= mine, f"{'.'.join(parts)} (row {mine}) imports {name} (row {row})"
        if mine == 4:
            uses_protos = other == "protos" and parts[:2] in (("codecs", "protobuf"), ("transports", "grpc"))
            assert row <= 1 or other == parts[0] or uses_protos, f"shelf {'.'.join(parts)} imports {name}"


@pytest.mark.parametrize(("parts", "path"), MODULES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else "")
def test_libraries_stay_where_they_belong(parts, path):
    used = {name.split(".")[0] for name in imports(path)}
    if parts[0] not in ("codecs", "transports", "protos"):
        assert not used & {"grpc", "google", "grpc_health", "lz4", "msgpack", "safetensors", "zstandard"}
    if parts[0] in ("transports", "transport", "messages"):
        assert "torch" not in used
        assert "fedcore.parameters" not in set(imports(path))
    if ROW_OF[parts[0]] <= 2:
        assert not used & {"time", "threading", "socket", "asyncio"}
    assert not used & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}


def test_nothing_runs_what_it_was_sent():
    for parts, path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "compile"), path
            if name == "torch.load":
                assert parts == ("codecs", "torch")
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)


def test_transports_do_not_load_torch():
    code = "import sys, fedcore.transports.grpc, fedcore.transports.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_package_is_shipped():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(("fedcore", *parts)) for parts, path in modules() if path.name == "__init__.py"}
    assert listed == found


def test_files_are_small():
    sizes = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for _, path in MODULES}
    assert not {name: size for name, size in sizes.items() if size > 400}
    assert sorted(sizes.values())[len(sizes) // 2] <= 130


def test_no_file_is_called_nothing():
    assert not [path for _, path in MODULES if path.stem in ("utils", "util", "helpers", "helper", "common", "misc")]
