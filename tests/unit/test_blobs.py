"""Payloads as files: whole or not there, and never taken for another."""

import errno
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedcore.blobs import SHARD_BYTES, Blobs
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import OutOfStorage, StateError
from fedcore.parameters import Spec, digest

MODEL = {"w": torch.arange(3000.0).view(30, 100), "n": torch.tensor(7), "h": torch.ones(5).half(), "e": torch.empty(0)}


def payload(model=MODEL):
    return encode(model, Spec.of(model), Safetensors(), SHARD_BYTES)


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "models", Safetensors())


@pytest.fixture
def path(blobs, tmp_path):
    blobs.put(payload(), "ckpt")
    return tmp_path / "models" / f"{digest(MODEL)}.safetensors"


def test_what_was_put_comes_back(blobs, path):
    found = blobs.get(payload().manifest)
    assert digest(found) == digest(MODEL)
    assert list(found) == list(MODEL)


def test_ties_come_back(blobs):
    tied = {"a": MODEL["w"], "b": MODEL["w"]}
    blobs.put(payload(tied), "ckpt")
    found = blobs.get(payload(tied).manifest)
    assert found["a"] is found["b"]


def test_a_file_is_one_that_others_can_read(path):
    assert torch.equal(load_file(path)["w"], MODEL["w"])


def test_what_is_there_is_not_written_again(blobs, path):
    before = path.stat().st_mtime_ns
    blobs.put(payload(), "ckpt")
    assert path.stat().st_mtime_ns == before


def test_nothing_else_is_left(blobs, path):
    assert os.listdir(path.parent / "spool") == []
    assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_is_said_and_leaves_nothing(blobs, tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync" if name == "fsync" else "pathlib.Path.replace", full)
    with pytest.raises(OutOfStorage, match="No space left"):
        blobs.put(payload(), "ckpt")
    monkeypatch.undo()
    assert blobs.sweep([]) == []
    blobs.put(payload(), "ckpt")
    assert digest(blobs.get(payload().manifest)) == digest(MODEL)


def damages(path):
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 4096), 1, 8, len(whole) - 1, len(whole) + 1}:
        yield f"{length} bytes", whole[:length].ljust(length, b"\0")
    draw = np.random.default_rng(3)
    for place in draw.integers(0, 8 * len(whole), 64).tolist():
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        yield f"bit {place}", bytes(changed)
    yield "the last block zero", whole[:-512] + bytes(512)


def test_f16_every_damage_is_seen(blobs, path):
    for what, content in damages(path):
        path.write_bytes(content)
        with pytest.raises(StateError, match="damaged") as caught:
            blobs.get(payload().manifest)
        assert str(path) in str(caught.value), what


def test_f16_another_model_under_its_name(blobs, path):
    other = {**MODEL, "w": MODEL["w"] + 1}
    blobs.put(payload(other), "ckpt")
    os.replace(path.with_name(f"{digest(other)}.safetensors"), path)
    with pytest.raises(StateError, match="digest"):
        blobs.get(payload().manifest)


@pytest.mark.parametrize("kind", ["nothing", "link", "folder"])
def test_f16_no_file(blobs, path, kind):
    moved = path.rename(path.with_name("moved"))
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(StateError, match="missing" if kind == "nothing" else "damaged"):
        blobs.get(payload().manifest)


def test_sweep_keeps_what_is_needed(blobs, path):
    other = {"w": torch.ones(3)}
    blobs.put(payload(other), "ckpt")
    (path.parent / "spool" / "half").write_bytes(b"left by a crash")
    assert blobs.sweep([digest(MODEL)]) == sorted([f"{digest(other)}.safetensors", "half"])
    assert digest(blobs.get(payload().manifest)) == digest(MODEL)
