"""The ledger: what was noted is there again, what is damaged, foreign or in use is refused, and nothing is noted twice."""

import json
import os
import re
import shutil
import sqlite3
import stat
import tracemalloc
from contextlib import closing

import pytest
import torch

from fedcore.blobs import SHARD_BYTES
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import OutOfStorage, StateError, UpdateRejected
from fedcore.ledger import Entry, Ledger, Page
from fedcore.parameters import Spec, digest


def payload(value):
    model = {"w": torch.full((50,), float(value)), "n": torch.tensor(value)}
    return encode(model, Spec.of(model), Safetensors(), SHARD_BYTES)


def entry(client, value, number=1):
    name = payload(value).manifest.digest
    return Entry(f"fit-{number}-{client}", number, client, "try-1", name, 10, {"loss": 0.5}, number, 10, "p1")


def note(ledger, client, value, number=1):
    ledger.updates.put(payload(value), "upd")
    return ledger.accept(entry(client, value, number), payload(value).manifest, 3.5)


def filled(folder):
    """Note a run with one committed round and one open one."""
    ledger = Ledger(folder, Safetensors())
    ledger.models.put(payload(0), "ckpt")
    ledger.begin("run-1", {"seed": 5}, payload(0).manifest)
    ledger.open_round(1, payload(0).manifest.digest, ["a", "b"])
    note(ledger, "b", 2)
    note(ledger, "a", 1)
    ledger.close_round(1, ["fit-1-a", "fit-1-b"])
    ledger.models.put(payload(9), "ckpt")
    ledger.commit_round(1, payload(9).manifest, {"seconds": 1.5})
    ledger.measure(1, {"loss": 0.5})
    ledger.join("a", ["p1"]), ledger.join("a", ["p1", "p2"])
    ledger.open_round(2, payload(9).manifest.digest)
    note(ledger, "a", 3, 2)
    return ledger


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def ledger(folder):
    made = filled(folder)
    yield made
    made.close()


def test_what_was_noted_is_there_again(ledger, folder):
    ledger.close()
    again = Ledger(folder, Safetensors())
    assert again.run_id == "run-1"
    first, model = payload(0).manifest.digest, payload(9).manifest.digest
    assert again.pages() == [
        Page(0, "committed", first, first),
        Page(1, "committed", first, model, invited=("a", "b"), elapsed=3.5, facts={"seconds": 1.5}, metrics={"loss": 0.5}),
        Page(2, "open", model, elapsed=3.5),
    ]
    assert again.run_facts["seed"] == 5
    assert again.clients() == {"a": ["p1", "p2"]}
    assert again.entries(1) == [entry("a", 1), entry("b", 2)]
    assert again.entries(2) == [entry("a", 3, 2)]
    assert again.manifest(model) == payload(9).manifest
    assert digest(again.models.get(again.manifest(model))) == model
    again.close()


def test_the_same_update_once_more_changes_nothing(ledger):
    note(ledger, "a", 3, 2)
    assert ledger.entries(2) == [entry("a", 3, 2)]


def test_i2_a_task_has_one_update_and_a_client_one_in_a_round(ledger):
    with pytest.raises(UpdateRejected, match="another update"):
        note(ledger, "a", 4, 2)
    other = Entry("fit-2-again", 2, "a", "try-2", payload(4).manifest.digest, 10, {}, 2, 10)
    with pytest.raises(UpdateRejected, match="another update"):
        ledger.accept(other, payload(4).manifest)
    assert ledger.entries(2) == [entry("a", 3, 2)]


@pytest.mark.parametrize("number", [1, 3])
def test_a_round_that_is_not_open_takes_none(ledger, number):
    before = ledger.entries(number)
    assert note(ledger, "c", 5, number) is False
    assert ledger.entries(number) == before


def test_an_update_can_be_withdrawn_and_closing_fixes_who_counts(ledger):
    note(ledger, "b", 4, 2)
    note(ledger, "c", 5, 2)
    ledger.withdraw("fit-2-b")
    for _ in range(2):
        ledger.close_round(2, ["fit-2-c"])
    assert ledger.entries(2) == [entry("c", 5, 2)]


