"""The moving median of a block of frames: arguments checked, samples viewed as bits, work handed to the tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoscale.kernels._arrays import plain
from tomoscale.kernels._median_tiles import Pieces, Samples, median_tiles, new_room
from tomoscale.kernels._running_counts import MOST

_SIGN_BIT = {"uint8": 0, "uint16": 0, "int16": 1 << 15, "int32": 1 << 31, "float32": 0}
_WORTH = 16
"""Frames of a piece whose counts are remembered: those of a shorter one would take more room than its codes."""


def moving_median(
    frames: NDArray, half_window: int, step: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """
    Take the median of a window of frames around every `step`-th frame.

    Centre j is frame c_j = min(j * step + step // 2, D - 1) for j = 0 .. ceil(D / step) - 1, and its window
    is [c_j - half_window, c_j + half_window] cut to the scan.

    Parameters
    ----------
    frames : (frame, row, column) array
        Raw or normalised frames: uint8, uint16, int16, int32 or float32. Copied unless contiguous and in
        native byte order.
    half_window : int
        Frames on each side of the centre, 0 or more.
    step : int
        Frames from one centre to the next, 1 or more.
    out : (ceil(D / step), row, column) array of float32, optional
        Where to write the result, contiguous.

    Returns
    -------
    (ceil(D / step), row, column) array of float32
        `numpy.median` of each window, bit for bit: the mean of the two middle samples when their number is
        even (in float64 for integers, in float32 for floats), and NaN where the window holds a NaN. Zeros are
        positive.

    Raises
    ------
    TypeError
        If the frames are of another type.
    ValueError
        If a shape, `half_window` or `step` is not as above.
    """
    if half_window < 0 or step < 1:
        raise ValueError(f"moving_median: half_window={half_window}, step={step}; need at least 0 and 1")
    n_frames = _checked(frames).shape[0]
    centre = np.minimum(np.arange(0, n_frames, step) + step // 2, n_frames - 1)
    starts = np.maximum(centre - half_window, 0)
    stops = np.minimum(centre + half_window, n_frames - 1) + 1
    return moving_median_windows(frames, starts, stops, out)


def moving_median_windows(
    frames: NDArray, starts: ArrayLike, stops: ArrayLike, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """
    Take the medians of frames[start:stop].

    Parameters
    ----------
    frames : (frame, row, column) array
        As for `moving_median`.
    starts, stops : (window,) array of int
        Half-open ranges of frames, none empty; neither starts nor stops ever fall.
    out : (window, row, column) array of float32, optional
        Where to write the result, contiguous.

    Returns
    -------
    (window, row, column) array of float32
        As for `moving_median`.

    Raises
    ------
    TypeError
        If the frames are of another type.
    ValueError
        If the windows or a shape are not as above.
    """
    return _solve(frames, starts, stops, out)[0]


def _solve(
    frames: NDArray, starts: ArrayLike, stops: ArrayLike, out: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], int]:
    """Solve the windows; return also how many of them (summed over tiles) were solved by running counts."""
    frames = _checked(frames)
    starts, stops = plain(starts, np.int64), plain(stops, np.int64)
    _check_windows(starts, stops, frames.shape[0])
    shape = (starts.size, *frames.shape[1:])
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"moving_median: out is {out.dtype} {out.shape}; need contiguous float32 {shape}")
    if out.size == 0:
        return out, 0
    native = plain(frames)
    bits = native.reshape(len(native), -1).view(f"u{native.itemsize}")
    wide = native.itemsize == 4
    key, whole, real = (np.uint32, np.int64, np.float64) if wide else (np.uint16, np.int32, np.float32)
    sign_bit, top = key(_SIGN_BIT[native.dtype.name]), np.iinfo(key).max
    samples = Samples(bits, sign_bit, native.dtype.kind == "f", key(top))
    pieces, n_slots = _pieces(starts, stops)
    room = new_room((key, whole, real), min(len(bits), 2 * int(np.max(stops - starts))), n_slots)
    return out, median_tiles(samples, pieces, room, out.reshape(len(out), -1))


def _pieces(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> tuple[Pieces, int]:
    """Cut the scan so that windows are made of whole pieces; how many slots its windows need."""
    bounds = np.unique(np.concatenate([starts, stops, np.arange(starts[0], stops[-1], MOST)]))
    begins, ends = np.searchsorted(bounds, starts), np.searchsorted(bounds, stops)
    worth = np.diff(bounds) >= _WORTH
    before = np.concatenate([[0], np.cumsum(worth)])
    n_slots = int(np.max(before[ends] - before[begins]))
    slots = np.where(worth, before[:-1] % max(n_slots, 1), n_slots)
    return Pieces(bounds, slots, starts, stops, begins, ends), n_slots


def _checked(frames: NDArray) -> NDArray:
    if frames.dtype.name not in _SIGN_BIT:
        raise TypeError(f"moving_median: frames are {frames.dtype}; need one of {', '.join(_SIGN_BIT)}")
    if frames.ndim != 3 or len(frames) == 0:
        raise ValueError(
            f"moving_median: frames have shape {frames.shape}; need (frame, row, column) with a frame"
        )
    return frames


def _check_windows(starts: NDArray[np.int64], stops: NDArray[np.int64], n_frames: int) -> None:
    if starts.ndim != 1 or starts.shape != stops.shape:
        raise ValueError(
            f"moving_median: {starts.shape} starts and {stops.shape} stops; need as many of each"
        )
    if starts.size == 0:
        return
    if starts.min() < 0 or stops.max() > n_frames or (stops <= starts).any():
        raise ValueError(f"moving_median: a window is empty or not within the {n_frames} frames")
    if (np.diff(starts) < 0).any() or (np.diff(stops) < 0).any():
        raise ValueError("moving_median: windows go back; sort them by their first frame")
