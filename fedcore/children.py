"""Child processes on this machine that cannot outlive their parent.

A child is told to end by the end of its standard input, which also comes when the parent dies, however it dies. That works
the same on every system. The interrupt key is for the parent alone.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Child", "Children", "obey_parent"]

_TAIL_LINES = 12


class Child:
    """A running Python module.

    Args:
        name: what it is called in reports.
        arguments: what follows ``python -m``.
        log: the file that takes what it writes.
        shown: its standard output goes where the parent's goes.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, *, shown: bool = False):
        self.name, self.log = name, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(  # noqa: S603 - the interpreter that runs this, and arguments of our own
                [sys.executable, "-m", *arguments], stdin=subprocess.PIPE, stdout=None if shown else file, stderr=file
            )

    @property
    def failed(self) -> bool:
        """Whether it has ended, and not well."""
        return self.process.poll() not in (None, 0)

    def tell_to_end(self) -> None:
        """Close its standard input."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def report(self) -> str:
        """Say how it ended, and show the end of its log."""
        code = self.process.poll()
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"failed with exit status {code}"
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        tail = "".join(f"\n    {line}" for line in lines) or "\n    (nothing)"
        return f"{self.name} {how}; the end of {self.log}:{tail}"


class Children:
    """All children of a parent. Leaving the ``with`` block ends those that still run.

    Args:
        grace: seconds they have for it before they are killed.
    """

    def __init__(self, grace: float = 3.0):
        self._grace = grace
        self._all: list[Child] = []
        self._ended: queue.SimpleQueue[Child] = queue.SimpleQueue()

    def launch(self, child: Child) -> Child:
        """Watch over a child from now on."""
        self._all.append(child)
        threading.Thread(target=self._wait_for, args=(child,), name=f"wait-{child.name}", daemon=True).start()
        return child

    def next_ended(self, timeout: float | None = None) -> Child | None:
        """Wait until a child ends, and return it; None after ``timeout`` seconds."""
        with suppress(queue.Empty):
            return self._ended.get(timeout=timeout)
        return None

    def end(self) -> None:
        """Tell all to end, and kill those that do not."""
        for child in self._all:
            child.tell_to_end()
        until = time.monotonic() + self._grace
        try:
            for child in self._all:
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, until - time.monotonic()))
        finally:
            for child in self._all:
                child.process.kill()
                child.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()

    def _wait_for(self, child: Child) -> None:
        child.process.wait()
        self._ended.put(child)


def obey_parent(end: Callable[[], object]) -> None:
    """In a child: leave the interrupt key to the parent, and call ``end`` on a thread when the parent wants it or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def listen() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would hold up the end of the interpreter
            pass
        end()

    threading.Thread(target=listen, name="parent", daemon=True).start()
