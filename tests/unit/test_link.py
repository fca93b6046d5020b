"""A client's link: patience, sessions, downloads, uploads and heartbeats, against a server that is written by hand."""

import logging
import threading
from concurrent.futures import Future
from itertools import pairwise

import pytest
import torch

from fedcore import Memory
from fedcore.broadcast import encode
from fedcore.clock import Clock
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.torch import Torch
from fedcore.errors import (
    ChecksumError,
    CodecRefused,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    Fenced,
    NotRegistered,
    ProtocolError,
    RunChanged,
    SchemaMismatch,
    TooOften,
    UnknownName,
)
from fedcore.intake import receive
from fedcore.link import Link
from fedcore.messages import (
    Assigned,
    Beat,
    BeatReply,
    Directive,
    Finished,
    Kind,
    Outcome,
    Pull,
    Register,
    Registered,
    Session,
    Status,
    Submit,
    Submitted,
    Task,
    Wait,
)
from fedcore.parameters import Spec, digest
from fedcore.testing import FakeClock
from fedcore.transport import Reply

MODEL = {"w": torch.arange(3.0), "n": torch.tensor(2)}
SPEC, DIGEST = Spec.of(MODEL), digest(MODEL)
TASK = Task("fit-1-0", Kind.FIT, 1, DIGEST, {"lr": 0.5})
ACCEPTED = Submitted(Outcome.ACCEPTED, "ACCEPTED", round=1)


class Hurried(FakeClock):
    """A clock on which whoever waits finds that the time has passed."""

    def wait(self, condition, timeout):
        self.advance(timeout)


def assigned(task=TASK, body=None, model=MODEL):
    spec = Spec.of(model)
    payload = encode(model, spec, Safetensors(), 4096)
    return Reply(Assigned(task, payload.manifest), payload.body if body is None else body)


class Desk:
    """A server's handler: each kind of message has a script, whose last line is repeated.

    A line is an answer, a reply, an error to raise, or a function of the request that returns one of these.
    """

    def __init__(self, **scripts):
        self.scripts = {"Register": [self.welcome], "Beat": [BeatReply(True)], **scripts}
        self.seen, self.tokens = [], 0

    def welcome(self, request):
        self.tokens += 1
        return Registered(Session("run", request.message.client_id, f"token-{self.tokens}"), "safetensors", 2.5, 30.0)

    def __call__(self, request):
        self.seen.append(request)
        script = self.scripts[type(request.message).__name__]
        line = script.pop(0) if len(script) > 1 else script[0]
        if callable(line):
            line = line(request)
        future = Future()
        if isinstance(line, Exception):
            future.set_exception(line)
        else:
            future.set_result(line if isinstance(line, Reply) else Reply(line))
        return future

    def got(self, kind):
        return [request.message for request in self.seen if isinstance(request.message, kind)]


@pytest.fixture
def link_to():
    """Return a function that links to a desk, registered."""
    opened = []

    def link_to(desk, *, register=True, clock=None, client_id="client-1", **options):
        listener = Memory().listen("", desk)
        connection = Memory().connect(listener.address)
        opened.extend((connection, listener))
        link = Link(connection, client_id, clock=clock or Hurried(), **options)
        if register:
            link.register()
        return link

    yield link_to
    for one in opened:
        one.close() if hasattr(one, "close") else one.stop()


