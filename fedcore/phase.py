"""Where a run can be, and what moves it from there: the law of the coordinator, as a table.

A pair that is not in it cannot happen. ::

    WAITING      not enough clients, or no model yet
      | open
    COLLECTING   a round is open; updates are admitted, then committed
      | close (enough updates, or the deadline)
    AGGREGATING  the strategy works, unless there are too few updates; the outcome is noted where it lasts
      | publish (a new model)      | fail (no usable model)
    WAITING ...                  WAITING, same model, next number
    FINISHED     after the last round, after too many failures, or when told to stop
"""

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
