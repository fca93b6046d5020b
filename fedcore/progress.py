"""How far a run is: which rounds made a model, which did not, and how long they took."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedcore.policy import RoundPolicy

_PACE_OF = 9  # rounds


@dataclass
class Progress:
    """Counts rounds.

    Attributes:
        policy: what follows a failed round.
        num_rounds: how many are wanted.
        committed: how many made a model.
        skipped: how many made none, and count all the same.
        failures: how many in a row made none.
        took: seconds that the last ones took since one made none.
    """

    policy: RoundPolicy
    num_rounds: int
    committed: int = 0
    skipped: int = 0
    failures: int = 0
    took: deque[float] = field(default_factory=lambda: deque(maxlen=_PACE_OF))

    @property
    def complete(self) -> bool:
        """Whether there were as many rounds as wanted."""
        return self.committed + self.skipped >= self.num_rounds

    def commit(self, seconds: float) -> None:
        """Count a round that made a model."""
        self.committed += 1
        self.failures = 0
        self.took.append(seconds)

    def fail(self, number: int, reason: str) -> str:
        """Count a round that made none, and return why the run is to end for it, or ""."""
        self.failures += 1
        self.took.clear()
        if self.policy.on_failure == "skip":
            self.skipped += 1
        elif self.policy.on_failure == "abort":
            return f"round {number} failed, because {reason}"
        elif self.failures >= self.policy.max_failures:
            return f"{self.failures} rounds in a row failed, the last one because {reason}"
        return ""

    def resume(self, outcomes: Iterable[float | None]) -> None:
        """Count the rounds of a run that was interrupted: the seconds of each that made a model, None for those that made none.

        A run that ended because too many rounds failed gets another chance: whoever starts it again wants that.
        """
        for seconds in outcomes:
            if seconds is None:
                self.fail(0, "")
            else:
                self.commit(seconds)
        if self.failures >= self.policy.max_failures:
            self.failures = 0
