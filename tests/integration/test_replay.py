"""A run is replayed from its state directory: the same models come out, and what was tampered with is found."""

import json
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest
import torch

from fedcore import (
    CenteredClipping,
    Client,
    FedAvg,
    GeoMedian,
    Median,
    Memory,
    MultiKrum,
    Server,
    ServerConfig,
    events,
    start_client,
)
from fedcore.broadcast import encode
from fedcore.cli import main
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import ConfigError, StateError
from fedcore.parameters import Spec
from fedcore.replay import replay
from fedcore.state_commands import strategy_of
from fedcore.testing import run_federation

INITIAL = {"w": torch.zeros(50), "half": torch.ones(3).bfloat16(), "n": torch.tensor(0)}
MOMENTUM = """
import torch

import fedcore


class Momentum(fedcore.FedAvg):
    velocity = None

    def step(self, server_round, current, aggregate):
        change = {name: aggregate[name] - current[name] for name in current}
        for name in change if self.velocity else ():
            change[name] = change[name] + (0.5 * self.velocity[name]).to(change[name].dtype)
        self.velocity = change
        return {name: current[name] + change[name] for name in current}

    def state_dict(self):
        return {"velocity": self.velocity}

    def load_state_dict(self, state):
        self.velocity = state["velocity"]


def remade():
    return Momentum()


number = 7
"""


class Moves(Client):
    def __init__(self, name):
        self.name = name

    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        draw = torch.Generator().manual_seed(1000 * config["round"] + self.name)
        moved = {name: parameters[name] + torch.randn(parameters[name].shape, generator=draw) for name in ("w", "half")}
        moved["half"] = moved["half"].bfloat16()
        return {**moved, "n": parameters["n"] + 1}, 5 + 10 * self.name, {"loss": 1.0 / config["round"]}