class TestRegistration:
    def test_says_who_it_is_and_what_it_can(self, link_to):
        desk = Desk()
        link = link_to(desk, codec="msgpack", accept_codecs=["safetensors+lz4"], evaluates=True)
        (message,) = desk.got(Register)
        assert message == Register(
            "client-1", "msgpack", ("lz4", "msgpack", "safetensors"), True, instance=message.instance
        )
        assert message.instance
        assert link.session == Session("run", "client-1", "token-1")

    def test_w1_torch_is_not_accepted_unless_asked_for(self, link_to):
        desk = Desk()
        link_to(desk)
        link_to(desk, codec=Torch())
        first, second = desk.got(Register)
        assert "torch" not in first.accepts
        assert (first.codec, second.codec) == ("", "torch")
        assert "torch" in second.accepts

    def test_a_server_that_wants_another_codec_is_refused(self, link_to):
        desk = Desk(Register=[Registered(Session("run", "client-1", "t"), "torch", 1.0, 9.0)])
        with pytest.raises(CodecRefused, match="'torch'"):
            link_to(desk)

    @pytest.mark.parametrize(
        ("client_id", "options", "kind"),
        [("../x", {}, ConfigError), ("", {}, ConfigError), ("c", {"codec": "zip"}, UnknownName),
         ("c", {"accept_codecs": ["zip"]}, UnknownName), ("c", {"accept_codecs": "torch"}, ConfigError)],
    )  # fmt: skip
    def test_bad_arguments_are_refused_before_anything_is_sent(self, client_id, options, kind):
        with pytest.raises(kind):
            Link(Memory().connect("nowhere"), client_id, **options)

    def test_nothing_can_be_asked_before(self, link_to):
        link = link_to(Desk(), register=False)
        with pytest.raises(NotRegistered, match="register"):
            link.next_task()

    def test_a_refusal_is_raised_at_once(self, link_to):
        desk = Desk(Register=[ConfigError("no", reason="BAD_CLIENT_ID")])
        with pytest.raises(ConfigError):
            link_to(desk)
        assert len(desk.seen) == 1

    def test_another_answer_than_a_welcome_is_a_protocol_error(self, link_to):
        with pytest.raises(ProtocolError, match="Wait instead of Registered"):
            link_to(Desk(Register=[Wait()]))


class TestPatience:
    @pytest.mark.parametrize("error", [ConnectionLost("gone"), DeadlineExceeded("late")])
    def test_it_tries_again_until_it_works(self, link_to, error):
        desk = Desk(Pull=[error] * 30 + [Finished("done")])
        assert link_to(desk, patience=300.0).next_task() == Finished("done")
        assert len(desk.got(Pull)) == 31

    def test_bytes_that_change_three_times_are_no_accident(self, link_to):
        desk = Desk(Pull=[ChecksumError("bits")] * 2 + [Finished("done")])
        assert link_to(desk).next_task() == Finished("done")
        with pytest.raises(ChecksumError, match="bits"):
            link_to(Desk(Pull=[ChecksumError("bits")] * 3 + [Finished("done")])).next_task()

    @pytest.mark.parametrize("patience", [0.0, 1.0, 60.0])
    def test_l21_until_its_patience_is_over(self, link_to, patience):
        clock = Hurried(1000.0)
        desk = Desk(Pull=[ConnectionLost("gone")])
        link = link_to(desk, patience=patience, clock=clock)
        with pytest.raises(ConnectionLost, match="gone"):
            link.next_task()
        assert patience <= clock.now() - 1000.0 <= patience + 5.0  # the longest pause
        assert len(desk.got(Pull)) >= 1 + patience / 5

    def test_l21_pauses_grow_and_differ_between_clients(self):
        def pauses(client_id):
            waits = []

            class Noted(Hurried):
                def wait(self, condition, timeout):
                    waits.append(timeout)
                    super().wait(condition, timeout)

            with pytest.raises(ConnectionLost):
                Link(Memory().connect("nobody"), client_id, patience=100.0, clock=Noted()).register()
            return waits

        first = pauses("a")
        assert first == pauses("a") != pauses("b")
        assert max(first[:4]) <= 0.4
        assert 2.5 < max(first) <= 5.0

    @pytest.mark.parametrize("told", [0.5, 7.0, 40.0])
    def test_l21_never_before_the_time_that_the_server_told(self, link_to, told):
        def times(client_id):
            clock, came = Hurried(1000.0), []

            def refuse(request):
                came.append(clock.now())
                return TooOften("later", retry_after=told)

            desk = Desk(Pull=[refuse, refuse, refuse, Finished("done")])
            assert link_to(desk, patience=300.0, clock=clock, client_id=client_id).next_task() == Finished("done")
            return [*came, clock.now()]

        waits = [later - earlier for earlier, later in pairwise(times("a"))]
        assert len(waits) == 3
        assert all(told <= wait <= told + 5.0 for wait in waits)
        assert times("a") == times("a") != times("b")  # many that were refused do not come back together

    def test_l21_not_at_all_if_that_is_beyond_its_patience(self, link_to):
        clock, desk = Hurried(1000.0), Desk(Pull=[TooOften("next year", retry_after=1e9)])
        with pytest.raises(TooOften, match="next year"):
            link_to(desk, patience=300.0, clock=clock).next_task()
        assert clock.now() == 1000.0

    def test_l21_whatever_others_are_answered_meanwhile(self, link_to):
        """A heartbeat that is answered wakes up whoever waits for a server that was lost, but nobody who was told to wait."""

        class Interrupted(Hurried):
            def wait(self, condition, timeout):
                self.advance(min(timeout, 1.0))
                if link is not None:
                    link.send_heartbeat()

        clock, link, waits = Interrupted(1000.0), None, []
        for error in (ConnectionLost("gone"), TooOften("later", retry_after=10.0)):
            link = None
            link = link_to(Desk(Pull=[error, error, error, error, Finished("done")]), clock=clock)
            before = clock.now()
            assert link.next_task() == Finished("done")
            waits.append(clock.now() - before)
        assert waits[0] <= 4.0
        assert waits[1] >= 40.0

    def test_a_success_starts_the_patience_anew(self, link_to):
        clock = Hurried()

        def later(answer):
            def line(request):
                clock.advance(9.0)
                return answer

            return line

        desk = Desk(Pull=[later(ConnectionLost("a")), later(Wait()), later(ConnectionLost("b")), Finished("done")])
        assert link_to(desk, patience=10.0, clock=clock).next_task() == Finished("done")

    @pytest.mark.parametrize("error", [ProtocolError("what"), SchemaMismatch("w")])
    def test_what_cannot_get_better_is_raised_at_once(self, link_to, error):
        desk = Desk(Pull=[error])
        with pytest.raises(type(error)):
            link_to(desk).next_task()
        assert len(desk.got(Pull)) == 1

    def test_the_server_may_come_later(self, link_to):
        desk, memory = Desk(), Memory()
        listeners = []

        class Opens(Hurried):
            def wait(self, condition, timeout):
                super().wait(condition, timeout)
                if self.now() > 20 and not listeners:
                    listeners.append(memory.listen("late-server", desk))

        with memory.connect("late-server") as connection:
            assert Link(connection, "client-1", clock=Opens()).register()
        listeners[0].stop()
        assert len(desk.got(Register)) == 1


