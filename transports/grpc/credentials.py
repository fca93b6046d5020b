"""TLS for gRPC: credentials from PEM files that may change while they are in use, and who a peer's certificate is for."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc

from fedcore.errors import ConfigError, Unauthenticated
from fedcore.security import TLS, Identity, Role, named
from fedcore.watched import Watched, stamp

_ALTERNATIVES, _CERTIFICATE = "x509_subject_alternative_name", "x509_pem_cert"
_PROBE_TIMEOUT = 5.0  # seconds
AUTHORIZATION = "authorization"
"""The metadata that a token travels in."""


class Files:
    """The files of a :class:`~fedcore.security.TLS`, and whether they have changed since they were read.

    Args:
        tls: names them.

    Raises:
        ConfigError: they are not what they should be, or the key does not belong to the certificate.
    """

    def __init__(self, tls: TLS):
        _check(tls)
        self._paths = [Path(path) for path in (tls.authority, tls.certificate, tls.key) if path is not None]
        self._tls, self._state = tls, self._look()

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the authority, the own chain and its key."""
        self._state = self._look()
        one, two, three = (
            None if path is None else Path(path).read_bytes()
            for path in (self._tls.authority, self._tls.certificate, self._tls.key)
        )
        return one, two, three

    @property
    def changed(self) -> bool:
        """Whether they are others than were read; files that are just being replaced have not changed yet."""
        try:
            return self._look() != self._state
        except OSError:
            return False

    def _look(self) -> list[tuple[int, int, int]]:
        return [stamp(path) for path in self._paths]


class Revoked:
    """The certificates that are no longer good, as a file lists them.

    Args:
        path: the file; None: all are good.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: str | None):
        self._file = None if path is None else Watched(path, _fingerprints)

    def __contains__(self, fingerprint: str) -> bool:
        return self._file is not None and fingerprint in self._file.value

    def refresh(self) -> bool:
        """Read the file again if it has changed, and return whether it had."""
        return self._file is not None and self._file.refresh()


def _fingerprints(path: Path) -> frozenset[str]:
    return frozenset(path.read_text().replace(":", "").lower().split())


def _check(tls: TLS) -> None:
    """Check that files can be used; gRPC itself says no more than that there is no connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if tls.authority is not None:
            context.load_verify_locations(tls.authority)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key, lambda: "")  # a key with a password is none that can be used
    except (OSError, ValueError) as error:
        which = tls.authority if tls.certificate is None else f"{tls.certificate}, its key or {tls.authority}"
        raise ConfigError(f"TLS: {which} cannot be used: {error}") from error


def server_credentials(tls: TLS) -> grpc.ServerCredentials:
    """Return what a server shows its clients, and asks of them: a certificate, if it knows who signs those.

    gRPC speaks TLS 1.2 and 1.3 alone.
    """
    files = Files(tls)

    def configuration() -> grpc.ServerCertificateConfiguration:
        authority, chain, key = files.read()
        if chain is None or key is None:
            raise ConfigError("Grpc.tls: a server needs a certificate and its key")
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authority)

    def renewed() -> Any:
        return configuration() if files.changed else None

    return grpc.dynamic_ssl_server_credentials(
        configuration(), renewed, require_client_authentication=tls.authority is not None
    )


def channel_credentials(files: Files) -> grpc.ChannelCredentials:
    """Return what a client shows its server, and by what it knows it."""
    authority, chain, key = files.read()
    return grpc.ssl_channel_credentials(authority, key, chain)


def is_unwelcome(tls: TLS, target: str) -> bool:
    """Return whether a server that shows a good certificate ends the connection when it sees this end's, or that it has none.

    A gRPC server says nothing about why, so that its client cannot tell this from a server that just went away. But in TLS 1.3
    the client is done with the handshake before the server looks at its certificate: who is turned away then was looked at.
    It is asked twice, since one that goes away can do so at this very moment, but is not there any more then.
    """
    return _turns_away(tls, target) and _turns_away(tls, target)


def _turns_away(tls: TLS, target: str) -> bool:
    try:
        context = ssl.create_default_context(cafile=tls.authority)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        with _connected(target) as plain:
            secured = context.wrap_socket(plain, server_hostname=_host(target))
    except OSError:  # nobody is there, or it is not who it should be
        return False
    with secured:
        try:
            return not secured.recv(1)  # else it goes on, with its settings
        except TimeoutError:
            return False
        except OSError:
            return True


def _connected(target: str) -> socket.socket:
    if not target.startswith("unix:"):
        return socket.create_connection((_host(target), int(target.rpartition(":")[2])), _PROBE_TIMEOUT)
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(_PROBE_TIMEOUT)
        made.connect(target.removeprefix("unix:"))
    except OSError:
        made.close()
        raise
    return made


def _host(target: str) -> str:
    return "localhost" if target.startswith("unix:") else target.rpartition(":")[0].strip("[]")


def identity(address: str, found: Mapping[str, Sequence[bytes]]) -> Identity:
    """Return who a peer is, by what gRPC found in its certificate."""
    pem = found.get(_CERTIFICATE)
    if not pem:
        return Identity(address, role=Role.ANONYMOUS)
    role, name, fingerprint = _of(bytes(pem[0]), tuple(bytes(each) for each in found.get(_ALTERNATIVES, ())))
    return Identity(address, name, role, fingerprint)


def bearer(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """Return the token that a call comes with (RFC 6750), or None.

    Raises:
        Unauthenticated: what it comes with is none.
    """
    found = [value for key, value in metadata or () if key == AUTHORIZATION]
    if not found:
        return None
    scheme, _, token = found[0].partition(" ") if isinstance(found[0], str) else ("", "", "")
    if len(found) > 1 or scheme.lower() != "bearer" or not token:
        raise Unauthenticated(f"the call's {AUTHORIZATION} is not one `Bearer TOKEN`")
    return token


@lru_cache(maxsize=4096)
def _of(pem: bytes, alternatives: tuple[bytes, ...]) -> tuple[Role, str, str]:
    role, name = named([each.decode("utf-8", "replace") for each in alternatives])
    return role, name, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()
