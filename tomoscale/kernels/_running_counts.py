"""
Moving medians of samples that vary little: each pixel keeps a ladder of cumulative counts around its median.

Samples become 8-bit codes, clip(x - base, 0, 255), where `base` lies 128 below a median that is already
known. The ladder holds, for RUNGS consecutive codes, how many samples of the window lie below each of them.
Pieces of the scan that enter and leave correct the counts; both middle samples are read off. All of it runs in
8-bit lanes: 64 pixels per AVX-512 instruction.

A piece is counted when it enters and remembered until it leaves, which halves the work. A median that leaves its
ladder has all ladders of the tile moved and counted again. (To slide just that one is a quarter of the work, but
needed far more often: 20 against 7 ns per median at every frame.) One that leaves its 256 codes ends the run, and
the caller solves that window by brackets. So the answer is exact or not given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tomoscale.kernels._compile import called, part
from tomoscale.kernels._lanes import LANES, SIGN

RUNGS = 16
"""Fewer are left more often, more are counted for longer."""
MOVES = 2
"""Moves of the ladders in one window before the run is given up."""
MOST = 248
"""Frames of a piece at most: eight-bit counts hold 255."""
SIZE = RUNGS * LANES
ONE, FOUR, EIGHT = np.uint64(LANES), np.uint64(4 * LANES), np.uint64(8 * LANES)
"""Lanes of some rows; unsigned, since an index that may be negative is asked about."""


class Ladder(NamedTuple):
    """
    The ladders of one tile, and work space.

    All is flat, rung after rung or row after row, and handed on with a position: a view of each row would have its
    references counted, which takes as long as to count its samples.
    """

    base: Any  # key of code 0, per lane
    foot: Any  # code of the lowest rung, per lane
    below: Any  # (rung, lane): samples of the window below code foot + rung
    of_piece: (
        Any  # (slot, rung, lane): the same of every piece worth remembering; the last slot is for the others
    )
    under_lower: Any  # rungs not above the lower and the upper middle
    under_upper: Any
    rung: Any  # (rung, lane): the codes of all rungs, as stored


def new_ladder(key: Any, n_slots: int) -> Ladder:
    """Allocate the ladders of one tile, and room for the counts of so many pieces."""
    return Ladder(
        np.zeros(LANES, key),
        np.zeros(LANES, np.uint8),
        np.zeros(SIZE, np.uint16),
        np.empty((n_slots + 1) * SIZE, np.uint8),
        np.zeros(LANES, np.uint16),
        np.zeros(LANES, np.uint16),
        np.zeros(SIZE, np.int8),
    )


@part
def rest_on(ladder, median):  # type: ignore[no-untyped-def]
    """Centre the codes on a median that is known, or guessed."""
    key = median.dtype.type
    for j in range(LANES):
        m = median[j]
        ladder.base[j] = m - key(128) if m >= key(128) else key(0)


@part
def find_feet(ladder, codes, n):  # type: ignore[no-untyped-def]
    """Centre the ladders on the lower median of the first `n` rows: two bits at a time, by three thresholds."""
    foot, count, probes, total = ladder.foot, ladder.under_lower, ladder.rung, ladder.below
    rank, at = np.uint16((n - 1) // 2), np.uint64(0)  # of the type that others hand on: compiled once
    foot[:] = 0
    for bit in range(6, -1, -2):
        for i in range(4):  # the fourth is the first of the next higher bits, and not asked for
            for j in range(LANES):
                probes[i * LANES + j] = np.int8(np.uint8(foot[j] + np.uint8(i << bit)) ^ np.uint8(SIGN))
        total[: 4 * LANES] = 0
        for first in range(0, n, MOST):
            _count_below(codes, first, min(first + MOST, n), probes, FOUR, ladder.of_piece, at)
            for j in range(4 * LANES):
                total[j] += ladder.of_piece[j]
        count[:] = 0
        for i in range(1, 4):
            for j in range(LANES):
                count[j] += total[i * LANES + j] <= rank
        for j in range(LANES):
            foot[j] += np.uint8(np.uint8(count[j]) << np.uint8(bit))
    for j in range(LANES):
        foot[j] = np.uint8(min(max(np.int32(foot[j]) - np.int32(RUNGS // 2), 0), 255 - RUNGS))


@part
def count_window(ladder, pieces, w, codes, origin):  # type: ignore[no-untyped-def]
    """Count the ladders of a whole window; frame `origin` lies in the first row of `codes`."""
    bounds, slots, others = pieces.bounds, pieces.slots, ladder.of_piece.size // SIZE - 1
    for r in range(RUNGS):
        for j in range(LANES):
            ladder.rung[r * LANES + j] = np.int8(np.uint8(ladder.foot[j] + np.uint8(r)) ^ np.uint8(SIGN))
    ladder.below[:] = 0
    p, end = pieces.begins[w], pieces.ends[w]
    while p < end:
        q = p + 1
        # Short neighbours together: a window of single frames has 501 of them.
        while slots[p] == others and q < end and slots[q] == others and bounds[q + 1] - bounds[p] <= MOST:
            q += 1
        _enter(ladder, codes, bounds[p] - origin, bounds[q] - origin, slots[p])
        p = q


@part
def update(ladder, pieces, w, codes, origin):  # type: ignore[no-untyped-def]
    """Turn the counts of the window before into those of window `w`; frame `origin` lies in the first row."""
    bounds, slots, others = pieces.bounds, pieces.slots, ladder.of_piece.size // SIZE - 1
    old, old_end = pieces.begins[w - 1], pieces.begins[w]
    new, new_end = pieces.ends[w - 1], pieces.ends[w]
    for p in range(old, old_end):  # first of all, as a piece that enters may take its place
        if slots[p] != others:
            _subtract(ladder.below, ladder.of_piece, slots[p])
    for p in range(new, new_end):
        if slots[p] != others:
            _enter(ladder, codes, bounds[p] - origin, bounds[p + 1] - origin, slots[p])
    while old < old_end or new < new_end:
        if old < old_end and slots[old] != others:
            old += 1
        elif new < new_end and slots[new] != others:
            new += 1
        else:  # what is not remembered goes and comes together
            left, entered = min(old + 1, old_end), min(new + 1, new_end)
            _exchange(
                codes, bounds[old] - origin, bounds[left] - origin, bounds[new] - origin, bounds[entered] - origin,
                ladder.rung, ladder.below,
            )  # fmt: skip
            old, new = left, entered


@part
def _enter(ladder, codes, begin, end, slot):  # type: ignore[no-untyped-def]
    """Count rows of codes, remember their counts, and add them."""
    below, counts, at = ladder.below, ladder.of_piece, np.uint64(slot * SIZE)
    _count_below(codes, begin, end, ladder.rung, np.uint64(SIZE), counts, at)
    for j in range(SIZE):
        below[j] += counts[at + np.uint64(j)]


@part
def _subtract(below, counts, slot):  # type: ignore[no-untyped-def]
    at = np.uint64(slot * SIZE)
    for j in range(SIZE):
        below[j] -= counts[at + np.uint64(j)]


@called
def _exchange(codes, left, left_end, entered, entered_end, rung, below):  # type: ignore[no-untyped-def]
    """Take rows out of the counts and others in, in pairs as far as there are as many."""
    while left < left_end and entered < entered_end:
        x, y = np.uint64(entered * LANES), np.uint64(left * LANES)
        for r in range(0, SIZE, LANES):
            for j in range(LANES):
                t = rung[np.uint64(r + j)]
                below[np.uint64(r + j)] += np.uint16(codes[x + np.uint64(j)] < t) - np.uint16(
                    codes[y + np.uint64(j)] < t
                )
        left += 1
        entered += 1
    while left < left_end:
        y = np.uint64(left * LANES)
        for r in range(0, SIZE, LANES):
            for j in range(LANES):
                below[np.uint64(r + j)] -= codes[y + np.uint64(j)] < rung[np.uint64(r + j)]
        left += 1
    while entered < entered_end:
        x = np.uint64(entered * LANES)
        for r in range(0, SIZE, LANES):
            for j in range(LANES):
                below[np.uint64(r + j)] += codes[x + np.uint64(j)] < rung[np.uint64(r + j)]
        entered += 1


@called
def _count_below(codes, begin, end, thresholds, n_thresholds, counts, at):  # type: ignore[no-untyped-def]
    """
    Count, lane by lane, the rows [begin, end) below each of some thresholds, from position `at` on.

    `n_thresholds` counts their lanes, those of four or a multiple. Eight rows are held against four thresholds for one
    visit of the counts, and against all while they are in the cache: 2.5 -> 1.5 µs for 50 rows, 27 -> 6 µs for 248.
    """
    rows = codes[np.uint64(begin * LANES) : np.uint64(end * LANES)]
    below = counts[at : at + n_thresholds]
    n = np.uint64(rows.size)
    for j in range(below.size):
        below[j] = 0
    k = np.uint64(0)
    while k + EIGHT <= n:
        row = rows[k : k + EIGHT]
        i = np.uint64(0)
        while i < n_thresholds:
            limit, count = thresholds[i : i + FOUR], below[i : i + FOUR]
            for j in range(LANES):
                a, b, c, d = row[j], row[j + LANES], row[j + 2 * LANES], row[j + 3 * LANES]
                e, f, g, h = (
                    row[j + 4 * LANES], row[j + 5 * LANES], row[j + 6 * LANES], row[j + 7 * LANES]
                )  # fmt: skip
                t = limit[j]
                count[j] += (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                t = limit[j + LANES]
                count[j + LANES] += (
                    (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                )
                t = limit[j + 2 * LANES]
                count[j + 2 * LANES] += (
                    (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                )
                t = limit[j + 3 * LANES]
                count[j + 3 * LANES] += (
                    (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                )
            i += FOUR
        k += EIGHT
    while k < n:
        row = rows[k : k + ONE]
        i = np.uint64(0)
        while i < n_thresholds:
            limit, count = thresholds[i : i + ONE], below[i : i + ONE]
            for j in range(LANES):
                count[j] += row[j] < limit[j]
            i += ONE
        k += ONE


@part
def read_middles(ladder, pieces, w, codes, origin, lower, upper):  # type: ignore[no-untyped-def]
    """Write the two middle keys of window `w`; False if a pixel has left its codes."""
    n = pieces.stops[w] - pieces.starts[w]
    low = ladder.under_lower
    high = ladder.under_upper if n % 2 == 0 else low  # of an odd number both are the same
    for moves in range(MOVES + 1):
        _climb(ladder.below, np.uint16((n - 1) // 2), low)
        if n % 2 == 0:
            _climb(ladder.below, np.uint16(n // 2), high)
        n_off, n_lost = _astray(ladder, low, high)
        if n_lost > 0 or (n_off > 0 and moves == MOVES):
            break
        if n_off == 0:
            _keys(ladder, low, lower)
            _keys(ladder, high, upper)
            return True
        _move(ladder, low, high)
        count_window(ladder, pieces, w, codes, origin)
    return False


@part
def _climb(below, rank, under):  # type: ignore[no-untyped-def]
    """Count the rungs that lie not above a rank."""
    under[:] = np.uint16(0)
    for r in range(0, SIZE, 4 * LANES):
        for j in range(LANES):
            under[j] += (
                (below[r + j] <= rank) + (below[r + j + LANES] <= rank)
                + (below[r + j + 2 * LANES] <= rank) + (below[r + j + 3 * LANES] <= rank)
            )  # fmt: skip


@part
def _astray(ladder, under_lower, under_upper):  # type: ignore[no-untyped-def]
    """Count the pixels that are off their ladder, and those that are off their codes as well."""
    n_off = np.int32(0)
    n_lost = np.int32(0)
    for j in range(LANES):  # with `and` and `or` there would be no vector instructions
        low, high, foot = under_lower[j], under_upper[j], ladder.foot[j]
        off = (low == 0) | (high == RUNGS)
        at_end = (foot == 0) | (foot >= 255 - RUNGS)
        # Code 0 also stands for everything below the base, unless no key lies below it.
        unsure = (foot == 0) & (low == 1) & (ladder.base[j] > 0)
        n_off = np.int32(n_off + off)
        n_lost = np.int32(n_lost + ((off & at_end) | unsure))
    return n_off, n_lost


@part
def _move(ladder, under_lower, under_upper):  # type: ignore[no-untyped-def]
    """Move ladders that lost their median by almost their length, and centre the others."""
    for j in range(LANES):
        foot = np.int32(ladder.foot[j])
        low, high = np.int32(under_lower[j]), np.int32(under_upper[j])
        centred = foot + low - np.int32(1 + RUNGS // 2)
        to = foot - (RUNGS - 4) if low == 0 else (foot + (RUNGS - 4) if high == RUNGS else centred)
        ladder.foot[j] = np.uint8(min(max(to, 0), 255 - RUNGS))


@part
def _keys(ladder, under, keys):  # type: ignore[no-untyped-def]
    key = keys.dtype.type
    for j in range(LANES):
        keys[j] = ladder.base[j] + key(ladder.foot[j]) - key(1) + key(under[j])