class TestSessions:
    @pytest.mark.parametrize("error", [NotRegistered("who?"), RunChanged("another run")])
    def test_l23_it_registers_again_and_asks_again(self, link_to, error):
        desk = Desk(Pull=[error, Finished("done")])
        assert link_to(desk).next_task() == Finished("done")
        assert len(desk.got(Register)) == 2
        assert [pull.session.token for pull in desk.got(Pull)] == ["token-1", "token-2"]

    def test_a_heartbeat_registers_again_too(self, link_to):
        desk = Desk(Beat=[NotRegistered("who?"), BeatReply(True)])
        link = link_to(desk)
        assert link.send_heartbeat() is False
        assert link.send_heartbeat() is True
        assert [beat.session.token for beat in desk.got(Beat)] == ["token-1", "token-2"]

    def test_the_codec_may_have_changed(self, link_to):
        desk = Desk(Pull=[NotRegistered("who?"), Finished("done")])
        desk.scripts["Register"] = [desk.welcome, CodecRefused("not any more")]
        with pytest.raises(CodecRefused):
            link_to(desk).next_task()

    def test_a_server_that_never_knows_one_is_no_endless_loop(self, link_to):
        desk = Desk(Pull=[NotRegistered("who?")])
        with pytest.raises(ConnectionLost, match="forgotten this client again"):  # when its patience ends
            link_to(desk).next_task()
        assert len(desk.got(Register)) == 1 + len(desk.got(Pull)) // 2

    def test_a_session_that_its_own_process_replaced_meanwhile_is_not_the_end(self, link_to):
        desk = Desk(Pull=[Fenced("newer"), Finished("done")], Beat=[Fenced("newer"), BeatReply(True)])
        link = link_to(desk)
        assert link.send_heartbeat() is False
        assert link.next_task() == Finished("done")
        assert len({register.instance for register in desk.got(Register)}) == 1

    def test_f4_a_newer_process_ends_it(self, link_to):
        desk = Desk(Pull=[Fenced("newer")], Beat=[Fenced("newer")])
        desk.scripts["Register"] = [desk.welcome, Fenced("newer")]
        link = link_to(desk)
        with pytest.raises(Fenced):
            link.next_task()
        with pytest.raises(Fenced):
            link.send_heartbeat()
        assert len(desk.got(Pull)) == 1


