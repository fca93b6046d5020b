"""``fedcore audit``: says whether a log is whole and what is in it."""

import json
from datetime import UTC, datetime

import pytest

from fedcore.audit import NAME, Audit, verify
from fedcore.cli import main
from fedcore.events import AccessRefused, ClientRegistered, Commanded, RoundCommitted, RunStarted, UpdateAccepted
from fedcore.messages import Kind

EVENTS = [
    RunStarted(at=0.0, run_id="run-1", address="127.0.0.1:1", num_rounds=3),
    ClientRegistered(at=1.0, client_id="a"),
    UpdateAccepted(at=2.0, round=1, kind=Kind.FIT, client_id="a", num_examples=3, accepted=1, target=1),
    RoundCommitted(at=3.0, round=1, digest="d" * 64, accepted=("a",), missing={}),
    Commanded(at=4.0, peer="root", address="x", act="evict", client_id="a", reason="a line\nbreak"),
]


def written(path, events=EVENTS):
    log = Audit(path, lambda: datetime(2026, 1, 2, 12, tzinfo=UTC))
    for event in events:
        log(event)
    log.close()


@pytest.fixture
def log(tmp_path):
    written(tmp_path / NAME)
    return tmp_path / NAME


def audit(capsys, *arguments):
    code = main(["audit", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_a_whole_log(log, capsys):
    for named in (log, log.parent):
        code, out, err = audit(capsys, "verify", named)
        assert (code, err) == (0, "")
        whole, head = out.splitlines()
        assert whole == "whole: 5 lines, from 2026-01-02T12:00:00.000+00:00 to 2026-01-02T12:00:00.000+00:00"
        assert head == f"head {verify(log).head}"


def test_as_json(log, capsys):
    code, out, _ = audit(capsys, "verify", "--json", log)
    said = json.loads(out)
    assert (code, said["lines"], said["head"], said["torn"]) == (0, 5, verify(log).head, False)


def test_a_log_that_was_changed(log, capsys):
    log.write_text(log.read_text().replace('"client_id": "a"', '"client_id": "b"', 1))
    code, out, err = audit(capsys, "verify", log)
    assert (code, out, err) == (1, "", f"fedcore: {log}: line 2 was changed\n")


def test_what_was_noted_is_looked_for(log, capsys):
    noted = verify(log)
    assert audit(capsys, "verify", log, "--expect", noted.head, "--lines", 5)[0] == 0
    written(log, EVENTS[:2])
    code, out, _ = audit(capsys, "verify", log, "--expect", noted.head.upper(), "--lines", 5)
    assert code == 0
    assert out.endswith("line 5 has the hash that was noted, and 2 lines came behind it\n")
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:4]))
    assert audit(capsys, "verify", log)[0] == 0, "a chain alone does not show it"
    for noted_of_it in (["--expect", noted.head], ["--lines", 5]):
        code, out, err = audit(capsys, "verify", log, *noted_of_it)
        assert (code, out) == (1, "")
        assert "cut off at its end" in err


def test_half_a_line_is_no_tampering(log, capsys):
    log.write_bytes(log.read_bytes()[:-10])
    code, out, _ = audit(capsys, "verify", log)
    assert code == 0
    assert out.startswith("whole: 4 lines")
    assert out.endswith("half written and does not count: a crash leaves that, and nobody tampered with it\n")


def test_none_at_all(tmp_path, capsys):
    code, out, err = audit(capsys, "verify", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("fedcore: ")
    assert str(tmp_path / NAME) in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "x", "--expect", "abc"], "a head is 64 hexadecimal digits"),
        (["verify", "x", "--lines", "many"], "invalid int value: 'many'"),
        (["show", "x", "--since", "yesterday"], "'yesterday' is no time such as 2026-11-30"),
        (["show", "x", "--kind", "Rumour"], "invalid choice: 'Rumour'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_mistakes(arguments, says, capsys):
    with pytest.raises(SystemExit) as info:
        main(["audit", *arguments])
    assert info.value.code == 2
    assert says in capsys.readouterr().err


def test_it_is_shown_a_line_for_each(log, capsys):
    code, out, _ = audit(capsys, "show", log.parent)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    assert lines[1] == "     2  2026-01-02 12:00:00  ClientRegistered  client_id=a  again=false"
    assert lines[4].endswith("Commanded  peer=root  address=x  act=evict  client_id=a  reason=a line break")


def shown(capsys, *arguments):
    code, out, _ = audit(capsys, "show", "--json", *arguments)
    assert code == 0
    return [json.loads(line)["number"] for line in out.splitlines()]


def test_by_client_by_kind_and_by_time(log, capsys):
    assert shown(capsys, log) == [1, 2, 3, 4, 5]
    assert shown(capsys, log, "--client", "a") == [2, 3, 4, 5]
    assert shown(capsys, log, "--client", "root") == [5]
    assert shown(capsys, log, "--kind", "Commanded", "--kind", "RunStarted") == [1, 5]
    assert shown(capsys, log, "--client", "a", "--kind", "RoundCommitted") == [4]
    for since, lines in {
        "2026-01-02": 5,
        "2026-01-02T12:00": 5,
        "2026-01-02T13:00+00:30": 0,
        "2026-01-02T13:00+01:00": 5,
    }.items():
        assert len(shown(capsys, log, "--since", since)) == lines, since


def test_what_is_wrong_ends_it(log, capsys):
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    code, out, err = audit(capsys, "show", log)
    assert (code, len(out.splitlines())) == (1, 2)
    assert err == f"fedcore: {log}: line 3 is missing: line 4 comes next\n"


def test_what_others_wrote_does_no_harm_to_a_terminal(tmp_path, capsys):
    evil = "\x1b[2J\n999  2026  Commanded  " + "x" * 10_000
    written(
        tmp_path / NAME,
        [
            AccessRefused(at=0.0, peer=evil, address=evil, asked="Pull", reason="DENIED"),
            ClientRegistered(at=0.0, client_id=evil),
            Commanded(at=0.0, peer="p", address="", act="stop", client_id="", reason=evil),
            RoundCommitted(at=0.0, round=1, digest="d", accepted=(evil,), missing={evil: evil}),
        ],
    )
    assert max(map(len, (tmp_path / NAME).read_bytes().splitlines())) < 3000
    code, out, _ = audit(capsys, "show", tmp_path)
    assert (code, len(out.splitlines())) == (0, 4)
    assert all(line.isprintable() for line in out.splitlines())
