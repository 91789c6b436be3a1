"""One row of a frame: copied or normalised, continued beyond its ends, written in another type."""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import inlined, part

FITS, BEYOND, NAN = 0, 1, 2


@inlined
def copy_padded(pixels, first, line):  # type: ignore[no-untyped-def]
    """Write columns from `first` on, those beyond the ends as the nearest pixel; return whether one is NaN."""
    begin, end = max(-first, 0), min(line.size, pixels.size - first)
    inside, given = line[begin:end], pixels[first + begin : first + end]
    n_nan = np.int32(0)  # as wide as a sample: with 64 bits the loop has half the lanes
    for j in range(inside.size):
        inside[j] = given[j]
        n_nan = np.int32(n_nan + (given[j] != given[j]))
    repeat_ends(line, begin, end)
    return n_nan > 0


@inlined
def repeat_ends(row, begin, end):  # type: ignore[no-untyped-def]
    """Fill a row outside [begin, end) with the nearest pixel inside."""
    for j in range(begin):
        row[j] = row[begin]
    for j in range(end, row.size):
        row[j] = row[end - 1]


@part
def normalise_padded(given, r, first, line):  # type: ignore[no-untyped-def]
    """Normalise row r from column `first` on, the nearest pixel beyond the ends; return whether one is NaN."""
    frame, dark, scale, background = given
    begin, end = max(-first, 0), min(line.size, frame.shape[1] - first)
    columns = slice(first + begin, first + end)
    offset = dark[min(r, dark.shape[0] - 1), columns]
    has_nan = normalise_row(frame[r, columns], offset, scale, background[r, columns], line[begin:end])
    repeat_ends(line, begin, end)
    return has_nan


@part
def normalise_row(pixels, dark, scale, background, out):  # type: ignore[no-untyped-def]
    """
    Subtract, round, multiply, round, subtract, round; return whether a NaN is left.

    The first difference is taken in the type of `dark`, float64 or float32: where float32 holds both operands,
    the results are the same.
    """
    real = dark.dtype.type
    n_nan = np.int32(0)  # as wide as a sample: with 64 bits the loop has half the lanes
    for j in range(out.size):
        value = np.float32(real(pixels[j]) - dark[j]) * scale - background[j]
        n_nan = np.int32(n_nan + (value != value))
        out[j] = value
    return n_nan > 0


@part
def store_row(row, limits, out):  # type: ignore[no-untyped-def]
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
