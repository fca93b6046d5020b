"""What operators and admins do from the command line, over TLS, and who may not; what of it is in the audit log."""

import json
import re
import stat
import threading
from types import SimpleNamespace

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Memory, RunFailed, Server, ServerConfig, digest, start_client
from fedcore.audit import NAME, verify
from fedcore.audit_pages import LARGEST
from fedcore.cli import main
from fedcore.codecs.safetensors import load
from fedcore.errors import AccessError, FedcoreError
from fedcore.events import ClientRegistered, RoundOpened, RunPaused
from fedcore.messages import (
    Act,
    AuditQuery,
    Beat,
    Command,
    Fetch,
    Manifest,
    ModelQuery,
    Pull,
    Register,
    Session,
    Status,
    StatusQuery,
    Submit,
)
from fedcore.security import TLS

pki = pytest.importorskip("fedcore.pki")
pytest.importorskip("cryptography")

MODEL = {"w": torch.zeros(300_000), "n": torch.tensor(0)}
PATIENCE = 30.0


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    authority = pki.Authority.init(tmp_path_factory.mktemp("pki") / "authority")
    names = {"a": "client", "b": "client", "operator": "operator", "admin": "admin", "gone": "client"}
    made = {name: authority.issue(role, name) for name, role in names.items()}
    authority.revoke("gone")
    own = authority.issue("server", "hub", hosts=["localhost"])
    return SimpleNamespace(**made, server=TLS.kit(own, revoked=authority.revoked), nobody=own)


class Gated(Client):
    """Adds one when it may."""

    def __init__(self):
        self.reached, self.gate = threading.Event(), threading.Event()

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        return {"w": parameters["w"] + 1, "n": parameters["n"]}, 1


@pytest.fixture
def run(kits, tmp_path):
    yield from running(kits, tmp_path)


@pytest.fixture
def shared(kits, tmp_path):
    yield from running(kits, tmp_path, share_model=True)


def running(kits, folder, **settings):
    """A server with a client that holds the first of two rounds open until it may go on."""
    client, errors, registered = Gated(), [], threading.Semaphore(0)

    def observe(event):
        if isinstance(event, ClientRegistered):
            registered.release()

    config = ServerConfig(num_rounds=2, start_wait=0, heartbeat_interval=0.1, state_dir=str(folder / "state"), **settings)
    with Server(
        "localhost:0", config=config, strategy=FedAvg(MODEL), transport=Grpc(tls=kits.server), observers=[observe]
    ) as server:

        def work():
            try:
                start_client(server.address, client, "a", transport=Grpc(tls=TLS.kit(kits.a)), patience=0.1)
            except FedcoreError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert client.reached.wait(PATIENCE)
        yield SimpleNamespace(
            server=server, client=client, thread=thread, errors=errors, registered=registered, state=folder / "state", kits=kits
        )
        client.gate.set()
    thread.join(PATIENCE)


def told(run):
    run.server.hub.flush_events()
    return [json.loads(line) for line in (run.state / NAME).read_text().splitlines()]


def command(run, capsys, role, name, *arguments):
    where = [run.server.address, "--tls-kit", str(getattr(run.kits, role))]
    code = main([name, *where, *map(str, arguments)])
    return code, *capsys.readouterr()


def commanded(run):
    wanted = ("peer", "act", "client_id", "reason")
    return [tuple(line[each] for each in wanted) for line in told(run) if line["what"] == "Commanded"]


def test_pause_and_resume(run, capsys):
    code, out, err = command(run, capsys, "admin", "pause", "--reason", "lunch")
    assert (code, err) == (0, "")
    assert out == "the run is paused: an open round goes on to its end, and the next one waits for `fedcore resume`\n"
    assert run.server.status().phase == "paused"
    run.client.gate.set()
    assert run.server.hub.wait_for_round_to_complete(1, PATIENCE)
    assert not run.server.hub.wait_for_round_to_complete(2, 0.2)
    assert command(run, capsys, "admin", "resume") == (0, "the run goes on\n", "")
    assert len(run.server.wait(PATIENCE)[0].rounds) == 2
    assert commanded(run) == [("admin", "pause", "", "lunch"), ("admin", "resume", "", "resume by admin")]


