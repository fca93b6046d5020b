"""A run as plain lines, one a round: for logs, pipes, and terminals without rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from fedcore import events as ev
from fedcore.history import RoundRecord
from fedcore.observers.board import Board, headline, problem
from fedcore.observers.units import count, harmless, metric, size, span

__all__ = ["Lines"]


class Lines:
    """Writes a line for each round, once its metrics are there, and for each thing that went wrong.

    Args:
        stream: where to.
        board: what is known; it has taken an event in before :meth:`show` is called with it.
    """

    def __init__(self, stream: TextIO, board: Board):
        self._stream, self._board = stream, board
        self._written = 0
        self._bare: set[int] = set()
        self._ended = False

    def show(self, event: ev.Event) -> None:
        """Write what the event gives to say."""
        match event:
            case ev.RunStarted():
                self._write(f"run {event.run_id} at {event.address}, {count(event.num_rounds, 'round')}")
                self._skip_what_was_shown()
            case ev.RunPaused() if not event.reason:
                self._write("the run goes on")
            case ev.Evaluated() if event.round in self._bare and event.metrics:
                self._bare.discard(event.round)
                self._write(f"{self._name(event.round)}  {_metrics(event.metrics)}")
            case ev.RoundFailed() | ev.RunFinished():
                pass  # lines of their own, in their turn
            case _ if self._board.trouble:
                self._write(self._board.trouble)
        self._catch_up(everything=False)

    def close(self) -> None:
        """Write what is still to be written."""
        self._catch_up(everything=True)
        over = self._board.over
        if over and not self._ended:
            self._ended = True
            how = f"ended early, {problem(over).partition(': ')[2]}" if over.failed else "finished"
            took = span(self._board.elapsed(over.at))
            self._write(f"{how}: {count(over.committed, 'round')} in {took}")

    def _skip_what_was_shown(self) -> None:
        """Leave out the rounds that the process before has written its lines for; one that waited for metrics has none yet."""
        rounds = self._board.history.rounds
        self._written = next((at for at, record in enumerate(rounds) if self._board.waits_for(record)), len(rounds))
        if self._board.resumed:
            self._write(f"goes on with {self._board.resumed}")

    def _catch_up(self, *, everything: bool) -> None:
        rounds = self._board.history.rounds
        while self._written < len(rounds):
            record = rounds[self._written]
            if not everything and self._board.waits_for(record):
                return
            self._written += 1
            self._write(f"{self._name(record.number)}  {self._story(record)}")

    def _story(self, record: RoundRecord) -> str:
        if record.outcome == "failed":
            return f"failed: {harmless(record.reason)}"
        metrics = _metrics(record.metrics)
        if not metrics:
            self._bare.add(record.number)
        clients = count(len(record.accepted), "client")
        traffic = size(record.bytes_sent + record.bytes_received)
        return "  ".join(part for part in (metrics, clients, span(record.seconds), traffic) if part)

    def _name(self, number: int) -> str:
        last = str(self._board.rounds_to_go_through)
        return f"round {number:>{len(last)}}/{last}"

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


def _metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {metric(value)}" for name, value in headline(metrics).items())
