"""What has come of updates that broke off on their way, so that their clients need not send that again."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from fedcore.intake import Intake
from fedcore.messages import Manifest, Submit


@dataclass(frozen=True)
class _Kept:
    attempt: str
    manifest: Manifest
    intake: Intake
    nbytes: int
    until: float


class Unfinished:
    """Keeps one such update a task, each for a while and all together within a quota; the oldest go first.

    Args:
        keep_for: seconds.
    """

    def __init__(self, keep_for: float):
        self._keep_for = keep_for
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes of the tensors that are kept."""
        return sum(each.nbytes for each in self._kept.values())

    def keep(self, header: Submit, intake: Intake, nbytes: int, *, quota: int, now: float) -> None:
        """Keep an update of ``nbytes`` bytes of tensors, if it is not above the quota on its own."""
        with self._lock:
            self._kept.pop(header.task_id, None)
            if nbytes > quota:
                return
            while self._kept and self.used + nbytes > quota:
                del self._kept[next(iter(self._kept))]
            self._kept[header.task_id] = _Kept(header.attempt_id, header.manifest, intake, nbytes, now + self._keep_for)

    def claim(self, header: Submit) -> Intake | None:
        """Give out what has come of the very same update, if anything; what has come of another one is forgotten."""
        with self._lock:
            kept = self._kept.pop(header.task_id, None)
        if kept is None or (kept.attempt, kept.manifest) != (header.attempt_id, header.manifest):
            return None
        return kept.intake

    def forget(self, now: float) -> None:
        """Let go of what was kept long enough."""
        with self._lock:
            self._kept = {task_id: each for task_id, each in self._kept.items() if each.until > now}

    def ends(self) -> list[float]:
        """Return when each was kept long enough."""
        with self._lock:
            return [each.until for each in self._kept.values()]
