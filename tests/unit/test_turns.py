"""So many threads work at a time; one that waits lends its turn to the next and gets one back before it goes on."""

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from fedcore import turns
from fedcore.errors import ConfigError
from fedcore.turns import Turns


class Crowd:
    """Threads in turns, and how many of them were inside at once."""

    def __init__(self, count):
        self.turns, self.inside, self.most, self.lock = Turns(count), 0, 0, threading.Lock()
        self.threads, self.errors = [], []

    def enter(self):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def leave(self):
        with self.lock:
            self.inside -= 1

    def run(self, number, work):
        def whole():
            try:
                with self.turns:
                    work(self)
            except BaseException as error:
                self.errors.append(error)

        self.threads += [threading.Thread(target=whole, daemon=True) for _ in range(number)]
        for thread in self.threads[-number:]:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join(10)
        assert not self.errors
        assert not any(thread.is_alive() for thread in self.threads)


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_than_so_many_at_once(count):
    crowd = Crowd(count)
    gate = threading.Barrier(count, timeout=10)

    def work(crowd):
        crowd.enter()
        gate.wait()  # passes only if `count` are inside together
        crowd.leave()

    crowd.run(4 * count, work)
    crowd.join()
    assert crowd.most == count


def test_who_waits_for_a_future_lends_the_turn():
    crowd, future, seen = Crowd(1), Future(), []
    waits = threading.Event()

    def first(crowd):
        waits.set()
        seen.append(turns.result(future))

    crowd.run(1, first)
    assert waits.wait(10)
    crowd.run(1, lambda _: future.set_result("done"))  # works although the first has not ended
    crowd.join()
    assert seen == ["done"]


def test_who_is_back_waits_for_a_turn():
    crowd, future, goes, order = Crowd(1), Future(), threading.Event(), []
    waits, holds = threading.Event(), threading.Event()

    def first(crowd):
        waits.set()
        turns.result(future)
        order.append("first")

    def second(crowd):
        holds.set()
        goes.wait(10)
        order.append("second")

    crowd.run(1, first)
    assert waits.wait(10)
    crowd.run(1, second)
    assert holds.wait(10)
    future.set_result(None)
    goes.set()
    crowd.join()
    assert order == ["second", "first"]


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_an_error_comes_out_and_the_turn_is_had_again(timeout):
    crowd, future, raised = Crowd(1), Future(), []
    waits = threading.Event()

    def work(crowd):
        waits.set()
        try:
            turns.result(future, timeout)
        except KeyError as error:
            raised.append(error)
        crowd.enter()
        crowd.leave()

    crowd.run(1, work)
    assert waits.wait(10)
    future.set_exception(KeyError("lost"))
    crowd.run(2, lambda crowd: (crowd.enter(), crowd.leave()))
    crowd.join()
    assert len(raised) == 1
    assert crowd.most == 1


def test_a_result_that_does_not_come_in_time():
    crowd, late = Crowd(1), []

    def work(crowd):
        try:
            turns.result(Future(), 0.001)
        except FutureTimeout as error:
            late.append(error)

    crowd.run(3, work)
    crowd.join()
    assert len(late) == 3


def test_away_lends_the_turn_and_an_error_brings_it_back():
    crowd, met = Crowd(1), threading.Barrier(3, timeout=10)

    def work(crowd):
        def meet():
            with turns.away(), turns.away():
                met.wait()  # passes only if all three are away together
                raise ValueError("out")

        with pytest.raises(ValueError, match="out"):
            meet()
        crowd.enter()
        crowd.leave()

    crowd.run(3, work)
    crowd.join()
    assert crowd.most == 1


def test_without_turns_nothing_is_different():
    future = Future()
    future.set_result(3)
    assert turns.result(future) == 3
    with turns.away():
        pass
    with pytest.raises(FutureTimeout):
        turns.result(Future(), 0.001)


@pytest.mark.parametrize("count", [0, -1])
def test_some_must_be_able_to_work(count):
    with pytest.raises(ConfigError, match="at_once must be positive"):
        Turns(count)
