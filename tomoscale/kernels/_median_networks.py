"""
Medians of 5 x 5 neighbours as minima and maxima of whole rows, and of any more.

First the samples above each other are sorted, once per column although five pixels use it; then a
network of comparisons picks the median out of the sorted columns. Nothing branches on the data, so that one
vector instruction serves 16 pixels of float32.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import part


@part
def median_row(ring, row, last, size, columns, out):  # type: ignore[no-untyped-def]
    """
    Write the medians of `size` x `size` neighbours of one row.

    `ring` holds row r in slot r % size, with size // 2 more pixels on either side than `out`. Rows before 0
    and after `last` repeat the nearest. `columns` is work space of the shape of `ring`.
    """
    if size == 5:
        above, below = max(row - 1, 0) % 5, min(row + 1, last) % 5
        _sort_columns_5(ring, max(row - 2, 0) % 5, above, row % 5, below, min(row + 2, last) % 5, columns)
        _median_of_columns_5(columns, out)
    else:
        _median_any(ring, row, last, size, out)


@part
def _order(a, b):  # type: ignore[no-untyped-def]
    return min(a, b), max(a, b)


@part
def _sort_5(a, b, c, d, e):  # type: ignore[no-untyped-def]
    """Sort five values by nine comparisons, the fewest possible."""
    a, d = _order(a, d)
    b, e = _order(b, e)
    a, c = _order(a, c)
    b, d = _order(b, d)
    a, b = _order(a, b)
    c, e = _order(c, e)
    b, c = _order(b, c)
    d, e = _order(d, e)
    c, d = _order(c, d)
    return a, b, c, d, e


@part
def _sort_columns_5(ring, above2, above, row, below, below2, columns):  # type: ignore[no-untyped-def]
    for j in range(columns.shape[1]):
        a, b, c, d, e = _sort_5(
            ring[above2, j], ring[above, j], ring[row, j], ring[below, j], ring[below2, j]
        )
        columns[0, j], columns[1, j], columns[2, j], columns[3, j], columns[4, j] = a, b, c, d, e


@part
def _median_of_columns_5(columns, out):  # type: ignore[no-untyped-def]
    """
    Sort each rank across the columns as well; then only 13 of the 25 samples can be the median, and 17
    comparisons find it.

    The 17 are what was left of a sorting network after every comparison had been removed that none of the
    6**5 sorted patterns of zeros and ones needs; by the zero-one principle they are right for all samples.
    """
    s = columns
    for j in range(out.size):
        _, _, _, a3, a4 = _sort_5(s[0, j], s[0, j + 1], s[0, j + 2], s[0, j + 3], s[0, j + 4])
        _, _, b2, b3, b4 = _sort_5(s[1, j], s[1, j + 1], s[1, j + 2], s[1, j + 3], s[1, j + 4])
        _, c1, c2, c3, _ = _sort_5(s[2, j], s[2, j + 1], s[2, j + 2], s[2, j + 3], s[2, j + 4])
        d0, d1, d2, _, _ = _sort_5(s[3, j], s[3, j + 1], s[3, j + 2], s[3, j + 3], s[3, j + 4])
        e0, e1, _, _, _ = _sort_5(s[4, j], s[4, j + 1], s[4, j + 2], s[4, j + 3], s[4, j + 4])
        a3, c1 = _order(a3, c1)
        d0, b2 = _order(d0, b2)
        b3, a4 = _order(b3, a4)
        e0, d1 = _order(e0, d1)
        b4, e1 = _order(b4, e1)
        c1, b2 = _order(c1, b2)
        b3, e0 = _order(b3, e0)
        a4, d1 = _order(a4, d1)
        c2, b4 = _order(c2, b4)
        b2, a4 = _order(b2, a4)
        b4, d2 = _order(b4, d2)
        a4, e0 = _order(a4, e0)
        c3, b4 = _order(c3, b4)
        a4, c3 = _order(a4, c3)
        b2, a4 = _order(b2, a4)
        e0, c2 = _order(e0, c2)
        out[j] = max(a4, e0)


@part
def _median_any(ring, row, last, size, out):  # type: ignore[no-untyped-def]
    """Any odd edge, one pixel at a time: exact, and a thousand times slower than 3 x 3."""
    half = size // 2
    ordered = np.empty(size * size, ring.dtype)
    for j in range(out.size):
        n = 0
        for r in range(row - half, row + half + 1):
            for i in range(j, j + size):
                x = ring[min(max(r, 0), last) % size, i]
                k = n
                while k > 0 and ordered[k - 1] > x:
                    ordered[k] = ordered[k - 1]
                    k -= 1
                ordered[k] = x
                n += 1
        out[j] = ordered[n // 2]


@part
def spread_nan(line, row, half, out):  # type: ignore[no-untyped-def]
    """
    Make every median of a frame NaN that has one among its neighbours in this row: minimum and maximum lose them.

    `line` has `half` more pixels on either side than `out`, and belongs at row `row` of it.
    """
    for r in range(max(row - half, 0), min(row + half + 1, out.shape[0])):
        for j in range(out.shape[1]):
            for i in range(j, j + 2 * half + 1):
                near = line[i]
                out[r, j] = near if near != near else out[r, j]
