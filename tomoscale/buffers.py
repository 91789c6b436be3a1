"""
Memory of large arrays, kept from one block to the next.

Fresh pages cost as much as a kernel: the system zeroes 4.2 GB of cleaned frames before they are written, again for
every block, and a virtual machine may have to ask its host for each page first (computing alone: 454 instead of 203
Mvoxel/s on one worker in `bench_background`). Blocks of a run are all
alike, so the next one finds what the last one left.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

LARGE = 8 * 2**20
"""Smaller arrays come from the allocator, which keeps them anyway."""
SPARE = 1.5
"""A buffer is taken for an array if it is at most so many times as large."""
SLACK = 16
"""
A buffer has this fraction of room at its end: blocks inside a scan have a halo on more sides than the first one. The
system gives no memory for what is never touched.
"""

_reusing: ContextVar[bool] = ContextVar("reusing", default=False)
_free: list[mmap.mmap] = []
_lock = threading.Lock()


@contextmanager
def reused() -> Iterator[None]:
    """Let `empty`, in this thread, use the memory of earlier arrays, and keep it for later ones."""
    token = _reusing.set(True)
    try:
        yield
    finally:
        _reusing.reset(token)


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """
    Return an array of unknown content, as `numpy.empty` does.

    Within `reused` a large one lies in memory that was used before; that memory is used again when the last
    view of the array is gone. What is kept is never more than was in use at one time.

    Parameters
    ----------
    shape : sequence of int
        Its shape.
    dtype : dtype
        Its type.

    Returns
    -------
    numpy.ndarray
        C-contiguous.
    """
    dtype = np.dtype(dtype)
    n_bytes = math.prod(map(int, shape)) * dtype.itemsize
    if n_bytes < LARGE or not _reusing.get():
        return np.empty(shape, dtype)
    return np.asarray(_Lease(_take(n_bytes)))[:n_bytes].view(dtype).reshape(shape)


def clear() -> None:
    """Give back to the system what is kept."""
    with _lock:
        _free.clear()


class _Lease:
    """Memory lent to an array, which holds it as its base; it returns when the array and its views are gone."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        address = np.frombuffer(memory, np.uint8).ctypes.data
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (len(memory),),
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        _free.append(self.memory)  # atomic; a collection may run this while this thread holds the lock


def _take(n_bytes: int) -> mmap.mmap:
    with _lock:
        fitting = [m for m in _free if n_bytes <= len(m) <= SPARE * n_bytes]
        if fitting:
            best = min(fitting, key=len)
            _free.remove(best)
            return best
        _free.clear()  # what does not fit must not add to the peak
    memory = mmap.mmap(-1, n_bytes + n_bytes // SLACK)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
