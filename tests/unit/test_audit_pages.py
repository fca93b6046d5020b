"""The audit log in pages, and a copy elsewhere: it is the log, byte for byte, or it stays what it was."""

import os
import stat
from datetime import UTC, datetime
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcore import audit, audit_pages
from fedcore.audit import Audit, verify
from fedcore.audit_pages import Pages, copy
from fedcore.errors import ConnectionLost, RemoteError, StateError
from fedcore.events import ClientEvicted, ClientRegistered, RoundOpened
from fedcore.messages import AuditPage, AuditQuery

often = settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noon():
    return datetime(2026, 1, 2, 12, tzinfo=UTC)


def happened(*numbers):
    return [ClientEvicted(at=float(number), client_id=f"c{number}", reason="x" * (number * 37 % 90)) for number in numbers]


def write(path, events):
    log = Audit(path, noon)
    for event in events:
        log(event)
    log.close()


class File:
    """A log of any lines, of which so many bytes were written out."""

    def __init__(self, path, end=None):
        self.path, self.end = path, end

    def settle(self):
        return self.path.stat().st_size if self.end is None else self.end


@pytest.fixture
def serve():
    """Return a function that serves a log, and returns what asks for its pages."""
    opened = []

    def started(log):
        log = log if isinstance(log, File) else Audit(log, noon)
        opened.extend([Pages(log), *([log] if isinstance(log, Audit) else [])])
        return lambda after: opened[0].answer(AuditQuery(after)).result(10.0).message

    yield started
    for each in opened:
        each.close()


def read(path, *, largest=audit_pages.LARGEST, log=None):
    """Return a function that asks for pages of a log, as it is then; a page is no larger than it is said."""

    def ask(after):
        pages = Pages(log or File(path))
        try:
            with mock.patch.object(audit_pages, "LARGEST", largest):
                return pages.answer(AuditQuery(after)).result(10.0).message
        finally:
            pages.close()

    return ask


def pages(ask):
    at = 0
    while lines := (page := ask(at)).lines:
        yield lines
        at += len(lines)
    assert at == page.total


