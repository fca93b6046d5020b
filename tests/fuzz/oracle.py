"""What must hold of every input, and the figures of how near anything came to its limits."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fedcore.errors import FedcoreError, RemoteError, from_reason

CORPUS = Path(__file__).parent / "corpus"

LARGEST = 64 << 10
"""Bytes of an input: the limits are for inputs up to this size."""

SECONDS, MEMORY = 0.1, 64 << 20
"""What an input may cost: seconds of a core, and bytes beyond what the process had before."""

_STATUS = Path("/proc/self/status")
_NOISE = 10  # a machine that does other things, and code that is instrumented
_LONGEST = 4096  # characters of an error: it goes into a log


class Violation(AssertionError):
    """An input did what no input may do."""


@dataclass(frozen=True)
class Target:
    """Something that decodes bytes from strangers.

    Attributes:
        name: what it is called.
        seeds: makes valid inputs with the real encoders, by name.
        run: decodes one input; returns if it is accepted, raises FedcoreError if it is refused.
        mutate: changes a valid input in one place; ``havoc`` does so with bytes that have no structure.
    """

    name: str
    seeds: Callable[[], Iterable[tuple[str, bytes]]]
    run: Callable[[bytes], object]
    mutate: Callable[[bytes, Random, Callable[[bytes, Random], bytes]], bytes]

    def corpus(self) -> list[Path]:
        """Return the inputs that are kept."""
        return sorted((CORPUS / self.name).iterdir())


@dataclass
class Oracle:
    """Judges one input after the other.

    Attributes:
        target: what decodes them.
        executions: how many there were.
        refused: how many of them were refused.
        slowest: seconds of a core that the slowest took.
        greediest: bytes that one took beyond what there was before.
    """

    target: Target
    executions: int = 0
    refused: int = 0
    slowest: float = 0.0
    greediest: int = 0
    slowest_input: bytes = field(default=b"", repr=False)
    greediest_input: bytes = field(default=b"", repr=False)

    def judge(self, data: bytes) -> bool:
        """Run one input; returns whether it was accepted.

        Raises:
            Violation: another error than a FedcoreError escaped, or it took too much time or memory.
        """
        (before, most), began = memory(), time.thread_time()
        accepted = True
        try:
            self.target.run(data)
        except FedcoreError as error:
            accepted = False
            self.refused += 1
            _check(error)
        except Exception as error:
            raise Violation(f"{type(error).__name__} escaped: {error}") from error
        took, after = time.thread_time() - began, memory()[1]
        grew = after - before if after > most else 0  # else it took no more than another one before
        self.executions += 1
        if took > self.slowest:
            self.slowest, self.slowest_input = took, data
        if grew > self.greediest:
            self.greediest, self.greediest_input = grew, data
        if len(data) <= LARGEST and took > _NOISE * SECONDS:
            raise Violation(f"{len(data)} bytes took {took:.2f} s")
        if len(data) <= LARGEST and grew > MEMORY:
            raise Violation(f"{len(data)} bytes took {grew >> 20} MiB")
        return accepted


def _check(error: FedcoreError) -> None:
    if isinstance(from_reason(error.reason, ""), RemoteError) and not isinstance(error, RemoteError):
        raise Violation(f"reason {error.reason!r} is not known to the other side")
    if len(str(error)) > _LONGEST:
        raise Violation(f"an error of {len(str(error))} characters")


def signature(error: BaseException) -> str:
    """Return what tells two failures apart: the kind of the error, and the line of fedcore it came from."""
    cause = error.__cause__ or error
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "/tests/" not in frame.filename]
    return f"{type(cause).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else str(error)


def memory() -> tuple[int, int]:
    """Return the bytes of memory that the process has now, and the most that it had at any time."""
    try:
        text = _STATUS.read_bytes()
    except FileNotFoundError:  # no Linux: time alone is judged
        return 0, 0
    return _kib(text, b"VmRSS:") << 10, _kib(text, b"VmHWM:") << 10


def forget_the_most() -> None:
    """Begin anew with the most memory that the process had."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _kib(text: bytes, name: bytes) -> int:
    at = text.index(name) + len(name)
    return int(text[at : text.index(b"kB", at)])
