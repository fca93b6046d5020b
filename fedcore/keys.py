"""A small issuer of tokens for one federation, in a folder: who has its ``signing.key`` can make tokens for anybody.

Tokens are signed with Ed25519. Beside the key lie the three files that a server reads, ``keys.json`` with the public keys,
``issuer.json`` and ``revoked.txt``, none of them secret; and ``issued.jsonl``, the book of all that was issued.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from fedcore.errors import ConfigError
from fedcore.private import append, is_private, make_folder, read_key, write
from fedcore.security import Role
from fedcore.tokens import ISSUER, KEYS, REVOKED, ROLES, library
from fedcore.values import check_client_id

_SIGNING_KEY, _ISSUED = "signing.key", "issued.jsonl"
_LONGEST_NAME = 64
_MOST_DAYS = 3650


@dataclass(frozen=True)
class Issued:
    """A token that was issued; not the token itself.

    Attributes:
        role: what its bearer may do.
        name: who that is.
        jti: the token's id.
        kid: the id of the key that signed it.
        until: when it ends, in ISO 8601.
    """

    role: str
    name: str
    jti: str
    kid: str
    until: str


class Issuer:
    """The issuer in a folder.

    Args:
        folder: where it is.

    Raises:
        ConfigError: there is none, or others can read its key.
        MissingDependency: ``PyJWT`` or ``cryptography`` is not installed.
    """

    def __init__(self, folder: str | Path):
        self.folder, self._jwt = Path(folder), library()
        key = self.folder / _SIGNING_KEY
        if not key.is_file() or not (self.folder / ISSUER).is_file():
            raise ConfigError(f"{self.folder} holds no issuer of tokens: `fedcore keys init {self.folder}` makes one")
        if not is_private(key):
            raise ConfigError(f"others can read {key}: if nobody did, chmod 600 it; else begin anew")
        said = json.loads((self.folder / ISSUER).read_bytes())
        self.name, self.audience = str(said["issuer"]), str(said["audience"])

    @classmethod
    def init(cls, folder: str | Path, name: str = "fedcore", *, audience: str | None = None) -> Self:
        """Make a new issuer, with its first key.

        Args:
            folder: made, readable by its owner alone.
            name: what it is called in its tokens (``iss``).
            audience: which federation its tokens are for (``aud``); None: the issuer's name.

        Raises:
            ConfigError: the folder holds something already, or an argument makes no sense.
        """
        library()
        folder = Path(folder)
        audience = name if audience is None else audience
        for text in (name, audience):
            if not (0 < len(text) <= _LONGEST_NAME and text.isprintable()):
                raise ConfigError(f"issuer and audience are 1 to {_LONGEST_NAME} printable characters, not {text!r}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is no empty folder: an issuer gets one of its own")
        make_folder(folder)
        write(folder / REVOKED, b"")
        write(folder / _ISSUED, b"")
        _renew_key(folder, [])
        write(folder / ISSUER, json.dumps({"issuer": name, "audience": audience}).encode())
        return cls(folder)

    @property
    def kid(self) -> str:
        """The id of the key that signs."""
        return _kid(self._key().public_key())

    @property
    def kids(self) -> list[str]:
        """The ids of the keys whose tokens servers believe, oldest first."""
        return [str(each["kid"]) for each in self._public()]

    @property
    def revoked(self) -> Path:
        """The file with the ids of the tokens that are no longer good; servers read it again when it changes."""
        return self.folder / REVOKED

    def issue(self, role: Role | str, name: str, out: str | Path, *, days: int = 30) -> Issued:
        """Make a token.

        Args:
            role: what its bearer may do: client, operator or admin.
            name: who that is; a client's is its ``client_id``.
            out: the file it is written to, for its owner alone; one that is there is replaced in one step.
            days: how long it is good for.

        Raises:
            ConfigError: an argument makes no sense, or somebody else has the name.
        """
        name = check_client_id(name)
        if role not in ROLES:
            raise ConfigError(f"role {str(role)!r} is none of: {', '.join(ROLES)}")
        if not 1 <= days <= _MOST_DAYS:
            raise ConfigError(f"a token is good for 1 to {_MOST_DAYS} days, not {days}")
        if other := next((each for each in self.good() if each.name == name and each.role != role), None):
            raise ConfigError(f"{name!r} is the name of a {other.role} already: take another one, or revoke it")
        now = datetime.now(UTC)
        until = now + timedelta(days=days)
        made = Issued(Role(role).value, name, secrets.token_hex(16), self.kid, until.isoformat(timespec="seconds"))
        claims = {"iss": self.name, "aud": self.audience, "iat": now, "exp": until}
        claims |= {"jti": made.jti, "sub": made.name, "role": made.role}
        token = self._jwt.encode(claims, self._key(), algorithm="EdDSA", headers={"kid": made.kid})
        append(self.folder / _ISSUED, json.dumps(asdict(made)))  # first: what is not in the book could not be revoked
        write(Path(out), f"{token}\n".encode(), private=True)
        return made

    def rotate(self) -> str:
        """Sign with a new key from now on; tokens of the older ones stay good. Returns the id of the new one."""
        return _renew_key(self.folder, self._public())

    def retire(self, kid: str) -> None:
        """Have servers refuse all tokens of a key from now on.

        Raises:
            ConfigError: there is no such key, or it is the one that signs.
        """
        if kid not in self.kids:
            raise ConfigError(f"there is no key {kid!r} (any more); there are: {', '.join(self.kids)}")
        if kid == self.kid:
            raise ConfigError(f"{kid} is the key that signs: rotate first, and give everybody a new token")
        _publish(self.folder, [each for each in self._public() if each["kid"] != kid])

    def revoke(self, name: str) -> list[Issued]:
        """Have servers refuse every token of a name from now on; returns those that were good until now.

        Raises:
            ConfigError: there is none.
        """
        found = [each for each in self.good() if each.name == name]
        if not found:
            raise ConfigError(f"there is no good token of {name!r}")
        known = self.revoked.read_text().split()
        write(self.revoked, "".join(f"{each}\n" for each in [*known, *(one.jti for one in found)]).encode())
        return found

    def issued(self) -> list[Issued]:
        """Return all tokens that were ever issued, oldest first."""
        return [Issued(**json.loads(line)) for line in (self.folder / _ISSUED).read_text().splitlines()]

    def good(self) -> list[Issued]:
        """Return the tokens that are good now."""
        return [each for each in self.issued() if self.state(each) == "valid"]

    def state(self, issued: Issued) -> str:
        """Return how a token stands: ``valid``, ``revoked``, ``retired`` (its key was) or ``expired``."""
        if issued.jti in self.revoked.read_text().split():
            return "revoked"
        if issued.kid not in self.kids:
            return "retired"
        return "valid" if datetime.now(UTC) < datetime.fromisoformat(issued.until) else "expired"

    def _public(self) -> list[dict[str, str]]:
        keys: list[dict[str, str]] = json.loads((self.folder / KEYS).read_bytes())["keys"]
        return keys

    def _key(self) -> Any:
        return read_key(self.folder / _SIGNING_KEY)


def _renew_key(folder: Path, others: list[dict[str, str]]) -> str:
    """Make a key that signs; the public ones are written first, so that no token is ever of a key that is not among them."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    public = library().algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    kid = _kid(key.public_key())
    _publish(folder, [*others, {**public, "kid": kid, "alg": "EdDSA", "use": "sig"}])
    write(folder / _SIGNING_KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), private=True)
    return kid


def _publish(folder: Path, keys: list[dict[str, str]]) -> None:
    write(folder / KEYS, json.dumps({"keys": keys}, indent=1).encode())


def _kid(public: Any) -> str:
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]
