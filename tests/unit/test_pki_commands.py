"""The commands that make certificates: what they say, and that no key is in it."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from fedcore.cli import main
from fedcore.pki import Authority
from fedcore.security import TLS


@pytest.fixture
def authority(tmp_path):
    return Authority.init(tmp_path / "authority", "test")


class TestCommands:
    def run(self, capsys, *arguments, code=0):
        assert main(["pki", *map(str, arguments)]) == code
        shown = capsys.readouterr()
        return shown.out if code == 0 else shown.err

    def test_from_init_to_revoke(self, tmp_path, capsys):
        fed = tmp_path / "fed"
        made = self.run(capsys, "init", fed, "--name", "heart", "--days", "1000")
        assert "authority.key must stay there, and private" in made
        assert f"next: fedcore pki issue {fed} server NAME --host HOST" in made
        server = self.run(capsys, "issue", fed, "server", "hub", "--host", "localhost", "--host", "127.0.0.1")
        assert f'TLS.kit("{fed}/kits/hub", revoked="{fed}/revoked.txt")' in server
        client = self.run(capsys, "issue", fed, "client", "a", "--days", "30")
        assert f'TLS.kit("{fed}/kits/a")' in client
        assert "key.pem must stay private" in client
        assert self.run(capsys, "revoke", fed, "a").startswith("revoked 1 certificate of a: ")
        head, blank, *rows = self.run(capsys, "show", fed).splitlines()
        until = [(datetime.now(UTC) + timedelta(days)).date().isoformat() for days in (365, 30, 1000)]
        assert head == f"heart authority, good until {until[2]}, fingerprint {Authority(fed).fingerprint}"
        assert blank == ""
        short = [each.fingerprint[:16] for each in Authority(fed).issued()]
        assert [row.split() for row in rows] == [
            ["role", "name", "until", "state", "fingerprint"],
            ["server", "hub", until[0], "valid", short[0]],
            ["client", "a", until[1], "revoked", short[1]],
        ]

    def test_a_request_and_its_way(self, authority, tmp_path, capsys):
        asked = self.run(capsys, "request", "client", "a", tmp_path / "mine")
        assert f"{tmp_path / 'mine' / 'key.pem'} must stay here, and private" in asked
        assert "`fedcore pki issue DIR client a --csr request.pem`" in asked
        got = self.run(capsys, "issue", authority.folder, "client", "a", "--csr", tmp_path / "mine" / "request.pem")
        assert "holds certificate.pem and authority.pem of client a" in got
        assert "they belong beside the key.pem of the request" in got
        assert "--host HOST" in self.run(capsys, "request", "server", "hub", tmp_path / "hub")

    def test_show_as_json(self, authority, capsys):
        authority.issue("client", "a")
        authority.issue("operator", "eve")
        authority.revoke("eve")
        shown = json.loads(self.run(capsys, "show", authority.folder, "--json"))
        assert shown["authority"] == {
            "name": "test authority", "until": authority.until, "fingerprint": authority.fingerprint,
        }  # fmt: skip
        assert [(each["role"], each["name"], each["state"]) for each in shown["issued"]] == [
            ("client", "a", "valid"), ("operator", "eve", "revoked"),
        ]  # fmt: skip
        assert [each["fingerprint"] for each in shown["issued"]] == [each.fingerprint for each in authority.issued()]

    def test_show_what_is_over(self, authority, capsys):
        authority.issue("client", "a")
        book = authority.folder / "issued.jsonl"
        book.write_text(re.sub(r'"until": "\d{4}', '"until": "2001', book.read_text()))
        assert self.run(capsys, "show", authority.folder).splitlines()[-1].split()[3] == "expired"
        assert authority.good() == []

    def test_show_nothing(self, authority, capsys):
        assert self.run(capsys, "show", authority.folder).endswith("\nnothing was issued\n")

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["init", "{fed}"], "holds an authority already"),
            (["show", "{fed}/kits"], "holds no authority"),
            (["issue", "{fed}", "client", "../x"], "client_id"),
            (["issue", "{fed}", "server", "hub"], "a server needs its host names"),
            (["issue", "{fed}", "client", "a", "--csr", "{fed}/nothing"], "is no request for a certificate"),
            (["issue", "{fed}", "client", "a", "--days", "0"], "1 to 36500 days, not 0"),
            (["revoke", "{fed}", "a"], "no certificate of 'a'"),
        ],
    )
    def test_mistakes_are_one_line(self, authority, capsys, arguments, says):
        shown = self.run(capsys, *(each.format(fed=authority.folder) for each in arguments), code=1)
        assert shown.startswith("fedcore: ")
        assert says in shown
        assert shown.count("\n") == 1

    @pytest.mark.parametrize("arguments", [[], ["dance"], ["issue", "x", "king", "a"], ["init"], ["init", "x", "--days", "no"]])
    def test_mistakes_in_the_command_line(self, arguments, capsys):
        with pytest.raises(SystemExit) as info:
            main(["pki", *arguments])
        assert info.value.code == 2

    def test_without_the_library_it_says_what_to_install(self, tmp_path):
        code = (
            "import sys\n"
            "sys.modules['cryptography'] = None\n"
            "from fedcore.cli import main\n"
            "from fedcore.errors import MissingDependency\n"
            "from fedcore.pki import Authority, make_request\n"
            f"folder = {str(tmp_path / 'new')!r}\n"
            "for call in (Authority, Authority.init, lambda folder: make_request('client', 'a', folder)):\n"
            "    try:\n"
            "        call(folder)\n"
            "    except MissingDependency:\n"
            "        continue\n"
            "    sys.exit('no MissingDependency')\n"
            "sys.exit(main(['pki', 'init', folder]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == "fedcore: certificates need the library cryptography: pip install 'fedcore[pki]'\n"
        assert not (tmp_path / "new").exists()

    def test_help_loads_neither_torch_nor_the_library(self):
        code = (
            "import sys\n"
            "from fedcore.cli import main\n"
            "try:\n"
            "    main(['pki', 'issue', '--help'])\n"
            "except SystemExit as end:\n"
            "    sys.exit(str({'torch', 'grpc', 'cryptography'} & set(sys.modules) or '') or end.code)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def secrets(folder):
    """Return the base64 lines of every private key under a folder."""
    keys = [path.read_text() for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    return {line for key in keys for line in key.splitlines() if line and not line.startswith("-----")}


def test_keys_are_in_no_output_and_no_repr(tmp_path, capsys):
    fed, mine = tmp_path / "fed", tmp_path / "mine"
    commands = [
        ["init", fed], ["issue", fed, "server", "hub", "--host", "localhost"], ["request", "client", "a", mine],
        ["issue", fed, "client", "a", "--csr", mine / "request.pem"], ["issue", fed, "operator", "eve"], ["init", fed],
        ["request", "client", "a", mine], ["issue", fed, "client", "b", "--csr", mine / "key.pem"],
        ["issue", fed, "client", "b", "--csr", fed / "authority.key"], ["revoke", fed, "eve"], ["revoke", fed, "eve"],
        ["show", fed], ["show", fed, "--json"],
    ]  # fmt: skip
    codes = [main(["pki", *map(str, each)]) for each in commands]
    assert codes == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0]
    authority, tls = Authority(fed), TLS.kit(fed / "kits" / "hub")
    shown = capsys.readouterr()
    found = shown.out + shown.err + repr(authority) + repr(vars(authority)) + repr(authority.issued()) + repr(tls)
    hidden = secrets(tmp_path)
    assert len(hidden) == 12  # four keys of three lines
    assert not [line for line in hidden if line in found]
    assert "key.pem" not in repr(tls)
