"""Trying again: with pauses of full jitter that grow, never earlier than told, as long as there is hope and patience."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

from fedcore.clock import Clock
from fedcore.errors import ChecksumError, FedcoreError

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_CHECKSUM_TRIES = 3  # bytes that arrive changed again and again are no accident of the network


class Persistence:
    """How somebody goes on who fails.

    Args:
        patience: seconds to go on trying without success.
        clock: the time.
        jitter: spreads the attempts of many.
        spread: returns over how many seconds they are to be spread, all of them, from the first on.
        obey: waits for so many seconds, because the server said so; None: as ``pause`` does.
        pause: waits for so many seconds, or less where that makes sense.
        hopeless: whether there is no sense in going on.
    """

    def __init__(
        self,
        patience: float,
        clock: Clock,
        jitter: random.Random,
        pause: Callable[[float], object],
        hopeless: Callable[[], bool],
        spread: Callable[[], float] = float,
        obey: Callable[[float], object] | None = None,
    ):
        self._patience, self._clock, self._jitter, self._pause = patience, clock, jitter, pause
        self._hopeless, self._spread, self._obey = hopeless, spread, obey or pause

    def insist(self, attempt: Callable[[], T]) -> T:
        """Make an attempt until it works.

        Raises:
            FedcoreError: the last error, when there is no hope or no patience left.
        """
        trial = self.trial()
        while True:
            try:
                return attempt()
            except FedcoreError as error:
                trial.failed(error)

    def trial(self) -> Trial:
        """Begin something that may fail several times."""
        return Trial(self)


class Trial:
    """Something that may fail several times, until it works or is given up."""

    def __init__(self, of: Persistence):
        self._of = of
        self.succeeded()

    def succeeded(self) -> None:
        """Say that there was progress: patience begins anew."""
        self._since: float | None = None
        self._longest, self._corrupted = 0.0, 0

    def failed(self, error: FedcoreError) -> None:
        """Pause after a failure.

        Raises:
            FedcoreError: this error, if it is the last.
        """
        of, now = self._of, self._of._clock.now()
        self._since = now if self._since is None else self._since
        self._corrupted += isinstance(error, ChecksumError)
        hopeless = not error.retryable or self._corrupted >= _CHECKSUM_TRIES or of._hopeless()
        told = error.retry_after or 0.0
        if hopeless or now + told - self._since >= of._patience:
            raise error
        log.debug("%s; trying again", error)
        spread = of._spread()
        self._longest = max(min(2 * self._longest, _LONGEST_PAUSE), _FIRST_PAUSE, spread)
        wait = of._obey if told else of._pause
        wait(told + of._jitter.uniform(0, self._longest))
