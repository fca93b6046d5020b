"""An append-only log of who did what, in which no line can be changed, left out or put in without that being seen.

Each line is a JSON object. ``before`` is the SHA-256 of the line before it, without its line break; so the last line's own
hash, the *head*, stands for the whole file. Whoever keeps a copy of it elsewhere knows later that nothing was cut off at the
end, and that nobody wrote the file anew: of that a chain alone shows nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcore import events as ev
from fedcore.errors import StateError
from fedcore.private import claim_file

NAME = "audit.jsonl"
"""The file in a state directory."""

_TOLD: tuple[type[ev.Event], ...] = (
    ev.RunStarted, ev.RunPaused, ev.RunFinished, ev.ServerLeft, ev.ClientRegistered, ev.ClientLost, ev.ClientEvicted,
    ev.UpdateAccepted, ev.UpdateRefused, ev.AccessRefused, ev.RoundOpened, ev.RoundCommitted, ev.RoundFailed, ev.Commanded,
    ev.AuditRead,
)  # fmt: skip
_LASTING = (ev.RoundCommitted, ev.Commanded, ev.ClientEvicted, ev.RunFinished)  # on the disk before anything else is written
_REPEATED = (ev.ClientRegistered, ev.UpdateRefused, ev.AccessRefused, ev.AuditRead)  # what a peer can cause at will
_UNSAID = {"at", "past", "metrics", "traffic", "seconds", "silent"}
_NOT_COMPARED = {"round", "again", "address", "after"}  # in what repeats
_ONCE_IN = 1.0  # seconds: a peer's repetitions within are counted in one line
_MOST_HELD = 1024  # peers whose repetitions are counted at a time
_LONGEST_TEXT = 500
_TORN = "TornLine"

KINDS = (*(kind.__name__ for kind in _TOLD), _TORN)
"""What a line can be about."""


@dataclass(frozen=True)
class Verified:
    """A log that holds together.

    Attributes:
        lines: how many there are.
        head: SHA-256 of the last line: what to keep a copy of.
        first: the time of the first line, in ISO 8601, or "".
        last: of the last one.
        torn: whether there is half a line behind it, as a crash leaves it; it is not counted.
        expected: the number of the line whose SHA-256 was expected; 0 if none was.
    """

    lines: int
    head: str
    first: str = ""
    last: str = ""
    torn: bool = False
    expected: int = 0


EMPTY = Verified(0, "0" * 64)
"""A log in which nothing is yet; the first line has its head as ``before``."""


@dataclass
class _Held:
    """What somebody repeats: since when it was not written, how often, and what the last one said."""

    since: float
    more: int
    what: str
    facts: dict[str, Any]


class Audit:
    """Writes the log; an observer.

    What a peer repeats is one line a second. Its ``repeated`` tells how many more there were since the line before;
    ``unwritten``, how many lines before it there was no room for on the disk.

    Args:
        path: the file; one that is there is gone on with.
        wall: tells the time of day, in UTC; it decides nothing.

    Raises:
        StateError: the file that is there was changed, is a link, or others may write to it.
    """

    def __init__(self, path: str | Path, wall: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._path, self._wall, self._lock = Path(path), wall, threading.Lock()
        self._held: dict[tuple[object, ...], _Held] = {}
        self._unwritten = 0
        claim_file(self._path)
        torn = _mend(self._path)
        verified = verify(self._path)
        self._number, self._before = verified.lines, verified.head
        self._file = self._path.open("ab", buffering=0)
        self._end = self._file.tell()
        if torn:
            self._write(_TORN, {"meaning": "the last line was half written when the server died, and was taken away"})

    def __call__(self, event: ev.Event) -> None:
        """Note an event, if it is one of those that are told."""
        with self._lock:
            self._write_held(event.at)
            if not isinstance(event, _TOLD):
                return
            what, facts = type(event).__name__, {name: value for name, value in vars(event).items() if name not in _UNSAID}
            if not (isinstance(event, _REPEATED) and self._again(event.at, what, facts)):
                self._write(what, facts)
            if isinstance(event, _LASTING):
                os.fsync(self._file.fileno())

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def settle(self) -> int:
        """Have what was written so far on the disk, and return how many bytes that is: whole lines.

        Raises:
            OSError: that cannot be done.
        """
        with self._lock:
            if not self._file.closed:
                os.fsync(self._file.fileno())
            return self._end

    def close(self) -> None:
        """Write everything out, and close the file. May be called twice."""
        with self._lock:
            if not self._file.closed:
                self._write_held(math.inf)
                os.fsync(self._file.fileno())
                self._file.close()

    def _again(self, now: float, what: str, facts: dict[str, Any]) -> bool:
        """Return whether this was written already a moment ago, and is to be counted only."""
        key = (what, *(value for name, value in sorted(facts.items()) if name not in _NOT_COMPARED))
        held = self._held.get(key)
        if held is None:
            self._held[key] = _Held(now, 0, what, facts)
            return False
        held.more, held.facts = held.more + 1, facts
        return True

    def _write_held(self, now: float) -> None:
        """Write what was counted for long enough, or for which there is no room any more; the oldest comes first."""
        while self._held:
            key, held = next(iter(self._held.items()))
            due = now - held.since >= _ONCE_IN
            if not due and len(self._held) < _MOST_HELD:
                return
            del self._held[key]
            if held.more:
                self._write(held.what, {**held.facts, **({"repeated": held.more - 1} if held.more > 1 else {})})
                if due and now < math.inf:
                    self._held[key] = _Held(now, 0, held.what, held.facts)

    def _write(self, what: str, facts: Mapping[str, Any]) -> None:
        line = {"number": self._number + 1, "time": self._wall().isoformat(timespec="milliseconds"), "what": what}
        if self._unwritten:
            line["unwritten"] = self._unwritten
        data = json.dumps({**line, **_bounded(facts), "before": self._before}, ensure_ascii=True).encode()
        try:
            if self._file.write(data + b"\n") != len(data) + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            self._unwritten += 1
            self._file.truncate(self._end)
            raise
        self._end += len(data) + 1
        self._number, self._before, self._unwritten = self._number + 1, _hash(data), 0


def _bounded(value: Any) -> Any:
    """Return a value whose texts have a bearable length."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else f"{value[: _LONGEST_TEXT - 3]}..."
    if isinstance(value, Mapping):
        return {_bounded(key): _bounded(each) for key, each in value.items()}
    return [_bounded(each) for each in value] if isinstance(value, list | tuple) else value


