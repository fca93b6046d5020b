"""The machine in the middle: who is registered, who has which task, when a round is over, what counts.

It is pure. It never sleeps, opens a socket, reads a clock, draws a random number or touches a file; every method takes ``now``,
seconds on a clock that never jumps. The caller serialises the calls, and takes what happened from :attr:`Coordinator.events`.

An update is judged twice: :meth:`admit` from its header alone, before a byte of the body is read, and :meth:`commit` when
it is whole, valid and durable. Only commit counts it, and it does so at most once per assignment: between the two the round
may close, the client may be fenced, or the same update may arrive a second time.

Beside the training round there may be an evaluation, and before the first a request for a first model: each is a Round, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedcore import events as ev
from fedcore.errors import ConnectionLost, ProtocolError
from fedcore.messages import (
    Beat,
    BeatReply,
    Directive,
    Finished,
    Kind,
    Outcome,
    Session,
    Status,
    Submit,
    Submitted,
    Traffic,
    Wait,
)
from fedcore.phase import TRANSITIONS, Move, Phase
from fedcore.policy import RoundPolicy, Verdict
from fedcore.progress import Progress
from fedcore.roster import Member, Roster
from fedcore.round import Assignment, Counted, Round, State, Ticket, misplaced
from fedcore.rounds import Rounds

_SOON = 0.05  # seconds until a late update may find the next round open


class Coordinator:
    """The state of one run.

    Attributes:
        round: number of the open round, or of the next.
        progress: how many rounds made a model, and how many did not.
        failed: why the run ended early, or "".
        changes: counts what may give a waiting client something to do.
        events: what happened since the caller last took it.
        rounds: what clients are asked.
        digest: of the model that rounds start from, or "".
        held: why no round is opened at present, or "".
    """

    def __init__(
        self, run_id: str, *, num_rounds: int, policy: RoundPolicy, heartbeat_timeout: float, evaluate_timeout: float
    ):
        self.run_id, self.policy = run_id, policy
        self.progress = Progress(policy, num_rounds)
        self.evaluate_timeout = evaluate_timeout
        self.phase = Phase.WAITING
        self.round, self.changes = 1, 0
        self.failed = ""
        self.events: list[ev.Event] = []
        self.roster = Roster(run_id, policy.quorum, heartbeat_timeout)
        self.rounds = Rounds()
        self.digest, self.held = "", ""

    # --- clients ---

    def register(self, client_id: str, token: str, *, instance: str = "", evaluates: bool = False, now: float) -> Session:
        """Take a client in, or take it in again; its assignment stays its own. See :meth:`Roster.register`.

        Raises:
            ConfigError: ``client_id`` is not one.
            Fenced: a newer process of this client is known.
        """
        member, again = self.roster.register(client_id, token, instance=instance, evaluates=evaluates, now=now)
        self.events.append(ev.ClientRegistered(at=now, client_id=client_id, again=again))
        return Session(self.run_id, client_id, member.token)

    def pull(self, session: Session, now: float) -> Assignment | Wait | Finished:
        """Return the client's task, the same one until it is answered; or tell it to wait, or that the run is over.

        Raises:
            SessionError: the session is not valid (any more).
        """
        member = self.roster.member(session, now)
        if self.phase is Phase.FINISHED:
            self._told(member)
            return Finished(self.failed or "the run is complete")
        back, member.status = not member.available, Status.WAITING
        if back:
            self.roster.watch(member.client_id, now)
        freed = self.rounds.free(member.client_id)  # who asks is busy with nothing
        if (task := self.rounds.offer(member.client_id)) is None:
            if freed:
                self._review(now)
            return Wait(self.round)
        member.status, member.round, member.step, member.total = Status.FETCHING_MODEL, task.round, 0, 0
        task.given_at = min(task.given_at, now)
        self.events.append(ev.TaskAssigned(at=now, round=task.round, kind=task.kind, client_id=member.client_id))
        return task

    def task_of(self, session: Session, task_id: str, now: float) -> Assignment:
        """Return a task the client was assigned and has not answered.

        Raises:
            SessionError: the session is not valid (any more).
            ProtocolError: the client has no such task.
        """
        member = self.roster.member(session, now)
        found = self.rounds.find(task_id)
        if found is None or found.client_id != member.client_id or not found.collection.takes(found):
            raise ProtocolError("this client has no such task (any more): pull again", reason="NOT_SELECTED")
        return found

    def heartbeat(self, beat: Beat, now: float) -> BeatReply:
        """Note a sign of life and answer with what the client is to do.

        Raises:
            SessionError: the session is not valid (any more).
        """
        member = self.roster.member(beat.session, now)
        if member.note(beat):
            self.roster.watch(member.client_id, now)
            name, status, number = member.client_id, beat.status, beat.round
            self.events.append(
                ev.ClientChanged(at=now, client_id=name, status=status, round=number, step=beat.step, total=beat.total)
            )
        if self.phase is Phase.FINISHED:
            self._told(member)
            return BeatReply(True, Directive.STOP, self.failed or "the run is complete")
        found = self.rounds.find(beat.task_id) if beat.task_id else None
        if found and found.client_id == member.client_id:
            if beat.status is Status.ERROR:
                self._give_back(found, beat.message or "the client failed", now)
            elif self.rounds.is_late(found, self.round):
                self.rounds.await_late([found])
            elif found.state is not State.ACCEPTED and not found.collection.takes(found):
                return BeatReply(True, Directive.ABORT_TASK, f"round {found.round} is over for this client")
        return BeatReply(True)

    def evict(self, client_id: str, reason: str, now: float, *, for_good: bool = True) -> None:
        """Send a client away, for as long as this server runs or (not ``for_good``) until it registers; what counted counts.

        Raises:
            ProtocolError: there is no such client.
        """
        if client_id not in self.roster.members:
            raise ProtocolError(f"there is no client {client_id[:64]!r}", reason="NO_SUCH_CLIENT")
        self.roster.evict(client_id, reason if for_good else "", now)
        self.events.append(ev.ClientEvicted(at=now, client_id=client_id, reason=reason))
        for assignment in [*self.rounds.of(client_id), *filter(None, [self.rounds.late.get(client_id)])]:
            self._give_back(assignment, f"evicted: {reason}", now)

    def hold(self, reason: str) -> None:
        """Open no more rounds, for a reason; "": open them again. A round that is open goes on to its end."""
        self.held = reason
        self.roster.stirs += 1

    # --- updates ---

    def admit(self, header: Submit, now: float) -> Ticket | Submitted:
        """Judge an update by its header: a ticket to go on, or the outcome right away.

        Raises:
            SessionError: the session is not valid (any more).
        """
        member = self.roster.member(header.session, now)
        member.status = Status.SUBMITTING_UPDATE
        found = self.rounds.find(header.task_id)
        if found is None or found.client_id != member.client_id or found.made_for.number != header.round:
            return self._refuse(member.client_id, header.round, *misplaced(header.round, self.round), now)
        if self.rounds.is_late(found, self.round) and self.phase is not Phase.FINISHED:
            if self.phase in (Phase.WAITING, Phase.AGGREGATING):
                raise ConnectionLost("the update is late, and counts in the next round: send it again", retry_after=_SOON)
            found = self.rounds.carry(found) or found
        collection, made_for = found.collection, found.made_for
        ticket = Ticket(found, header.digest, header.num_examples, member.token)
        if refusal := collection.refusal(ticket, self.round):
            return self._refuse(member.client_id, header.round, *refusal, now)
        if header.base_digest != made_for.base_digest:
            message = f"trained on {header.base_digest[:16]!r}, but the round is about {made_for.base_digest[:16]!r}"
            return self._refuse(member.client_id, header.round, Outcome.REJECTED, "BASE_MISMATCH", message, now)
        return ticket

    def commit(self, ticket: Ticket, now: float) -> Submitted:
        """Count an update that is whole, valid and durable, unless it came too late or was counted before.

        Raises:
            Fenced: a newer process registered since it was admitted.
        """
        assignment = ticket.assignment
        self.roster.check_current(assignment.client_id, ticket.token)
        collection = assignment.collection
        if refusal := collection.refusal(ticket, self.round):
            return self._refuse(assignment.client_id, assignment.round, *refusal, now)
        self.events.append(assignment.accept(ticket, now))
        self._review(now)
        return Submitted(Outcome.ACCEPTED, round=self.round, directive=self._directive(assignment.client_id))

    def release(self, ticket: Ticket, now: float, *, reason: str = "", message: str = "", final: bool = False) -> Submitted:
        """Let go of an admitted update that will not be committed. ``final``: trying again is of no use, the place is free."""
        assignment = ticket.assignment
        if final and assignment.pending:
            self._give_back(assignment, f"{reason}: {message}", now)
        return self._refuse(assignment.client_id, assignment.round, Outcome.REJECTED, reason, message, now)

    # --- rounds ---

    def candidates(self, now: float) -> list[str] | None:
        """Return the clients a round may choose from, sorted, if one may open now."""
        if self.phase is not Phase.WAITING or not self.digest or self.progress.complete or self.held:
            return None
        opens = self.policy.opens_at(self.roster.ready, self.roster.quorum_since, now)
        return [n for n in self.roster.available if n not in self.rounds.late] if opens is not None and now >= opens else None

    def open_round(self, invited: Iterable[str], now: float) -> Round:
        """Open the next round and invite clients to it."""
        return self._open(sorted(set(invited) & self.roster.members.keys()), now)

    def ask_for_model(self, now: float, base_digest: str = "") -> None:
        """Ask the next client for its own parameters as the first model; ``base_digest`` is of the empty payload it gets."""
        self.rounds.ask_for_model(now, self.policy.deadline, base_digest)
        self.changes += 1

    def resume(self, run_id: str, *, number: int, digest: str, outcomes: Iterable[float | None] = ()) -> None:
        """Become a run that was interrupted, before anything else happens.

        Args:
            run_id: of that run.
            number: of the round that was open, or is next.
            digest: of the model that round starts from.
            outcomes: of the rounds before: see :meth:`Progress.resume`.
        """
        self.run_id = self.roster.run_id = run_id
        self.round, self.digest = number, digest
        self.progress.resume(outcomes)

    def reopen(
        self, invited: Iterable[str], accepted: Iterable[Counted], elapsed: float, now: float, *, closed: bool
    ) -> None:
        """Take the round up again that was open; the clients that were invited have one lease to come back.

        Args:
            invited: who was.
            accepted: the updates that count.
            elapsed: seconds that the round had lasted.
            now: the time.
            closed: it takes no more updates.
        """
        fit = self._open(sorted(invited), now - elapsed)
        for each in accepted:
            fit.restore(each)
        for assignment in fit.assignments.values():
            if assignment.pending:
                self.roster.expect(assignment.client_id, now)
        if closed:
            self._close(fit, now)

    def adopt(self, digest: str) -> None:
        """Take the model with this digest as the one that rounds start from."""
        self.digest = digest
        self.rounds.drop_question()

    def publish(
        self,
        digest: str,
        now: float,
        *,
        metrics: Mapping[str, float] | None = None,
        traffic: Mapping[str, Traffic] | None = None,
    ) -> None:
        """Commit the closed round: its model is the one the next round starts from."""
        self._move(Move.PUBLISH)
        done = self._conclude()
        self.digest = digest
        self.progress.commit(now - done.opened_at)
        self.events.append(done.committed(digest, now, metrics or {}, traffic or {}))
        self._evaluate(done.number, now)
        self.tick(now)

    def fail(self, reason: str, now: float) -> None:
        """End the round without a model; what follows is the policy's decision."""
        self._move(Move.FAIL)
        done = self._conclude()
        self.events.append(done.failed(reason, now))
        if ends := self.progress.fail(done.number, reason):
            self.finish(ends, now)
        self.tick(now)

    def finish(self, failed: str, now: float) -> None:
        """End the run; ``failed`` is why it ends early, or ""."""
        if self.phase is Phase.FINISHED:
            return
        self._move(Move.FINISH)
        self.failed = failed
        self.events += self.rounds.end_evaluation(now)
        for collection in self.rounds:
            collection.open = False
        self.changes += 1
        self.events.append(ev.RunFinished(at=now, committed=self.progress.committed, failed=failed))

    # --- time ---

    def tick(self, now: float) -> None:
        """Do what is due: end leases, judge open rounds, end the run."""
        for member in self.roster.expire(now):
            self._lose(member, now)
        self._review(now)
        if self.progress.complete and self.phase is Phase.WAITING and not self.rounds.evaluation:
            self.finish("", now)

    def excuse(self, seconds: float, now: float) -> None:
        """Take no account of a time in which nobody could be heard: every lease begins anew, open rounds end later."""
        for member in self.roster.members.values():
            member.last_seen = now
        for collection in self.rounds:
            collection.opened_at += seconds

    def next_deadline(self, now: float) -> float | None:
        """Return when :meth:`tick` or :meth:`candidates` may next have something to do if nothing else happens."""
        due = [self.roster.next_expiry(), *self.rounds.closes_at()]
        if self.phase is Phase.WAITING and self.roster.quorum_since is not None and self.digest and not self.held:
            due += [when for when in [self.roster.quorum_since + self.policy.start_wait] if when > now]  # else it may open
        return min((when for when in due if when is not None), default=None)

    # --- inside ---

    def _move(self, move: Move) -> None:
        self.phase = TRANSITIONS[self.phase, move]

    def _told(self, member: Member) -> None:
        self.changes += not member.told
        member.told = True

    def _directive(self, client_id: str) -> Directive:
        finished = self.phase is Phase.FINISHED
        if finished and client_id in self.roster.members:
            self._told(self.roster.members[client_id])
        return Directive.STOP if finished else Directive.CONTINUE

    def _refuse(self, client_id: str, number: int, outcome: Outcome, reason: str, message: str, now: float) -> Submitted:
        if outcome is not Outcome.DUPLICATE:
            self.events.append(ev.UpdateRefused(at=now, round=number, client_id=client_id, outcome=outcome, reason=reason))
        return Submitted(outcome, reason, message, self.round, self._directive(client_id))

    def _give_back(self, assignment: Assignment, reason: str, now: float) -> None:
        if not (assignment.pending or assignment.state is State.LOST):
            return
        self.events.append(assignment.give_back(reason, now))
        self.rounds.free(assignment.client_id)
        self.changes += assignment.collection.open
        self._review(now)

    def _lose(self, member: Member, now: float) -> None:
        silent = now - member.last_seen
        self.events.append(ev.ClientLost(at=now, client_id=member.client_id, silent=silent))
        self.changes += self.rounds.lose(member.client_id, f"silent for {silent:.0f} s")

    def _review(self, now: float) -> None:
        fit, asking = self.rounds.fit, self.rounds.first_model
        if fit and fit.open and fit.verdict(now) is not Verdict.WAIT:
            self._close(fit, now)
        if self.rounds.evaluated(now):
            self.events += self.rounds.end_evaluation(now)
        if asking and asking.open and (verdict := asking.verdict(now)) is not Verdict.WAIT:
            asking.open = False
            if verdict is Verdict.FAIL:
                self.ask_for_model(now, asking.base_digest)

    def _open(self, invited: Iterable[str], opened_at: float) -> Round:
        self._move(Move.OPEN)
        fit = self.rounds.fit = Round(Kind.FIT, self.round, self.policy, opened_at, self.digest)
        fit.deadline, fit.elsewhere = self.policy.deadline_after(self.progress.took), len(self.rounds.late)
        fit.invite(invited)
        self.changes += 1
        self.events.append(fit.opened(opened_at))
        return fit

    def _close(self, fit: Round, now: float) -> None:
        fit.open = False
        if fit.count < fit.policy.quorum:
            fit.doomed = f"only {fit.count} of {fit.policy.quorum} updates came within {fit.policy.deadline:g} s"
        self._move(Move.CLOSE)
        self.events.append(ev.RoundClosed(at=now, round=fit.number, accepted=tuple(a.client_id for a in fit.accepted)))

    def _conclude(self) -> Round:
        self.round += 1
        return self.rounds.conclude()

    def _evaluate(self, number: int, now: float) -> None:
        self.events += self.rounds.end_evaluation(now)
        willing = self.roster.evaluators()
        if willing and self.evaluate_timeout > 0:
            self.rounds.evaluate(number, willing, self.evaluate_timeout, self.digest, now)
        self.changes += 1
