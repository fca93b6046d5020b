"""Tokens over real sockets: who gets in, who is turned away before anything is looked at, and tokens that change meanwhile."""

import json
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import jwt
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from fedcore import TLS, Client, FedAvg, Grpc, Limits, Server, ServerConfig, Tokens, start_client
from fedcore.audit import verify
from fedcore.clock import Clock
from fedcore.errors import AccessError, ConfigError, Fenced, PermissionDenied, Unauthenticated
from fedcore.keys import Issuer
from fedcore.messages import Beat, BeatReply, Outcome, Pull, Register, Session, Status, StatusQuery, Wait
from fedcore.pki import Authority
from fedcore.protos import fedcore_pb2 as pb
from fedcore.tokens import LARGEST
from fedcore.transport import Reply
from fedcore.transports.grpc import TransferPolicy, wire
from fedcore.transports.grpc.server import Service

MODEL = {"w": torch.zeros(4)}
PATIENCE = 30.0
SERVICE = "/fedcore.v1.FederatedLearningService/"
UNARY = ("RegisterClient", "GetGlobalModel", "SubmitModelUpdate", "GetServerStatus", "Heartbeat", "GetAuditLog", "Control")
SESSION = Session("run", "a", "token")
NOW = int(time.time())


class World:
    """An authority, an issuer, and tokens of all kinds, in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.authority, self.issuer = Authority.init(folder / "authority"), Issuer.init(folder / "issuer")
        own = self.authority.issue("server", "hub", hosts=["localhost", "127.0.0.1"])
        self.kit, self.root = TLS.kit(own, revoked=self.authority.revoked), str(own / "authority.pem")
        self.trust = TLS(authority=self.root)
        self.tokens = Tokens.of(self.issuer.folder)
        self.server = {"tls": TLS(certificate=self.kit.certificate, key=self.kit.key), "tokens": self.tokens}

    def issue(self, name, role="client"):
        self.issuer.issue(role, name, self.folder / name)
        return self.of(name)

    def of(self, name):
        """Return the options of somebody's transport."""
        return {"tls": self.trust, "token": str(self.folder / name)}

    def text(self, name):
        return (self.folder / name).read_text().strip()

    def signed(self, key=None, algorithm="EdDSA", kid=None, **changes):
        """Return a token that no issuer would make."""
        pem = (self.issuer.folder / "signing.key").read_bytes()
        claims = {"iss": "fedcore", "aud": "fedcore", "iat": NOW, "exp": NOW + 3600, "jti": "1", "sub": "a", "role": "client"}
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return jwt.encode(claims, key if key is not None else pem, algorithm, {"kid": kid or self.issuer.kid})

    def file(self, token):
        path = self.folder / "other"
        path.touch(0o600)
        path.write_text(token)
        return {"tls": self.trust, "token": str(path)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    for name, role in (("a", "client"), ("b", "client"), ("the-operator", "operator"), ("the-admin", "admin")):
        made.issue(name, role)
    made.issue("gone")
    made.issuer.revoke("gone")
    return made


@pytest.fixture
def moving(tmp_path):
    """A world that a test may change."""
    return World(tmp_path)


BAD = {
    "nothing": lambda world: None,
    "expired": lambda world: world.signed(exp=NOW - 3600),
    "not valid yet": lambda world: world.signed(nbf=NOW + 3600),
    "of another issuer": lambda world: world.signed(iss="you"),
    "for another federation": lambda world: world.signed(aud="other"),
    "without an end": lambda world: world.signed(exp=None),
    "of a key nobody knows": lambda world: world.signed(kid="nobody"),
    "signed by another": lambda world: world.signed(Ed25519PrivateKey.generate()),
    "not signed": lambda world: world.signed("", "none"),
    "signed with a public key": lambda world: world.signed(b"x" * 32, "HS256"),
    "of a server": lambda world: world.signed(role="server"),
    "tampered": lambda world: world.text("a")[:-9] + "AAAAAAAAA",
    "too long": lambda world: world.signed(note="x" * LARGEST),
    "garbage": lambda world: "a.b.c",
    "none": lambda world: "x",
    "revoked": lambda world: world.text("gone"),
}


NO_CLIENT_HAS = ("nothing", "revoked", "none", "too long", "not signed")  # or not in a file that it takes for one


class NeverAgain(Clock):
    """A clock for clients that may not wait and try again."""

    def wait(self, condition, timeout):
        raise AssertionError("it tries again")


class Adds(Client):
    def __init__(self, by=1):
        self.by, self.reached, self.gate = by, threading.Event(), threading.Event()
        self.gate.set()

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        return {"w": parameters["w"] + self.by * config["round"]}, self.by


@contextmanager
def serving(options, rounds=2, clients=2, **config):
    strategy = FedAvg(MODEL, min_fit_clients=clients, clients_per_round=clients)
    settings = ServerConfig(num_rounds=rounds, stop_grace=0.0, heartbeat_interval=0.2, **config)
    with Server("localhost:0", transport=Grpc(**options), config=settings, strategy=strategy) as server:
        yield server


@contextmanager
def raw(world, address):
    credentials = grpc.ssl_channel_credentials(Path(world.root).read_bytes())
    with grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def shown(*tokens):
    return [("authorization", f"Bearer {token}") for token in tokens if token is not None]


def code(call, *args, **options):
    """Return the code of a call that has to fail."""

    def made():
        answer = call(*args, timeout=PATIENCE, **options)
        return next(answer) if hasattr(answer, "__next__") else answer

    with pytest.raises(grpc.RpcError) as info:
        made()
    return info.value.code()


@pytest.mark.parametrize("threshold", [1 << 20, 0], ids=["unary", "streamed"])
def test_a_federation(world, threshold):
    transfer, errors = TransferPolicy(threshold_bytes=threshold), []

    def work(name, by):
        try:
            start_client(server.address, Adds(by), name, transport=Grpc(**world.of(name), transfer=transfer))
        except Exception as error:
            errors.append(error)

    with serving({**world.server, "transfer": transfer}) as server:
        threads = [threading.Thread(target=work, args=pair) for pair in (("a", 1), ("b", 3))]
        for thread in threads:
            thread.start()
        history, final = server.wait(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
    assert errors == []
    assert [record.accepted for record in history.rounds] == [["a", "b"]] * 2
    assert final["w"].tolist() == [2.5 * 3] * 4


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in NO_CLIENT_HAS])
def test_a_client_with_a_token_that_is_not_good_ends_at_once(world, kind):
    transport = Grpc(**world.file(BAD[kind](world)))
    with serving(world.server) as server, pytest.raises(Unauthenticated, match="this token is not good"):
        start_client(server.address, Adds(), "a", transport=transport, clock=NeverAgain())


