"""What operators and admins ask of a server that runs, and what clients notice of it."""

import json
import threading
from dataclasses import replace

import grpc
import pytest
import torch

from fedcore import Client, FedAvg, Grpc, RunFailed, Server, ServerConfig, start_client
from fedcore.audit import Audit, verify
from fedcore.audit_pages import copy
from fedcore.errors import Fenced, PermissionDenied, ProtocolError
from fedcore.events import ClientEvicted, Commanded, RoundOpened
from fedcore.messages import (
    Act,
    AuditPage,
    AuditQuery,
    Command,
    Done,
    Manifest,
    Outcome,
    Pull,
    Register,
    StatusQuery,
    Submit,
    Unread,
)
from fedcore.security import Identity, Role
from fedcore.transport import Request
from fedcore.transports.memory import Memory

MODEL = {"w": torch.zeros(4)}
PATIENCE = 30.0


class Gated(Client):
    """Trains when it may."""

    def __init__(self, reached, gate):
        self.reached, self.gate = reached, gate

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        return parameters, 1


class Free(Gated):
    def __init__(self):
        super().__init__(threading.Event(), threading.Event())
        self.gate.set()


@pytest.fixture(params=[Memory, Grpc], ids=["memory", "grpc"])
def wire(request):
    return request.param()


class Federation:
    def __init__(self, wire, clients, *, start_wait=60.0):
        self.wire, self.events, self.errors, self.news = wire, [], {}, threading.Condition()
        self.server = Server(
            wire.anywhere, transport=wire, config=ServerConfig(num_rounds=3, heartbeat_interval=0.1, start_wait=start_wait),
            strategy=FedAvg(MODEL, min_fit_clients=1, clients_per_round=2), observers=[self.observe],
        ).start()  # fmt: skip
        self.threads = [threading.Thread(target=self.work, args=pair) for pair in clients.items()]
        for thread in self.threads:
            thread.start()

    def work(self, name, client):
        try:
            start_client(self.server.address, client, name, transport=self.wire)
        except Exception as error:
            self.errors[name] = error

    def observe(self, event):
        with self.news:
            self.events.append(event)
            self.news.notify_all()

    def saw(self, kind, count=1):
        def times():
            return sum(isinstance(event, kind) for event in self.events)

        with self.news:
            return self.news.wait_for(lambda: times() >= count, PATIENCE)

    def command(self, *what):
        with self.wire.connect(self.server.address) as admin:
            return admin.request(Command(*what), timeout=PATIENCE).message

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.stop()
        for thread in self.threads:
            thread.join(PATIENCE)


def test_a_run_is_stopped_and_its_clients_hear_of_it(wire):
    reached, gate = threading.Event(), threading.Event()
    with Federation(wire, {"a": Gated(reached, gate), "b": Gated(reached, gate)}) as federation:
        assert reached.wait(PATIENCE)
        assert federation.command(Act.STOP, "", "the ward needs the machine") == Done("stop: done")
        gate.set()
        with pytest.raises(RunFailed, match="the ward needs the machine"):
            federation.server.wait(PATIENCE)
    assert federation.errors == {}
    said = [(event.act, event.reason) for event in federation.events if isinstance(event, Commanded)]
    assert said == [("stop", "the ward needs the machine")]


def test_while_a_run_is_paused_no_round_opens(wire):
    reached, gate = threading.Event(), threading.Event()
    with Federation(wire, {"a": Gated(reached, gate), "b": Free()}) as federation:
        assert reached.wait(PATIENCE)
        federation.command(Act.PAUSE)
        assert federation.server.status().phase == "paused"
        gate.set()  # the round that is open goes on to its end
        assert federation.server.hub.wait_for_round_to_complete(1, PATIENCE)
        assert not federation.server.hub.wait_for_round_to_complete(2, 0.3)
        assert sum(isinstance(event, RoundOpened) for event in federation.events) == 1
        federation.command(Act.RESUME)
        history, _ = federation.server.wait(PATIENCE)
    assert [len(record.accepted) for record in history.rounds] == [2, 2, 2]


def test_who_is_sent_away_is_replaced_and_does_not_come_back(wire):
    reached, gate = threading.Event(), threading.Event()
    with Federation(wire, {"a": Gated(reached, gate), "b": Free()}, start_wait=1.0) as federation:
        assert reached.wait(PATIENCE)
        federation.command(Act.EVICT, "a", "it sends nonsense")
        gate.set()
        assert federation.saw(ClientEvicted)
        federation.threads[0].join(PATIENCE)
        assert not federation.threads[0].is_alive()
        federation.server.wait(PATIENCE)
    assert isinstance(federation.errors["a"], PermissionDenied)
    assert federation.errors["a"].reason == "EVICTED"
    assert "it sends nonsense" in str(federation.errors["a"])
    assert all(record.accepted == ["b"] for record in federation.server.history.rounds)


def test_nobody_is_sent_away_who_is_not_there(wire):
    with Federation(wire, {}) as federation, pytest.raises(ProtocolError) as caught:
        federation.command(Act.EVICT, "nobody")
    assert caught.value.reason == "NO_SUCH_CLIENT"


