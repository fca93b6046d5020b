"""A ledger whose file is sound and whose rows make no sense is damaged, and that is what is said."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
import torch

from fedcore import Client, FedAvg, ServerConfig
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import StateError
from fedcore.journal import Diary
from fedcore.ledger import Ledger
from fedcore.replay import replay
from fedcore.state_commands import describe
from fedcore.testing import run_federation

INITIAL = {"w": torch.zeros(3)}


class Adds(Client):
    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 1}, 10, {"loss": 0.5}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "state"
    config = ServerConfig(num_rounds=2, state_dir=str(folder), keep_updates=2)
    run_federation([Adds()], strategy=FedAvg(INITIAL, clients_per_round=1, min_fit_clients=1), config=config)
    return folder


@pytest.fixture
def state(written, tmp_path):
    return shutil.copytree(written, tmp_path / "state")


def everything(folder):
    """Read all that there is, as a server that starts, a look and a replay do."""
    for looked in (lambda: describe(folder), lambda: replay(folder), lambda: started(folder), lambda: counted(folder)):
        try:
            looked()
        except StateError as error:
            yield error


def started(folder):
    diary = Diary(str(folder), Safetensors(), each_update=True, keep_updates=2)
    with closing(diary._ledger):
        diary.restore(0.0)


def counted(folder):
    with closing(Ledger(folder, Safetensors(), looking=True)) as ledger:
        ledger.clients()
        for page in ledger.pages():
            for entry in ledger.entries(page.number):
                ledger.manifest(entry.digest)


FAULTS = {
    "no JSON": ("rounds", "facts", "{'seconds': 1}"),
    "a list for facts": ("rounds", "facts", "[]"),
    "nested without end": ("rounds", "facts", "[" * 100_000),
    "facts without traffic": ("rounds", "facts", '{"seconds": 1.0, "accepted": []}'),
    "traffic of another kind": ("rounds", "facts", '{"seconds": 1.0, "accepted": [], "traffic": {"a": {"bytes": 1}}}'),
    "seconds that are text": ("rounds", "facts", '{"seconds": "x", "accepted": [], "traffic": {}}'),
    "a memory that is none": ("rounds", "facts", '{"seconds": 1.0, "accepted": [], "traffic": {}, "memory": {"tensor": "x"}}'),
    "a metric that is text": ("rounds", "metrics", '{"loss": "low"}'),
    "invited a number": ("rounds", "invited", "[1]"),
    "elapsed text": ("rounds", "elapsed", "long"),
    "facts of a run that are text": ("run", "facts", '"facts"'),
    "begun text": ("run", "begun", "yesterday"),
    "processes in no list": ("clients", "instances", '{"a": 1}'),
    "a manifest without frames": ("payloads", "manifest", '{"codec": "safetensors", "shard_bytes": 1048576, "tensors": []}'),
    "a manifest with more": ("payloads", "manifest", '{"codec": "x", "shard_bytes": 1, "frames": [], "tensors": [], "x": 1}'),
    "a frame that is text": ("payloads", "manifest", '{"codec": "x", "shard_bytes": 4096, "frames": ["9"], "tensors": []}'),
    "a shape that is a number": (
        "payloads", "manifest", '{"codec": "x", "shard_bytes": 4096, "frames": [9], "tensors": [["w", "float32", 3, ""]]}'
    ),
    "a dtype that is a list": (
        "payloads", "manifest", '{"codec": "x", "shard_bytes": 4096, "frames": [9], "tensors": [["w", ["float32"], [3], ""]]}'
    ),
    "a metric of an update that is a list": ("updates", "metrics", '{"loss": [1]}'),
    "examples that are text": ("updates", "num_examples", "many"),
    "a client that is bytes": ("updates", "client_id", b"\xff"),
    "bytes that are no text": ("rounds", "facts", b"\xff\xfe"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_t2_what_makes_no_sense_is_damage_and_no_other_error(state, fault):
    table, column, value = FAULTS[fault]
    assert list(everything(state)) == []
    with closing(sqlite3.connect(state / "ledger.db")) as database, database:
        database.execute(f"UPDATE {table} SET {column} = ?", (value,))
    found = [error for error in everything(state) if "ledger.db says what makes no sense" in str(error)]
    found += [error for error in everything(state) if "cannot be put together again" in str(error)]
    assert found
    assert {error.reason for error in found} == {"STATE_DAMAGED"}
    assert max(len(str(error)) for error in found) < 1000


def test_what_the_server_writes_makes_sense(state):
    with closing(Ledger(state, Safetensors(), looking=True)) as ledger:
        assert [page.state for page in ledger.pages()] == ["committed"] * 3
        assert ledger.run_facts["num_rounds"] == 2
        assert json.dumps(ledger.entries(1)[0].metrics) == '{"loss": 0.5}'
