"""The authority: what it makes, and what it refuses to sign."""

import os
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedcore.errors import ConfigError
from fedcore.pki import Authority, make_request
from fedcore.security import TLS

ROLES = ("server", "client", "operator", "admin")


@pytest.fixture
def authority(tmp_path):
    return Authority.init(tmp_path / "authority", "test")


@pytest.fixture
def free_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def hosts(role):
    return ["fed.example.org", "10.0.0.7", "::1"] if role == "server" else []


def certificate(kit):
    return x509.load_pem_x509_certificate((kit / "certificate.pem").read_bytes())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def policy(authority):
    return PolicyBuilder().store(Store([x509.load_pem_x509_certificate((authority.folder / "authority.pem").read_bytes())]))


def request_of(*names, key=None, folder, signer=None):
    """Write a request for a certificate that may be none that fedcore would make."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    path = folder / "other.pem"
    path.write_bytes(builder.sign(signer or key, algorithm).public_bytes(serialization.Encoding.PEM))
    return path


def uri(text):
    return x509.UniformResourceIdentifier(text)


class TestCertificates:
    @pytest.mark.parametrize("role", ROLES)
    def test_say_who_they_are_for_and_what_they_are_good_for(self, authority, role):
        made = certificate(authority.issue(role, "somebody", hosts=hosts(role)))
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"urn:fedcore:{role}:somebody"]
        assert names.get_values_for_type(x509.DNSName) == hosts(role)[:1]
        assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == hosts(role)[1:]
        purposes = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        wanted = ExtendedKeyUsageOID.SERVER_AUTH if role == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        assert list(purposes) == [wanted]
        assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert made.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=50)

    @pytest.mark.parametrize("role", ROLES[1:])
    def test_of_members_verify(self, authority, role):
        made = certificate(authority.issue(role, "somebody"))
        assert policy(authority).build_client_verifier().verify(made, []).chain[0] == made

    @pytest.mark.parametrize("role", ROLES[1:])
    def test_of_members_are_no_servers(self, authority, role):
        made = certificate(authority.issue(role, "somebody"))
        with pytest.raises(VerificationError):
            policy(authority).build_server_verifier(x509.DNSName("somebody")).verify(made, [])

    def test_of_servers_verify_for_their_hosts_alone(self, authority):
        made = certificate(authority.issue("server", "hub", hosts=["fed.example.org", "[::1]"]))
        policy(authority).build_server_verifier(x509.DNSName("fed.example.org")).verify(made, [])
        with pytest.raises(VerificationError):
            policy(authority).build_server_verifier(x509.DNSName("other.example.org")).verify(made, [])
        with pytest.raises(VerificationError):
            policy(authority).build_client_verifier().verify(made, [])

    def test_of_another_authority_do_not_verify_though_it_has_the_same_name(self, authority, tmp_path):
        other = Authority.init(tmp_path / "other", "test")
        made = certificate(other.issue("client", "somebody"))
        with pytest.raises(VerificationError):
            policy(authority).build_client_verifier().verify(made, [])

    def test_sign_no_others(self, authority):
        own = x509.load_pem_x509_certificate((authority.folder / "authority.pem").read_bytes())
        assert own.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
        kit = authority.issue("client", "somebody")
        (authority.folder / "authority.pem").write_bytes((kit / "certificate.pem").read_bytes())
        (authority.folder / "authority.key").write_bytes((kit / "key.pem").read_bytes())
        below = certificate(authority.issue("admin", "boss", days=30))
        chain = [certificate(kit)]
        (authority.folder / "authority.pem").write_bytes((kit / "authority.pem").read_bytes())
        with pytest.raises(VerificationError):
            policy(authority).build_client_verifier().verify(below, chain)

    @pytest.mark.parametrize("days", [1, 365, 3649])
    def test_last_as_long_as_asked(self, authority, days):
        made = certificate(authority.issue("client", "a", days=days))
        assert timedelta(days) - timedelta(minutes=5) < made.not_valid_after_utc - datetime.now(UTC) <= timedelta(days)

    @pytest.mark.parametrize("days", [0, -1, 36501, 10**9])
    def test_last_no_other_time(self, authority, tmp_path, days):
        with pytest.raises(ConfigError, match="1 to 36500 days"):
            authority.issue("client", "a", days=days)
        with pytest.raises(ConfigError, match="1 to 36500 days"):
            Authority.init(tmp_path / "other", days=days)
        assert authority.issued() == []
        assert not (tmp_path / "other").exists()

    def test_end_with_their_authority(self, tmp_path):
        authority = Authority.init(tmp_path / "short", days=30)
        with pytest.raises(ConfigError, match=f"ends on {authority.until[:10]}: ask for fewer days than 365"):
            authority.issue("client", "a")
        assert authority.issued() == []
        authority.issue("client", "a", days=29)

    def test_have_fingerprints_that_servers_see(self, authority):
        made = certificate(authority.issue("client", "a"))
        assert [each.fingerprint for each in authority.issued()] == [made.fingerprint(hashes.SHA256()).hex()]


class TestNames:
    @pytest.mark.parametrize("name", ["", "a" * 65, "../../outside", "/abs", "a/b", "..", "a\0b", "a b", "ü", "-x", "a\n"])
    def test_that_are_none(self, authority, tmp_path, name):
        for call in (lambda: authority.issue("client", name), lambda: make_request("client", name, tmp_path / "mine")):
            with pytest.raises(ConfigError):
                call()
        assert authority.issued() == []
        assert not (authority.folder / "kits").exists()
        assert not (tmp_path / "mine").exists()

    @pytest.mark.parametrize("role", ["anonymous", "root", "", "Client"])
    def test_roles_that_are_none(self, authority, role):
        with pytest.raises(ConfigError, match="is none of: client, operator, admin, server"):
            authority.issue(role, "a")

    @pytest.mark.parametrize("host", ["", "host:5051", "https://host", "a b", "-a.org", "a..b", "*.org", "ü.org", "x" * 64])
    def test_hosts_that_are_none(self, authority, host):
        with pytest.raises(ConfigError, match="no host name or address"):
            authority.issue("server", "hub", hosts=[host])
        assert authority.issued() == []

    @pytest.mark.parametrize("name", ["", "x" * 49, "a\nb"])
    def test_authorities_that_are_called_nothing(self, tmp_path, name):
        with pytest.raises(ConfigError, match="1 to 48 printable characters"):
            Authority.init(tmp_path / "new", name)

    def test_a_server_has_hosts_and_nobody_else(self, authority):
        for role, given in (("server", []), ("client", ["localhost"]), ("admin", ["localhost"])):
            with pytest.raises(ConfigError, match="a server needs its host names"):
                authority.issue(role, "a", hosts=given)

    def test_are_of_one_role_at_a_time(self, authority):
        kit = authority.issue("client", "a")
        before = (kit / "certificate.pem").read_bytes()
        with pytest.raises(ConfigError, match="'a' is the name of a client already"):
            authority.issue("admin", "a")
        assert (kit / "certificate.pem").read_bytes() == before
        authority.revoke("a")
        assert authority.issue("admin", "a") == kit


class TestFolders:
    def test_are_private_whatever_the_umask(self, tmp_path, free_umask):
        authority = Authority.init(tmp_path / "authority")
        kit = authority.issue("client", "a")
        request = make_request("client", "b", tmp_path / "b")
        (tmp_path / "b" / "nothing").touch()
        assert [mode(each) for each in (authority.folder, kit, request.parent)] == [0o700] * 3
        keys = [path for path in tmp_path.rglob("*") if b"PRIVATE" in (path.read_bytes() if path.is_file() else b"")]
        assert sorted(path.name for path in keys) == ["authority.key", "key.pem", "key.pem"]
        assert [mode(path) for path in keys] == [0o600] * 3
        assert not list(tmp_path.rglob(".*")), "files are left that were only on their way"

    def test_that_others_may_look_into_are_closed_when_a_kit_is_renewed(self, authority, free_umask):
        kit = authority.issue("client", "a")
        kit.chmod(0o755)
        (kit / "key.pem").chmod(0o644)
        authority.issue("client", "a")
        assert (mode(kit), mode(kit / "key.pem")) == (0o700, 0o600)

    def test_hold_one_authority(self, authority):
        before = {path: path.read_bytes() for path in authority.folder.iterdir()}
        with pytest.raises(ConfigError, match="holds an authority already"):
            Authority.init(authority.folder)
        assert {path: path.read_bytes() for path in authority.folder.iterdir()} == before

    def test_with_other_things_in_them_get_none(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        before = mode(tmp_path)
        for folder in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(ConfigError, match="no empty folder"):
                Authority.init(folder)
        assert mode(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_without_an_authority(self, tmp_path):
        with pytest.raises(ConfigError, match="holds no authority: `fedcore pki init"):
            Authority(tmp_path)

    def test_whose_key_others_can_read_are_not_used(self, authority):
        (authority.folder / "authority.key").chmod(0o640)
        with pytest.raises(ConfigError, match=r"others can read .*authority\.key"):
            Authority(authority.folder)

    def test_that_are_moved_stay_kits(self, authority, tmp_path):
        moved = authority.issue("client", "a").rename(tmp_path / "elsewhere")
        assert TLS.kit(moved).certificate == str(moved / "certificate.pem")

    def test_a_kit_whose_key_others_can_read_is_not_used(self, authority):
        kit = authority.issue("client", "a")
        (kit / "key.pem").chmod(0o644)
        with pytest.raises(ConfigError, match=r"TLS\.key: others can read"):
            TLS.kit(kit)


class TestRequests:
    def test_the_key_stays_where_it_was_made(self, authority, tmp_path):
        request = make_request("client", "a", tmp_path / "mine")
        kit = authority.issue("client", "a", request=request)
        assert sorted(path.name for path in kit.iterdir()) == ["authority.pem", "certificate.pem"]
        for name in ("authority.pem", "certificate.pem"):
            (tmp_path / "mine" / name).write_bytes((kit / name).read_bytes())
        TLS.kit(tmp_path / "mine")
        key = serialization.load_pem_private_key((tmp_path / "mine" / "key.pem").read_bytes(), None)
        assert certificate(kit).public_key() == key.public_key()
        policy(authority).build_client_verifier().verify(certificate(kit), [])

    def test_may_be_sent_again_to_renew(self, authority, tmp_path):
        request = make_request("client", "a", tmp_path / "mine")
        first, second = (certificate(authority.issue("client", "a", request=request)) for _ in range(2))
        assert first.public_key() == second.public_key()
        assert first.serial_number != second.serial_number

    def test_leave_no_key_in_the_kit_that_is_not_theirs(self, authority, tmp_path):
        kit = authority.issue("client", "a")
        authority.issue("client", "a", request=make_request("client", "a", tmp_path / "mine"))
        assert not (kit / "key.pem").exists()

    def test_of_servers(self, authority, tmp_path):
        request = make_request("server", "hub", tmp_path / "mine")
        kit = authority.issue("server", "hub", hosts=["fed.example.org"], request=request)
        policy(authority).build_server_verifier(x509.DNSName("fed.example.org")).verify(certificate(kit), [])

    def test_never_replace_a_key(self, authority, tmp_path):
        make_request("client", "a", tmp_path / "mine")
        before = (tmp_path / "mine" / "key.pem").read_bytes()
        with pytest.raises(ConfigError, match="exists already; to renew"):
            make_request("client", "a", tmp_path / "mine")
        assert (tmp_path / "mine" / "key.pem").read_bytes() == before

    def test_leave_a_folder_that_was_there_as_it_was(self, tmp_path):
        tmp_path.chmod(0o755)
        make_request("client", "a", tmp_path)
        assert (mode(tmp_path), mode(tmp_path / "key.pem")) == (0o755, 0o600)

    @pytest.mark.parametrize(("role", "name"), [("client", "b"), ("admin", "a"), ("operator", "a"), ("client", "A")])
    def test_of_another_name_or_role_are_refused(self, authority, tmp_path, role, name):
        request = make_request(role, name, tmp_path / "mine")
        with pytest.raises(ConfigError, match=f"'urn:fedcore:{role}:{name}', not of 'urn:fedcore:client:a'"):
            authority.issue("client", "a", request=request)
        assert authority.issued() == []

    @pytest.mark.parametrize(
        "names",
        [
            [uri("urn:fedcore:client:a"), uri("urn:fedcore:admin:a")],
            [uri("urn:fedcore:client:a"), uri("urn:fedcore:client:a")],
            [uri("urn:fedcore:client:a\x00")],
            [x509.DNSName("a")],
        ],
    )
    def test_of_several_or_none_are_refused(self, authority, tmp_path, names):
        with pytest.raises(ConfigError, match="not of 'urn:fedcore:client:a'"):
            authority.issue("client", "a", request=request_of(*names, folder=tmp_path))

    def test_what_else_they_ask_for_is_not_given(self, authority, tmp_path):
        request = request_of(uri("urn:fedcore:client:a"), x509.DNSName("fed.example.org"), folder=tmp_path)
        made = certificate(authority.issue("client", "a", request=request))
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [uri("urn:fedcore:client:a")]

    def test_with_a_forged_signature_are_refused(self, authority, tmp_path):
        request = make_request("client", "a", tmp_path / "mine")
        der = bytearray(x509.load_pem_x509_csr(request.read_bytes()).public_bytes(serialization.Encoding.DER))
        der[-1] ^= 1
        forged = x509.load_der_x509_csr(bytes(der))
        assert not forged.is_signature_valid
        request.write_bytes(forged.public_bytes(serialization.Encoding.PEM))
        with pytest.raises(ConfigError, match="was changed after it was signed"):
            authority.issue("client", "a", request=request)
        assert authority.issued() == []

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param(lambda: ec.generate_private_key(ec.SECP224R1()), id="P-224"),
            pytest.param(lambda: rsa.generate_private_key(65537, 1024), id="RSA-1024"),
            pytest.param(ed25519.Ed25519PrivateKey.generate, id="Ed25519"),
        ],
    )
    def test_with_keys_that_are_weak_or_not_spoken_are_refused(self, authority, tmp_path, key):
        with pytest.raises(ConfigError, match="has a key that is not taken"):
            authority.issue("client", "a", request=request_of(uri("urn:fedcore:client:a"), key=key(), folder=tmp_path))

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="P-384"),
            pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="RSA-2048"),
        ],
    )
    def test_with_other_keys_are_signed(self, authority, tmp_path, key):
        request = request_of(uri("urn:fedcore:client:a"), key=key(), folder=tmp_path)
        policy(authority).build_client_verifier().verify(certificate(authority.issue("client", "a", request=request)), [])

    @pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 1000, b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
    def test_that_are_none(self, authority, tmp_path, content):
        (tmp_path / "request").write_bytes(content)
        for path in (tmp_path / "request", tmp_path / "not there", tmp_path):
            with pytest.raises(ConfigError, match="is no request for a certificate"):
                authority.issue("client", "a", request=path)

    def test_without_a_name(self, authority, tmp_path):
        with pytest.raises(ConfigError, match="is no request for a certificate"):
            authority.issue("client", "a", request=request_of(folder=tmp_path))


class TestRevoking:
    def test_all_of_a_name(self, authority):
        for name in ("a", "a", "b"):
            authority.issue("client", name)
        first, second, other = authority.issued()
        assert authority.revoke("a") == [first, second]
        assert authority.revoked.read_text().split() == [first.fingerprint, second.fingerprint]
        assert [authority.is_revoked(each) for each in (first, second, other)] == [True, True, False]
        assert authority.good() == [other]
        authority.revoke("b")
        assert [authority.is_revoked(each) for each in (first, second, other)] == [True, True, True]

    def test_what_is_issued_later_is_good(self, authority):
        authority.issue("client", "a")
        authority.revoke("a")
        authority.issue("client", "a")
        assert [authority.is_revoked(each) for each in authority.issued()] == [True, False]
        assert authority.revoke("a") == authority.issued()[1:]

    def test_what_is_not_there(self, authority):
        with pytest.raises(ConfigError, match="no certificate of 'a'"):
            authority.revoke("a")
        authority.issue("client", "a")
        authority.revoke("a")
        with pytest.raises(ConfigError, match="that is not revoked already"):
            authority.revoke("a")

    def test_a_certificate_is_in_the_book_before_anybody_has_it(self, authority, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fedcore.pki.write", full)
        with pytest.raises(OSError, match="No space"):
            authority.issue("client", "a")
        assert [each.name for each in authority.issued()] == ["a"]


def test_a_kit_carries_no_key_but_its_own(authority):
    kits = [authority.issue("client", name) for name in ("a", "b")]
    own = (authority.folder / "authority.key").read_text()
    for kit in kits:
        texts = [path.read_text() for path in kit.iterdir()]
        assert sum("PRIVATE KEY" in text for text in texts) == 1
        assert own not in texts
