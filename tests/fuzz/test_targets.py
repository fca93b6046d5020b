"""The targets of ``make fuzz`` without a fuzzer: every input that is kept, and valid ones that are changed in one place."""

import json
import random
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import oracle
import pytest
import torch
from fields import shaken
from oracle import Oracle, Target, Violation
from run import TARGETS

from fedcore.errors import DecodeError, RemoteError

HERE = Path(__file__).parent
ALL = {name: import_module(f"fuzz_{name}").TARGET for name in TARGETS}
KEPT = [(name, path.name) for name, target in ALL.items() for path in target.corpus()]


@pytest.mark.parametrize(("name", "kept"), KEPT)
def test_what_is_kept_is_accepted_or_refused_as_it_should_be(name, kept):
    accepted = Oracle(ALL[name]).judge((oracle.CORPUS / name / kept).read_bytes())
    assert accepted is not kept.startswith(("refused-", "found-"))


@pytest.mark.parametrize("name", ALL)
def test_the_encoders_still_make_what_is_kept(name):
    made = dict(ALL[name].seeds())
    assert made.keys() == {path.name for path in ALL[name].corpus() if not path.name.startswith("found-")}
    assert all(len(data) <= oracle.LARGEST for data in made.values())


@pytest.mark.parametrize("name", ALL)
def test_valid_inputs_that_are_changed_break_nothing(name):
    judge, chance = Oracle(ALL[name]), random.Random(name)
    kept = [path.read_bytes() for path in ALL[name].corpus()]
    for _ in range(100):
        judge.judge(ALL[name].mutate(chance.choice(kept), chance, shaken))
    assert judge.refused, "all are accepted: this tests little"


# --- the oracle sees what it is there for -----------------------------------------------------------------------------


def judged(run):
    return Oracle(Target("planted", lambda: (), run, lambda data, _, havoc: data)).judge(b"x")


def raising(error):
    def run(data):
        raise error

    return run


def busy(data):
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass


def greedy(data):
    torch.ones(20 << 20)  # 80 MiB


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), MemoryError(), DecodeError("x", reason="NEVER_HEARD_OF")])
def test_another_error_is_seen(error):
    with pytest.raises(Violation):
        judged(raising(error))


def test_an_endless_text_is_seen():
    with pytest.raises(Violation, match="an error of 5000 characters"):
        judged(raising(DecodeError("x" * 5000)))


def test_what_takes_too_long_is_seen(monkeypatch):
    monkeypatch.setattr(oracle, "SECONDS", 0.001)
    with pytest.raises(Violation, match="took"):
        judged(busy)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_what_takes_too_much_memory_is_seen():
    oracle.forget_the_most()
    with pytest.raises(Violation, match=r"took [78]\d MiB"):
        judged(greedy)


def test_what_should_be_is_not():
    assert judged(lambda data: None)
    assert not judged(raising(DecodeError("x")))
    assert not judged(raising(RemoteError("x", reason="of another server")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_fuzzer_runs(name):
    pytest.importorskip("atheris")
    command = [sys.executable, str(HERE / "run.py"), name, "--seconds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    figures = json.loads(done.stdout)
    assert (figures["crashes"], done.returncode) == (0, 0)
    assert figures["executions"] > 100
    assert figures["features"] > 50
