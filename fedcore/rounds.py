"""The collections of a run: the ones that are open, and the last ones that ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from fedcore import events as ev
from fedcore.messages import Kind
from fedcore.policy import RoundPolicy, Verdict
from fedcore.round import Assignment, Counted, Round, State

REMEMBERED = 16
"""How many rounds that are over are known, for whoever sends an update again."""


class Rounds:
    """What clients are asked at present: to train; beside that to evaluate; and at first, for a model of their own.

    Attributes:
        fit: the training round.
        evaluation: of the last model.
        first_model: the request for one.
        late: by client, the training task of a round that is over, if its answer may still count.
    """

    def __init__(self) -> None:
        self.late: dict[str, Assignment] = {}
        self.fit: Round | None = None
        self.evaluation: Round | None = None
        self.first_model: Round | None = None
        self._past: deque[Round] = deque(maxlen=REMEMBERED)

    def __iter__(self) -> Iterator[Round]:
        yield from filter(None, (self.first_model, self.evaluation, self.fit))

    def find(self, task_id: str) -> Assignment | None:
        """Return the assignment with this id, of the rounds that ended, too."""
        known = (found for r in chain(self, reversed(self._past)) if (found := r.find(task_id)))
        return next(chain(known, (each for each in self.late.values() if each.id == task_id)), None)

    def offer(self, client_id: str) -> Assignment | None:
        """Return what a client is to do now."""
        return next((task for r in self if r.open and (task := r.offer(client_id))), None)

    def await_late(self, assignments: Iterable[Assignment]) -> None:
        """Invite those who are busy with a task of a round that is over to nothing else: their answers may still count."""
        self.late.update((each.client_id, each) for each in assignments)
        self._tell_elsewhere()

    def free(self, client_id: str) -> bool:
        """Wait no more for the late answer of a client; returns whether it was waited for."""
        freed = self.late.pop(client_id, None) is not None
        self._tell_elsewhere()
        return freed

    def carry(self, late: Assignment) -> Assignment | None:
        """Return a place in the open training round for an answer that came too late for its own, if there is one."""
        made = self.fit.carry(late) if self.fit else None
        if made is not None:
            self.free(late.client_id)
        return made

    def is_late(self, task: Assignment, current: int) -> bool:
        """Return whether the answer to a task comes too late for its own round, and may count in the ``current`` one."""
        over = task.kind is Kind.FIT and task.pending and not task.collection.open
        other = self.fit if self.fit is not task.collection else None
        beside = other is not None and task.client_id in other.assignments
        return over and not beside and task.collection.policy.carries and _carries(task, current)

    def _tell_elsewhere(self) -> None:
        if self.fit:
            self.fit.elsewhere = len(self.late)

    def closes_at(self) -> list[float]:
        """Return when the open ones end at the latest."""
        return [r.closes_at for r in self if r.open]

    def of(self, client_id: str) -> list[Assignment]:
        """Return what a client was asked in those that are known."""
        return [assignment for r in self if (assignment := r.assignments.get(client_id))]

    def lose(self, client_id: str, reason: str) -> int:
        """Free the places of a client; returns how many."""
        self.free(client_id)
        mine = [assignment for assignment in self.of(client_id) if assignment.pending]
        for assignment in mine:
            assignment.state, assignment.reason = State.LOST, reason
        return len(mine)

    def recall(self, number: int, counted: Iterable[Counted], policy: RoundPolicy) -> None:
        """Know the updates again that counted in a round that was over before a restart."""
        done = Round(Kind.FIT, number, policy, 0.0, "", open=False)
        for each in counted:
            done.restore(each)
        self._past.append(done)

    def conclude(self) -> Round:
        """End the training round; those who are still busy with it are expected in the next ones, if late answers count."""
        if self.fit is None:
            raise AssertionError("no round to conclude")
        done, self.fit = self.fit, None
        self._past.append(done)
        following, busy = done.number + 1, [each for each in done.assignments.values() if each.state is State.ASSIGNED]
        self.late = {name: each for name, each in self.late.items() if _carries(each, following)}
        if done.policy.carries:
            self.await_late(each for each in busy if _carries(each, following))
        return done

    # --- a first model ---

    def ask_for_model(self, now: float, deadline: float, base_digest: str) -> None:
        """Ask the next client for its own parameters; again if one was asked before."""
        self.drop_question()
        self.first_model = Round(Kind.INITIALIZE, 0, RoundPolicy(target=1, deadline=deadline), now, base_digest)

    def drop_question(self) -> None:
        """Ask for a first model no more."""
        if self.first_model:
            self._past.append(self.first_model)
        self.first_model = None

    # --- evaluation ---

    def evaluate(self, number: int, willing: Sequence[str], timeout: float, digest: str, now: float) -> None:
        """Ask clients to evaluate the model that a round made."""
        self.evaluation = Round(Kind.EVALUATE, number, RoundPolicy(target=len(willing), deadline=timeout), now, digest)
        self.evaluation.invite(willing)

    def evaluated(self, now: float) -> bool:
        """Return whether there is nothing more to wait for."""
        going = self.evaluation
        return going is not None and (not going.pending or going.verdict(now) is not Verdict.WAIT)

    def end_evaluation(self, now: float) -> list[ev.EvaluationClosed]:
        """End the evaluation if there is one, and return the news of it."""
        done, self.evaluation = self.evaluation, None
        if done is None:
            return []
        done.open = False
        self._past.append(done)
        return [ev.EvaluationClosed(at=now, round=done.number, accepted=tuple(a.client_id for a in done.accepted))]


def _carries(late: Assignment, current: int) -> bool:
    return current - late.made_for.number <= late.collection.policy.max_staleness
