"""One collection of answers: places, tasks, refusals."""

import pytest

from fedcore.messages import Kind, Outcome
from fedcore.policy import RoundPolicy, Verdict
from fedcore.round import Round, State, Ticket, misplaced


def a_round(*invited, kind=Kind.FIT, number=5, **changes):
    rules = RoundPolicy(**{"target": 2, "quorum": 1, "deadline": 100.0, **changes})
    made = Round(kind, number, rules, 10.0, "base")
    made.invite(invited)
    return made


def accept(made, name, digest="d", examples=7):
    assignment = made.assignments[name]
    assignment.state, assignment.digest, assignment.num_examples = State.ACCEPTED, digest, examples
    return Ticket(assignment, digest, examples)


def test_task_ids_are_unique_and_found_again():
    made = a_round("b", "a", "c")
    ids = [assignment.id for assignment in made.assignments.values()]
    assert ids == ["fit-5-b", "fit-5-a", "fit-5-c"]
    assert made.find("fit-5-a").client_id == "a"
    assert made.find("fit-5-9") is None


def test_an_offer_is_the_same_task_until_it_is_answered():
    made = a_round("a", "b")
    task = made.offer("a")
    assert task.state is State.ASSIGNED
    assert made.offer("a") is task
    accept(made, "a")
    assert made.offer("a") is None


def test_a_newcomer_gets_a_place_only_if_one_is_free():
    made = a_round("a")
    assert made.vacancies == 1
    assert made.offer("new").client_id == "new"
    assert made.vacancies == 0
    assert made.offer("newer") is None
    assert "newer" not in made.assignments


def test_a_newcomer_is_never_asked_to_evaluate():
    assert a_round("a", kind=Kind.EVALUATE).offer("new") is None


def test_extra_places():
    made = a_round("a", "b", extra=1)
    assert made.vacancies == 1
    assert made.offer("c") is not None


@pytest.mark.parametrize("state", [State.LOST, State.RETURNED])
def test_a_place_is_free_again_when_its_client_is_gone(state):
    made = a_round("a", "b")
    made.assignments["a"].state = state
    assert made.vacancies == 1
    assert made.offer("c").client_id == "c"


def test_a_lost_client_takes_its_old_task_again_while_there_is_room():
    made = a_round("a", "b")
    lost = made.assignments["a"]
    lost.state = State.LOST
    assert made.offer("a") is lost
    assert lost.state is State.ASSIGNED
    lost.state = State.LOST
    made.offer("c")
    assert made.offer("a") is None


def test_a_task_that_was_given_back_is_not_offered_again():
    made = a_round("a", "b")
    made.assignments["a"].state = State.RETURNED
    assert made.offer("a") is None


class TestRefusal:
    def refusal(self, made, name="a", digest="d", examples=7, current=5):
        refused = made.refusal(Ticket(made.assignments[name], digest, examples), current)
        return refused and refused[:2]

    def test_an_open_task_takes_an_update(self):
        assert self.refusal(a_round("a")) is None

    def test_l6_the_same_update_again_is_a_duplicate_whatever_happened_since(self):
        made = a_round("a")
        accept(made, "a")
        assert self.refusal(made) == (Outcome.DUPLICATE, "DUPLICATE")
        made.open = False
        assert self.refusal(made, current=9) == (Outcome.DUPLICATE, "DUPLICATE")

    @pytest.mark.parametrize("other", [{"digest": "e"}, {"examples": 8}])
    def test_l6_u5_w18_another_update_or_another_weight_is_no_duplicate(self, other):
        made = a_round("a")
        accept(made, "a")
        assert self.refusal(made, **other) == (Outcome.REJECTED, "ROUND_ALREADY_ANSWERED")

    def test_l16_too_late_within_the_round_and_after_it(self):
        made = a_round("a")
        made.open = False
        assert self.refusal(made) == (Outcome.CLOSED, "ROUND_CLOSED")
        assert self.refusal(made, current=6) == (Outcome.STALE, "STALE_ROUND")

    def test_a_lost_client_may_answer_while_its_place_is_free(self):
        made = a_round("a", "b")
        made.assignments["a"].state = State.LOST
        assert self.refusal(made) is None
        made.offer("c")
        assert self.refusal(made) == (Outcome.CLOSED, "ROUND_CLOSED")

    def test_u21_a_task_that_was_given_back(self):
        made = a_round("a")
        made.assignments["a"].state, made.assignments["a"].reason = State.RETURNED, "boom"
        assert self.refusal(made) == (Outcome.NOT_SELECTED, "NOT_SELECTED")
        assert "boom" in made.refusal(Ticket(made.assignments["a"], "d", 7), 5)[2]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (4, (Outcome.STALE, "STALE_ROUND")), (-95, (Outcome.STALE, "STALE_ROUND")),
        (6, (Outcome.FUTURE, "FUTURE_ROUND")), ((1 << 32) + 5, (Outcome.FUTURE, "FUTURE_ROUND")),
        (5, (Outcome.NOT_SELECTED, "NOT_SELECTED")),
    ],
)  # fmt: skip
def test_u1_u2_w11_updates_for_other_rounds(number, expected):
    assert misplaced(number, 5)[:2] == expected


def test_c5_the_accepted_are_listed_by_client_id():
    made = a_round("c", "a", "b", target=3)
    for name in ("b", "c", "a"):
        accept(made, name)
    assert [assignment.client_id for assignment in made.accepted] == ["a", "b", "c"]


def test_who_is_missing_and_why():
    made = a_round("d", "a", "b", "c", target=4)
    accept(made, "a")
    made.assignments["b"].state, made.assignments["b"].reason = State.LOST, "silent for 30 s"
    made.assignments["c"].state = State.RETURNED
    made.offer("d")
    assert made.missing == {"b": "silent for 30 s", "c": "returned", "d": "no answer in time"}
    assert list(made.missing) == ["b", "c", "d"]
    assert made.pending == 1


def test_the_verdict_counts_the_living():
    made = a_round("a", "b")
    assert made.verdict(20.0) is Verdict.WAIT
    accept(made, "a")
    assert made.verdict(20.0) is Verdict.WAIT
    made.assignments["b"].state = State.LOST
    assert made.verdict(20.0) is Verdict.CLOSE


def test_it_closes_at_its_deadline():
    made = a_round("a", "b", quorum=2)
    assert made.closes_at == 110.0
    assert made.verdict(109.9) is Verdict.WAIT
    assert made.verdict(110.0) is Verdict.FAIL