def test_stop(run, capsys):
    answer = "the run ends, and its clients are told\n"
    assert command(run, capsys, "admin", "stop", "--reason", "enough") == (0, answer, "")
    run.client.gate.set()
    with pytest.raises(RunFailed, match="enough"):
        run.server.wait(PATIENCE)
    run.thread.join(PATIENCE)
    assert run.errors == []
    assert commanded(run) == [("admin", "stop", "", "enough")]
    assert [line["failed"] for line in told(run) if line["what"] == "RunFinished"] == ["enough"]


def test_evict(run, capsys):
    answer = "a was sent away, and may register again\n"
    assert command(run, capsys, "admin", "evict", "a", "--reason", "noise") == (0, answer, "")
    run.client.gate.set()
    assert all(run.registered.acquire(timeout=PATIENCE) for _ in range(2)), "it did not come back"
    assert commanded(run) == [("admin", "evict", "a", "noise")]
    assert [(line["client_id"], line["reason"]) for line in told(run) if line["what"] == "ClientEvicted"] == [("a", "noise")]


def test_evict_for_good(run, capsys):
    answer = "a was sent away, and is not let in again while this server runs\n"
    assert command(run, capsys, "admin", "evict", "a", "--for-good") == (0, answer, "")
    run.client.gate.set()
    run.thread.join(PATIENCE)
    assert [(type(error).__name__, error.reason) for error in run.errors] == [("PermissionDenied", "EVICTED")]
    refused = {(line["peer"], line["reason"]) for line in told(run) if line["what"] == "AccessRefused"}
    assert refused == {("a", "EVICTED")}


def test_nobody_is_evicted_who_is_not_there(run, capsys):
    assert command(run, capsys, "admin", "evict", "b") == (1, "", "fedcore: there is no client 'b'\n")
    code, out, err = command(run, capsys, "admin", "evict", "../b")
    assert (code, out) == (1, "")
    assert err.startswith("fedcore: client_id '../b' must be 1 to 64 characters")
    assert commanded(run) == []


@pytest.mark.parametrize("act", ["stop", "pause", "resume", "evict"])
@pytest.mark.parametrize("role", ["operator", "a"])
def test_others_may_not(run, capsys, role, act):
    before = run.server.status().phase
    kind = "client" if role == "a" else role
    says = f"fedcore: {kind} '{role}' may not ask for Command\n"
    assert command(run, capsys, role, act, *(["a"] if act == "evict" else [])) == (1, "", says)
    assert (run.server.status().phase, commanded(run)) == (before, [])
    refused = [(line["peer"], line["asked"], line["reason"]) for line in told(run) if line["what"] == "AccessRefused"]
    assert refused == [(role, "Command", "PERMISSION_DENIED")]


