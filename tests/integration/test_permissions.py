"""Who may ask for what, over the real wire: each role, each call, in its own name and in another's, known by either means."""

import json
from dataclasses import replace

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedcore import FedAvg, Grpc, Server, ServerConfig, Tokens
from fedcore.cli import main
from fedcore.errors import AccessError, FedcoreError, PermissionDenied, RunChanged
from fedcore.keys import Issuer
from fedcore.messages import (
    Act,
    AuditQuery,
    Beat,
    Command,
    Fetch,
    Manifest,
    Message,
    ModelQuery,
    Pull,
    Register,
    Session,
    Status,
    StatusQuery,
    Submit,
    Unread,
)
from fedcore.pki import Authority
from fedcore.security import TLS
from fedcore.transports.grpc import TransferPolicy

ACCEPTS = ("safetensors",)


WHO = {"a": "client", "b": "client", "the-operator": "operator", "the-admin": "admin"}


class Certificates:
    """Peers that are known by certificates."""

    def __init__(self, folder):
        self.authority = Authority.init(folder / "authority")
        self.kits = {name: self.authority.issue(role, name) for name, role in WHO.items()}
        self.own = self.authority.issue("server", "hub", hosts=["localhost"])
        self.server = {"tls": TLS.kit(self.own)}
        self.trust = TLS(authority=str(self.own / "authority.pem"))
        self.alone = TLS(certificate=str(self.own / "certificate.pem"), key=str(self.own / "key.pem"))

    def of(self, name):
        """Return the options of somebody's transport."""
        return {"tls": TLS.kit(self.kits[name])}

    def options(self, name):
        """Return the same as options of a command."""
        return ["--tls-kit", self.kits[name]]


class ByTokens(Certificates):
    """Peers that are known by tokens, at a server that asks for no certificates."""

    def __init__(self, folder):
        super().__init__(folder)
        self.issuer, self.folder = Issuer.init(folder / "issuer"), folder
        for name, role in WHO.items():
            self.issuer.issue(role, name, folder / name)
        self.server = {"tls": self.alone, "tokens": Tokens.of(self.issuer.folder)}

    def of(self, name):
        return {"tls": self.trust, "token": str(self.folder / name)}

    def options(self, name):
        return ["--tls-authority", self.trust.authority, "--token", self.folder / name]


@pytest.fixture(scope="module", params=[Certificates, ByTokens])
def known(request, tmp_path_factory):
    """How peers are known."""
    return request.param(tmp_path_factory.mktemp("known"))


@pytest.fixture(params=["unary", "streamed"])
def transfer(request):
    return TransferPolicy(threshold_bytes=0 if request.param == "streamed" else 1 << 20)


@pytest.fixture
def server(known, tmp_path):
    yield from serve(str(tmp_path / "audit.jsonl"), **known.server)


def serve(log=None, **options):
    """Run a server that waits for a third client."""
    strategy = FedAvg({"w": torch.zeros(2)}, min_fit_clients=3, clients_per_round=3)
    config = ServerConfig(num_rounds=1, stop_grace=0.0, heartbeat_interval=5.0, audit_log=log)
    with Server("localhost:0", config=config, strategy=strategy, transport=Grpc(**options)) as server:
        yield server


def sessions(server, known):
    """Register a and b, and return the sessions they got."""
    found = {}
    for name in ("a", "b"):
        with Grpc(**known.of(name)).connect(server.address) as connection:
            found[name] = connection.request(Register(name, accepts=ACCEPTS), timeout=20.0).message.session
    return found


def calls(session):
    """Return everything that can be asked under a session."""
    manifest = Manifest("safetensors", 4096, (64,))
    return {
        "register": Register(session.client_id, accepts=ACCEPTS),
        "pull": Pull(session, 0.0),
        "fetch": Fetch(session, "task", 64),
        "submit": Submit(session, "task", 1, "attempt", "", 1, manifest),
        "beat": Beat(session, Status.IDLE),
        "status": StatusQuery(),
        "model": ModelQuery(),
        "audit log": AuditQuery(),
        **{act.value: Command(act, "nobody") for act in Act},
    }


def reason(connection, message):
    """Return why somebody is refused by who it is, or "" if it is not."""
    try:
        connection.request(message, [bytes(64)] if isinstance(message, Submit) else (), timeout=20.0)
    except AccessError as error:
        return error.reason
    except FedcoreError:  # let in, and then told that there is no such task, or client
        return ""
    return ""


