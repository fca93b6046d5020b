"""TLS over real sockets: who gets in, who is turned away, what both say about it, and certificates that change meanwhile."""

import logging
import socket
import ssl
import threading
import warnings
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedcore import Client, FedAvg, Grpc, Limits, Server, ServerConfig, digest, start_client
from fedcore.clock import Clock
from fedcore.errors import AccessError, ConnectionLost, FedcoreError, Unauthenticated
from fedcore.messages import Beat, BeatReply, Session, Status
from fedcore.pki import Authority
from fedcore.security import TLS, Role, urn
from fedcore.testing import check_transport, run_federation
from fedcore.transport import Reply
from fedcore.transports.grpc import TransferPolicy

HOSTS = ["localhost", "127.0.0.1"]
NOW = datetime.now(UTC)
PURPOSE = {"server": ExtendedKeyUsageOID.SERVER_AUTH}
VERSIONS = ssl.TLSVersion
MODEL = {"w": torch.zeros(1000), "n": torch.tensor(0)}


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority with kits, another one of the same name with kits of the same names, and certificates nobody would make."""
    folder = tmp_path_factory.mktemp("pki")
    authority, other = Authority.init(folder / "authority"), Authority.init(folder / "other")
    names = SimpleNamespace(folder=folder, authority=authority, other=other)
    for name in ("a", "b", "c"):
        setattr(names, name, authority.issue("client", name))
    names.server = authority.issue("server", "hub", hosts=HOSTS)
    names.elsewhere = authority.issue("server", "elsewhere", hosts=["fed.example.org"])
    names.operator, names.admin = (authority.issue(role, f"the-{role}") for role in ("operator", "admin"))
    names.foreign, names.foreign_server = other.issue("client", "a"), other.issue("server", "hub", hosts=HOSTS)
    for role in ("client", "server"):
        make = partial(forged, authority, role=role)
        setattr(names, f"expired_{role}", make(folder / f"expired-{role}", begins=-30, ends=-1))
        setattr(names, f"early_{role}", make(folder / f"early-{role}", begins=1, ends=30))
        setattr(names, f"own_{role}", make(folder / f"own-{role}", signs_itself=True))
    return names


def forged(authority, folder, *, role, begins=-1, ends=30, signs_itself=False):
    """Make a kit with a certificate that ``fedcore pki`` would not make."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    ca = x509.load_pem_x509_certificate((authority.folder / "authority.pem").read_bytes())
    signer = serialization.load_pem_private_key((authority.folder / "authority.key").read_bytes(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    names = [x509.UniformResourceIdentifier(urn(Role(role), "a"))] + [x509.DNSName("localhost")] * (role == "server")
    made = (
        x509.CertificateBuilder(name if signs_itself else ca.subject, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=begins))
        .not_valid_after(NOW + timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([PURPOSE.get(role, ExtendedKeyUsageOID.CLIENT_AUTH)]), critical=False)
        .sign(key if signs_itself else signer, hashes.SHA256())
    )
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").touch(0o600)
    (folder / "key.pem").write_bytes(secret)
    (folder / "authority.pem").write_bytes((authority.folder / "authority.pem").read_bytes())
    return folder


def shown(pki, what):
    """Return what a client comes with that trusts the right authority, whoever signed its own certificate."""
    if what == "nothing":
        return TLS(authority=str(pki.a / "authority.pem"))
    kit = getattr(pki, what)
    return TLS(str(pki.a / "authority.pem"), str(kit / "certificate.pem"), str(kit / "key.pem"))


@contextmanager
def listening(tls, address="localhost:0"):
    """Serve every heartbeat and registration; yields the address, and who asked."""
    peers = []

    def answer(request):
        peers.append(request.peer)
        future = Future()
        future.set_result(Reply(BeatReply(True)))
        return future

    listener = Grpc(tls=tls).listen(address, answer)
    try:
        yield SimpleNamespace(address=listener.address, peers=peers)
    finally:
        listener.stop()


def beat(address, tls):
    with Grpc(tls=tls).connect(address) as connection:
        return connection.request(Beat(Session("run", "a", "token"), Status.IDLE), timeout=20.0).message


def is_serving(address, tls):
    files = (Path(path).read_bytes() if path else None for path in (tls.authority, tls.key, tls.certificate))
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(*files)) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20.0)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


class NeverAgain(Clock):
    """A clock for clients that may not wait and try again."""

    def wait(self, condition, timeout):
        raise AssertionError("it tries again")


class Adds(Client):
    def __init__(self, by):
        self.by = by

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        return {"w": parameters["w"] + self.by * config["round"], "n": parameters["n"]}, self.by