def test_a_client_that_takes_another_s_name_ends_at_once(world):
    transport = Grpc(**world.of("a"))
    with serving(world.server) as server, pytest.raises(PermissionDenied, match="'a' may not speak for 'b'") as info:
        start_client(server.address, Adds(), "b", transport=transport, clock=NeverAgain())
    assert info.value.reason == "IDENTITY_MISMATCH"


@pytest.mark.parametrize("kind", BAD)
def test_every_call_is_refused(world, kind):
    token = BAD[kind](world)
    wanted = grpc.StatusCode.PERMISSION_DENIED if kind == "revoked" else grpc.StatusCode.UNAUTHENTICATED
    with serving(world.server) as server, raw(world, server.address) as channel:
        for name in UNARY:
            assert code(channel.unary_unary(SERVICE + name), b"", metadata=shown(token)) is wanted, name
        assert code(channel.unary_stream(SERVICE + "GetGlobalModelStream"), b"", metadata=shown(token)) is wanted
        upload, silent = channel.stream_unary(SERVICE + "SubmitModelUpdateStream"), threading.Event()
        assert code(upload, iter(silent.wait, True), metadata=shown(token)) is wanted, "it waits for what is to come"
        silent.set()
        assert server.status().clients == ()


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Basic YTpi")],
        [("authorization", "Basic {}")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "")],
        [("authorization", "{}")],
        [("authorization", "Bearer {} {}")],
        [("authorization", "Bearer {}"), ("authorization", "Bearer {}")],
        [("authorization", "Bearer x.y.z"), ("authorization", "Bearer {}")],
        [("x-authorization", "Bearer {}")],
        [("authorization-bin", b"Bearer x.y.z")],
    ],
)
def test_what_is_shown_is_one_bearer_token(world, metadata):
    token = world.text("a")
    filled = [(key, value if isinstance(value, bytes) else value.replace("{}", token)) for key, value in metadata]
    with serving(world.server) as server, raw(world, server.address) as channel:
        call = channel.unary_unary(SERVICE + "GetServerStatus")
        assert code(call, b"", metadata=filled) is grpc.StatusCode.UNAUTHENTICATED
        assert call(b"", metadata=[("authorization", f"bearer {token}")], timeout=PATIENCE)


