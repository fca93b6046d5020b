"""The audit log tells who did what, and shows every change that was made to it."""

import json
import os
import stat
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcore.audit import Audit, Verified, lines, verify
from fedcore.errors import StateError
from fedcore.events import (
    AccessRefused,
    AuditRead,
    ClientChanged,
    ClientRegistered,
    Commanded,
    RoundCommitted,
    RoundFailed,
    RoundOpened,
    RunStarted,
    ServerLeft,
    UpdateAccepted,
)
from fedcore.messages import Kind, Status

EVENTS = [
    RunStarted(at=0.0, run_id="run-1", address="127.0.0.1:1", num_rounds=3),
    ClientRegistered(at=1.0, client_id="a"),
    UpdateAccepted(at=2.0, round=1, kind=Kind.FIT, client_id="a", num_examples=3, accepted=1, target=1),
    RoundCommitted(at=3.0, round=1, digest="d" * 64, accepted=("a",), missing={}),
    Commanded(at=4.0, peer="root", address="x", act="evict", client_id="a", reason="a line\nbreak"),
]


def noon():
    return datetime(2026, 1, 2, 12, tzinfo=UTC)


def written(path, events=EVENTS):
    log = Audit(path, noon)
    for event in events:
        log(event)
    log.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_says_who_and_what_and_when(tmp_path):
    lines = written(tmp_path / "audit.jsonl")
    assert [line["what"] for line in lines] == [type(event).__name__ for event in EVENTS]
    assert [line["number"] for line in lines] == [1, 2, 3, 4, 5]
    assert {line["time"] for line in lines} == {"2026-01-02T12:00:00.000+00:00"}
    assert (lines[3]["digest"], lines[3]["accepted"]) == ("d" * 64, ["a"])
    assert lines[4]["reason"] == "a line\nbreak"


def test_what_clients_do_all_the_time_is_not_in_it(tmp_path):
    assert written(tmp_path / "a", [ClientChanged(at=0.0, client_id="a", status=Status.IDLE, round=1, step=0, total=0)]) == []


def test_others_cannot_read_it(tmp_path):
    written(tmp_path / "audit.jsonl")
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_it_is_gone_on_with(tmp_path):
    path = tmp_path / "audit.jsonl"
    written(path)
    assert [line["number"] for line in written(path)] == list(range(1, 11))
    assert verify(path).lines == 10


def test_nothing_is_a_log_too(tmp_path):
    (tmp_path / "audit.jsonl").touch()
    assert verify(tmp_path / "audit.jsonl") == Verified(0, "0" * 64)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_change_but_one_at_the_end_is_seen(tmp_path, data):
    path = tmp_path / "audit.jsonl"
    path.unlink(missing_ok=True)
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    index = data.draw(st.integers(0, len(lines) - 2))
    how = data.draw(st.sampled_from(["flip", "delete", "swap", "double", "insert"]))
    if how == "flip":
        at = data.draw(st.integers(0, len(lines[index]) - 1))
        line = bytearray(lines[index])
        line[at] ^= 1 << data.draw(st.integers(0, 7))
        lines[index] = bytes(line)
    elif how == "delete":
        del lines[index]
    elif how == "swap":
        lines[index], lines[index + 1] = lines[index + 1], lines[index]
    else:
        lines.insert(index, lines[index] if how == "double" else b"{}\n")
    path.write_bytes(b"".join(lines))
    with pytest.raises(StateError) as caught:
        verify(path)
    assert caught.value.reason == "AUDIT_BROKEN"
    with pytest.raises(StateError):
        Audit(path)


def test_a_cut_end_is_seen_by_who_kept_the_hash(tmp_path):
    path = tmp_path / "audit.jsonl"
    written(path)
    whole = verify(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(path).head != whole.head


def test_a_line_that_a_crash_tore_is_taken_away_and_that_is_said(tmp_path):
    path = tmp_path / "audit.jsonl"
    written(path)
    path.write_bytes(path.read_bytes()[:-7])
    lines = written(path, EVENTS[:1])
    assert [line["what"] for line in lines[-3:]] == ["RoundCommitted", "TornLine", "RunStarted"]
    assert verify(path).lines == 6


def refused(at, peer="", reason="UNAUTHENTICATED", address=""):
    return AccessRefused(at=at, peer=peer, address=address, asked="Pull", reason=reason)


def test_what_a_peer_repeats_is_one_line_a_second_and_all_of_it_is_counted(tmp_path):
    events = [refused(number / 100, address=f"port {number}") for number in range(1000)]
    lines = written(tmp_path / "a", [*events[:501], refused(5.0, "b"), refused(5.0, reason="REVOKED"), *events[501:]])
    many = [line for line in lines if (line["peer"], line["reason"]) == ("", "UNAUTHENTICATED")]
    assert len(many) == 11
    assert sum(1 + line.get("repeated", 0) for line in many) == 1000
    assert {line["address"] for line in many} > {"port 0", "port 999"}
    assert [(line["peer"], line["reason"]) for line in lines if line not in many] == [("b", "UNAUTHENTICATED"), ("", "REVOKED")]


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 25)), max_size=80))
def test_nothing_that_is_repeated_gets_lost(tmp_path, happened):
    path, now, events = tmp_path / "log", 0.0, []
    for peer, later in happened:
        now += later / 10
        events.append(refused(now, peer, address=str(now)))
    path.unlink(missing_ok=True)
    lines = written(path, events)
    for peer in "abc":
        mine = [line for line in lines if line["peer"] == peer]
        assert sum(1 + line.get("repeated", 0) for line in mine) == sum(event.peer == peer for event in events)
        when = [float(line["address"]) for line in mine]
        assert when == sorted(when)
    assert len(lines) <= 3 * (now + 2)


