"""A run on the terminal: a live panel where rich can draw one, plain lines everywhere else."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

from fedcore import events as ev
from fedcore.observers.board import Board
from fedcore.observers.lines import Lines

__all__ = ["Console"]

log = logging.getLogger(__name__)


class View(Protocol):
    """One way to show a board. ``close`` is called once, and never under the console's lock."""

    def show(self, event: ev.Event) -> None:
        """Show what changed; the board has taken the event in."""

    def close(self) -> None:
        """Show the end."""


class Console:
    """An observer that shows the run. It never breaks it: when the stream goes away, the display ends quietly.

    >>> with Console() as console, Server(address, strategy=strategy, observers=[console]) as server:
    ...     history, parameters = server.wait()

    Without ``with`` it closes by itself when the run is over.

    Args:
        stream: where to; None takes the standard output.
        force_plain: write plain lines even where rich could draw.
    """

    def __init__(self, stream: TextIO | None = None, force_plain: bool = False):
        self._stream = cast(TextIO, _Forgiving(sys.stdout if stream is None else stream))
        self._plain = force_plain
        self._lock = threading.Lock()
        self._board = Board()
        self._view: View | None = None
        self._entered = False

    def __call__(self, event: ev.Event) -> None:
        """Take an event in and show it."""
        if isinstance(event, ev.RunStarted):
            self.close()
            self._begin(event)
        with self._lock:
            self._board.note(event)
            if self._view is not None:
                self._show(self._view, event)
            over = self._board.settled and not self._entered
        if over:
            self.close()

    def close(self) -> None:
        """Show what is still to be shown, and leave the terminal as it was. May be called twice."""
        with self._lock:
            view, self._view = self._view, None
        atexit.unregister(self.close)
        if view is not None:
            try:
                view.close()
            except Exception:
                log.exception("the display could not be closed")

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _begin(self, event: ev.RunStarted) -> None:
        atexit.register(self.close)  # a terminal must not be left without its cursor
        with self._lock:
            before, self._board = self._board, Board()
            if before.current and (before.over or before.run_id in ("", event.run_id)):  # of a round that is taken up again
                self._board.note(before.current)
            self._view = self._best_view()

    def _best_view(self) -> View:
        if not self._plain and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            try:
                from fedcore.observers.panel import Display

                return Display(self._stream, self._board, self._lock)
            except ImportError:
                log.debug("rich is not installed; the run is shown as plain lines")
        return Lines(self._stream, self._board)

    def _show(self, view: View, event: ev.Event) -> None:
        try:
            view.show(event)
        except Exception:
            log.exception("the display failed and is gone; the run goes on")
            self._view = None


class _Forgiving:
    """A text stream that swallows what cannot be written: a reader that went away is no reason to end a run."""

    def __init__(self, stream: TextIO):
        self._stream, self._gone = stream, False

    def write(self, text: str) -> int:
        try:
            if not self._gone:
                self._stream.write(self._writable(text))
        except (OSError, ValueError):
            self._gone = True
        return len(text)

    def flush(self) -> None:
        try:
            if not self._gone:
                self._stream.flush()
        except (OSError, ValueError):
            self._gone = True

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def _writable(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "replace").decode(encoding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
