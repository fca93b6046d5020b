"""Tokens that anybody may show. One byte says whether one comes as it is, or is signed first by a key that the server knows."""

from __future__ import annotations

import atexit
import base64
import hashlib
import hmac
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fields import picked
from layers import turned
from oracle import Target

from fedcore.tokens import Tokens, Verifier

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))  # no secret: a test's
_PUBLIC = _KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
_HEADER = {"alg": "EdDSA", "kid": "key-1", "typ": "JWT"}
_CLAIMS = {
    "iss": "fedcore:test", "aud": "federation", "iat": 1_700_000_000, "exp": 4_000_000_000, "jti": "token-1",
    "sub": "hospital-1", "role": "client",
}  # fmt: skip
_RAW, _SIGNED = range(2)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def _verifier() -> Verifier:
    folder = Path(tempfile.mkdtemp(prefix="fedcore-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    key = {"kty": "OKP", "crv": "Ed25519", "kid": "key-1", "x": _text(_PUBLIC)}
    (folder / "keys.json").write_text(json.dumps({"keys": [key]}))
    return Verifier(Tokens(str(folder / "keys.json"), "fedcore:test", "federation"))


def _signed(header: Any, claims: Any) -> str:
    parts = f"{_text(json.dumps(header).encode())}.{_text(json.dumps(claims).encode())}"
    named = header.get("alg") if isinstance(header, dict) else None
    if named == "HS256":  # with the public key for a secret
        return f"{parts}.{_text(hmac.digest(_PUBLIC, parts.encode(), hashlib.sha256))}"
    return f"{parts}.{'' if named == 'none' else _text(_KEY.sign(parts.encode()))}"


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield a good token of each role, and such as must not be good."""
    yield "raw", bytes([_RAW]) + _signed(_HEADER, _CLAIMS).encode()
    for role in ("client", "operator", "admin"):
        yield role, bytes([_SIGNED]) + json.dumps([_HEADER, _CLAIMS | {"role": role}]).encode()
    for algorithm in ("none", "HS256"):
        yield f"refused-{algorithm}", bytes([_SIGNED]) + json.dumps([_HEADER | {"alg": algorithm}, _CLAIMS]).encode()
    yield "refused-deep", bytes([_RAW]) + f"{_text(b'[' * 3000)}.e30.e30".encode()


def run(data: bytes) -> None:
    """Verify one."""
    form, rest = picked((_RAW, _SIGNED), data[0] if data else 0), data[1:]
    if form == _RAW:
        token = rest.decode("ascii", "replace")
    else:
        try:
            header, claims = json.loads(rest)
            token = _signed(header, claims)
        except (ValueError, TypeError, RecursionError):  # nothing that could be signed
            return
    found = _verifier().verify(token)
    if (found.kid, found.name) != ("key-1", "hospital-1") and form == _RAW:
        raise AssertionError("somebody without the key made a token")


def mutate(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    """Change a value, or a part of the text."""
    form, rest = picked((_RAW, _SIGNED), data[0] if data else 0), data[1:]
    try:
        if form == _SIGNED:
            return data[:1] + json.dumps(turned(json.loads(rest), random, havoc)).encode()
        parts = rest.split(b".")
        at = random.randrange(len(parts))
        inner = base64.urlsafe_b64decode(parts[at] + b"=" * (-len(parts[at]) % 4))
        parts[at] = _text(havoc(inner, random)).encode()
        return data[:1] + b".".join(parts)
    except (ValueError, TypeError, RecursionError):  # it was changed before
        return data[:1] + havoc(rest, random)


TARGET = Target("token", seeds, run, mutate)
