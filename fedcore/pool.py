"""Large buffers that are used again: memory that was written before is many times faster than memory fresh from the system.

A buffer goes back by itself when the last array or tensor that lies in it is gone, so whoever keeps a tensor keeps its
memory, and nobody has to say when they are done. Large allocations of numpy are asked for huge pages; those of torch are not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import OutOfStorage

Memory: TypeAlias = NDArray[np.uint8]
Lender: TypeAlias = Callable[[int], Memory]
"""Gives a buffer of so many bytes, with arbitrary contents."""

_SMALLEST = 1 << 17  # the allocator keeps smaller ones warm by itself
_idle: dict[tuple[Lender, int], list[Memory]] = {}


def fresh(nbytes: int) -> Memory:
    """Return a buffer that the system gives.

    Raises:
        OutOfStorage: it has not so much.
    """
    try:
        return np.empty(nbytes, np.uint8)
    except (MemoryError, ValueError) as error:
        raise OutOfStorage(f"this machine has no memory for {nbytes} bytes") from error


def borrow(nbytes: int, make: Lender = fresh) -> Memory:
    """Return a buffer of ``nbytes`` bytes with arbitrary contents: one that went back, or else one that ``make`` gives."""
    if nbytes < _SMALLEST:
        return fresh(nbytes)
    idle = _idle.setdefault((make, nbytes), [])
    try:
        memory = idle.pop()
    except IndexError:
        memory = make(nbytes)
    lent = np.frombuffer(memory.data, np.uint8)  # slices of this one keep it alive, those of a plain slice would not
    weakref.finalize(lent, idle.append, memory).atexit = False
    return lent


def drain() -> None:
    """Give all buffers that nobody uses back to the system."""
    for idle in list(_idle.values()):
        idle.clear()
