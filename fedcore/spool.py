"""Rows of floating-point numbers in a file without a name, read back by columns: memory for a block, however many rows."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcore.errors import OutOfStorage
from fedcore.views import raw_bytes

Floats: TypeAlias = NDArray[np.float64]


class Spool:
    """Keeps rows of equal length. The file goes with the object, or with the process.

    Args:
        dtype: of what is kept: float32, or float64.
        folder: where the file lies; None: the system's folder for temporary files.

    Attributes:
        close: gives the file up; nothing can be read any more.

    Raises:
        OutOfStorage: no file can be made there.
    """

    def __init__(self, dtype: torch.dtype, folder: str | None = None):
        self._dtype, self._kind, self._rows, self._end = dtype, np.dtype(str(dtype).removeprefix("torch.")), 0, 0
        self._where = folder or tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(dir=folder, prefix="fedcore-", buffering=0) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            raise OutOfStorage(f"no file for updates can be made in {self._where}: {error.strerror}") from error
        self.close = weakref.finalize(self, os.close, self._file)

    def append(self, tensors: Iterable[Tensor]) -> int:
        """Write the elements of tensors as one row; return its number, from 0.

        Raises:
            OutOfStorage: the disk is full.
        """
        try:
            for tensor in tensors:
                self._write(memoryview(raw_bytes(tensor.detach().cpu().to(self._dtype).contiguous())))
        except OSError as error:
            raise OutOfStorage(f"no room for an update in {self._where}: {error.strerror}") from error
        self._rows += 1
        return self._rows - 1

    def read(self, rows: Sequence[int], columns: slice) -> Floats:
        """Return columns of some rows as float64, shape (len(rows), columns)."""
        length = self._end // self._rows
        size = self._kind.itemsize * (columns.stop - columns.start)
        found = np.empty((len(rows), columns.stop - columns.start))
        for index, row in enumerate(rows):
            data = os.pread(self._file, size, row * length + self._kind.itemsize * columns.start)
            found[index] = np.frombuffer(data, self._kind)
        return found

    def _write(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file, data, self._end)
            self._end += written
            data = data[written:]
