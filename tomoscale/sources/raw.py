"""Frames that lie in files as plain pixels: read straight into the block, without a library between."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tomoscale.blocks import Window, shape_of
from tomoscale.sources.frames import Frames, numeric, opened, read_into


@dataclass(frozen=True, eq=False, repr=False)
class Raw(Frames):
    """
    Uncompressed frames at known places.

    Parameters
    ----------
    paths : tuple of str
        The files.
    file : numpy.ndarray
        For each frame the position of its file in `paths`.
    offsets : numpy.ndarray
        For each frame the byte at which its pixels start.
    frame : (int, int)
        Rows and columns.
    stored : numpy.dtype
        Type of the pixels, with their byte order.
    """

    direct = True

    paths: tuple[str, ...]
    file: np.ndarray
    offsets: np.ndarray
    frame: tuple[int, int]
    stored: np.dtype
    dtype: np.dtype = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", numeric(self.stored, self.paths[0]))

    @classmethod
    def stack(cls, path: str, offset: int, shape: Sequence[int], stored: np.dtype) -> Raw:
        """Return the frames of one (frame, row, column) array that starts at an offset."""
        n, rows, columns = shape
        starts = offset + np.arange(n, dtype=np.int64) * (rows * columns * stored.itemsize)
        return cls((path,), np.zeros(n, np.int32), starts, (rows, columns), stored)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.offsets), *self.frame)

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, 1, self.frame[1])

    @property
    def files(self) -> tuple[str, ...]:
        return self.paths

    def narrow(self, window: Window) -> tuple[Raw, Window]:
        span = window[0]
        used, file = np.unique(self.file[span], return_inverse=True)
        paths = tuple(self.paths[i] for i in used)
        light = Raw(paths, file.astype(np.int32), self.offsets[span], self.frame, self.stored)
        return light, (slice(0, span.stop - span.start), *window[1:])

    def read(self, window: Window) -> np.ndarray:
        frames, rows, columns = window
        height, width = self.frame
        line = width * self.stored.itemsize
        out = np.empty((*shape_of((frames, rows)), width), self.stored)
        file, starts = self.file[frames], self.offsets[frames] + rows.start * line
        whole = rows.stop - rows.start == height
        follows = whole & (np.diff(file) == 0) & (np.diff(starts) == height * line)
        runs = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(starts)]
        handle, current = None, -1
        try:
            for a, b in itertools.pairwise(runs):
                path = self.paths[file[a]]
                if file[a] != current:
                    if handle is not None:
                        handle.close()
                    handle, current = opened(path), file[a]
                assert handle is not None
                read_into(handle, int(starts[a]), out[a:b], path)
        finally:
            if handle is not None:
                handle.close()
        if not self.stored.isnative:
            out = out.byteswap(inplace=True).view(self.dtype)
        return out if columns == slice(0, width) else np.ascontiguousarray(out[:, :, columns])
