"""Arithmetic on several cores: threads of our own, because those of torch may stall for seconds when cores are shared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from fedcore.aggregator import Job

_WORTH = 1 << 20  # bytes below which handing work to another thread costs more than it saves


class Cores:
    """Runs independent jobs on as many threads as the machine lends this process.

    Args:
        count: how many; None asks the system.
    """

    def __init__(self, count: int | None = None):
        self._count = count or cores_lent()
        self._threads = ThreadPoolExecutor(max(1, self._count - 1), "fedcore-core")

    def each(self, jobs: Sequence[Job]) -> None:
        """Do all jobs, and return when they are done; the caller's thread does its share.

        Raises:
            Exception: the first that a job raised.
        """
        rest = iter(jobs)  # shared: each thread takes the next job
        helpers = []
        if sum(job.nbytes for job in jobs) >= _WORTH:
            helpers = [self._threads.submit(_work, rest) for _ in range(min(self._count, len(jobs)) - 1)]
        try:
            _work(rest)
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _work(jobs: Iterator[Job]) -> None:
    for job in jobs:
        job.run()


def cores_lent() -> int:
    """Return how many cores the machine lends this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
