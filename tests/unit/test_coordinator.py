"""The machine, driven by hand: what each call answers, and what time does."""

import ast
from pathlib import Path

import pytest

import fedcore.coordinator
from fedcore import Coordinator, RoundPolicy, errors, events
from fedcore.messages import Beat, Directive, Finished, Kind, Manifest, Outcome, Session, Status, Submit, Wait
from fedcore.phase import TRANSITIONS, Move, Phase
from fedcore.round import Assignment, Counted, Ticket


class Run:
    """A coordinator with a model, and shorthands for what clients do."""

    def __init__(self, *, num_rounds=3, lease=30.0, evaluate_timeout=60.0, model="m0", **policy):
        rules = RoundPolicy(**{"target": 2, "quorum": 1, "deadline": 100.0, "start_wait": 10.0, **policy})
        self.machine = Coordinator(
            "run", num_rounds=num_rounds, policy=rules, heartbeat_timeout=lease, evaluate_timeout=evaluate_timeout
        )
        if model:
            self.machine.adopt(model)
        self.sessions = {}

    def join(self, *names, now=0.0, evaluates=False):
        for name in names:
            token = f"{name}-{now}"
            self.sessions[name] = self.machine.register(name, token, evaluates=evaluates, now=now)

    def open(self, now=0.0, invited=None):
        available = self.machine.candidates(now)
        assert available is not None
        return self.machine.open_round(available if invited is None else invited, now)

    def pull(self, name, now=0.0):
        return self.machine.pull(self.sessions[name], now)

    def header(self, task, name=None, digest="d", examples=10, number=None, base=None):
        return Submit(
            self.sessions[name or task.client_id], task.id, task.round if number is None else number, "attempt",
            self.machine.digest if base is None else base, examples, Manifest("c", 4096, (), digest),
        )  # fmt: skip

    def submit(self, task, now=0.0, **fields):
        ticket = self.machine.admit(self.header(task, **fields), now)
        return self.machine.commit(ticket, now) if isinstance(ticket, Ticket) else ticket

    def beat(self, name, now=0.0, status=Status.TRAINING, task="", message=""):
        return self.machine.heartbeat(Beat(self.sessions[name], status, 0, 0, 0, task, message), now)

    def seen(self, kind):
        return [event for event in self.machine.events if isinstance(event, kind)]


def test_a_round_opens_when_the_target_is_registered():
    run = Run()
    run.join("a")
    assert run.machine.candidates(0.0) is None
    run.join("b")
    assert run.machine.candidates(0.0) == ["a", "b"]


def test_or_some_time_after_the_quorum_is():
    run = Run(start_wait=10.0)
    run.join("a", now=5.0)
    assert run.machine.candidates(14.9) is None
    assert run.machine.next_deadline(14.9) == 15.0
    assert run.machine.next_deadline(15.0) > 15.0  # nothing to wake up for: there are candidates, and nobody may spin
    assert run.machine.candidates(15.0) == ["a"]


def test_late_joiners_fill_free_places():
    run = Run(target=2, quorum=1)
    run.join("a")
    run.open(now=10.0)
    run.join("b", now=11.0)
    assert run.pull("b", now=11.0).kind is Kind.FIT
    run.join("c", now=11.0)
    assert run.pull("c", now=11.0) == Wait(1)


def test_a_pull_gives_the_same_task_until_it_is_answered():
    run = Run()
    run.join("a", "b")
    run.open()
    first = run.pull("a")
    assert run.pull("a") is first
    assert run.submit(first).outcome is Outcome.ACCEPTED
    assert run.pull("a") == Wait(1)


def test_a_round_closes_at_the_target_and_commits():
    run = Run()
    run.join("a", "b")
    run.open()
    for name in "ab":
        run.submit(run.pull(name))
    assert run.machine.phase is Phase.AGGREGATING
    assert run.seen(events.RoundClosed)[0].accepted == ("a", "b")
    run.machine.publish("m1", 1.0)
    assert (run.machine.phase, run.machine.round, run.machine.progress.committed) == (Phase.WAITING, 2, 1)