def run(folder, rounds=5, strategy=None, **config):
    made = ServerConfig(num_rounds=rounds, state_dir=str(folder), **config)
    strategy = strategy or FedAvg(INITIAL, lambda number, _: (0.5 / number, {"f1": 0.25}), 3, 3)
    return run_federation([Moves(number) for number in range(3)], strategy=strategy, config=made)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of five rounds, of the last three of which the updates are kept."""
    folder = tmp_path_factory.mktemp("run") / "state"
    run(folder, keep_updates=3)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "state")


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MOMENTUM)
    return file


def outcomes(folder, strategy=None):
    return {each.round: each.outcome for each in replay(folder, strategy)}


def query(folder, statement, *values):
    with closing(sqlite3.connect(folder / "ledger.db", isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


def update_file(folder, number):
    ((name,),) = query(folder, "SELECT digest FROM updates WHERE counted = ? AND client_id = 'client-1'", number)
    return folder / "updates" / f"{name}.safetensors"


def model_file(folder, number):
    ((name,),) = query(folder, "SELECT model FROM rounds WHERE number = ?", number)
    return folder / "models" / f"{name}.safetensors"


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


NOT_KEPT, AGREES, DAMAGED, DIFFERS = "not kept", "agrees", "damaged", "differs"
WELL = {1: NOT_KEPT, 2: NOT_KEPT, 3: AGREES, 4: AGREES, 5: AGREES}


@pytest.mark.parametrize("keep", [0, 1, 3, 10])
def test_the_updates_of_exactly_the_last_rounds_are_kept(tmp_path, keep):
    run(tmp_path / "state", keep_updates=keep)
    files = {file.name.split(".")[0] for file in (tmp_path / "state" / "updates").glob("*.*")}
    rows = query(tmp_path / "state", "SELECT digest, counted FROM updates")
    assert files == {name for name, number in rows if number > 5 - keep}
    assert outcomes(tmp_path / "state") == {number: AGREES if number > 5 - keep else NOT_KEPT for number in range(1, 6)}


def test_what_a_replay_says(finished):
    result = replay(finished)
    assert [each.updates for each in result] == [3] * 5
    assert [each.again == each.digest for each in result] == [False, False, True, True, True]
    assert len({each.digest for each in result}) == 5
    assert not any(each.reason for each in result)


@pytest.mark.parametrize("settings", [{"weighting": "uniform"}, {"max_share": 0.4}])
def test_fedavg_is_built_again_as_it_was(tmp_path, settings):
    folder = tmp_path / "state"
    run(folder, strategy=FedAvg(INITIAL, None, 3, 3, **settings), keep_updates=9)
    assert set(outcomes(folder).values()) == {AGREES}
    assert set(outcomes(folder, FedAvg()).values()) == {DIFFERS}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Median, {"f": 1}), (MultiKrum, {"m": 2}), (GeoMedian, {"pre": "bucketing"}), (CenteredClipping, {"tau": 0.1})],
)
def test_robust_strategies_are_built_again_with_what_they_remember(tmp_path, kind, settings):
    folder = tmp_path / "state"
    run(folder, strategy=kind(INITIAL, clients_per_round=3, min_fit_clients=3, **settings), keep_updates=9)
    assert set(outcomes(folder).values()) == {AGREES}


def test_a_run_that_went_on_later_is_replayed_as_one(tmp_path):
    for rounds in (2, 4):
        run(tmp_path / "state", rounds, keep_updates=9)
    assert outcomes(tmp_path / "state") == dict.fromkeys((1, 2, 3, 4), AGREES)


def test_a_round_whose_model_was_lost_makes_it_again(tmp_path, capsys):
    folder = tmp_path / "state"
    run(folder, 3, keep_updates=9)
    flip(model_file(folder, 3))
    run(folder, 4, keep_updates=9)
    model_file(folder, 3).unlink()
    assert outcomes(folder) == dict.fromkeys((1, 2, 3, 4, 5), AGREES)
    assert main(["runs", str(folder)]) == 0
    states = [line.split()[1] for line in capsys.readouterr().out.splitlines()[3:]]
    assert states == ["committed", "committed", "lost", "committed", "committed"]


class TestTampering:
    def test_an_update_whose_bytes_changed(self, folder):
        flip(update_file(folder, 4))
        assert outcomes(folder) == WELL | {4: DAMAGED}
        assert "digest" in replay(folder)[3].reason

    def test_an_update_put_in_place_of_another(self, folder):
        model = {name: tensor + 1 for name, tensor in INITIAL.items()}
        payload = encode(model, Spec.of(model), Safetensors(), 1 << 30)
        (folder / "updates" / f"{payload.manifest.digest}.safetensors").write_bytes(b"".join(payload.body))
        (manifest,) = query(folder, "SELECT manifest FROM payloads p, updates u WHERE p.digest = u.digest AND counted = 4")[0]
        digest = payload.manifest.digest
        query(folder, "INSERT INTO payloads VALUES (?, ?)", digest, json.dumps(json.loads(manifest) | {"digest": digest}))
        query(folder, "UPDATE updates SET digest = ? WHERE counted = 4 AND client_id = 'client-1'", digest)
        assert outcomes(folder) == WELL | {4: DIFFERS}

    def test_a_weight(self, folder):
        query(folder, "UPDATE updates SET weight = weight + 1 WHERE counted = 5 AND client_id = 'client-0'")
        assert outcomes(folder) == WELL | {5: DIFFERS}
        last = replay(folder)[-1]
        assert last.again not in ("", last.digest)

    def test_an_update_that_was_taken_out(self, folder):
        query(folder, "DELETE FROM updates WHERE counted = 5 AND client_id = 'client-0'")
        assert outcomes(folder) == WELL | {5: DIFFERS}

    def test_a_model_is_found_in_its_own_round_and_in_the_next(self, folder):
        flip(model_file(folder, 3))
        assert outcomes(folder) == WELL | {3: DAMAGED, 4: DAMAGED}

    def test_the_last_model(self, folder):
        flip(model_file(folder, 5))
        assert outcomes(folder) == WELL | {5: DAMAGED}

    def test_a_model_that_is_another_rounds(self, folder):
        query(folder, "UPDATE rounds SET base = (SELECT model FROM rounds WHERE number = 3) WHERE number = 5")
        assert outcomes(folder) == WELL | {5: DAMAGED}
        assert replay(folder)[-1].reason == "round 5 does not go on from the model before it"

    def test_a_model_that_no_round_made(self, folder):
        query(folder, "UPDATE rounds SET base = (SELECT digest FROM updates WHERE counted = 4 LIMIT 1) WHERE number = 5")
        assert outcomes(folder) == WELL | {5: DAMAGED}

    @pytest.mark.parametrize("file", [update_file, model_file])
    def test_a_file_that_is_gone_though_older_ones_are_there(self, folder, file):
        file(folder, 5).unlink()
        assert outcomes(folder) == WELL | {5: DAMAGED}

    def test_without_updates_the_models_are_looked_at_all_the_same(self, tmp_path):
        run(tmp_path / "state")
        flip(model_file(tmp_path / "state", 5))
        assert outcomes(tmp_path / "state") == dict.fromkeys((1, 2, 3, 4), NOT_KEPT) | {5: DAMAGED}


class TestStrategies:
    @pytest.fixture
    def moved(self, script, tmp_path):
        """A run with a strategy that remembers something, and is not fedcore's."""
        kind = type(strategy_of(f"{script}:Momentum"))
        run(tmp_path / "moved", strategy=kind(INITIAL, None, 3, 3), keep_updates=3)
        return tmp_path / "moved", kind

    def test_what_it_remembers_is_taken_up_before_each_round(self, moved):
        folder, kind = moved
        assert outcomes(folder, kind()) == WELL
        assert set(outcomes(folder, FedAvg()).values()) == {NOT_KEPT, DIFFERS}

    def test_it_has_to_be_named(self, moved):
        with pytest.raises(ConfigError, match=r"Momentum, which cannot be built again .*--strategy FILE\.py:NAME"):
            replay(moved[0])

    @pytest.mark.parametrize("name", ["Momentum", "remade"])
    def test_on_the_command_line(self, moved, script, name, capsys):
        assert main(["replay", str(moved[0]), "--verify", "--strategy", f"{script}:{name}"]) == 0
        assert capsys.readouterr().out.endswith("\n\n5 rounds: 3 agree, 2 not kept\n")

    @pytest.mark.parametrize(
        ("named", "says"),
        [
            ("mine.py", "is not of the form FILE.py:NAME"), ("mine.py:no such", "is not of the form FILE.py:NAME"),
            ("no.py:Momentum", "there is no file"), ("mine.py:Adam", "has no Adam"), ("mine.py:number", "is a int: neither"),
        ],
    )  # fmt: skip
    def test_names_that_name_none(self, script, named, says, capsys):
        assert main(["replay", str(script.parent), "--strategy", f"{script.parent}/{named}"]) == 1
        assert says in capsys.readouterr().err

    def test_a_function_cannot_be_noted(self, tmp_path):
        strategy = FedAvg(INITIAL, None, 3, 3, weighting=lambda update: 2.0)
        run(tmp_path / "state", 1, strategy, keep_updates=1)
        with pytest.raises(ConfigError, match="cannot be built again"):
            replay(tmp_path / "state")
        assert outcomes(tmp_path / "state", FedAvg(weighting=lambda update: 2.0)) == {1: AGREES}

    def test_one_that_makes_no_model(self, finished):
        class Fails(FedAvg):
            def step(self, server_round, current, aggregate):
                raise ZeroDivisionError("by zero")

        result = replay(finished, Fails())
        assert [each.outcome for each in result] == [NOT_KEPT, NOT_KEPT, DIFFERS, DIFFERS, DIFFERS]
        assert result[-1].reason == "it makes no model: ZeroDivisionError: by zero"