def federation(names, tls_of, server_tls, **options):
    """Run three rounds of three clients over gRPC; returns the history and the digest."""
    strategy = FedAvg(MODEL, min_fit_clients=3, clients_per_round=3)
    config = ServerConfig(num_rounds=3, stop_grace=2.0, heartbeat_interval=0.1)
    with Server("localhost:0", config=config, strategy=strategy, transport=Grpc(tls=server_tls, **options)) as server:
        threads = [
            threading.Thread(
                target=start_client, args=(server.address, Adds(by), name), daemon=True,
                kwargs={"transport": Grpc(tls=tls_of(name), **options)},
            )
            for by, name in enumerate(names, start=1)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        history, final = server.wait(60)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return [record.accepted for record in history.rounds], digest(final)


class TestRuns:
    @pytest.mark.parametrize("threshold", [1 << 20, 0], ids=["unary", "streamed"])
    def test_over_mutual_tls_end_with_the_same_model(self, pki, threshold):
        strategy = FedAvg(MODEL, min_fit_clients=3, clients_per_round=3)
        names, config = ["a", "b", "c"], ServerConfig(num_rounds=3)
        clients = [Adds(by) for by in (1, 2, 3)]
        history, final = run_federation(clients, strategy=strategy, config=config, client_ids=names)
        wanted = [record.accepted for record in history.rounds], digest(final)
        options = {"transfer": TransferPolicy(threshold_bytes=threshold)}
        got = federation(names, lambda name: TLS.kit(getattr(pki, name)), TLS.kit(pki.server), **options)
        assert got == wanted == federation(names, lambda _: None, None, **options)

    def test_the_transport_keeps_every_promise_under_tls(self, pki):
        class Secured(Grpc):
            anywhere = "localhost:0"

            def listen(self, address, handler, limits=Limits()):
                return Grpc(tls=TLS.kit(pki.server)).listen(address, handler, limits)

        check_transport(lambda: Secured(tls=TLS.kit(pki.a)))

    def test_with_tls_a_server_may_serve_other_machines(self, pki):
        with listening(TLS.kit(pki.server), "0.0.0.0:0") as server:
            port = server.address.rpartition(":")[2]
            assert beat(f"127.0.0.1:{port}", TLS.kit(pki.a)) == BeatReply(True)

    def test_a_unix_socket_has_tls_too(self, pki, tmp_path):
        with listening(TLS.kit(pki.server), f"unix:{tmp_path}/socket") as server:
            assert beat(server.address, TLS.kit(pki.a)) == BeatReply(True)
            assert server.peers[0].name == "a"


class TestTheClientsCertificate:
    TURNED_AWAY = ("nothing", "foreign", "expired_client", "early_client", "own_client", "server")

    @pytest.mark.parametrize("what", TURNED_AWAY)
    def test_that_is_not_good_lets_nobody_in(self, pki, what):
        with listening(TLS.kit(pki.server)) as server:
            with pytest.raises((ConnectionLost, AccessError)):
                beat(server.address, shown(pki, what))
            assert server.peers == []
            assert beat(server.address, TLS.kit(pki.a)) == BeatReply(True)
            assert is_serving(server.address, TLS.kit(pki.a))

    @pytest.mark.parametrize("what", TURNED_AWAY)
    def test_that_is_not_good_is_an_error_at_once(self, pki, what):
        with listening(TLS.kit(pki.server)) as server, pytest.raises(Unauthenticated, match="certificate"):
            start_client(server.address, Adds(1), "a", transport=Grpc(tls=shown(pki, what)), clock=NeverAgain())

    def test_says_who_asks(self, pki):
        with listening(TLS.kit(pki.server)) as server:
            for kit in (pki.a, pki.operator, pki.admin):
                beat(server.address, TLS.kit(kit))
        assert [(peer.role, peer.name) for peer in server.peers] == [
            ("client", "a"), ("operator", "the-operator"), ("admin", "the-admin"),
        ]  # fmt: skip
        issued = {each.fingerprint for each in pki.authority.issued()}
        assert {peer.fingerprint for peer in server.peers} <= issued

    def test_is_not_asked_for_by_a_server_without_an_authority(self, pki):
        server_tls = TLS(certificate=str(pki.server / "certificate.pem"), key=str(pki.server / "key.pem"))
        with listening(server_tls) as server:
            for what in ("nothing", "a"):
                beat(server.address, shown(pki, what))
        assert {(peer.role, peer.name, peer.fingerprint) for peer in server.peers} == {("anonymous", "", "")}


class TestTheServersCertificate:
    NOT_GOOD = ("elsewhere", "foreign_server", "own_server", "expired_server", "early_server", "a")

    @pytest.mark.parametrize("kit", NOT_GOOD)
    def test_that_is_not_good_is_told_nothing(self, pki, kit):
        """Another host's, another authority's, signed by itself, expired, not valid yet, and a member's."""
        with listening(shown(pki, kit)) as server:
            with pytest.raises((ConnectionLost, AccessError)):
                beat(server.address, TLS.kit(pki.a))
            assert server.peers == []

    @pytest.mark.parametrize("kit", NOT_GOOD)
    def test_that_is_not_good_is_an_error_at_once(self, pki, kit):
        with listening(shown(pki, kit)) as server, pytest.raises(Unauthenticated, match="is not"):
            start_client(server.address, Adds(1), "a", transport=Grpc(tls=TLS.kit(pki.a)), clock=NeverAgain())


def context_of(kit, *, low=None, high=None, suites=None):
    """Return what Python's TLS speaks with, whatever is good about that."""
    context = ssl.create_default_context(cafile=str(kit / "authority.pem"))
    context.load_cert_chain(kit / "certificate.pem", kit / "key.pem")
    context.set_alpn_protocols(["h2"])
    return limited(context, low or VERSIONS.TLSv1_2, high or VERSIONS.TLSv1_3, suites)


def limited(context, low, high, suites):
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version, context.maximum_version = low, high
    if suites:
        context.set_ciphers(f"{suites}:@SECLEVEL=0")
    return context


def handshake(address, context):
    """Shake hands; returns the version, the server's certificate, and the first bytes that it sends."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return secured.version(), secured.getpeercert(binary_form=True), secured.recv(9)


def can_be_spoken(pki, client, suites):
    """Return whether a client and a server of Python's come to terms, so that it is gRPC if they do not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.server / "certificate.pem", pki.server / "key.pem")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = limited(context, client.minimum_version, client.maximum_version, suites).wrap_bio(up, down, server_side=True)
    ends = [client.wrap_bio(down, up, server_hostname="localhost"), server]
    while ends:
        end = ends.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            ends.append(end)
    return True


class TestVersions:
    @pytest.mark.parametrize(("version", "name"), [(VERSIONS.TLSv1_2, "TLSv1.2"), (VERSIONS.TLSv1_3, "TLSv1.3")])
    def test_that_are_spoken(self, pki, version, name):
        with listening(TLS.kit(pki.server)) as server:
            spoken, _, first = handshake(server.address, context_of(pki.a, low=version, high=version))
        assert spoken == name
        assert first[3:4] == b"\x04"  # the SETTINGS of HTTP/2

    @pytest.mark.parametrize("version", [VERSIONS.TLSv1, VERSIONS.TLSv1_1])
    def test_that_are_not(self, pki, version):
        context = context_of(pki.a, low=version, high=version, suites="ALL")
        assert can_be_spoken(pki, context, "ALL")
        with listening(TLS.kit(pki.server)) as server:
            with pytest.raises(OSError, match=r"EOF|reset|VERSION"):
                handshake(server.address, context)
            assert is_serving(server.address, TLS.kit(pki.a))

    WEAK = ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-NULL-SHA", "ECDHE-ECDSA-AES128-CCM8")

    @pytest.mark.parametrize("suite", WEAK)
    def test_suites_that_are_not(self, pki, suite):
        context = context_of(pki.a, high=VERSIONS.TLSv1_2, suites=suite)
        assert can_be_spoken(pki, context, suite)
        with listening(TLS.kit(pki.server)) as server:
            with pytest.raises(OSError, match=r"EOF|reset|VERSION"):
                handshake(server.address, context)
            assert is_serving(server.address, TLS.kit(pki.a))

    @pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"])
    def test_suites_that_are(self, pki, suite):
        with listening(TLS.kit(pki.server)) as server:
            assert handshake(server.address, context_of(pki.a, high=VERSIONS.TLSv1_2, suites=suite))[0] == "TLSv1.2"


OTHER = {"http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "zeros": bytes(64), "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}


class TestPlaintext:
    """Neither end is shaken by one that does not speak TLS, or speaks it where nobody does."""

    def test_to_a_port_with_tls(self, pki):
        with listening(TLS.kit(pki.server)) as server:
            with pytest.raises(ConnectionLost):
                beat(server.address, None)
            assert server.peers == []
            assert is_serving(server.address, TLS.kit(pki.a))

    def test_tls_to_a_port_without(self, pki):
        with listening(None) as server:
            with pytest.raises((ConnectionLost, AccessError)):
                beat(server.address, TLS.kit(pki.a))
            assert server.peers == []
            assert beat(server.address, None) == BeatReply(True)

    @pytest.mark.parametrize("what", OTHER)
    def test_other_things_to_a_port_with_tls(self, pki, what):
        with listening(TLS.kit(pki.server)) as server:
            host, _, port = server.address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=20) as plain:
                plain.sendall(OTHER[what])
                assert answer_of(plain) == b""
            assert server.peers == []
            assert is_serving(server.address, TLS.kit(pki.a))


