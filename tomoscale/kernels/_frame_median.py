"""The median of each frame's neighbouring pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import plain
from tomoscale.kernels._compile import compiled
from tomoscale.kernels._median_3 import STRIP, line_of, room, two_rows
from tomoscale.kernels._median_networks import median_row, spread_nan
from tomoscale.kernels._rows import copy_padded

_TYPES = ("uint8", "uint16", "int16", "int32", "float32")


def frame_median(frames: NDArray, size: int, out: NDArray | None = None) -> NDArray:
    """
    Take the median of `size` x `size` neighbouring pixels in every frame.

    Pixels beyond the edge repeat the nearest one (`mode="nearest"`).

    Parameters
    ----------
    frames : (frame, row, column) array
        uint8, uint16, int16, int32 or float32.
    size : int
        Edge of the neighbourhood in pixels, odd. 1 copies, 3 and 5 are fast; any larger edge is exact but
        takes about a thousand times as long.
    out : (frame, row, column) array, optional
        Where to write the result, of the type of `frames`; it may not overlap them.

    Returns
    -------
    (frame, row, column) array
        As `scipy.ndimage.median_filter(frame, size, mode="nearest")`, and NaN where a neighbour is NaN;
        zeros of 3 x 3 are positive.

    Raises
    ------
    TypeError
        If the frames are of another type.
    ValueError
        If `size` is not odd, or a shape not as above.
    """
    check_size("frame_median", size)
    if frames.dtype.name not in _TYPES:
        raise TypeError(f"frame_median: frames are {frames.dtype}; need one of {', '.join(_TYPES)}")
    if frames.ndim != 3:
        raise ValueError(f"frame_median: frames have shape {frames.shape}; need (frame, row, column)")
    native = plain(frames)
    if out is None:
        out = np.empty(native.shape, native.dtype)
    elif out.shape != native.shape or out.dtype != native.dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"frame_median: out is {out.dtype} {out.shape}; need contiguous {native.dtype} {native.shape}"
        )
    if out.size > 0:
        _median_frames(native, size, out)
    return out


def check_size(who: str, size: int) -> None:
    """Refuse a neighbourhood that has no middle pixel."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{who}: size={size}; need an odd edge: 1, 3, 5, ...")


@compiled
def _median_frames(frames, size, out):  # type: ignore[no-untyped-def]
    n_frames, n_rows, n_columns = frames.shape
    half = size // 2
    ring = np.empty((size, n_columns + 2 * half), frames.dtype)
    columns = np.empty_like(ring)
    lines, spare = room(frames)
    for k in range(n_frames):
        frame, target = frames[k], out[k]
        has_nan = False
        if size == 3:
            for begin in range(0, n_columns, STRIP):
                end = min(begin + STRIP, n_columns)
                for r in range(-2, n_rows, 2):
                    for i in range(2):
                        nearest = min(max(r + 1 + i, 0), n_rows - 1)
                        line = line_of(lines, r + 1 + i, end - begin)
                        has_nan |= copy_padded(frame[nearest], begin - 1, line)
                    if r >= 0:
                        lower = target[r + 1, begin:end] if r < n_rows - 1 else spare[: end - begin]
                        two_rows(lines, r, target[r, begin:end], lower)
        else:
            ready = 0
            for r in range(n_rows):
                while ready <= min(r + half, n_rows - 1):
                    has_nan |= copy_padded(frame[ready], -half, ring[ready % size])
                    ready += 1
                median_row(ring, r, n_rows - 1, size, columns, target[r])
        if has_nan:
            for r in range(n_rows):
                if copy_padded(frame[r], -half, ring[0]):
                    spread_nan(ring[0], r, half, target)
