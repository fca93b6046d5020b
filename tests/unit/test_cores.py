"""Jobs on several threads: all are done, errors come out, small ones stay where they are."""

import threading

import pytest
import torch

from fedcore.aggregator import Job
from fedcore.cores import Cores
from fedcore.errors import NonFinite
from fedcore.parameters import Spec, digest

LARGE = 1 << 23


@pytest.fixture
def cores():
    made = Cores(3)
    yield made
    made.close()


def test_all_jobs_are_done(cores):
    done = []
    cores.each([Job(LARGE, lambda number=number: done.append(number)) for number in range(50)])
    assert sorted(done) == list(range(50))


def test_large_jobs_are_done_side_by_side(cores):
    together = threading.Barrier(3, timeout=10)
    cores.each([Job(LARGE, together.wait)] * 3)


def test_small_jobs_stay_on_the_callers_thread(cores):
    threads = set()
    cores.each([Job(100, lambda: threads.add(threading.get_ident()))] * 20)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("nbytes", [10, LARGE])
def test_what_a_job_raises_comes_out(cores, nbytes):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cores.each([Job(nbytes, fail), *[Job(nbytes, lambda: None)] * 5])


def test_no_jobs_are_no_work(cores):
    cores.each([])


def test_one_core_is_enough():
    cores, done = Cores(1), []
    cores.each([Job(LARGE, lambda: done.append(1))] * 4)
    cores.close()
    assert len(done) == 4


def test_a_model_is_measured_as_one_thread_would(cores):
    model = {f"w{number}": torch.full((3000, 100), float(number)) for number in range(8)} | {"n": torch.tensor(3)}
    spec = Spec.of(model)
    assert cores.measured(model, spec) == (digest(model, spec), {f"w{number}": float(number) for number in range(8)})


def test_what_is_not_finite_is_named(cores):
    model = {"good": torch.ones(2), "bad": torch.tensor([1.0, float("nan")])}
    with pytest.raises(NonFinite, match="'bad'"):
        cores.measured(model, Spec.of(model))
