"""Scripts of this folder in processes of their own, and what they occupy, as Linux counts it."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

HERE = Path(__file__).parent
MIB = 1 << 20
SCALE = float(os.environ.get("FEDCORE_LOAD_SCALE", "1"))
"""Less than 1 for a quick try: with fewer clients, rounds and seconds the figures mean little."""


def scaled(number, least=1):
    """Return a full figure, or less of it for a quick try."""
    return max(least, round(number * SCALE))


def say(**line):
    """In a script: tell the test something."""
    sys.stdout.write(json.dumps({**line, "at": time.monotonic()}) + "\n")
    sys.stdout.flush()


def settings():
    """In a script: what the test wants of it."""
    return json.loads(sys.argv[1])


def told():
    """In a script: yield what the test says, a word at a time; when the test is gone, so is the script."""
    for line in sys.stdin:
        yield line.strip()
    os._exit(0)


class Process:
    """A script that runs until the end of the ``with`` block, takes words and says lines of JSON.

    Attributes:
        environment: what it is started with, beside this process's.
        said: the lines so far.
    """

    environment: ClassVar[dict[str, str]] = {"OMP_NUM_THREADS": "1"}

    def __init__(self, script, **settings):
        self.name, self.said, self._next, self._news = script, [], 0, threading.Condition()
        self._popen = subprocess.Popen(
            [sys.executable, HERE / script, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **self.environment},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._folder = Path(f"/proc/{self._popen.pid}")

    # --- what it says ---

    def until(self, key, timeout=60.0, met=lambda line: True):
        """Wait for the next line that has a key, and return the line."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for at in range(self._next, len(self.said)):
                    line = self.said[at]
                    if key in line and met(line):
                        self._next = at + 1
                        return line
                if not self._reader.is_alive() or not self._news.wait(deadline - time.monotonic()):
                    raise AssertionError(f"{self.name} did not say {key!r} within {timeout} s, but: {self.said[-5:]}")

    def run_on(self, seconds):
        """Let it run for so many seconds; it must not end before."""
        self._reader.join(seconds)
        assert self._reader.is_alive(), f"{self.name} ended, and said last: {self.said[-5:]}"

    def all(self, key):
        """Return what all lines so far have under a key."""
        with self._news:
            return [line[key] for line in self.said if key in line]

    def tell(self, word):
        """Say a word to it."""
        self._popen.stdin.write(word + "\n")
        self._popen.stdin.flush()

    def ask(self, word, timeout=60.0):
        """Say a word, and return the answer, which has it as its key."""
        self.tell(word)
        return self.until(word, timeout)[word]

    def _read(self):
        for line in self._popen.stdout:
            with self._news:
                self.said.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    # --- what it occupies ---

    def _field(self, name):
        lines = (self._folder / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

    @property
    def rss(self):
        """Bytes in memory."""
        return self._field("VmRSS") << 10

    @property
    def peak(self):
        """The most bytes that were in memory at once, since the start or the last :meth:`forget_peak`."""
        return self._field("VmHWM") << 10

    def forget_peak(self):
        (self._folder / "clear_refs").write_text("5")

    @property
    def threads(self):
        return self._field("Threads")

    @property
    def files(self):
        """File descriptors in use."""
        return len(os.listdir(self._folder / "fd"))

    @property
    def cpu(self):
        """Seconds of processor time so far."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # --- its end ---

    def kill(self):
        """End it as a crash would."""
        self._popen.kill()
        self._popen.wait()

    def terminate(self, timeout=60.0):
        """Tell it to end in good order, and wait until it has."""
        self._popen.terminate()
        self._popen.wait(timeout)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        self.kill()
        self._reader.join()
        self._popen.stdout.close()


class Served(Process):
    """A server; see serving.py for the settings."""

    def __init__(self, **settings):
        super().__init__("serving.py", **settings)
        self.address = self.until("started")["started"]
        self.began = self.said[-1]["at"]

    @property
    def lost(self):
        """The clients that it gave up."""
        return self.all("lost")


def connections(address):
    """Return the ports of the clients that are connected to a server on this machine."""
    port, ends = int(address.rpartition(":")[2]), set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, here, there, state, *_ = line.split()
            if state == "01" and int(here.rpartition(":")[2], 16) == port:
                ends.add(int(there.rpartition(":")[2], 16))
    return ends


class Door:
    """Notes when clients connect to a server, from the moment it is made to the end of the ``with`` block.

    Attributes:
        moments: when each came, as far as is known: it was first seen then.
        gap: the longest time between two looks; longer ones than a second would make a crowd of what came one by one.
    """

    def __init__(self, address, pause=0.05):
        self._address, self._pause, self.moments, self.gap = address, pause, [], 0.0
        self._before = connections(address)
        self._done, self._thread = threading.Event(), threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        last = time.monotonic()
        while not self._done.wait(self._pause):
            now, at = connections(self._address), time.monotonic()
            self.moments += [at] * len(now - self._before)
            self.gap = max(self.gap, at - last)
            self._before, last = now, at

    def peak(self):
        """Return the most that came within a second."""
        return max((sum(at <= other < at + 1 for other in self.moments) for at in set(self.moments)), default=0)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()
