"""A run that was interrupted goes on where it stopped: tests that passed are left out, on the same code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_numbered(number):
    with open(os.environ["RAN"], "a") as file:
        file.write(str(number))
    assert str(number) not in os.environ["FAILS"]
"""


@pytest.fixture
def ours(request):
    """The module whose option this is."""
    return request.config.pluginmanager.getplugin(str(request.config.rootpath / "tests" / "conftest.py"))


@pytest.fixture
def ran(tmp_path, monkeypatch, ours):
    """Return a function that runs four tests, of which some fail, and returns which ones ran."""
    (tmp_path / "test_these.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    log = tmp_path / "ran"
    monkeypatch.setenv("RAN", str(log))

    def run(fails="", state="code", *more):
        log.write_text("")
        monkeypatch.setenv("FAILS", fails)
        resumed = ours.Resumed(tmp_path / "cache" / "resumed", state)
        plain = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
        settings = ["-q", *plain, "--import-mode=importlib", f"--rootdir={tmp_path}"]
        pytest.main([*settings, *more, str(tmp_path)], plugins=[resumed])
        return log.read_text()

    return run


def test_what_passed_is_left_out_until_all_has(ran):
    assert ran("12") == "0123"
    assert ran("2") == "12"
    assert ran("2") == "2"
    assert ran() == "2"
    assert ran() == "0123"  # all had passed


def test_an_interrupted_run_goes_on(ran):
    assert ran("1", "code", "-x") == "01"
    assert ran("", "code", "-x") == "123"


def test_other_code_is_tested_anew(ran):
    assert ran("3") == "0123"
    assert ran("3", "other code") == "0123"
    assert ran("3", "other code") == "3"


def test_a_torn_line_is_no_test(ran, tmp_path):
    ran("3")
    file = tmp_path / "cache" / "resumed"
    file.write_text(file.read_text()[:-4])  # of the name of test 2
    assert ran("3") == "23"
    assert ran("3") == "3"


def test_a_look_changes_nothing(ran):
    ran("3")
    assert ran("3", "code", "--collect-only") == ""
    assert ran("3") == "3"


@pytest.mark.slow
def test_workers_leave_out_what_passed_and_one_file_is_kept(tmp_path):
    (tmp_path / "test_these.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)

    def run(fails):
        (tmp_path / "ran").write_text("")
        command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "--resume", "cache/resumed", "."]
        environment = {**os.environ, "RAN": str(tmp_path / "ran"), "FAILS": fails}
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=100, check=False)
        return "".join(sorted((tmp_path / "ran").read_text()))

    assert run("12") == "0123"
    assert run("2") == "12"
    assert run("") == "2"
    assert run("3") == "0123"  # all had passed
    assert run("") == "3"


def test_the_state_is_that_of_the_files(ours, tmp_path):
    (tmp_path / "fedcore" / "__pycache__").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "fedcore/a.py"):
        (tmp_path / name).write_text(name)
    before = ours.state_of(tmp_path)
    (tmp_path / "fedcore" / "__pycache__" / "a.pyc").write_text("other")
    assert ours.state_of(tmp_path) == before
    (tmp_path / "fedcore" / "a.py").rename(tmp_path / "fedcore" / "b.py")
    assert ours.state_of(tmp_path) != before
