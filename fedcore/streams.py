"""Bodies under way: each client may have only so many at once, or one could take the server's memory and threads for itself."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from fedcore.errors import TooMany


@dataclass(frozen=True, eq=False)
class Stream:
    """A body under way. ``give_way`` ends it, if it is one that a newer one for the same task may take the place of."""

    client_id: str
    task_id: str
    give_way: Callable[[], object] | None = None


class Streams:
    """Counts the bodies that go one way.

    Args:
        most: how many each client may have at once.
        what: what they are, for people.
    """

    def __init__(self, most: int, what: str):
        self._most, self._what = most, what
        self._open: dict[str, list[Stream]] = defaultdict(list)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def enter(self, stream: Stream) -> Stream:
        """Count a body that begins. If there are too many, the oldest for the same task gives way, if it may.

        Raises:
            TooMany: none does.
        """
        with self._lock:
            others = self._open[stream.client_id]
            older = None
            if len(others) >= self._most:
                older = next((each for each in others if each.task_id == stream.task_id and each.give_way), None)
                if older is None:
                    raise TooMany(f"client {stream.client_id!r} has {len(others)} {self._what} under way, and may have no more")
                others.remove(older)
            others.append(stream)
        if older and older.give_way:
            older.give_way()
        return stream

    def leave(self, stream: Stream) -> None:
        """Take note that a body is over; it may have given way before."""
        with self._lock:
            others = self._open[stream.client_id]
            if stream in others:
                others.remove(stream)
            if not others:
                del self._open[stream.client_id]
