"""Files that are there whole or not at all, and on the disk when they are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from fedcore.transport import Buffer


def place(
    target: Path, part: Path, content: Iterable[Buffer], passed: Callable[[str], object] = str, *, private: bool = False
) -> None:
    """Write ``content`` to ``part``, synchronise it, rename it to ``target``, and synchronise the folder.

    Args:
        target: the file; one that is there is replaced.
        part: where it is written first, on the same disk; gone when this returns or raises.
        content: its bytes.
        passed: told of each step that a crash may come after.
        private: its owner alone may read it.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with part.open("xb") as file:
            if private:
                part.chmod(0o600)
            for buffer in content:
                file.write(buffer)
                passed("tmp_half")
            file.flush()
            passed("before_fsync")
            os.fsync(file.fileno())
        settle(part, target, passed)
    finally:
        part.unlink(missing_ok=True)


def settle(part: Path, target: Path, passed: Callable[[str], object] = str) -> None:
    """Rename a file that is on the disk, and synchronise the folder.

    Raises:
        OSError: it cannot be done.
    """
    passed("before_rename")
    part.replace(target)
    passed("after_rename")
    synchronise(target.parent)
    passed("after_dirsync")


def synchronise(folder: Path) -> None:
    """Have the names in a folder on the disk.

    Raises:
        OSError: it cannot be done.
    """
    if os.name != "posix":  # elsewhere a folder cannot be opened, and a name is durable by itself
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
