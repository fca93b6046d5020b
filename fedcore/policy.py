"""When a round opens, whom it invites, and when it is over: the one place that decides.

A policy is a value; it keeps no state and reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from fedcore.errors import ConfigError


class Verdict(Enum):
    """What to do with an open round."""

    WAIT = auto()
    CLOSE = auto()
    FAIL = auto()


@dataclass(frozen=True, kw_only=True)
class RoundPolicy:
    """The rules of a round.

    A round opens as soon as ``target`` clients are registered, or ``start_wait`` seconds after ``quorum`` are. It invites
    ``target + extra`` of them, and clients that join later fill the places that are free. It closes when ``target`` updates
    are accepted, or when every invited client that still lives has answered and the quorum holds, or at the deadline; at
    the deadline without a quorum it fails. So it always ends.

    Attributes:
        target: updates that close the round at once.
        quorum: the fewest updates a round may be made of.
        deadline: seconds a round may last.
        extra: clients invited beyond the target; the first ``target`` to answer count, the others are told to stop.
        start_wait: seconds to wait for the target once the quorum is registered.
        max_failures: failed rounds in a row that end the run.
    """

    target: int
    quorum: int = 1
    deadline: float = 3600.0
    extra: int = 0
    start_wait: float = 10.0
    max_failures: int = 3

    def __post_init__(self) -> None:
        for name, least in (("target", 1), ("quorum", 1), ("extra", 0), ("max_failures", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"RoundPolicy.{name} must be an integer of at least {least}, not {value!r}")
        if self.quorum > self.target:
            raise ConfigError(
                f"RoundPolicy.quorum is {self.quorum}, above target {self.target}: such a round could never close; "
                "lower min_fit_clients or raise clients_per_round"
            )
        if not self.deadline > 0 or not self.start_wait >= 0:
            raise ConfigError(
                f"RoundPolicy needs deadline > 0 and start_wait >= 0, not {self.deadline!r} and {self.start_wait!r}"
            )

    @property
    def invitations(self) -> int:
        """How many clients a round may keep busy."""
        return self.target + self.extra

    def opens_at(self, registered: int, quorum_since: float | None, now: float) -> float | None:
        """Return when a round may open, given the clients there are and since when they are a quorum; None: unforeseeable."""
        if registered >= self.target:
            return now
        return None if quorum_since is None else quorum_since + self.start_wait

    def verdict(self, *, accepted: int, pending: int, opened_at: float, now: float) -> Verdict:
        """Judge an open round by its accepted updates and by the invited clients that live and have not answered."""
        if accepted >= self.target or (pending == 0 and accepted >= self.quorum):
            return Verdict.CLOSE
        if now < opened_at + self.deadline:
            return Verdict.WAIT
        return Verdict.CLOSE if accepted >= self.quorum else Verdict.FAIL
