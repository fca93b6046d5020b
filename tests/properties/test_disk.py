"""The store of models and updates on a disk that loses what was not synchronised: what is there is whole, what was put is."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fedcore import digest, durable
from fedcore.blobs import Blobs
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import OutOfStorage, StateError
from fedcore.parameters import Spec
from fedcore.testing import Crashed, LossyDisk

pytestmark = pytest.mark.chaos

CODEC = Safetensors()
MODELS = [{"w": torch.full((40,), float(number)), "n": torch.tensor(number)} for number in range(3)]
NAMES = [digest(model) for model in MODELS]
PAYLOADS = [encode(model, Spec.of(model), CODEC, 1 << 20) for model in MODELS]


def put(disk, number):
    Blobs(disk.path, CODEC).put(PAYLOADS[number], "upd")


def is_there(disk, number):
    """Return whether a model is there; if it is, it is whole."""
    try:
        model = Blobs(disk.path, CODEC).get(PAYLOADS[number].manifest)
    except StateError:
        assert not (disk.path / f"{NAMES[number]}.safetensors").exists(), "what is torn has the name of what is whole"
        return False
    assert digest(model) == NAMES[number]
    return True


def steps_of_a_put():
    with TemporaryDirectory() as folder:
        disk = LossyDisk(Path(folder))
        with disk.attached():
            put(disk, 0)
        return disk.steps


STEPS = steps_of_a_put()
chances = st.sampled_from(["none", "none", "error", "crash", "power"])


class StoreMachine(RuleBasedStateMachine):
    """A store, and whatever happens to its disk."""

    @initialize(seed=st.integers(0, 1 << 16))
    def begin(self, seed):
        self.folder = TemporaryDirectory()
        self.disk = LossyDisk(Path(self.folder.name), seed=seed)
        self.attached = self.disk.attached()
        self.attached.__enter__()
        self.safe = set()

    def teardown(self):
        if hasattr(self, "folder"):
            self.attached.__exit__(None, None, None)
            self.folder.cleanup()

    def disturbed(self, act, chance, step):
        """Do something, and let something happen at one of its steps; returns whether it was done."""
        if chance == "error":
            self.disk.fail_at(self.disk.steps + step)
        elif chance != "none":
            self.disk.crash_at(self.disk.steps + step)
        try:
            act()
        except (OSError, OutOfStorage, Crashed):
            done = False
        else:
            done = True
        if chance in ("crash", "power"):
            self.disk.restart(power=chance == "crash")
        return done

    @rule(number=st.integers(0, 2), chance=chances, step=st.integers(1, STEPS + 1))
    def put(self, number, chance, step):
        if self.disturbed(lambda: put(self.disk, number), chance, step):
            self.safe.add(number)

    @rule(keep=st.sets(st.integers(0, 2)), chance=chances, step=st.integers(1, 3))
    def sweep(self, keep, chance, step):
        self.safe &= keep
        self.disturbed(lambda: Blobs(self.disk.path, CODEC).sweep([NAMES[number] for number in keep]), chance, step)

    @rule(power=st.booleans())
    def ends(self, power):
        self.disk.restart(power=power)

    @invariant()
    def what_was_put_is_there(self):
        if hasattr(self, "disk"):
            assert self.safe <= {number for number in range(3) if is_there(self.disk, number)}


def drive(examples, *phases):
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=12, deadline=None, database=None, print_blob=False, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=phases or list(Phase), report_multiple_bugs=False,
        ),
    )  # fmt: skip


def test_what_was_put_is_there_and_nothing_torn_is():
    drive(80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_was_put_is_there_in_many_steps():
    drive(2000)


@pytest.fixture
def disk(tmp_path):
    disk = LossyDisk(tmp_path)
    with disk.attached():
        yield disk


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", range(1, STEPS + 2))
def test_a_crash_at_each_step(tmp_path, step, seed):
    disk = LossyDisk(tmp_path, seed=seed)
    with disk.attached():
        put(disk, 0)
        disk.crash_at(disk.steps + step)
        try:
            put(disk, 1)
            done = True
        except Crashed:
            done = False
        assert done == (step > STEPS)
        disk.restart(power=False)
        assert is_there(disk, 0)
        assert is_there(disk, 1) >= done
        put(disk, 1)
        disk.restart(power=False)
        assert is_there(disk, 1)
        Blobs(disk.path, CODEC).sweep(NAMES)
        assert os.listdir(disk.path / "spool") == []


@pytest.mark.parametrize("how", ["error", "killed"])
def test_what_has_its_name_and_is_not_synchronised_is_when_it_is_put_again(tmp_path, how):
    """The last step of a put is to synchronise the folder; then the file has its name already."""
    kept = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk = LossyDisk(folder, seed=seed)
        with disk.attached():
            if how == "error":
                disk.fail_at(STEPS)
            else:
                disk.crash_at(STEPS)
            with pytest.raises((OutOfStorage, Crashed)):
                put(disk, 0)
            if how == "killed":
                disk.restart(power=True)
            put(disk, 0)
            disk.restart(power=False)
            kept += is_there(disk, 0)
    assert kept == 10


# --- the disk itself ---


def test_what_is_not_synchronised_may_be_lost_or_torn(tmp_path):
    left = set()
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk = LossyDisk(folder, seed=seed)
        with disk.attached(), (disk.path / "file").open("xb") as file:
            file.write(b"abcd")
            file.write(b"efgh")
        assert (folder / "file").read_bytes() == b"abcdefgh"  # while the power is on
        disk.restart(power=False)
        left.add((folder / "file").read_bytes() if (folder / "file").exists() else None)
    assert {None, b"abcdefgh", b"abcd"} <= left
    assert any(each and each.startswith(b"\0\0\0\0") for each in left)
    assert len(left) > 8


def test_the_same_seed_loses_the_same(tmp_path):
    def lose(folder):
        folder.mkdir()
        disk = LossyDisk(folder, seed=5)
        with disk.attached():
            for name in "abcdefgh":
                with (disk.path / name).open("xb") as file:
                    file.write(name.encode() * 5)
        disk.restart(power=False)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert lose(tmp_path / "one") == lose(tmp_path / "other")


def test_what_was_there_is_safe_and_comes_back_if_it_was_taken_away(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    back = set()
    for seed in range(10):
        disk = LossyDisk(tmp_path, seed=seed)
        (disk.path / "old").unlink()
        disk.restart(power=False)
        back.add((tmp_path / "old").exists())
        (tmp_path / "old").write_bytes(b"old")
    assert back == {True, False}


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_the_machine_finds_what_is_not_synchronised(monkeypatch, forgotten):
    synchronise = LossyDisk.synchronise

    def forget(self, number):
        is_file = number in self._files
        if is_file != (forgotten == "file"):
            synchronise(self, number)

    monkeypatch.setattr(LossyDisk, "synchronise", forget)
    with pytest.raises(AssertionError):
        drive(400, Phase.generate)


def test_the_machine_finds_a_file_that_is_written_in_its_place(monkeypatch):
    def place(target, part, content, passed=str, *, private=False):
        with target.open("xb") as file:
            for buffer in content:
                file.write(buffer)
            durable.os.fsync(file.fileno())

    monkeypatch.setattr("fedcore.blobs.place", place)
    with pytest.raises(AssertionError):
        drive(400, Phase.generate)
