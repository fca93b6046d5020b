"""Memory in files: without a name, reserved before it is used, and only above a size."""

import mmap
import os

import pytest

from fedcore.errors import ConfigError, OutOfStorage
from fedcore.mapped import Landings, Mapped
from fedcore.pool import drain


@pytest.fixture(autouse=True)
def empty():
    drain()
    yield
    drain()


def is_mapped(array):
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else array.base
    return array is not None


def test_the_file_has_no_name(tmp_path):
    memory = Mapped(str(tmp_path))(1 << 21)
    memory[:] = 5
    assert memory.size == 1 << 21
    assert int(memory.min()) == 5
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_large_is_mapped(tmp_path):
    landings = Landings(2 << 20, str(tmp_path))
    assert not is_mapped(landings.lend(2 << 20))
    assert is_mapped(landings.lend((2 << 20) + 1))


def test_mapped_memory_is_used_again(tmp_path):
    landings = Landings(1 << 20, str(tmp_path))
    memory = landings.lend(3 << 20)
    memory[:] = 9
    del memory
    assert int(landings.lend(3 << 20).max()) == 9


def test_a_full_disk_is_an_error_and_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfStorage, match=f"no room for 4096 bytes in {tmp_path}: No space left") as caught:
        Mapped(str(tmp_path))(4096)
    assert caught.value.retryable


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "/dev/null"])
def test_the_folder_must_be_one(folder):
    with pytest.raises(ConfigError, match="map_folder"):
        Landings(1, folder)