def test_it_closes_early_when_every_living_invited_client_has_answered():
    run = Run(target=2, quorum=1, lease=30.0)
    run.join("a", "b")
    run.open()
    run.submit(run.pull("a", now=1.0), now=1.0)
    run.beat("a", now=20.0)
    run.machine.tick(30.0)  # b was silent for 30 s
    assert run.seen(events.ClientLost)[0].client_id == "b"
    assert run.machine.phase is Phase.AGGREGATING
    run.machine.publish("m1", 31.0)
    assert run.seen(events.RoundCommitted)[0].missing == {"b": "silent for 30 s"}


@pytest.mark.parametrize(("answers", "doomed"), [(1, ""), (0, "only 0 of 1 updates came within 100 s")])
def test_at_the_deadline_it_closes_with_a_quorum_and_is_doomed_without(answers, doomed):
    run = Run(target=2, quorum=1, lease=1000.0, deadline=100.0)
    run.join("a", "b")
    run.open(now=0.0)
    for name in "ab"[:answers]:
        run.submit(run.pull(name))
    assert run.machine.next_deadline(1.0) == 100.0
    run.machine.tick(99.9)
    assert run.machine.phase is Phase.COLLECTING
    run.machine.tick(100.0)
    assert run.machine.phase is Phase.AGGREGATING
    assert run.machine.rounds.fit.doomed == doomed
    assert not run.seen(events.RoundFailed)  # not before the outcome is noted where it lasts


def test_a_failed_round_keeps_its_number_and_three_in_a_row_end_the_run():
    run = Run(target=1, max_failures=3)
    run.join("a")
    for number in (1, 2, 3):
        assert run.machine.round == number
        run.open()
        run.submit(run.pull("a"))
        run.machine.fail("no model", 1.0)
    assert run.machine.phase is Phase.FINISHED
    assert "3 rounds in a row failed" in run.machine.failed
    assert isinstance(run.pull("a"), Finished)


def test_a_committed_round_resets_the_count_of_failures():
    run = Run(target=1, max_failures=2, num_rounds=9)
    run.join("a")
    for fails in (True, False, True):
        run.open()
        run.submit(run.pull("a"))
        if fails:
            run.machine.fail("no model", 1.0)
        else:
            run.machine.publish("m", 1.0)
    assert run.machine.phase is Phase.WAITING


def test_extra_clients_are_invited_and_told_to_stop():
    run = Run(target=2, extra=1)
    run.join("a", "b", "c")
    run.open()
    tasks = {name: run.pull(name) for name in "abc"}
    run.submit(tasks["a"])
    assert run.beat("c", task=tasks["c"].id).directive is Directive.CONTINUE
    run.submit(tasks["b"])
    assert run.beat("c", task=tasks["c"].id).directive is Directive.ABORT_TASK
    assert run.submit(tasks["c"]).outcome is Outcome.CLOSED
    run.machine.publish("m1", 1.0)
    assert run.submit(tasks["c"]).outcome is Outcome.STALE
    assert run.seen(events.RoundCommitted)[0].accepted == ("a", "b")


