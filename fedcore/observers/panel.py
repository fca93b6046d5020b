"""A run as a panel that rich draws and keeps up to date."""

from __future__ import annotations

import logging
import threading
import time
from typing import TextIO

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedcore import events as ev
from fedcore.messages import Status
from fedcore.observers.board import Board, Desk
from fedcore.observers.units import count, metric, natural, size, span, sparkline

__all__ = ["Display", "panel"]

log = logging.getLogger(__name__)

_FRAMES_PER_SECOND = 8
_STYLES = {"working": "cyan", Status.TRAINING: "cyan", "lost": "red", Status.ERROR: "red"}
_PROBLEMS = 4


class Display:
    """Draws a board some times a second until it is closed.

    A thread of its own rather than rich's: it shares one lock with whoever changes the board, and an error in it ends
    the display alone.

    Args:
        stream: a terminal.
        board: what is known.
        lock: held while the board is changed.
    """

    def __init__(self, stream: TextIO, board: Board, lock: threading.Lock):
        self._board, self._lock = board, lock
        self._console = Console(file=stream, force_terminal=True)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=False)
        self._seen = time.monotonic()
        self._closing = threading.Event()
        self._live.start()
        self._ticker = threading.Thread(target=self._tick, name="fedcore-console", daemon=True)
        self._ticker.start()

    def show(self, event: ev.Event) -> None:
        """Note the time; the next frame shows what changed."""
        self._seen = time.monotonic()

    def close(self) -> None:
        """Draw the last frame, and leave it there."""
        self._closing.set()
        self._ticker.join()
        try:
            with self._lock:
                self._draw()
        finally:
            self._live.stop()

    def _tick(self) -> None:
        while not self._closing.wait(1 / _FRAMES_PER_SECOND):
            try:
                with self._lock:
                    self._draw()
            except Exception:
                log.exception("the display failed and is gone; the run goes on")
                return

    def _draw(self) -> None:
        now = self._board.latest + time.monotonic() - self._seen
        fancy = self._console.encoding.startswith("utf")
        self._live.update(panel(self._board, now, height=self._console.height, fancy=fancy), refresh=True)


def panel(board: Board, now: float, *, height: int, fancy: bool) -> RenderableType:
    """Draw what is known.

    Args:
        board: what is known.
        now: the time on the clock of the run.
        height: the lines there are; clients beyond them are counted instead.
        fancy: whether the terminal knows more than ASCII.
    """
    notes = [_note(f"resumed in {board.resumed}", "dim")] if board.resumed else []
    notes += [_note(problem, "yellow") for problem in list(board.problems)[-_PROBLEMS:]]
    notes += [_note(board.paused, "bold red")] if board.paused else []
    rows = max(3, height - 11 - len(notes))
    parts: list[RenderableType] = [_progress(board, now), Text(), _clients(board, rows), Text(), _figures(board, fancy)]
    if notes:
        parts += [Text(), *notes]
    title = Text.assemble((" fedcore ", "bold"), (f"{board.run_id}  {board.address} ", "dim"))
    return Panel(Group(*parts), box=ROUNDED, title=title, title_align="left", border_style="dim", padding=(0, 1))


def _note(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _progress(board: Board, now: float) -> RenderableType:
    last = board.rounds_to_go_through
    number = min(len(board.history.rounds) + (board.over is None), last)
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(max(1, board.num_rounds), board.committed, complete_style="cyan", finished_style="green")
    title = Text.assemble((f"round {number:>{len(str(last))}} of {last}", "bold"), (_votes(board), "dim"))
    grid.add_row(title, bar, Text(_time(board, now)))
    return grid


def _votes(board: Board) -> str:
    if board.current:
        return f"  {board.accepted} of {count(board.current.target, 'update')}"
    return "  between rounds" if board.history.rounds and not board.over else ""


def _time(board: Board, now: float) -> str:
    elapsed, left = span(board.elapsed(now), whole=True), board.left(now)
    if board.over:
        return f"{'ended early' if board.over.failed else 'finished'} after {span(board.elapsed(now))}"
    if board.current is None and not board.history.rounds:
        return f"{elapsed}, waiting for clients"
    return elapsed if left is None else f"{elapsed}, about {span(max(1.0, left), whole=True)} left"


def _clients(board: Board, rows: int) -> RenderableType:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", show_edge=False)
    table.add_column("client", no_wrap=True)
    table.add_column("does", no_wrap=True, min_width=17)
    table.add_column("", width=18)
    table.add_column("examples", justify="right")
    table.add_column("updates", justify="right")
    everyone = sorted(board.clients.items(), key=lambda item: natural(item[0]))
    for name, desk in everyone[:rows]:
        doing, bar = _doing(desk)
        table.add_row(Text(name), doing, bar, Text(f"{desk.examples or ''}"), Text(str(desk.updates)))
    if len(everyone) > rows:
        table.add_row(Text(f"and {len(everyone) - rows} more", style="dim"))
    if not everyone:
        table.add_row(Text("none yet", style="dim"))
    return table


def _doing(desk: Desk) -> tuple[Text, RenderableType]:
    style = _STYLES.get(desk.doing, "")
    if desk.doing != Status.TRAINING or not desk.total:
        return Text(desk.doing, style=style or "dim"), Text()
    bar = ProgressBar(desk.total, min(desk.step, desk.total), width=18, complete_style="cyan", finished_style="cyan")
    return Text(f"training {desk.step}/{desk.total}", style=style), bar


def _figures(board: Board, fancy: bool) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for name, values in list(board.curves().items())[:4]:
        curve = sparkline(values) if fancy else ""
        grid.add_row(Text(name, style="dim"), Text(metric(values[-1]), style="bold"), Text(curve, style="cyan"))
    sent, received = board.traffic()
    ways = Text(f"{size(sent)} to clients, {size(received)} back", style="dim")
    grid.add_row(Text("traffic", style="dim"), Text(size(sent + received)), ways)
    return grid