def test_the_audit_log_tells_what_happened(wire, tmp_path):
    for number, config in enumerate(({"audit_log": str(tmp_path / "log")}, {"state_dir": str(tmp_path / "state")})):
        settings = ServerConfig(num_rounds=2, start_wait=0, **config)
        with Server(wire.anywhere, transport=wire, config=settings, strategy=FedAvg(MODEL)) as server:
            start_client(server.address, Free(), "a", transport=wire)
            history, _ = server.wait(PATIENCE)
        path = tmp_path / ("log" if number == 0 else "state/audit.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert verify(path).lines == len(lines)
        told = [(line["what"], line.get("client_id", line.get("digest"))) for line in lines]
        assert told[0] == ("RunStarted", None)
        assert ("ClientRegistered", "a") in told
        assert told.count(("UpdateAccepted", "a")) == 2
        assert [each for each in told if each[0] == "RoundCommitted"] == [("RoundCommitted", r.digest) for r in history.rounds]
        assert told[-1] == ("RunFinished", None)


def test_the_audit_log_is_read_over_the_wire(wire, tmp_path):
    config = ServerConfig(num_rounds=1, audit_log=str(tmp_path / "log"))
    with Server(wire.anywhere, transport=wire, config=config, strategy=FedAvg(MODEL)) as server:
        with wire.connect(server.address) as connection:
            server.hub.flush_events()
            page = connection.request(AuditQuery(), timeout=PATIENCE).message
            assert json.loads(page.lines.splitlines()[0])["what"] == "RunStarted"
            assert page.total == len(page.lines)
            end = connection.request(AuditQuery(1 << 40), timeout=PATIENCE).message
            assert (end.lines, end.total >= page.total) == (b"", True)
        done = copy(tmp_path / "copy", lambda after: ask(wire, server, after))
        assert done.new == done.whole.lines == verify(tmp_path / "copy").lines


def ask(wire, server, after):
    with wire.connect(server.address) as connection:
        return connection.request(AuditQuery(after), timeout=PATIENCE).message


def test_a_server_without_an_audit_log_says_so(wire):
    with Federation(wire, {}) as federation, pytest.raises(ProtocolError, match="keeps no audit log") as caught:
        ask(wire, federation.server, 0)
    assert caught.value.reason == "NO_AUDIT_LOG"


def test_nobody_waits_for_a_disk_that_is_slow_to_give_the_log(tmp_path, monkeypatch):
    reading, gate, pages = threading.Event(), threading.Event(), []

    def slow(log):
        reading.set()
        assert gate.wait(PATIENCE)
        return 0

    monkeypatch.setattr(Audit, "settle", slow)
    config, wire = ServerConfig(num_rounds=1, audit_log=str(tmp_path / "log")), Grpc()
    with Server(wire.anywhere, transport=wire, config=config, strategy=FedAvg(MODEL)) as server:
        reader = threading.Thread(target=lambda: pages.append(ask(wire, server, 0)))
        reader.start()
        assert reading.wait(PATIENCE)
        with wire.connect(server.address) as connection:
            assert connection.request(StatusQuery(), timeout=PATIENCE).message.phase == "waiting"
        assert pages == []
        gate.set()
        reader.join(PATIENCE)
    assert pages == [AuditPage(b"", 0)]


class TestRefusals:
    """What is refused is counted by reason, and of each peer there is a line a second in the log."""

    def lines(self, caplog):
        return [record.getMessage() for record in caplog.records if record.name == "fedcore.refusals"]

    def test_an_update_that_is_wrong(self, wire, caplog):
        with Federation(wire, {}) as federation, wire.connect(federation.server.address) as connection:
            session = connection.request(Register("a", accepts=("safetensors",))).message.session
            stranger = replace(session, token="another")
            with pytest.raises(Fenced):
                connection.request(Pull(stranger, 0.0))
            wrong = Submit(session, "no-such-task", 1, "a", "b", 1, Manifest("safetensors", 4096, (), "d"))
            assert connection.request(wrong).message.outcome is Outcome.NOT_SELECTED
            assert connection.request(StatusQuery()).message.refused == {"FENCED": 1, "NOT_SELECTED": 1}
        (line,) = self.lines(caplog)
        assert line.startswith("refused Submit of somebody at ")

    def test_what_cannot_be_read(self, caplog):
        with Federation(Grpc(), {}) as federation, grpc.insecure_channel(federation.server.address) as channel:
            call = channel.unary_unary("/fedcore.v1.FederatedLearningService/Heartbeat")
            for _ in range(5):
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"\xff\xff")
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert federation.server.status().refused == {"UNDECODABLE": 5}
        (line,) = self.lines(caplog)
        assert line.startswith("refused Unread of somebody at ipv4:127.0.0.1:")
        assert "not a HeartbeatRequest" in line

    def test_a_client_is_not_told_of_others(self, wire):
        with Federation(wire, {}) as federation:
            border = federation.server._border
            border.handle(Request(Unread(ProtocolError("no"))))
            told = [border.status(Identity("x", "a", role)).refused for role in (Role.CLIENT, Role.OPERATOR, Role.ADMIN, None)]
        assert told == [{}, *[{"PROTOCOL_ORDER": 1}] * 3]

    def test_a_long_text_is_cut_and_harmless(self, caplog):
        with Federation(Memory(), {}) as federation:
            border = federation.server._border
            border.handle(Request(Unread(ProtocolError("a\n\x1b[2J" + "x" * 5000))))
        (line,) = self.lines(caplog)
        assert len(line) < 1024
        assert line.isprintable()
