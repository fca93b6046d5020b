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
    """

    def __init__(self) -> None:
        self.fit: Round | None = None
        self.evaluation: Round | None = None
        self.first_model: Round | None = None
        self._past: deque[Round] = deque(maxlen=REMEMBERED)

    def __iter__(self) -> Iterator[Round]:
        yield from filter(None, (self.first_model, self.evaluation, self.fit))

    def find(self, task_id: str) -> Assignment | None:
        """Return the assignment with this id, of the rounds that ended, too."""
        return next((found for r in chain(self, reversed(self._past)) if (found := r.find(task_id))), None)

    def offer(self, client_id: str) -> Assignment | None:
        """Return what a client is to do now."""
        return next((task for r in self if r.open and (task := r.offer(client_id))), None)

    def closes_at(self) -> list[float]:
        """Return when the open ones end at the latest."""
        return [r.closes_at for r in self if r.open]

    def of(self, client_id: str) -> list[Assignment]:
        """Return what a client was asked in those that are known."""
        return [assignment for r in self if (assignment := r.assignments.get(client_id))]

    def lose(self, client_id: str, reason: str) -> int:
        """Free the places of a client; returns how many."""
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
        """End the training round."""
        if self.fit is None:
            raise AssertionError("no round to conclude")
        done, self.fit = self.fit, None
        self._past.append(done)
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