class TestNothingElseRuns:
    """G6: behind a refusal, no more of the program is reached than what notes it."""

    ALLOWED = (
        "fedcore.access", "fedcore.audit", "fedcore.border", "fedcore.clock", "fedcore.errors", "fedcore.events",
        "fedcore.lane", "fedcore.messages", "fedcore.pace", "fedcore.refusals", "fedcore.security", "fedcore.tasks",
        "fedcore.tokens", "fedcore.transport", "fedcore.values", "fedcore.watched",
        "fedcore.transports.grpc.credentials", "fedcore.transports.grpc.guard", "fedcore.transports.grpc.server",
        "fedcore.transports.grpc.status",
    )  # fmt: skip
    HANDLERS = ("_register", "_pull", "_fetch", "_submit", "_submit_stream", "_status", "_beat", "_audit_log", "_control")

    @pytest.fixture
    def traced(self, monkeypatch):
        """Every function of fedcore that the thread of the server's transport enters."""
        entered = []

        def note(frame, event, _):
            module = frame.f_globals.get("__name__", "")
            if module.startswith("fedcore") and threading.current_thread().name == "fedcore-grpc":
                entered.append((module, frame.f_code.co_name))

        threading.settrace(note)
        yield entered
        threading.settrace(None)

    @pytest.mark.parametrize("kind", BAD)
    def test_for_any_that_is_refused(self, world, traced, kind):
        token = BAD[kind](world)
        with serving(world.server) as server, raw(world, server.address) as channel:
            channel.unary_unary(SERVICE + "Heartbeat")
            del traced[:]
            code(channel.unary_unary(SERVICE + "Heartbeat"), b"", metadata=shown(token))
            code(channel.stream_unary(SERVICE + "SubmitModelUpdateStream"), iter([b""]), metadata=shown(token))
            seen = set(traced)
        assert ("fedcore.transports.grpc.guard", "known") in seen
        further = {(module, name) for module, name in seen if module not in self.ALLOWED and not name.startswith("<")}
        assert further == {("fedcore.hub", "record")}  # who was refused is noted
        assert not {name for module, name in seen if module.endswith("grpc.server")} & set(self.HANDLERS)

    def test_but_for_one_that_is_not_it_does(self, world, traced):
        with serving(world.server) as server, Grpc(**world.of("a")).connect(server.address) as link:
            link.request(Register("a", accepts=("safetensors",)), timeout=PATIENCE)
            seen = set(traced)
        assert {("fedcore.transports.grpc.server", "_register"), ("fedcore.reception", "register")} <= seen

    @pytest.mark.parametrize("kind", ["nothing", "expired"])
    def test_and_it_is_in_the_audit_log(self, world, kind, tmp_path):
        with serving(world.server, state_dir=str(tmp_path / "state")) as server, raw(world, server.address) as channel:
            code(channel.unary_unary(SERVICE + "Heartbeat"), b"", metadata=shown(BAD[kind](world)))
        log = tmp_path / "state" / "audit.jsonl"
        assert verify(log).lines
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        refused = [line for line in lines if line["what"] == "AccessRefused"]
        assert [(line["peer"], line["asked"], line["reason"]) for line in refused] == [("", "Unread", "UNAUTHENTICATED")]