class TestPages:
    @often
    @given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"") + b"\n")), st.integers(1, 99))
    def test_put_together_are_the_file(self, tmp_path, lines, largest):
        (tmp_path / "log").write_bytes(b"".join(lines))
        found = list(pages(read(tmp_path / "log", largest=largest)))
        assert b"".join(found) == b"".join(lines)
        for page in found:
            assert page.endswith(b"\n")
            assert len(page) <= largest or page.count(b"\n") == 1
        assert not any(len(one) + len(other.split(b"\n")[0]) < largest for one, other in pairwise(found))

    @often
    @given(st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"") + b"\n")), st.integers(0, 99))
    def test_begin_with_the_first_line_at_or_behind_what_is_asked_for(self, tmp_path, lines, after):
        (tmp_path / "log").write_bytes(b"".join(lines))
        starts = [sum(map(len, lines[:index])) for index in range(len(lines) + 1)]
        start = next((each for each in starts if each >= after), starts[-1])
        assert read(tmp_path / "log")(after) == AuditPage(b"".join(lines)[start:], starts[-1])

    def test_are_of_256_kib(self, serve, tmp_path):
        (tmp_path / "log").write_bytes(b"".join(b"%06d\n" % number for number in range(100_000)))
        found = list(pages(serve(File(tmp_path / "log"))))
        assert [len(page) for page in found[:2]] == [256 * 1024 // 7 * 7] * 2
        assert len(found) == 3

    def test_have_a_line_however_long_it_is(self, serve, tmp_path):
        lines = [b"first\n", b"x" * 300_000 + b"\n", b"last\n"]
        (tmp_path / "log").write_bytes(b"".join(lines))
        assert list(pages(serve(File(tmp_path / "log")))) == lines

    @pytest.mark.parametrize("written_out", [True, False])
    def test_have_no_half_of_a_line(self, serve, tmp_path, written_out):
        (tmp_path / "log").write_bytes(b"whole\nha")
        assert serve(File(tmp_path / "log", 8 if written_out else 6))(0).lines == b"whole\n"
        (tmp_path / "log").write_bytes(b"whole\nhalf\n")
        ask = read(tmp_path / "log", log=File(tmp_path / "log", 6))  # the other line is not on the disk yet
        assert [ask(after) for after in (0, 3, 6, 8)] == [AuditPage(b"whole\n", 6), *[AuditPage(b"", 6)] * 3]

    @pytest.mark.parametrize("after", [10_000, 2**63, 2**64 - 1])
    def test_behind_the_end_is_nothing(self, serve, tmp_path, after):
        write(tmp_path / "log", happened(1))
        assert serve(tmp_path / "log")(after) == AuditPage(b"", (tmp_path / "log").stat().st_size)

    def test_are_of_what_is_written_meanwhile_too(self, tmp_path):
        log = Audit(tmp_path / "log", noon)
        ask = read(tmp_path / "log", log=log)
        assert ask(0) == AuditPage(b"", 0)
        for event in happened(1, 2):
            log(event)
            assert ask(0).lines == (tmp_path / "log").read_bytes()
        log.close()
        assert ask(0).lines == (tmp_path / "log").read_bytes()

    def test_are_on_the_disk_before_they_are_handed_out(self, tmp_path, monkeypatch):
        log, real, synced = Audit(tmp_path / "log", noon), os.fsync, []
        log(ClientRegistered(at=0.0, client_id="a"))
        monkeypatch.setattr(audit.os, "fsync", lambda file: (real(file), synced.append((tmp_path / "log").stat().st_size)))
        page = read(tmp_path / "log", log=log)(0)
        assert synced == [len(page.lines)]
        log.close()

    def test_cannot_be_had_of_a_file_that_is_gone(self, serve, tmp_path):
        ask = serve(tmp_path / "log")
        (tmp_path / "log").write_bytes(b"x")
        (tmp_path / "log").unlink()
        with pytest.raises(RemoteError, match="the server cannot read its audit log: No such file or directory") as caught:
            read(tmp_path / "log", log=File(tmp_path / "log", 5))(0)
        assert str(tmp_path) not in str(caught.value)
        assert ask(0) == AuditPage(b"", 0)


@pytest.fixture
def log(tmp_path):
    """A log of ten lines, and a copy of it."""
    write(tmp_path / "log", happened(*range(10)))
    copy(tmp_path / "copy", read(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """Return the lines of a log."""
    path = tmp_path_factory.mktemp("nine") / "log"
    write(path, happened(*range(9)))
    return path.read_bytes().splitlines(keepends=True)


def reason(path, ask):
    """Go on with a copy, and return why that was refused, or ""."""
    try:
        copy(path, ask)
    except StateError as error:
        return error.reason
    return ""


def refused(path, ask):
    """Have a copy gone on with; it must be refused, and stay what it was. Returns the error."""
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(StateError) as caught:
        copy(path, ask)
    assert path.read_bytes() == before
    return caught.value


class TestCopy:
    @pytest.mark.parametrize("largest", [1, 300, 1 << 20])
    def test_is_the_log_and_is_gone_on_with(self, tmp_path, largest):
        log, own, count = tmp_path / "log", tmp_path / "copy", 0
        for new in (10, 0, 1, 7, 0):
            write(log, happened(*range(count, count + new)))
            count += new
            done = copy(own, read(log, largest=largest))
            assert (done.new, done.whole) == (new, verify(log))
            assert own.read_bytes() == log.read_bytes()
            assert verify(own) == done.whole

    def test_of_nothing(self, tmp_path):
        (tmp_path / "log").touch()
        done = copy(tmp_path / "copy", read(tmp_path / "log"))
        assert (done.new, done.whole) == (0, audit.EMPTY)
        assert (tmp_path / "copy").read_bytes() == b""

    def test_is_its_owners(self, log):
        assert stat.S_IMODE(log.with_name("copy").stat().st_mode) == 0o600

    @pytest.mark.parametrize("kept", range(10))
    def test_of_a_log_that_was_cut(self, log, kept):
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:kept]))
        error = refused(log.with_name("copy"), read(log))
        assert (error.reason, "line 10 is not there any more" in str(error)) == ("AUDIT_CUT", True)

    def test_of_a_log_that_was_cut_and_has_grown_again(self, log):
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:8]))
        write(log, happened(*range(20, 30)))
        error = refused(log.with_name("copy"), read(log))
        assert (error.reason, "line 10 is another one there" in str(error)) == ("AUDIT_CUT", True)

    def test_of_a_log_that_was_written_anew(self, log):
        log.unlink()
        write(log, [*happened(99), *happened(*range(1, 20))])
        assert refused(log.with_name("copy"), read(log)).reason == "AUDIT_CUT"

    @pytest.mark.parametrize("largest", [1, 1 << 20])
    def test_of_a_log_that_was_changed_before_it_was_copied(self, tmp_path, largest):
        write(tmp_path / "log", happened(*range(10)))
        (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes().replace(b'"c5"', b'"c6"'))
        error = refused(tmp_path / "copy", read(tmp_path / "log", largest=largest))
        assert (error.reason, "line 7 does not follow the one before" in str(error)) == ("AUDIT_BROKEN", True)

    def test_of_a_log_that_was_cut_under_its_server(self, serve, tmp_path):
        write(tmp_path / "log", happened(1, 2))
        ask = serve(tmp_path / "log")
        (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes().splitlines(keepends=True)[0])
        error = refused(tmp_path / "copy", ask)
        assert (error.reason, "it was cut" in str(error)) == ("AUDIT_CUT", True)

    @often
    @given(st.data())
    def test_is_the_log_or_stays_what_it_was_whatever_is_done_to_the_log(self, tmp_path, nine, data):
        log, own, before, lines = tmp_path / "log", tmp_path / "copy", b"".join(nine[:4]), list(nine)
        own.write_bytes(before)
        for _ in range(data.draw(st.integers(1, 2))):
            at = data.draw(st.integers(0, len(lines) - 2))
            how = data.draw(st.sampled_from(["flip", "delete", "swap", "double", "cut"]))
            if how == "flip":
                line = bytearray(lines[at])
                line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))
                lines[at] = bytes(line)
            elif how == "swap":
                lines[at : at + 2] = lines[at + 1], lines[at]
            else:
                lines[at : {"cut": len(lines), "delete": at + 1, "double": at}[how]] = [lines[at]] * (how == "double")
            if len(lines) < 2:
                break
        log.write_bytes(b"".join(lines))
        why = reason(own, read(log, largest=data.draw(st.sampled_from([1, 400, 1 << 20]))))
        assert why in ("", "AUDIT_CUT", "AUDIT_BROKEN")
        if why:
            assert own.read_bytes() == before
        else:
            assert verify(own).lines >= 4
            assert own.read_bytes().startswith(before)
            assert log.read_bytes().endswith(own.read_bytes()[len(before) :])

    @often
    @given(st.lists(st.binary(max_size=300), max_size=4), st.integers(0, 2**64 - 1))
    def test_takes_nothing_but_lines_that_follow(self, log, answers, total):
        left = iter(answers)
        own = log.with_name("copy")
        before = own.read_bytes()
        last = before.splitlines(keepends=True)[-1]
        why = reason(own, lambda after: AuditPage(last + next(left, b"") if after < len(before) else next(left, b""), total))
        assert why in ("", "AUDIT_CUT", "AUDIT_BROKEN")
        assert own.read_bytes() == before

    @pytest.mark.parametrize("instead", [b"", b" "])
    def test_takes_no_half_of_a_line(self, log, instead):
        own = log.with_name("copy")
        write(log, happened(10))
        lines = log.read_bytes()[:-1] + instead
        assert refused(own, lambda after: AuditPage(lines[after:], len(lines))).reason == "AUDIT_BROKEN"

    def test_goes_on_where_the_connection_broke(self, tmp_path):
        write(tmp_path / "log", happened(*range(10)))
        own, asked, ask = tmp_path / "copy", [], read(tmp_path / "log", largest=1)

        def breaking(after):
            asked.append(after)
            if len(asked) == 4:
                raise ConnectionLost("gone")
            return ask(after)

        with pytest.raises(ConnectionLost):
            copy(own, breaking)
        assert verify(own).lines == 3
        done = copy(own, breaking)
        assert (done.new, done.whole.lines, own.read_bytes()) == (7, 10, (tmp_path / "log").read_bytes())
        assert asked[4] > 0

    @pytest.mark.parametrize("left", [1, 30])
    def test_that_was_half_written_is_mended(self, log, left):
        own = log.with_name("copy")
        own.write_bytes(own.read_bytes() + b"{" * left)
        assert copy(own, read(log)).new == 0
        own.write_bytes(own.read_bytes() + b"{" * 5000)
        write(log, happened(10))
        done = copy(own, read(log))
        assert (done.new, done.whole, own.read_bytes()) == (1, verify(log), log.read_bytes())

    def test_that_was_changed_is_not_gone_on_with(self, log):
        own = log.with_name("copy")
        own.write_bytes(own.read_bytes().replace(b'"c5"', b'"c6"'))
        error = refused(own, None)
        assert (error.reason, str(error)) == ("AUDIT_BROKEN", f"{own}: line 6 was changed")

    def test_is_no_link_and_not_for_others_to_write(self, log):
        own = log.with_name("copy")
        own.chmod(0o620)
        assert refused(own, None).reason == "STATE_UNSAFE"
        own.unlink()
        own.symlink_to(log)
        assert refused(own, None).reason == "STATE_UNSAFE"
        own.unlink()
        own.symlink_to(log.with_name("elsewhere"))
        with pytest.raises(StateError, match="links are not followed"):
            copy(own, read(log))
        assert not log.with_name("elsewhere").exists()

    def test_of_a_log_with_long_lines(self, tmp_path):
        many = tuple(f"hospital-{number}" for number in range(30_000))
        write(tmp_path / "log", [RoundOpened(at=0.0, round=n, invited=many, target=1, quorum=1, deadline=9.0) for n in (1, 2)])
        done = copy(tmp_path / "copy", read(tmp_path / "log"))
        assert (done.new, (tmp_path / "copy").read_bytes()) == (2, (tmp_path / "log").read_bytes())
        assert copy(tmp_path / "copy", read(tmp_path / "log")).new == 0
