"""Bytes in use at once: who does not fit waits in line, without a thread, and nobody is starved."""

import threading

import pytest

from fedcore.budget import Budget


@pytest.fixture
def started():
    return []


def enter(budget, started, name, nbytes):
    budget.enter(nbytes, lambda: started.append(name))


def test_what_fits_starts_at_once(started):
    budget = Budget(10)
    enter(budget, started, "a", 4)
    enter(budget, started, "b", 6)
    assert started == ["a", "b"]
    assert (budget.used, budget.waiting) == (10, 0)


def test_what_does_not_fit_waits_its_turn(started):
    budget = Budget(10)
    for name, nbytes in (("a", 6), ("b", 6), ("c", 1)):
        enter(budget, started, name, nbytes)
    assert started == ["a"]  # c would fit, but b was first
    assert budget.waiting == 2
    budget.leave(6)
    assert started == ["a", "b", "c"]
    assert budget.used == 7


def test_one_that_is_larger_than_the_budget_goes_alone(started):
    budget = Budget(10)
    enter(budget, started, "a", 3)
    enter(budget, started, "giant", 1000)
    enter(budget, started, "b", 1)
    assert started == ["a"]
    budget.leave(3)
    assert started == ["a", "giant"]
    budget.leave(1000)
    assert started == ["a", "giant", "b"]


def test_work_without_bytes_never_waits_for_room(started):
    budget = Budget(10)
    enter(budget, started, "a", 10)
    enter(budget, started, "nothing", 0)
    assert started == ["a", "nothing"]


def test_never_more_than_the_limit_from_many_threads():
    budget, lock = Budget(5), threading.Lock()
    inside, most, done = [0], [0], threading.Semaphore(0)

    def work():
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        with lock:
            inside[0] -= 1
        budget.leave(2)
        done.release()

    threads = [
        threading.Thread(target=budget.enter, args=(2, lambda: threading.Thread(target=work).start())) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert done.acquire(timeout=10)
    assert most[0] <= 2
    assert budget.used == 0
    assert budget.waiting == 0