class TestOutcomes:
    @pytest.fixture
    def run(self):
        run = Run(target=3)
        run.join("a", "b", "c")
        run.open()
        return run

    def test_accepted_once_however_often_it_comes(self, run):
        task = run.pull("a")
        assert run.submit(task).outcome is Outcome.ACCEPTED
        assert run.submit(task).outcome is Outcome.DUPLICATE
        assert len(run.machine.rounds.fit.accepted) == 1

    def test_a_duplicate_is_known_after_the_round_is_over(self, run):
        tasks = [run.pull(name) for name in "abc"]
        for task in tasks:
            run.submit(task)
        header = run.header(tasks[0])
        run.machine.publish("m1", 1.0)
        assert run.machine.admit(header, 1.0).outcome is Outcome.DUPLICATE

    def test_two_copies_on_the_way_at_once_count_once(self, run):
        task = run.pull("a")
        first, second = (run.machine.admit(run.header(task), 0.0) for _ in range(2))
        assert run.machine.commit(first, 0.0).outcome is Outcome.ACCEPTED
        assert run.machine.commit(second, 0.0).outcome is Outcome.DUPLICATE

    def test_another_update_for_an_answered_task_is_rejected(self, run):
        task = run.pull("a")
        run.submit(task)
        refused = run.submit(task, digest="other")
        assert (refused.outcome, refused.reason) == (Outcome.REJECTED, "ROUND_ALREADY_ANSWERED")
        assert run.submit(task, examples=11).reason == "ROUND_ALREADY_ANSWERED"

    def test_stale_and_future_by_the_round_of_the_header(self, run):
        task = run.pull("a")
        assert run.submit(task, number=0).outcome is Outcome.STALE
        assert run.submit(task, number=2).outcome is Outcome.FUTURE
        assert run.submit(task, number=(1 << 32) + 1).outcome is Outcome.FUTURE

    def test_not_selected_without_a_task_of_ones_own(self, run):
        task = run.pull("a")
        assert run.submit(task, name="b").outcome is Outcome.NOT_SELECTED
        other = Assignment("made-up", "a", run.machine.rounds.fit)
        assert run.submit(other, name="a").outcome is Outcome.NOT_SELECTED

    def test_trained_on_another_model(self, run):
        refused = run.submit(run.pull("a"), base="m9")
        assert (refused.outcome, refused.reason) == (Outcome.REJECTED, "BASE_MISMATCH")

    def test_closed_between_admission_and_commit(self, run):
        tasks = [run.pull(name) for name in "abc"]
        late = run.machine.admit(run.header(tasks[2]), 0.0)
        run.submit(tasks[0])
        run.machine.tick(29.0)
        for name in "ab":
            run.beat(name, now=29.0)
        run.submit(tasks[1], now=29.0)
        run.machine.tick(31.0)  # c is lost, the round closes without it
        assert run.machine.phase is Phase.AGGREGATING
        assert run.machine.commit(late, 31.0).outcome is Outcome.CLOSED

    def test_a_released_update_can_be_sent_again_unless_it_was_final(self, run):
        task = run.pull("a")
        ticket = run.machine.admit(run.header(task), 0.0)
        assert run.machine.release(ticket, 0.0, reason="CHECKSUM").outcome is Outcome.REJECTED
        ticket = run.machine.admit(run.header(task), 0.0)
        run.machine.release(ticket, 0.0, reason="NON_FINITE", message="tensor 'w'", final=True)
        assert run.submit(task).outcome is Outcome.NOT_SELECTED
        assert run.machine.rounds.fit.missing["a"] == "NON_FINITE: tensor 'w'"

    def test_every_outcome_was_seen_here(self):
        assert {o.name for o in Outcome} == {
            "ACCEPTED", "DUPLICATE", "STALE", "FUTURE", "NOT_SELECTED", "CLOSED", "REJECTED",
        }  # fmt: skip


class TestSessions:
    def test_another_run(self):
        run = Run()
        run.join("a")
        with pytest.raises(errors.RunChanged):
            run.machine.pull(Session("other", "a", run.sessions["a"].token), 0.0)

    def test_never_registered(self):
        with pytest.raises(errors.NotRegistered):
            Run().machine.pull(Session("run", "a", "t"), 0.0)

    def test_a_newer_process_fences_the_older_and_keeps_its_task(self):
        run = Run()
        run.join("a", "b")
        run.open()
        task, old = run.pull("a"), run.sessions["a"]
        run.join("a", now=1.0)
        with pytest.raises(errors.Fenced):
            run.machine.admit(Submit(old, task.id, 1, "x", "m0", 1, Manifest("c", 4096, (), "d")), 1.0)
        assert run.pull("a", now=1.0) is task
        assert run.submit(task, now=1.0).outcome is Outcome.ACCEPTED
        assert run.seen(events.ClientRegistered)[-1].again

    def test_a_lost_client_that_comes_back_takes_its_place_again_if_it_is_free(self):
        run = Run(target=2, quorum=2, lease=30.0)
        run.join("a", "b")
        run.open()
        task = run.pull("a")
        run.beat("b", now=29.0)
        run.machine.tick(30.0)
        with pytest.raises(errors.NotRegistered):
            run.pull("a", now=30.0)
        run.join("a", now=31.0)
        assert run.submit(task, now=31.0).outcome is Outcome.ACCEPTED

    def test_but_not_if_somebody_else_has_it(self):
        run = Run(target=2, quorum=2, lease=30.0)
        run.join("a", "b")
        run.open()
        task = run.pull("a")
        run.beat("b", now=29.0)
        run.machine.tick(30.0)
        run.join("c", "a", now=31.0)
        assert run.pull("c", now=31.0).client_id == "c"
        assert run.submit(task, now=31.0).outcome is Outcome.CLOSED

    def test_death_never_takes_back_an_accepted_update(self):
        run = Run(target=3, quorum=1, lease=30.0)
        run.join("a", "b", "c")
        run.open()
        run.submit(run.pull("a"))
        for name in "bc":
            run.beat(name, now=29.0)
        run.machine.tick(31.0)
        assert [a.client_id for a in run.machine.rounds.fit.accepted] == ["a"]

    def test_a_client_that_reported_an_error_is_not_counted_on(self):
        run = Run(target=2, quorum=2)
        run.join("a", "b")
        run.open()
        task = run.pull("a")
        run.beat("a", status=Status.ERROR, task=task.id, message="boom")
        assert run.machine.rounds.fit.missing["a"] == "boom"
        assert run.machine.roster.available == ["b"]
        run.pull("a")
        assert run.machine.roster.available == ["a", "b"]


