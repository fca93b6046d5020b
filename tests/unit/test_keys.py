"""The issuer of tokens and its commands: what they make, what they refuse, what they say, and that nothing secret is in it."""

import json
import os
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from fedcore.cli import main
from fedcore.errors import ConfigError, Unauthenticated
from fedcore.keys import Issuer
from fedcore.security import Role
from fedcore.tokens import ROLES, Tokens, Verifier, own_token


@pytest.fixture
def issuer(tmp_path):
    return Issuer.init(tmp_path / "issuer", "heart", audience="study")


@pytest.fixture
def free_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def verifier(issuer):
    return Verifier(Tokens.of(issuer.folder))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestIssuing:
    @pytest.mark.parametrize("role", ROLES)
    def test_makes_tokens_that_are_believed(self, issuer, tmp_path, role):
        made = issuer.issue(role, "a", tmp_path / "token")
        claims = verifier(issuer).verify(own_token(tmp_path / "token").value)
        assert (claims.role, claims.name, claims.jti, claims.kid) == (role, "a", made.jti, issuer.kid)

    @pytest.mark.parametrize("days", [1, 30, 3650])
    def test_for_as_long_as_asked(self, issuer, tmp_path, days):
        made = issuer.issue("client", "a", tmp_path / "token", days=days)
        said = jwt.decode((tmp_path / "token").read_text().strip(), options={"verify_signature": False})
        assert said["exp"] - said["iat"] == days * 86400
        left = datetime.fromisoformat(made.until) - datetime.now(UTC)
        assert timedelta(days) - timedelta(minutes=5) < left <= timedelta(days)

    def test_each_has_an_id_of_its_own(self, issuer, tmp_path):
        ids = {issuer.issue("client", "a", tmp_path / "token").jti for _ in range(5)}
        assert len(ids) == 5
        assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)

    @pytest.mark.parametrize(
        ("role", "name", "days", "says"),
        [
            ("server", "hub", 1, "none of: client, operator, admin"),
            ("anonymous", "a", 1, "none of"),
            ("king", "a", 1, "none of"),
            ("client", "../a", 1, "client_id"),
            ("client", "a", 0, "1 to 3650 days"),
            ("client", "a", 3651, "1 to 3650 days"),
            ("client", "boss", 1, "the name of a admin already"),
        ],
    )
    def test_of_what_makes_no_sense(self, issuer, tmp_path, role, name, days, says):
        issuer.issue("admin", "boss", tmp_path / "boss")
        with pytest.raises(ConfigError, match=says):
            issuer.issue(role, name, tmp_path / "token", days=days)
        assert not (tmp_path / "token").exists()
        assert len(issuer.issued()) == 1

    def test_a_token_is_in_the_book_before_anybody_has_it(self, issuer, tmp_path, monkeypatch):
        monkeypatch.setattr("fedcore.keys.write", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            issuer.issue("client", "a", tmp_path / "token")
        assert [each.name for each in issuer.issued()] == ["a"]

    def test_files_are_private(self, free_umask, tmp_path):
        issuer = Issuer.init(tmp_path / "new")
        issuer.issue("client", "a", tmp_path / "token")
        (tmp_path / "token").chmod(0o644)
        issuer.issue("client", "a", tmp_path / "token")
        issuer.rotate()
        assert mode(issuer.folder) == 0o700
        assert [mode(path) for path in (issuer.folder / "signing.key", tmp_path / "token")] == [0o600, 0o600]

    def test_another_issuer_of_the_same_name_is_not_believed(self, issuer, tmp_path):
        other = Issuer.init(tmp_path / "other", "heart", audience="study")
        other.issue("client", "a", tmp_path / "token")
        with pytest.raises(Unauthenticated, match="kid"):
            verifier(issuer).verify(own_token(tmp_path / "token").value)


class TestBeginning:
    @pytest.mark.parametrize(("name", "audience"), [("", None), ("x" * 65, None), ("a\nb", None), ("a", ""), ("a", "\x1b[2J")])
    def test_with_a_name_that_is_none(self, tmp_path, name, audience):
        with pytest.raises(ConfigError, match="issuer and audience are 1 to 64 printable"):
            Issuer.init(tmp_path / "new", name, audience=audience)
        assert not (tmp_path / "new").exists()

    def test_where_there_is_something(self, issuer, tmp_path):
        before = issuer.kids
        for path in (issuer.folder, tmp_path, issuer.folder / "keys.json"):
            with pytest.raises(ConfigError, match="no empty folder"):
                Issuer.init(path)
        assert Issuer(issuer.folder).kids == before

    def test_without_one(self, tmp_path):
        with pytest.raises(ConfigError, match=r"holds no issuer of tokens: `fedcore keys init .*` makes one"):
            Issuer(tmp_path)

    def test_with_a_key_that_others_can_read(self, issuer):
        (issuer.folder / "signing.key").chmod(0o640)
        with pytest.raises(ConfigError, match="others can read"):
            Issuer(issuer.folder)


class TestKeys:
    def test_tokens_of_the_old_key_stay_good_until_it_is_retired(self, issuer, tmp_path):
        old = issuer.issue("client", "a", tmp_path / "a")
        assert issuer.rotate() == issuer.kid != old.kid
        new = issuer.issue("client", "b", tmp_path / "b")
        assert issuer.kids == [old.kid, new.kid]
        for name in "ab":
            assert verifier(issuer).verify(own_token(tmp_path / name).value).name == name
        issuer.retire(old.kid)
        assert [issuer.state(each) for each in issuer.issued()] == ["retired", "valid"]
        assert verifier(issuer).verify(own_token(tmp_path / "b").value).name == "b"
        with pytest.raises(Unauthenticated, match="kid"):
            verifier(issuer).verify(own_token(tmp_path / "a").value)

    def test_the_one_that_signs_is_not_retired_and_none_twice(self, issuer):
        old = issuer.kid
        with pytest.raises(ConfigError, match="rotate first"):
            issuer.retire(old)
        issuer.rotate()
        issuer.retire(old)
        with pytest.raises(ConfigError, match="there is no key"):
            issuer.retire(old)
        assert issuer.kids == [issuer.kid]

    def test_a_crash_while_it_is_changed_leaves_all_tokens_good(self, issuer, tmp_path, monkeypatch):
        import fedcore.keys

        def dies(path, *rest, **options):
            if path.name == "signing.key":
                raise OSError("died")
            written(path, *rest, **options)

        written = fedcore.keys.write
        monkeypatch.setattr(fedcore.keys, "write", dies)
        with pytest.raises(OSError, match="died"):
            issuer.rotate()
        monkeypatch.undo()
        issuer.issue("client", "a", tmp_path / "a")
        assert verifier(issuer).verify(own_token(tmp_path / "a").value).name == "a"


class TestRevoking:
    def test_of_all_that_somebody_has(self, issuer, tmp_path):
        for name in ("a", "a", "b"):
            issuer.issue("client", name, tmp_path / name)
        found = issuer.revoke("a")
        assert [each.name for each in found] == ["a", "a"]
        judge = verifier(issuer)
        revoked = [judge.is_revoked(judge.verify(own_token(tmp_path / name).value)) for name in "ab"]
        assert revoked == [True, False]
        assert [issuer.state(each) for each in issuer.issued()] == ["revoked", "revoked", "valid"]
        with pytest.raises(ConfigError, match="no good token of 'a'"):
            issuer.revoke("a")
        issuer.revoke("b")
        assert [issuer.state(each) for each in issuer.issued()] == ["revoked"] * 3

    def test_frees_the_name(self, issuer, tmp_path):
        issuer.issue("client", "a", tmp_path / "a")
        issuer.revoke("a")
        assert issuer.issue(Role.OPERATOR, "a", tmp_path / "a").role == "operator"


class TestCommands:
    def run(self, capsys, *arguments, code=0):
        assert main(["keys", *map(str, arguments)]) == code
        shown = capsys.readouterr()
        return shown.out if code == 0 else shown.err

    def test_from_init_to_retire(self, tmp_path, capsys):
        fed = tmp_path / "fed"
        made = self.run(capsys, "init", fed, "--name", "heart")
        assert "signing.key must stay there, and private" in made
        assert f'tokens=Tokens.of("{fed}")' in made
        assert f"next: fedcore keys issue {fed} client NAME --out FILE" in made
        issued = self.run(capsys, "issue", fed, "client", "a", "--out", tmp_path / "a.token", "--days", "7")
        until = (datetime.now(UTC) + timedelta(days=7)).date().isoformat()
        assert f"the token of client a is in {tmp_path}/a.token, good until {until}; it must stay private" in issued
        self.run(capsys, "issue", fed, "operator", "eve", "--out", tmp_path / "eve.token")
        issuer = Issuer(fed)
        old, short = issuer.kid, [each.jti[:16] for each in issuer.issued()]
        said = self.run(capsys, "rotate", fed)
        assert f"tokens of {old} stay good" in said
        assert f"fedcore keys retire {fed} {old}" in said
        self.run(capsys, "issue", fed, "admin", "boss", "--out", tmp_path / "boss.token")
        assert self.run(capsys, "revoke", fed, "a").startswith(f"revoked 1 token of a: {short[0]}\n")
        assert self.run(capsys, "retire", fed, old).startswith(f"{old} is gone, and with it 1 token that would be good\n")
        head, blank, *rows = self.run(capsys, "show", fed).splitlines()
        assert head == f"heart, for heart; keys {issuer.kid} (signs)"
        assert blank == ""
        assert [row.split()[:2] + row.split()[3:5] for row in rows] == [
            ["role", "name", "state", "key"],
            ["client", "a", "revoked", old],
            ["operator", "eve", "retired", old],
            ["admin", "boss", "valid", issuer.kid],
        ]

    def test_show_as_json(self, issuer, tmp_path, capsys):
        issuer.issue("client", "a", tmp_path / "a")
        old = issuer.kid
        issuer.rotate()
        shown = json.loads(self.run(capsys, "show", issuer.folder, "--json"))
        assert {name: shown[name] for name in ("issuer", "audience", "signs", "keys")} == {
            "issuer": "heart", "audience": "study", "signs": issuer.kid, "keys": [old, issuer.kid],
        }  # fmt: skip
        assert [(each["role"], each["name"], each["state"]) for each in shown["issued"]] == [("client", "a", "valid")]

    def test_show_nothing_and_what_is_over(self, issuer, tmp_path, capsys):
        assert self.run(capsys, "show", issuer.folder).endswith("\nnothing was issued\n")
        issuer.issue("client", "a", tmp_path / "a")
        book = issuer.folder / "issued.jsonl"
        book.write_text(re.sub(r'"until": "\d{4}', '"until": "2001', book.read_text()))
        assert self.run(capsys, "show", issuer.folder).splitlines()[-1].split()[3] == "expired"
        assert issuer.good() == []

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["init", "{fed}"], "no empty folder"),
            (["show", "{fed}/.."], "holds no issuer"),
            (["issue", "{fed}", "client", "../x", "--out", "x"], "client_id"),
            (["issue", "{fed}", "client", "a", "--out", "{fed}/no/where"], "No such file"),
            (["issue", "{fed}", "client", "a", "--out", "x", "--days", "0"], "1 to 3650 days, not 0"),
            (["revoke", "{fed}", "b"], "no good token of 'b'"),
            (["retire", "{fed}", "x"], "there is no key 'x'"),
        ],
    )
    def test_mistakes_are_one_line(self, issuer, capsys, arguments, says):
        shown = self.run(capsys, *(each.format(fed=issuer.folder) for each in arguments), code=1)
        assert shown.startswith("fedcore: ")
        assert says in shown
        assert shown.count("\n") == 1

    @pytest.mark.parametrize(
        "arguments", [[], ["dance"], ["issue", "x", "server", "a", "--out", "y"], ["issue", "x", "admin", "a"]]
    )
    def test_mistakes_in_the_command_line(self, arguments, capsys):
        with pytest.raises(SystemExit) as info:
            main(["keys", *arguments])
        assert info.value.code == 2

    def test_without_the_library_it_says_what_to_install(self, tmp_path):
        code = (
            "import sys\n"
            "sys.modules['jwt'] = None\n"
            "from fedcore.cli import main\n"
            f"sys.exit(main(['keys', 'init', {str(tmp_path / 'new')!r}]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == "fedcore: tokens need the libraries PyJWT and cryptography: pip install 'fedcore[tokens]'\n"
        assert not (tmp_path / "new").exists()

    def test_help_loads_neither_torch_nor_the_libraries(self):
        code = (
            "import sys\n"
            "from fedcore.cli import main\n"
            "try:\n"
            "    main(['keys', 'issue', '--help'])\n"
            "except SystemExit as end:\n"
            "    sys.exit(str({'torch', 'grpc', 'cryptography', 'jwt'} & set(sys.modules) or '') or end.code)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_neither_tokens_nor_keys_are_in_anything_that_is_said(tmp_path, capsys):
    fed, old = tmp_path / "fed", []
    commands = [
        ["init", fed], ["issue", fed, "client", "a", "--out", tmp_path / "a"],
        ["issue", fed, "client", "a", "--out", tmp_path / "b"], ["init", fed],
        ["show", fed], ["show", fed, "--json"], ["revoke", fed, "a"], ["revoke", fed, "a"], ["show", fed],
        ["issue", fed, "admin", "c", "--out", tmp_path / "c"], ["rotate", fed], ["retire", fed, "x"],
    ]  # fmt: skip
    codes = []
    for command in commands:
        codes.append(main(["keys", *map(str, command)]))
        old.append((fed / "signing.key").read_text())
    assert codes == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    issuer, shown = Issuer(fed), capsys.readouterr()
    found = shown.out + shown.err + repr([vars(issuer), issuer.issued(), Tokens.of(fed)]) + (fed / "keys.json").read_text()
    keys = {line for key in old for line in key.splitlines() if line and not line.startswith("-----")}
    parts = {part for name in "abc" for part in (tmp_path / name).read_text().strip().split(".")[1:]}
    assert len(keys) == 2
    assert len(parts) == 6
    assert not [each for each in keys | parts if each in found]