def test_what_is_counted_does_not_wait_for_the_next_of_its_kind(tmp_path):
    log = Audit(tmp_path / "log", noon)
    for at in (0.0, 0.1, 0.2):
        log(refused(at, "a"))
    log(ClientChanged(at=1.5, client_id="b", status=Status.IDLE, round=1, step=0, total=0))
    assert [json.loads(line).get("repeated") for line in (tmp_path / "log").read_text().splitlines()] == [None, 1]
    log.close()


def test_who_reads_it_is_a_line_and_not_one_for_each_page(tmp_path):
    reads = [AuditRead(at=page / 100, peer=peer, address="x", after=page << 18) for page in range(150) for peer in ("o", "p")]
    lines = written(tmp_path / "a", reads)
    assert [(line["what"], line["peer"], line["after"] >> 18, line.get("repeated", 0)) for line in lines] == [
        ("AuditRead", "o", 0, 0), ("AuditRead", "p", 0, 0), ("AuditRead", "o", 99, 98), ("AuditRead", "p", 99, 98),
        ("AuditRead", "o", 149, 49), ("AuditRead", "p", 149, 49),
    ]  # fmt: skip


def test_there_is_an_end_to_what_is_held(tmp_path):
    lines = written(tmp_path / "log", [refused(0.5, f"peer-{number % 3000}") for number in range(6000)])
    assert len(lines) == 6000
    assert verify(tmp_path / "log").lines == 6000


def test_a_long_text_is_cut(tmp_path):
    text = "é\n" * 10_000
    (line,) = written(tmp_path / "log", [RoundFailed(at=0.0, round=1, reason=text, missing={text: text})])
    assert line["reason"] == text[:497] + "..."
    assert line["missing"] == {text[:497] + "...": text[:497] + "..."}


def test_how_a_run_begins_and_is_left(tmp_path):
    began = RunStarted(at=0.0, run_id="r", address="x", num_rounds=3, past=(EVENTS[3],), resumed=True)
    lines = written(tmp_path / "log", [began, ServerLeft(at=1.0)])
    assert [(line["what"], line.get("resumed"), line.get("past")) for line in lines] == [
        ("RunStarted", True, None), ("ServerLeft", None, None),
    ]  # fmt: skip


