"""Where a run can be, and what moves it from there: the law of the coordinator, as a table."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a run is."""

    WAITING = "waiting"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    FINISHED = "finished"


class Move(StrEnum):
    """What moves a run from phase to phase."""

    OPEN = "open"
    CLOSE = "close"
    FAIL = "fail"
    PUBLISH = "publish"
    FINISH = "finish"


TRANSITIONS: dict[tuple[Phase, Move], Phase] = {
    (Phase.WAITING, Move.OPEN): Phase.COLLECTING,
    (Phase.COLLECTING, Move.CLOSE): Phase.AGGREGATING,
    (Phase.AGGREGATING, Move.FAIL): Phase.WAITING,
    (Phase.AGGREGATING, Move.PUBLISH): Phase.WAITING,
    (Phase.WAITING, Move.FINISH): Phase.FINISHED,
    (Phase.COLLECTING, Move.FINISH): Phase.FINISHED,
    (Phase.AGGREGATING, Move.FINISH): Phase.FINISHED,
}
