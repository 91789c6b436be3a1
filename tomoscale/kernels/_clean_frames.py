"""Dark and level, background, frame median and rounding: a frame is cleaned in one pass, a few rows at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoscale.kernels._arrays import name_of, plain
from tomoscale.kernels._compile import compiled, part
from tomoscale.kernels._frame_median import check_size
from tomoscale.kernels._half_counts import clean_in_halves
from tomoscale.kernels._median_3 import STRIP, line_of, room, two_rows
from tomoscale.kernels._median_networks import median_row, spread_nan
from tomoscale.kernels._rows import FITS, normalise_padded, normalise_row, store_row

_COUNTS = ("uint8", "uint16")
_TYPES = ("uint8", "uint16", "int16", "int32", "float32")
_LIMITS = {"float32": (0.0, 0.0), "int32": (-(2.0**31), 2.0**31 - 1), "int16": (-(2.0**15), 2.0**15 - 1)}


class NanError(ValueError):
    """A frame holds NaN where integers are to be written."""


def normalise(
    frames: NDArray, dark: NDArray | None = None, scale: ArrayLike | None = None, out: NDArray | None = None
) -> NDArray[np.float32]:
    """
    Subtract the dark image and bring the frames to one level.

    Parameters
    ----------
    frames : (frame, row, column) array
        Raw frames: uint8, uint16, int16, int32 or float32.
    dark : (row, column) array, optional
        Detector offset in counts, float32 or float64.
    scale : (frame,) array of float32, optional
        Factor of each frame.
    out : (frame, row, column) array of float32, optional
        Where to write the result, contiguous.

    Returns
    -------
    (frame, row, column) array of float32
        float32(float32(frames - dark) * scale), each operation rounded once.

    Raises
    ------
    TypeError
        If the frames are of another type.
    ValueError
        If a shape is not as above.
    """
    frames, dark, scale = _checked("normalise", frames, dark, scale)
    if out is None:
        out = np.empty(frames.shape, np.float32)
    _check_out("normalise", out, frames.shape, ("float32",))
    if out.size > 0:
        _normalise(frames, dark, scale, _LIMITS["float32"], out)
    return out


def normalise_rint(
    frames: NDArray, dark: NDArray | None = None, scale: ArrayLike | None = None
) -> tuple[NDArray[np.int32], bool]:
    """
    Normalise frames and round them to whole counts.

    Parameters
    ----------
    frames, dark, scale
        As for `normalise`.

    Returns
    -------
    rounded : (frame, row, column) array of int32
        numpy.rint of the normalised frames.
    fits : bool
        Whether that holds everywhere: False if a value is NaN or beyond int32, and `rounded` is then of no
        use.

    Raises
    ------
    TypeError
        If the frames are of another type.
    ValueError
        If a shape is not as above.
    """
    frames, dark, scale = _checked("normalise_rint", frames, dark, scale)
    rounded = np.empty(frames.shape, np.int32)
    fits = rounded.size == 0 or _normalise(frames, dark, scale, _LIMITS["int32"], rounded)
    return rounded, bool(fits)


def clean_frames(
    frames: NDArray,
    dark: NDArray | None,
    scale: ArrayLike | None,
    background: NDArray[np.float32],
    window_of_frame: ArrayLike,
    size: int,
    out: NDArray,
    crop: tuple[int, int] = (0, 0),
    first: int = 0,
) -> NDArray:
    """
    Normalise frames, subtract their background and take the median of neighbouring pixels, in one pass.

    Parameters
    ----------
    frames : (frame, row, column) array
        Raw frames: uint8, uint16, int16, int32 or float32, with a halo of size // 2 pixels except at the
        detector's edge.
    dark, scale
        As for `normalise`.
    background : (window, row, column) array of float32
        Backgrounds, in normalised counts.
    window_of_frame : (frame,) array of int
        Which background belongs to each frame.
    size : int
        Edge of the median's neighbourhood in pixels, odd; 1 for none.
    out : (frame, row, column) array of float32, int32 or int16
        Where to write the result, contiguous. Integers are rounded to even and saturate.
    crop : (int, int)
        Row and column of the block that come first in `out`.
    first : int
        What an error calls the first frame.

    Returns
    -------
    array
        `out`. Neighbours beyond the block repeat its nearest pixel; a NaN neighbour makes the median NaN.

    Raises
    ------
    TypeError
        If frames, background or `out` are of another type.
    ValueError
        If a shape is not as above; a `NanError`, which names the frame, if a NaN is to be written to integers.
    """
    check_size("clean_frames", size)
    in_counts = scale is None and name_of(frames.dtype) in _COUNTS
    frames, dark, scale = _checked("clean_frames", frames, dark, scale)
    window_of_frame = plain(window_of_frame, np.int64)
    n_frames, n_rows, n_columns = frames.shape
    top, left = crop
    if background.dtype != np.float32:
        raise TypeError(f"clean_frames: background is {background.dtype}; need float32")
    if background.shape[1:] != frames.shape[1:]:
        raise ValueError(f"clean_frames: background has shape {background.shape}, frames have {frames.shape}")
    if window_of_frame.shape != (n_frames,):
        raise ValueError(
            f"clean_frames: window_of_frame has shape {window_of_frame.shape}; need ({n_frames},)"
        )
    if n_frames and not 0 <= window_of_frame.min() <= window_of_frame.max() < len(background):
        raise ValueError(f"clean_frames: window_of_frame leaves the {len(background)} backgrounds")
    _check_out("clean_frames", out, (n_frames, *out.shape[1:]), tuple(_LIMITS))
    if min(crop) < 0 or top + out.shape[1] > n_rows or left + out.shape[2] > n_columns:
        raise ValueError(f"clean_frames: out {out.shape} at {crop} leaves the frames {frames.shape}")
    if out.size > 0:
        limits = _LIMITS[name_of(out.dtype)]
        smooth = out if out.dtype == np.float32 else np.empty((1, *out.shape[1:]), np.float32)
        background, done, k = plain(background), np.zeros(n_frames, np.bool_), -1
        if size == 3 and in_counts:
            clean_in_halves(frames, dark, background, window_of_frame, crop, limits, smooth, done, out)
        if not done.all():
            given = (frames, dark, scale, background, window_of_frame, done)
            k = _clean(*given, size, top, left, limits, smooth, out)
        if k >= 0:
            raise NanError(
                f"clean_frames: frame {first + k} holds NaN, which {out.dtype} cannot; use float32"
            )
    return out


def _checked(
    who: str, frames: NDArray, dark: NDArray | None, scale: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray[np.float32]]:
    """Return contiguous frames, a dark image and factors; what is not given becomes 0 and 1, which change nothing."""
    if name_of(frames.dtype) not in _TYPES:
        raise TypeError(f"{who}: frames are {frames.dtype}; need one of {', '.join(_TYPES)}")
    if frames.ndim != 3:
        raise ValueError(f"{who}: frames have shape {frames.shape}; need (frame, row, column)")
    if dark is None:
        # One row for all: an image of zeros would be read from memory for nothing.
        dark = np.zeros((1, frames.shape[2]), np.float64 if frames.dtype == np.int32 else np.float32)
    elif dark.shape != frames.shape[1:]:
        raise ValueError(f"{who}: dark has shape {dark.shape}, frames have {frames.shape[1:]}")
    scale = np.ones(len(frames), np.float32) if scale is None else np.asarray(scale, np.float32)
    if scale.shape != (len(frames),):
        raise ValueError(f"{who}: scale has shape {scale.shape}; need ({len(frames)},)")
    single = dark.astype(np.float32, copy=False)
    fits = frames.dtype != np.int32 and (single is dark or np.array_equal(single, dark))
    return plain(frames), plain(single if fits else dark, np.float32 if fits else np.float64), plain(scale)


def _check_out(who: str, out: NDArray, shape: tuple[int, ...], types: tuple[str, ...]) -> None:
    if name_of(out.dtype) not in types or out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(
            f"{who}: out is {out.dtype} {out.shape}; need contiguous {' or '.join(types)} {shape}"
        )


@compiled
def _normalise(frames, dark, scale, limits, out):  # type: ignore[no-untyped-def]
    """Return whether all values fit `out`."""
    n_frames, n_rows, n_columns = frames.shape
    line = np.empty(n_columns, np.float32)
    zero = np.zeros(n_columns, np.float32)
    fits = True
    for k in range(n_frames):
        for r in range(n_rows):
            normalise_row(frames[k, r], dark[min(r, dark.shape[0] - 1)], scale[k], zero, line)
            fits &= store_row(line, limits, out[k, r]) == FITS
    return fits


@compiled
def _clean(frames, dark, scale, background, window_of_frame, done, size, top, left, limits, smooth, out):  # type: ignore[no-untyped-def]
    """
    Clean frames that are not done; return the first one whose NaN does not fit `out`, or -1.

    `smooth` is where the float32 medians go: `out` itself if it is of that type, else room for one frame.
    """
    half = size // 2
    low, high = limits
    ring = np.empty((size, out.shape[2] + 2 * half), np.float32)
    columns = np.empty_like(ring)
    lines, spare = room(smooth)
    for k in range(out.shape[0]):
        if done[k]:
            continue
        given = (frames[k], dark, scale[k], background[window_of_frame[k]])
        target = smooth[k % smooth.shape[0]]
        if size == 3:
            has_nan = _medians_of_3(given, top, left, lines, spare, target)
        else:
            has_nan = _medians_of_any(given, top, left, size, ring, columns, target)
        if has_nan:
            if low < high:
                return k
            for r in range(max(top - half, 0), min(top + target.shape[0] + half, frames.shape[1])):
                if normalise_padded(given, r, left - half, ring[0]):
                    spread_nan(ring[0], r - top, half, target)
        if low < high:
            for r in range(target.shape[0]):
                store_row(target[r], limits, out[k, r])
    return -1


@part
def _medians_of_3(given, top, left, lines, spare, out):  # type: ignore[no-untyped-def]
    """Clean one frame; return whether a NaN was met, which the medians lose."""
    n_rows, n_columns = out.shape
    last = min(top + n_rows, given[0].shape[0] - 1)
    has_nan = False
    for begin in range(0, n_columns, STRIP):
        end = min(begin + STRIP, n_columns)
        for r in range(-2, n_rows, 2):
            for i in range(2):
                nearest = min(max(top + r + 1 + i, 0), last)
                line = line_of(lines, r + 1 + i, end - begin)
                has_nan |= normalise_padded(given, nearest, left + begin - 1, line)
            if r >= 0:
                lower = out[r + 1, begin:end] if r < n_rows - 1 else spare[: end - begin]
                two_rows(lines, r, out[r, begin:end], lower)
    return has_nan


@part
def _medians_of_any(given, top, left, size, ring, columns, out):  # type: ignore[no-untyped-def]
    """Clean one frame; return whether a NaN was met, which the medians lose."""
    half, last = size // 2, given[0].shape[0] - 1
    ready = max(top - half, 0)
    has_nan = False
    for r in range(top, top + out.shape[0]):
        if size == 1:
            has_nan |= normalise_padded(given, r, left, out[r - top])
            continue
        while ready <= min(r + half, last):
            has_nan |= normalise_padded(given, ready, left - half, ring[ready % size])
            ready += 1
        median_row(ring, r, last, size, columns, out[r - top])
    return has_nan
