"""The machine in the middle: who is registered, who has which task, when a round is over, what counts.

It is pure. It never sleeps, opens a socket, reads a clock, draws a random number or touches a file; every method takes ``now``,
seconds on a clock that never jumps. The caller serialises the calls, and takes what happened from :attr:`Coordinator.events`.

A run goes through phases, and the table below is the law: a pair that is not in it cannot happen. ::

    WAITING      not enough clients, or no model yet
      | open
    COLLECTING   a round is open; updates are admitted, then committed
      | close                      | fail (deadline without a quorum)
    AGGREGATING  the strategy works     -> WAITING, same model, next number
      | publish (a new model)      | fail (no usable model)
    WAITING ...                         -> WAITING
    FINISHED     after the last round, after too many failures, or when told to stop

An update is judged twice: :meth:`admit` from its header alone, before a byte of the body is read, and :meth:`commit` when
it is whole, valid and durable. Only commit counts it, and it does so at most once per assignment: between the two the round
may close, the client may be fenced, or the same update may arrive a second time.

Beside the training round there may be an evaluation, and before the first a request for a first model: each is a Round, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import chain

from fedcore import events as ev
from fedcore.errors import ProtocolError
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
from fedcore.roster import Member, Roster
from fedcore.round import Assignment, Round, State, Ticket, misplaced

_REMEMBERED_ROUNDS = 16


class Coordinator:
    """The state of one run.

    Attributes:
        round: number of the open round, or of the next.
        committed: how many rounds made a model.
        failed: why the run ended early, or "".
        changes: counts what may give a waiting client something to do.
        events: what happened since the caller last took it.
    """

    def __init__(
        self, run_id: str, *, num_rounds: int, policy: RoundPolicy, heartbeat_timeout: float, evaluate_timeout: float
    ):
        self.run_id = run_id
        self.num_rounds = num_rounds
        self.policy = policy
        self.evaluate_timeout = evaluate_timeout
        self.phase = Phase.WAITING
        self.round = 1
        self.committed = 0
        self.failed = ""
        self.changes = 0
        self.events: list[ev.Event] = []
        self.roster = Roster(run_id, policy.quorum, heartbeat_timeout)
        self.fit: Round | None = None
        self.evaluation: Round | None = None
        self.first_model: Round | None = None
        self.digest = ""
        self._failures = 0
        self._past: deque[Round] = deque(maxlen=_REMEMBERED_ROUNDS)

    # --- clients ---

    def register(self, client_id: str, token: str, *, evaluates: bool = False, now: float) -> Session:
        """Take a client in, or take it in again: a session it had before is fenced, its assignment stays its own.

        Raises:
            ConfigError: ``client_id`` is not one.
        """
        again = self.roster.register(client_id, token, evaluates=evaluates, now=now)
        self.events.append(ev.ClientRegistered(at=now, client_id=client_id, again=again))
        return Session(self.run_id, client_id, token)

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
            self.roster.watch(now)
        for collection in (self.first_model, self.evaluation, self.fit):
            if collection and collection.open and (task := collection.offer(member.client_id)):
                member.status, member.round, member.step, member.total = Status.FETCHING_MODEL, task.round, 0, 0
                self.events.append(ev.TaskAssigned(at=now, round=task.round, kind=task.kind, client_id=member.client_id))
                return task
        return Wait(self.round)

    def task_of(self, session: Session, task_id: str, now: float) -> Assignment:
        """Return a task the client was assigned and has not answered.

        Raises:
            SessionError: the session is not valid (any more).
            ProtocolError: the client has no such task.
        """
        member = self.roster.member(session, now)
        found = self._find(task_id)
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
            self.roster.watch(now)
            name, status, number = member.client_id, beat.status, beat.round
            self.events.append(
                ev.ClientChanged(at=now, client_id=name, status=status, round=number, step=beat.step, total=beat.total)
            )
        if self.phase is Phase.FINISHED:
            self._told(member)
            return BeatReply(True, Directive.STOP, self.failed or "the run is complete")
        found = self._find(beat.task_id) if beat.task_id else None
        if found and found.client_id == member.client_id:
            if beat.status is Status.ERROR:
                self._give_back(found, beat.message or "the client failed", now)
            elif found.state is not State.ACCEPTED and not found.collection.takes(found):
                return BeatReply(True, Directive.ABORT_TASK, f"round {found.round} is over for this client")
        return BeatReply(True)

    # --- updates ---

    def admit(self, header: Submit, now: float) -> Ticket | Submitted:
        """Judge an update by its header: a ticket to go on, or the outcome right away.

        Raises:
            SessionError: the session is not valid (any more).
        """
        member = self.roster.member(header.session, now)
        member.status = Status.SUBMITTING_UPDATE
        found = self._find(header.task_id)
        if found is None or found.client_id != member.client_id or found.round != header.round:
            return self._refuse(member.client_id, header.round, *misplaced(header.round, self.round), now)
        collection = found.collection
        ticket = Ticket(found, header.digest, header.num_examples)
        if refusal := collection.refusal(ticket, self.round):
            return self._refuse(member.client_id, header.round, *refusal, now)
        if header.base_digest != collection.base_digest:
            message = f"trained on {header.base_digest[:16]!r}, but the round is about {collection.base_digest[:16]!r}"
            return self._refuse(member.client_id, header.round, Outcome.REJECTED, "BASE_MISMATCH", message, now)
        return ticket

    def commit(self, ticket: Ticket, now: float) -> Submitted:
        """Count an update that is whole, valid and durable, unless it came too late or was counted before."""
        assignment = ticket.assignment
        collection = assignment.collection
        if refusal := collection.refusal(ticket, self.round):
            return self._refuse(assignment.client_id, assignment.round, *refusal, now)
        assignment.state = State.ACCEPTED
        assignment.digest, assignment.num_examples = ticket.digest, ticket.num_examples
        self.events.append(
            ev.UpdateAccepted(
                at=now, round=assignment.round, kind=assignment.kind, client_id=assignment.client_id,
                num_examples=ticket.num_examples, accepted=collection.count, target=collection.policy.target,
            )
        )  # fmt: skip
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
        if self.phase is not Phase.WAITING or not self.digest or self.committed >= self.num_rounds:
            return None
        available = self.roster.available
        opens = self.policy.opens_at(len(available), self.roster.quorum_since, now)
        return available if opens is not None and now >= opens else None

    def open_round(self, invited: Iterable[str], now: float) -> Round:
        """Open the next round and invite clients to it."""
        self._move(Move.OPEN)
        self.fit = Round(Kind.FIT, self.round, self.policy, now, self.digest)
        self.fit.invite(sorted(set(invited) & self.roster.members.keys()))
        self.changes += 1
        self.events.append(
            ev.RoundOpened(
                at=now, round=self.round, invited=tuple(self.fit.assignments), target=self.policy.target,
                quorum=self.policy.quorum, deadline=self.policy.deadline,
            )
        )  # fmt: skip
        return self.fit

    def ask_for_model(self, now: float, base_digest: str = "") -> None:
        """Ask the next client for its own parameters as the first model; ``base_digest`` is of the empty payload it gets."""
        if self.first_model:
            self._past.append(self.first_model)
        policy = RoundPolicy(target=1, deadline=self.policy.deadline)
        self.first_model = Round(Kind.INITIALIZE, 0, policy, now, base_digest)
        self.changes += 1

    def adopt(self, digest: str) -> None:
        """Take the model with this digest as the one that rounds start from."""
        self.digest = digest
        if self.first_model:
            self._past.append(self.first_model)
        self.first_model = None

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
        self.committed += 1
        self._failures = 0
        self.events.append(
            ev.RoundCommitted(
                at=now, round=done.number, digest=digest, accepted=tuple(a.client_id for a in done.accepted),
                missing=done.missing, metrics=dict(metrics or {}), seconds=now - done.opened_at,
                traffic=dict(traffic or {}),
            )
        )  # fmt: skip
        self._evaluate(done.number, now)
        self.tick(now)

    def fail(self, reason: str, now: float) -> None:
        """End the round without a model; after ``max_failures`` in a row the run ends."""
        self._move(Move.FAIL)
        done = self._conclude()
        self._failures += 1
        self.events.append(
            ev.RoundFailed(at=now, round=done.number, reason=reason, missing=done.missing, seconds=now - done.opened_at)
        )
        if self._failures >= self.policy.max_failures:
            self.finish(f"{self._failures} rounds in a row failed, the last one because {reason}", now)

    def finish(self, failed: str, now: float) -> None:
        """End the run; ``failed`` is why it ends early, or ""."""
        if self.phase is Phase.FINISHED:
            return
        self._move(Move.FINISH)
        self.failed = failed
        self._end_evaluation(now)
        for collection in (self.first_model, self.fit):
            if collection:
                collection.open = False
        self.changes += 1
        self.events.append(ev.RunFinished(at=now, committed=self.committed, failed=failed))

    # --- time ---

    def tick(self, now: float) -> None:
        """Do what is due: end leases, judge open rounds, end the run."""
        for member in self.roster.expire(now):
            self._lose(member, now)
        self._review(now)
        if self.committed >= self.num_rounds and self.phase is Phase.WAITING and not self.evaluation:
            self.finish("", now)

    def next_deadline(self, now: float) -> float | None:
        """Return when :meth:`tick` or :meth:`candidates` may next have something to do if nothing else happens."""
        due = [self.roster.next_expiry()]
        due += [r.closes_at for r in (self.first_model, self.evaluation, self.fit) if r and r.open]
        if self.phase is Phase.WAITING and self.roster.quorum_since is not None and self.digest:
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

    def _find(self, task_id: str) -> Assignment | None:
        rounds = chain((self.fit, self.evaluation, self.first_model), self._past)
        return next((found for r in rounds if r and (found := r.find(task_id))), None)

    def _refuse(self, client_id: str, number: int, outcome: Outcome, reason: str, message: str, now: float) -> Submitted:
        if outcome is not Outcome.DUPLICATE:
            self.events.append(ev.UpdateRefused(at=now, round=number, client_id=client_id, outcome=outcome, reason=reason))
        return Submitted(outcome, reason, message, self.round, self._directive(client_id))

    def _give_back(self, assignment: Assignment, reason: str, now: float) -> None:
        if not assignment.pending:
            return
        assignment.state, assignment.reason = State.RETURNED, reason
        self.changes += assignment.collection.open
        self.events.append(
            ev.TaskReturned(
                at=now, round=assignment.round, kind=assignment.kind, client_id=assignment.client_id, reason=reason
            )
        )
        self._review(now)

    def _lose(self, member: Member, now: float) -> None:
        silent = now - member.last_seen
        self.events.append(ev.ClientLost(at=now, client_id=member.client_id, silent=silent))
        for collection in (self.fit, self.evaluation, self.first_model):
            assignment = collection.assignments.get(member.client_id) if collection else None
            if assignment and assignment.pending:
                assignment.state, assignment.reason = State.LOST, f"silent for {silent:.0f} s"
                self.changes += 1

    def _review(self, now: float) -> None:
        if self.fit and self.fit.open and (verdict := self.fit.verdict(now)) is not Verdict.WAIT:
            self.fit.open = False
            accepted = tuple(a.client_id for a in self.fit.accepted)
            if verdict is Verdict.CLOSE:
                self._move(Move.CLOSE)
                self.events.append(ev.RoundClosed(at=now, round=self.fit.number, accepted=accepted))
            else:
                self.fail(f"only {len(accepted)} of {self.policy.quorum} updates came within {self.policy.deadline:g} s", now)
        evaluation = self.evaluation
        if evaluation and evaluation.open and (not evaluation.pending or evaluation.verdict(now) is not Verdict.WAIT):
            self._end_evaluation(now)
        if self.first_model and self.first_model.open:
            verdict = self.first_model.verdict(now)
            if verdict is Verdict.FAIL:
                self.ask_for_model(now, self.first_model.base_digest)
            self.first_model.open = verdict is not Verdict.CLOSE

    def _conclude(self) -> Round:
        if self.fit is None:
            raise AssertionError("no round to conclude")
        done, self.fit = self.fit, None
        self._past.append(done)
        self.round += 1
        return done

    def _evaluate(self, number: int, now: float) -> None:
        self._end_evaluation(now)
        willing = self.roster.evaluators()
        if willing and self.evaluate_timeout > 0:
            policy = RoundPolicy(target=len(willing), deadline=self.evaluate_timeout)
            self.evaluation = Round(Kind.EVALUATE, number, policy, now, self.digest)
            self.evaluation.invite(willing)
        self.changes += 1

    def _end_evaluation(self, now: float) -> None:
        if self.evaluation:
            self.evaluation.open = False
            self._past.append(self.evaluation)
            self.events.append(
                ev.EvaluationClosed(
                    at=now, round=self.evaluation.number, accepted=tuple(a.client_id for a in self.evaluation.accepted)
                )
            )
        self.evaluation = None
