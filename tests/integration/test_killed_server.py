"""The server is killed anywhere, started again, and the run ends with the same bits; its clients notice a pause."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from fedcore import Client, Grpc, start_client
from fedcore.testing import Recorder, check_state
from fedcore.transports.grpc import TransferPolicy

pytestmark = pytest.mark.chaos

HERE = Path(__file__).parent
POINTS = [
    "ledger.before_rename", "run.before", "run.after", "reg.before_commit", "reg.after_commit", "round.before_open",
    "round.after_open", "upd.first_chunk", "upd.last_chunk", "upd.tmp_half", "upd.before_fsync", "upd.before_rename",
    "upd.after_rename", "upd.after_dirsync", "upd.before_row", "upd.after_row", "upd.before_ack", "quorum.reached",
    "close.before_commit", "close.after_commit", "agg.half", "agg.done", "ckpt.tmp_half", "ckpt.before_fsync",
    "ckpt.before_rename", "ckpt.after_rename", "ckpt.after_dirsync", "commit.before", "commit.after", "eval.start",
    "gc.blob_delete",
]  # fmt: skip
ONCE = {"ledger.before_rename", "run.before", "run.after"}  # passed once in a run
QUICK = {("upd.before_ack", 2), ("commit.before", 3)}
EACH = [(point, when) for point in POINTS for when in ((1,) if point in ONCE else (1, 2, 3))]


class Moves(Client):
    def __init__(self, number):
        self.number, self.trained = number, []

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        self.trained.append(config["round"])
        draw = torch.Generator().manual_seed(1000 * config["round"] + self.number)
        moved = parameters["w"] + torch.randn(parameters["w"].shape, generator=draw)
        return {"w": moved, "n": parameters["n"] + 1}, 5 + self.number


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Site:
    """A server process that may be started again at the same address, and three clients that stay."""

    def __init__(self, folder, *, clients=3, **settings):
        self.folder, self.settings = folder, settings
        self.address = f"127.0.0.1:{free_port()}"
        self.wire = Recorder(Grpc(transfer=TransferPolicy(mode="stream")))
        self.clients = [Moves(number) for number in range(clients)]
        self.failures, self.lines = [], []
        self.threads = [threading.Thread(target=self.work, args=(client,)) for client in self.clients]
        for thread in self.threads:
            thread.start()

    def work(self, client):
        try:
            start_client(self.address, client, f"client-{client.number}", transport=self.wire, patience=60)
        except Exception as error:
            self.failures.append(error)

    def launch(self, plan=""):
        """Start a server."""
        environment = {**os.environ, "FEDCORE_FAILPOINTS": plan, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, HERE / "serving.py", self.folder, self.address, json.dumps(self.settings)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def serve(self, plan=""):
        """Run a server to its end, and return its exit status and what it said."""
        server = self.launch(plan)
        out, errors = server.communicate(timeout=60)
        self.lines = out.splitlines()
        return server.returncode, errors

    def survive(self, *plans):
        """Run servers that are killed, each by its plan, and one that ends."""
        for plan in plans:
            code, errors = self.serve(plan)
            assert code == -signal.SIGKILL, errors
        code, errors = self.serve()
        self.leave()
        assert code == 0, errors

    def until(self, server, words):
        """Wait until a server says something that begins like this."""
        said = []
        for line in server.stdout:
            said.append(line.strip())
            if line.startswith(words):
                return said
        raise AssertionError(f"the server ended after {said}: {server.stderr.read()}")

    def leave(self):
        for thread in self.threads:
            thread.join(30)
        assert not self.failures

    @property
    def outcome(self):
        return self.lines[-1].split()


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("control") / "state")
    code, errors = site.serve()
    site.leave()
    assert code == 0, errors
    assert site.outcome[0] == "digest"
    return site.outcome


def cases():
    for point, when in EACH:
        yield pytest.param(point, when, id=f"{point}-{when}", marks=[] if (point, when) in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("point", "when"), list(cases()))
def test_f1_killed_at_any_point_the_run_ends_with_the_same_bits(tmp_path, control, point, when):
    site = Site(tmp_path / "state", keep_updates=0 if point.startswith("gc") else 10)
    site.survive(f"{point}=kill@{when}")
    assert site.outcome == control
    found = check_state(tmp_path / "state", site.wire.told, quorum=3, most=3)
    assert found.faults == []
    assert (found.rounds, found.updates, found.acknowledged) == (4, 12, 12)
    assert all(client.trained == [1, 2, 3, 4] for client in site.clients)  # nothing is trained twice


@pytest.mark.parametrize(
    ("strategy", "plans"),
    [
        (["fedadam", {}], ["upd.before_ack=kill@5"]),
        pytest.param(["fedadam", {}], ["upd.before_ack=kill@5", "ckpt.before_rename=kill"], marks=pytest.mark.slow),
        pytest.param(["feddyn", {"num_clients": 3}], ["commit.before=kill@2"], marks=pytest.mark.slow),
        pytest.param(["fedavgm", {}], ["agg.done=kill@3", "commit.after=kill"], marks=pytest.mark.slow),
    ],
    ids=["fedadam", "fedadam-twice", "feddyn", "fedavgm"],
)
def test_what_a_strategy_remembers_survives(tmp_path, control, strategy, plans):
    outcomes = []
    for folder, killed in (("undisturbed", []), ("killed", plans)):
        site = Site(tmp_path / folder, strategy=strategy)
        site.survive(*killed)
        outcomes.append(site.outcome)
    assert outcomes[0] == outcomes[1] != control


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, control):
    site = Site(tmp_path / "state")
    plans = ("upd.before_ack=kill@2", "agg.half=kill", "ckpt.before_rename=kill", "upd.before_row=kill@2", "eval.start=kill")
    site.survive(*plans)
    assert site.outcome == control
    assert check_state(tmp_path / "state", site.wire.told, quorum=3, most=3).faults == []


HELD = ["commit.before", *(pytest.param(each, marks=pytest.mark.slow) for each in ("upd.before_ack", "quorum.reached"))]


@pytest.mark.parametrize("point", HELD)
def test_where_only_rounds_are_durable_clients_send_again_what_they_hold(tmp_path, control, point):
    site = Site(tmp_path / "state", durability="round")
    site.survive(f"{point}=kill@2")
    assert site.outcome == control
    assert all(client.trained == [1, 2, 3, 4] for client in site.clients)


SLOW = pytest.mark.slow
MOMENTS = ["accepted 2", "started", "opened 2", "committed 2"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_f23_told_to_end_a_server_leaves_the_run_to_the_next(tmp_path, control, moment):
    site = Site(tmp_path / "state")
    server = site.launch()
    site.until(server, moment)
    server.terminate()
    server.communicate(timeout=20)
    assert server.returncode == 0
    code, errors = site.serve()
    site.leave()
    assert code == 0, errors
    assert site.outcome == control
    assert all(client.trained == [1, 2, 3, 4] for client in site.clients)


@pytest.mark.slow
def test_f6_a_server_that_stands_still_holds_that_against_nobody(tmp_path, control):
    """The clients beat five times a second, and are given up after three; the server is stopped for five."""
    site = Site(tmp_path / "state", heartbeat_timeout=3.0)
    server = site.launch("quorum.reached=pause@2")  # somebody is always there to wake up to
    said = site.until(server, "opened 2")
    server.send_signal(signal.SIGSTOP)
    threading.Event().wait(5.0)
    server.send_signal(signal.SIGCONT)
    out, errors = server.communicate(timeout=60)
    site.leave()
    assert server.returncode == 0, errors
    lines = [*said, *out.splitlines()]
    assert not [line for line in lines if line.startswith("lost")]
    assert lines[-1].split() == control


def test_f22_a_second_server_is_refused_by_its_folder_and_by_its_port(tmp_path):
    first, second = Site(tmp_path / "state", clients=0), Site(tmp_path / "state", clients=0)
    server = first.launch()
    first.until(server, "started")
    code, errors = second.serve()
    assert code == 1
    assert "in use by another process" in errors
    second.folder, second.address = tmp_path / "another", first.address
    code, errors = second.serve()
    assert code == 1
    assert "it is taken" in errors
    server.terminate()
    server.communicate(timeout=20)
    assert server.returncode == 0


FULL = ["upd.before_fsync", *(
    pytest.param(each, marks=SLOW) for each in ("commit.before", "upd.before_row", "ckpt.before_fsync", "round.before_open")
)]


@pytest.mark.parametrize("point", FULL)
def test_f14_a_full_disk_holds_the_run_up_and_nothing_is_lost(tmp_path, control, point):
    site = Site(tmp_path / "state")
    code, errors = site.serve(f"{point}=raise@2")
    site.leave()
    assert code == 0, errors
    assert site.outcome == control
    held_up = [line for line in site.lines if line.startswith("paused")]
    assert len(held_up) == (0 if point.startswith("upd") else 2)  # a client waits, or the whole run does
    assert check_state(tmp_path / "state", site.wire.told, quorum=3, most=3).faults == []
    assert all(client.trained == [1, 2, 3, 4] for client in site.clients)
