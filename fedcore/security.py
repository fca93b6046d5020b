"""Who is at the other end, as the transport verified it, never as a message claims; and what each may do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from fedcore.errors import ConfigError
from fedcore.private import is_private

AUTHORITY, CERTIFICATE, KEY = "authority.pem", "certificate.pem", "key.pem"
"""The files of a kit."""

_HERE = ("memory:", "unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")
_URN = re.compile(r"urn:fedcore:(client|operator|admin|server):([A-Za-z0-9][A-Za-z0-9._-]{0,63})")


class Role(StrEnum):
    """What somebody may do: take part, look on, direct, or run the federation."""

    ANONYMOUS = "anonymous"
    CLIENT = "client"
    OPERATOR = "operator"
    ADMIN = "admin"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Identity:
    """The peer of one request.

    Attributes:
        address: where it speaks from, for the log.
        name: who it is, as the transport verified it, or "".
        role: what it may do; None where the transport verifies nobody, and trusts whoever reaches it.
        fingerprint: SHA-256 of its certificate in hexadecimal, or "".
        problem: why it is nobody, though it tried to be somebody, or "".
        revoked: what it has shown that is no longer good, such as "certificate", or "".
        by_reference: the peer lives in this process and may be handed objects instead of bytes.
    """

    address: str = ""
    name: str = ""
    role: Role | None = None
    fingerprint: str = ""
    problem: str = ""
    revoked: str = ""
    by_reference: bool = False

    @property
    def is_here(self) -> bool:
        """Whether it speaks from this machine."""
        return self.address.startswith(_HERE)


@dataclass(frozen=True)
class TLS:
    """The certificates of one end, as PEM files; they are read again when they change.

    Attributes:
        authority: certificates of those who sign the other end's; a server without it takes clients without certificates,
            who need tokens then.
        certificate: the own chain; clients with tokens have none.
        key: the key that belongs to it.
        revoked: a file of fingerprints (SHA-256, hexadecimal, one a line) that are no longer good; a server's.

    Raises:
        ConfigError: a file is not there, or others can read the key.
    """

    authority: str | None = None
    certificate: str | None = None
    key: str | None = field(default=None, repr=False)
    revoked: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS: a certificate and its key belong together")
        if self.certificate is None and self.authority is None:
            raise ConfigError("TLS needs the authority that signed the other end's certificate, or an own one, or both")
        for name in ("authority", "certificate", "key", "revoked"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"TLS.{name}: {path!r} is no file")
        if self.key is not None and not is_private(Path(self.key)):
            raise ConfigError(f"TLS.key: others can read {self.key!r}; chmod 600 it")

    @classmethod
    def kit(cls, folder: str | Path, *, revoked: str | Path | None = None) -> Self:
        """Return what a folder holds that ``fedcore pki issue`` made.

        Args:
            folder: the kit.
            revoked: for a server, the authority's file of revoked certificates.
        """
        own = Path(folder)
        return cls(str(own / AUTHORITY), str(own / CERTIFICATE), str(own / KEY), None if revoked is None else str(revoked))


def urn(role: Role, name: str) -> str:
    """Return how a certificate says who it is for."""
    return f"urn:fedcore:{role.value}:{name}"


def named(alternatives: list[str]) -> tuple[Role, str]:
    """Return who a certificate is for, by its alternative names; one that does not say so is nobody's.

    >>> named(["urn:fedcore:client:hospital-a", "localhost"])
    (<Role.CLIENT: 'client'>, 'hospital-a')
    """
    found = [match for text in alternatives if (match := _URN.fullmatch(text))]
    return (Role(found[0][1]), found[0][2]) if len(found) == 1 else (Role.ANONYMOUS, "")
