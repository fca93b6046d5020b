"""Bodies that move too slowly, by numbers alone."""

from hypothesis import given
from hypothesis import strategies as st

from fedcore.errors import DeadlineExceeded
from fedcore.limits import Limits
from fedcore.transports.grpc.speed import Speed

LIMITS = Limits(stall_timeout=10.0, least_rate=100)


def lasts(moves, limits=LIMITS):
    """Return how many moves (bytes, seconds) a body makes before it is ended, or None."""
    speed = Speed(limits)
    for number, move in enumerate(moves, 1):
        try:
            speed.moved(*move)
        except DeadlineExceeded:
            return number
    return None


def test_k12_what_is_too_slow_is_ended_after_the_window():
    assert lasts([(99, 1.0)] * 100) == 10
    assert lasts([(100, 1.0)] * 100) is None


def test_each_window_counts_for_itself():
    fast, slow = [(10_000, 1.0)] * 10, [(1, 1.0)] * 10
    assert lasts(fast + slow) == 20  # what came early is not saved up
    assert lasts([(900, 1.0)] + [(12, 1.0)] * 9) is None


def test_time_in_which_nobody_waited_does_not_count():
    assert lasts([(1, 0.0)] * 100_000) is None


def test_any_rate_may_be_allowed():
    assert lasts([(1, 9.0)] * 1000, Limits(stall_timeout=10.0, least_rate=0)) is None


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0.001, 9.0)), max_size=60))
def test_a_body_that_is_never_too_slow_is_never_ended(moves):
    quick = [(max(size, int(100 * seconds) + 1), seconds) for size, seconds in moves]
    assert lasts(quick) is None


@given(st.integers(1, 99), st.floats(0.01, 5.0))
def test_a_body_that_is_always_too_slow_ends_at_the_first_chance(rate, pause):
    moves = [(int(rate * pause), pause)] * 2000
    assert lasts(moves) <= 10.0 / pause + 2
