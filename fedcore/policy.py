"""When a round opens, whom it invites, and when it is over: the one place that decides.

A policy is a value; it keeps no state and reads no clock.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from statistics import median
from typing import Literal

from fedcore.errors import ConfigError

_ROUNDS_TO_ADAPT = 3
_LEAST_DEADLINE = 1.0  # seconds


class Verdict(Enum):
    """What to do with an open round."""

    WAIT = auto()
    CLOSE = auto()
    FAIL = auto()


@dataclass(frozen=True, kw_only=True)
class RoundPolicy:
    """The rules of a round.

    A round opens as soon as ``target`` and ``start_clients`` are registered, or ``start_wait`` seconds after ``quorum`` are. It
    invites ``target + extra`` of them, and clients that join later fill the places that are free. It closes when ``target``
    updates are accepted, or when every invited client that still lives has answered and the quorum holds, or at the deadline;
    at the deadline without a quorum it fails. So it always ends.

    Attributes:
        target: updates that close the round at once.
        quorum: the fewest updates a round may be made of.
        deadline: seconds a round may last.
        extra: clients invited beyond the target; the first ``target`` to answer count, the others are told to stop.
        start_wait: seconds to wait for the target, and ``start_clients``, once the quorum is registered.
        start_clients: clients to choose from that the first round waits for.
        max_failures: failed rounds in a row that end the run.
        on_failure: what follows a failed round: ``"retry"``: another one takes its place, up to ``max_failures`` in a row;
            ``"skip"``: it counts as one of the run's rounds; ``"abort"``: the run ends.
        late: what becomes of an update whose round is over: ``"drop"``: it does not count; ``"carry"``: it counts in the round
            that is open, unless its client is in that one itself; ``"discount"``: the same, with a smaller weight. A client
            that is still busy with such an update is not invited meanwhile.
        late_discount: what the weight of such an update is multiplied by for each round it is late.
        max_staleness: rounds that an update may be late and still count.
        adapt: the deadline is this many times the median of what the last rounds took, and ``deadline`` at most; after a
            failed round it is ``deadline`` again. None: always ``deadline``.
        pace: ``"sync"``: as above. ``"async"``: a round is a buffer of ``target`` updates, whichever model they were made
            from, and ``target + extra`` bounds nothing: every idle client is given the newest model at once, ``concurrency``
            of them at most; an update counts in the round that is open when it comes, once per client and round. Updates
            travel as differences to the model they began with. With a ``target`` above what comes, and a short ``deadline``,
            rounds are semi-synchronous: they end at fixed times with whatever has come.
        concurrency: clients that may be busy at once at an asynchronous pace; None: all.
        staleness_exponent: a, at an asynchronous pace: the difference of an update that is s rounds late is multiplied by
            ``(1 + s) ** -a`` before the mean, whose weights stay as they are, so that a late update moves the model less
            and others no more.

    Papers:
        FedBuff: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022.
        FedAsync: Xie et al., Asynchronous Federated Optimization, arXiv 1903.03934.
    """

    target: int
    quorum: int = 1
    deadline: float = 3600.0
    extra: int = 0
    start_wait: float = 10.0
    start_clients: int = 0
    max_failures: int = 3
    on_failure: Literal["retry", "skip", "abort"] = "retry"
    late: Literal["drop", "carry", "discount"] = "drop"
    late_discount: float = 0.5
    adapt: float | None = None
    max_staleness: int = 16
    pace: Literal["sync", "async"] = "sync"
    concurrency: int | None = None
    staleness_exponent: float = 0.5

    def __post_init__(self) -> None:
        counts = {"target": 1, "quorum": 1, "extra": 0, "start_clients": 0, "max_failures": 1, "max_staleness": 0}
        for name, least in counts.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"RoundPolicy.{name} must be an integer of at least {least}, not {value!r}")
        if self.quorum > self.target:
            raise ConfigError(
                f"RoundPolicy.quorum is {self.quorum}, above target {self.target}: such a round could never close; "
                "lower min_fit_clients or raise clients_per_round"
            )
        if self.on_failure not in ("retry", "skip", "abort"):
            raise ConfigError(f"RoundPolicy.on_failure must be 'retry', 'skip' or 'abort', not {self.on_failure!r}")
        if self.late not in ("drop", "carry", "discount") or not 0 < self.late_discount <= 1:
            raise ConfigError(
                "RoundPolicy.late must be 'drop', 'carry' or 'discount', and late_discount above 0 and at most 1, not "
                f"{self.late!r} and {self.late_discount!r}"
            )
        if self.adapt is not None and not self.adapt > 1:
            raise ConfigError(f"RoundPolicy.adapt must be above 1, or no round could take as long as the last: {self.adapt!r}")
        self._check_pace()
        if not self.deadline > 0 or not self.start_wait >= 0:
            raise ConfigError(
                f"RoundPolicy needs deadline > 0 and start_wait >= 0, not {self.deadline!r} and {self.start_wait!r}"
            )

    def _check_pace(self) -> None:
        if self.pace not in ("sync", "async"):
            raise ConfigError(f"RoundPolicy.pace must be 'sync' or 'async', not {self.pace!r}")
        if self.pace == "sync" and (self.concurrency is not None or self.staleness_exponent != 0.5):
            raise ConfigError("RoundPolicy.concurrency and staleness_exponent are for pace='async'")
        if self.pace == "async" and (self.extra or self.late != "drop"):
            raise ConfigError("with RoundPolicy.pace='async' late updates count, and nobody is extra: leave out late and extra")
        if self.concurrency is not None and not self.concurrency >= self.target:
            raise ConfigError(
                f"RoundPolicy.concurrency is {self.concurrency}, below target {self.target}: a buffer would wait for ever"
            )
        if not 0 <= self.staleness_exponent < math.inf:
            raise ConfigError(f"RoundPolicy.staleness_exponent must be a number from 0, not {self.staleness_exponent!r}")

    @property
    def asynchronous(self) -> bool:
        """Whether updates count in whichever round is open."""
        return self.pace == "async"

    @property
    def carries(self) -> bool:
        """Whether an update may count in a later round than its own."""
        return self.asynchronous or self.late != "drop"

    @property
    def invitations(self) -> int:
        """How many clients may be busy at once."""
        if self.asynchronous:
            return sys.maxsize if self.concurrency is None else self.concurrency
        return self.target + self.extra

    def vacancies(self, *, pending: int, accepted: int, elsewhere: int) -> int:
        """Return how many more clients may be asked.

        Args:
            pending: those who were, and have not answered.
            accepted: those who have.
            elsewhere: those who are busy with a round before, and whose answer will count in this one.
        """
        return self.invitations - pending - (elsewhere if self.asynchronous else accepted)

    def opens_at(self, registered: int, quorum_since: float | None, now: float) -> float | None:
        """Return when a round may open, given the clients there are and since when they are a quorum; None: unforeseeable."""
        if registered >= max(self.target, self.start_clients):
            return now
        return None if quorum_since is None else quorum_since + self.start_wait

    def deadline_after(self, took: Sequence[float]) -> float:
        """Return the seconds that a round may last, given what the last ones took since one failed."""
        if self.adapt is None or len(took) < _ROUNDS_TO_ADAPT:
            return self.deadline
        return min(self.deadline, max(_LEAST_DEADLINE, self.adapt * median(took)))

    def weight(self, num_examples: int, rounds_late: int) -> int:
        """Return the number of examples that an update counts with."""
        if self.late != "discount" or not rounds_late:
            return num_examples
        return max(1, round(num_examples * self.late_discount**rounds_late))

    def discount(self, rounds_late: int) -> float:
        """Return what the difference that an update makes is multiplied by."""
        return (1.0 + rounds_late) ** -self.staleness_exponent if self.asynchronous else 1.0

    def verdict(self, *, accepted: int, pending: int, elsewhere: int = 0, closes_at: float, now: float) -> Verdict:
        """Judge an open round by its accepted updates and by the clients that live and have not answered."""
        if self.asynchronous:
            pending += elsewhere
        if accepted >= self.target or (pending == 0 and accepted >= self.quorum):
            return Verdict.CLOSE
        if now < closes_at:
            return Verdict.WAIT
        return Verdict.CLOSE if accepted >= self.quorum else Verdict.FAIL