DENIED, NAMELESS, MISMATCH = "PERMISSION_DENIED", "UNAUTHENTICATED", "IDENTITY_MISMATCH"
TABLE = {
    # call:      anonymous, a for itself, a as b, operator, admin
    "register": (NAMELESS, "", MISMATCH, DENIED, DENIED),
    "pull": (NAMELESS, "", MISMATCH, DENIED, DENIED),
    "fetch": (NAMELESS, "", MISMATCH, DENIED, DENIED),
    "submit": (NAMELESS, "", MISMATCH, DENIED, DENIED),
    "beat": (NAMELESS, "", MISMATCH, DENIED, DENIED),
    "status": (NAMELESS, "", "", "", ""),
    "model": (NAMELESS, DENIED, DENIED, "", ""),
    "audit log": (NAMELESS, DENIED, DENIED, "", ""),
    "pause": (NAMELESS, DENIED, DENIED, DENIED, ""),
    "resume": (NAMELESS, DENIED, DENIED, DENIED, ""),
    "evict": (NAMELESS, DENIED, DENIED, DENIED, ""),
    "stop": (NAMELESS, DENIED, DENIED, DENIED, ""),
}


@pytest.mark.parametrize(("call", "wanted"), [(call, row[1]) for call, row in TABLE.items()])
def test_a_client_for_itself(server, known, transfer, call, wanted):
    session = sessions(server, known)["a"]
    with Grpc(**known.of("a"), transfer=transfer).connect(server.address) as connection:
        assert reason(connection, calls(session)[call]) == wanted


@pytest.mark.parametrize(("call", "wanted"), [(call, row[2]) for call, row in TABLE.items()])
def test_a_client_with_the_session_of_another(server, known, transfer, call, wanted):
    session = sessions(server, known)["b"]
    with Grpc(**known.of("a"), transfer=transfer).connect(server.address) as connection:
        assert reason(connection, calls(session)[call]) == wanted
        assert [each.client_id for each in server.status().clients] == ["a", "b"]
    with Grpc(**known.of("b")).connect(server.address) as connection:
        assert connection.request(Beat(session, Status.IDLE), timeout=20.0).message.acknowledged, "b lost its session"


@pytest.mark.parametrize(
    ("call", "role", "wanted"),
    [(c, r, w) for c, row in TABLE.items() for r, w in zip(("operator", "admin"), row[3:], strict=True)],
)
def test_those_who_look_on(server, known, transfer, role, call, wanted):
    session = sessions(server, known)["a"]
    with Grpc(**known.of(f"the-{role}"), transfer=transfer).connect(server.address) as connection:
        assert reason(connection, calls(session)[call]) == wanted
        under_its_own_name = Session(session.run_id, f"the-{role}", session.token)
        assert reason(connection, calls(under_its_own_name)[call]) == wanted
    assert [each.client_id for each in server.status().clients] == ["a", "b"]


@pytest.mark.parametrize(("call", "wanted"), [(call, row[0]) for call, row in TABLE.items()])
@pytest.mark.parametrize("comes_with", ["nothing", "a certificate nobody asks for"])
def test_nobody(known, transfer, call, wanted, comes_with):
    tls = TLS.kit(known.kits["a"]) if comes_with != "nothing" else known.trust
    for server in serve(**{**known.server, "tls": known.alone}):
        with Grpc(tls=tls, transfer=transfer).connect(server.address) as connection:
            assert reason(connection, calls(Session("run", "a", "token"))[call]) == wanted
        assert server.status().clients == ()


@pytest.mark.parametrize("call", TABLE)
def test_a_client_of_another_run(server, known, transfer, call):
    session = replace(sessions(server, known)["a"], run_id="run-of-others")
    with Grpc(**known.of("a"), transfer=transfer).connect(server.address) as connection:
        if call in ("pull", "fetch", "submit", "beat"):
            with pytest.raises(RunChanged):
                connection.request(calls(session)[call], [bytes(64)] if call == "submit" else (), timeout=20.0)
        else:  # what needs no session is the same for it as for any other client
            assert reason(connection, calls(session)[call]) == TABLE[call][1]


def test_the_table_is_of_all_that_can_be_asked():
    assert TABLE.keys() == calls(Session("run", "a", "token")).keys()
    asked = {type(message) for message in calls(Session("run", "a", "token")).values()}
    assert asked == {*Message.__args__} - {Unread}


def test_everybody_may_ask_whether_it_lives(server, known):
    for kit in known.kits.values():
        files = [(kit / name).read_bytes() for name in ("authority.pem", "key.pem", "certificate.pem")]
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(*files)) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20.0)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_an_access_error_says_who_asked_for_what_and_is_not_tried_again(server, known):
    says = "operator 'the-operator' may not ask for Register"
    operator = Grpc(**known.of("the-operator"))
    with operator.connect(server.address) as connection, pytest.raises(PermissionDenied, match=says) as info:
        connection.request(Register("a"), timeout=20.0)
    assert not info.value.retryable


