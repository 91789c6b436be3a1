"""Repair of listed pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._compile import compiled


def replace_pixels(frames: NDArray[np.float32], hot: NDArray[np.bool_], group: NDArray[np.integer]) -> None:
    """
    Replace hot pixels by the median of their neighbours that are not, in place.

    Parameters
    ----------
    frames : (frame, row, column) float32
        Changed in place.
    hot : (group, row, column) bool
        Which pixels to replace in the frames of a group.
    group : (frame,) int
        Group of every frame.
    """
    for number in np.unique(group):
        rows, columns = np.nonzero(hot[number])
        members = np.flatnonzero(group == number)
        _replace(frames[members[0] : members[-1] + 1], hot[number], rows, columns)


@compiled
def _replace(frames, hot, rows, columns):  # type: ignore[no-untyped-def]
    n_frames, height, width = frames.shape
    around = np.empty(8, frames.dtype)
    for k in range(n_frames):
        for i in range(len(rows)):
            count = 0
            for r in range(max(0, rows[i] - 1), min(height, rows[i] + 2)):
                for c in range(max(0, columns[i] - 1), min(width, columns[i] + 2)):
                    if not hot[r, c]:
                        around[count] = frames[k, r, c]
                        count += 1
            frames[k, rows[i], columns[i]] = np.median(around[:count]) if count else 0
