"""A lane does jobs in order, on one thread, and never loses an error."""

import threading
from concurrent.futures import CancelledError

import pytest

from fedcore.lane import Lane


@pytest.fixture
def lane():
    made = Lane("fedcore-test-lane")
    yield made
    made.close(timeout=5.0)


def test_jobs_run_in_order_on_one_daemon_thread(lane):
    seen = []
    futures = [lane.submit(lambda n=n: seen.append((n, threading.current_thread()))) for n in range(50)]
    futures[-1].result(5)
    assert [n for n, _ in seen] == list(range(50))
    (thread,) = {thread for _, thread in seen}
    assert thread.daemon
    assert thread.name == "fedcore-test-lane"


def test_arguments_and_results(lane):
    assert lane.submit(divmod, 17, 5).result(5) == (3, 2)
    assert lane.submit(int, "ff", base=16).result(5) == 255


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_l2_an_error_reaches_who_asked_and_the_lane_goes_on(lane, error):
    def fails():
        raise error

    with pytest.raises(type(error)):
        lane.submit(fails).result(5)
    assert lane.submit(lambda: "alive").result(5) == "alive"


def test_a_job_that_was_cancelled_is_skipped(lane):
    gate, seen = threading.Event(), []
    lane.submit(gate.wait, 5)
    waiting = lane.submit(seen.append, 1)
    assert waiting.cancel()
    gate.set()
    lane.submit(seen.append, 2).result(5)
    assert seen == [2]
    with pytest.raises(CancelledError):
        waiting.result(0)


def test_close_lets_queued_jobs_finish():
    lane, gate, seen = Lane("fedcore-test-lane"), threading.Event(), []
    lane.submit(gate.wait, 5)
    for n in range(5):
        lane.submit(seen.append, n)
    gate.set()
    lane.close()
    assert seen == [0, 1, 2, 3, 4]


def test_close_waits_no_longer_than_it_is_told():
    lane, gate, began = Lane("fedcore-test-lane"), threading.Event(), threading.Event()
    job = lane.submit(lambda: began.set() or gate.wait(5))
    assert began.wait(5)
    lane.close(timeout=0)
    assert not job.done()
    gate.set()
    assert job.result(5)


def test_a_job_may_close_its_own_lane():
    lane = Lane("fedcore-test-lane")
    lane.submit(lane.close).result(5)


def test_a_lane_keeps_nothing_of_a_job_that_is_done(lane):
    class Big:
        gone = threading.Event()

        def __del__(self):
            self.gone.set()

    lane.submit(id, Big()).result(5)
    lane.submit(int).result(5)
    assert Big.gone.wait(5)


def test_l2_a_job_nobody_waits_for_is_logged_when_it_fails(lane, caplog):
    def fails():
        raise ValueError("boom")

    lane.send(fails)
    assert lane.submit(lambda: "alive").result(5) == "alive"
    assert "fedcore-test-lane" in caplog.text
    assert "boom" in caplog.text


def test_a_lane_that_rests_does_all_that_came_meanwhile_and_does_not_keep_who_closes_it():
    lane, seen = Lane("fedcore-test-lane", rest=60.0), []
    for n in range(5):
        lane.send(seen.append, n)
    lane.close(timeout=5.0)
    assert seen == [0, 1, 2, 3, 4]
