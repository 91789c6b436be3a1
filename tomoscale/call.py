"""One block function with its arguments: pieces are read when it is called, parts taken when memory runs out."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tomoscale import buffers, turns
from tomoscale.grid import Window, volume_of
from tomoscale.stream import Stream, joined


class Source(Protocol):
    """Anything that a window can be read from: a stored volume, an array, a set of detector files."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def chunks(self) -> tuple[int, ...]: ...
    def decoded(self, window: Window) -> int: ...
    def read(self, window: Window) -> np.ndarray: ...
    def at(self, window: Window) -> Piece: ...


@dataclass(frozen=True)
class Piece:
    """A window of a source, read when its task runs."""

    source: Source
    window: Window

    def load(self) -> np.ndarray:
        return self.source.read(self.window)

    @property
    def nbytes(self) -> int:
        return volume_of(self.window) * self.source.dtype.itemsize


Part = tuple[tuple[Any, ...], tuple[slice, ...]]
"""Arguments of a part of a block, and where its results lie in those of the block."""


class Tally(threading.local):
    """Into how many parts the blocks of this thread were cut since it was last set."""

    parts = 1


tally = Tally()


@dataclass(frozen=True)
class Call:
    """
    A block function with its arguments.

    Parameters
    ----------
    function : callable
        Gets its arguments, pieces as arrays, then small arrays as a whole.
    arguments : tuple
        Pieces and numbers.
    cut : callable, optional
        From a number of parts and the arguments to that many parts, whose results together are the same bit
        for bit; to none where so many cannot be.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cut: Callable[..., Sequence[Part]] | None = None

    def __call__(self, *small: Any) -> Any:
        """Call the function; of twice as many parts whenever the memory, that of a device say, is too small."""
        parts: Sequence[Part] = [(self.arguments, ())]
        while True:
            try:
                return self._in(parts, small)
            except Exception as error:
                smaller = (
                    self.cut(2 * len(parts), *self.arguments) if self.cut and is_exhausted(error) else ()
                )
                if not smaller:
                    raise
            # Only here, after the error, what it held is free.
            buffers.clear()
            parts = smaller
            tally.parts = max(tally.parts, len(parts))

    @property
    def pieces(self) -> list[Piece]:
        return [a for a in self.arguments if isinstance(a, Piece)]

    def _in(self, parts: Sequence[Part], small: tuple[Any, ...]) -> Any:
        if len(parts) == 1:
            return self._of(parts[0][0], small)
        windows = [w for _, w in parts]
        whole: list[np.ndarray | list[Stream]] = []
        for arguments, where in parts:
            part = self._of(arguments, small)
            fields = part if isinstance(part, tuple) else (part,)
            if not whole:
                shapes = [_around(f.shape, windows) for f in fields]
                whole = [
                    [] if isinstance(f, Stream) else buffers.empty(s, f.dtype)
                    for f, s in zip(fields, shapes, strict=True)
                ]
            for target, field in zip(whole, fields, strict=True):
                if isinstance(target, list):
                    target.append(field)
                else:
                    target[where] = field
        made = tuple(
            joined(s, list(zip(windows, t, strict=True))) if isinstance(t, list) else t
            for s, t in zip(shapes, whole, strict=True)
        )
        return made if isinstance(part, tuple) else made[0]

    def _of(self, arguments: tuple[Any, ...], small: tuple[Any, ...]) -> Any:
        given = [a.load() if isinstance(a, Piece) else a for a in arguments]
        with turns.taken():
            made = self.function(*given, *small)
            return tuple(map(_fetched, made)) if isinstance(made, tuple) else _fetched(made)


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out: of Python, NumPy and CuPy, of mmap, or of PyTorch."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
    )


def _fetched(array: Any) -> Any:
    """Bring a block that was made on a GPU back: what is written lies in the memory of the worker."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else array


def _around(shape: tuple[int, ...], windows: Sequence[tuple[slice, ...]]) -> tuple[int, ...]:
    """
    Return the shape that windows fill, given the shape of the first.

    >>> _around((9, 2, 5), [np.s_[:, 0:2], np.s_[:, 2:6]])
    (9, 6, 5)
    """
    stops = [max(w.stop or 0 for w in along) for along in zip(*windows, strict=True)]
    return tuple(stop or n for stop, n in zip(stops, shape, strict=False)) + shape[len(stops) :]
