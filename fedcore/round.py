"""One collection of answers: who was asked, who answered, who no longer will."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from fedcore import events as ev
from fedcore.messages import Kind, Outcome, Traffic
from fedcore.policy import RoundPolicy, Verdict


class State(StrEnum):
    """How far an assignment got."""

    INVITED = "invited"
    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    RETURNED = "returned"
    LOST = "lost"


Refusal: TypeAlias = tuple[Outcome, str, str]
"""The outcome of an update that is not taken, its reason, and a sentence for people."""

_PENDING = (State.INVITED, State.ASSIGNED)


class Assignment:
    """One task of one client. It is answered at most once.

    Args:
        id: its own name.
        client_id: whose it is.
        collection: the round it belongs to; its tally is kept right whenever the state changes.
        late_for: the round it was given in, if its answer came too late for that one and is carried into ``collection``.
    """

    def __init__(self, id: str, client_id: str, collection: Round, *, late_for: Round | None = None):
        self.id, self.client_id, self.collection = id, client_id, collection
        self.round, self.kind, self.made_for = collection.number, collection.kind, late_for or collection
        self.digest, self.num_examples, self.reason = "", 0, ""
        self.given_at = math.inf  # when it was first given to its client
        self._state = State.INVITED
        collection.tally[State.INVITED] += 1

    @property
    def state(self) -> State:
        """How far it got."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self.collection.tally[self._state] -= 1
        self.collection.tally[state] += 1
        self._state = state

    @property
    def pending(self) -> bool:
        """Whether an answer is still expected."""
        return self.state in _PENDING

    def accept(self, ticket: Ticket, now: float) -> ev.UpdateAccepted:
        """Count an update, and return what happened."""
        self.state, self.digest, self.num_examples = State.ACCEPTED, ticket.digest, ticket.num_examples
        return ev.UpdateAccepted(
            at=now, round=self.round, kind=self.kind, client_id=self.client_id, num_examples=self.num_examples,
            accepted=self.collection.count, target=self.collection.policy.target,
        )  # fmt: skip

    def give_back(self, reason: str, now: float) -> ev.TaskReturned:
        """Expect no answer any more, and return what happened."""
        self.state, self.reason = State.RETURNED, reason
        return ev.TaskReturned(at=now, round=self.round, kind=self.kind, client_id=self.client_id, reason=reason)


@dataclass(frozen=True)
class Ticket:
    """An admitted update that is not committed yet."""

    assignment: Assignment
    digest: str
    num_examples: int
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Counted:
    """An update that was accepted before a restart, in words that last."""

    task_id: str
    client_id: str
    made_for: int
    digest: str
    num_examples: int


