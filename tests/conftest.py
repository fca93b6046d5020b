"""What every test gets: a check that it leaves no thread behind, and small models to train. And runs that are resumed."""

import hashlib
import sys
import threading
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SOURCES = ("fedcore", "codecs", "transports", "protos", "tests", "examples", "pyproject.toml", "constraints.txt")


@pytest.fixture(autouse=True)
def no_leaked_threads():
    """Threads of fedcore that outlive the test are an error."""
    before = set(threading.enumerate())
    yield
    late = [t for t in threading.enumerate() if t not in before and t.name.startswith("fedcore")]
    for thread in late:
        thread.join(timeout=5.0)
    left = [t.name for t in late if t.is_alive()]
    assert not left, f"threads left behind: {left}"


def pytest_addoption(parser):
    help = "leave out the tests that are in this file, and add those that pass; on other code, or if all are in it, begin anew"
    parser.addoption("--resume", metavar="FILE", help=help)


def pytest_configure(config):
    if path := config.getoption("--resume"):
        resumed = Resumed if not hasattr(config, "workerinput") else LeavesOut  # the first one alone writes
        config.pluginmanager.register(resumed(config.rootpath / path, state_of(config.rootpath)))


def state_of(root):
    """Return what says whether anything has changed that a test may depend on, committed or not."""
    found = hashlib.sha256(sys.version.encode())
    for name in SOURCES:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                found.update(f"{path.relative_to(root)} {len(content)}\0".encode() + content)
    return found.hexdigest()


class LeavesOut:
    """Reads a file with the state of the code, and then a line for each test that passed."""

    def __init__(self, path: Path, state: str):
        known, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")  # the last line may be torn
        first, *rest = known.splitlines() or [""]
        self.path, self.state, self.passed = path, state, set(rest if first == state else [])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """Leave out what passed before, unless all did."""
        left = [item for item in items if item.nodeid not in self.passed]
        if left and len(left) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.passed])
            items[:] = left


class Resumed(LeavesOut):
    """Keeps that file."""

    def __init__(self, path: Path, state: str):
        super().__init__(path, state)
        self.failed = set()  # of those that are under way: with several workers their reports come between one another
        self.begin(self.passed)

    def begin(self, passed):
        self.passed = set(passed)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(f"{line}\n" for line in [self.state, *sorted(passed)]))

    def pytest_runtest_logreport(self, report):
        """Note a test that passed, with all that belongs to it."""
        if report.nodeid in self.passed:  # it is made again because all had passed
            self.begin([])
        if report.when == "setup":
            self.failed.discard(report.nodeid)
        if not report.passed:
            self.failed.add(report.nodeid)
        if report.when == "teardown" and report.nodeid not in self.failed:
            with self.path.open("a") as file:
                file.write(f"{report.nodeid}\n")
