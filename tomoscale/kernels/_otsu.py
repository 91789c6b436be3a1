"""
The thresholds of Otsu for several classes, by a bounded search.

The sum over classes of (first moment)^2 / (zeroth moment) is to be as large as possible. Trying all thresholds
takes n^(classes - 1) sums: for 5 classes of 65,536 values, 8e17. Dynamic programming with divide and conquer finds the
best completion from every bin in n log n, and so an upper bound for every choice of the first thresholds; what
cannot reach the best sum found is not tried. What is left is summed in float32 in the order of scikit-image, and the
first largest sum wins as there, so that the thresholds are the same even where rounding decides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import plain
from tomoscale.kernels._compile import compiled, part

SLACK = 2e-6
"""Relative error of a sum in float32, with much to spare."""
MOST_TRIED = 3 * 10**8
"""Sums after which the solution of the dynamic programming is taken."""


def otsu_indices(probability: NDArray[np.float32], classes: int) -> NDArray[np.int64]:
    """
    Return the bins at which classes end, for the largest variance between them.

    Parameters
    ----------
    probability : (n,) float32
        Share of every bin.
    classes : int
        3 to 5.

    Returns
    -------
    (classes - 1,)
        The last bin of every class but the last.
    """
    p = plain(probability, np.float32)
    zeroth, first = _moments(p)
    best, choice = _completions(zeroth.astype(np.float64), first.astype(np.float64), classes)
    return _search(zeroth, first, best, choice, classes)


@compiled
def _moments(p):  # type: ignore[no-untyped-def]
    """Cumulative moments, rounded to float32 at every step; the first bin counts with weight one, as there."""
    n = p.size
    zeroth, first = np.empty(n, np.float32), np.empty(n, np.float32)
    zeroth[0] = first[0] = p[0]
    for i in range(1, n):
        zeroth[i] = zeroth[i - 1] + p[i]
        first[i] = first[i - 1] + np.float32(i) * p[i]
    return zeroth, first


@part
def _between(zeroth, first, i, j):  # type: ignore[no-untyped-def]
    """First moment squared over zeroth moment of bins i to j."""
    w, s = zeroth[j], first[j]
    if i > 0:
        w, s = w - zeroth[i - 1], s - first[i - 1]
    return s * s / w if w > 0 else w - w  # a zero of the same type: an integer would make all float64


@compiled
def _completions(zeroth, first, classes):  # type: ignore[no-untyped-def]
    """
    Best sum of c classes from bin i to the end, and where the first of them ends.

    The end moves to the right with i, so the middle row of a range halves the candidates of both sides.
    """
    n = zeroth.size
    best = np.zeros((classes + 1, n + 1))
    choice = np.zeros((classes + 1, n + 1), np.int64)
    for i in range(n):
        best[1, i], choice[1, i] = _between(zeroth, first, i, n - 1), n - 1
    stack = np.empty((64 * 4, 4), np.int64)
    for c in range(2, classes + 1):
        best[c, :] = -1.0
        top = 0
        stack[0] = np.array([0, n - c, 0, n - c])
        while top >= 0:
            low, high, a, b = stack[top]
            top -= 1
            if low > high:
                continue
            middle = (low + high) // 2
            at = max(a, middle)
            for e in range(max(a, middle), min(b, n - c) + 1):
                found = _between(zeroth, first, middle, e) + best[c - 1, e + 1]
                if found > best[c, middle]:
                    best[c, middle], at = found, e
            choice[c, middle] = at
            stack[top + 1] = np.array([low, middle - 1, a, at])
            stack[top + 2] = np.array([middle + 1, high, at, b])
            top += 2
    return best, choice


@part
def _sum(zeroth, first, ends, count):  # type: ignore[no-untyped-def]
    """The sum of all classes, its terms in the order in which scikit-image adds them."""
    total = _between(zeroth, first, 0, ends[0]) + _between(
        zeroth, first, ends[count - 1] + 1, zeroth.size - 1
    )
    for k in range(count - 1):
        total += _between(zeroth, first, ends[k] + 1, ends[k + 1])
    return total


@compiled
def _search(zeroth, first, best, choice, classes):  # type: ignore[no-untyped-def]
    n, count = zeroth.size, classes - 1
    found = np.empty(count, np.int64)
    begin = 0
    for k in range(count):
        found[k] = choice[classes - k, begin]
        begin = found[k] + 1
    least = np.float64(_sum(zeroth, first, found, count)) * (1 - SLACK)
    ends = np.empty(count, np.int64)
    partial = np.zeros(count + 1)
    solved, sigma_max, k, tried = found.copy(), np.float32(0), 0, 0
    ends[0] = -1
    while k >= 0:
        ends[k] += 1
        if ends[k] >= n - count + k:
            k -= 1
            continue
        tried += 1
        if tried > MOST_TRIED:
            return found
        start = 0 if k == 0 else ends[k - 1] + 1
        partial[k + 1] = partial[k] + _between(zeroth, first, start, ends[k])
        if partial[k + 1] + best[count - k, ends[k] + 1] < least:
            continue
        if k < count - 1:
            k += 1
            ends[k] = ends[k - 1]
            continue
        sigma = _sum(zeroth, first, ends, count)
        if sigma > sigma_max:
            sigma_max = sigma
            solved[:] = ends
    return solved
