"""
Medians of 3 x 3 neighbours, two rows of them from the four rows around.

Three neighbours in a row are sorted first. The median of nine is that of the largest low, the median middle and the
smallest high of three such rows; and the two rows in the middle take part together in both medians, so their
comparison is shared. Everything stays in registers: to keep sorted neighbours for the next rows would spare a quarter
of the comparisons, but storing them takes twice the time.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import inlined, part

STRIP = 2048
"""Columns at a time: a detector's row in one piece, as halves of it have two thirds of the speed."""

STRIDE = STRIP + 288
"""
From line to line. Were it a multiple of 4096 bytes, reading one line would wait for the one before to be written.
"""


@inlined
def room(like):  # type: ignore[no-untyped-def]
    """Allocate four lines with a neighbour on either side, and one for a row of medians that nobody needs."""
    return np.empty(4 * STRIDE, like.dtype), np.empty(STRIP, like.dtype)


@inlined
def line_of(lines, row, width):  # type: ignore[no-untyped-def]
    """Return the line of a row, from -1 on, and of the neighbours of so many columns: it held the row four before."""
    begin = (row + 1) % 4 * STRIDE
    return lines[begin : begin + width + 2]


@part
def _order(a, b):  # type: ignore[no-untyped-def]
    return min(a, b), max(a, b)


@part
def _sort_3(a, b, c):  # type: ignore[no-untyped-def]
    a, b = _order(a, b)
    b, c = _order(b, c)
    a, b = _order(a, b)
    return a, b, c


@part
def _median_3(a, b, c):  # type: ignore[no-untyped-def]
    return max(min(a, b), min(max(a, b), c))


@inlined
def two_rows(lines, row, upper, lower):  # type: ignore[no-untyped-def]
    """Write the medians of an even row and of the one below it, of which all neighbours are in `lines`."""
    # The same loop twice: it has vector instructions only if it knows where the lines begin.
    if row % 4 == 0:
        _medians(lines, 0, STRIDE, 2 * STRIDE, 3 * STRIDE, upper, lower)
    else:
        _medians(lines, 2 * STRIDE, 3 * STRIDE, 0, STRIDE, upper, lower)


@inlined
def _medians(w, one, two, three, four, upper, lower):  # type: ignore[no-untyped-def]
    zero = upper.dtype.type(0)  # -0.0 and 0.0 are equal, and which one a minimum returns depends on the order
    for j in range(upper.size):
        low1, middle1, high1 = _sort_3(w[one + j], w[one + j + 1], w[one + j + 2])
        low2, middle2, high2 = _sort_3(w[two + j], w[two + j + 1], w[two + j + 2])
        low3, middle3, high3 = _sort_3(w[three + j], w[three + j + 1], w[three + j + 2])
        low4, middle4, high4 = _sort_3(w[four + j], w[four + j + 1], w[four + j + 2])
        low, high = max(low2, low3), min(high2, high3)
        middle, other = _order(middle2, middle3)
        upper[j] = zero + _median_3(max(low, low1), max(middle, min(other, middle1)), min(high, high1))
        lower[j] = zero + _median_3(max(low, low4), max(middle, min(other, middle4)), min(high, high4))
