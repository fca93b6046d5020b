"""Keys and tokens are nowhere but in their files: not in logs, not in what is printed of objects, not in errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography")
pytest.importorskip("jwt")

from cryptography.hazmat.primitives import serialization

from fedcore.keys import Issuer
from fedcore.pki import Authority

PASSWORD = "correct-horse-battery"
PIECE = 16  # characters of a secret that must not be seen anywhere


def secrets_of(folder):
    """Return what must not be seen: pieces of every key and token, by the file it is in."""
    found = {}
    for path in folder.rglob("*"):
        if path.name in ("key.pem", "authority.key", "signing.key") or path.suffix == ".token":
            text = re.sub(r"-----[A-Z ]+-----", "", path.read_text())
            first, *rest = re.split(r"[\s.]+", text.strip())  # the first says only what kind of key or token it is
            words = rest or [first[24:]]
            pieces = [word[at : at + PIECE] for word in words for at in range(0, len(word) - PIECE + 1, PIECE)]
            found[str(path.relative_to(folder))] = pieces
    return found


def locked(path):
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    with_password = serialization.BestAvailableEncryption(PASSWORD.encode())
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, with_password))


def broken(path):
    """Spoil a key, but leave most of its text."""
    text = path.read_text().splitlines()
    text[1] = text[1][:20] + "!" + text[1][21:]
    path.write_text("\n".join(text))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The folder with the secrets, and all that a federation said that has them."""
    folder = tmp_path_factory.mktemp("secrets")
    authority = Authority.init(folder / "authority")
    authority.issue("client", "a")
    authority.issue("server", "server", hosts=["localhost"])
    issuer = Issuer.init(folder / "issuer")
    issuer.issue("client", "a", folder / "a.token")
    Issuer.init(folder / "foreign").issue("admin", "root", folder / "foreign.token")
    token = (folder / "a.token").read_text()
    for name, text in {"spoilt": token[:-9] + "A" * 8 + "\n", "open": token, "two-lines": token + token}.items():
        path = folder / f"{name}.token"
        path.touch(0o600)
        path.write_text(text)
    (folder / "open.token").chmod(0o644)
    for name in ("broken", "locked", "another", "open"):
        shutil.copytree(authority.folder / "kits" / "server", folder / name)
    broken(folder / "broken" / "key.pem")
    locked(folder / "locked" / "key.pem")
    shutil.copy(authority.folder / "kits" / "a" / "key.pem", folder / "another" / "key.pem")
    (folder / "open" / "key.pem").chmod(0o644)
    for name, spoil in (("broken", broken), ("locked", locked)):
        shutil.copytree(authority.folder, folder / f"{name}-authority")
        spoil(folder / f"{name}-authority" / "authority.key")
    shutil.copytree(issuer.folder, folder / "broken-issuer")
    broken(folder / "broken-issuer" / "signing.key")
    script = Path(__file__).with_name("talkative.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "GRPC_VERBOSITY": "debug", "PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout + done.stderr


def test_enough_was_said(said):
    folder, text = said
    assert "all was said" in text
    assert text.count("Traceback") > 20
    assert "DEBUG:" in text
    assert f"certificate='{folder}/authority/kits/a/certificate.pem'" in text, "no TLS was printed"
    assert "Session(run_id='run', client_id='a')" in text


def test_g8_no_key_and_no_token_is_in_it(said):
    folder, text = said
    pieces = secrets_of(folder)
    assert {"authority/authority.key", "authority/kits/a/key.pem", "a.token", "locked/key.pem"} < pieces.keys()
    assert [path for path, parts in pieces.items() if any(part in text for part in parts)] == []
    assert PASSWORD not in text
    assert "PRIVATE KEY" not in text


def test_g8_nor_is_what_a_session_is_proved_by(said):
    folder, text = said
    tokens = json.loads((folder / "sessions.json").read_text())
    assert tokens
    assert [token for token in tokens if token in text] == []


def test_what_is_looked_for_would_be_found(said):
    folder, _ = said
    for path, parts in secrets_of(folder).items():
        text = (folder / path).read_text()
        assert parts, path
        assert all(part in text for part in parts), path
