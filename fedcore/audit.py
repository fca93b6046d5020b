"""An append-only log of who did what, in which no line can be changed, left out or put in without that being seen.

Each line is a JSON object. ``before`` is the SHA-256 of the line before it, without its line break; so the last line's own hash
stands for the whole file, and whoever keeps a copy of that elsewhere knows that nothing was cut off at the end either.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcore import events as ev
from fedcore.errors import StateError

NAME = "audit.jsonl"
"""The file in a state directory."""

_NOTHING = "0" * 64
_TOLD: tuple[type[ev.Event], ...] = (
    ev.RunStarted, ev.RunPaused, ev.RunFinished, ev.ClientRegistered, ev.ClientLost, ev.ClientEvicted, ev.UpdateAccepted,
    ev.UpdateRefused, ev.AccessRefused, ev.RoundOpened, ev.RoundCommitted, ev.RoundFailed, ev.Commanded,
)  # fmt: skip
_LASTING = (ev.RoundCommitted, ev.Commanded, ev.ClientEvicted, ev.RunFinished)  # on the disk before anything else is written
_REPEATED = (ev.ClientRegistered, ev.UpdateRefused, ev.AccessRefused)  # what a peer can cause at will
_UNSAID = {"at", "past", "metrics", "traffic", "seconds", "silent"}
_ONCE_IN = 1.0  # seconds: a peer's repetitions within are counted in one line
_MOST_HELD = 1024  # peers whose repetitions are counted at a time


@dataclass(frozen=True)
class Verified:
    """A log that holds together.

    Attributes:
        lines: how many there are.
        head: SHA-256 of the last line: what to keep a copy of.
    """

    lines: int
    head: str


class Audit:
    """Writes the log; an observer. What a peer repeats is one line a second, with a count.

    Args:
        path: the file; one that is there is gone on with.
        wall: tells the time of day, in UTC; it decides nothing.

    Raises:
        StateError: the file that is there was changed.
    """

    def __init__(self, path: str | Path, wall: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._path, self._wall, self._lock = Path(path), wall, threading.Lock()
        self._held: dict[tuple[object, ...], tuple[float, int]] = {}
        self._number, self._before = 0, _NOTHING
        torn = False
        if self._path.exists():
            torn = _mend(self._path)
            verified = verify(self._path)
            self._number, self._before = verified.lines, verified.head
        self._file = open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)  # noqa: SIM115
        if torn:
            self._write("TornLine", {"meaning": "the last line was half written when the server died, and was taken away"})

    def __call__(self, event: ev.Event) -> None:
        """Note an event, if it is one of those that are told."""
        if not isinstance(event, _TOLD):
            return
        facts = {name: value for name, value in asdict(event).items() if name not in _UNSAID}
        with self._lock:
            if isinstance(event, _REPEATED) and self._again(event, facts):
                return
            self._write(type(event).__name__, facts)
            if isinstance(event, _LASTING):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write everything out, and close the file. May be called twice."""
        with self._lock:
            if not self._file.closed:
                os.fsync(self._file.fileno())
                self._file.close()

    def _again(self, event: ev.Event, facts: dict[str, Any]) -> bool:
        """Return whether this is a repetition to be counted only; else put into ``facts`` how many were."""
        key = (type(event), *(value for name, value in sorted(facts.items()) if name not in ("round", "again", "address")))
        since, more = self._held.get(key, (-_ONCE_IN, 0))
        if event.at - since < _ONCE_IN:
            self._held[key] = since, more + 1
            return True
        if more:
            facts["repeated"] = more
        self._held.pop(key, None)
        while len(self._held) >= _MOST_HELD:
            del self._held[next(iter(self._held))]
        self._held[key] = event.at, 0
        return False

    def _write(self, what: str, facts: dict[str, Any]) -> None:
        line = {"number": self._number + 1, "time": self._wall().isoformat(timespec="milliseconds"), "what": what}
        data = json.dumps({**line, **facts, "before": self._before}, ensure_ascii=True).encode()
        self._file.write(data + b"\n")
        self._number, self._before = self._number + 1, hashlib.sha256(data).hexdigest()


def verify(path: str | Path) -> Verified:
    """Check that no line of a log was changed, left out or put in.

    Raises:
        StateError: one was; the message names the first line that does not fit.
    """
    number, before = 0, _NOTHING
    for number, data in enumerate(_lines(Path(path)), 1):
        try:
            line = json.loads(data)
            fits = (line["number"], line["before"]) == (number, before)
        except (ValueError, TypeError, KeyError):
            fits = False
        if not fits:
            raise StateError(
                f"{path}: line {number} does not follow the one before: somebody changed the log there", reason="AUDIT_BROKEN"
            )
        before = hashlib.sha256(data).hexdigest()
    return Verified(number, before)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for data in file:
            yield data.removesuffix(b"\n")


def _mend(path: Path) -> bool:
    """Take away what a crash left half written; returns whether there was anything."""
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        end = file.tell()
        file.seek(max(0, end - (1 << 20)))
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole == len(tail):
            return False
        file.truncate(end - len(tail) + whole)
    return True