class TestAuditLog:
    """``fedcore audit copy`` over TLS."""

    def copied(self, server, capsys, path, *arguments):
        code = main(["audit", "copy", server.address, str(path), *map(str, arguments)])
        return code, *capsys.readouterr()

    @pytest.mark.parametrize("role", ["operator", "admin"])
    def test_those_who_look_on_may_have_a_copy(self, server, known, capsys, tmp_path, role):
        sessions(server, known)
        server.hub.flush_events()
        code, out, err = self.copied(server, capsys, tmp_path / "copy", *known.options(f"the-{role}"))
        assert (code, err) == (0, "")
        assert out.startswith("whole: ")
        server.hub.flush_events()
        copied, log = ((tmp_path / name).read_text() for name in ("copy", "audit.jsonl"))
        assert log.startswith(copied)
        assert [json.loads(line).get("client_id") for line in copied.splitlines()][:3] == [None, "a", "b"]
        read = [line for line in map(json.loads, log.splitlines()) if line["what"] == "AuditRead"]
        assert [line["peer"] for line in read] == [f"the-{role}"]

    def test_a_client_may_not(self, server, known, capsys, tmp_path):
        code, out, err = self.copied(server, capsys, tmp_path / "copy", *known.options("a"))
        assert (code, out, err) == (1, "", "fedcore: client 'a' may not ask for AuditQuery\n")
        assert not (tmp_path / "copy").exists()

    def test_without_a_kit(self, server, capsys, tmp_path):
        assert self.copied(server, capsys, tmp_path / "copy")[:2] == (1, "")
        assert not (tmp_path / "copy").exists()


class TestStatus:
    """``fedcore status`` over TLS."""

    def asked(self, server, capsys, *arguments):
        code = main(["status", server.address, *map(str, arguments)])
        return code, capsys.readouterr()

    @pytest.mark.parametrize("role", ["operator", "admin"])
    def test_those_who_look_on_see_all(self, server, known, capsys, role):
        sessions(server, known)
        code, shown = self.asked(server, capsys, *known.options(f"the-{role}"), "--json")
        assert code == 0
        assert [each["client_id"] for each in json.loads(shown.out)["clients"]] == ["a", "b"]

    def test_a_client_sees_its_own_part(self, server, known, capsys):
        sessions(server, known)
        code, shown = self.asked(server, capsys, *known.options("a"), "--json")
        assert code == 0
        assert [each["client_id"] for each in json.loads(shown.out)["clients"]] == ["a"]

    def test_without_a_kit(self, server, capsys):
        code, shown = self.asked(server, capsys)
        assert (code, shown.out) == (1, "")
        assert shown.err.count("\n") == 1

    def test_with_one_that_is_not_there(self, server, tmp_path, capsys):
        code, shown = self.asked(server, capsys, "--tls-kit", tmp_path)
        assert code == 1
        assert f"fedcore: TLS.authority: '{tmp_path}/authority.pem' is no file\n" in shown.err

    def test_over_a_transport_without_tls(self, server, known, capsys):
        code, shown = self.asked(server, capsys, *known.options("the-operator"), "--transport", "memory")
        assert (code, shown.err) == (1, "fedcore: transport 'memory' has no option 'tls'\n")

    @pytest.mark.parametrize("options", [[], ["--insecure"]])
    def test_a_token_goes_nowhere_in_plaintext(self, capsys, options):
        assert main(["status", "localhost:1", "--token", "x", *options]) == 1
        assert capsys.readouterr().err.startswith("fedcore: --token needs --tls-authority (or --tls-kit)")

    def test_with_a_token_that_is_not_good(self, server, known, tmp_path, capsys):
        path = tmp_path / "token"
        path.touch(0o600)
        path.write_text("a.b.c")
        code, shown = self.asked(server, capsys, "--tls-authority", known.trust.authority, "--token", path)
        assert (code, shown.out) == (1, "")
        assert shown.err.count("\n") == 1
        assert "a.b.c" not in shown.err

    @pytest.mark.parametrize("other", ["--insecure", "--tls-authority=z"])
    def test_either_a_kit_or_none(self, capsys, other):
        with pytest.raises(SystemExit):
            main(["status", "x:1", "--tls-kit", "y", other])
        assert "not allowed with argument" in capsys.readouterr().err
