"""Tokens: signed statements of who somebody is (JSON Web Tokens, RFC 7519), verified with the library ``PyJWT``.

A token is good if a key that the server knows signed it, with EdDSA (Ed25519) or ES256; if it has all of what follows,
is by the right issuer, for the right audience, and valid now; and if it is not revoked:

    header: alg, kid
    claims: iss, aud, iat, exp (and nbf, if it is there), jti, sub (whose it is; a client's is its client_id) and
            role (client, operator or admin)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedcore.errors import ConfigError, MissingDependency, Unauthenticated
from fedcore.private import is_private
from fedcore.security import Role
from fedcore.values import check_client_id
from fedcore.watched import Watched

LARGEST = 4096
"""Bytes of the largest token that is looked at."""

KEYS, REVOKED, ISSUER = "keys.json", "revoked.txt", "issuer.json"
"""What a server needs of a folder that ``fedcore keys init`` made."""

ROLES = (Role.CLIENT, Role.OPERATOR, Role.ADMIN)
_REQUIRED = ["iss", "aud", "iat", "exp", "jti", "sub", "role"]
_ALGORITHMS = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256"}  # by the kind of the key, never by what a token says
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_JTI = re.compile(r"[\x21-\x7e]{1,128}")
_LARGEST_LEEWAY = 300.0  # seconds


@dataclass(frozen=True)
class Tokens:
    """Which tokens a server believes. The files are read again when they change.

    Attributes:
        keys: a file of public keys, a JSON Web Key Set (RFC 7517), each with its ``kid``; those that are neither Ed25519 nor
            P-256 are passed over.
        issuer: who must have issued a token, its ``iss``.
        audience: whom it must be for, its ``aud``.
        revoked: a file of the ids (``jti``) of tokens that are no longer good, one a line.
        leeway: seconds that the clocks of issuer and server may differ: a token is good for so much longer, and sooner.

    Raises:
        ConfigError: a file is not there, or a value makes no sense.
    """

    keys: str
    issuer: str
    audience: str
    revoked: str | None = None
    leeway: float = 30.0

    def __post_init__(self) -> None:
        for name in ("issuer", "audience"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ConfigError(f"Tokens.{name} must be a text that every token has, not {getattr(self, name)!r}")
        for name in ("keys", "revoked"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"Tokens.{name}: {path!r} is no file")
        if not 0 <= self.leeway <= _LARGEST_LEEWAY:
            raise ConfigError(f"Tokens.leeway must be from 0 to {_LARGEST_LEEWAY:g} seconds, not {self.leeway!r}")

    @classmethod
    def of(cls, folder: str | Path) -> Self:
        """Return what a folder says that ``fedcore keys init`` made; a server needs no more of it than three files.

        Raises:
            ConfigError: it is no such folder.
        """
        own = Path(folder)
        try:
            said = json.loads((own / ISSUER).read_bytes())
            issuer, audience = said["issuer"], said["audience"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{own / ISSUER} does not say whose tokens these are; `fedcore keys init` makes it") from error
        return cls(str(own / KEYS), issuer, audience, str(own / REVOKED))


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says.

    Attributes:
        name: whose it is.
        role: what that one may do.
        jti: the token's own id.
        kid: the id of the key that signed it.
    """

    name: str
    role: Role
    jti: str
    kid: str


class Verifier:
    """Tells good tokens from others.

    Args:
        tokens: which are good.

    Raises:
        ConfigError: the files cannot be used.
        MissingDependency: ``PyJWT`` is not installed.
    """

    def __init__(self, tokens: Tokens):
        self._jwt, self._tokens = library(), tokens
        self._keys = Watched(tokens.keys, _public_keys)
        self._revoked = None if tokens.revoked is None else Watched(tokens.revoked, _words)

    def refresh(self) -> bool:
        """Read the files again if they have changed, and return whether any had."""
        changed = [each.refresh() for each in (self._keys, self._revoked) if each is not None]
        return any(changed)

    def verify(self, token: str) -> Claims:
        """Return what a token says. Whether it was revoked is asked for itself, with :meth:`is_revoked`.

        Raises:
            Unauthenticated: it is not good; the text says why, and nothing of what is in it.
        """
        jwt, want = self._jwt, self._tokens
        if len(token) > LARGEST:
            raise _bad(f"it has {len(token)} characters, and {LARGEST} are the most that are looked at")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            if kid not in self._keys.value:
                raise _bad("its key (kid) is none of those that this server knows")
            algorithm, key = self._keys.value[kid]
            claims = jwt.decode(
                token, key, algorithms=[algorithm], audience=want.audience, issuer=want.issuer, leeway=want.leeway,
                options={"require": _REQUIRED},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _bad(str(error)) from None
        return _sensible(claims, kid)

    def is_revoked(self, token: Claims) -> bool:
        """Return whether a token that was good is not any more: it was revoked, or the key that signed it was removed."""
        return token.kid not in self._keys.value or (self._revoked is not None and token.jti in self._revoked.value)


def _sensible(claims: dict[str, Any], kid: str) -> Claims:
    role, jti = claims["role"], claims["jti"]
    if role not in ROLES:
        raise _bad("its role is none that somebody can have")
    if not _JTI.fullmatch(jti):
        raise _bad("its id (jti) has to be 1 to 128 printable characters without spaces")
    try:
        return Claims(check_client_id(claims["sub"]), Role(role), jti, kid)
    except ConfigError:
        raise _bad("it is for a name (sub) that nobody can have") from None


def _bad(why: str) -> Unauthenticated:
    return Unauthenticated(f"this token is not good: {why}")


def own_token(path: str | Path) -> Watched[str]:
    """Return the token in a file of its bearer's, to be read again when the file changes.

    Raises:
        ConfigError: there is none in it, or others can read it.
    """
    return Watched(path, _token)


def _token(path: Path) -> str:
    if not is_private(path):
        raise ValueError("others can read it; chmod 600 it")
    text = path.read_bytes().strip().decode("ascii", "replace")
    if len(text) > LARGEST or not _COMPACT.fullmatch(text):
        raise ValueError("it holds no token")
    return text


def _public_keys(path: Path) -> dict[str, tuple[str, Any]]:
    """Return algorithms and keys by ``kid``."""
    jwt, found = library(), json.loads(path.read_bytes())
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError("it is no set of JSON Web Keys (RFC 7517)")
    keys: dict[str, tuple[str, Any]] = {}
    for each in listed:
        kid, algorithm = each.get("kid"), _ALGORITHMS.get((str(each.get("kty")), str(each.get("crv"))))
        if algorithm is None:
            continue
        if "d" in each:
            raise ValueError("it holds a private key; a server needs public ones alone")
        if not isinstance(kid, str) or kid in keys:
            raise ValueError("each of its keys needs a kid of its own")
        try:
            keys[kid] = algorithm, jwt.PyJWK(each, algorithm).key
        except jwt.PyJWTError as error:
            raise ValueError(f"key {kid!r} is broken: {error}") from error
    if not keys:
        raise ValueError("no key is in it that can be used: Ed25519 and P-256 are")
    return keys


def _words(path: Path) -> frozenset[str]:
    return frozenset(path.read_text().split())


def library() -> Any:
    """Return ``PyJWT``, with what it verifies and signs with.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import cryptography  # noqa: F401 - without it PyJWT knows neither algorithm
        import jwt
    except ImportError as error:
        raise MissingDependency("tokens need the libraries PyJWT and cryptography: pip install 'fedcore[tokens]'") from error
    return jwt
