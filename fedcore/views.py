"""Tensors as memory: their bytes and numbers as views, for what works on memory and need not know a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUMPY: dict[torch.dtype, type[np.floating]] = {torch.float32: np.float32, torch.float64: np.float64}
"""The floating-point dtypes that numpy calculates with as fast as torch."""


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of ``tensor`` as a flat view of its own memory (of a copy if it is not contiguous on the CPU)."""
    return next(iter(regions([tensor])), memoryview(b""))


def regions(tensors: Iterable[Tensor]) -> list[memoryview]:
    """Return the bytes of tensors, one after the other, as flat views of their own memory: one for all that lie side by side.

    Tensors that are not contiguous on the CPU are copied; those without elements have no bytes.
    """
    views: list[memoryview] = []
    run: list[Tensor] = []
    begin = end = 0
    for tensor in tensors:
        if not tensor.nbytes:
            continue
        plain = tensor if tensor.is_cpu and tensor.is_contiguous() else tensor.detach().cpu().contiguous()
        at = plain.data_ptr()
        if run and at != end:
            views.append(_View(run, begin, end).array.data)
            run = []
        begin = begin if run else at
        end = at + plain.nbytes
        run.append(plain)
    return [*views, _View(run, begin, end).array.data] if run else views


class _View:
    """Lets numpy look at a stretch of memory and keeps alive the tensors it belongs to.

    torch could, too, but each of its calls lets go of the interpreter and has to queue for it again, which with many
    clients in one process costs more than all the rest.
    """

    def __init__(self, owners: list[Tensor], begin: int, end: int):
        self._owners = owners
        self.__array_interface__ = {"version": 3, "shape": (end - begin,), "typestr": "|u1", "data": (begin, False)}

    @property
    def array(self) -> NDArray[np.uint8]:
        return np.asarray(self)


def elements(tensor: Tensor) -> NDArray[np.floating]:
    """Return a float32 or float64 tensor's elements as one row that numpy works on; other floats as float32."""
    plain = tensor if tensor.dtype in NUMPY else tensor.detach().cpu().float()
    return np.frombuffer(raw_bytes(plain), NUMPY[plain.dtype])


def contiguous(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``parameters`` detached, on the CPU and contiguous; tensors that are so already are not copied."""
    return {
        name: t if t.is_cpu and t.is_contiguous() and not t.requires_grad else t.detach().cpu().contiguous()
        for name, t in parameters.items()
    }
