"""Child processes: they end when they are told to, when their parent dies, and are killed when they do not listen."""

import signal
import subprocess
import sys
import time

import pytest

from fedcore.children import Child, Children

OBEDIENT = "import os, signal, threading; from fedcore.children import obey_parent; obey_parent(lambda: os._exit(7)); {}"
WAITS = "print('ready', flush=True); threading.Event().wait()"


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Return a function that makes a child of some code, which it finds as a module."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(code, name="child"):
        (tmp_path / f"{name}_code.py").write_text(code)
        return Child(name, [f"{name}_code"], tmp_path / f"{name}.log")

    return make


def wait_for(text, child):
    """Wait until a child has written something."""
    deadline = time.monotonic() + 30.0
    while text not in child.log.read_text():
        assert time.monotonic() < deadline
        assert child.process.poll() is None


def test_a_child_that_ends_well(child):
    with Children() as children:
        made = children.launch(child("print('hello')"))
        assert children.next_ended(timeout=30.0) is made
    assert not made.failed
    assert made.log.read_text() == "hello\n"


def test_nobody_ended_yet(child):
    with Children() as children:
        children.launch(child(OBEDIENT.format(WAITS)))
        assert children.next_ended(timeout=0.0) is None


def test_a_child_that_fails_is_reported_with_the_end_of_its_log(child):
    with Children() as children:
        made = children.launch(child("import sys\nfor n in range(30): print(n, flush=True)\nsys.exit('no luck')"))
        children.next_ended(timeout=30.0)
        assert made.failed
        head, *tail = made.report().splitlines()
    assert head == f"child failed with exit status 1; the end of {made.log}:"
    assert len(tail) == 12
    assert tail[-2:] == ["    29", "    no luck"]


def test_leaving_the_block_tells_children_to_end(child):
    with Children() as children:
        made = children.launch(child(OBEDIENT.format(WAITS)))
        wait_for("ready", made)
    assert made.process.returncode == 7


def test_a_child_that_does_not_listen_is_killed(child):
    with Children(grace=0.0) as children:
        made = children.launch(child("import threading; print('ready', flush=True); threading.Event().wait()"))
        wait_for("ready", made)
    assert made.report().startswith(f"child was ended by signal {signal.SIGKILL}; ")


def test_the_interrupt_key_is_left_to_the_parent(child):
    with Children() as children:
        made = children.launch(child(OBEDIENT.format("signal.raise_signal(signal.SIGINT); print('goes on')")))
        assert children.next_ended(timeout=30.0) is made
    assert made.log.read_text() == "goes on\n"


def test_children_end_with_a_parent_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "orphan.py").write_text(OBEDIENT.format(WAITS))
    code = (
        "import pathlib, threading; from fedcore.children import Child, Children\n"
        "made = Children().launch(Child('orphan', ['orphan'], pathlib.Path('orphan.log'), shown=True))\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == ""  # which comes back when the orphan has closed its end, too
    parent.stdout.close()