@dataclass
class Round:
    """Collects the answers to one question: a training round, an evaluation, or the request for a first model."""

    kind: Kind
    number: int
    policy: RoundPolicy
    opened_at: float
    base_digest: str
    open: bool = True
    deadline: float | None = None  # seconds; None: the policy's
    assignments: dict[str, Assignment] = field(default_factory=dict)  # by client id
    tasks: dict[str, Assignment] = field(default_factory=dict)  # the same by their own id
    tally: Counter[State] = field(default_factory=Counter)  # how many assignments are in which state
    elsewhere: int = 0  # clients that are busy with a round before, and whose answers may count in this one
    doomed: str = ""  # why it cannot make a model, once that is certain

    def invite(self, clients: Iterable[str]) -> None:
        """Reserve a place for each client."""
        for client_id in clients:
            name = f"{self.kind}-{self.number}-{client_id}"  # the same after a restart
            made = Assignment(name, client_id, self)
            self.assignments[client_id] = self.tasks[name] = made

    def offer(self, client_id: str) -> Assignment | None:
        """Return the client's task if it has one to do; a newcomer is given a free place, one that was lost its old task."""
        mine = self.assignments.get(client_id)
        if mine is None and self.vacancies > 0 and self.kind is not Kind.EVALUATE:
            self.invite([client_id])
            mine = self.assignments[client_id]
        if mine and self.revive(mine):
            mine.state = State.ASSIGNED
            return mine
        return None

    def carry(self, late: Assignment) -> Assignment | None:
        """Return a place for an answer that came too late for its own round, or None: its client is in this one itself."""
        if not self.open or late.client_id in self.assignments:
            return None
        made = Assignment(late.id, late.client_id, self, late_for=late.made_for)
        made.given_at = late.given_at
        self.assignments[late.client_id] = self.tasks[late.id] = made
        return made

    def restore(self, counted: Counted) -> None:
        """Take an update up again that was accepted before a restart."""
        if counted.made_for == self.number:
            self.invite({counted.client_id} - self.assignments.keys())
            done = self.assignments[counted.client_id]
        else:
            before = Round(self.kind, counted.made_for, self.policy, self.opened_at, "", open=False)
            done = Assignment(counted.task_id, counted.client_id, self, late_for=before)
            self.assignments[done.client_id] = self.tasks[done.id] = done
        done.state, done.digest, done.num_examples = State.ACCEPTED, counted.digest, counted.num_examples

    def revive(self, assignment: Assignment) -> bool:
        """Return whether an answer to ``assignment`` would be taken; a lost client takes a free place again."""
        return assignment.pending or (assignment.state is State.LOST and self.vacancies > 0)

    def takes(self, assignment: Assignment) -> bool:
        """Return whether an answer to ``assignment`` is still worth the client's while."""
        return self.open and self.revive(assignment)

    def find(self, task_id: str) -> Assignment | None:
        """Return the assignment with this id."""
        return self.tasks.get(task_id)

    def refusal(self, ticket: Ticket, current: int) -> Refusal | None:
        """Return why an update is not taken, or None; ``current`` is the number of the run's round."""
        assignment = ticket.assignment
        if assignment.state is State.ACCEPTED:
            same = ticket.digest in (assignment.digest, "")  # what is handed over by reference has none
            if same and ticket.num_examples == assignment.num_examples:
                return Outcome.DUPLICATE, "DUPLICATE", "counted before, and still once"
            return Outcome.REJECTED, "ROUND_ALREADY_ANSWERED", "another update was accepted for this task"
        if not self.open and self.kind is Kind.FIT and self.number < current:
            return misplaced(self.number, current)
        if not self.open or (assignment.state is State.LOST and not self.revive(assignment)):
            return Outcome.CLOSED, "ROUND_CLOSED", f"round {self.number} takes no more updates"
        if assignment.state is State.RETURNED:
            return Outcome.NOT_SELECTED, "NOT_SELECTED", f"this task was given back: {assignment.reason}"
        return None

    @property
    def accepted(self) -> list[Assignment]:
        """The assignments whose updates count, by client id, so that the order of arrival leaves no trace."""
        return sorted((a for a in self.assignments.values() if a.state is State.ACCEPTED), key=lambda a: a.client_id)

    @property
    def count(self) -> int:
        """How many updates count."""
        return self.tally[State.ACCEPTED]

    @property
    def pending(self) -> int:
        """How many answers are still expected."""
        return self.tally[State.INVITED] + self.tally[State.ASSIGNED]

    @property
    def vacancies(self) -> int:
        """How many more clients may be asked."""
        return self.policy.vacancies(pending=self.pending, accepted=self.count, elsewhere=self.elsewhere)

    @property
    def missing(self) -> dict[str, str]:
        """Who was asked and is not part of the result, and why."""
        return {
            a.client_id: a.reason or ("no answer in time" if a.pending else a.state.value)
            for a in sorted(self.assignments.values(), key=lambda a: a.client_id)
            if a.state is not State.ACCEPTED
        }

    @property
    def closes_at(self) -> float:
        """When the round ends at the latest."""
        return self.opened_at + (self.policy.deadline if self.deadline is None else self.deadline)

    def verdict(self, now: float) -> Verdict:
        """Ask the policy."""
        return self.policy.verdict(
            accepted=self.count, pending=self.pending, elsewhere=self.elsewhere, closes_at=self.closes_at, now=now
        )

    def opened(self, now: float) -> ev.RoundOpened:
        """Return the news that it is open."""
        return ev.RoundOpened(
            at=now, round=self.number, invited=tuple(self.assignments), target=self.policy.target,
            quorum=self.policy.quorum, deadline=self.closes_at - self.opened_at,
        )  # fmt: skip

    def committed(
        self, digest: str, now: float, metrics: Mapping[str, float], traffic: Mapping[str, Traffic]
    ) -> ev.RoundCommitted:
        """Return the news that it made the model with this digest."""
        return ev.RoundCommitted(
            at=now, round=self.number, digest=digest, accepted=tuple(a.client_id for a in self.accepted),
            missing=self.missing, metrics=dict(metrics), seconds=now - self.opened_at, traffic=dict(traffic),
        )  # fmt: skip

    def failed(self, reason: str, now: float) -> ev.RoundFailed:
        """Return the news that it made no model."""
        return ev.RoundFailed(at=now, round=self.number, reason=reason, missing=self.missing, seconds=now - self.opened_at)


def misplaced(number: int, current: int) -> Refusal:
    """Return why an update for round ``number`` has no place in a run whose round is ``current``."""
    if number < current:
        return Outcome.STALE, "STALE_ROUND", f"round {number} is over; the current round is {current}"
    if number > current:
        return Outcome.FUTURE, "FUTURE_ROUND", f"round {number} has not begun; the current round is {current}"
    return Outcome.NOT_SELECTED, "NOT_SELECTED", f"this client has no such task in round {number}"
