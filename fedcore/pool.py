"""Large buffers that are used again: memory that was written before is many times faster than memory fresh from the system.

A buffer goes back by itself when the last array or tensor that lies in it is gone, so whoever keeps a tensor keeps its
memory, and nobody has to say when they are done. Large allocations of numpy are asked for huge pages; those of torch are not.
"""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1 << 20  # the allocator keeps smaller ones warm by itself
_idle: dict[int, list[NDArray[np.uint8]]] = {}


def borrow(nbytes: int) -> NDArray[np.uint8]:
    """Return a buffer of ``nbytes`` bytes with arbitrary contents; one that went back is used first."""
    if nbytes < _SMALLEST:
        return np.empty(nbytes, np.uint8)
    idle = _idle.setdefault(nbytes, [])
    try:
        memory = idle.pop()
    except IndexError:
        memory = np.empty(nbytes, np.uint8)
    lent = memory[:]
    weakref.finalize(lent, idle.append, memory).atexit = False
    return lent


def drain() -> None:
    """Give all buffers that nobody uses back to the system."""
    for idle in list(_idle.values()):
        idle.clear()
