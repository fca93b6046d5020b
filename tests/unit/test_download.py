"""A body that breaks off is gone on with where it was, as long as there is progress, or patience."""

from random import Random

import pytest

from fedcore.download import Download
from fedcore.errors import ChecksumError, ConnectionLost, DeadlineExceeded, Incomplete, NonFinite, ProtocolError
from fedcore.retry import Persistence
from fedcore.testing import FakeClock

WHOLE = bytes(range(100))


class Line:
    """Brings a body, ``each`` bytes at a time before it breaks off with what ``errors`` has next."""

    def __init__(self, each, errors):
        self.each, self.errors, self.clock, self.asked = each, iter(errors), FakeClock(), []

    def body(self, offset):
        end = offset + self.each
        if WHOLE[offset:end]:
            yield WHOLE[offset:end]
        if end < len(WHOLE):
            raise next(self.errors)

    def rest(self, offset):
        self.asked.append(offset)
        return self.body(offset)

    def download(self, patience=10.0):
        persistence = Persistence(patience, self.clock, Random(0), self.pause, lambda: False)
        return b"".join(Download(self.body(0), self.rest, persistence.trial()))

    def pause(self, seconds):
        self.clock.advance(3.0)


def test_it_goes_on_for_as_long_as_something_comes():
    line = Line(7, [ConnectionLost("gone"), DeadlineExceeded("late"), Incomplete("short"), ChecksumError("changed")] * 4)
    assert line.download() == WHOLE  # 14 pauses of 3 s, though patience is for 10 s
    assert line.asked == list(range(7, 100, 7))


def test_without_progress_patience_ends():
    line = Line(0, [ConnectionLost("gone")] * 9)
    with pytest.raises(ConnectionLost):
        line.download()
    assert len(line.asked) == 4


def test_what_is_no_accident_ends_it():
    with pytest.raises(NonFinite):
        Line(7, [NonFinite("no")]).download()


def test_bytes_that_change_again_and_again_end_it():
    with pytest.raises(ChecksumError):
        Line(0, [ChecksumError("changed")] * 3).download()


@pytest.mark.parametrize("reason", ["NOT_SELECTED", "BAD_OFFSET"])
def test_what_is_no_longer_to_be_had_is_pulled_anew(reason):
    with pytest.raises(Incomplete, match="another one") as caught:
        Line(7, [ProtocolError("another one", reason=reason)]).download()
    assert caught.value.retryable