class TestWithACertificate:
    """Both are shown: they are of the same name and role, or nobody's."""

    @pytest.fixture
    def both(self, world):
        return {"tls": world.kit, "tokens": world.tokens}

    def asked(self, world, server, kit, token):
        tls = TLS(world.root, str(kit / "certificate.pem"), str(kit / "key.pem"))
        options = {} if token is None else world.file(token)
        with Grpc(**{**options, "tls": tls}).connect(server.address) as connection:
            return connection.request(StatusQuery(), timeout=PATIENCE).message

    def test_of_the_same(self, world, both):
        kit = world.authority.issue("client", "a")
        with serving(both) as server:
            assert self.asked(world, server, kit, world.text("a")).phase
            assert self.asked(world, server, kit, None).phase

    @pytest.mark.parametrize("changes", [{"sub": "b"}, {"role": "admin"}, {"role": "operator", "sub": "a"}])
    def test_of_another(self, world, both, changes):
        kit = world.authority.issue("client", "a")
        with serving(both) as server, pytest.raises(Unauthenticated, match="another's than the certificate"):
            self.asked(world, server, kit, world.signed(**changes))

    @pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in NO_CLIENT_HAS])
    def test_a_bad_token_is_not_made_up_for(self, world, both, kind):
        kit = world.authority.issue("client", "a")
        with serving(both) as server, pytest.raises(AccessError):
            self.asked(world, server, kit, BAD[kind](world))

    def test_nor_is_a_revoked_certificate(self, world, both):
        kit = world.authority.issue("client", "c")
        world.authority.revoke("c")
        with serving(both) as server, pytest.raises(PermissionDenied, match="this certificate was revoked"):
            self.asked(world, server, kit, world.signed(sub="c"))

    def test_a_certificate_of_nobody_leaves_it_to_the_token(self, world, both, tmp_path):
        key = ec.generate_private_key(ec.SECP256R1())
        ca = x509.load_pem_x509_certificate(Path(world.root).read_bytes())
        signer = serialization.load_pem_private_key((world.authority.folder / "authority.key").read_bytes(), None)
        name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")]), datetime.now(UTC)
        made = (
            x509.CertificateBuilder(ca.subject, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(signer, hashes.SHA256())
        )
        (tmp_path / "key.pem").touch(0o600)
        pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))
        (tmp_path / "certificate.pem").write_bytes(made.public_bytes(pem))
        with serving(both) as server:
            assert self.asked(world, server, tmp_path, world.text("the-operator")).phase
            with pytest.raises(Unauthenticated):
                self.asked(world, server, tmp_path, None)


class TestTokensThatChange:
    def test_a_new_key_and_a_new_token_need_no_restart_and_the_old_key_can_go(self, moving):
        """The client that runs is not even disturbed."""
        old = moving.issuer.kid
        client, errors = Adds(), []
        client.gate.clear()
        transport = Grpc(**moving.issue("a"))
        copy = moving.text("a")

        def work():
            try:
                start_client(server.address, client, "a", transport=transport)
            except Exception as error:
                errors.append(error)

        with serving(moving.server, clients=1) as server:
            thread = threading.Thread(target=work)
            thread.start()
            assert client.reached.wait(PATIENCE)
            moving.issuer.rotate()
            moving.issue("a")
            with Grpc(**moving.file(copy)).connect(server.address) as connection:
                assert connection.request(StatusQuery(), timeout=PATIENCE).message.phase
            assert wait_until(lambda: self.kid_of(server, "a") == moving.issuer.kid), "no beat came with the new token"
            moving.issuer.retire(old)
            with Grpc(**moving.file(copy)).connect(server.address) as connection, pytest.raises(AccessError):
                connection.request(StatusQuery(), timeout=PATIENCE)
            client.gate.set()
            history, _ = server.wait(PATIENCE)
            thread.join(PATIENCE)
        assert errors == []
        assert [record.accepted for record in history.rounds] == [["a"], ["a"]]

    @staticmethod
    def kid_of(server, name):
        guard = server._listener._service.guard
        return guard._clients[name][-1].kid

    def test_one_that_ends_during_a_call_does_not_end_the_call(self, world, monkeypatch):
        held, came = Future(), threading.Event()

        def handler(request):
            if isinstance(request.message, Pull):
                came.set()
                return held
            done = Future()
            done.set_result(Reply(BeatReply(True)))
            return done

        listener = Grpc(**world.server).listen("localhost:0", handler)
        try:
            with Grpc(**world.of("a")).connect(listener.address) as connection:
                answers = []
                thread = threading.Thread(target=lambda: answers.append(connection.request(Pull(SESSION, 20.0))))
                thread.start()
                assert came.wait(PATIENCE)

                class Later(datetime):
                    @classmethod
                    def now(cls, tz=None):
                        return datetime.now(tz) + timedelta(days=31)

                monkeypatch.setattr("jwt.api_jwt.datetime", Later)
                held.set_result(Reply(Wait(7)))
                thread.join(PATIENCE)
                assert [reply.message for reply in answers] == [Wait(7)]
                with raw(world, listener.address) as channel:
                    call = channel.unary_unary(SERVICE + "Heartbeat")
                    beat = wire.pack_beat(Beat(SESSION, Status.IDLE)).SerializeToString()
                    monkeypatch.undo()
                    assert call(beat, metadata=shown(world.text("a")), timeout=PATIENCE)
        finally:
            listener.stop()

    def test_and_the_next_call_is_refused(self, world, monkeypatch):
        with serving(world.server) as server, Grpc(**world.of("a")).connect(server.address) as link:
            session = link.request(Register("a", accepts=("safetensors",)), timeout=PATIENCE).message.session
            assert link.request(Beat(session, Status.IDLE), timeout=PATIENCE).message.acknowledged

            class Later(datetime):
                @classmethod
                def now(cls, tz=None):
                    return datetime.now(tz) + timedelta(days=31)

            monkeypatch.setattr("jwt.api_jwt.datetime", Later)
            with pytest.raises(Unauthenticated, match="expired"):
                link.request(Beat(session, Status.IDLE), timeout=PATIENCE)
            monkeypatch.undo()
            assert link.request(Beat(session, Status.IDLE), timeout=PATIENCE).message.acknowledged