class TestFirstModel:
    def test_the_first_client_is_asked(self):
        run = Run(model="")
        run.machine.ask_for_model(0.0)
        run.join("a", "b")
        task = run.pull("a")
        assert (task.kind, task.round) == (Kind.INITIALIZE, 0)
        assert run.pull("b") == Wait(1)
        assert run.submit(task, base="").outcome is Outcome.ACCEPTED
        run.machine.adopt("m0")
        assert run.machine.candidates(0.0) == ["a", "b"]
        assert run.submit(task, base="").outcome is Outcome.DUPLICATE

    def test_another_one_if_it_dies_or_fails(self):
        run = Run(model="", lease=30.0)
        run.machine.ask_for_model(0.0)
        run.join("a", "b", "c")
        run.pull("a")
        run.beat("b", now=29.0), run.beat("c", now=29.0)
        run.machine.tick(30.0)
        task = run.pull("b", now=30.0)
        assert task.kind is Kind.INITIALIZE
        run.beat("b", now=30.0, status=Status.ERROR, task=task.id)
        assert run.pull("c", now=30.0).kind is Kind.INITIALIZE

    def test_the_question_is_repeated_at_its_deadline(self):
        run = Run(model="", deadline=50.0, lease=1000.0)
        run.machine.ask_for_model(0.0)
        run.join("a", "b")
        run.pull("a")
        run.machine.tick(50.0)
        assert run.machine.next_deadline(50.0) == 100.0
        assert run.pull("b", now=50.0).kind is Kind.INITIALIZE


class TestEvaluation:
    def committed(self, **options):
        run = Run(num_rounds=2, target=2, **options)
        run.join("a", "b", evaluates=True)
        run.open()
        for name in "ab":
            run.submit(run.pull(name))
        run.machine.publish("m1", 1.0)
        return run

    def test_runs_beside_the_next_round(self):
        run = self.committed()
        run.open(now=1.0)
        task = run.pull("a", now=1.0)
        assert (task.kind, task.round) == (Kind.EVALUATE, 1)
        assert run.submit(task, now=1.0, base="m1").outcome is Outcome.ACCEPTED
        assert run.pull("a", now=1.0).kind is Kind.FIT
        run.submit(run.pull("b", now=1.0), now=1.0)
        assert run.seen(events.EvaluationClosed)[0].accepted == ("a", "b")

    def test_the_run_ends_when_the_last_model_is_evaluated(self):
        run = self.committed()
        run.open(now=1.0)
        for name in "ab":
            run.submit(run.pull(name, now=1.0), now=1.0)
            run.submit(run.pull(name, now=1.0), now=1.0)
        run.machine.publish("m2", 2.0)
        assert run.machine.phase is Phase.WAITING
        assert run.machine.candidates(2.0) is None
        for name in "ab":
            run.submit(run.pull(name, now=2.0), now=2.0)
        run.machine.tick(2.0)
        assert run.machine.phase is Phase.FINISHED

    def test_or_when_its_time_is_up(self):
        run = self.committed(evaluate_timeout=20.0, lease=1000.0)
        run.machine.progress.num_rounds = 1
        run.machine.tick(20.9)
        assert run.machine.phase is Phase.WAITING
        run.machine.tick(21.0)
        assert run.machine.phase is Phase.FINISHED
        assert run.machine.failed == ""


