"""An SQLite file that is whole or refused: made under another name, checked when it is opened, one transaction at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from fedcore.durable import settle
from fedcore.errors import OutOfStorage, StateError
from fedcore.failpoints import reach
from fedcore.private import claim_file

_BROKEN = (sqlite3.DatabaseError, UnicodeDecodeError)  # the latter where SQLite tells what is wrong


class Database:
    """A database that any number of threads may use.

    Args:
        path: the file; it is made if it is not there.
        schema: the tables of a new one.
        application: the number that marks it as ours.
        version: of the schema; another one is refused.
        looking: only read, beside the process that writes.

    Raises:
        StateError: it is damaged, foreign, or of another version. Nothing was changed then.
    """

    def __init__(self, path: Path, schema: str, *, application: int, version: int, looking: bool = False):
        self._path, self._application, self._version = path, application, version
        self._mutex = threading.RLock()
        try:
            if not looking and not path.exists():
                self._make(schema)
            if path.stat().st_size == 0:
                raise sqlite3.DatabaseError("it is empty")
            where = f"{path.absolute().as_uri()}?mode={'ro' if looking else 'rw'}"
            self._db = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(looking)
            except BaseException:
                self._db.close()
                raise
        except _BROKEN as error:
            raise damaged(path.parent, f"{path.name} cannot be used: {error}") from error

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows that a query finds; those of a transaction only when it is through.

        Raises:
            StateError: the file is damaged.
        """
        with self._mutex:
            try:
                return self._db.execute(query, values).fetchall()
            except _BROKEN as error:
                raise damaged(self._path.parent, f"{self._path.name}: {error}") from error

    def write(self, statement: str, *values: object) -> int:
        """Do a statement inside :meth:`writing`, and return how many rows it changed."""
        return self._db.execute(statement, values).rowcount

    @contextmanager
    def writing(self, before: str = "", after: str = "") -> Iterator[None]:
        """Make what is done inside one transaction; inside another it is part of that.

        Args:
            before: the failpoint in front of its end.
            after: the failpoint behind it.

        Raises:
            OutOfStorage: the disk has no room, or cannot be written.
            StateError: the file is damaged.
        """
        with self._mutex:
            if self._db.in_transaction:
                yield
                return
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    reach(before)
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
            except (sqlite3.OperationalError, OSError) as error:
                raise OutOfStorage(f"{self._path} cannot be written: {error}") from error
            except sqlite3.DatabaseError as error:
                raise damaged(self._path.parent, f"{self._path.name}: {error}") from error
            reach(after)

    def close(self) -> None:
        """Let go of the file."""
        with self._mutex:
            self._db.close()

    def _make(self, schema: str) -> None:
        nascent = self._path.with_suffix(".new")
        for old in (nascent, self._path.with_suffix(".new-journal")):
            old.unlink(missing_ok=True)
        claim_file(nascent)  # SQLite would make it for others to read, too
        with closing(sqlite3.connect(nascent, isolation_level=None)) as database:
            marks = f"PRAGMA application_id = {self._application}; PRAGMA user_version = {self._version};"
            database.execute("PRAGMA synchronous = EXTRA")
            database.executescript(f"BEGIN; {schema} {marks} COMMIT")
        reach("ledger.before_rename")
        settle(nascent, self._path)

    def _prepare(self, looking: bool) -> None:
        if not looking:
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = EXTRA")
        self._db.execute("PRAGMA foreign_keys = ON")
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != self._application:
            raise sqlite3.DatabaseError("it is the database of another program")
        if version != self._version:
            text = f"{self._path.parent} was written by another version of fedcore (format {version}, not {self._version})"
            raise StateError(f"{text}: go on with that one, or name another state_dir")
        (sound,) = self._db.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok" or self._db.execute("PRAGMA foreign_key_check").fetchone():
            raise sqlite3.DatabaseError(f"it is damaged ({sound})")


def hold(path: Path) -> sqlite3.Connection:
    """Take a lock that the system takes back when this process ends, however it does.

    Raises:
        StateError: another process has it.
    """
    claim_file(path)
    lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        text = f"{path.parent} is in use by another process: stop that server, or name another state_dir"
        raise StateError(text, reason="STATE_LOCKED") from None
    except sqlite3.DatabaseError:  # whatever it is, nothing of the run is in it
        lock.close()
        path.unlink()
        return hold(path)
    return lock


def release(lock: sqlite3.Connection) -> None:
    """Let another process have it."""
    with suppress(sqlite3.Error):
        lock.execute("ROLLBACK")
    lock.close()


def damaged(folder: Path, what: str) -> StateError:
    """Return the error for a folder that cannot be trusted."""
    return StateError(
        f"{folder} is damaged: {what}. Nothing was changed. Restore it from a copy, or move it away to start anew",
        reason="STATE_DAMAGED",
    )
