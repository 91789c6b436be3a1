"""
Frames cleaned in 16-bit integers, where that is exact: twice as many pixels in a vector as in float32.

Without a level, and with no dark image or a coarse one, every cleaned value is a whole number of half counts: raw
counts less a median, which is a count or the mean of two. Where one does not fit 16 bits, that frame is cleaned in
float32; so are all where float32 has to round, for then it would be seen which of the two it was.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import compiled, inlined, part
from tomoscale.kernels._median_3 import STRIP, line_of, room, two_rows
from tomoscale.kernels._rows import repeat_ends, store_row

FURTHEST = 16_383
"""Whole counts between a pixel and its background; twice that and one fits 16 bits."""
SHARED = 8
"""
Frames in a row that have one background: to split it takes longer than is spared in one frame (490 instead of 1,120
Mvoxel/s with a background for every frame).
"""
DARKEST, PARTS = 65_536.0, 128.0
"""
Counts of a dark image, and the parts of one that it is given in: the difference to a pixel, below twice as much, takes
the 24 bits of a float32. With finer ones float32 rounds this difference, and the cleaned value is no half count.
"""


@compiled
def clean_in_halves(frames, dark, background, window_of_frame, crop, limits, smooth, done, out):  # type: ignore[no-untyped-def]
    """
    Clean, by medians of 3 x 3, the frames for which half counts are exact, and mark them in `done`.

    The rest is as for `_clean_frames._clean`. This is a kernel of its own since a compiler that has both at once takes
    more memory than a tight plan leaves.
    """
    if not _is_coarse(dark):
        return
    low, high = limits
    first = (max(crop[0] - 1, 0), max(crop[1] - 1, 0))
    last = (
        min(crop[0] + out.shape[1] + 1, frames.shape[1]),
        min(crop[1] + out.shape[2] + 1, frames.shape[2]),
    )
    floors = np.empty((last[0] - first[0], last[1] - first[1]), np.uint16)
    halves = np.empty(floors.shape, np.int16)
    lines, upper = room(np.empty(0, np.int16))
    rows = (lines, upper, upper.copy())
    window, exact = -1, False
    for k in range(out.shape[0]):
        if window != window_of_frame[k]:
            window = window_of_frame[k]
            pays = k + SHARED <= out.shape[0] and window_of_frame[k + SHARED - 1] == window
            exact = pays and _half_counts(background[window], dark, first, floors, halves)
        target = smooth[k % smooth.shape[0]]
        done[k] = exact and _medians_of_halves(frames[k], floors, halves, first, crop, rows, target)
        if done[k] and low < high:
            for r in range(target.shape[0]):
                store_row(target[r], limits, out[k, r])


@part
def _half_counts(background, dark, first, floors, halves):  # type: ignore[no-untyped-def]
    """
    Split background plus a coarse dark image into whole counts and a half; tell whether that is exact.

    `floors` and `halves` begin at row and column `first` of the background.
    """
    top, left = first
    n_rows, n_columns = floors.shape
    for r in range(n_rows):
        base, offset = background[top + r, left:], dark[min(top + r, dark.shape[0] - 1), left:]
        floor, half = floors[r], halves[r]
        n_exact = np.int32(0)
        for j in range(n_columns):
            median, lowest = np.float64(base[j]), np.float64(offset[j])
            double = (median + lowest) * 2.0
            fits = (double >= 0.0) & (double <= 131_071.0)  # NaN does not
            whole = np.int32(double if fits else 0.0)
            fits &= (whole == double) & (whole * 0.5 - lowest == median)  # else the sum was rounded
            n_exact = np.int32(n_exact + fits)
            floor[j] = np.uint16(whole >> 1)
            half[j] = np.int16(whole & 1)
        if n_exact < n_columns:
            return False
    return True


@part
def _is_coarse(dark):  # type: ignore[no-untyped-def]
    """Tell whether float32 holds every difference of a 16-bit count and a dark image."""
    for r in range(dark.shape[0]):
        n_coarse = np.int32(0)
        for j in range(dark.shape[1]):
            parts = np.float64(dark[r, j]) * PARTS
            n_coarse = np.int32(n_coarse + ((np.rint(parts) == parts) & (abs(parts) <= DARKEST * PARTS)))
        if n_coarse < dark.shape[1]:
            return False
    return True


@part
def _medians_of_halves(frame, floors, halves, first, crop, rows, out):  # type: ignore[no-untyped-def]
    """
    Clean one frame, medians of 3 x 3; tell whether all fits 16 bits, else `out` is of no use.

    `floors` and `halves` begin at row and column `first` of the frame, `out` at `crop`.
    """
    (first_row, first_column), (top, left) = first, crop
    n_rows, n_columns = out.shape
    last = min(top + n_rows, frame.shape[0] - 1)
    lines, upper, lower = rows
    for begin in range(0, n_columns, STRIP):
        end = min(begin + STRIP, n_columns)
        for r in range(-2, n_rows, 2):
            for i in range(2):
                nearest = min(max(top + r + 1 + i, 0), last)
                line = line_of(lines, r + 1 + i, end - begin)
                k = nearest - first_row
                if not _cleaned(frame[nearest], floors[k], halves[k], first_column, left + begin - 1, line):
                    return False
            if r >= 0:
                two_rows(lines, r, upper[: end - begin], lower[: end - begin])
                _store(upper, out[r, begin:end])
                if r < n_rows - 1:
                    _store(lower, out[r + 1, begin:end])
    return True


@inlined
def _cleaned(pixels, floor, half, first_column, first, line):  # type: ignore[no-untyped-def]
    """Write half counts from column `first` on, the nearest pixel beyond the ends; tell whether they fit."""
    begin, end = max(-first, 0), min(line.size, pixels.size - first)
    given = pixels[first + begin : first + end]
    base, odd = floor[first + begin - first_column :], half[first + begin - first_column :]
    inside = line[begin:end]
    furthest = np.uint16(0)
    for j in range(inside.size):
        a, b = np.uint16(given[j]), base[j]
        furthest = max(furthest, np.uint16(max(a, b) - min(a, b)))
        inside[j] = np.int16(np.uint16(np.uint16(a - b) << np.uint16(1)) - odd[j])
    repeat_ends(line, begin, end)
    return furthest <= FURTHEST


@inlined
def _store(row, out):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = np.float32(row[j]) * np.float32(0.5)
