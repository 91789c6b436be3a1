"""Dark and level, background, frame median and rounding: a frame is cleaned in one pass, a few rows at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoscale.kernels._arrays import plain
from tomoscale.kernels._compile import compiled, part
from tomoscale.kernels._frame_median import check_size, repeat_ends
from tomoscale.kernels._median_networks import median_row, spread_nan

_TYPES = ("uint8", "uint16", "int16", "int32", "float32")
_LIMITS = {"float32": (0.0, 0.0), "int32": (-(2.0**31), 2.0**31 - 1), "int16": (-(2.0**15), 2.0**15 - 1)}
FITS, BEYOND, NAN = 0, 1, 2


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

    Returns
    -------
    array
        `out`. Neighbours beyond the block repeat its nearest pixel; a NaN neighbour makes the median NaN.

    Raises
    ------
    TypeError
        If frames, background or `out` are of another type.
    ValueError
        If a shape is not as above, or a NaN is to be written to integers; the frame is named.
    """
    check_size("clean_frames", size)
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
        limits = _LIMITS[out.dtype.name]
        k = _clean(frames, dark, scale, plain(background), window_of_frame, size, top, left, limits, out)
        if k >= 0:
            raise ValueError(f"clean_frames: frame {k} holds NaN, which {out.dtype} cannot; use float32")
    return out


def _checked(
    who: str, frames: NDArray, dark: NDArray | None, scale: ArrayLike | None
) -> tuple[NDArray, NDArray[np.float64], NDArray[np.float32]]:
    """Return contiguous frames, a dark image and factors; what is not given becomes 0 and 1, which change nothing."""
    if frames.dtype.name not in _TYPES:
        raise TypeError(f"{who}: frames are {frames.dtype}; need one of {', '.join(_TYPES)}")
    if frames.ndim != 3:
        raise ValueError(f"{who}: frames have shape {frames.shape}; need (frame, row, column)")
    if dark is None:
        # One row for all: an image of zeros would be read from memory for nothing.
        dark = np.zeros((1, frames.shape[2]))
    elif dark.shape != frames.shape[1:]:
        raise ValueError(f"{who}: dark has shape {dark.shape}, frames have {frames.shape[1:]}")
    scale = np.ones(len(frames), np.float32) if scale is None else np.asarray(scale, np.float32)
    if scale.shape != (len(frames),):
        raise ValueError(f"{who}: scale has shape {scale.shape}; need ({len(frames)},)")
    return plain(frames), plain(dark, np.float64), plain(scale)


def _check_out(who: str, out: NDArray, shape: tuple[int, ...], types: tuple[str, ...]) -> None:
    if out.dtype.name not in types or out.shape != shape or not out.flags.c_contiguous:
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
            _normalise_row(frames[k, r], dark[min(r, dark.shape[0] - 1)], scale[k], zero, line)
            fits &= _store_row(line, limits, out[k, r]) == FITS
    return fits


@compiled
def _clean(frames, dark, scale, background, window_of_frame, size, top, left, limits, out):  # type: ignore[no-untyped-def]
    """Return the first frame whose NaN does not fit `out`, or -1."""
    _, n_rows, n_columns = frames.shape
    n_frames, out_rows, out_columns = out.shape
    half = size // 2
    # Pixel i of a work row is column i + left - half of the block; [begin, end) of it lie within the block.
    width = out_columns + 2 * half
    begin, end = max(half - left, 0), min(width, n_columns - left + half)
    columns = slice(begin + left - half, end + left - half)
    ring = np.empty((size, width), np.float32)
    work = np.empty_like(ring)
    line = np.empty(out_columns, np.float32)
    for k in range(n_frames):
        level = background[window_of_frame[k]]
        ready = max(top - half, 0)
        last_nan = -size
        for r in range(top, top + out_rows):
            while ready <= min(r + half, n_rows - 1):
                row = ring[ready % size]
                inside = row[begin:end]
                offset = dark[min(ready, dark.shape[0] - 1), columns]
                if _normalise_row(frames[k, ready, columns], offset, scale[k], level[ready, columns], inside):
                    last_nan = ready
                repeat_ends(row, begin, end)
                ready += 1
            median_row(ring, r, n_rows - 1, size, work, line)
            if last_nan >= r - half:
                spread_nan(ring, r, n_rows - 1, size, line)
            if _store_row(line, limits, out[k, r - top]) == NAN:
                return k
    return -1


@part
def _normalise_row(pixels, dark, scale, background, out):  # type: ignore[no-untyped-def]
    """
    Subtract, round, multiply, round, subtract, round; return whether a NaN is left.

    The first difference is taken in float64: of float32 operands, rounding it twice gives what float32
    arithmetic does.
    """
    n_nan = np.int32(0)  # as wide as a sample: with 64 bits the loop has half the lanes
    for j in range(out.size):
        value = np.float32(np.float64(pixels[j]) - dark[j]) * scale - background[j]
        n_nan = np.int32(n_nan + (value != value))
        out[j] = value
    return n_nan > 0


@part
def _store_row(row, limits, out):  # type: ignore[no-untyped-def]
    """Write a row in the type of `out`, integers rounded to even and cut to the limits; return what did not fit."""
    low, high = limits
    if low == high:
        for j in range(row.size):
            out[j] = row[j]
        return FITS
    whole = out.dtype.type
    n_beyond = n_nan = 0
    for j in range(row.size):
        value = np.float64(np.rint(row[j]))  # in float64, as 2**31 - 1 is no float32
        n_nan += value != value
        n_beyond += value < low or value > high
        out[j] = whole(min(max(value, low), high)) if value == value else whole(0)
    return NAN if n_nan > 0 else (BEYOND if n_beyond > 0 else FITS)