def wait_until(holds):
    until, pause = time.monotonic() + PATIENCE, threading.Event()
    while not (done := holds()) and time.monotonic() < until:
        pause.wait(0.01)
    return done


class TestReplayed:
    """G4: somebody has a request and its token, and sends it once more on a connection of his own."""

    @pytest.fixture
    def captured(self, monkeypatch):
        """What came to the server, by call."""
        found = {}
        for name in ("_register", "_submit"):
            call = getattr(Service, name)

            async def spy(self, data, context, name=name, call=call):
                key = (name, next(value for key, value in context.invocation_metadata() if key == "authorization"))
                found.setdefault(key, data)
                return await call(self, data, context)

            monkeypatch.setattr(Service, name, spy)
        return found

    def again(self, world, server, call, key, captured):
        with raw(world, server.address) as channel:
            send = channel.unary_unary(SERVICE + call)
            return send(captured[key], metadata=[("authorization", key[1])], timeout=PATIENCE)

    def test_nothing_changes(self, world, captured):
        clients, errors = {"a": Adds(1), "b": Adds(3)}, []
        clients["b"].gate.clear()

        def work(name):
            try:
                start_client(server.address, clients[name], name, transport=Grpc(**world.of(name)))
            except Exception as error:
                errors.append(error)

        with serving(world.server, rounds=2) as server:
            threads = [threading.Thread(target=work, args=(name,)) for name in clients]
            for thread in threads:
                thread.start()
            assert wait_until(lambda: server.status().accepted == 1)
            bearer = f"Bearer {world.text('a')}"
            answer = self.again(world, server, "SubmitModelUpdate", ("_submit", bearer), captured)
            assert wire.unpack_submitted(pb.SubmitModelUpdateResponse.FromString(answer)).outcome is Outcome.DUPLICATE
            assert server.status().accepted == 1
            self.again(world, server, "RegisterClient", ("_register", bearer), captured)
            clients["b"].gate.set()
            history, final = server.wait(PATIENCE)
            for thread in threads:
                thread.join(PATIENCE)
        assert errors == [], "the client was fenced"
        assert [record.accepted for record in history.rounds] == [["a", "b"]] * 2
        assert final["w"].tolist() == [2.5 * 3] * 4

    def test_but_with_the_token_a_new_process_can_take_the_client_s_place(self, world):
        """Which is what a token is for; the old one notices, and ends."""
        link = Grpc(**world.of("a"))
        with serving(world.server) as server, link.connect(server.address) as one, link.connect(server.address) as other:
            old = one.request(Register("a", accepts=("safetensors",), instance="1"), timeout=PATIENCE).message.session
            new = other.request(Register("a", accepts=("safetensors",), instance="2"), timeout=PATIENCE).message.session
            assert other.request(Beat(new, Status.IDLE), timeout=PATIENCE).message.acknowledged
            for message in (Beat(old, Status.IDLE), Register("a", accepts=("safetensors",), instance="1")):
                with pytest.raises(Fenced):
                    one.request(message, timeout=PATIENCE)