def test_everybody_is_told_the_end():
    run = Run(num_rounds=1)
    run.join("a", "b", "c")
    run.open(invited=["a", "b"])
    for name in "ab":
        run.submit(run.pull(name))
    run.machine.publish("m1", 1.0)
    assert run.machine.phase is Phase.FINISHED
    assert run.machine.roster.untold == 3
    assert isinstance(run.pull("a"), Finished)
    assert run.beat("b").directive is Directive.STOP
    assert run.machine.roster.untold == 1


def test_what_is_not_in_the_table_cannot_happen():
    assert set(TRANSITIONS) <= {(phase, move) for phase in Phase for move in Move}
    assert not any(phase is Phase.FINISHED for phase, _ in TRANSITIONS)
    run = Run()
    with pytest.raises(KeyError):
        run.machine.publish("m1", 0.0)


def test_the_machine_reads_no_clock_and_touches_nothing():
    banned = {"time", "threading", "socket", "asyncio", "random", "secrets", "os", "pathlib", "datetime"}
    root = Path(fedcore.coordinator.__file__).parent
    for name in ("coordinator", "round", "roster", "phase", "policy", "events"):
        tree = ast.parse((root / f"{name}.py").read_text())
        imported = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
        }
        assert not imported & banned, name
        assert not any(isinstance(n, ast.Call) and getattr(n.func, "id", "") == "open" for n in ast.walk(tree)), name


def test_a_stop_in_the_answer_to_an_update_is_heard():
    """Nobody waits for such a client to come and hear it once more."""
    run = Run()
    run.join("a", "b")
    run.open()
    task = run.pull("a")
    run.machine.finish("enough", 1.0)
    run.pull("b")
    assert run.machine.roster.untold == 1
    assert run.submit(task, now=2.0).directive is Directive.STOP
    assert run.machine.roster.untold == 0


class TestResume:
    def resumed(self, *, closed=False, elapsed=40.0, now=1000.0, **accepted):
        run = Run(model="", lease=30.0, deadline=100.0, target=3)
        run.machine.resume("run-0", number=7, digest="m6", outcomes=[1.0] * 6)
        updates = [Counted(f"fit-7-{name}", name, 7, digest, 10) for name, digest in accepted.items()]
        run.machine.reopen(["a", "b", "c"], updates, elapsed, now, closed=closed)
        return run

    def test_it_is_the_same_round_with_the_time_that_was_left(self):
        run = self.resumed(a="d")
        opened = run.seen(events.RoundOpened)[0]
        assert (run.machine.run_id, run.machine.round, opened.round, opened.invited) == ("run-0", 7, 7, ("a", "b", "c"))
        assert run.machine.phase is Phase.COLLECTING
        assert run.machine.rounds.fit.closes_at == 1060.0
        assert run.machine.rounds.fit.base_digest == "m6"

    def test_i3_an_update_that_is_in_it_is_a_duplicate_when_it_is_sent_again(self):
        run = self.resumed(a="d")
        run.join("a", now=1001.0)
        task = run.machine.rounds.fit.assignments["a"]
        assert run.submit(task, now=1001.0, digest="d").outcome is Outcome.DUPLICATE
        assert run.submit(task, now=1001.0, digest="other").reason == "ROUND_ALREADY_ANSWERED"

    def test_clients_that_come_back_hand_in_what_they_trained(self):
        run = self.resumed(a="d")
        run.join("b", "c", now=1001.0)
        for name in "bc":
            assert run.submit(run.machine.rounds.fit.assignments[name], now=1002.0).outcome is Outcome.ACCEPTED
        assert run.machine.phase is Phase.AGGREGATING

    def test_clients_that_do_not_come_back_free_their_places_after_one_lease(self):
        run = self.resumed(a="d")
        run.join("b", "x", now=1001.0)
        assert isinstance(run.pull("x", now=1002.0), Wait)
        run.beat("b", now=1029.0), run.beat("x", now=1029.0)
        run.machine.tick(1030.0)
        assert [lost.client_id for lost in run.seen(events.ClientLost)] == ["c"]
        assert run.pull("x", now=1031.0).id == "fit-7-x"
        assert run.machine.rounds.fit.count == 1  # what is accepted stays

    def test_a_closed_round_is_aggregated_again(self):
        run = self.resumed(closed=True, a="d", b="e")
        assert run.machine.phase is Phase.AGGREGATING
        run.machine.publish("m7", 1001.0)
        assert run.seen(events.RoundCommitted)[0].accepted == ("a", "b")
        assert run.machine.progress.committed == 7

    def test_failures_in_a_row_go_on_being_counted_but_a_run_that_ended_for_them_gets_another_chance(self):
        for failures, ends in ((2, True), (3, False)):
            run = Run(model="", max_failures=3, target=1)
            run.machine.resume("run-0", number=failures + 1, digest="m0", outcomes=[None] * failures)
            run.join("a")
            run.open()
            run.machine.tick(100.0)
            run.machine.fail("nothing came", 100.0)
            assert (run.machine.phase is Phase.FINISHED) is ends