class TestCommand:
    def test_replay(self, folder, capsys):
        assert main(["replay", str(folder), "--verify"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["round", "updates", "result", "model"]
        assert [line.split()[2] for line in lines[1:6]] == ["not", "not", "agrees", "agrees", "agrees"]
        assert lines[6:] == ["", "5 rounds: 3 agree, 2 not kept"]

    def test_only_where_it_is_asked_for_the_exit_status_says_so(self, folder, capsys):
        query(folder, "UPDATE updates SET weight = 1 WHERE counted = 4")
        last = replay(folder)[3]
        assert main(["replay", str(folder)]) == 0
        assert main(["replay", str(folder), "--verify"]) == 1
        shown = capsys.readouterr().out
        assert shown.endswith("5 rounds: 2 agree, 1 differ, 2 not kept\n")
        assert f"    4        3  differs   {last.digest[:16]}  now {last.again[:16]}\n" in shown

    def test_replay_as_json(self, folder, capsys):
        flip(update_file(folder, 4))
        assert main(["replay", str(folder), "--verify", "--json"]) == 1
        shown = json.loads(capsys.readouterr().out)
        assert shown["agrees"] is False
        assert [each["outcome"] for each in shown["rounds"]] == list((WELL | {4: DAMAGED}).values())

    def test_nothing_kept(self, tmp_path, capsys):
        run(tmp_path / "state", 2)
        assert main(["replay", str(tmp_path / "state"), "--verify"]) == 0
        hint = "ServerConfig(keep_updates=N) keeps the updates of the last N rounds"
        assert capsys.readouterr().out.splitlines()[-2:] == ["2 rounds: 2 not kept", hint]

    def test_runs(self, finished, capsys):
        assert main(["runs", str(finished)]) == 0
        head, blank, columns, *rounds = capsys.readouterr().out.splitlines()
        assert head.startswith("run-")
        assert head.endswith(", FedAvg, 5 of 5 rounds  loss 0.100  f1 0.250")
        assert (blank, columns.split()) == ("", ["round", "state", "updates", "took", "model"])
        number, state, updates, *_, digest, _, loss, _, f1 = rounds[1].split()
        assert (number, state, updates, loss, f1) == ("2", "committed", "3", "0.250", "0.250")
        assert digest == replay(finished)[1].digest[:16]

    def test_runs_as_json(self, finished, capsys):
        assert main(["runs", "--json", str(finished)]) == 0
        (shown,) = json.loads(capsys.readouterr().out)["runs"]
        assert (shown["folder"], shown["num_rounds"]) == (str(finished), 5)
        assert shown["strategy"] == "fedcore.strategies.fedavg.FedAvg"
        assert shown["rounds"][3]["metrics"] == {"fit/loss": 0.25, "loss": 0.125, "f1": 0.25}

    def test_a_folder_of_several(self, finished, tmp_path, capsys):
        for name in ("run-10", "run-9", "broken"):
            shutil.copytree(finished, tmp_path / name)
        (tmp_path / "other").mkdir()
        (tmp_path / "broken" / "ledger.db").write_bytes(b"")
        assert main(["runs", str(tmp_path)]) == 1
        broken, nine, ten = capsys.readouterr().out.splitlines()
        assert broken.startswith(f"{tmp_path}/broken  {tmp_path}/broken is damaged: ledger.db cannot be used: it is empty")
        assert nine.startswith(f"{tmp_path}/run-9  run-")
        assert ten.endswith(", FedAvg, 5 of 5 rounds  loss 0.100  f1 0.250")

    @pytest.mark.parametrize("command", ["runs", "replay"])
    def test_what_is_no_state_directory_stays_as_it_is(self, command, tmp_path, capsys):
        for folder in (tmp_path, tmp_path / "nowhere"):
            assert main([command, str(folder)]) == 1
            assert capsys.readouterr().err == f"fedcore: there is no ledger in {folder}\n"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["runs", "replay"])
    def test_a_damaged_one(self, command, folder, capsys):
        (folder / "ledger.db").write_bytes(b"no database")
        assert main([command, str(folder)]) == 1
        assert "is damaged: " in capsys.readouterr().err

    def test_looking_changes_nothing(self, folder, capsys):
        for gone in ("lock", "models/spool", "updates/spool"):
            file = folder / gone
            file.rmdir() if file.is_dir() else file.unlink()
        before = sorted(folder.rglob("*"))
        assert main(["runs", str(folder)]) == 0
        assert sorted(folder.rglob("*")) == before


def test_beside_a_server_that_runs(tmp_path, capsys):
    held, go = threading.Event(), threading.Event()

    class Waits(Moves):
        def fit(self, parameters, config):
            if config["round"] == 3 and self.name == 1:
                held.set()
                assert go.wait(20)
            return super().fit(parameters, config)

    accepted = threading.Semaphore(0)
    wire = Memory()
    config = ServerConfig(num_rounds=3, state_dir=str(tmp_path / "state"), keep_updates=1)
    strategy = FedAvg(INITIAL, min_fit_clients=2, clients_per_round=2)

    def note(event):
        if isinstance(event, events.UpdateAccepted) and event.round == 3:
            accepted.release()

    with Server("", config=config, strategy=strategy, transport=wire, observers=[note]) as server:
        threads = [
            threading.Thread(
                target=start_client, args=(server.address, Waits(number), f"client-{number}"), kwargs={"transport": wire}
            )
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        assert held.wait(20)
        assert accepted.acquire(timeout=20)
        assert main(["runs", str(tmp_path / "state")]) == 0
        assert main(["replay", str(tmp_path / "state"), "--verify"]) == 0
        go.set()
        server.wait(20)
        for thread in threads:
            thread.join(20)
    shown = capsys.readouterr().out
    assert "FedAvg, 2 of 3 rounds\n" in shown
    assert "    3  open             1  " in shown
    assert "    2        2  agrees    " in shown


def test_behind_a_server_that_was_killed_while_it_wrote(folder, tmp_path, capsys):
    """What is half written then is taken back by whoever comes first."""
    killed = tmp_path / "killed"
    with closing(sqlite3.connect(folder / "ledger.db", isolation_level=None)) as database:
        database.execute("PRAGMA cache_size = 1")  # so that changes are written before the transaction is through
        database.execute("BEGIN IMMEDIATE")
        for number in range(200):
            database.execute("INSERT INTO clients VALUES (?, ?)", (f"more-{number}", "x" * 1000))
        database.execute("UPDATE rounds SET state = 'failed'")
        shutil.copytree(folder, killed)
        database.execute("ROLLBACK")
    assert (killed / "ledger.db").read_bytes() != (folder / "ledger.db").read_bytes()
    assert main(["runs", str(killed)]) == 0
    assert ", FedAvg, 5 of 5 rounds  " in capsys.readouterr().out
    assert not (killed / "ledger.db-journal").exists()


def test_before_the_first_round(tmp_path, capsys):
    strategy = FedAvg()
    with Server("", config=ServerConfig(state_dir=str(tmp_path), stop_grace=0), strategy=strategy, transport=Memory()):
        assert main(["runs", str(tmp_path)]) == 0
        assert main(["replay", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no run has begun\nno round has made a model yet\n"


def test_a_round_that_failed(tmp_path, capsys):
    class Refuses(FedAvg):
        def aggregate_fit(self, server_round, results):
            return None if server_round == 1 else super().aggregate_fit(server_round, results)

    run(tmp_path / "state", 1, Refuses(INITIAL, None, 3, 3), keep_updates=3)
    assert main(["runs", str(tmp_path / "state")]) == 0
    failed, committed = capsys.readouterr().out.splitlines()[-2:]
    assert failed.split()[:3] == ["1", "failed", "3"]
    assert failed.endswith("the aggregation failed: the strategy made no model of 3 updates")
    assert committed.split()[:3] == ["2", "committed", "3"]
    assert outcomes(tmp_path / "state", Refuses()) == {2: AGREES}


def test_a_folder_that_holds_other_things_is_no_error_of_sqlite(tmp_path):
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(StateError):
        replay(tmp_path)
