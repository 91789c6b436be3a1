"""The best classes of a histogram: dynamic programming over all ways to cut it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import plain
from tomoscale.kernels._compile import compiled, inlined


def optimal_cuts(values: NDArray, counts: NDArray, k: int) -> NDArray[np.int64]:
    """
    Cut a histogram into k classes with the smallest sum of squares about their means: the global optimum.

    Parameters
    ----------
    values : (n,) float64
        Ascending.
    counts : (n,)
        How often they occur, none of them 0.
    k : int
        Classes, at most n.

    Returns
    -------
    (k - 1,)
        The last value of every class but the last.
    """
    centred = plain(values - np.average(values, weights=counts), np.float64)
    return _optimal_cuts(centred, plain(counts, np.float64), k)


@inlined
def _within(w, s, q, a, b):  # type: ignore[no-untyped-def]
    """Sum of squares about their mean of values a to b."""
    n, total = w[b + 1] - w[a], s[b + 1] - s[a]
    return max(q[b + 1] - q[a] - total * total / n, 0.0)


@compiled
def _optimal_cuts(values, counts, k):  # type: ignore[no-untyped-def]
    """Dynamic programming over classes; the best cut moves to the right with the end, so halves bound it."""
    n = values.size
    w, s, q = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    for i in range(n):
        w[i + 1] = w[i] + counts[i]
        s[i + 1] = s[i] + counts[i] * values[i]
        q[i + 1] = q[i] + counts[i] * values[i] * values[i]
    cost, before = np.empty(n), np.empty(n)
    cut = np.zeros((k, n), np.int64)
    for e in range(n):
        cost[e] = _within(w, s, q, 0, e)
    stack = np.empty((256, 4), np.int64)
    for c in range(1, k):
        before[:] = cost
        top = 0
        stack[0] = np.array([c, n - 1, c, n - 1])
        while top >= 0:
            low, high, a, b = stack[top]
            top -= 1
            if low > high:
                continue
            middle = (low + high) // 2
            best, at = np.inf, a
            for first in range(max(a, c), min(b, middle) + 1):  # first value of the last class
                found = before[first - 1] + _within(w, s, q, first, middle)
                if found < best:
                    best, at = found, first
            cost[middle], cut[c, middle] = best, at
            stack[top + 1] = np.array([low, middle - 1, a, at])
            stack[top + 2] = np.array([middle + 1, high, at, b])
            top += 2
    out = np.empty(k - 1, np.int64)
    e = n - 1
    for c in range(k - 1, 0, -1):
        e = cut[c, e] - 1
        out[c - 1] = e
    return out
