"""What a run must not forget: which rounds there were, which updates count in them, and which models they made.

A folder holds it: ``ledger.db`` (SQLite), ``models/`` and ``updates/`` (:class:`~fedcore.blobs.Blobs`), and ``lock``, which the
process that runs the federation holds as long as it lives. Rows speak of files by their digests; a file is on the disk before
a row speaks of it, and goes after the last row that does. Every method that writes is one transaction, durable when it
returns (rollback journal, ``synchronous=EXTRA``), so that after a crash each has happened wholly or not at all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedcore.blobs import Blobs
from fedcore.codec import Codec
from fedcore.database import Database, damaged, hold, release
from fedcore.durable import synchronise
from fedcore.errors import StateError, UpdateRejected
from fedcore.messages import Manifest
from fedcore.private import claim_folder
from fedcore.rows import Entry, Page, entry_of, listed, manifest_of, mapping, page_of, understood

__all__ = ["Entry", "Ledger", "Page"]

_APPLICATION, _VERSION = 0x66656463, 1  # "fedc"
_OURS = {"lock", "lock-journal", "models", "updates", "ledger.new", "ledger.new-journal", "audit.jsonl"}
_SCHEMA = """
CREATE TABLE run (run_id TEXT PRIMARY KEY, begun REAL NOT NULL, facts TEXT NOT NULL);
CREATE TABLE clients (client_id TEXT PRIMARY KEY, instances TEXT NOT NULL);
CREATE TABLE payloads (digest TEXT PRIMARY KEY, manifest TEXT NOT NULL);
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('open', 'closed', 'committed', 'failed')),
    base TEXT NOT NULL REFERENCES payloads,
    model TEXT REFERENCES payloads,
    memory TEXT REFERENCES payloads,
    invited TEXT NOT NULL DEFAULT '[]',
    elapsed REAL NOT NULL DEFAULT 0,
    facts TEXT NOT NULL DEFAULT '{}',
    metrics TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE updates (
    task_id TEXT PRIMARY KEY,
    round INTEGER NOT NULL REFERENCES rounds,
    client_id TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES payloads,
    num_examples INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    counted INTEGER NOT NULL REFERENCES rounds,
    weight INTEGER NOT NULL,
    instance TEXT NOT NULL,
    UNIQUE (round, client_id)
);
CREATE INDEX rounds_by_state ON rounds (state, number);
CREATE INDEX updates_by_round ON updates (counted);
"""


class Ledger:
    """The durable memory of one run.

    Args:
        folder: where; it is made if it is not there, for this user alone.
        codec: what models and updates are written with; lossless.
        looking: only read, and beside the process that writes; makes nothing.

    Attributes:
        folder: where it is.
        models: the models' files.
        updates: the updates' files.

    Raises:
        StateError: the folder is in use by another process, damaged, open to others, or no such folder at all.
    """

    def __init__(self, folder: str | os.PathLike[str], codec: Codec, *, looking: bool = False):
        self.folder = Path(folder)
        path = self.folder / "ledger.db"
        if looking and not path.exists():
            raise StateError(f"there is no ledger in {self.folder}")
        self._guard(fresh=not path.exists())
        if not looking:
            claim_folder(self.folder)
            synchronise(self.folder.absolute().parent)
        self._lock = None if looking else hold(self.folder / "lock")
        try:
            self.models = Blobs(self.folder / "models", codec, looking=looking)
            self.updates = Blobs(self.folder / "updates", codec, looking=looking)
            self._db = Database(path, _SCHEMA, application=_APPLICATION, version=_VERSION, looking=looking)
        except BaseException:
            self._unlock()
            raise

    # --- what is there ---

    @property
    def run_id(self) -> str:
        """The run's name, or "" before :meth:`begin`."""
        rows = self._db.read("SELECT run_id FROM run")
        return str(rows[0][0]) if rows else ""

    @property
    def run_facts(self) -> dict[str, Any]:
        """What was noted when the run began, and when that was: ``begun``, in seconds since 1970."""
        with understood(self.folder):
            ((begun, facts),) = self._db.read("SELECT begun, facts FROM run")
            return {**mapping(facts), "begun": float(begun)}

    def pages(self) -> list[Page]:
        """Return all rounds in their order."""
        columns = "number, state, base, ifnull(model, ''), ifnull(memory, ''), invited, elapsed, facts, metrics"
        rows = self._db.read(f"SELECT {columns} FROM rounds ORDER BY number")  # noqa: S608
        with understood(self.folder):
            return [page_of(row) for row in rows]

    def clients(self) -> dict[str, list[str]]:
        """Return the last processes of each client that registered, the newest last."""
        rows = self._db.read("SELECT client_id, instances FROM clients")
        with understood(self.folder):
            return {str(client_id): listed(instances) for client_id, instances in rows}

    def entries(self, number: int) -> list[Entry]:
        """Return the updates that count in a round, by client id."""
        columns = "task_id, round, client_id, attempt_id, digest, num_examples, metrics, counted, weight, instance"
        rows = self._db.read(f"SELECT {columns} FROM updates WHERE counted = ? ORDER BY client_id", number)  # noqa: S608
        with understood(self.folder):
            return [entry_of(row) for row in rows]

    def manifest(self, digest: str) -> Manifest:
        """Return how the file with this digest is to be read.

        Raises:
            StateError: the ledger does not know it.
        """
        rows = self._db.read("SELECT manifest FROM payloads WHERE digest = ?", digest)
        if not rows:
            raise damaged(self.folder, f"nothing is known of a payload {digest[:16]}")
        with understood(self.folder):
            return manifest_of(rows[0][0])

    # --- what happens ---

    def begin(self, run_id: str, facts: Mapping[str, Any], model: Manifest) -> None:
        """Note a new run and the model it starts from, which is in :attr:`models`."""
        with self._db.writing("run.before", "run.after"):
            now = time.time()  # for people; nothing is reckoned with it
            self._db.write("INSERT INTO run VALUES (?, ?, ?)", run_id, now, json.dumps(dict(facts)))
            self._know(model)
            first = "INSERT INTO rounds (number, state, base, model) VALUES (0, 'committed', ?, ?)"
            self._db.write(first, model.digest, model.digest)

    def join(self, client_id: str, instances: Sequence[str]) -> None:
        """Note which processes have spoken for a client, the newest last."""
        with self._db.writing("reg.before_commit", "reg.after_commit"):
            self._db.write("INSERT OR REPLACE INTO clients VALUES (?, ?)", client_id, json.dumps(list(instances)))

    def open_round(self, number: int, base: str, invited: Iterable[str] = ()) -> None:
        """Note that a round is open."""
        with self._db.writing("round.before_open", "round.after_open"):
            insert = "INSERT INTO rounds (number, state, base, invited) VALUES (?, 'open', ?, ?)"
            self._db.write(insert, number, base, json.dumps(list(invited)))

    def elapse(self, number: int, seconds: float) -> None:
        """Note how long an open round has lasted, so that a restart does not give it its whole time again."""
        with self._db.writing():
            self._db.write("UPDATE rounds SET elapsed = max(elapsed, ?) WHERE number = ?", seconds, number)

    def accept(self, entry: Entry, payload: Manifest, elapsed: float = 0.0) -> bool:
        """Note an update whose file is in :attr:`updates`; the very same once more changes nothing.

        Returns:
            Whether it is noted; the round may take none any more.

        Raises:
            UpdateRejected: another update is noted for this task.
        """
        with self._db.writing("upd.before_row", "upd.after_row"):
            if self._db.read("SELECT state FROM rounds WHERE number = ?", entry.counted) != [("open",)]:
                return False
            self.elapse(entry.counted, elapsed)
            self._note(entry, payload)
            return True

    def withdraw(self, task_id: str) -> None:
        """Forget an update that came too late after all; nobody was told that it counts."""
        with self._db.writing():
            self._db.write("DELETE FROM updates WHERE task_id = ?", task_id)

    def close_round(self, number: int, tasks: Iterable[str]) -> None:
        """Fix the updates that a round is made of: those of these tasks, and no others. Once more changes nothing."""
        kept = set(tasks)
        with self._db.writing("close.before_commit", "close.after_commit"):
            if self._db.read("SELECT state FROM rounds WHERE number = ?", number) == [("closed",)]:
                if kept != {entry.task_id for entry in self.entries(number)}:
                    raise StateError(f"round {number} was closed with other updates")
                return
            for entry in self.entries(number):
                if entry.task_id not in kept:
                    self._db.write("DELETE FROM updates WHERE task_id = ?", entry.task_id)
            self._turn(number, ("open",), "closed")

    def commit_round(
        self,
        number: int,
        model: Manifest,
        facts: Mapping[str, Any],
        *,
        memory: Manifest | None = None,
        made_of: Sequence[tuple[Entry, Manifest]] = (),
    ) -> None:
        """Note the model that a closed round made; its file is in :attr:`models`.

        Args:
            number: of the round.
            model: what it made.
            facts: of its outcome.
            memory: the tensors that the strategy remembers; in :attr:`models`, too.
            made_of: the updates of a round that is still open here, because none was noted before.
        """
        with self._db.writing("commit.before", "commit.after"):
            for entry, payload in made_of:
                self._note(entry, payload)
            for each in filter(None, (model, memory)):
                self._know(each)
            self._turn(number, ("open" if made_of else "closed",), "committed", facts, model, memory)

    def fail_round(self, number: int, facts: Mapping[str, Any]) -> None:
        """Note that a round makes no model."""
        with self._db.writing("fail.before", "fail.after"):
            self._turn(number, ("open", "closed"), "failed", facts)

    def lose(self, number: int, why: str) -> None:
        """Note that the model of a committed round cannot be read any more, and that no round goes on from it."""
        with self._db.writing():
            for (facts,) in self._db.read("SELECT facts FROM rounds WHERE number = ?", number):
                together = json.dumps({**json.loads(facts), "lost": why})
                self._db.write("UPDATE rounds SET facts = ? WHERE number = ?", together, number)
            given_up = json.dumps({"reason": f"the model of round {number} is lost", "missing": {}, "seconds": 0.0})
            behind = "UPDATE rounds SET state = 'failed', facts = ? WHERE number > ? AND state IN ('open', 'closed')"
            self._db.write(behind, given_up, number)

    def measure(self, number: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of a round's model, beside those that are noted."""
        with self._db.writing():
            for (before,) in self._db.read("SELECT metrics FROM rounds WHERE number = ?", number):
                together = json.dumps({**json.loads(before), **metrics})
                self._db.write("UPDATE rounds SET metrics = ? WHERE number = ?", together, number)

    def sweep(
        self, *, keep_models: int = 1, keep_updates: int = 0, remnants: bool = True, also: Collection[int] = ()
    ) -> list[str]:
        """Take away the files that are not needed any more, and return their names.

        Args:
            keep_models: of how many of the last committed rounds the models are kept.
            keep_updates: of how many of the last committed rounds the updates are kept, beside those of a round in progress.
            remnants: take away what is only half written, too; nobody may be writing.
            also: rounds whose models are kept besides.
        """
        newest = "SELECT number, model, memory FROM rounds WHERE state = 'committed' ORDER BY number DESC LIMIT ?"
        committed = self._db.read(newest, max(keep_models, keep_updates))  # whatever the number of rounds before
        cherished = [self._db.read("SELECT model, memory FROM rounds WHERE number = ?", number) for number in also]
        working = self._db.read("SELECT number, base FROM rounds WHERE state IN ('open', 'closed')")
        lasting = [names for _, *names in committed[:keep_models]] + [names for rows in cherished for names in rows]
        models = {name for names in lasting for name in names if name} | {base for _, base in working}
        of = [number for number, *_ in [*working, *committed[:keep_updates]]]
        updates = {name for n in of for (name,) in self._db.read("SELECT digest FROM updates WHERE counted = ?", n)}
        return self.models.sweep(models, remnants=remnants) + self.updates.sweep(updates, remnants=remnants)

    def close(self) -> None:
        """Let another process have the folder."""
        self._db.close()
        self._unlock()

    # --- inside ---

    def _turn(
        self,
        number: int,
        before: Sequence[str],
        state: str,
        facts: Mapping[str, Any] | None = None,
        model: Manifest | None = None,
        memory: Manifest | None = None,
    ) -> None:
        marks = ", ".join("?" * len(before))
        changed = self._db.write(
            f"UPDATE rounds SET state = ?, model = ?, memory = ?, facts = ? WHERE number = ? AND state IN ({marks})",  # noqa: S608
            state, model and model.digest, memory and memory.digest, json.dumps(dict(facts or {})), number, *before,
        )  # fmt: skip
        if changed != 1:
            raise StateError(f"round {number} cannot become {state}: it is not {' or '.join(before)}")

    def _note(self, entry: Entry, payload: Manifest) -> None:
        self._know(payload)
        known = self._db.read(
            "SELECT task_id, digest, num_examples FROM updates WHERE task_id = ? OR (round = ? AND client_id = ?)",
            entry.task_id, entry.round, entry.client_id,
        )  # fmt: skip
        if not known:
            facts = asdict(entry) | {"metrics": json.dumps(dict(entry.metrics))}
            self._db.write("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *facts.values())
        elif known != [(entry.task_id, entry.digest, entry.num_examples)]:
            text = f"client {entry.client_id} has another update in round {entry.round} already"
            raise UpdateRejected(text, reason="ROUND_ALREADY_ANSWERED")

    def _know(self, payload: Manifest) -> None:
        text = json.dumps({**asdict(payload), "tensors": [list(info) for info in payload.tensors]})
        again = "UPDATE SET manifest = excluded.manifest" if payload.frames else "NOTHING"  # a model may be an unread update
        self._db.write(f"INSERT INTO payloads VALUES (?, ?) ON CONFLICT (digest) DO {again}", payload.digest, text)  # noqa: S608

    def _unlock(self) -> None:
        if self._lock is not None:
            release(self._lock)

    def _guard(self, *, fresh: bool) -> None:
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise StateError(f"{self.folder} is no folder (links are not followed): name another state_dir")
        if links := [name for name in ("ledger.db", *_OURS) if (self.folder / name).is_symlink()]:
            text = f"{self.folder / min(links)} is a link, which the server never makes: see who did, or name another state_dir"
            raise StateError(text, reason="STATE_UNSAFE")
        if not fresh or not self.folder.exists():
            return
        if others := {path.name for path in self.folder.iterdir()} - _OURS:
            raise StateError(f"{self.folder} holds other things ({min(others)}), and no ledger: name an empty or new folder")
        if any(any(path.glob("*.*")) for path in (self.folder / "models", self.folder / "updates")):
            raise damaged(self.folder, "there are models or updates, but ledger.db is missing")
