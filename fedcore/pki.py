"""A small certificate authority for one federation, on the library ``cryptography``.

A folder holds the authority; what each member needs is one more folder, a *kit*, which :meth:`fedcore.TLS.kit` reads. Keys are
ECDSA over P-256. Who a certificate is for stands in it as ``urn:fedcore:ROLE:NAME`` (a URI among its alternative names,
RFC 5280 section 4.2.1.6).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedcore.errors import ConfigError, MissingDependency
from fedcore.private import append, is_private, make_folder, read_key, write
from fedcore.security import AUTHORITY, CERTIFICATE, KEY, Role, urn
from fedcore.values import check_client_id

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_REQUEST, _ISSUED, _REVOKED, _KITS, _AUTHORITY_KEY = "request.pem", "issued.jsonl", "revoked.txt", "kits", "authority.key"
_SKEW = timedelta(hours=1)  # clocks differ: a certificate is valid from a little before it was made
_LONGEST_NAME = 48
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")


@dataclass(frozen=True)
class Issued:
    """A certificate that was issued.

    Attributes:
        role: what its bearer may do.
        name: who that is.
        fingerprint: SHA-256 of the certificate.
        until: when it ends, in ISO 8601.
    """

    role: str
    name: str
    fingerprint: str
    until: str


class Authority:
    """The authority in a folder.

    Args:
        folder: where it is.

    Raises:
        ConfigError: there is none, or others can read its key.
        MissingDependency: ``cryptography`` is not installed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        _library()
        key = self.folder / _AUTHORITY_KEY
        if not (self.folder / AUTHORITY).is_file() or not key.is_file():
            raise ConfigError(f"{self.folder} holds no authority: `fedcore pki init {self.folder}` makes one")
        if not is_private(key):
            raise ConfigError(f"others can read {key}: if nobody did, chmod 600 it; else begin anew")

    @classmethod
    def init(cls, folder: str | Path, name: str = "fedcore", *, days: int = 3650) -> Self:
        """Make a new authority.

        Args:
            folder: made, readable by its owner alone.
            name: what it is called in its certificates.
            days: how long it is good for.

        Raises:
            ConfigError: the folder holds something already, or an argument makes no sense.
        """
        x509, _, _ = _library()
        folder = Path(folder)
        if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
            raise ConfigError(f"an authority has a name of 1 to {_LONGEST_NAME} printable characters, not {name!r}")
        if (folder / AUTHORITY).exists():
            raise ConfigError(f"{folder} holds an authority already")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is no empty folder: an authority gets one of its own")
        key = _new_key()
        subject = _named(f"{name} authority")
        builder = _builder(subject, subject, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        make_folder(folder)
        write(folder / _REVOKED, b"")
        write(folder / _ISSUED, b"")
        write(folder / _AUTHORITY_KEY, _pem_of_key(key), private=True)
        write(folder / AUTHORITY, _pem(_signed(builder, key)))
        return cls(folder)

    @property
    def name(self) -> str:
        """What the authority is called in its certificates."""
        return str(self._certificate().subject.rfc4514_string().removeprefix("CN="))

    @property
    def until(self) -> str:
        """When the authority ends, and all that it signed with it, in ISO 8601."""
        return str(self._certificate().not_valid_after_utc.isoformat())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate: what the members of a federation can compare over the telephone."""
        return _fingerprint(self._certificate())

    @property
    def revoked(self) -> Path:
        """The file with the fingerprints that are no longer good, one a line; servers read it again when it changes."""
        return self.folder / _REVOKED

    def issue(
        self, role: Role | str, name: str, *, hosts: Sequence[str] = (), days: int = 365, request: str | Path | None = None
    ) -> Path:
        """Make a certificate, and a kit around it.

        Args:
            role: what its bearer may do.
            name: who that is; a client's is its ``client_id``.
            hosts: a server's names and addresses, as clients write them.
            days: how long it is good for.
            request: a file of :func:`make_request`; the key stays where that was made. None: the kit holds a new key.

        Returns:
            The folder of the kit.

        Raises:
            ConfigError: an argument makes no sense, the request is not one for this name, or somebody else has the name.
        """
        x509, _, oids = _library()
        role, name = _role(role), check_client_id(name)
        if (role is Role.SERVER) != bool(hosts):
            raise ConfigError("a server needs its host names and addresses, and nobody else has any")
        if other := next((each for each in self.good() if each.name == name and each.role != role), None):
            raise ConfigError(f"{name!r} is the name of a {other.role} already: take another one, or revoke it")
        kit = self.folder / _KITS / name
        key = None if request is not None else _new_key()
        public = key.public_key() if key is not None else _requested(Path(str(request)), role, name)
        authority = self._certificate()
        purpose = oids.SERVER_AUTH if role is Role.SERVER else oids.CLIENT_AUTH
        builder = _builder(_named(name), authority.subject, public, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(role, name, hosts)), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        certificate = _signed(builder.add_extension(signer, critical=False), self._key())
        if certificate.not_valid_after_utc > authority.not_valid_after_utc:
            raise ConfigError(f"the authority itself ends on {self.until[:10]}: ask for fewer days than {days}, or begin anew")
        self._note(Issued(role.value, name, _fingerprint(certificate), certificate.not_valid_after_utc.isoformat()))
        make_folder(kit)
        if key is not None:
            write(kit / KEY, _pem_of_key(key), private=True)
        else:
            (kit / KEY).unlink(missing_ok=True)  # an earlier one, which does not belong to this certificate
        write(kit / CERTIFICATE, _pem(certificate))
        write(kit / AUTHORITY, (self.folder / AUTHORITY).read_bytes())
        return kit

    def revoke(self, name: str) -> list[Issued]:
        """Have servers refuse every certificate of a name from now on; returns those that were good until now.

        Raises:
            ConfigError: there is none.
        """
        known = self.revoked.read_text().split()
        found = [each for each in self.issued() if each.name == name and each.fingerprint not in known]
        if not found:
            raise ConfigError(f"there is no certificate of {name!r} that is not revoked already")
        write(self.revoked, "".join(f"{each}\n" for each in [*known, *(one.fingerprint for one in found)]).encode())
        return found

    def issued(self) -> list[Issued]:
        """Return all certificates that were ever issued, oldest first."""
        return [Issued(**json.loads(line)) for line in (self.folder / _ISSUED).read_text().splitlines()]

    def good(self) -> list[Issued]:
        """Return the certificates that are neither revoked nor over."""
        now, revoked = datetime.now(UTC), self.revoked.read_text().split()
        return [each for each in self.issued() if each.fingerprint not in revoked and now < datetime.fromisoformat(each.until)]

    def is_revoked(self, issued: Issued) -> bool:
        """Return whether a certificate is revoked."""
        return issued.fingerprint in self.revoked.read_text().split()

    def _note(self, issued: Issued) -> None:
        """Write down what is about to be handed out, first: what is not in the book could not be revoked."""
        append(self.folder / _ISSUED, json.dumps(asdict(issued)))

    def _certificate(self) -> Any:
        x509, _, _ = _library()
        return x509.load_pem_x509_certificate((self.folder / AUTHORITY).read_bytes())

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key: ec.EllipticCurvePrivateKey = read_key(self.folder / _AUTHORITY_KEY)
        return key


def make_request(role: Role | str, name: str, folder: str | Path) -> Path:
    """Make a key that never leaves this machine, and a request for a certificate to it (a CSR, RFC 2986).

    Args:
        role: what its bearer is to be allowed.
        name: who that is.
        folder: where both go; the certificates belong beside them, when they have come back.

    Returns:
        The file of the request, for the authority.

    Raises:
        ConfigError: there is a key already.
    """
    x509, hashes, _ = _library()
    role, name, folder = _role(role), check_client_id(name), Path(folder)
    if (folder / KEY).exists():
        raise ConfigError(f"{folder / KEY} exists already; to renew a certificate, send {folder / _REQUEST} once more")
    if not folder.exists():
        make_folder(folder)
    key = _new_key()
    alternatives = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(urn(role, name))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named(name)).add_extension(alternatives, critical=False)
    write(folder / KEY, _pem_of_key(key), private=True)
    write(folder / _REQUEST, _pem(builder.sign(key, hashes.SHA256())))
    return folder / _REQUEST


def _requested(path: Path, role: Role, name: str) -> Any:
    x509, _, _ = _library()
    from cryptography.exceptions import UnsupportedAlgorithm

    strange = (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion)
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
        asked = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = asked.get_values_for_type(x509.UniformResourceIdentifier)
        signed, key = request.is_signature_valid, request.public_key()
    except (OSError, ValueError, UnsupportedAlgorithm, *strange) as error:
        raise ConfigError(f"{path} is no request for a certificate: {error}") from error
    if not signed:
        raise ConfigError(f"{path} was changed after it was signed, or made by somebody who has not got the key")
    if named != [urn(role, name)]:
        raise ConfigError(f"{path} is a request of {', '.join(map(repr, named)) or 'nobody'}, not of {urn(role, name)!r}")
    if not _is_strong(key):
        raise ConfigError(f"{path} has a key that is not taken: ECDSA over P-256 or P-384 is, and RSA of 2048 bits or more")
    return key


def _is_strong(key: Any) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048


def _role(role: Role | str) -> Role:
    try:
        found = Role(role)
    except ValueError:
        found = Role.ANONYMOUS
    if found is Role.ANONYMOUS:
        raise ConfigError(f"role {role!r} is none of: {', '.join(each for each in Role if each is not Role.ANONYMOUS)}")
    return found


def _alternatives(role: Role, name: str, hosts: Iterable[str]) -> list[Any]:
    x509, _, _ = _library()
    found: list[Any] = [x509.UniformResourceIdentifier(urn(role, name))]
    for host in hosts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))))
        except ValueError:
            if not _HOST.fullmatch(host):
                raise ConfigError(f"{host!r} is no host name or address; it is written without a port") from None
            found.append(x509.DNSName(host))
    return found


def _builder(subject: x509.Name, issuer: x509.Name, public: Any, days: int) -> x509.CertificateBuilder:
    x509, _, _ = _library()
    if not 1 <= days <= 36500:
        raise ConfigError(f"a certificate is good for 1 to 36500 days, not {days}")
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _SKEW).not_valid_after(now + timedelta(days=days))  # type: ignore[no-any-return]


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    x509, _, _ = _library()
    return x509.KeyUsage(  # type: ignore[no-any-return]
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _named(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    _, hashes, _ = _library()
    return builder.sign(key, hashes.SHA256())


def _pem(signed: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(signed.public_bytes(Encoding.PEM))


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _fingerprint(certificate: x509.Certificate) -> str:
    _, hashes, _ = _library()
    return certificate.fingerprint(hashes.SHA256()).hex()


def _library() -> tuple[Any, Any, Any]:
    """Return what is used of ``cryptography``: its x509, its hashes, and the purposes of keys."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import ExtendedKeyUsageOID
    except ImportError as error:
        raise MissingDependency("certificates need the library cryptography: pip install 'fedcore[pki]'") from error
    return x509, hashes, ExtendedKeyUsageOID
