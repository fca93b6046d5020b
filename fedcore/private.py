"""Files and folders that their owner alone may look into."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedcore.errors import ConfigError, StateError


def is_private(path: Path) -> bool:
    """Return whether only its owner can read or write a file, as far as the system tells."""
    return not stat.S_IMODE(path.stat().st_mode) & 0o077


def make_folder(folder: Path) -> None:
    """Make a folder that its owner alone may look into."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file in one step; a private one can never be read by others, not even while it is written."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_key(path: Path) -> Any:
    """Return the private key in a PEM file, as the library ``cryptography`` has it.

    Raises:
        ConfigError: there is none in it, or only with a password.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no key that can be used: {error}") from error


def append(path: Path, line: str) -> None:
    """Add a line to a file, and have it on the disk."""
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def claim_folder(folder: Path) -> None:
    """Make a folder that its owner alone may look into; one that is there must be fit for what nobody else may change.

    Raises:
        StateError: it is not; see :func:`check_own`.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        check_own(folder, stat.S_ISDIR)


def claim_file(path: Path) -> None:
    """Make an empty file for its owner alone; one that is there must be fit for what nobody else may change.

    Raises:
        StateError: it is not; see :func:`check_own`.
    """
    try:
        path.touch(0o600, exist_ok=False)
    except FileExistsError:
        check_own(path, stat.S_ISREG)


def check_own(path: Path, of_kind: Callable[[int], bool]) -> None:
    """Check that a file or folder belongs to whoever runs this, and that nobody else may write to it.

    Raises:
        StateError: it is a link or another kind of thing, somebody else's, or others may write to it; the text says what to do.
    """
    found = path.lstat()
    if not of_kind(found.st_mode):
        what = "folder" if of_kind is stat.S_ISDIR else "file"
        raise _unsafe(f"{path} is no {what} (links are not followed): name another one")
    if os.name != "posix":
        return
    if found.st_uid != os.geteuid():
        raise _unsafe(
            f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}: run as that user, or name another one"
        )
    if mode := stat.S_IMODE(found.st_mode) & 0o022:
        who = "everybody" if mode & 0o002 else "its group"
        raise _unsafe(f"{path} can be written to by {who}: if nobody else did, `chmod go-w {path}`; else name another one")


def _unsafe(what: str) -> StateError:
    return StateError(what, reason="STATE_UNSAFE")
