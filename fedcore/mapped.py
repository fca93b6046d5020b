"""Memory in files without a name: the system may write it out when others need the room, and it goes with the process."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np

from fedcore.errors import ConfigError, OutOfStorage
from fedcore.pool import Memory, borrow


@dataclass(frozen=True)
class Mapped:
    """Makes buffers in files of a folder; the files have no name."""

    folder: str

    def __call__(self, nbytes: int) -> Memory:
        """Return a buffer of ``nbytes`` bytes.

        Raises:
            OutOfStorage: the folder has no room for it.
        """
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix="fedcore-") as file:
                _reserve(file.fileno(), nbytes)
                return np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8)
        except OSError as error:
            raise OutOfStorage(f"no room for {nbytes} bytes in {self.folder}: {error.strerror}") from error


@dataclass(frozen=True)
class Landings:
    """Lends memory for what is received or summed up: of the process, or, from ``above`` bytes on, of files in ``folder``.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    above: int
    folder: str

    def __post_init__(self) -> None:
        if not os.path.isdir(self.folder) or not os.access(self.folder, os.W_OK):
            raise ConfigError(f"ServerConfig.map_folder: {self.folder!r} is no folder that can be written to")

    def lend(self, nbytes: int) -> Memory:
        """Return a buffer, possibly used before."""
        return borrow(nbytes, Mapped(self.folder)) if nbytes > self.above else borrow(nbytes)


def _reserve(file: int, nbytes: int) -> None:
    """Take the room now: writing to a mapped file on a full disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.ftruncate(file, nbytes)