def verify(path: str | Path, *, expect: str = "", at: int = 0) -> Verified:
    """Check that no line of a log was changed, left out or put in.

    Args:
        path: the file.
        expect: the head that it had once, as it was noted elsewhere: it must still be the hash of a line.
        at: how many lines it had then, or 0: how many at least there must be, and with ``expect`` the line that must have it.

    Raises:
        StateError: it does not hold together, with reason ``AUDIT_BROKEN``; the text names the first line that does not fit,
            and what is wrong with it. Or it is not the log that was expected, with reason ``AUDIT_CUT``.
        OSError: it cannot be read.
    """
    path, number, head, torn, found = Path(path), 0, EMPTY.head, False, 0
    first = last = ""
    for line, own in _checked(path):
        if torn := line is None:
            break
        number, head = number + 1, own
        last = str(line.get("time", ""))
        first, found = first or last, number if head == expect else found
    if number < at:
        raise _cut(path, f"it has {number} lines, and had {at}: lines were cut off at its end")
    if expect and not found:
        raise _cut(path, "no line has the hash that is expected: lines were cut off at its end, or it was written anew")
    if expect and at and found != at:
        raise _cut(path, f"line {found} has the hash that line {at} had: this is not the log that was noted")
    return Verified(number, head, first, last, torn, found)


def _cut(path: Path, what: str) -> StateError:
    return StateError(f"{path}: {what}", reason="AUDIT_CUT")


def _what_is_wrong(path: Path, at: int) -> str:
    """Say what is wrong with the first line that does not follow the one before."""
    here: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    own, later = "", False
    for number, (data, _) in enumerate(_lines(path), 1):
        if number < at:
            continue
        line = _parsed(data)
        if number == at:
            here, own = line, _hash(data)
        elif number == at + 1:
            after = line
        later |= number > at and line is not None and line["number"] == at
    if after and after["number"] == at and (here is None or here["number"] <= at):
        return f"line {at} was put in: what was line {at} is behind it"
    if here is None:
        return f"line {at} was changed: it is no line of a log"
    if here["number"] > at:
        if later:
            return f"line {at} is out of order: it was line {here['number']}, and line {at} comes later"
        missing = f"line {at} is" if here["number"] == at + 1 else f"lines {at} to {here['number'] - 1} are"
        return f"{missing} missing: line {here['number']} comes next"
    if here["number"] < at:
        return f"line {at} was put in or is out of order: it says that it is line {here['number']}"
    if after is None and at > 1:
        return f"line {at - 1} or line {at} was changed"
    return f"line {at if after is None or after['before'] != own or at == 1 else at - 1} was changed"


def lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield what each line of a log says, as far as they hold together.

    Raises:
        StateError: one does not follow the one before; see :func:`verify`.
        OSError: the file cannot be read.
    """
    return (line for line, _ in _checked(Path(path)) if line is not None)


def _checked(path: Path) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Yield each line and its hash; None stands for half a line at the end.

    Raises:
        StateError: one does not follow the one before.
    """
    before = EMPTY.head
    for number, (data, whole) in enumerate(_lines(path), 1):
        line = _following(data, number, before) if whole else None
        if whole and line is None:
            raise StateError(f"{path}: {_what_is_wrong(path, number)}", reason="AUDIT_BROKEN")
        before = _hash(data)
        yield line, before


def follow(log: Verified, data: bytes) -> Verified:
    """Return what a log is with one more line, which is given with its line break.

    Raises:
        StateError: the line does not follow, with reason ``AUDIT_BROKEN``.
    """
    line = _following(data[:-1], log.lines + 1, log.head) if data.endswith(b"\n") else None
    if line is None:
        raise StateError(f"line {log.lines + 1} does not follow the one before", reason="AUDIT_BROKEN")
    time = str(line.get("time", ""))
    return Verified(log.lines + 1, _hash(data[:-1]), log.first or time, time)


def _following(data: bytes, number: int, before: str) -> dict[str, Any] | None:
    """Return what a line says, if it is the one with this number, behind the one with this hash."""
    line = _parsed(data)
    return line if line is not None and (line["number"], line["before"]) == (number, before) else None


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield each line without its break, and whether it has one."""
    with path.open("rb") as file:
        for data in file:
            yield data.removesuffix(b"\n"), data.endswith(b"\n")


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(data)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(line, dict) and type(line.get("number")) is int and isinstance(line.get("before"), str)
    return line if fits else None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _mend(path: Path) -> bool:
    """Take away what a crash left half written; returns whether there was anything."""
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        end, size, tail = file.tell(), 1 << 16, b""
        while len(tail) < end and b"\n" not in tail:
            file.seek(max(0, end - size))
            tail, size = file.read(), 2 * size
        whole = tail.rfind(b"\n") + 1
        if whole == len(tail):
            return False
        file.truncate(end - len(tail) + whole)
    return True
