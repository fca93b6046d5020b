"""A process killed at any point of writing leaves a ledger that holds everything acknowledged, and nothing half."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import ConfigError
from fedcore.failpoints import _plan
from fedcore.ledger import Ledger
from fedcore.parameters import digest

pytestmark = pytest.mark.chaos

HERE = Path(__file__).parent
STEPS = ("tmp_half", "before_fsync", "before_rename", "after_rename", "after_dirsync")
POINTS = [
    *(f"{kind}.{step}" for kind in ("upd", "ckpt") for step in STEPS),
    "upd.before_row", "upd.after_row", "run.before", "run.after", "round.before_open", "round.after_open",
    "close.before_commit", "close.after_commit", "commit.before", "commit.after", "gc.blob_delete", "ledger.before_rename",
]  # fmt: skip
QUICK = {"upd.tmp_half", "ckpt.before_fsync"}
EACH = [
    pytest.param(point, when, marks=() if point in QUICK and when == 1 else pytest.mark.slow)
    for point in POINTS
    for when in (1, 2)
]


def run(folder, plan):
    environment = {**os.environ, "FEDCORE_FAILPOINTS": plan, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, HERE / "noting.py", folder], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    done = run(tmp_path_factory.mktemp("control") / "state", "")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(("point", "when"), EACH)
def test_f1_killed_at_any_point_it_goes_on_where_it_was(tmp_path, control, point, when):
    first = run(tmp_path / "state", f"{point}=kill@{when}")
    if first.returncode == 0:
        assert when == 2  # the point is passed once
        return
    assert first.returncode == -signal.SIGKILL
    acknowledged = [line for line in first.stdout.split() if line.startswith("ack")]
    ledger = Ledger(tmp_path / "state", Safetensors())
    noted = [f"ack:{entry.task_id}:{entry.digest}" for page in ledger.pages() for entry in ledger.entries(page.number)]
    assert set(acknowledged) <= set(noted)
    for page in ledger.pages():
        if page.state in ("open", "closed"):
            for entry in ledger.entries(page.number):
                assert digest(ledger.updates.get(ledger.manifest(entry.digest))) == entry.digest
    ledger.close()
    second = run(tmp_path / "state", "")
    assert second.returncode == 0, second.stderr
    assert second.stdout.split()[-1] == control[-1]


def test_a_disk_that_fails_is_said(tmp_path):
    done = run(tmp_path / "state", "upd.before_fsync=raise")
    assert done.returncode == 1
    assert "OutOfStorage" in done.stderr
    assert "No space left" in done.stderr


@pytest.mark.parametrize("plan", ["x=explode", "x", "x=kill@soon"])
def test_a_plan_that_means_nothing_is_refused(plan):
    with pytest.raises(ConfigError, match="NAME=ACTION"):
        _plan(plan)
