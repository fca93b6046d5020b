"""Faults planted by hand, which the machine must find: what it does not find in these, it would not find in the product."""

import math
from dataclasses import replace

import pytest
from crash_machine import CrashMachine
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from fedcore.coordinator import Coordinator
from fedcore.course import Course
from fedcore.parking import Parking
from fedcore.policy import RoundPolicy
from fedcore.reception import Reception
from fedcore.roster import Roster
from fedcore.round import Round, State, Ticket
from fedcore.rounds import Rounds
from fedcore.testing.journal import MemoryJournal
from fedcore.uploads import Uploads

pytestmark = pytest.mark.chaos

FAULTS = {}


def fault(plant):
    """List a function that plants a fault, given the fixture that takes it away again."""
    FAULTS[plant.__name__] = plant
    return plant


@fault
def counts_a_duplicate_again(patch):
    judge = Round.refusal

    def refusal(self, ticket, current):
        found = judge(self, ticket, current)
        return None if found and found[1] == "DUPLICATE" and self.open else found

    patch.setattr(Round, "refusal", refusal)


@fault
def lets_those_wait_who_have_work(patch):
    settle = Parking.settle
    patch.setattr(Parking, "settle", lambda self, machine, now, *, everybody: settle(self, machine, now, everybody=False))


@fault
def takes_a_late_update_into_the_next_round(patch):
    judge = Coordinator.admit

    def admit(self, header, now):
        client_id, fit = self.roster.member(header.session, now).client_id, self.rounds.fit
        mine = fit.assignments.get(client_id) if fit and fit.open and header.round < fit.number else None
        return Ticket(mine, header.digest, header.num_examples) if mine and mine.pending else judge(self, header, now)

    patch.setattr(Coordinator, "admit", admit)


@fault
def acknowledges_before_it_notes(patch):
    take, note, put_off = Uploads._take_in, Uploads._note, []

    def take_in(self, arrival, nbytes):
        counted = take(self, arrival, nbytes)
        while put_off:
            note(*put_off.pop())
        return counted

    patch.setattr(Uploads, "_take_in", take_in)
    patch.setattr(Uploads, "_note", lambda *update: put_off.append(update) or True)


@fault
def closes_with_whatever_is_noted(patch):
    close = MemoryJournal.close
    patch.setattr(
        MemoryJournal, "close", lambda self, number, tasks: close(self, number, [each.task_id for each in self.disk.of(number)])
    )


@fault
def publishes_before_it_notes(patch):
    publish, commit, put_off = Course._publish, MemoryJournal.commit, []

    def both(self, *model):
        publish(self, *model)
        while put_off:
            commit(*put_off.pop())

    patch.setattr(Course, "_publish", both)
    patch.setattr(MemoryJournal, "commit", lambda *what: put_off.append(what))


@fault
def forgets_accepted_updates_when_it_starts(patch):
    reopen = Coordinator.reopen
    patch.setattr(Coordinator, "reopen", lambda self, invited, _, *rest, **more: reopen(self, invited, [], *rest, **more))


@fault
def opens_a_committed_round_again(patch):
    resume = Coordinator.resume
    patch.setattr(Coordinator, "resume", lambda self, name, *, number, **more: resume(self, name, number=number - 1, **more))


@fault
def listens_to_a_fenced_process(patch):
    find = Roster.member

    def member(self, session, now):
        known = self.members.get(session.client_id)
        return find(self, replace(session, token=known.token) if known else session, now)

    patch.setattr(Roster, "member", member)


@fault
def loses_an_accepted_update_with_its_client(patch):
    lose = Rounds.lose

    def lose_all(self, client_id, reason):
        lost = lose(self, client_id, reason)
        if self.fit and self.fit.open and client_id in self.fit.assignments:
            self.fit.assignments[client_id].state = State.LOST
        return lost

    patch.setattr(Rounds, "lose", lose_all)


@fault
def is_content_with_one_less_than_the_quorum(patch):
    judge = RoundPolicy.verdict
    patch.setattr(RoundPolicy, "verdict", lambda self, **facts: judge(replace(self, quorum=max(1, self.quorum - 1)), **facts))


@fault
def ignores_the_deadline(patch):
    judge = RoundPolicy.verdict
    patch.setattr(RoundPolicy, "verdict", lambda self, **facts: judge(self, **{**facts, "closes_at": math.inf}))


@fault
def gives_a_round_all_its_time_again_when_it_starts(patch):
    reopen = Coordinator.reopen
    patch.setattr(
        Coordinator, "reopen",
        lambda self, invited, accepted, elapsed, now, *, closed: reopen(self, invited, accepted, 0.0, now, closed=closed),
    )  # fmt: skip


@fault
def uses_the_number_of_a_failed_round_again(patch):
    fail = Coordinator.fail

    def fail_and_step_back(self, reason, now):
        fail(self, reason, now)
        self.round -= 1

    patch.setattr(Coordinator, "fail", fail_and_step_back)


@fault
def makes_a_model_of_a_round_that_was_to_fail(patch):
    reopen = Coordinator.reopen

    def reopen_and_hope(self, *what, **more):
        reopen(self, *what, **more)
        self.rounds.fit.doomed = ""

    patch.setattr(Coordinator, "reopen", reopen_and_hope)


@fault
def welcomes_a_process_that_is_not_noted(patch):
    note = Reception._note

    def note_nothing(self, name, welcome, future):
        with self._turn() as coordinator:
            self.noted[name] = coordinator.roster.processes(name)
        return note(self, name, welcome, future)

    patch.setattr(Reception, "_note", note_nothing)


@fault
def forgets_what_is_over_when_it_starts(patch):
    patch.setattr(Rounds, "recall", lambda *nothing: None)


LONG = {"makes_a_model_of_a_round_that_was_to_fail", "closes_with_whatever_is_noted"}  # they are found after a while


@pytest.mark.parametrize("name", [pytest.param(each, marks=pytest.mark.slow) if each in LONG else each for each in FAULTS])
def test_the_machine_finds_it(name, monkeypatch, caplog):
    caplog.set_level("CRITICAL")
    FAULTS[name](monkeypatch)
    run = settings(
        max_examples=400, stateful_step_count=50, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(seed(1)(type("Machine", (CrashMachine,), {})), settings=run)