class TestModel:
    @pytest.mark.parametrize("role", ["operator", "admin"])
    def test_the_last_model_is_fetched(self, run, capsys, tmp_path, role):
        out = tmp_path / "model.safetensors"
        code, said, _ = command(run, capsys, role, "model", "--out", out)
        assert (code, digest(load(out))) == (0, digest(MODEL))
        assert said == f"the model that the run began with, digest {digest(MODEL)[:16]}, is in {out} (1.2 MB)\n"
        command(run, capsys, "admin", "pause")
        run.client.gate.set()
        assert run.server.hub.wait_for_round_to_complete(1, PATIENCE)
        code, said, _ = command(run, capsys, role, "model", "--out", out)
        assert code == 0
        assert said.startswith("the model of round 1, digest ")
        assert digest(load(out)) == run.server.history.rounds[0].digest == digest({**MODEL, "w": MODEL["w"] + 1})
        command(run, capsys, "admin", "resume")

    def test_clients_have_what_their_tasks_bring(self, run, capsys, tmp_path):
        says = "fedcore: client 'a' may not ask for ModelQuery\n"
        assert command(run, capsys, "a", "model", "--out", tmp_path / "m") == (1, "", says)
        assert not (tmp_path / "m").exists()

    def test_unless_it_is_shared(self, shared, capsys, tmp_path):
        assert command(shared, capsys, "a", "model", "--out", tmp_path / "m")[0] == 0
        assert digest(load(tmp_path / "m")) == digest(MODEL)

    def test_what_is_there_stays_if_it_cannot_be_had(self, run, capsys, tmp_path):
        (tmp_path / "m").write_text("precious")
        assert command(run, capsys, "a", "model", "--out", tmp_path / "m")[0] == 1
        assert (tmp_path / "m").read_text() == "precious"
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    @pytest.mark.parametrize("where", ["", "nowhere/m"])
    def test_where_it_cannot_go(self, run, capsys, tmp_path, where):
        code, out, err = command(run, capsys, "admin", "model", "--out", tmp_path / where)
        assert (code, out) == (1, "")
        assert err == f"fedcore: --out {tmp_path / where} must be a file, in a folder that is there\n"

    def test_after_a_restart_it_is_there_again(self, kits, tmp_path, capsys):
        for run in running(kits, tmp_path):
            command(run, capsys, "admin", "pause")
            run.client.gate.set()
            assert run.server.hub.wait_for_round_to_complete(1, PATIENCE)
            run.server.hub.flush_events()
            made = run.server.history.rounds[0].digest
            run.server.suspend()
        config = ServerConfig(num_rounds=2, start_wait=0, state_dir=str(tmp_path / "state"))
        with Server("", config=config, strategy=FedAvg(MODEL), transport=Memory()) as server:
            assert main(["model", server.address, "--transport", "memory", "--out", str(tmp_path / "m")]) == 0
            assert capsys.readouterr().out.startswith("the model of round 1, digest ")
            assert digest(load(tmp_path / "m")) == made
        lines = [json.loads(line) for line in (tmp_path / "state" / NAME).read_text().splitlines()]
        told = [line["what"] for line in lines if line["what"] in ("RunStarted", "ServerLeft", "RunFinished")]
        assert told == ["RunStarted", "ServerLeft", "RunStarted", "RunFinished"]
        assert [line["resumed"] for line in lines if line["what"] == "RunStarted"] == [False, True]

    def test_before_there_is_one(self, tmp_path, capsys):
        with Server("", strategy=FedAvg(), transport=Memory()) as server:
            assert main(["model", server.address, "--transport", "memory", "--out", str(tmp_path / "m")]) == 1
        assert capsys.readouterr().err == "fedcore: the run has no model yet\n"


class TestAuditLog:
    def copied(self, run, capsys, role, path, *options):
        code = main(["audit", "copy", run.server.address, str(path), "--tls-kit", str(getattr(run.kits, role)), *options])
        return code, *capsys.readouterr()

    def test_a_copy_is_made_and_gone_on_with(self, run, capsys, tmp_path):
        told(run)
        own, before = tmp_path / "copy", verify(run.state / NAME)
        code, out, err = self.copied(run, capsys, "operator", own)
        whole, head = out.splitlines()
        assert (code, err) == (0, "")
        new = int(re.fullmatch(rf"whole: \d+ lines, (\d+) new, from {re.escape(before.first)} to \S+", whole)[1])
        assert before.lines <= new <= before.lines + 1  # its own reading may be in it already
        assert head == f"head {verify(own).head}"
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
        command(run, capsys, "admin", "pause", "--reason", "lunch")
        told(run)
        code, out, _ = self.copied(run, capsys, "admin", own, "--json")
        said = json.loads(out)
        assert (code, said["lines"], said["head"]) == (0, verify(own).lines, verify(own).head)
        assert said["new"] == said["lines"] - new
        assert (run.state / NAME).read_bytes().startswith(own.read_bytes())
        assert main(["audit", "show", str(own), "--kind", "Commanded", "--client", "admin"]) == 0
        assert "act=pause  reason=lunch" in capsys.readouterr().out
        command(run, capsys, "admin", "resume")

    def test_who_read_it_is_in_it_once_for_a_copy(self, run, capsys, tmp_path):
        many = tuple(f"hospital-{number}" for number in range(4000))
        for number in range(12):  # three to a page
            run.server.hub.record(RoundOpened(at=0.0, round=number, invited=many, target=1, quorum=1, deadline=9.0))
        told(run)
        assert self.copied(run, capsys, "operator", tmp_path / "copy")[0] == 0
        assert 3 * LARGEST < (tmp_path / "copy").stat().st_size < 4 * LARGEST
        told(run)
        run.server.hub.record(RunPaused(at=run.server.hub.clock.now() + 2.0, reason=""))  # what is counted is written by then
        read = [line for line in told(run) if line["what"] == "AuditRead"]
        assert {line["peer"] for line in read} == {"operator"}
        assert read[0]["after"] == 0
        assert sum(1 + line.get("repeated", 0) for line in read) == 4
        assert len(read) < 4

    @pytest.mark.parametrize("how", ["cut", "another line", "written anew"])
    def test_a_log_that_was_cut_or_changed_shows(self, run, capsys, tmp_path, how):
        told(run)
        own, log = tmp_path / "copy", run.state / NAME
        assert self.copied(run, capsys, "operator", own)[0] == 0
        before, lines = own.read_bytes(), log.read_bytes().splitlines(keepends=True)
        lines = lines[: verify(own).lines]
        if how == "cut":
            lines = lines[:-1]
        elif how == "another line":
            lines[-1] = lines[-1].replace(b'"what"', b'"That"')
        else:
            lines = [line.replace(b"20", b"21") for line in lines]
        log.write_bytes(b"".join(lines))
        code, out, err = self.copied(run, capsys, "admin", own)
        assert (code, out) == (1, "")
        assert err.startswith(f"fedcore: the server's log does not continue {own}: line {verify(own).lines} is ")
        assert err.endswith("The copy stays as it was\n")
        assert own.read_bytes() == before

    def test_whoever_has_no_log_says_so(self, kits, tmp_path, capsys):
        config = ServerConfig(num_rounds=1, start_wait=0)
        with Server("localhost:0", config=config, strategy=FedAvg(MODEL), transport=Grpc(tls=kits.server)) as server:
            run = SimpleNamespace(server=server, kits=kits)
            says = "fedcore: this server keeps no audit log: it has neither a state_dir nor an audit_log (see ServerConfig)\n"
            assert self.copied(run, capsys, "operator", tmp_path / "copy") == (1, "", says)
        assert not (tmp_path / "copy").exists()

    @pytest.mark.parametrize("where", ["", "nowhere/copy"])
    def test_where_it_cannot_go(self, run, capsys, tmp_path, where):
        code, out, err = self.copied(run, capsys, "admin", tmp_path / where)
        assert (code, out) == (1, "")
        assert str(tmp_path / where) in err
        assert err.count("\n") == 1


