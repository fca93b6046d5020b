"""A file that is read again when it changes, while it is in use."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from fedcore.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched(Generic[T]):
    """What a file says.

    Args:
        path: the file.
        read: makes sense of it; raises OSError or ValueError, with nothing secret in their text, if there is none in it.

    Attributes:
        value: what it said when it could last be read.

    Raises:
        ConfigError: it cannot be read now.
    """

    def __init__(self, path: str | Path, read: Callable[[Path], T]):
        self._path, self._make_sense, self._problem = Path(path), read, ""
        try:
            self.value = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be used: {error}") from error

    def refresh(self) -> bool:
        """Read it again if it has changed, and return whether it had. One that is gone or broken says what it said before."""
        try:
            if stamp(self._path) == self._stamp:
                return False
            self.value = self._read()
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                log.error("%s cannot be read, and what it said before counts on: %s", self._path, error)
            self._problem = str(error)
            return False
        self._problem = ""
        return True

    def _read(self) -> T:
        before = stamp(self._path)
        value = self._make_sense(self._path)
        self._stamp = before
        return value


def stamp(path: str | Path) -> tuple[int, int, int]:
    """Return what changes when a file does."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino
