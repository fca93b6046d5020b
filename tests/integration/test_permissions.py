"""Who may ask for what, over the real wire: each role, each call, in its own name and in another's."""

import json
from types import SimpleNamespace

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedcore import FedAvg, Grpc, Server, ServerConfig
from fedcore.cli import main
from fedcore.errors import AccessError, FedcoreError, PermissionDenied
from fedcore.messages import Act, Beat, Command, Fetch, Manifest, Pull, Register, Session, Status, StatusQuery, Submit
from fedcore.pki import Authority
from fedcore.security import TLS
from fedcore.transports.grpc import TransferPolicy

ACCEPTS = ("safetensors",)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    authority = Authority.init(tmp_path_factory.mktemp("pki") / "authority")
    kits = {name: authority.issue("client", name) for name in ("a", "b", "stranger")}
    kits |= {role: authority.issue(role, f"the-{role}") for role in ("operator", "admin")}
    kits["server"] = authority.issue("server", "hub", hosts=["localhost"])
    return SimpleNamespace(authority=authority, **kits)


@pytest.fixture(params=["unary", "streamed"])
def transfer(request):
    return TransferPolicy(threshold_bytes=0 if request.param == "streamed" else 1 << 20)


@pytest.fixture
def server(pki):
    yield from serve(TLS.kit(pki.server))


def serve(tls):
    """Run a server that waits for a third client, with clients a and b if they can be known by certificates."""
    strategy = FedAvg({"w": torch.zeros(2)}, min_fit_clients=3, clients_per_round=3)
    config = ServerConfig(num_rounds=1, stop_grace=0.0, heartbeat_interval=5.0)
    with Server("localhost:0", config=config, strategy=strategy, transport=Grpc(tls=tls)) as server:
        yield server


def sessions(server, pki):
    """Register a and b, and return the sessions they got."""
    found = {}
    for name in ("a", "b"):
        with Grpc(tls=TLS.kit(getattr(pki, name))).connect(server.address) as connection:
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
        "command": Command(Act.EVICT, "nobody"),
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
    "command": (NAMELESS, DENIED, DENIED, DENIED, ""),
}


@pytest.mark.parametrize(("call", "wanted"), [(call, row[1]) for call, row in TABLE.items()])
def test_a_client_for_itself(server, pki, transfer, call, wanted):
    session = sessions(server, pki)["a"]
    with Grpc(tls=TLS.kit(pki.a), transfer=transfer).connect(server.address) as connection:
        assert reason(connection, calls(session)[call]) == wanted


@pytest.mark.parametrize(("call", "wanted"), [(call, row[2]) for call, row in TABLE.items()])
def test_a_client_with_the_session_of_another(server, pki, transfer, call, wanted):
    session = sessions(server, pki)["b"]
    with Grpc(tls=TLS.kit(pki.a), transfer=transfer).connect(server.address) as connection:
        assert reason(connection, calls(session)[call]) == wanted
        assert [each.client_id for each in server.status().clients] == ["a", "b"]
    with Grpc(tls=TLS.kit(pki.b)).connect(server.address) as connection:
        assert connection.request(Beat(session, Status.IDLE), timeout=20.0).message.acknowledged, "b lost its session"


@pytest.mark.parametrize(
    ("call", "role", "wanted"),
    [(c, r, w) for c, row in TABLE.items() for r, w in zip(("operator", "admin"), row[3:], strict=True)],
)
def test_those_who_look_on(server, pki, transfer, role, call, wanted):
    session = sessions(server, pki)["a"]
    with Grpc(tls=TLS.kit(getattr(pki, role)), transfer=transfer).connect(server.address) as connection:
        assert reason(connection, calls(session)[call]) == wanted
        under_its_own_name = Session(session.run_id, f"the-{role}", session.token)
        assert reason(connection, calls(under_its_own_name)[call]) == wanted
    assert [each.client_id for each in server.status().clients] == ["a", "b"]


@pytest.mark.parametrize(("call", "wanted"), [(call, row[0]) for call, row in TABLE.items()])
@pytest.mark.parametrize("comes_with", ["nothing", "a certificate nobody asks for"])
def test_nobody(pki, transfer, call, wanted, comes_with):
    alone = TLS(certificate=str(pki.server / "certificate.pem"), key=str(pki.server / "key.pem"))
    tls = TLS.kit(pki.a) if comes_with != "nothing" else TLS(authority=str(pki.a / "authority.pem"))
    for server in serve(alone):
        with Grpc(tls=tls, transfer=transfer).connect(server.address) as connection:
            assert reason(connection, calls(Session("run", "a", "token"))[call]) == wanted
        assert server.status().clients == ()


def test_everybody_may_ask_whether_it_lives(server, pki):
    for kit in (pki.a, pki.operator, pki.admin):
        files = [(kit / name).read_bytes() for name in ("authority.pem", "key.pem", "certificate.pem")]
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(*files)) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20.0)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_an_access_error_says_who_asked_for_what_and_is_not_tried_again(server, pki):
    says = "operator 'the-operator' may not ask for Register"
    kit = TLS.kit(pki.operator)
    with Grpc(tls=kit).connect(server.address) as connection, pytest.raises(PermissionDenied, match=says) as info:
        connection.request(Register("a"), timeout=20.0)
    assert not info.value.retryable


class TestStatus:
    """``fedcore status`` over TLS."""

    def asked(self, server, capsys, *arguments):
        code = main(["status", server.address, *map(str, arguments)])
        return code, capsys.readouterr()

    @pytest.mark.parametrize("role", ["operator", "admin"])
    def test_those_who_look_on_see_all(self, server, pki, capsys, role):
        sessions(server, pki)
        code, shown = self.asked(server, capsys, "--tls-kit", getattr(pki, role), "--json")
        assert code == 0
        assert [each["client_id"] for each in json.loads(shown.out)["clients"]] == ["a", "b"]

    def test_a_client_sees_its_own_part(self, server, pki, capsys):
        sessions(server, pki)
        code, shown = self.asked(server, capsys, "--tls-kit", pki.a, "--json")
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

    def test_over_a_transport_without_tls(self, server, pki, capsys):
        code, shown = self.asked(server, capsys, "--tls-kit", pki.operator, "--transport", "memory")
        assert (code, shown.err) == (1, "fedcore: transport 'memory' has no option 'tls'\n")

    def test_either_a_kit_or_none(self, capsys):
        with pytest.raises(SystemExit):
            main(["status", "x:1", "--tls-kit", "y", "--insecure"])
        assert "not allowed with argument" in capsys.readouterr().err