class TestWhereTokensGo:
    @pytest.mark.parametrize("options", [{"insecure": True}, {}])
    def test_never_without_tls(self, world, options):
        for mine in ({"token": str(world.folder / "a")}, {"tokens": world.tokens}):
            with pytest.raises(ConfigError, match="tokens need tls"):
                Grpc(**mine, **options)

    def test_nor_to_a_server_that_nobody_vouches_for(self, world, tmp_path):
        other, seen = Authority.init(tmp_path / "other"), []
        kit = other.issue("server", "hub", hosts=["localhost"])

        def handler(request):
            seen.append(request)
            raise AssertionError("asked")

        own = TLS(certificate=str(kit / "certificate.pem"), key=str(kit / "key.pem"))
        listener = Grpc(tls=own).listen("localhost:0", handler)
        try:
            transport = Grpc(**world.of("a"))
            with transport.connect(listener.address) as connection, pytest.raises(AccessError):
                connection.request(StatusQuery(), timeout=PATIENCE)
        finally:
            listener.stop()
        assert seen == []

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_nor_from_a_file_that_others_can_read(self, moving, mode):
        transport = Grpc(**moving.issue("a"))
        (moving.folder / "a").chmod(mode)
        with pytest.raises(ConfigError, match="others can read it; chmod 600"):
            transport.connect("localhost:1")

    def test_nor_from_one_that_is_not_there(self, world):
        with pytest.raises(ConfigError, match="No such file"):
            Grpc(tls=world.trust, token="nowhere").connect("localhost:1")

    def test_a_server_that_cannot_use_its_keys_does_not_start(self, moving):
        (moving.issuer.folder / "keys.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"keys\.json cannot be used"):
            Grpc(**moving.server).listen("localhost:0", lambda request: Future())

    def test_a_server_that_is_not_told_of_tokens_does_not_heed_them(self, world):
        with serving({"tls": world.server["tls"]}) as server, raw(world, server.address) as channel:
            call = channel.unary_unary(SERVICE + "GetServerStatus")
            assert code(call, b"", metadata=shown(world.text("the-admin"))) is grpc.StatusCode.UNAUTHENTICATED


def test_g8_no_token_is_in_anything_that_is_said(world, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    mine = Grpc(**world.of("a"))
    said = [repr(mine), repr(Grpc(**world.server)), repr(vars(mine))]
    tokens = [world.text("a")]
    with serving(world.server, rounds=1, clients=1, limits=Limits(refusals_per_minute=10**6)) as server:
        for kind, make in BAD.items():
            token = make(world)
            if kind in ("nothing", "none", "garbage"):
                continue
            tokens.append(token)
            try:
                start_client(server.address, Adds(), "a", transport=Grpc(**world.file(token)), clock=NeverAgain())
            except (AccessError, ConfigError) as error:
                said.append(f"{error!r} {error} {error.__cause__!r} {error.__context__!r}")
            with raw(world, server.address) as channel, pytest.raises(grpc.RpcError) as info:
                channel.unary_unary(SERVICE + "Heartbeat")(b"", metadata=shown(token, token), timeout=PATIENCE)
            said.append(f"{info.value!r} {info.value}")
        try:
            start_client(server.address, Adds(), "b", transport=mine)
        except PermissionDenied as error:
            said.append(f"{error!r} {error.__context__!r}")
        start_client(server.address, Adds(), "a", transport=mine)
        server.wait(PATIENCE)
    heard = "\n".join([*said, caplog.text, *capfd.readouterr()])
    assert len(said) > 20
    assert len(caplog.records) > 10
    secrets = {part for token in tokens for part in token.split(".")[1:] if part}
    assert len(secrets) > 15
    assert not [part for part in secrets if part in heard]
