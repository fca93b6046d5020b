"""What is known of a run from its events alone: the state that displays show."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from fedcore import events as ev
from fedcore.history import History, RoundRecord
from fedcore.messages import Kind, Status
from fedcore.observers.units import count, harmless, span

__all__ = ["Board", "Desk", "headline", "problem"]

_PACE_OF = 9  # rounds
_AWAY = "away"  # it took part before the server was interrupted, and has not come back yet


@dataclass
class Desk:
    """One client: what it does, how far it is, and what it has brought."""

    doing: str = Status.IDLE.value
    step: int = 0
    total: int = 0
    examples: int = 0
    updates: int = 0

    def turn_to(self, doing: str, step: int = 0, total: int = 0) -> None:
        """Note what the client does now."""
        self.doing, self.step, self.total = doing.replace("_", " "), step, total


class Board:
    """Folds events, one by one, into what can be shown. All times are on the clock of the run.

    Attributes:
        history: the rounds so far.
        clients: by id.
        current: the round that is open, if one is.
        accepted: how many updates it has.
        awaiting: committed rounds whose evaluation has not been heard of.
        evaluates: whether rounds are evaluated at all; None while that cannot be known.
        problems: what went wrong lately, oldest first.
        trouble: what the last event said went wrong, or "".
        paused: says why the run cannot go on at present, or "".
        resumed: the round that an interrupted run goes on with, in words; "" if it began here.
        over: the end of the run, once it has come.
    """

    def __init__(self) -> None:
        self.run_id = self.address = ""
        self.num_rounds = 0
        self.started = self.latest = 0.0
        self.history = History()
        self.clients: dict[str, Desk] = {}
        self.current: ev.RoundOpened | None = None
        self.accepted = 0
        self.awaiting: set[int] = set()
        self.evaluates: bool | None = None
        self.problems: deque[str] = deque(maxlen=100)
        self.trouble = self.paused = self.resumed = ""
        self.over: ev.RunFinished | None = None

    def note(self, event: ev.Event) -> None:
        """Take an event in."""
        self.latest = max(self.latest, event.at)
        # after the end clients stop, and late updates are refused: nothing is wrong with that
        self.trouble = problem(event) if self.over is None else ""
        if self.trouble and not isinstance(event, ev.RunPaused):
            self.problems.append(self.trouble)
        match event:
            case ev.RunStarted():
                self._start(event)
            case ev.RunPaused():
                self.paused = self.trouble
            case ev.RoundOpened():
                self.current, self.accepted = event, 0
            case ev.RoundCommitted():
                self._commit(event)
            case ev.RoundFailed():
                missing = dict(event.missing)
                self._end(RoundRecord(event.round, "failed", event.reason, missing=missing, seconds=event.seconds))
            case ev.Evaluated():
                self.history.note(event.round, event.metrics)
                self._heard(event.round)
            case ev.EvaluationFailed():
                self._heard(event.round)
            case ev.RunFinished():
                self._finish(event)
            case _ if self.over is None:
                self._fold_client(event)

    def _start(self, event: ev.RunStarted) -> None:
        self.run_id, self.address, self.num_rounds = event.run_id, event.address, event.num_rounds
        going, self.current = self.current, None  # a round that is taken up again has been opened already
        for each in event.past:
            self.note(each)
        self.trouble = ""
        for desk in self.clients.values():
            desk.turn_to(_AWAY)
        rounds = self.history.rounds
        self.started, self.latest = event.at - sum(record.seconds for record in rounds), event.at
        number = rounds[-1].number + 1 if rounds else 1
        if going and going.round == number:
            self.current = going
            self.started -= event.at - going.at
            self.resumed = f"round {number} ({self.accepted} of {count(going.target, 'update')})"
        elif event.past and self.committed < self.num_rounds:
            self.resumed = f"round {number}"

    def _fold_client(self, event: ev.Event) -> None:
        match event:
            case ev.ClientRegistered():
                self._desk(event.client_id).turn_to(Status.IDLE)
            case ev.ClientLost():
                self._desk(event.client_id).turn_to("lost")
            case ev.ClientChanged():
                self._desk(event.client_id).turn_to(event.status, event.step, event.total)
            case ev.TaskAssigned():
                self._desk(event.client_id).turn_to("working")  # fetching or training, until it says which
            case ev.TaskReturned():
                self._desk(event.client_id).turn_to(Status.ERROR)
            case ev.UpdateAccepted():
                desk = self._desk(event.client_id)
                desk.turn_to(Status.WAITING)
                if event.kind is Kind.FIT:
                    desk.examples, desk.updates, self.accepted = event.num_examples, desk.updates + 1, event.accepted

    def _desk(self, client_id: str) -> Desk:
        return self.clients.setdefault(client_id, Desk())

    def _commit(self, event: ev.RoundCommitted) -> None:
        if self.evaluates is None and self.awaiting:
            self.evaluates = False
        self.awaiting.add(event.round)
        self._end(RoundRecord.of(event))

    def _end(self, record: RoundRecord) -> None:
        self.history.add(record)
        self.current, self.accepted = None, 0

    def _finish(self, event: ev.RunFinished) -> None:
        self.over, self.current, self.paused = event, None, ""
        for desk in self.clients.values():
            if desk.doing != "lost":
                desk.turn_to("done")

    def _heard(self, number: int) -> None:
        self.evaluates = True
        self.awaiting.discard(number)

    # --- what follows from it -----------------------------------------------------------------------------------------

    @property
    def committed(self) -> int:
        """How many rounds made a model."""
        return sum(record.outcome == "committed" for record in self.history.rounds)

    @property
    def rounds_to_go_through(self) -> int:
        """The number the last round will have: failed rounds keep theirs, and are made good for."""
        return self.num_rounds + len(self.history.rounds) - self.committed

    @property
    def settled(self) -> bool:
        """Whether the run is over and nothing more is to be heard of it."""
        return self.over is not None and not (self.evaluates and self.awaiting)

    def waits_for(self, record: RoundRecord) -> bool:
        """Return whether the metrics of a round may still come: a server that evaluates is never two rounds behind."""
        newest = self.history.rounds[-1].number
        return record.number in self.awaiting and self.evaluates is not False and record.number > newest - 2

    def elapsed(self, now: float) -> float:
        """Return the seconds since the start, up to the end."""
        return (self.over.at if self.over else max(now, self.latest)) - self.started

    def left(self, now: float) -> float | None:
        """Return an estimate of the seconds to the end, at the pace of the last rounds; None before there is one."""
        seconds = [record.seconds for record in self.history.rounds[1:]]  # in the first, caches are cold everywhere
        if not seconds or self.over:
            return None
        pace = median(seconds[-_PACE_OF:])
        going = max(now, self.latest) - self.current.at if self.current else 0.0
        return max(0.0, (self.num_rounds - self.committed) * pace - min(going, pace))

    def curves(self) -> dict[str, list[float]]:
        """Return the values of each metric worth a line, round by round."""
        curves: dict[str, list[float]] = {}
        for record in self.history.rounds:
            for name, value in headline(record.metrics).items():
                curves.setdefault(name, []).append(value)
        return curves

    def traffic(self) -> tuple[int, int]:
        """Return the bytes sent to clients and received from them in the rounds that ended."""
        rounds = self.history.rounds
        return sum(record.bytes_sent for record in rounds), sum(record.bytes_received for record in rounds)


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics worth a line: the server's, loss first; in their absence what the clients measured."""
    own = {name: value for name, value in metrics.items() if "/" not in name}
    measured = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith("evaluate/")}
    # clients choose the names of what they measure
    named = {harmless(name): value for name, value in (own or measured).items()}
    return dict(sorted(named.items(), key=lambda item: (item[0] != "loss", item[0])))


def problem(event: ev.Event) -> str:
    """Return what an event says went wrong, or "". What others sent is made harmless for a terminal."""
    match event:
        case ev.ClientLost():
            return f"{event.client_id} is lost: silent for {span(event.silent)}"
        case ev.TaskReturned():
            return f"{event.client_id} gave back its task of round {event.round}: {harmless(event.reason)}"
        case ev.UpdateRefused():
            why = f"{event.outcome.replace('_', ' ')} ({event.reason})" if event.reason else event.outcome
            return f"the update of {event.client_id} for round {event.round} does not count: {harmless(why)}"
        case ev.RoundFailed():
            return f"round {event.round} failed: {harmless(event.reason)}"
        case ev.EvaluationFailed():
            return f"the evaluation of round {event.round} failed: {harmless(event.reason)}"
        case ev.RunPaused() if event.reason:
            return f"the run is paused: {harmless(event.reason)}"
        case ev.RunFinished() if event.failed:
            return f"the run ended early: {harmless(event.failed)}"
    return ""
