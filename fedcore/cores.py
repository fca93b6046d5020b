"""Arithmetic on several cores: threads of our own, because those of torch may stall for seconds when cores are shared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

from fedcore.aggregator import Job
from fedcore.extents import check_finite, runs
from fedcore.parameters import Parameters, Spec, digest

_WORTH = 1 << 23  # bytes below which handing work to another thread costs more than it saves


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

    def measured(self, parameters: Parameters, spec: Spec) -> tuple[str, dict[str, float]]:
        """Return a model's digest and the largest magnitude in each of its floating-point tensors.

        Raises:
            NonFinite: naming a tensor that holds NaN or infinity.
        """
        digests: list[str] = []
        found: dict[str, float] = {}

        def look(run: Parameters) -> None:
            found.update(check_finite(run))

        jobs = [Job(spec.nbytes, lambda: digests.append(digest(parameters, spec)))]
        jobs += [Job(sum(tensor.nbytes for tensor in run.values()), partial(look, run)) for run in runs(parameters)]
        self.each(jobs)
        return digests[0], found

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _work(jobs: Iterator[Job]) -> None:
    for job in jobs:
        job.run()


def cores_lent() -> int:
    """Return how many cores the machine lends this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
