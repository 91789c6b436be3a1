"""
Moving medians of any keys: each pixel carries a bracket around its median from one window to the next.

With C(v) = how many samples of the window lie below v, and r the rank of the lower median, the bracket [low, high)
satisfies C(low) <= r < C(high). From window to window both counts are corrected by the frames that enter and
leave. Where the median has left its bracket, or the bracket is still too wide, passes over the window count
below one probe per pixel: four to eight passes per window instead of the sixteen of a bisection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tomoscale.kernels._compile import called, part
from tomoscale.kernels._lanes import LANES, count_below

INTERPOLATIONS = 7
"""Probes placed by interpolation before bisection takes over, which ends on every input."""

ENOUGH = 24
"""Samples in a bracket that tell their spacing: from two of them, a window takes one probe more on average."""


class Bracket(NamedTuple):
    """One bracket per lane, in signed integers wider than the keys: `high` may be one beyond the largest key."""

    low: Any
    high: Any
    below_low: Any  # C(low)
    below_high: Any  # C(high)
    spacing: Any  # distance of neighbouring samples near the median, floating point
    probe: Any  # work space from here on: where to count next, as a key
    other: Any
    partial: Any  # counts of at most 65,535 rows
    count: Any
    smallest: Any
    largest: Any


def new_bracket(key: Any, whole: Any, real: Any) -> Bracket:
    """Allocate the brackets of one tile: `whole` and `real` have room for every key of type `key`, and one more."""
    return Bracket(
        np.zeros(LANES, whole),
        np.zeros(LANES, whole),
        np.zeros(LANES, whole),
        np.zeros(LANES, whole),
        np.ones(LANES, real),
        np.zeros(LANES, key),
        np.zeros(LANES, key),
        np.zeros(LANES, key),
        np.zeros(LANES, whole),
        np.zeros(LANES, key),
        np.zeros(LANES, key),
    )


@part
def start_cold(bracket, rows):  # type: ignore[no-untyped-def]
    """Bracket the medians of all `rows` by their extremes."""
    b = bracket
    whole = b.low.dtype.type
    b.probe[:] = 0
    _extremes(rows, b.probe, b.probe, b.smallest, b.largest)
    for j in range(LANES):
        b.low[j] = whole(b.smallest[j])
        b.high[j] = whole(b.largest[j]) + whole(1)
        b.below_low[j] = whole(0)
        b.below_high[j] = whole(rows.shape[0])


@part
def start_warm(bracket, rows, entered, left, top):  # type: ignore[no-untyped-def]
    """Correct the brackets of the window before by the frames that entered it and left it."""
    b = bracket
    key, whole = b.probe.dtype.type, b.low.dtype.type
    for j in range(LANES):
        b.probe[j] = key(b.low[j])
        b.other[j] = key(min(b.high[j], whole(top)))
    for threshold, below in ((b.probe, b.below_low), (b.other, b.below_high)):
        for changed, sign in ((entered, whole(1)), (left, whole(-1))):
            _add_count(changed, sign, threshold, b.partial, below)
    for j in range(LANES):
        b.below_high[j] = whole(rows.shape[0]) if b.high[j] > whole(top) else b.below_high[j]


@part
def _add_count(rows, sign, threshold, partial, count):  # type: ignore[no-untyped-def]
    """Add to `count`, or subtract from it, how many of the rows lie below the threshold."""
    whole = count.dtype.type
    for first in range(0, rows.shape[0], 65_528):
        count_below(rows[first : first + 65_528], threshold, partial)
        for j in range(LANES):
            count[j] += sign * whole(partial[j])


@part
def narrow_down(bracket, rows, top, interpolations):  # type: ignore[no-untyped-def]
    """Count below probes, so many of them by interpolation, until every bracket shows its median."""
    b = bracket
    whole = b.low.dtype.type
    n = whole(rows.shape[0])
    rank = whole((rows.shape[0] - 1) // 2)
    tries = np.int64(0)
    while _place_probes(b, rank, whole(top), tries, interpolations) > 0:
        b.count[:] = 0
        _add_count(rows, whole(1), b.probe, b.partial, b.count)
        _tighten(b, rank, n, whole(top))
        tries += 1


@part
def _place_probes(bracket, rank, top, tries, interpolations):  # type: ignore[no-untyped-def]
    """
    Choose where to count next; return how many pixels still need it.

    Outside the bracket: beyond it by the missing ranks times the spacing of the samples, twice as far at each
    try. Inside: at the rank's share of the bracket. Solved pixels count at `low` again, which changes
    nothing.
    """
    low, high, below_low, below_high, spacing, probe = bracket[:6]
    key, whole, real = probe.dtype.type, low.dtype.type, spacing.dtype.type
    one, half = whole(1), real(0.5)
    reach = real(1 << min(tries, 40))
    interpolate = tries < interpolations
    n_open = whole(0)
    for j in range(LANES):
        lo, hi, n_lo, n_hi = low[j], high[j], below_low[j], below_high[j]
        up, down = rank >= n_hi, rank < n_lo
        solved = (not up) and (not down) and (hi - lo <= one or n_lo == rank or n_hi == rank + one)
        missing = rank - n_hi + one if up else n_lo - rank
        jump = max(one, whole(min(real(missing) * reach * spacing[j] + half, real(top))))
        share = (real(rank - n_lo) + half) / real(max(n_hi - n_lo, one)) if interpolate else half
        inside = min(max(lo + whole(real(hi - lo) * share), lo + one), hi - one)
        t = hi + jump if up else (lo - jump if down else inside)
        t = lo if solved else t
        probe[j] = key(min(max(t, whole(0)), top))
        n_open += whole(0) if solved else one
    return n_open


@part
def _tighten(bracket, rank, n, top):  # type: ignore[no-untyped-def]
    """Move the ends of the brackets to the probes that were counted."""
    low, high, below_low, below_high, spacing, probe = bracket[:6]
    count = bracket.count
    whole, real = low.dtype.type, spacing.dtype.type
    one = whole(1)
    enough = max(whole(2), min(whole(ENOUGH), whole(n // 4)))
    for j in range(LANES):
        lo, hi, n_lo, n_hi = low[j], high[j], below_low[j], below_high[j]
        t, c = whole(probe[j]), count[j]
        up, down = rank >= n_hi, rank < n_lo
        solved = (not up) and (not down) and (hi - lo <= one or n_lo == rank or n_hi == rank + one)
        beyond = up and hi >= top  # nothing lies beyond the largest key, so it is the median
        raise_low = (not up) and (down or c <= rank)
        new_lo = hi if up else (t if raise_low else lo)
        new_n_lo = n_hi if up else (c if raise_low else n_lo)
        new_hi = lo if down else (hi if raise_low else t)
        new_n_hi = n_lo if down else (n_hi if raise_low else c)
        new_hi = top + one if beyond else new_hi
        new_n_hi = n if beyond else new_n_hi
        low[j] = lo if solved else new_lo
        high[j] = hi if solved else new_hi
        below_low[j] = n_lo if solved else new_n_lo
        below_high[j] = n_hi if solved else new_n_hi
        enclosed = new_n_hi - new_n_lo
        gap = max(real(new_hi - new_lo) / real(max(enclosed, one)), real(0.001))
        spacing[j] = gap if enclosed >= enough and not solved else spacing[j]


@part
def read_off(bracket, rows, top, lower, upper):  # type: ignore[no-untyped-def]
    """Write the two middle keys, given brackets that show the lower one."""
    b = bracket
    key, whole = b.probe.dtype.type, b.low.dtype.type
    n = rows.shape[0]
    rank = whole((n - 1) // 2)
    n_wide = 0
    for j in range(LANES):
        n_wide += b.high[j] - b.low[j] > whole(1)
        lower[j] = key(b.low[j])
    if n_wide > 0:
        # The median is the first sample from `low` on, or the last one before `high`.
        for j in range(LANES):
            b.other[j] = key(min(b.high[j], whole(top)))
        _extremes(rows, lower, b.other, b.smallest, b.largest)
        for j in range(LANES):
            first, last = b.smallest[j], b.largest[j]
            wide = b.high[j] - b.low[j] > whole(1)
            lower[j] = (first if b.below_low[j] == rank else last) if wide else lower[j]
    for j in range(LANES):
        upper[j] = lower[j]
    if n % 2 == 0:
        # The upper middle is the same key if that occurs often enough, else the next sample above.
        for j in range(LANES):
            b.other[j] = key(min(whole(lower[j]) + whole(1), whole(top)))
            b.count[j] = 0
        _add_count(rows, whole(1), b.other, b.partial, b.count)
        _extremes(rows, b.other, b.other, b.smallest, b.largest)
        for j in range(LANES):
            same = b.count[j] > whole(n // 2) or whole(lower[j]) == whole(top)
            upper[j] = lower[j] if same else b.smallest[j]


@called
def _extremes(rows, low, high, smallest, largest):  # type: ignore[no-untyped-def]
    """
    Per lane, the smallest key that is not below `low`, and the largest below `high`, or of all where that is 0.

    There must be such keys. Where `low` is subtracted, the keys below it wrap round and become the largest, and
    so do those below `high`: the extremes of differences need no comparison with either. With comparisons, of
    which AVX2 has none for unsigned numbers, 501 keys of 32 bits took 500 ns instead of 46.
    """
    key = low.dtype.type
    smallest[:] = key(~key(0))
    largest[:] = 0
    last = rows.shape[0] - 1
    for k in range(0, last + 1, 4):  # the last row may be taken more than once
        a, b, c, d = rows[k], rows[min(k + 1, last)], rows[min(k + 2, last)], rows[min(k + 3, last)]
        for j in range(LANES):
            lo, hi = low[j], high[j]
            s = min(min(key(a[j] - lo), key(b[j] - lo)), min(key(c[j] - lo), key(d[j] - lo)))
            g = max(max(key(a[j] - hi), key(b[j] - hi)), max(key(c[j] - hi), key(d[j] - hi)))
            smallest[j] = min(smallest[j], s)
            largest[j] = max(largest[j], g)
    for j in range(LANES):
        smallest[j] += low[j]
        largest[j] += high[j]
