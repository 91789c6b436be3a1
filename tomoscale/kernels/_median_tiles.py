"""Moving medians tile by tile: running counts where the samples allow, warm brackets everywhere else."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tomoscale.kernels._compile import compiled, part
from tomoscale.kernels._lanes import LANES, is_nan, load_codes, load_keys, make_room, store_means
from tomoscale.kernels._running_counts import (
    Ladder,
    count_window,
    find_feet,
    new_ladder,
    read_middles,
    rest_on,
    update,
)
from tomoscale.kernels._warm_bracket import (
    INTERPOLATIONS,
    Bracket,
    narrow_down,
    new_bracket,
    read_off,
    start_cold,
    start_warm,
)


class Samples(NamedTuple):
    """The frames as bits, and how to read them."""

    bits: Any  # (frame, pixel), unsigned
    flip: Any  # the sign bit of signed types, else 0
    is_float: Any
    top: Any  # the largest key


class Pieces(NamedTuple):
    """The scan cut where any window begins or ends, so that every window is made of whole pieces."""

    bounds: Any  # first frame of every piece, and the end of the last
    slots: Any  # per piece, where its counts are remembered
    starts: Any  # per window, its first frame, and the end of its last one
    stops: Any
    begins: Any  # the same in pieces
    ends: Any


class Lanes(NamedTuple):
    """What is known of one tile."""

    keys: Any  # sliding buffer of the brackets
    codes: Any  # sliding buffer of the running counts, flat
    few: Any  # keys of nine frames, and their medians by three
    bits: Any
    lower: Any  # the two middle keys of the last window
    upper: Any


class Room(NamedTuple):
    """
    Work space of one tile.

    It is allocated by NumPy: to compile an allocation of every type would take a fifth of the kernel's time.
    """

    lanes: Lanes
    bracket: Bracket
    ladder: Ladder


def new_room(kinds: tuple[Any, Any, Any], n_rows: int, n_slots: int) -> Room:
    """Allocate room for windows of half as many rows, whose keys, counts and spacings are of these kinds."""
    key = kinds[0]
    lanes = Lanes(
        np.empty((n_rows, LANES), key),
        np.empty(n_rows * LANES, np.int8),
        np.zeros((4, 3, LANES), key),
        np.zeros(LANES, np.uint32),
        np.zeros(LANES, key),
        np.zeros(LANES, key),
    )
    return Room(lanes, new_bracket(*kinds), new_ladder(key, n_slots))


@compiled
def median_tiles(samples, pieces, room, out):  # type: ignore[no-untyped-def]
    """
    Write the medians of frames[start:stop] to `out` (window, pixel); return how many came from counts.

    A tile starts with running counts, around a guess. Where these give up it goes on with brackets: for one
    window, or for four times as many as the last time if the counts did not even last sixteen windows.
    """
    lanes, bracket, ladder = room
    n_pixels = samples.bits.shape[1]
    starts, stops = pieces.starts, pieces.stops
    n_windows = starts.size
    n_by_counts = 0
    for first in range(0, n_pixels, LANES):
        target = out[:, first : first + LANES]
        seen_nan = _guess(samples, first, starts[0], stops[0], lanes)
        done, pause = np.int64(0), 1
        while done < n_windows:
            begin = done
            done, nan = _by_counts(samples, first, lanes, ladder, pieces, begin, target)
            seen_nan |= nan
            n_by_counts += done - begin
            end = min(done + pause, n_windows)
            if done < end:
                seen_nan |= _by_brackets(samples, first, lanes, bracket, starts, stops, done, end, target)
            pause = 1 if done - begin >= 16 else 4 * pause
            done = end
        if seen_nan:
            _spread_nan(samples.bits, first, starts, stops, target)
    return n_by_counts


@part
def _guess(samples, first, start, stop, lanes):  # type: ignore[no-untyped-def]
    """Set `lower` to the median of three medians of three frames of a window; return whether one holds NaN."""
    bits, flip, is_float, _ = samples
    rows = lanes.few
    seen_nan = False
    for i in range(9):
        k = start + (stop - start - 1) * i // 8
        seen_nan |= load_keys(bits, flip, is_float, k, k + 1, first, rows[i // 3, i % 3 : i % 3 + 1])
    for i in range(4):
        a, b, c = rows[i, 0], rows[i, 1], rows[i, 2]
        middle = rows[3, i] if i < 3 else lanes.lower
        for j in range(LANES):
            middle[j] = max(min(a[j], b[j]), min(max(a[j], b[j]), c[j]))
    return seen_nan


@part
def _by_brackets(samples, first, lanes, bracket, starts, stops, begin, end, out):  # type: ignore[no-untyped-def]
    """Solve windows [begin, end) by brackets; return whether a NaN was read."""
    bits, flip, is_float, top = samples
    keys = lanes.keys
    seen_nan = False
    origin = filled = old_start = old_stop = starts[begin]
    for w in range(begin, end):
        start, stop = starts[w], stops[w]
        warm = w > begin and (start - old_start) + (stop - old_stop) < stop - start
        if start >= filled:
            origin = filled = start
        origin = make_room(keys.reshape(-1), origin, old_start if warm else start, filled, stop)
        seen_nan |= load_keys(bits, flip, is_float, filled, stop, first, keys[filled - origin :])
        filled = stop
        rows = keys[start - origin : stop - origin]
        if warm:
            entered = keys[old_stop - origin : stop - origin]
            left = keys[old_start - origin : start - origin]
            start_warm(bracket, rows, entered, left, top)
        else:
            start_cold(bracket, rows)
        narrow_down(bracket, rows, top, INTERPOLATIONS if warm else 0)
        read_off(bracket, rows, top, lanes.lower, lanes.upper)
        store_means(lanes.lower, lanes.upper, 2 - (stop - start) % 2, flip, is_float, lanes.bits, out[w])
        old_start, old_stop = start, stop
    return seen_nan


@part
def _by_counts(samples, first, lanes, ladder, pieces, begin, out):  # type: ignore[no-untyped-def]
    """Solve windows from `begin` on by running counts; return the first not solved, and whether NaN was read."""
    bits, flip, is_float, _ = samples
    starts, stops, codes = pieces.starts, pieces.stops, lanes.codes
    rest_on(ladder, lanes.lower)
    seen_nan = False
    origin = filled = old_start = starts[begin]
    for w in range(begin, starts.size):
        start, stop = starts[w], stops[w]
        if stop - start > 65_535:
            return w, seen_nan
        warm = w > begin and (start - old_start) + (stop - filled) < stop - start
        if start >= filled:
            origin = filled = start
        origin = make_room(codes, origin, old_start if warm else start, filled, stop)
        seen_nan |= load_codes(bits, flip, is_float, filled, stop, first, ladder.base, codes, origin)
        filled, old_start = stop, start
        if warm:
            update(ladder, pieces, w, codes, origin)
        else:
            if w == begin:
                find_feet(ladder, codes, stop - start)
            count_window(ladder, pieces, w, codes, origin)
        if not read_middles(ladder, pieces, w, codes, origin, lanes.lower, lanes.upper):
            return w, seen_nan
        store_means(lanes.lower, lanes.upper, 2 - (stop - start) % 2, flip, is_float, lanes.bits, out[w])
    return starts.size, seen_nan


@part
def _spread_nan(bits, first, starts, stops, out):  # type: ignore[no-untyped-def]
    """Make every median NaN whose window holds one, from the float32 bits of the samples."""
    for j in range(out.shape[1]):
        n_nan = entered = left = 0
        for w in range(starts.size):
            while entered < stops[w]:
                n_nan += is_nan(bits[entered, first + j])
                entered += 1
            while left < starts[w]:
                n_nan -= is_nan(bits[left, first + j])
                left += 1
            if n_nan > 0:
                out[w, j] = np.nan
