"""Named places where a test can make the process die, fail or wait. Without the environment variable each is one comparison.

``FEDCORE_FAILPOINTS="upd.before_row=kill@2,ckpt.before_fsync=raise"``: the second time a process comes to the first place it
kills itself, and the first time it comes to the second place it meets an error of the disk. Actions are ``kill`` (SIGKILL, as
sudden as the loss of the machine), ``raise`` (``OSError``: no space left) and ``pause`` (two seconds).
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator

from fedcore.errors import ConfigError
from fedcore.transport import Body, Buffer

VARIABLE = "FEDCORE_FAILPOINTS"
_ACTIONS = ("kill", "raise", "pause")
_lock = threading.Lock()
_passed: Counter[str] = Counter()


def _plan(text: str) -> dict[str, tuple[str, int]]:
    """Return what is to happen at which place, the how manyth time.

    Raises:
        ConfigError: the text says nothing of the kind.
    """
    plan = {}
    for part in filter(None, text.split(",")):
        name, _, what = part.partition("=")
        action, _, count = what.partition("@")
        if action not in _ACTIONS or not (count or "1").isdecimal():
            raise ConfigError(f"{VARIABLE}: {part!r} is not of the form NAME=ACTION or NAME=ACTION@TIMES; actions: {_ACTIONS}")
        plan[name] = action, int(count or 1)
    return plan


_planned = _plan(os.environ.get(VARIABLE, ""))


def passing(body: Body, total: int, name: str) -> Body:
    """Return a body that passes places where its first bytes are read, and its middle; itself if nothing is planned."""
    return _passing(body, total, name) if _planned else body


def _passing(body: Body, total: int, name: str) -> Iterator[Buffer]:
    passed, half = 0, False
    for buffer in body:
        yield buffer
        if not passed:
            reach(f"{name}.first_chunk")
        passed += memoryview(buffer).nbytes
        if not half and 2 * passed >= total:
            half = True
            reach(f"{name}.half")


def reach(name: str) -> None:
    """Pass a place.

    Raises:
        OSError: the plan says so.
    """
    if not _planned or name not in _planned:
        return
    action, when = _planned[name]
    with _lock:
        _passed[name] += 1
        due = _passed[name] == when
    if not due:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    elif action == "raise":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    else:
        time.sleep(2.0)