class TestTasks:
    def test_a_task_comes_with_its_model(self, link_to):
        desk = Desk(Pull=[Wait(1), Wait(1), assigned()])
        task, parameters = link_to(desk).next_task()
        assert task == TASK
        assert digest(parameters) == DIGEST
        assert list(parameters) == ["w", "n"]

    def test_c13_ties_are_there_again(self, link_to):
        one = torch.ones(2)
        desk = Desk(Pull=[assigned(model={"a": one, "b": one})])
        _, parameters = link_to(desk).next_task()
        assert parameters["b"] is parameters["a"]

    def damaged(self):
        body = bytearray(b"".join(bytes(part) for part in assigned().body))
        body[-1] ^= 1
        return assigned(body=[body])

    def test_c4_i24_a_damaged_download_is_made_again(self, link_to):
        desk = Desk(Pull=[self.damaged(), self.damaged(), assigned()])
        _, parameters = link_to(desk).next_task()
        assert digest(parameters) == DIGEST
        assert len(desk.got(Pull)) == 3

    def test_but_not_for_ever(self, link_to):
        desk = Desk(Pull=[self.damaged()])
        with pytest.raises(ChecksumError):
            link_to(desk).next_task()
        assert len(desk.got(Pull)) == 3

    def test_c1_a_model_in_a_codec_that_is_not_accepted(self, link_to):
        payload = encode(MODEL, SPEC, Torch(), 4096)
        desk = Desk(Pull=[Reply(Assigned(TASK, payload.manifest), payload.body)])
        with pytest.raises(CodecRefused, match="'torch'"):
            link_to(desk).next_task()

    def test_an_answer_of_another_kind(self, link_to):
        with pytest.raises(ProtocolError, match="BeatReply instead of Wait"):
            link_to(Desk(Pull=[BeatReply(True)])).next_task()

    def test_the_end_stays_the_end(self, link_to):
        desk = Desk(Pull=[Finished("done")])
        link = link_to(desk)
        assert link.next_task() == link.next_task() == Finished("done")
        assert len(desk.got(Pull)) == 1

    def test_the_status_follows(self, link_to):
        desk = Desk(Pull=[assigned()], Submit=[ACCEPTED])
        link = link_to(desk)
        link.send_heartbeat()
        task, parameters = link.next_task()
        link.send_heartbeat()
        link.update_status("training", 3, 9)
        link.send_heartbeat()
        link.submit(task, SPEC, parameters, 1, {})
        link.send_heartbeat()
        assert [(b.status, b.step, b.total, b.round, b.task_id) for b in desk.got(Beat)] == [
            (Status.IDLE, 0, 0, 0, ""), (Status.FETCHING_MODEL, 0, 0, 1, TASK.id), (Status.TRAINING, 3, 9, 1, TASK.id),
            (Status.SUBMITTING_UPDATE, 3, 9, 0, ""),
        ]  # fmt: skip

    def test_a_status_is_one_of_six(self, link_to):
        with pytest.raises(ConfigError, match="status 'sleeping' is none of: fetching_model, "):
            link_to(Desk()).update_status("sleeping")

    def test_b3_progress_is_never_negative(self, link_to):
        desk = Desk()
        link = link_to(desk)
        link.update_status("training", -1, -9)
        link.send_heartbeat()
        assert (desk.got(Beat)[0].step, desk.got(Beat)[0].total) == (0, 0)


