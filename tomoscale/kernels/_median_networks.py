"""
Medians of 3 x 3 and 5 x 5 neighbours as minima and maxima of whole rows.

First the samples above each other are sorted, once per column although three or five outputs use it; then a network of
comparisons picks the median out of the sorted columns. No branch and no index depends on the data, so a row becomes a few
vector instructions per pixel.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import compiled


@compiled
def median_row(ring, row, last, size, columns, out):  # type: ignore[no-untyped-def]
    """
    Write the medians of `size` x `size` neighbours of one row.

    `ring` holds row r in slot r % size, with size // 2 more pixels on either side than `out`. Rows before 0 and after
    `last` repeat the nearest. `columns` is work space of the shape of `ring`.
    """
    if size == 1:
        above = ring[0]
        for j in range(out.size):
            out[j] = above[j]
    elif size == 3:
        a, b, c = ring[max(row - 1, 0) % 3], ring[row % 3], ring[min(row + 1, last) % 3]
        _sort_columns_3(a, b, c, columns)
        _median_of_columns_3(columns, out)
    else:
        _median_any(ring, row, last, size, out)


@compiled
def _sort_columns_3(a, b, c, columns):  # type: ignore[no-untyped-def]
    low, middle, high = columns[0], columns[1], columns[2]
    for j in range(low.size):
        small, large = min(a[j], b[j]), max(a[j], b[j])
        rest = min(large, c[j])
        high[j] = max(large, c[j])
        low[j] = min(small, rest)
        middle[j] = max(small, rest)


@compiled
def _median_of_columns_3(columns, out):  # type: ignore[no-untyped-def]
    """Median of the largest low, the median middle and the smallest high: six other samples are surely off."""
    low, middle, high = columns[0], columns[1], columns[2]
    for j in range(out.size):
        x = max(low[j], low[j + 1], low[j + 2])
        y = _median_3(middle[j], middle[j + 1], middle[j + 2])
        z = min(high[j], high[j + 1], high[j + 2])
        out[j] = _median_3(x, y, z)


@compiled
def _median_3(a, b, c):  # type: ignore[no-untyped-def]
    return max(min(a, b), min(max(a, b), c))


@compiled
def _median_any(ring, row, last, size, out):  # type: ignore[no-untyped-def]
    """Any odd edge, one pixel at a time: exact, and a thousand times slower than 3 x 3."""
    half = size // 2
    window = np.empty(size * size, ring.dtype)
    for j in range(out.size):
        n = 0
        for r in range(row - half, row + half + 1):
            near = ring[min(max(r, 0), last) % size]
            for i in range(j, j + size):
                window[n] = near[i]
                n += 1
        out[j] = np.partition(window, n // 2)[n // 2]


@compiled
def spread_nan(ring, row, last, size, out):  # type: ignore[no-untyped-def]
    """Make every median NaN that has one among its neighbours: minimum and maximum do not carry them along."""
    half = size // 2
    for r in range(max(row - half, 0), min(row + half, last) + 1):
        near = ring[r % size]
        for j in range(out.size):
            for i in range(j, j + size):
                if near[i] != near[i]:
                    out[j] = near[i]
