"""Tokens: which are believed, which are not and why, and files that change meanwhile."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import ConfigError, FedcoreError, Unauthenticated
from fedcore.keys import Issuer
from fedcore.tokens import LARGEST, ROLES, Claims, Tokens, Verifier, own_token

NOW = int(time.time())
ED, EC = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
PEM = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
CLAIMS = {"iss": "me", "aud": "fed", "iat": NOW, "exp": NOW + 36000, "jti": "1", "sub": "a", "role": "client"}


def public(key, kid):
    kind = jwt.algorithms.OKPAlgorithm if isinstance(key, Ed25519PrivateKey) else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    keys, revoked = folder / "keys.json", folder / "revoked.txt"
    keys.write_text(json.dumps({"keys": [public(ED, "ed"), public(EC, "ec")]}))
    revoked.write_text("bad\n")
    return SimpleNamespace(keys=keys, revoked=revoked)


@pytest.fixture(scope="module")
def tokens(files):
    return Tokens(str(files.keys), "me", "fed", str(files.revoked))


@pytest.fixture(scope="module")
def verifier(tokens):
    return Verifier(tokens)


def signed(key=ED, algorithm="EdDSA", headers=None, **changes):
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value is not None}
    return jwt.encode(claims, key, algorithm, {"kid": "ed", **(headers or {})})


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw(header, claims=CLAIMS, sign=lambda text: b""):
    """Return a token that no library would make."""
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{text}.{b64(sign(text.encode()))}"


def refused(verifier, token):
    with pytest.raises(Unauthenticated) as info:
        verifier.verify(token)
    assert not info.value.retryable
    text = str(info.value)
    assert text.startswith("this token is not good: ")
    assert len(text) < 300
    assert not [part for part in token.split(".") if len(part) > 8 and part in text]
    return text


class TestGood:
    @pytest.mark.parametrize("role", ROLES)
    def test_says_whose_it_is(self, verifier, role):
        assert verifier.verify(signed(role=role)) == Claims("a", role, "1", "ed")

    def test_of_the_other_key_and_algorithm(self, verifier):
        assert verifier.verify(signed(EC, "ES256", {"kid": "ec"})) == Claims("a", "client", "1", "ec")

    def test_for_several_audiences(self, verifier):
        assert verifier.verify(signed(aud=["other", "fed"])).name == "a"

    @pytest.mark.parametrize(("claim", "off"), [("exp", -15), ("iat", 25), ("nbf", 25)])
    def test_within_the_leeway(self, verifier, claim, off):
        assert verifier.verify(signed(**{claim: int(time.time()) + off})).name == "a"

    def test_as_long_as_can_be(self, verifier):
        token = signed(note="x")
        token = signed(note="x" * (1 + (LARGEST - len(token)) * 3 // 4))
        assert LARGEST - 4 < len(token) <= LARGEST
        assert verifier.verify(token).name == "a"


class TestNotGood:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"exp": NOW - 40}, "expired"),
            ({"exp": NOW - 10**6}, "expired"),
            ({"iat": NOW + 3600}, "not yet valid"),
            ({"nbf": NOW + 3600}, "not yet valid"),
            ({"iss": "you"}, "issuer"),
            ({"iss": "m"}, "issuer"),
            ({"iss": "me "}, "issuer"),
            ({"aud": "other"}, "Audience"),
            ({"aud": ["other"]}, "Audience"),
            ({"aud": "fe"}, "Audience"),
            ({"role": "server"}, "role"),
            ({"role": "anonymous"}, "role"),
            ({"role": "Client"}, "role"),
            ({"role": ["client"]}, "role"),
            ({"role": True}, "role"),
            ({"sub": "../a"}, "name"),
            ({"sub": ""}, "name"),
            ({"sub": "a\n"}, "name"),
            ({"sub": "a" * 65}, "name"),
            ({"sub": 7}, "Subject"),
            ({"jti": 7}, "JWT ID"),
            ({"jti": ""}, "jti"),
            ({"jti": "a b"}, "jti"),
            ({"jti": "x" * 129}, "jti"),
            ({"exp": "soon"}, "exp"),
            ({"exp": 1e400}, "exp"),
            ({"exp": [1]}, "exp"),
            ({"iat": "once"}, "iat"),
        ],
    )
    def test_by_what_it_says(self, verifier, changes, says):
        assert says in refused(verifier, signed(**changes))

    @pytest.mark.parametrize("claim", CLAIMS)
    def test_if_it_lacks_something(self, verifier, claim):
        assert f'missing the "{claim}" claim' in refused(verifier, signed(**{claim: None}))

    @pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None])
    def test_if_it_is_not_signed(self, verifier, algorithm):
        refused(verifier, raw({"alg": algorithm, "kid": "ed", "typ": "JWT"}))
        refused(verifier, raw({"alg": algorithm, "kid": "ed", "typ": "JWT"}) + b64(b"x"))

    @pytest.mark.parametrize("kid", ["ed", "ec"])
    def test_if_the_public_key_is_taken_for_a_secret(self, verifier, files, kid):
        key = {"ed": ED, "ec": EC}[kid]
        pem, own = key.public_key().public_bytes(*PEM), json.dumps(public(key, kid)).encode()
        for secret in (pem, own, files.keys.read_bytes()):
            for algorithm, kind in (("HS256", hashlib.sha256), ("HS512", hashlib.sha512)):
                token = raw({"alg": algorithm, "kid": kid}, sign=lambda text, s=secret, k=kind: hmac.digest(s, text, k))
                assert "alg" in refused(verifier, token)

    def test_if_its_algorithm_is_another_than_its_key_s(self, verifier):
        assert "alg" in refused(verifier, signed(ED, "EdDSA", {"kid": "ec"}))
        assert "alg" in refused(verifier, signed(EC, "ES256", {"kid": "ed"}))
        large = rsa.generate_private_key(65537, 2048)
        assert "alg" in refused(verifier, signed(large, "RS256"))
        assert "alg" in refused(verifier, signed(large, "PS256"))

    def test_if_another_key_signed_it(self, verifier):
        assert "Signature" in refused(verifier, signed(Ed25519PrivateKey.generate()))
        assert "Signature" in refused(verifier, signed(ec.generate_private_key(ec.SECP256R1()), "ES256", {"kid": "ec"}))

    @pytest.mark.parametrize("headers", [{"kid": "nobody"}, {"kid": ""}, {"kid": "ED"}])
    def test_if_nobody_knows_its_key(self, verifier, headers):
        assert "kid" in refused(verifier, signed(headers=headers))

    def test_if_it_names_no_key(self, verifier):
        assert "kid" in refused(verifier, jwt.encode(CLAIMS, ED, "EdDSA"))
        for kid in (None, 7, ["ed"], {"ed": 1}):
            refused(verifier, raw({"alg": "EdDSA", "kid": kid}, sign=ED.sign))

    def test_if_it_brings_its_own_key(self, verifier):
        own = Ed25519PrivateKey.generate()
        headers = {"alg": "EdDSA", "kid": "ed", "jwk": public(own, "ed"), "jku": "https://example.org/keys", "x5u": "x"}
        assert "Signature" in refused(verifier, raw(headers, sign=own.sign))

    @pytest.mark.parametrize("crit", [["b64"], ["exp"], ["unknown"], [], "exp"])
    def test_if_something_in_it_is_critical(self, verifier, crit):
        refused(verifier, raw({"alg": "EdDSA", "kid": "ed", "crit": crit, "unknown": 1, "b64": False, "exp": 1}, sign=ED.sign))

    @pytest.mark.parametrize("part", range(3))
    def test_if_one_letter_is_another(self, verifier, part):
        parts = signed().split(".")
        for at in range(0, len(parts[part]) - 1, 5):  # the last letter has bits that say nothing
            text = parts[part]
            other = "A" if text[at] != "A" else "B"
            changed = [*parts[:part], text[:at] + other + text[at + 1 :], *parts[part + 1 :]]
            refused(verifier, ".".join(changed))

    def test_if_parts_of_two_are_put_together(self, verifier):
        one, two = signed().split("."), signed(role="admin").split(".")
        refused(verifier, ".".join([one[0], two[1], one[2]]))

    @pytest.mark.parametrize("token", ["", ".", "..", "...", "a.b", "a.b.c.d", "\u2603", "a" * LARGEST, "\x00\x01", "{}.{}.{}"])
    def test_if_it_is_none(self, verifier, token):
        refused(verifier, token)

    @pytest.mark.parametrize("payload", [b"[]", b"1", b"null", b'"a"', b"{", b"\xff\xfe", b"[" * 2000])
    def test_if_what_it_says_is_no_object(self, verifier, payload):
        text = f"{b64(json.dumps({'alg': 'EdDSA', 'kid': 'ed'}).encode())}.{b64(payload)}"
        refused(verifier, f"{text}.{b64(ED.sign(text.encode()))}")

    def test_if_it_is_too_long_nothing_is_looked_at(self, verifier, monkeypatch):
        token = signed(note="x" * LARGEST)
        monkeypatch.setattr("base64.urlsafe_b64decode", lambda *_: pytest.fail("looked at"))
        assert f"{LARGEST} are the most" in refused(verifier, token)

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=200) | st.builds("{}.{}.{}".format, *[st.binary(max_size=60).map(b64)] * 3))
    def test_whatever_it_is(self, verifier, token):
        with pytest.raises(Unauthenticated):
            verifier.verify(token)

    @settings(max_examples=200, deadline=None)
    @given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), st.sampled_from(
        ["EdDSA", "ES256", "ed", "ec", None, True, False, 1e308, [], ["b64"], {}, "\ud800", "none"])))  # fmt: skip
    def test_whatever_its_header_says(self, verifier, header):
        with pytest.raises(Unauthenticated):
            verifier.verify(raw(header, sign=lambda text: bytes(64)))


class TestRevoked:
    def test_is_asked_for_apart(self, verifier):
        assert verifier.is_revoked(verifier.verify(signed(jti="bad")))
        assert not verifier.is_revoked(verifier.verify(signed(jti="BAD")))
        assert not verifier.is_revoked(verifier.verify(signed()))

    def test_without_a_file_nobody_is(self, files):
        verifier = Verifier(Tokens(str(files.keys), "me", "fed"))
        assert not verifier.is_revoked(verifier.verify(signed(jti="bad")))


class TestFilesThatChange:
    @pytest.fixture
    def moving(self, tmp_path):
        keys, revoked = tmp_path / "keys.json", tmp_path / "revoked.txt"
        keys.write_text(json.dumps({"keys": [public(ED, "ed")]}))
        revoked.write_text("")
        return SimpleNamespace(keys=keys, revoked=revoked, verifier=Verifier(Tokens(str(keys), "me", "fed", str(revoked))))

    def test_a_key_comes_and_a_key_goes(self, moving):
        old, new = signed(), signed(EC, "ES256", {"kid": "ec"})
        refused(moving.verifier, new)
        claims = moving.verifier.verify(old)
        assert not moving.verifier.refresh()
        moving.keys.write_text(json.dumps({"keys": [public(ED, "ed"), public(EC, "ec")]}))
        assert moving.verifier.refresh()
        assert moving.verifier.verify(new).kid == "ec"
        assert moving.verifier.verify(old) == claims
        moving.keys.write_text(json.dumps({"keys": [public(EC, "ec")]}))
        assert moving.verifier.refresh()
        refused(moving.verifier, old)
        assert moving.verifier.is_revoked(claims)

    def test_a_token_is_revoked(self, moving):
        claims = moving.verifier.verify(signed())
        assert not moving.verifier.is_revoked(claims)
        moving.revoked.write_text("0\n1\n2\n")
        assert moving.verifier.refresh()
        assert moving.verifier.is_revoked(claims)

    @pytest.mark.parametrize("broken", [b"", b"garbage", b'{"keys": []}', b"\xff", None])
    def test_what_is_broken_says_what_it_said_before_and_that_is_noted_once(self, moving, broken, caplog):
        if broken is None:
            moving.keys.unlink()
        else:
            moving.keys.write_bytes(broken)
        assert not moving.verifier.refresh()
        assert not moving.verifier.refresh()
        assert moving.verifier.verify(signed()).name == "a"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "keys.json cannot be read" in caplog.text
        moving.keys.write_text(json.dumps({"keys": [public(EC, "ec")]}))
        assert moving.verifier.refresh()
        refused(moving.verifier, signed())


class TestKeys:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("", "cannot be used"),
            ("[]", "no set of JSON Web Keys"),
            ('{"keys": 1}', "no set of JSON Web Keys"),
            ('{"keys": [1]}', "no set of JSON Web Keys"),
            ('{"keys": []}', "no key is in it"),
            ('{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"}]}', "no key is in it"),
            ('{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "short"}]}', "key 'short' is broken"),
            (json.dumps({"keys": [public(ED, None)]}), "a kid of its own"),
            (json.dumps({"keys": [public(ED, "1"), public(EC, "1")]}), "a kid of its own"),
            (json.dumps({"keys": [{**public(ED, "1"), "d": "AAAA"}]}), "a private key"),
        ],
    )
    def test_that_cannot_be_used(self, tmp_path, content, says):
        (tmp_path / "keys.json").write_text(content)
        with pytest.raises(ConfigError, match=says) as info:
            Verifier(Tokens(str(tmp_path / "keys.json"), "me", "fed"))
        assert "c2VjcmV0" not in str(info.value)

    def test_of_other_kinds_are_passed_over(self, tmp_path):
        others = [
            jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True),
            jwt.algorithms.OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True),
            jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True),
        ]
        keys = [{**each, "kid": str(number)} for number, each in enumerate(others)]
        (tmp_path / "keys.json").write_text(json.dumps({"keys": [*keys, public(ED, "ed")]}))
        verifier = Verifier(Tokens(str(tmp_path / "keys.json"), "me", "fed"))
        assert verifier.verify(signed()).name == "a"
        for kid in "012":
            assert "kid" in refused(verifier, signed(headers={"kid": kid}))


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"keys": "nowhere"}, r"Tokens\.keys: 'nowhere' is no file"),
            ({"revoked": "nowhere"}, r"Tokens\.revoked: 'nowhere' is no file"),
            ({"issuer": ""}, r"Tokens\.issuer"),
            ({"audience": ""}, r"Tokens\.audience"),
            ({"audience": None}, r"Tokens\.audience"),
            ({"leeway": -1.0}, r"Tokens\.leeway"),
            ({"leeway": 301.0}, r"Tokens\.leeway"),
            ({"leeway": float("nan")}, r"Tokens\.leeway"),
        ],
    )
    def test_that_make_no_sense(self, files, changes, says):
        with pytest.raises(ConfigError, match=says):
            Tokens(**{"keys": str(files.keys), "issuer": "me", "audience": "fed", **changes})

    def test_the_leeway_counts(self, files):
        strict, wide = (Verifier(Tokens(str(files.keys), "me", "fed", leeway=each)) for each in (0.0, 300.0))
        refused(strict, signed(exp=NOW - 10))
        assert wide.verify(signed(exp=int(time.time()) - 100)).name == "a"

    def test_of_a_folder(self, tmp_path):
        Issuer.init(tmp_path / "keys", "heart", audience="study")
        found = Tokens.of(tmp_path / "keys")
        assert (found.issuer, found.audience) == ("heart", "study")
        assert (found.keys, found.revoked) == (f"{tmp_path}/keys/keys.json", f"{tmp_path}/keys/revoked.txt")

    @pytest.mark.parametrize("content", [None, b"", b"[]", b'{"issuer": "a"}'])
    def test_of_a_folder_that_is_none(self, tmp_path, content):
        if content is not None:
            (tmp_path / "issuer.json").write_bytes(content)
        with pytest.raises(ConfigError, match="`fedcore keys init` makes it"):
            Tokens.of(tmp_path)


class TestTheBearersFile:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "token"
        path.touch(0o600)
        path.write_text(f"{signed()}\n")
        return path

    def test_is_read_again_when_it_changes(self, file):
        mine = own_token(file)
        file.write_text(signed(jti="2"))
        assert mine.refresh()
        assert jwt.decode(mine.value, ED.public_key(), ["EdDSA"], audience="fed")["jti"] == "2"

    def test_that_others_can_read_is_refused(self, file):
        file.chmod(0o640)
        with pytest.raises(ConfigError, match="others can read it; chmod 600 it"):
            own_token(file)

    @pytest.mark.parametrize("content", [b"", b"a.b", b"a b.c.d", b"\xff.a.b", b"a.b.c\nd.e.f", b"a" * LARGEST + b".b.c"])
    def test_without_a_token_is_refused(self, file, content):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="it holds no token") as info:
            own_token(file)
        assert len(str(info.value)) < 200 + len(str(file))

    @pytest.mark.parametrize("change", ["gone", "others can read it", "garbage"])
    def test_that_is_lost_leaves_the_old_token(self, file, change, caplog):
        mine, old = own_token(file), file.read_text().strip()
        if change == "gone":
            file.unlink()
        elif change == "garbage":
            file.write_text("garbage")
        else:
            file.write_text(signed(jti="2"))
            os.utime(file, (1, 1))
            file.chmod(0o644)
        assert not mine.refresh()
        assert mine.value == old
        assert old not in caplog.text
        assert len(caplog.records) == 1


def test_without_the_library_it_says_what_to_install(files):
    code = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from fedcore.tokens import Tokens, Verifier, own_token\n"
        "from fedcore.errors import MissingDependency\n"
        "try:\n"
        f"    Verifier(Tokens({str(files.keys)!r}, 'me', 'fed'))\n"
        "except MissingDependency as error:\n"
        "    sys.exit(str(error))\n"
    )
    for missing in ("jwt", "cryptography"):
        done = subprocess.run([sys.executable, "-c", code, missing], capture_output=True, text=True, check=False)
        assert done.stderr == "tokens need the libraries PyJWT and cryptography: pip install 'fedcore[tokens]'\n"


def test_refusals_are_of_one_kind():
    assert issubclass(Unauthenticated, FedcoreError)
    assert Unauthenticated.reason == "UNAUTHENTICATED"