class TestFailedRounds:
    def failing(self, **policy):
        run = Run(target=1, num_rounds=3, max_failures=2, **policy)
        run.join("a")
        return run

    def fail(self, run, now=1.0):
        run.open(now)
        run.machine.tick(now + 100.0)
        run.machine.fail("nothing came", now + 100.0)
        run.join("a", now=now + 100.0)

    def test_skipped_rounds_count_and_never_end_the_run_early(self):
        run = self.failing(on_failure="skip")
        for number in range(3):
            assert run.machine.phase is Phase.WAITING
            self.fail(run, now=200.0 * number)
        assert (run.machine.phase, run.machine.failed) == (Phase.FINISHED, "")
        assert run.machine.progress.committed == 0

    def test_the_first_failure_may_end_the_run(self):
        run = self.failing(on_failure="abort")
        self.fail(run)
        assert run.machine.phase is Phase.FINISHED
        assert run.machine.failed == "round 1 failed, because nothing came"


class TestLateUpdates:
    """Client a is slow: its round closes at the deadline, and its update comes in the next."""

    def late(self, late="carry", **policy):
        run = Run(target=2, quorum=1, deadline=10.0, lease=1000.0, late=late, **policy)
        run.join("a", "b")
        run.open(0.0, ["a", "b"])
        task = run.pull("a")
        run.submit(run.pull("b"))
        run.machine.tick(10.0)
        header = run.header(task, number=1, base="m0")
        return run, task, header

    def again(self, run, invited, now=11.0):
        run.machine.publish("m1", now)
        run.join("c", now=now)
        run.open(now, invited)

    def hand_in(self, run, header, now=12.0):
        ticket = run.machine.admit(header, now)
        return run.machine.commit(ticket, now) if isinstance(ticket, Ticket) else ticket

    def test_dropped(self):
        run, _, header = self.late("drop")
        self.again(run, ["b", "c"])
        assert self.hand_in(run, header).outcome is Outcome.STALE

    def test_carried_into_the_round_that_is_open_and_counted_once(self):
        run, _, header = self.late()
        self.again(run, ["b", "c"])
        assert self.hand_in(run, header).outcome is Outcome.ACCEPTED
        assert [a.client_id for a in run.machine.rounds.fit.accepted] == ["a"]
        assert self.hand_in(run, header).outcome is Outcome.DUPLICATE
        assert run.machine.rounds.fit.count == 1
        run.submit(run.pull("b", 12.0), now=12.0)
        run.machine.publish("m2", 13.0)
        run.open(14.0, ["b", "c"])
        assert self.hand_in(run, header, 15.0).outcome is Outcome.DUPLICATE  # nor again in a later one

    def test_not_beside_an_update_of_its_own(self):
        run, _, header = self.late()
        self.again(run, ["a", "b"])
        assert self.hand_in(run, header).outcome is Outcome.STALE

    def test_its_client_is_told_to_go_on_and_asked_nothing_else(self):
        run, task, header = self.late()
        assert run.beat("a", 10.5, task=task.id).directive is Directive.CONTINUE
        run.machine.publish("m1", 11.0)
        run.join("c", now=11.0)
        assert run.machine.candidates(11.0) == ["b", "c"]
        run.open(11.0)
        assert run.beat("a", 11.5, task=task.id).directive is Directive.CONTINUE
        assert self.hand_in(run, header).outcome is Outcome.ACCEPTED
        assert run.pull("a", 12.0) == Wait(2)
        run.submit(run.pull("b", 12.0), now=12.0)
        run.machine.publish("m2", 13.0)
        assert run.machine.candidates(13.0) == ["a", "b", "c"]

    def test_one_that_asks_for_work_is_not_busy(self):
        run, task, header = self.late()
        run.machine.publish("m1", 11.0)
        run.open(11.0)
        assert run.pull("a", 12.0).round == 2
        assert run.beat("a", 12.0, task=task.id).directive is Directive.ABORT_TASK
        assert self.hand_in(run, header).outcome is Outcome.STALE

    @pytest.mark.parametrize("end", ["gives back", "lost", "evicted"])
    def test_who_is_gone_is_waited_for_no_more(self, end):
        run, task, _ = self.late()
        run.machine.publish("m1", 11.0)
        assert run.machine.rounds.late == {"a": task}
        if end == "gives back":
            run.beat("a", 12.0, Status.ERROR, task.id)
        elif end == "evicted":
            run.machine.evict("a", "for a reason", 12.0)
        else:
            run.beat("b", 900.0)
            run.machine.tick(1001.0)
        assert not run.machine.rounds.late

    def test_not_when_it_is_later_than_that(self):
        run, task, header = self.late(max_staleness=1)
        self.again(run, ["b"])
        run.submit(run.pull("b", 12.0), now=12.0)
        run.machine.publish("m2", 13.0)
        run.open(13.0, ["b"])
        assert run.beat("a", 13.5, task=task.id).directive is Directive.ABORT_TASK
        assert self.hand_in(run, header, 14.0).outcome is Outcome.STALE
        run.pull("a", 15.0)
        assert not run.machine.rounds.late

    def test_between_rounds_it_is_to_come_again(self):
        run, _, header = self.late()
        with pytest.raises(errors.ConnectionLost, match="counts in the next round"):
            run.machine.admit(header, 10.5)

    def test_after_the_end_it_is_dropped(self):
        run, _, header = self.late()
        run.machine.finish("", 11.0)
        assert not self.hand_in(run, header).counted

    def test_a_carried_update_survives_a_restart(self):
        run = Run(model="", target=3)
        run.machine.resume("run", number=7, digest="m6", outcomes=[1.0] * 6)
        carried = Counted("fit-5-a", "a", 5, "d", 10)
        run.machine.reopen(["b"], [carried], 0.0, 100.0, closed=False)
        run.join("a", now=101.0)
        assert run.machine.rounds.fit.count == 1
        header = Submit(run.sessions["a"], "fit-5-a", 5, "try", "m4", 10, Manifest("c", 4096, (), "d"))
        assert run.machine.admit(header, 102.0).outcome is Outcome.DUPLICATE


