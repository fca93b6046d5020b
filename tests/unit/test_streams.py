"""How many bodies of a client may be under way at once."""

import pytest

from fedcore.errors import TooMany
from fedcore.streams import Stream, Streams


def test_each_client_has_its_own():
    streams = Streams(2, "downloads")
    mine = [streams.enter(Stream("a", f"t{number}")) for number in range(2)]
    with pytest.raises(TooMany, match="client 'a' has 2 downloads under way, and may have no more"):
        streams.enter(Stream("a", "t2"))
    streams.enter(Stream("b", "t0"))
    assert len(streams) == 3
    streams.leave(mine[0])
    streams.enter(Stream("a", "t2"))
    with pytest.raises(TooMany):
        streams.enter(Stream("a", "t3"))


def test_the_oldest_for_the_same_task_gives_way():
    streams, gone = Streams(2, "uploads"), []
    first, second, third = (Stream("a", task, lambda task=task: gone.append(task)) for task in ("x", "y", "y"))
    streams.enter(first)
    streams.enter(second)
    streams.enter(third)
    assert gone == ["y"]
    streams.leave(second)  # ends a little later, and has no place any more
    assert len(streams) == 2
    with pytest.raises(TooMany):
        streams.enter(Stream("a", "z"))
    streams.leave(first)
    streams.leave(third)
    assert len(streams) == 0


def test_who_cannot_be_ended_does_not_give_way():
    streams = Streams(1, "downloads")
    streams.enter(Stream("a", "x"))
    with pytest.raises(TooMany):
        streams.enter(Stream("a", "x", list))


def test_nothing_is_kept_of_those_that_are_over():
    streams = Streams(1, "downloads")
    for number in range(1000):
        streams.leave(streams.enter(Stream(f"client-{number}", "x")))
        with pytest.raises(TooMany):
            streams.enter(streams.enter(Stream("a", "x")))
        streams.leave(streams._open["a"][0])
    assert not streams._open
