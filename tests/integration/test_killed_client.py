"""A client process is killed anywhere: rounds end without it, or it is started again and the run ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import grpc
import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Server, ServerConfig, digest, start_client
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import Fenced
from fedcore.events import (
    ClientLost,
    ClientRegistered,
    RoundCommitted,
    RoundFailed,
    RoundOpened,
    TaskAssigned,
    UpdateAccepted,
)
from fedcore.messages import Pull, Register, Status, Submit
from fedcore.parameters import Spec
from fedcore.protos import fedcore_pb2 as pb
from fedcore.testing import Recorder, check_state
from fedcore.testing.records import Told
from fedcore.transports.grpc import TransferPolicy, wire
from fedcore.transports.grpc.client import SERVICE
from fedcore.transports.grpc.framing import with_body

pytestmark = pytest.mark.chaos

SCRIPT = Path(__file__).with_name("killable.py")


@pytest.mark.parametrize("ends", ["quorum", "deadline"])
def test_the_round_ends_and_the_run_finishes(ends):
    by_quorum = ends == "quorum"
    rounds = 3 if by_quorum else 1
    config = ServerConfig(
        num_rounds=rounds, heartbeat_interval=0.1, start_wait=0.0,
        heartbeat_timeout=2.0 if by_quorum else 60.0, round_timeout=60.0 if by_quorum else 6.0,
    )  # fmt: skip
    strategy = FedAvg({"w": torch.zeros(4)}, min_fit_clients=2, clients_per_round=3)
    registered = threading.Event()

    def watch(event):
        if isinstance(event, ClientRegistered):
            registered.set()

    with Server("127.0.0.1:0", config=config, strategy=strategy, observers=[watch]) as server:
        commands = [[sys.executable, SCRIPT, server.address, name] for name in ("victim", "client-1", "client-2")]
        victim = subprocess.Popen(commands[0], stdout=subprocess.PIPE, text=True)
        assert registered.wait(60)  # a round would open without it
        others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands[1:]]
        assert victim.stdout.readline() == "training\n"
        victim.send_signal(signal.SIGKILL)
        history, final = server.wait(60)
        assert [process.wait(20) for process in others] == [0, 0]
    victim.wait(), victim.stdout.close()
    assert [record.outcome for record in history.rounds] == ["committed"] * rounds
    assert [record.accepted for record in history.rounds] == [["client-1", "client-2"]] * rounds
    reason = history.rounds[0].missing["victim"]
    assert reason.startswith("silent for") if by_quorum else reason == "no answer in time"
    assert final["w"].tolist() == [float(rounds)] * 4


# --- killed anywhere ---

FLOATS = 2_000_000
WORKING = Path(__file__).with_name("working.py")
LEASE, DEADLINE = 3.0, 15.0
NAMES = ["client-0", "client-1", "client-2"]
POINTS = {  # where the third client is killed, the how manyth time it comes there, and in how many rounds its updates are
    "registering": (1, 0), "registered": (1, 0),
    "fetch.start": (2, 1), "fetch.half": (2, 1), "fetch.done": (2, 1), "train.start": (2, 1), "train.end": (2, 1),
    "encode.done": (2, 1), "submit.first_chunk": (2, 1), "submit.half": (2, 1),
    "submit.sent_no_ack": (2, 2), "submit.acked": (2, 2), "waiting": (3, 2), "idle": (1, 0), "stopping": (1, 3),
}  # fmt: skip
QUICK = {"train.start", "submit.half"}


def each_point(quick=QUICK):
    return [pytest.param(point, marks=[] if point in quick else pytest.mark.slow) for point in POINTS]


class Moves(Client):
    """Answers what the one of working.py with the same number does."""

    def __init__(self, number):
        self.number = number

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        draw = torch.Generator().manual_seed(1000 * config["round"] + self.number)
        moved = parameters["w"] + torch.randn(FLOATS, generator=draw)
        return {"w": moved, "n": parameters["n"] + 1}, 5 + self.number


class Process:
    """A process with one client, which starts when it is told to."""

    def __init__(self, address, name, *, plan="", hang=None):
        self.name, self.died, self.lines, self._came = name, 0.0, [], threading.Condition()
        environment = {**os.environ, "FEDCORE_FAILPOINTS": plan, "OMP_NUM_THREADS": "1"}
        self.child = subprocess.Popen(
            [sys.executable, WORKING, address, json.dumps({"floats": FLOATS, "hang": hang or {}})],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.child.stdout:
            self._take(line.strip())
        self.child.wait()
        self.died = time.monotonic()
        self._take("")

    def _take(self, line):
        with self._came:
            self.lines.append(line)
            self._came.notify_all()

    def until(self, words):
        """Wait until it says something that begins like this."""
        with self._came:
            assert self._came.wait_for(lambda: "" in self.lines or self.has_said(words), 60), self.lines
        assert self.has_said(words), self.lines

    def has_said(self, words):
        return any(f"{line} ".startswith(f"{words} ") for line in self.lines)

    def start(self):
        """Wait until it is ready, and let its client begin."""
        self.until("ready")
        self.child.stdin.write(f"{self.name}\n")
        self.child.stdin.close()

    def end(self):
        """Wait until it has ended, and return its exit status."""
        self._reader.join(60)
        self.child.stdout.close()
        return self.child.returncode

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
        if not self.child.stdin.closed:
            self.child.stdin.close()
        return self.end()

    @property
    def told(self):
        """What its client was told of its updates."""
        return [Told(**json.loads(line.split(" ", 4)[4])) for line in self.lines if line.startswith("told")]


class Site:
    """A server, two clients that stay, and processes with others, which may be killed."""

    def __init__(self, folder, *, minimum, **settings):
        self.folder, self.happened, self._came = folder, [], threading.Condition()
        self.wire = Recorder(Grpc(transfer=TransferPolicy(mode="stream", threshold_bytes=16 << 20)))
        model = {"w": torch.zeros(FLOATS), "n": torch.tensor(0)}
        strategy = FedAvg(model, min_fit_clients=minimum, clients_per_round=3)
        wanted = {
            "num_rounds": 3, "heartbeat_interval": 0.2, "heartbeat_timeout": LEASE, "round_timeout": DEADLINE,
            "start_wait": 0.5 if minimum < 3 else 0.0, "stop_grace": 0.5, "keep_updates": 10, **settings,
        }  # fmt: skip
        config = ServerConfig(state_dir=str(folder), **wanted)
        self.server = Server("127.0.0.1:0", config=config, strategy=strategy, transport=self.wire, observers=[self._note])
        self.steady = [Moves(number) for number in range(2)]
        self.failures, self.threads, self.processes = [], [], []

    def _note(self, event):
        with self._came:
            self.happened.append(event)
            self._came.notify_all()

    def heard(self, kind, **facts):
        """Return the first event of a kind with these facts, or None."""
        fits = (each for each in self.happened if isinstance(each, kind))
        return next((each for each in fits if all(getattr(each, name) == fact for name, fact in facts.items())), None)

    def until(self, kind, **facts):
        """Wait for an event, and return it."""
        with self._came:
            found = self._came.wait_for(lambda: self.heard(kind, **facts), 60)
        assert found, (kind, facts, self.happened)
        return found

    def does(self, name, status, number):
        """Return whether a client does this in this round."""
        return any((c.client_id, c.status, c.round) == (name, status, number) for c in self.server.status().clients)

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
        self.server.stop()
        for thread in self.threads:
            thread.join(20)

    def process(self, name="client-2", **settings):
        self.processes.append(Process(self.server.address, name, **settings))
        return self.processes[-1]

    def await_third(self, victim, point):
        """Wait until the third client has registered, or has died if that is to be before there is anything to do."""
        if point != "registering":
            self.until(ClientRegistered, client_id="client-2")
        if point in ("registering", "idle"):
            victim.end()

    def begin(self):
        """Start the clients that stay."""
        self.threads += [threading.Thread(target=self._work, args=(client,)) for client in self.steady]
        for thread in self.threads:
            thread.start()

    def _work(self, client):
        try:
            start_client(self.server.address, client, f"client-{client.number}", transport=self.wire, patience=30)
        except Exception as error:
            self.failures.append(error)

    def finish(self):
        """Wait for the end of the run, and return who was in which round, and the model's digest."""
        history, final = self.server.wait(60)
        for thread in self.threads:
            thread.join(20)
        assert self.failures == []
        return [(record.outcome, record.accepted) for record in history.rounds], digest(final)

    def check(self, **limits):
        """Return what is wrong with what was noted; the server has ended."""
        told = [*self.wire.told, *(each for process in self.processes for each in process.told)]
        return check_state(self.folder, told, **limits)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The digest of the run in which nobody dies."""
    with Site(tmp_path_factory.mktemp("control") / "state", minimum=3) as site:
        third = site.process()
        third.start()
        site.begin()
        rounds, found = site.finish()
        assert third.end() == 0
    assert rounds == [("committed", NAMES)] * 3
    return found


@pytest.mark.parametrize("point", each_point())
def test_f3_killed_anywhere_and_gone_the_rounds_end_without_it(tmp_path, point):
    when, counted = POINTS[point]
    with Site(tmp_path / "state", minimum=2) as site:
        victim = site.process(plan=f"{point}=kill@{when}")
        victim.start()
        site.await_third(victim, point)
        site.begin()
        rounds, _ = site.finish()
        assert victim.end() == -signal.SIGKILL
        lost = site.heard(ClientLost, client_id="client-2")
    assert rounds == [("committed", NAMES if number < counted else NAMES[:2]) for number in range(3)]
    assert (lost is None) == (point in ("registering", "stopping"))
    if lost:
        assert lost.at <= victim.died + LEASE + 1.0
        opened = site.heard(RoundOpened, round=counted + 1).at
        committed = site.heard(RoundCommitted, round=counted + 1).at
        assert committed <= max(lost.at, opened) + 1.0  # nobody waits any longer, and far from the deadline
        assert committed - opened < DEADLINE
    found = site.check(quorum=2, most=3)
    assert found.faults == []
    assert found.acknowledged == found.updates == 6 + counted


@pytest.mark.parametrize("point", each_point({"submit.half"})[1:-1])
def test_f3_another_client_takes_its_place_in_the_round(tmp_path, point):
    """All three places must be filled, and a fourth client stands by."""
    when, counted = POINTS[point]
    with Site(tmp_path / "state", minimum=3) as site:
        victim, spare = site.process(plan=f"{point}=kill@{when}"), site.process("client-3")
        spare.until("ready")
        victim.start()
        site.await_third(victim, point)
        site.begin()
        opened = site.until(RoundOpened, round=counted + 1)
        spare.start()
        rounds, _ = site.finish()
        assert (victim.end(), spare.end()) == (-signal.SIGKILL, 0)
        lost = site.heard(ClientLost, client_id="client-2")
        given = site.heard(TaskAssigned, round=counted + 1, client_id="client-3")
    assert rounds == [("committed", NAMES if number < counted else [*NAMES[:2], "client-3"]) for number in range(3)]
    assert given.at <= max(victim.died + LEASE + 1.0, site.heard(ClientRegistered, client_id="client-3").at + 1.0)
    assert lost.at <= given.at
    assert "client-2" in opened.invited
    assert site.check(quorum=3, most=3).faults == []


@pytest.mark.parametrize("point", each_point({"train.start"})[1:-1])
def test_f3_with_too_few_left_the_round_fails_by_its_deadline(tmp_path, point):
    when, counted = POINTS[point]
    deadline = 4.0
    with Site(tmp_path / "state", minimum=3, round_timeout=deadline) as site:
        victim = site.process(plan=f"{point}=kill@{when}")
        victim.start()
        site.await_third(victim, point)
        site.begin()
        failed = site.until(RoundFailed, round=counted + 1)
        opened = site.heard(RoundOpened, round=counted + 1)
        lost = site.until(ClientLost, client_id="client-2")
        assert victim.end() == -signal.SIGKILL
    assert lost.at <= victim.died + LEASE + 1.0
    assert deadline <= failed.at - opened.at <= deadline + 1.0
    assert failed.reason == f"only 2 of 3 updates came within {deadline:g} s"
    assert failed.missing["client-2"].startswith("silent for")
    outcomes = {each.round for each in site.happened if isinstance(each, RoundCommitted)}
    assert outcomes == set(range(1, counted + 1))
    assert site.check(quorum=3, most=3).faults == []


@pytest.mark.parametrize("point", each_point({"fetch.half", "submit.sent_no_ack"}))
def test_f4_killed_anywhere_and_started_again_it_is_in_each_round_once(tmp_path, control, point):
    when, _ = POINTS[point]
    with Site(tmp_path / "state", minimum=3, heartbeat_timeout=20.0) as site:
        victim, heir = site.process(plan=f"{point}=kill@{when}"), site.process()
        heir.until("ready")
        victim.start()
        if point == "idle":
            site.await_third(victim, point)  # with the others there, the run might be over before it has nothing to do
        site.begin()
        assert victim.end() == -signal.SIGKILL
        heir.start()
        rounds, found = site.finish()
        assert heir.end() == 0
    assert rounds == [("committed", NAMES)] * 3
    assert found == control
    assert not any(isinstance(each, RoundFailed | ClientLost) for each in site.happened)
    noted = site.check(quorum=3, most=3)
    assert noted.faults == []
    assert (noted.rounds, noted.updates, noted.acknowledged) == (3, 9, 9)


@pytest.mark.slow
def test_f4_killed_again_and_again(tmp_path, control):
    """One process after the other goes a little further."""
    plans = ["fetch.half=kill", "train.end=kill", "submit.half=kill", "submit.acked=kill", "encode.done=kill", ""]
    with Site(tmp_path / "state", minimum=3, heartbeat_timeout=30.0) as site:
        lives = [site.process(plan=plan) for plan in plans]
        for life in lives:
            life.until("ready")
        site.begin()
        for life in lives:
            life.start()
            assert life.end() == (0 if life is lives[-1] else -signal.SIGKILL)
        rounds, found = site.finish()
    assert rounds == [("committed", NAMES)] * 3
    assert found == control
    assert site.check(quorum=3, most=3).faults == []


def test_f4_a_process_that_was_only_paused_is_fenced(tmp_path, control):
    """It stands still while it trains; when it goes on, another one has taken its place, and what it made is not taken."""
    with Site(tmp_path / "state", minimum=3, heartbeat_timeout=20.0) as site:
        old, new = site.process(hang={"2": 1.0}), site.process(hang={"2": 3.0})
        new.until("ready")
        old.start()
        site.begin()
        old.until("training client-2 2")
        old.child.send_signal(signal.SIGSTOP)
        new.start()
        new.until("training client-2 2")
        old.child.send_signal(signal.SIGCONT)
        assert old.end() == 0
        assert old.lines[-2] == "failed client-2 Fenced FENCED"
        assert [each.round for each in old.told] == [1]
        assert not site.heard(UpdateAccepted, round=2, client_id="client-2")
        rounds, found = site.finish()
        assert new.end() == 0
        assert [each.round for each in new.told] == [2, 3]
    assert rounds == [("committed", NAMES)] * 3
    assert found == control
    assert site.check(quorum=3, most=3).faults == []


def test_f4_an_upload_that_a_newer_process_overtakes_counts_once_at_most(tmp_path, control):
    """The older process stands still in the middle of its upload, and goes on with it when the newer one has its task."""
    with Site(tmp_path / "state", minimum=3, heartbeat_timeout=20.0) as site:
        old, new = site.process(plan="submit.half=pause@2"), site.process(hang={"2": 3.0})
        new.until("ready")
        old.start()
        site.begin()
        while not site.does("client-2", Status.SUBMITTING_UPDATE, 2):
            threading.Event().wait(0.01)
        old.child.send_signal(signal.SIGSTOP)
        assert not site.heard(UpdateAccepted, round=2, client_id="client-2")
        new.start()
        new.until("training client-2 2")
        old.child.send_signal(signal.SIGCONT)
        assert old.end() == 0
        assert old.lines[-2] == "failed client-2 Fenced FENCED"
        rounds, found = site.finish()
        assert new.end() == 0
    assert rounds == [("committed", NAMES)] * 3
    assert found == control
    outcomes = sorted(each.outcome for process in (old, new) for each in process.told if each.round == 2)
    assert outcomes in (["accepted"], ["accepted", "duplicate"])
    assert site.check(quorum=3, most=3).faults == []


def test_f4_an_update_under_the_session_of_an_older_process_is_refused_as_fenced(tmp_path):
    with Site(tmp_path / "state", minimum=1) as site, Grpc().connect(site.server.address) as connection:
        register = partial(Register, "client-2", accepts=("safetensors",))
        old = connection.request(register(instance="old")).message.session
        task = connection.request(Pull(old, 20.0)).message.task
        new = connection.request(register(instance="new")).message.session
        model = {"w": torch.ones(FLOATS), "n": torch.tensor(1)}
        payload = encode(model, Spec.of(model), Safetensors(), 1 << 20)
        submit = partial(Submit, round=task.round, base_digest=task.base_digest, num_examples=1, manifest=payload.manifest)
        message = wire.pack_submit(submit(old, task.id, attempt_id="old-1"))
        whole = with_body(pb.SubmitModelUpdateRequest(header=message), payload.body, payload.manifest.total_bytes)
        with grpc.insecure_channel(site.server.address) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"/{SERVICE}/SubmitModelUpdate")(whole)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(Fenced) as caught:
            connection.request(submit(old, task.id, attempt_id="old-1"), payload.body)
        assert caught.value.reason == "FENCED"
        with pytest.raises(Fenced):
            connection.request(register(instance="old"))
        assert connection.request(submit(new, task.id, attempt_id="new-1"), payload.body).message.counted
