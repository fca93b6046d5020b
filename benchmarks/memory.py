"""What processes occupy, as Linux counts it. Used by the benchmarks; runs nothing by itself.

``held`` is RssAnon + RssShmem: what the machine cannot take back. ``mapped`` is RssFile: pages of files, which it can.
"""

import ctypes
import gc
import threading
from contextlib import suppress
from pathlib import Path

FIELDS = ("VmHWM:", "VmRSS:", "RssAnon:", "RssFile:", "RssShmem:")


def status(pid="self"):
    """Return the fields in bytes; zeros when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        lines = []
    found = {line.split()[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(FIELDS)}
    return {name: found.get(name, 0) for name in FIELDS}


def occupied(pid="self"):
    now = status(pid)
    return {"held": now["RssAnon:"] + now["RssShmem:"], "mapped": now["RssFile:"]}


class Watch:
    """Looks at processes every few milliseconds from outside, so that they do not have to, and keeps the peaks.

    ``pids`` is a list that may still grow, or a function that returns one; ``pause`` is in seconds. Looking takes time from the
    cores that are measured: where rounds are short, look seldom.
    """

    def __init__(self, pids, pause=0.005):
        self.pause = pause
        self.pids = pids if callable(pids) else lambda: pids
        self.held, self.mapped, self.all = {}, {}, 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        pause = self.pause
        while not self.done.wait(pause):
            pids = list(self.pids())
            now = {pid: occupied(pid) for pid in pids}
            for pid, each in now.items():
                self.held[pid] = max(self.held.get(pid, 0), each["held"])
                self.mapped[pid] = max(self.mapped.get(pid, 0), each["mapped"])
            self.all = max(self.all, sum(each["held"] for each in now.values()))
            pause = max(self.pause, 0.001 * len(pids))  # of many processes each is looked at more seldom

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def extra(work):
    """Return what ``work`` needs at its peak beyond what was there before, in bytes, and its result."""
    gc.collect()
    with suppress(AttributeError):  # glibc keeps freed memory, which would then not count as new
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's own high-water mark starts again: no peak is missed
    before = status()["VmRSS:"]
    result = work()
    return max(0, status()["VmHWM:"] - before), result
