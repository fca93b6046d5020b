"""What a server finds in its state directory. One byte says which file of it is not as it was written."""

from __future__ import annotations

import atexit
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from random import Random

import torch
from fields import picked
from layers import changed, turned
from oracle import Target

from fedcore.audit import Audit, verify
from fedcore.codecs.safetensors import Safetensors, load, save
from fedcore.config import ServerConfig
from fedcore.events import ClientEvicted, ClientRegistered
from fedcore.journal import Diary
from fedcore.ledger import Ledger
from fedcore.replay import look
from fedcore.state_commands import describe
from fedcore.strategies.fedavg import FedAvg
from fedcore.testing import run_federation

_FILE, _MODEL, _ROWS, _LEDGER, _AUDIT = range(5)
_CODEC = Safetensors()
_TIED = torch.arange(6, dtype=torch.float32).view(2, 3)
_TABLES = ("run", "clients", "payloads", "rounds", "updates")


@cache
def _written() -> Path:
    """Return a state directory that a run of two rounds left."""
    from fedcore import Client

    class Adds(Client):
        def __init__(self, number):  # type: ignore[no-untyped-def]
            self.number = number

        def get_parameters(self):  # type: ignore[no-untyped-def]
            return {"w": torch.zeros(3)}

        def fit(self, parameters, config):  # type: ignore[no-untyped-def]
            return {"w": parameters["w"] + self.number}, 10, {"loss": 0.5}

    scratch = Path(tempfile.mkdtemp(prefix="fedcore-fuzz-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    folder = scratch / "state"
    config = ServerConfig(num_rounds=2, state_dir=str(folder), keep_updates=2)
    run_federation([Adds(1), Adds(2)], strategy=FedAvg({"w": torch.zeros(3)}, min_fit_clients=2), config=config)
    return folder


def _place() -> Path:
    return _written().parent / "changed"


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield one of each file, and the rows that a ledger holds."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model", {"a": _TIED, "b": _TIED, "c": torch.tensor([True, False])})
        yield "file", bytes([_FILE]) + (Path(folder) / "model").read_bytes()
        audit = Audit(Path(folder) / "audit.jsonl")
        audit(ClientEvicted(at=0.0, client_id="b", reason="asked to"))
        audit(ClientRegistered(at=1.0, client_id="a", again=False))
        audit.close()
        yield "audit", bytes([_AUDIT]) + (Path(folder) / "audit.jsonl").read_bytes()
    model = min((_written() / "models").glob("*.safetensors"))
    yield "model", bytes([_MODEL]) + model.read_bytes()
    yield "rows", bytes([_ROWS]) + json.dumps(_rows()).encode()
    yield "ledger", bytes([_LEDGER]) + (_written() / "ledger.db").read_bytes()


def _rows() -> dict[str, list[list[object]]]:
    with closing(sqlite3.connect(_written() / "ledger.db")) as database:
        tables = {table: database.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in _TABLES}
    return {table: [[_readable(value) for value in row] for row in rows] for table, rows in tables.items()}


def _readable(value: object) -> object:
    """Return what a text says in JSON, so that it can be changed in its parts; others as they are."""
    return json.loads(value) if isinstance(value, str) and value.startswith(("{", "[")) else value


def run(data: bytes) -> None:
    """Read one, as a server that starts, a replay, and a look do."""
    which, rest = picked((_FILE, _MODEL, _ROWS, _LEDGER, _AUDIT), data[0] if data else 0), data[1:]
    place = _place()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    if which == _FILE:
        (place / "model").write_bytes(rest)
        load(place / "model")
    elif which == _AUDIT:
        (place / "audit.jsonl").write_bytes(rest)
        Audit(place / "audit.jsonl").close()
        verify(place / "audit.jsonl")
    elif which == _MODEL:
        with closing(Ledger(_written(), _CODEC, looking=True)) as ledger:
            manifest = ledger.manifest(min((_written() / "models").glob("*.safetensors")).stem)
        shutil.copytree(_written() / "models", place / "models")
        (place / "models" / f"{manifest.digest}.safetensors").write_bytes(rest)
        shutil.copy(_written() / "ledger.db", place)
        with closing(Ledger(place, _CODEC, looking=True)) as ledger:
            ledger.models.get(manifest)
    else:
        for name in ("models", "updates"):
            shutil.copytree(_written() / name, place / name)
        if which == _LEDGER:
            (place / "ledger.db").write_bytes(rest)
        elif not _rewritten(place, rest):
            return
        _read(place)


def _rewritten(place: Path, data: bytes) -> bool:
    """Put rows into a copy of the ledger; returns whether it holds them."""
    shutil.copy(_written() / "ledger.db", place)
    try:
        tables = json.loads(data)
        with closing(sqlite3.connect(place / "ledger.db")) as database, database:
            database.execute("PRAGMA synchronous = OFF")
            for table in _TABLES:
                database.execute(f"DELETE FROM {table}")
                for row in tables[table]:
                    values = [json.dumps(value) if isinstance(value, dict | list) else value for value in row]
                    database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, sqlite3.Error):  # no ledger can hold that
        return False
    return True


def _read(place: Path) -> None:
    describe(place)
    with closing(look(place)) as ledger:
        for page in ledger.pages():
            for entry in ledger.entries(page.number):
                ledger.updates.get(ledger.manifest(entry.digest))
    diary = Diary(str(place), _CODEC, each_update=True, keep_updates=2)
    try:
        past = diary.restore(0.0)
        if past is not None and past.page is not None:
            for entry in past.entries:
                diary.read(entry)
    finally:
        diary.end()


def mutate(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    """Change a value, or bytes."""
    which, rest = picked((_FILE, _MODEL, _ROWS, _LEDGER, _AUDIT), data[0] if data else 0), data[1:]
    try:
        if which in (_FILE, _MODEL):
            return data[:1] + changed(_CODEC, rest, random, havoc)
        if which == _ROWS:
            return data[:1] + json.dumps(turned(json.loads(rest), random, havoc)).encode()
        if which == _AUDIT and random.random() < 0.5:
            lines = rest.splitlines(keepends=True)
            at = random.randrange(len(lines))
            lines[at] = json.dumps(turned(json.loads(lines[at]), random, havoc)).encode() + b"\n"
            return data[:1] + b"".join(lines)
    except (ValueError, TypeError, RecursionError):  # it was changed before
        pass
    return data[:1] + havoc(rest, random)


TARGET = Target("checkpoint", seeds, run, mutate)
