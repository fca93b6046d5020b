"""The audit log tells who did what, and shows every change that was made to it."""

import json
import stat
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcore.audit import Audit, Verified, verify
from fedcore.errors import StateError
from fedcore.events import (
    AccessRefused,
    ClientChanged,
    ClientRegistered,
    Commanded,
    RoundCommitted,
    RunStarted,
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


def test_what_a_peer_repeats_is_one_line_a_second(tmp_path):
    refused = {"peer": "", "address": "", "asked": "Pull", "reason": "UNAUTHENTICATED"}
    events = [AccessRefused(at=number / 100, **refused) for number in range(1000)]
    other = AccessRefused(at=5.0, **{**refused, "peer": "b"})
    lines = written(tmp_path / "a", [*events[:501], other, *events[501:]])
    assert len([line for line in lines if line["peer"] == ""]) == 10
    assert [line.get("repeated", 0) for line in lines if line["peer"] == ""] == [0, *[99] * 9]
    assert len([line for line in lines if line["peer"] == "b"]) == 1
