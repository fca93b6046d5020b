"""Who is registered: sessions fence one another, leases run out, and the quorum has a beginning."""

import pytest

from fedcore.errors import ConfigError, Fenced, NotRegistered, RunChanged
from fedcore.messages import Beat, ClientStatus, Session, Status, Traffic
from fedcore.roster import Roster


@pytest.fixture
def roster():
    return Roster("run", quorum=2, lease=30.0)


def join(roster, name, now=0.0, token="t", evaluates=False):
    return roster.register(name, token, evaluates=evaluates, now=now)


def beat(status=Status.TRAINING, step=0, total=0, number=0):
    return Beat(Session("run", "a", "t"), status, step, total, number)


def test_a_member_speaks_under_its_session(roster):
    assert join(roster, "a")[1] is False
    member = roster.member(Session("run", "a", "t"), 5.0)
    assert (member.client_id, member.last_seen) == ("a", 5.0)


@pytest.mark.parametrize(
    ("session", "kind"),
    [
        (Session("other", "a", "t"), RunChanged), (Session("", "a", "t"), RunChanged),
        (Session("run", "b", "t"), NotRegistered), (Session("run", "", "t"), NotRegistered),
        (Session("run", "a", "u"), Fenced), (Session("run", "a", ""), Fenced),
    ],
)  # fmt: skip
def test_r12_m1_w3_other_sessions_are_refused_and_keep_nobody_alive(roster, session, kind):
    join(roster, "a")
    with pytest.raises(kind):
        roster.member(session, 29.0)
    assert [member.client_id for member in roster.expire(30.0)] == ["a"]


def test_a_refusal_shows_only_the_beginning_of_a_name(roster):
    with pytest.raises(NotRegistered) as caught:
        roster.member(Session("run", "x" * 5000 + "\n", "t"), 0.0)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["", "../x", "a" * 65, "a\n"])
def test_w14_only_client_ids_are_registered(roster, name):
    with pytest.raises(ConfigError):
        join(roster, name)
    assert roster.members == {}


def test_r7_a_newer_process_fences_the_older(roster):
    join(roster, "a", token="old")
    assert join(roster, "a", token="new")[1] is True
    with pytest.raises(Fenced, match="'a'"):
        roster.member(Session("run", "a", "old"), 1.0)
    assert roster.member(Session("run", "a", "new"), 1.0).client_id == "a"


def test_i15_a_lease_runs_out_exactly_when_it_says(roster):
    join(roster, "a", now=0.0), join(roster, "b", now=10.0)
    assert roster.next_expiry() == 30.0
    assert roster.expire(29.999) == []
    assert [member.client_id for member in roster.expire(30.0)] == ["a"]
    assert roster.next_expiry() == 40.0
    roster.member(Session("run", "b", "t"), 35.0)
    assert roster.expire(64.9) == []
    assert [member.client_id for member in roster.expire(65.0)] == ["b"]
    assert roster.next_expiry() is None


def test_whoever_was_heard_last_is_the_last_to_be_given_up(roster):
    for name in "abc":
        join(roster, name, now=float("abc".index(name)))
    roster.member(Session("run", "a", "t"), 10.0)
    roster.register("b", "t2", evaluates=False, now=11.0, instance="")
    roster.expect("d", 12.0)
    assert list(roster.members) == ["c", "a", "b", "d"]
    assert roster.next_expiry() == 32.0
    assert [member.client_id for member in roster.expire(41.0)] == ["c", "a", "b"]
    assert (roster.available, roster.ready, roster.next_expiry()) == ([], 0, 42.0)


def test_w15_nothing_is_kept_of_a_client_that_is_gone(roster):
    for index in range(50):
        join(roster, f"c{index}", now=float(index))
        roster.expire(index + 30.0)
    assert len(roster.members) == 0


def test_the_quorum_has_a_beginning_and_an_end(roster):
    join(roster, "a", now=1.0)
    assert roster.quorum_since is None
    join(roster, "b", now=2.0)
    join(roster, "c", now=3.0)
    assert roster.quorum_since == 2.0
    roster.member(Session("run", "c", "t"), 20.0)
    roster.expire(32.5)
    assert roster.quorum_since is None
    join(roster, "a", now=40.0)
    assert roster.quorum_since == 40.0


def test_a_client_in_error_is_there_but_not_available(roster):
    for name in "cab":
        join(roster, name, evaluates=name != "c")
    assert roster.available == ["a", "b", "c"]
    assert roster.ready == 3
    assert roster.evaluators() == ["a", "b"]
    roster.members["a"].note(beat(Status.ERROR))
    roster.watch("a", 7.0)
    assert roster.available == ["b", "c"]
    assert roster.evaluators() == ["b"]
    assert roster.quorum_since == 0.0
    roster.members["b"].note(beat(Status.ERROR))
    roster.watch("b", 8.0)
    assert roster.quorum_since is None


def test_a_beat_says_whether_anything_is_new(roster):
    join(roster, "a")
    member = roster.members["a"]
    assert member.note(beat(step=1, total=9, number=2))
    assert not member.note(beat(step=1, total=9, number=2))
    assert member.note(beat(step=2, total=9, number=2))
    assert (member.status, member.step, member.total, member.round) == (Status.TRAINING, 2, 9, 2)


def test_who_has_not_heard_the_end(roster):
    for name in "abc":
        join(roster, name)
    assert roster.untold == 3
    roster.members["a"].told = True
    roster.members["b"].note(beat(Status.ERROR))
    assert roster.untold == 1


def test_the_description_is_sorted_and_complete(roster):
    join(roster, "b", now=1.0), join(roster, "a", now=2.0)
    roster.members["a"].note(beat(step=3, total=4, number=5))
    assert roster.describe(12.0, {"b": Traffic(6, 7, 8, 9)}) == (
        ClientStatus("a", Status.TRAINING, 5, 3, 4, 10.0),
        ClientStatus("b", Status.IDLE, 0, 0, 0, 11.0, Traffic(6, 7, 8, 9)),
    )


class TestProcesses:
    def join(self, roster, instance, token="t"):
        return roster.register("a", token, instance=instance, evaluates=False, now=1.0)

    def test_the_same_process_gets_its_session_again(self, roster):
        self.join(roster, "one", "first")
        member, again = self.join(roster, "one", "second")
        assert (member.token, again) == ("first", True)

    def test_f4_an_older_process_cannot_come_back(self, roster):
        self.join(roster, "one")
        self.join(roster, "two")
        roster.expire(1000.0)  # nor when the newer one is silent for long
        with pytest.raises(Fenced):
            self.join(roster, "one")
        assert self.join(roster, "two")[0].instance == "two"

    def test_only_the_last_few_are_remembered(self, roster):
        for number in range(100):
            self.join(roster, f"p{number}")
        assert roster.superseded["a"] == [f"p{number}" for number in range(91, 99)]


def test_a_client_that_is_expected_keeps_its_place_for_one_lease(roster):
    roster.expect("a", 5.0)
    assert roster.available == []
    assert roster.describe(5.0, {}) == ()
    with pytest.raises(NotRegistered):
        roster.member(Session("run", "a", ""), 6.0)
    assert [member.client_id for member in roster.expire(35.0)] == ["a"]


def test_a_client_that_was_expected_registers_like_a_new_one(roster):
    roster.expect("a", 5.0)
    assert join(roster, "a")[1] is False
    assert roster.available == ["a"]