def calls():
    session = Session("run", "gone", "token")
    return {
        "Register": Register("gone"),
        "Pull": Pull(session),
        "Fetch": Fetch(session, "task", 64),
        "Submit": Submit(session, "task", 1, "attempt", "", 1, Manifest("safetensors", 4096, (64,))),
        "Beat": Beat(session, Status.IDLE),
        "StatusQuery": StatusQuery(),
        "ModelQuery": ModelQuery("d" * 64, 64),
        "AuditQuery": AuditQuery(),
        "Command": Command(Act.STOP),
    }


@pytest.mark.parametrize("call", calls())
def test_who_was_revoked_may_do_nothing_and_that_is_logged(run, call):
    message = calls()[call]
    wire, revoked = Grpc(tls=TLS.kit(run.kits.gone)), pytest.raises(AccessError, match="this certificate was revoked")
    with wire.connect(run.server.address) as connection, revoked as caught:
        connection.request(message, [bytes(64)] if isinstance(message, Submit) else (), timeout=PATIENCE)
    assert caught.value.reason == "REVOKED"
    refused = [(line["peer"], line["asked"], line["reason"]) for line in told(run) if line["what"] == "AccessRefused"]
    assert refused == [("gone", "Unread", "REVOKED")], "something of what it sent was looked at"
    assert verify(run.state / NAME).lines
    assert "gone" not in run.server.hub.coordinator.roster.members


@pytest.mark.parametrize(
    ("register", "reason"),
    [
        (Register("b", accepts=("msgpack",)), "NO_COMMON_CODEC"),
        (Register("b", accepts=("safetensors",), protocol_version=99), "PROTOCOL_VERSION"),
    ],
)
def test_who_is_not_let_in_is_logged(run, register, reason):
    with Grpc(tls=TLS.kit(run.kits.b)).connect(run.server.address) as connection, pytest.raises(FedcoreError) as caught:
        connection.request(register, timeout=PATIENCE)
    assert caught.value.reason == reason
    refused = [(line["peer"], line["asked"], line["reason"]) for line in told(run) if line["what"] == "AccessRefused"]
    assert refused == [("b", "Register", reason)]