class TestSubmit:
    def hand_in(self, link, model=MODEL):
        task, _ = link.next_task()
        return link.submit(task, SPEC, model, 7, {"loss": 0.25})

    def test_the_header_and_the_body(self, link_to):
        bodies = []

        def read(request):
            bodies.append(receive(request.message.manifest, request.body, SPEC, Safetensors()))
            return ACCEPTED

        desk = Desk(Pull=[assigned()], Submit=[read])
        trained = {"w": MODEL["w"] + 1, "n": MODEL["n"] + 1}
        assert self.hand_in(link_to(desk), trained) == ACCEPTED
        (submit,) = desk.got(Submit)
        assert (submit.task_id, submit.round, submit.base_digest) == (TASK.id, 1, DIGEST)
        assert (submit.num_examples, submit.metrics, submit.digest) == (7, {"loss": 0.25}, digest(trained))
        assert digest(bodies[0]) == digest(trained)

    def test_l6_it_is_sent_again_as_the_same_attempt(self, link_to):
        bodies = []

        def lost(request):
            bodies.append(b"".join(bytes(part) for part in request.body))
            return ConnectionLost("the reply was lost") if len(bodies) < 4 else ACCEPTED

        desk = Desk(Pull=[assigned()], Submit=[lost])
        assert self.hand_in(link_to(desk)).counted
        assert len({submit.attempt_id for submit in desk.got(Submit)}) == 1
        assert len(bodies) == 4
        assert len(set(bodies)) == 1

    def test_each_task_is_an_attempt_of_its_own(self, link_to):
        desk = Desk(Pull=[assigned()], Submit=[ACCEPTED])
        link = link_to(desk)
        self.hand_in(link), self.hand_in(link)
        assert len({submit.attempt_id for submit in desk.got(Submit)}) == 2

    def test_u24_a_body_that_changed_on_the_way_is_sent_again(self, link_to):
        changed = Submitted(Outcome.REJECTED, "CHECKSUM", "bits")
        desk = Desk(Pull=[assigned()], Submit=[changed, changed, ACCEPTED])
        assert self.hand_in(link_to(desk)) == ACCEPTED
        assert len({submit.attempt_id for submit in desk.got(Submit)}) == 1
        desk = Desk(Pull=[assigned()], Submit=[changed])
        with pytest.raises(ChecksumError, match="bits"):
            self.hand_in(link_to(desk))
        assert len(desk.got(Submit)) == 3

    @pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.ACCEPTED])
    def test_l16_every_outcome_is_handed_back_and_final(self, link_to, outcome):
        refused = Submitted(outcome, "BECAUSE", "of this", 3)
        desk = Desk(Pull=[assigned()], Submit=[refused])
        assert self.hand_in(link_to(desk)) == refused
        assert len(desk.got(Submit)) == 1

    def test_l23_under_a_new_session_it_is_still_the_same_attempt(self, link_to):
        desk = Desk(Pull=[assigned()], Submit=[NotRegistered("who?"), ACCEPTED])
        assert self.hand_in(link_to(desk)) == ACCEPTED
        first, second = desk.got(Submit)
        assert first.attempt_id == second.attempt_id
        assert (first.session.token, second.session.token) == ("token-1", "token-2")

    def test_l15_a_stop_that_comes_with_the_answer_is_the_end(self, link_to):
        desk = Desk(Pull=[assigned()], Submit=[Submitted(Outcome.ACCEPTED, "ACCEPTED", directive=Directive.STOP)])
        link = link_to(desk)
        self.hand_in(link)
        assert isinstance(link.next_task(), Finished)
        assert len(desk.got(Pull)) == 1


class TestDirectives:
    def test_l15_stop_ends_the_wait_for_tasks(self, link_to):
        desk = Desk(Pull=[Wait()], Beat=[BeatReply(True, Directive.STOP, "that was all")])
        link = link_to(desk)
        assert link.send_heartbeat() is True
        assert link.next_task() == Finished("that was all")
        assert desk.got(Pull) == []

    def test_l15_stop_ends_it_while_it_waits(self, link_to):
        def stop(request):
            link.send_heartbeat()
            return Wait()

        desk = Desk(Pull=[stop], Beat=[BeatReply(True, Directive.STOP, "that was all")])
        link = link_to(desk)
        assert link.next_task() == Finished("that was all")

    def test_l15_a_server_that_goes_away_after_the_stop_is_no_error(self, link_to):
        def stop_and_go(request):
            link.send_heartbeat()
            return ConnectionLost("the server went away")

        desk = Desk(Pull=[stop_and_go], Beat=[BeatReply(True, Directive.STOP, "that was all")])
        link = link_to(desk)
        assert link.next_task() == Finished("that was all")

    def test_an_aborted_task_is_not_handed_in(self, link_to):
        desk = Desk(Pull=[assigned()], Beat=[BeatReply(True, Directive.ABORT_TASK, "too late")], Submit=[ACCEPTED])
        link = link_to(desk)
        task, parameters = link.next_task()
        link.send_heartbeat()
        submitted = link.submit(task, SPEC, parameters, 1, {})
        assert (submitted.outcome, submitted.reason) == (Outcome.CLOSED, "ROUND_CLOSED")
        assert not submitted.counted
        assert desk.got(Submit) == []

    def test_the_next_task_is(self, link_to):
        desk = Desk(Pull=[assigned()], Beat=[BeatReply(True, Directive.ABORT_TASK, "too late")], Submit=[ACCEPTED])
        link = link_to(desk)
        link.next_task()
        link.send_heartbeat()
        task, parameters = link.next_task()
        assert link.submit(task, SPEC, parameters, 1, {}) == ACCEPTED

    def test_an_abort_that_was_meant_for_the_last_task_does_not_hit_this_one(self, link_to):
        def late(request):
            link.next_task()  # while the answer to the beat is on its way, the next task begins
            return BeatReply(True, Directive.ABORT_TASK)

        desk = Desk(Pull=[assigned(), assigned(Task("fit-2-0", Kind.FIT, 2, DIGEST))], Beat=[late], Submit=[ACCEPTED])
        link = link_to(desk)
        link.next_task()
        link.send_heartbeat()
        assert link.submit_update(MODEL, 1, 2)

    def test_continue_changes_nothing(self, link_to):
        desk = Desk(Pull=[assigned()], Beat=[BeatReply(False, Directive.CONTINUE)], Submit=[ACCEPTED])
        link = link_to(desk)
        task, parameters = link.next_task()
        assert link.send_heartbeat() is False
        assert link.submit(task, SPEC, parameters, 1, {}) == ACCEPTED


class Counted(Clock):
    """Lets the heartbeat's waits pass at once, a given number of times, and notes how long they were."""

    def __init__(self, beats):
        self.beats, self.waits, self.resting = beats, [], threading.Event()

    def wait(self, condition, timeout):
        self.waits.append(timeout)
        if len(self.waits) > self.beats:
            self.resting.set()
            condition.wait()


class TestHeartbeat:
    def test_it_beats_at_the_interval_the_server_wants(self, link_to):
        clock = Counted(beats=4)
        desk = Desk()
        link = link_to(desk, clock=clock)
        link.start_heartbeat()
        assert clock.resting.wait(10)
        link.stop_heartbeat()
        assert clock.waits == [2.5] * 5
        assert len(desk.got(Beat)) == 4

    def test_l10_a_beat_that_fails_does_not_end_it(self, link_to):
        clock = Counted(beats=4)
        failures = [ConnectionLost("gone"), ProtocolError("what"), NotRegistered("who?")]
        desk = Desk(Beat=[*failures, BeatReply(True)])
        link = link_to(desk, clock=clock)
        link.start_heartbeat()
        assert clock.resting.wait(10)
        link.stop_heartbeat()
        assert len(desk.got(Beat)) == 4
        assert desk.got(Beat)[-1].session.token == "token-2"

    def test_one_that_is_fenced_does(self, link_to):
        desk = Desk(Beat=[Fenced("newer")])
        desk.scripts["Register"] = [desk.welcome, Fenced("newer")]
        link = link_to(desk, clock=Counted(beats=3))
        link.start_heartbeat()
        link._heart.join(10)
        assert not link._heart.is_alive()
        assert len(desk.got(Beat)) == 1

    def test_stopping_before_or_without_a_start(self, link_to):
        link = link_to(Desk())
        link.stop_heartbeat()
        link.start_heartbeat()
        link.stop_heartbeat()

    def test_a_beat_is_not_repeated_by_itself(self, link_to):
        desk = Desk(Beat=[ConnectionLost("gone")])
        with pytest.raises(ConnectionLost):
            link_to(desk).send_heartbeat()
        assert len(desk.got(Beat)) == 1


