"""The audit log over the network: how a server hands it out page by page, and how a copy elsewhere goes on with it.

A copy is the log's first bytes, so its length says where the next line begins. That it is still *this* log shows in the
copy's last line, which stands for all before it: it is asked for again, and must come as it was.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from fedcore.audit import EMPTY, Audit, Verified, follow, verify
from fedcore.errors import RemoteError, StateError
from fedcore.lane import THREADS, Lanes
from fedcore.messages import AuditPage, AuditQuery
from fedcore.private import check_own, claim_file
from fedcore.transport import Reply

log = logging.getLogger(__name__)

LARGEST = 256 << 10
"""Bytes of a page, unless one line has more."""


class Pages:
    """Hands out a log that is being written, on a thread of its own.

    Args:
        audit: the log.
        lanes: makes the thread.
    """

    def __init__(self, audit: Audit, lanes: Lanes = THREADS):
        self._audit, self._reader = audit, lanes.pool("fedcore-audit", 1)

    def answer(self, query: AuditQuery) -> Future[Reply]:
        """Return the next page; the future carries a RemoteError if the file cannot be read."""
        return self._reader.submit(lambda: Reply(self._page(query.after)))

    def close(self) -> None:
        """End the thread."""
        self._reader.shutdown()

    def _page(self, after: int) -> AuditPage:
        try:
            total = self._audit.settle()  # what a crash of the machine took away would look to its readers as if it was cut off
            return AuditPage(_whole_lines(self._audit.path, after, total) if after < total else b"", total)
        except OSError as error:
            log.warning("the audit log cannot be read: %s", error)
            raise RemoteError(f"the server cannot read its audit log: {error.strerror}") from None


def _whole_lines(path: Path, after: int, end: int) -> bytes:
    """Return a page of the lines that begin at or behind ``after``, and before ``end``."""
    with path.open("rb") as file:
        if after > 0:
            file.seek(after - 1)
            file.readline()  # the rest of a line that began before
        data = file.read(max(0, min(LARGEST, end - file.tell())))
        if data and b"\n" not in data:
            data += file.readline()
    return data[: data.rfind(b"\n") + 1]


@dataclass(frozen=True)
class Copied:
    """A copy that is up to date.

    Attributes:
        whole: the copy.
        new: how many of its lines it did not have before.
    """

    whole: Verified
    new: int


def copy(path: Path, ask: Callable[[int], AuditPage]) -> Copied:
    """Make a copy of a log, or go on with one. Lines are in it only if they follow those before.

    What has come when the connection breaks stays, and the next call goes on behind it.

    Args:
        path: the copy; only its owner may read it.
        ask: returns the page behind so many bytes of the log.

    Raises:
        StateError: the log is not the one any more that was copied: lines are missing or are others (``AUDIT_CUT``), or what
            came does not hold together (``AUDIT_BROKEN``). The copy stays as it was; one that was to be made is empty.
        OSError: the copy cannot be read or written.
    """
    had, size, last = _known(path)
    page = ask(size - len(last))
    if not page.lines.startswith(last):
        now = "another one there" if page.lines else "not there any more"
        raise _refused(path, f"line {had.lines} is {now}: it was cut, or written anew, or is another server's", "AUDIT_CUT")
    claim_file(path)
    with path.open("r+b") as file:
        if had.torn:
            file.truncate(size)
        try:
            found = _append(file, size, replace(had, torn=False), page.lines[len(last) :], page.total, ask)
        except StateError as error:
            file.truncate(size)
            raise _refused(path, str(error), error.reason) from None
        file.flush()
        os.fsync(file.fileno())
    return Copied(found, found.lines - had.lines)


def _append(file: BinaryIO, size: int, found: Verified, data: bytes, total: int, ask: Callable[[int], AuditPage]) -> Verified:
    """Write the lines of a page, and of those behind it, at ``size``; return what the copy is with them."""
    file.seek(size)
    while True:
        for line in BytesIO(data):
            found = follow(found, line)
        file.write(data)
        if file.tell() >= total:
            return found
        data = ask(file.tell()).lines
        if not data:
            raise StateError(f"it ends at byte {file.tell()} of {total}: it was cut", reason="AUDIT_CUT")


def _known(path: Path) -> tuple[Verified, int, bytes]:
    """Return what a copy is so far, the bytes of its whole lines, and the last of them."""
    if not path.exists():
        return EMPTY, 0, b""
    check_own(path, stat.S_ISREG)
    found, size, last = verify(path), 0, b""
    with path.open("rb") as file:
        for line in islice(file, found.lines):
            size, last = size + len(line), line
    return found, size, last


def _refused(path: Path, what: str, reason: str) -> StateError:
    return StateError(f"the server's log does not continue {path}: {what}. The copy stays as it was", reason=reason)
