"""What a run must not forget: which rounds there were, which updates count in them, and which models they made.

A folder holds it: ``ledger.db`` (SQLite), ``models/`` and ``updates/`` (:class:`~fedcore.blobs.Blobs`), and ``lock``, which the
process that runs the federation holds as long as it lives. Rows speak of files by their digests; a file is on the disk before
a row speaks of it, and goes after the last row that does. Every method that writes is one transaction, durable when it
returns (rollback journal, ``synchronous=EXTRA``), so that after a crash each has happened wholly or not at all.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedcore.blobs import Blobs
from fedcore.codec import Codec
from fedcore.errors import OutOfStorage, StateError
from fedcore.failpoints import reach
from fedcore.messages import Manifest, TensorInfo

_APPLICATION, _VERSION = 0x66656463, 1  # "fedc"
_SCHEMA = """
CREATE TABLE run (run_id TEXT PRIMARY KEY, begun REAL NOT NULL, num_rounds INTEGER NOT NULL);
CREATE TABLE payloads (digest TEXT PRIMARY KEY, manifest TEXT NOT NULL);
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('open', 'closed', 'committed', 'failed')),
    base TEXT NOT NULL REFERENCES payloads,
    model TEXT REFERENCES payloads,
    facts TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE updates (
    task_id TEXT PRIMARY KEY,
    round INTEGER NOT NULL REFERENCES rounds,
    client_id TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES payloads,
    num_examples INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    UNIQUE (round, client_id)
);
"""


@dataclass(frozen=True)
class Entry:
    """An update that counts, or will: everything but its tensors."""

    task_id: str
    round: int
    client_id: str
    attempt_id: str
    digest: str
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """One round: its ``state`` is open, closed, committed or failed; ``model`` is the digest of what it made, or ""."""

    number: int
    state: str
    base: str
    model: str
    facts: Mapping[str, Any]


class Ledger:
    """The durable memory of one run.

    Args:
        folder: where; it is made if it is not there, for this user alone.
        codec: what models and updates are written with; lossless.

    Attributes:
        models: the models' files.
        updates: the updates' files.

    Raises:
        StateError: the folder is in use by another process, damaged, or no such folder at all.
    """

    def __init__(self, folder: str | os.PathLike[str], codec: Codec):
        self.folder = Path(folder)
        fresh = not (self.folder / "ledger.db").exists()
        self._guard(fresh)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mutex = threading.Lock()
        self._lock = self._locked()
        try:
            self._db = self._opened(fresh)
        except BaseException:
            self._lock.close()
            raise
        self.models = Blobs(self.folder / "models", codec)
        self.updates = Blobs(self.folder / "updates", codec)

    # --- what is there ---

    @property
    def run_id(self) -> str:
        """The run's name, or "" before :meth:`begin`."""
        row = self._db.execute("SELECT run_id FROM run").fetchone()
        return row[0] if row else ""

    def pages(self) -> list[Page]:
        """Return all rounds in their order; the number 0 stands for the first model."""
        rows = self._db.execute("SELECT number, state, base, model, facts FROM rounds ORDER BY number")
        return [Page(number, state, base, model or "", json.loads(facts)) for number, state, base, model, facts in rows]

    def entries(self, number: int) -> list[Entry]:
        """Return the updates of a round, by client id."""
        columns = "task_id, client_id, attempt_id, digest, num_examples, metrics"
        rows = self._db.execute(f"SELECT {columns} FROM updates WHERE round = ? ORDER BY client_id", (number,))  # noqa: S608
        return [
            Entry(task, number, client, attempt, digest, examples, json.loads(metrics))
            for task, client, attempt, digest, examples, metrics in rows
        ]

    def manifest(self, digest: str) -> Manifest:
        """Return how the file with this digest is to be read.

        Raises:
            StateError: the ledger does not know it.
        """
        row = self._db.execute("SELECT manifest FROM payloads WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise self._damaged(f"nothing is known of a payload {digest[:16]}")
        facts = json.loads(row[0])
        tensors = tuple(TensorInfo(name, dtype, tuple(shape), alias) for name, dtype, shape, alias in facts.pop("tensors"))
        return Manifest(**{**facts, "frames": tuple(facts["frames"]), "tensors": tensors})

    # --- what happens ---

    def begin(self, run_id: str, num_rounds: int, model: Manifest) -> None:
        """Note a new run and the model it starts from, which is in :attr:`models`."""
        with self._writing("run.before", "run.after"):
            self._db.execute("INSERT INTO run VALUES (?, ?, ?)", (run_id, time.time(), num_rounds))
            self._know(model)
            first = "INSERT INTO rounds (number, state, base, model) VALUES (0, 'committed', ?, ?)"
            self._db.execute(first, (model.digest, model.digest))

    def open_round(self, number: int, base: str) -> None:
        """Note that a round is open."""
        with self._writing("round.before_open", "round.after_open"):
            self._db.execute("INSERT INTO rounds (number, state, base) VALUES (?, 'open', ?)", (number, base))

    def accept(self, entry: Entry, payload: Manifest) -> None:
        """Note an update whose file is in :attr:`updates`; the very same once more changes nothing.

        Raises:
            StateError: another update is noted for this task, or the round takes none.
        """
        with self._writing("upd.before_row", "upd.after_row"):
            row = self._db.execute("SELECT state FROM rounds WHERE number = ?", (entry.round,)).fetchone()
            if row is None or row[0] != "open":
                raise StateError(f"round {entry.round} takes no updates: it is {row[0] if row else 'unknown'}")
            self._know(payload)
            known = self._db.execute(
                "SELECT task_id, digest, num_examples FROM updates WHERE task_id = ? OR (round = ? AND client_id = ?)",
                (entry.task_id, entry.round, entry.client_id),
            ).fetchone()
            if known is None:
                facts = asdict(entry) | {"metrics": json.dumps(dict(entry.metrics))}
                self._db.execute("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(facts.values()))
            elif known != (entry.task_id, entry.digest, entry.num_examples):
                raise StateError(f"client {entry.client_id} has another update in round {entry.round} already")

    def withdraw(self, task_id: str) -> None:
        """Forget an update that came too late after all; nobody was told that it counts."""
        with self._writing():
            self._db.execute("DELETE FROM updates WHERE task_id = ?", (task_id,))

    def close_round(self, number: int, tasks: Iterable[str]) -> None:
        """Fix the updates that a round is made of: those of these tasks, and no others."""
        with self._writing("close.before_commit", "close.after_commit"):
            kept = set(tasks)
            for entry in self.entries(number):
                if entry.task_id not in kept:
                    self._db.execute("DELETE FROM updates WHERE task_id = ?", (entry.task_id,))
            self._turn(number, ("open",), "closed")

    def commit_round(self, number: int, model: Manifest, facts: Mapping[str, Any]) -> None:
        """Note the model that a closed round made; its file is in :attr:`models`."""
        with self._writing("commit.before", "commit.after"):
            self._know(model)
            self._turn(number, ("closed",), "committed", model.digest, facts)

    def fail_round(self, number: int, facts: Mapping[str, Any]) -> None:
        """Note that a round makes no model."""
        with self._writing():
            self._turn(number, ("open", "closed"), "failed", None, facts)

    def sweep(self, *, keep_models: int = 1, keep_updates: int = 0) -> list[str]:
        """Take away the files that are not needed any more, and return their names.

        Args:
            keep_models: of how many of the last committed rounds the models are kept.
            keep_updates: of how many of the last committed rounds the updates are kept, beside those of a round in progress.
        """
        pages = self.pages()
        committed = [page for page in pages if page.state == "committed"]
        working = [page for page in pages if page.state in ("open", "closed")]
        models = {page.model for page in committed[-keep_models:]} | {page.base for page in working}
        of = {page.number for page in [*working, *(committed[-keep_updates:] if keep_updates else [])]}
        updates = {entry.digest for number in of for entry in self.entries(number)}
        return self.models.sweep(models) + self.updates.sweep(updates)

    def close(self) -> None:
        """Let another process have the folder."""
        self._db.close()
        self._lock.close()

    # --- inside ---

    def _turn(
        self, number: int, before: Sequence[str], state: str, model: str | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        marks = ", ".join("?" * len(before))
        changed = self._db.execute(
            f"UPDATE rounds SET state = ?, model = ?, facts = ? WHERE number = ? AND state IN ({marks})",  # noqa: S608 - marks
            (state, model, json.dumps(dict(facts or {})), number, *before),
        ).rowcount
        if changed != 1:
            raise StateError(f"round {number} cannot become {state}: it is not {' or '.join(before)}")

    def _know(self, payload: Manifest) -> None:
        text = json.dumps({**asdict(payload), "tensors": [list(info) for info in payload.tensors]})
        self._db.execute("INSERT OR IGNORE INTO payloads VALUES (?, ?)", (payload.digest, text))

    @contextmanager
    def _writing(self, before: str = "", after: str = "") -> Iterator[None]:
        with self._mutex:
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
                raise OutOfStorage(f"{self.folder / 'ledger.db'} cannot be written: {error}") from error
            except sqlite3.DatabaseError as error:
                raise self._damaged(str(error)) from error
            reach(after)

    def _guard(self, fresh: bool) -> None:
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise StateError(f"{self.folder} is no folder (links are not followed): name another state_dir")
        if not fresh or not self.folder.exists():
            return
        if others := {path.name for path in self.folder.iterdir()} - {"lock", "models", "updates"}:
            raise StateError(f"{self.folder} holds other things ({min(others)}), and no ledger: name an empty or new folder")
        if any(any(path.glob("*.*")) for path in (self.folder / "models", self.folder / "updates")):
            raise self._damaged("there are models or updates, but ledger.db is missing")

    def _locked(self) -> sqlite3.Connection:
        """Hold a lock that the system takes back when this process ends, however it does."""
        lock = sqlite3.connect(self.folder / "lock", timeout=0, isolation_level=None, check_same_thread=False)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            lock.close()
            raise StateError(
                f"{self.folder} is in use by another process: stop that server, or name another state_dir",
                reason="STATE_LOCKED",
            ) from None
        return lock

    def _opened(self, fresh: bool) -> sqlite3.Connection:
        path = self.folder / "ledger.db"
        try:
            if not fresh and path.stat().st_size == 0:
                raise sqlite3.DatabaseError("it is empty")
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(database, fresh)
            except BaseException:
                database.close()
                raise
            return database
        except sqlite3.DatabaseError as error:
            raise self._damaged(f"ledger.db cannot be used: {error}") from error

    def _prepare(self, database: sqlite3.Connection, fresh: bool) -> None:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA synchronous = EXTRA")
        database.execute("PRAGMA foreign_keys = ON")
        if fresh:
            marks = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};"
            database.executescript(f"BEGIN; {_SCHEMA} {marks} COMMIT")
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise sqlite3.DatabaseError("it is the database of another program")
        if version != _VERSION:
            raise StateError(f"{self.folder} was written by another version of fedcore (format {version}, not {_VERSION})")
        (sound,) = database.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok" or database.execute("PRAGMA foreign_key_check").fetchone():
            raise sqlite3.DatabaseError(f"it is damaged ({sound})")

    def _damaged(self, what: str) -> StateError:
        return StateError(
            f"{self.folder} is damaged: {what}. Nothing was changed. Restore it from a copy, or move it away to start anew",
            reason="STATE_DAMAGED",
        )