class TestGivingBack:
    def test_the_server_is_told_which_task_and_why(self, link_to):
        desk = Desk(Pull=[assigned()])
        link = link_to(desk)
        task, _ = link.next_task()
        link.give_back(task, "RuntimeError: " + "x" * 5000)
        beat = desk.got(Beat)[-1]
        assert (beat.status, beat.task_id, beat.round) == (Status.ERROR, TASK.id, 1)
        assert beat.message.startswith("RuntimeError: xxx")
        assert len(beat.message) == 500

    @pytest.mark.parametrize("error", [ConnectionLost("gone"), Fenced("newer"), NotRegistered("who?"), ProtocolError("what")])
    def test_it_never_raises(self, link_to, caplog, error):
        desk = Desk(Pull=[assigned()], Beat=[error])
        link = link_to(desk)
        task, _ = link.next_task()
        with caplog.at_level(logging.WARNING):
            link.give_back(task, "boom")
        assert TASK.id in caplog.text
        with pytest.raises(ProtocolError, match="no task"):
            link.submit_update(MODEL, 1, 1)


class TestOwnLoop:
    """get_global_model and submit_update, for those who write their own loop."""

    def test_a_round(self, link_to):
        desk = Desk(Pull=[assigned(), Finished("done")], Submit=[ACCEPTED])
        link = link_to(desk)
        parameters, number, config = link.get_global_model()
        assert (digest(parameters), number, config) == (DIGEST, 1, {"lr": 0.5})
        assert link.submit_update(parameters, 5, number) is True
        assert link.get_global_model() is None

    def test_an_update_that_does_not_count(self, link_to):
        desk = Desk(Pull=[assigned()], Submit=[Submitted(Outcome.STALE, "STALE_ROUND")])
        link = link_to(desk)
        parameters, number, _ = link.get_global_model()
        assert link.submit_update(parameters, 5, number) is False

    def test_tasks_of_other_kinds_are_given_back(self, link_to):
        desk = Desk(Pull=[assigned(Task("ask-0", Kind.INITIALIZE, 0)), assigned(Task("eval-0", Kind.EVALUATE, 1)), assigned()])
        _, number, _ = link_to(desk).get_global_model()
        assert number == 1
        assert [(beat.task_id, beat.status) for beat in desk.got(Beat)] == [("ask-0", Status.ERROR), ("eval-0", Status.ERROR)]

    def test_a_task_must_be_open_and_of_that_round(self, link_to):
        desk = Desk(Pull=[assigned()], Submit=[ACCEPTED])
        link = link_to(desk)
        with pytest.raises(ProtocolError, match="get_global_model"):
            link.submit_update(MODEL, 1, 1)
        link.get_global_model()
        with pytest.raises(ProtocolError, match="round 2"):
            link.submit_update(MODEL, 1, 2)
        link.submit_update(MODEL, 1, 1)
        with pytest.raises(ProtocolError, match="no task"):
            link.submit_update(MODEL, 1, 1)

    def test_c6_c7_parameters_are_checked_before_they_are_sent(self, link_to):
        desk = Desk(Pull=[assigned()], Submit=[ACCEPTED])
        link = link_to(desk)
        link.get_global_model()
        with pytest.raises(SchemaMismatch, match="'n' is missing"):
            link.submit_update({"w": MODEL["w"]}, 1, 1)
        with pytest.raises(SchemaMismatch, match="'w' has shape"):
            link.submit_update({**MODEL, "w": torch.ones(1)}, 1, 1)
        assert desk.got(Submit) == []
        assert link.submit_update(MODEL, 1, 1)
