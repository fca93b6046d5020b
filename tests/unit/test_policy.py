"""When a round opens and when it is over."""

import math
import sys

import pytest

from fedcore.errors import ConfigError
from fedcore.policy import RoundPolicy, Verdict


def policy(**changes):
    return RoundPolicy(**{"target": 3, "quorum": 2, "deadline": 100.0, "start_wait": 10.0, **changes})


@pytest.mark.parametrize("name", ["target", "quorum", "extra", "max_failures"])
@pytest.mark.parametrize("value", [-1, 1.0, 2.5, "2", True, None])
def test_counts_are_integers_and_the_bad_one_is_named(name, value):
    with pytest.raises(ConfigError, match=rf"RoundPolicy\.{name}"):
        policy(**{name: value})


@pytest.mark.parametrize("name", ["target", "quorum", "max_failures"])
def test_zero_is_too_few(name):
    with pytest.raises(ConfigError, match=rf"RoundPolicy\.{name}"):
        policy(**{name: 0})


@pytest.mark.parametrize(
    "changes", [{"deadline": 0}, {"deadline": -1}, {"deadline": math.nan}, {"start_wait": -0.1}, {"start_wait": math.nan}]
)
def test_times_are_possible(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        policy(**changes)


def test_l8_a_quorum_above_the_target_says_what_to_change():
    with pytest.raises(ConfigError, match=r"quorum is 4, above target 3.*min_fit_clients.*clients_per_round"):
        policy(quorum=4)


def test_a_policy_is_a_value():
    assert policy() == policy()
    assert len({policy(), policy()}) == 1
    with pytest.raises(AttributeError):
        policy().target = 5


def test_invitations():
    assert policy(extra=2).invitations == 5
    assert policy(pace="async").invitations == sys.maxsize
    assert policy(pace="async", concurrency=7).invitations == 7


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pace": "slow"}, "pace"),
        ({"concurrency": 4}, "pace='async'"),
        ({"staleness_exponent": 1.0}, "pace='async'"),
        ({"pace": "async", "extra": 1}, "extra"),
        ({"pace": "async", "late": "carry"}, "late"),
        ({"pace": "async", "concurrency": 2}, "below target 3"),
        ({"pace": "async", "staleness_exponent": -1.0}, "staleness_exponent"),
        ({"pace": "async", "staleness_exponent": math.nan}, "staleness_exponent"),
        ({"max_staleness": -1}, "max_staleness"),
    ],
)
def test_paces_make_sense(changes, named):
    with pytest.raises(ConfigError, match=named):
        policy(**changes)


def test_a_late_difference_counts_less():
    assert [policy(pace="async").discount(late) for late in (0, 3, 15)] == [1.0, 0.5, 0.25]
    assert policy(pace="async", staleness_exponent=0.0).discount(9) == 1.0
    assert policy(late="carry").discount(9) == 1.0


@pytest.mark.parametrize(
    ("registered", "since", "opens"),
    [(3, 1.0, 50.0), (4, 1.0, 50.0), (3, None, 50.0), (2, 44.0, 54.0), (2, 1.0, 11.0), (1, None, None), (0, None, None)],
)
def test_opens_with_the_target_or_some_time_after_the_quorum(registered, since, opens):
    assert policy().opens_at(registered, since, 50.0) == opens


@pytest.mark.parametrize(
    ("registered", "since", "opens"), [(5, 1.0, 50.0), (5, None, 50.0), (4, 44.0, 54.0), (3, 1.0, 11.0), (1, None, None)]
)
def test_waits_for_more_than_train_in_a_round(registered, since, opens):
    assert policy(start_clients=5).opens_at(registered, since, 50.0) == opens


W, C, F = Verdict.WAIT, Verdict.CLOSE, Verdict.FAIL


@pytest.mark.parametrize(
    ("accepted", "pending", "age", "verdict"),
    [
        (0, 3, 0.0, W),
        (2, 1, 50.0, W),
        (2, 1, 99.999, W),
        (3, 0, 0.0, C),
        (3, 2, 0.0, C),  # those invited beyond the target are not waited for
        (4, 0, 0.0, C),
        (2, 0, 1.0, C),  # L3: everybody who lives has answered
        (1, 0, 1.0, W),  # below the quorum: a newcomer may still come
        (0, 0, 1.0, W),
        (2, 5, 100.0, C),
        (1, 5, 100.0, F),
        (1, 0, 100.0, F),
        (0, 0, 1000.0, F),
    ],
)
def test_l3_the_verdict(accepted, pending, age, verdict):
    assert policy().verdict(accepted=accepted, pending=pending, closes_at=107.0, now=7.0 + age) is verdict


def test_l3_every_round_ends_at_its_deadline():
    for accepted in range(4):
        for pending in range(4):
            assert policy().verdict(accepted=accepted, pending=pending, closes_at=100.0, now=100.0) is not W


@pytest.mark.parametrize(
    "change",
    [{"on_failure": "hope"}, {"late": "maybe"}, {"late_discount": 0.0}, {"late_discount": 1.5}, {"adapt": 1.0}, {"adapt": -2}],
    ids=str,
)
def test_other_rules_are_checked(change):
    with pytest.raises(ConfigError, match=f"RoundPolicy.*{next(iter(change))}"):
        policy(**change)


def test_a_deadline_follows_what_rounds_took_but_only_downwards():
    adaptive = policy(adapt=3.0, deadline=100.0)
    assert adaptive.deadline_after([5.0, 5.0]) == 100.0  # too few to tell
    assert adaptive.deadline_after([4.0, 5.0, 60.0]) == 15.0
    assert adaptive.deadline_after([60.0] * 5) == 100.0
    assert adaptive.deadline_after([0.001] * 5) == 1.0  # no round is as short as that
    assert policy().deadline_after([4.0, 5.0, 60.0]) == 100.0


def test_what_is_late_weighs_less():
    assert policy(late="discount", late_discount=0.5).weight(100, 2) == 25
    assert policy(late="discount").weight(1, 5) == 1
    assert policy(late="discount").weight(100, 0) == 100
    assert policy(late="carry").weight(100, 2) == 100
