"""No version with a known hole is asked for, pinned or installed, and what other frameworks were broken through is absent."""

import re
import sqlite3
import tomllib
from contextlib import closing
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import lz4
import pytest
import torch
from google.protobuf.internal import api_implementation
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.torch import Torch
from fedcore.ledger import Ledger

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = {
    canonicalize_name(name): Version(number)
    for name, number in re.findall(r"^([A-Za-z][\w.-]*)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}

LEAST = {
    "torch": ("2.6", "CVE-2025-32434: torch.load(weights_only=True) runs code"),
    "numpy": ("1.16.3", "CVE-2019-6446: np.load unpickles unless told not to"),
    "grpcio": ("1.65.4", "CVE-2023-33953, -4785, -1428, CVE-2024-7246, CVE-2023-44487: headers, descriptors, resets"),
    "protobuf": ("6.31.1", "CVE-2025-4565: recursion without end in the parser in Python"),
    "lz4": ("4.0", "CVE-2021-3520: memory corruption in the library it brings"),
    "cryptography": ("42.0.4", "CVE-2024-26130 and those before"),
    "pyjwt": ("2.4", "CVE-2022-29217: a public key taken for a secret"),
}  # fmt: skip
"""The first version without the holes that are known to matter here, and what they are."""

UNPICKLERS = {"dill", "cloudpickle", "joblib", "msgpack-numpy", "jsonpickle", "pyyaml", "picklescan"}


def asked():
    """Yield what fedcore asks for, with the extra that does, but for what is asked for by an extra's own name."""
    for extra, texts in {"": PROJECT["dependencies"], **EXTRAS}.items():
        for requirement in map(Requirement, texts):
            if canonicalize_name(requirement.name) != "fedcore":
                yield extra, requirement


ASKED = list(asked())
OF_USERS = {"", "demo", "plot", "display", "zstd", "pki", "tokens"}


def floor(requirement):
    return max((Version(each.version) for each in requirement.specifier if each.operator in (">=", "==")), default=None)


@pytest.mark.parametrize("name", LEAST)
def test_g14_no_version_with_a_known_hole_is_asked_for(name):
    least, hole = LEAST[name]
    floors = [floor(requirement) for _, requirement in ASKED if canonicalize_name(requirement.name) == name]
    assert floors, f"{name} is not asked for any more"
    assert all(each >= Version(least) for each in floors), hole


@pytest.mark.parametrize(("extra", "requirement"), ASKED, ids=str)
def test_g14_what_is_pinned_is_what_is_asked_for(extra, requirement):
    name = canonicalize_name(requirement.name)
    if extra in OF_USERS:
        assert floor(requirement) is not None, f"{name} may be of any age"
    if name in PINNED:
        assert requirement.specifier.contains(PINNED[name], prereleases=True)
    elif extra not in ("codegen",):
        assert name in ("pre-commit", "setuptools"), f"{name} is not in constraints.txt"


@pytest.mark.parametrize(
    "requirement", [each for extra, each in ASKED if extra in OF_USERS | {"test"}], ids=lambda each: each.name
)
def test_g14_what_is_installed_is_what_is_asked_for(requirement):
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_what_goes_together_has_one_floor():
    floors = {floor(each) for _, each in ASKED if each.name in ("grpcio", "grpcio-health-checking", "grpcio-status")}
    assert len(floors) == 1


def test_nothing_that_unpickles_is_asked_for_by_the_library():
    library = {canonicalize_name(each.name) for extra, each in ASKED if extra in OF_USERS - {"demo", "plot"}}
    needed = {canonicalize_name(Requirement(text).name) for name in library for text in distribution(name).requires or ()}
    own = {canonicalize_name(each.name) for extra, each in ASKED if extra in OF_USERS}
    assert not own & UNPICKLERS
    assert "msgpack-numpy" not in needed
    with pytest.raises(PackageNotFoundError):
        version("msgpack-numpy")


def test_protobuf_parses_in_the_implementation_that_bounds_depth():
    assert api_implementation.Type() == "upb"


def test_lz4_brings_a_library_that_is_mended():
    assert Version(lz4.library_version_string()) >= Version("1.9.4")


def test_the_loader_of_torch_is_used_from_the_version_on_that_is_mended(monkeypatch):
    from fedcore.errors import MissingDependency

    assert Version(torch.__version__.split("+")[0]) >= Version("2.10"), "CVE-2026-24747"
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(MissingDependency, match="CVE-2026-24747"):
        Torch()


def test_sqlite_is_not_used_in_the_mode_that_loses_pages(tmp_path):
    Ledger(tmp_path / "state", Safetensors()).close()
    with closing(sqlite3.connect(tmp_path / "state" / "ledger.db")) as database:
        mode = database.execute("PRAGMA journal_mode").fetchone()
    assert mode == ("delete",), "resets of the WAL are broken before SQLite 3.51.3"