def answer_of(plain):
    """Return all that a server says until it closes the connection, as it must."""
    try:
        return b"".join(iter(lambda: plain.recv(1000), b""))
    except ConnectionResetError:
        return b""


def renew(pki, folder):
    """Make a new certificate and key for a server in the very place of the old ones."""
    fresh = pki.authority.issue("server", "hub-2", hosts=HOSTS)
    for name in ("key.pem", "certificate.pem"):
        (fresh / name).replace(folder / name)


@pytest.fixture
def moving(pki, tmp_path):
    """A server's kit that may be changed."""
    kit = tmp_path / "moving"
    kit.mkdir()
    for path in pki.server.iterdir():
        (kit / path.name).touch(0o600)
        (kit / path.name).write_bytes(path.read_bytes())
    return kit


class TestRenewal:
    def seen(self, pki, server):
        return handshake(server.address, context_of(pki.a))[1]

    def test_of_a_server_s_kit_needs_no_restart(self, pki, moving):
        with listening(TLS.kit(moving)) as server, Grpc(tls=TLS.kit(pki.a)).connect(server.address) as connection:
            old = self.seen(pki, server)
            connection.request(Beat(Session("run", "a", "token"), Status.IDLE), timeout=20.0)
            renew(pki, moving)
            new = self.seen(pki, server)
            assert new != old
            assert ssl.DER_cert_to_PEM_cert(new).split() == (moving / "certificate.pem").read_text().split()
            connection.request(Beat(Session("run", "a", "token"), Status.IDLE), timeout=20.0)
            assert len({peer.address for peer in server.peers}) == 1, "the connection was cut"

    @pytest.mark.parametrize("broken", [b"", b"garbage", None])
    def test_that_goes_wrong_leaves_the_old_certificate(self, pki, moving, broken):
        with listening(TLS.kit(moving)) as server:
            old = self.seen(pki, server)
            if broken is None:
                (moving / "certificate.pem").unlink()
            else:
                (moving / "certificate.pem").write_bytes(broken)
            assert self.seen(pki, server) == old
            renew(pki, moving)
            assert self.seen(pki, server) != old

    def test_between_the_key_and_its_certificate_the_old_pair_is_used(self, pki, moving):
        with listening(TLS.kit(moving)) as server:
            old = self.seen(pki, server)
            (moving / "key.pem").write_bytes((pki.elsewhere / "key.pem").read_bytes())
            assert self.seen(pki, server) == old

    def test_of_a_client_s_kit_counts_for_the_next_connection(self, pki, tmp_path):
        kit = forged(pki.authority, tmp_path / "a", role="client", begins=-30, ends=-1)
        with listening(TLS.kit(pki.server)) as server:
            with pytest.raises(FedcoreError):
                beat(server.address, TLS.kit(kit))
            forged(pki.authority, kit, role="client")
            assert beat(server.address, TLS.kit(kit)) == BeatReply(True)

    def test_of_a_client_s_kit_counts_for_a_client_that_runs(self, pki, tmp_path):
        kit = forged(pki.authority, tmp_path / "a", role="client", begins=-30, ends=-1)
        with listening(TLS.kit(pki.server)) as server, Grpc(tls=TLS.kit(kit)).connect(server.address) as connection:
            message, answers = Beat(Session("run", "a", "token"), Status.IDLE), []
            with pytest.raises(FedcoreError):
                connection.request(message, timeout=20.0)
            forged(pki.authority, kit, role="client")
            for _ in range(2):
                try:
                    answers.append(connection.request(message, timeout=20.0).message)
                except ConnectionLost:
                    continue
            assert BeatReply(True) in answers