def test_i4_a_round_has_one_outcome(ledger):
    with pytest.raises(StateError, match="cannot become committed"):
        ledger.commit_round(2, payload(9).manifest, {})
    ledger.fail_round(2, {"reason": "nobody"})
    for change in (lambda: ledger.close_round(2, []), lambda: ledger.fail_round(2, {}), lambda: ledger.fail_round(1, {})):
        with pytest.raises(StateError, match="cannot become"):
            change()
    assert [page.state for page in ledger.pages()] == ["committed", "committed", "failed"]


def test_sweeping_keeps_what_resuming_needs(ledger):
    gone = ledger.sweep()
    kept = {payload(9).manifest.digest}
    assert {name.split(".")[0] for name in gone} == {payload(value).manifest.digest for value in (0, 1, 2)}
    assert {path.name.split(".")[0] for path in (ledger.folder / "models").glob("*.*")} == kept
    assert [path.name.split(".")[0] for path in (ledger.folder / "updates").glob("*.*")] == [entry("a", 3, 2).digest]


def test_sweeping_can_keep_updates_for_replay(ledger):
    ledger.sweep(keep_models=2, keep_updates=1)
    assert len(list((ledger.folder / "updates").glob("*.*"))) == 3


def test_sweeping_costs_the_same_after_many_rounds(ledger, folder):
    def occupied():
        tracemalloc.start()
        ledger.sweep(keep_models=2, keep_updates=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    ledger.close_round(2, ["fit-2-a"])
    ledger.commit_round(2, payload(9).manifest, {})
    few = occupied()
    with closing(sqlite3.connect(folder / "ledger.db")) as beside, beside:
        facts = json.dumps({"traffic": {f"client-{number}": [number] * 4 for number in range(20)}})
        row = "INSERT INTO rounds (number, state, base, facts) SELECT ?, 'committed', base, ? FROM rounds WHERE number = 2"
        beside.executemany(row, [(number, facts) for number in range(3, 2000)])
    assert occupied() < 2 * few


def test_f22_two_at_once_are_refused(ledger, folder):
    with pytest.raises(StateError, match="in use by another process") as caught:
        Ledger(folder, Safetensors())
    assert caught.value.reason == "STATE_LOCKED"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not a database at all, but long enough to be one" * 100)


def foreign(path):
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE things (x)")
    other.close()


def test_one_may_look_while_another_writes(ledger, folder):
    beside = Ledger(folder, Safetensors(), looking=True)
    note(ledger, "b", 4, 2)
    assert beside.entries(2) == [entry("a", 3, 2), entry("b", 4, 2)]
    with pytest.raises(OutOfStorage, match="readonly"):
        beside.withdraw("fit-2-a")
    beside.close()


def test_looking_makes_nothing(folder):
    with pytest.raises(StateError, match="no ledger"):
        Ledger(folder, Safetensors(), looking=True)
    assert not folder.exists()


def test_a_round_whose_updates_were_not_noted_is_noted_with_them_when_it_ends(ledger):
    ledger.fail_round(2, {})
    ledger.open_round(3, payload(9).manifest.digest)
    ledger.models.put(payload(8), "ckpt")
    made_of = [(entry("a", 3, 3), payload(3).manifest)]
    ledger.commit_round(3, payload(8).manifest, {}, memory=payload(9).manifest, made_of=made_of)
    assert ledger.entries(3) == [entry("a", 3, 3)]
    assert ledger.pages()[-1].memory == payload(9).manifest.digest


def test_a_ledger_that_was_never_whole_is_made_again(folder):
    folder.mkdir()
    (folder / "ledger.new").write_bytes(b"half")
    filled(folder).close()
    assert not (folder / "ledger.new").exists()


@pytest.mark.parametrize("damage", [cut, empty, text, foreign])
def test_f17_a_damaged_ledger_is_refused_and_left_as_it_is(folder, damage):
    filled(folder).close()
    damage(folder / "ledger.db")
    before = (folder / "ledger.db").read_bytes()
    with pytest.raises(StateError, match="damaged") as caught:
        Ledger(folder, Safetensors())
    assert "Nothing was changed" in str(caught.value)
    assert (folder / "ledger.db").read_bytes() == before


def test_f17_another_version(folder):
    filled(folder).close()
    with sqlite3.connect(folder / "ledger.db") as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(StateError, match="another version of fedcore"):
        Ledger(folder, Safetensors())


def test_f17_a_missing_ledger_is_not_started_anew(folder):
    filled(folder).close()
    (folder / "ledger.db").unlink()
    with pytest.raises(StateError, match=r"ledger\.db is missing"):
        Ledger(folder, Safetensors())
    assert not (folder / "ledger.db").exists()


def test_a_folder_with_other_things_is_refused(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(StateError, match="holds other things"):
        Ledger(folder, Safetensors())


def test_g9_a_link_is_not_followed(folder, tmp_path):
    filled(tmp_path / "real").close()
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(StateError, match="links are not followed"):
        Ledger(folder, Safetensors())


def test_a_copy_is_as_good(folder, tmp_path):
    filled(folder).close()
    copied = Ledger(shutil.copytree(folder, tmp_path / "copy"), Safetensors())
    assert copied.entries(1) == [entry("a", 1), entry("b", 2)]
    copied.close()


def test_what_is_not_known(ledger):
    with pytest.raises(StateError, match="nothing is known"):
        ledger.manifest("0" * 64)


class TestG9Others:
    """What is in a state directory is for its owner alone."""

    def test_nothing_is_theirs_to_read_whatever_the_umask(self, folder):
        before = os.umask(0)
        try:
            ledger = filled(folder)
            with ledger._db.writing():
                ledger._db.write("UPDATE run SET begun = 0")
                paths = [folder, *folder.rglob("*")]  # the journal of a transaction, too
                modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
        finally:
            os.umask(before)
        folders = {path.name for path in paths if path.is_dir()}
        assert folders == {"state", "models", "updates", "spool"}
        assert {"lock", "ledger.db", "ledger.db-journal"} < modes.keys()
        assert len(modes) > 10, "a model or an update is missing"
        assert {name: oct(mode) for name, mode in modes.items() if mode != (0o700 if name in folders else 0o600)} == {}
        ledger.close()

    @pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
    @pytest.mark.parametrize("which", [".", "models", "updates", "lock"])
    def test_nor_may_they_write_there(self, folder, which, mode):
        filled(folder).close()
        (folder / which).chmod(mode)
        with pytest.raises(StateError, match=rf"can be written to by .*chmod go-w {re.escape(str(folder / which))}`") as caught:
            Ledger(folder, Safetensors())
        assert caught.value.reason == "STATE_UNSAFE"

    def test_they_may_look_where_it_was_allowed(self, folder):
        filled(folder).close()
        folder.chmod(0o755)
        Ledger(folder, Safetensors()).close()

    @pytest.mark.parametrize("which", ["state", "lock"])
    def test_it_is_not_theirs(self, folder, which, monkeypatch):
        filled(folder).close()
        if which == "lock":  # the folder still is
            monkeypatch.setattr("fedcore.ledger.claim_folder", lambda folder: None)
        me = os.geteuid()
        monkeypatch.setattr("fedcore.private.os.geteuid", lambda: me + 1)
        with pytest.raises(StateError, match=rf"{which} belongs to user {me}, and this is user {me + 1}") as caught:
            Ledger(folder, Safetensors())
        assert caught.value.reason == "STATE_UNSAFE"

    def test_who_only_looks_may_be_somebody_else_and_makes_nothing(self, folder, monkeypatch):
        filled(folder).close()
        me = os.geteuid()
        monkeypatch.setattr("fedcore.private.os.geteuid", lambda: me + 1)
        (folder / "models" / "spool").rmdir()
        ledger = Ledger(folder, Safetensors(), looking=True)
        assert ledger.models.get(ledger.manifest(ledger.pages()[1].model))
        assert not (folder / "models" / "spool").exists()
        ledger.close()

    @pytest.mark.parametrize("which", ["models", "updates", "lock", "ledger.db", "audit.jsonl"])
    @pytest.mark.parametrize("looking", [False, True])
    def test_no_link_is_followed_inside_either(self, folder, tmp_path, which, looking):
        filled(folder).close()
        (folder / "audit.jsonl").touch(0o600)
        (folder / which).rename(tmp_path / "elsewhere")
        (folder / which).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StateError, match=f"{which} is a link") as caught:
            Ledger(folder, Safetensors(), looking=looking)
        assert caught.value.reason == "STATE_UNSAFE"