WRONG = {
    "changed": (lambda lines: [lines[0], lines[1].replace(b"Client", b"client"), *lines[2:]], "line 2 was changed"),
    "changed, the first": (lambda lines: [lines[0].replace(b"run-1", b"run-2"), *lines[1:]], "line 1 was changed"),
    "changed, where it says what was before": (
        lambda lines: [*lines[:2], lines[2].replace(b'"before": "', b'"before": "0'), *lines[3:]], "line 3 was changed",
    ),
    "changed, the one before the last": (
        lambda lines: [*lines[:3], lines[3].replace(b"round", b"Round"), lines[4]], "line 4 or line 5 was changed",
    ),
    "broken": (lambda lines: [lines[0], b"what?\n", *lines[2:]], "line 2 was changed: it is no line of a log"),
    "no object": (lambda lines: [lines[0], b"[2]\n", *lines[2:]], "line 2 was changed: it is no line of a log"),
    "deep": (lambda lines: [lines[0], b"[" * 100_000 + b"\n", *lines[2:]], "line 2 was changed: it is no line of a log"),
    "missing": (lambda lines: [*lines[:2], *lines[3:]], "line 3 is missing: line 4 comes next"),
    "missing, two": (lambda lines: [lines[0], *lines[3:]], "lines 2 to 3 are missing: line 4 comes next"),
    "missing, the first": (lambda lines: lines[1:], "line 1 is missing: line 2 comes next"),
    "put in": (
        lambda lines: [*lines[:2], lines[1].replace(b'"number": 2', b'"number": 3'), *lines[2:]],
        "line 3 was put in: what was line 3 is behind it",
    ),
    "put in, anything": (lambda lines: [*lines[:2], b"{}\n", *lines[2:]], "line 3 was put in: what was line 3 is behind it"),
    "twice": (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3 was put in: what was line 3 is behind it"),
    "twice, at the end": (lambda lines: [*lines, lines[1]], "line 6 was put in or is out of order: it says that it is line 2"),
    "out of order": (
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        "line 2 is out of order: it was line 3, and line 2 comes later",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_the_first_line_that_does_not_fit_is_named_and_what_is_wrong_with_it(tmp_path, how):
    path = tmp_path / "log"
    written(path)
    spoil, says = WRONG[how]
    spoilt = b"".join(spoil(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(spoilt)
    for look in (lambda: verify(path), lambda: list(lines(path)), lambda: Audit(path)):
        with pytest.raises(StateError) as caught:
            look()
        assert str(caught.value) == f"{path}: {says}"
        assert caught.value.reason == "AUDIT_BROKEN"
    assert path.read_bytes() == spoilt


def test_what_was_noted_elsewhere_shows_that_the_end_was_cut_off_or_all_was_written_anew(tmp_path):
    path = tmp_path / "log"
    written(path)
    noted = verify(path)
    assert verify(path, expect=noted.head, at=5).expected == 5
    written(path, EVENTS[:3])
    assert verify(path, expect=noted.head, at=5).expected == 5
    assert verify(path, expect=noted.head).lines == 8
    with pytest.raises(StateError, match="line 5 has the hash that line 4 had") as caught:
        verify(path, expect=noted.head, at=4)
    assert caught.value.reason == "AUDIT_CUT"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    with pytest.raises(StateError, match="it has 4 lines, and had 5"):
        verify(path, at=5)
    with pytest.raises(StateError, match="no line has the hash"):
        verify(path, expect=noted.head)
    path.unlink()
    written(path, [EVENTS[0], EVENTS[0], *EVENTS[2:]])  # a chain as good as the other
    with pytest.raises(StateError, match="no line has the hash"):
        verify(path, expect=noted.head, at=5)


@pytest.mark.parametrize("left", [1, 20, -1])
def test_half_a_line_does_not_count(tmp_path, left):
    path = tmp_path / "log"
    written(path)
    before = path.read_bytes()
    last = before.splitlines(keepends=True)[-1]
    path.write_bytes(before.removesuffix(last) + last[:left])
    assert verify(path) == replace(verify(path), lines=4, torn=True)
    assert len(list(lines(path))) == 4


def test_a_crash_in_a_line_that_is_long(tmp_path):
    path = tmp_path / "log"
    many = tuple(f"client-{number}" for number in range(20_000))
    written(path, [RoundOpened(at=0.0, round=1, invited=many, target=1, quorum=1, deadline=1.0)] * 2)
    path.write_bytes(path.read_bytes()[:-1])
    assert [line["what"] for line in written(path, [])] == ["RoundOpened", "TornLine"]


def test_a_full_disk_leaves_no_gap_and_is_said(tmp_path):
    path = tmp_path / "log"
    log, real = Audit(path, noon), open

    class Full:
        def __init__(self, file):
            self.file, self.full = file, False

        def write(self, data):
            return self.file.write(data[:10] if self.full else data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    log._file = disk = Full(log._file)
    for number, event in enumerate(EVENTS):
        disk.full = number in (1, 2)
        with nullcontext() if not disk.full else pytest.raises(OSError, match="No space left"):
            log(event)
    log.close()
    assert verify(path).lines == 3
    with real(path) as file:
        assert [json.loads(line).get("unwritten") for line in file] == [None, 2, None]


class TestG9TheFile:
    def test_is_its_owners_whatever_the_umask(self, tmp_path):
        before = os.umask(0)
        try:
            written(tmp_path / "log")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600

    def test_is_no_link(self, tmp_path):
        (tmp_path / "other").touch(0o600)
        (tmp_path / "log").symlink_to(tmp_path / "other")
        with pytest.raises(StateError, match="links are not followed") as caught:
            Audit(tmp_path / "log")
        assert caught.value.reason == "STATE_UNSAFE"
        assert (tmp_path / "other").read_bytes() == b""

    @pytest.mark.parametrize("mode", [0o620, 0o602])
    def test_is_not_for_others_to_write(self, tmp_path, mode):
        (tmp_path / "log").touch(0o600)
        (tmp_path / "log").chmod(mode)
        with pytest.raises(StateError, match="can be written to by") as caught:
            Audit(tmp_path / "log")
        assert caught.value.reason == "STATE_UNSAFE"