def test_no_private_key_is_in_anything_that_is_said(pki, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    said = [repr(Grpc(tls=TLS.kit(pki.a))), repr(TLS.kit(pki.server))]
    federation(["a", "b", "c"], lambda name: TLS.kit(getattr(pki, name)), TLS.kit(pki.server))
    with listening(TLS.kit(pki.server)) as server:
        for what in (*TestTheClientsCertificate.TURNED_AWAY, "operator"):
            try:
                start_client(server.address, Adds(1), "a", transport=Grpc(tls=shown(pki, what)), patience=0.0)
            except FedcoreError as error:
                said.append(f"{error!r} {error} {error.__cause__!r}")
        swapped = TLS(str(pki.a / "authority.pem"), str(pki.a / "certificate.pem"), str(pki.b / "key.pem"))
        with pytest.raises(FedcoreError) as info:
            beat(server.address, swapped)
        said.append(f"{info.value!r} {info.value.__cause__!r}")
    heard = "\n".join([*said, caplog.text, *capfd.readouterr()])
    keys = [text for path in pki.folder.rglob("*.*") if path.is_file() and "PRIVATE" in (text := path.read_text())]
    hidden = {line for key in keys for line in key.splitlines() if not line.startswith("-----")}
    assert len(hidden) > 30
    assert len(caplog.records) > 5
    assert not [line for line in hidden if line in heard]