def test_deadlines_adapt_and_are_whole_again_after_a_failure():
    run = Run(target=1, deadline=100.0, num_rounds=9, adapt=4.0, lease=10_000.0)
    run.join("a")
    now = 0.0
    for _ in range(3):
        run.open(now)
        run.submit(run.pull("a", now), now=now)
        now += 5.0
        run.machine.publish("m", now)
    run.machine.digest = "m"
    assert run.open(now).closes_at == now + 20.0
    run.machine.tick(now + 20.0)
    run.machine.fail("nothing came", now + 20.0)
    assert run.open(now + 30.0).closes_at == now + 130.0


def test_f6_a_time_in_which_nobody_could_be_heard_counts_for_nothing():
    run = Run(target=2, deadline=50.0, lease=5.0)
    run.join("a", "b")
    run.open(0.0)
    run.machine.excuse(20.0, 21.0)
    run.machine.tick(21.0)
    assert not run.seen(events.ClientLost)
    assert run.machine.rounds.fit.closes_at == 70.0
    run.machine.tick(26.0)
    assert len(run.seen(events.ClientLost)) == 2


class TestAsynchronousPace:
    """A round is a buffer of two updates; client a is slow."""

    def begin(self, **policy):
        run = Run(target=2, quorum=1, deadline=1000.0, lease=1000.0, pace="async", num_rounds=100, **policy)
        run.join("a", "b", "c", "d")
        run.open()
        self.tasks = {name: run.pull(name) for name in "abcd"}
        self.bases = {1: "m0"}
        return run

    def hand_in(self, run, name, now=0.0):
        task = self.tasks[name]
        return run.submit(task, now, number=task.made_for.number, base=self.bases[task.made_for.number], digest=f"{name}{now}")

    def publish(self, run, now=0.0):
        run.machine.publish(f"m{run.machine.round}", now)
        self.bases[run.machine.round] = run.machine.digest
        run.open(now)

    def turn(self, run, *names, now=0.0):
        """Make one model of the updates of these clients, and give them new tasks."""
        for name in names:
            assert self.hand_in(run, name, now).outcome is Outcome.ACCEPTED
        self.publish(run, now)
        for name in names:
            self.tasks[name] = run.pull(name, now)

    def test_everybody_is_busy_and_an_update_counts_whichever_model_it_was_made_from(self):
        run = self.begin()
        assert len(run.machine.rounds.fit.assignments) == 4
        self.turn(run, "b", "c")
        assert [self.tasks[name].round for name in "abcd"] == [1, 2, 2, 1]
        self.turn(run, "b", "d")
        self.turn(run, "b", "a")
        assert [e.accepted for e in run.seen(events.RoundCommitted)] == [("b", "c"), ("b", "d"), ("a", "b")]
        assert [self.tasks[name].round for name in "abcd"] == [4, 4, 2, 3]

    def test_a_client_counts_once_in_a_round(self):
        run = self.begin()
        assert self.hand_in(run, "b").outcome is Outcome.ACCEPTED
        assert run.pull("b") == Wait(1)

    def test_a_round_waits_for_those_who_are_busy_with_an_older_one(self):
        run = self.begin()
        self.turn(run, "b", "c")
        assert self.hand_in(run, "a").outcome is Outcome.ACCEPTED
        assert run.machine.phase is Phase.COLLECTING
        for name in "bc":
            run.beat(name, status=Status.ERROR, task=self.tasks[name].id)
        assert run.machine.phase is Phase.COLLECTING  # for d
        run.beat("d", status=Status.ERROR, task=self.tasks["d"].id)
        assert run.machine.phase is Phase.AGGREGATING

    def test_no_more_are_busy_at_once_than_the_policy_wants(self):
        run = Run(target=1, deadline=1000.0, lease=1000.0, pace="async", concurrency=2)
        run.join("a", "b", "c")
        run.open(invited=["a", "b"])
        self.tasks = {name: run.pull(name) for name in "ab"}
        self.bases = {1: "m0"}
        assert run.pull("c") == Wait(1)
        assert self.hand_in(run, "a").outcome is Outcome.ACCEPTED
        run.machine.publish("m1", 0.0)
        run.open(invited=[])
        assert run.pull("c").round == 2
        assert run.pull("a") == Wait(2)

    def test_one_that_is_too_late_is_told_so(self):
        run = self.begin(max_staleness=2)
        for now in (1.0, 2.0):
            self.turn(run, "b", "c", now=now)
            assert run.beat("a", task=self.tasks["a"].id).directive is Directive.CONTINUE
        self.turn(run, "b", "c", now=3.0)
        assert run.beat("a", task=self.tasks["a"].id).directive is Directive.ABORT_TASK
        assert self.hand_in(run, "a").outcome is Outcome.STALE

    def test_long_after_its_round_was_forgotten_a_late_update_counts(self):
        run = self.begin(max_staleness=50)
        for now in range(40):
            self.turn(run, "b", "c", now=float(now))
        assert self.hand_in(run, "a", 50.0).outcome is Outcome.ACCEPTED

    def test_at_the_deadline_what_came_is_enough(self):
        run = self.begin()
        self.hand_in(run, "b")
        run.machine.tick(1000.0)
        assert run.machine.phase is Phase.AGGREGATING
