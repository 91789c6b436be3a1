"""
Arrays that are made while they are written, a chunk at a time.

Cleaned frames take twice the bytes of the raw ones. Made as a whole they go out to memory and are fetched again to be
encoded; a chunk of them stays in the cache between the two, and a block holds its input only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import buffers
from tomoscale.grid import Window, shape_of, volume_of

_streaming: ContextVar[bool] = ContextVar("streaming", default=False)


@dataclass(frozen=True)
class Stream:
    """
    An array that is to be made.

    Parameters
    ----------
    shape : tuple of int
        Its shape.
    dtype : numpy.dtype
        Its type.
    fill : callable
        Writes the values of a window into a contiguous array of its shape.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[Window, np.ndarray], None]

    def made(self, window: Window, room: np.ndarray) -> np.ndarray:
        """Return a window, made at the beginning of a contiguous array that is large enough."""
        out = room.reshape(-1)[: volume_of(window)].reshape(shape_of(window))
        self.fill(window, out)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all of it."""
        whole = buffers.empty(self.shape, self.dtype)
        self.fill(tuple(slice(0, n) for n in self.shape), whole)
        return whole if dtype is None else whole.astype(dtype, copy=False)


def joined(shape: Sequence[int], parts: Sequence[tuple[Sequence[slice], Stream]]) -> Stream:
    """
    Return streams that lie side by side as one.

    Parameters
    ----------
    shape : sequence of int
        Of all together.
    parts : sequence of (sequence of slice, Stream)
        Where each lies along the first axes, and what makes it.

    Returns
    -------
    Stream
        Holds on to all of them, and makes none as a whole.
    """
    corners = [[w.start or 0 for w in where] for where, _ in parts]

    def fill(window: Window, out: np.ndarray) -> None:
        for corner, (_, part) in zip(corners, parts, strict=True):
            starts = [*corner, *[0] * (len(shape) - len(corner))]
            both = [
                slice(max(w.start, s), min(w.stop, s + n))
                for w, s, n in zip(window, starts, part.shape, strict=True)
            ]
            if all(b.start < b.stop for b in both):
                own = tuple(slice(b.start - s, b.stop - s) for b, s in zip(both, starts, strict=True))
                room = np.empty(volume_of(own), part.dtype)
                out[
                    tuple(
                        slice(b.start - w.start, b.stop - w.start) for b, w in zip(both, window, strict=True)
                    )
                ] = part.made(own, room)

    return Stream(tuple(shape), parts[0][1].dtype, fill)


@contextmanager
def allowed(when: bool = True) -> Iterator[None]:
    """Let `array`, in this thread, return arrays that are still to be made, when a writer is to make them."""
    token = _streaming.set(when)
    try:
        yield
    finally:
        _streaming.reset(token)


def array(
    shape: Sequence[int], dtype: Any, fill: Callable[[Window, np.ndarray], None]
) -> np.ndarray | Stream:
    """
    Return an array, or within `allowed` what will make it.

    Parameters
    ----------
    shape : sequence of int
        Its shape.
    dtype : dtype
        Its type.
    fill : callable
        Writes the values of a window (half-open slices) into a contiguous array of its shape.

    Returns
    -------
    numpy.ndarray or Stream
        The latter holds on to whatever `fill` needs.
    """
    made = Stream(tuple(shape), np.dtype(dtype), fill)
    return made if _streaming.get() else np.asarray(made)
