"""
The flood that grows one blob over sparse voxels.

It spreads by stretches of a run, not by voxels. A run is split into its stretches in range when the flood first reaches
it, so that every voxel is looked at once for a blob, and a stretch looks once into each neighbouring line.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import compiled, inlined, part

MANY = 8
"""Runs of a line from which the first that may touch is looked for by halves."""


@compiled
def neighbours(component, frame, row, n_frames, n_rows, diagonal, wrap):  # type: ignore[no-untyped-def]
    """Return the places of the neighbouring lines of the same component, -1 for none; the order is fixed."""
    near = np.full((len(frame), 8 if diagonal else 4), -1, np.int32)
    k = 0
    for dz in range(-1, 2):
        for dy in range(-1, 2):
            if (dz == 0 and dy == 0) or (dz and dy and not diagonal):
                continue
            for around in range(2 if wrap and dz and n_frames > 1 else 1):
                jump = dz - (dz * n_frames if around else 0)
                j = 0
                for i in range(len(frame)):
                    z, y, own = frame[i] + jump, row[i] + dy, component[i]
                    if not (0 <= z < n_frames and 0 <= y < n_rows):
                        continue
                    while j < len(frame) and (
                        component[j] < own
                        or (component[j] == own and (frame[j] < z or (frame[j] == z and row[j] < y)))
                    ):
                        j += 1
                    if j < len(frame) and component[j] == own and frame[j] == z and row[j] == y:
                        near[i, k] = j
            k += 1
    return near


@inlined
def split(start, offset, values, flags, run, limits, owner, claim, me, splits, pool, n):  # type: ignore[no-untyped-def]
    """Add the stretches of a run that are in range to the pool, not reached yet; return how many there are now."""
    low, instead, high, never = limits
    v, end, shift = offset[run], offset[run + 1], start[run] - offset[run]
    splits[run, 0], splits[run, 1] = me, n
    before = False
    while v < end:
        # No function of its own: it would count references to the arrays for every voxel (10 times slower).
        inside = (values[v] >= low or flags[v] & instead) and values[v] <= high and not flags[v] & never
        inside = inside and not (claim and owner[v] >= 0)
        if inside and not before:
            pool[n, 0], pool[n, 2], pool[n, 3] = v + shift, run, 0
        elif before and not inside:
            pool[n, 1] = v + shift
            n += 1
        before = inside
        v += 1
    if before:
        pool[n, 1] = v + shift
        n += 1
    splits[run, 2] = n
    return n


@part
def flood(net, limits, owner, claim, me, splits, pool, n_pool, queue):  # type: ignore[no-untyped-def]
    """Fill the queue with all stretches that connect to its first; return their number, and that of the pool."""
    line_of, pointer, start, stop, offset, values, flags, near, reach = net[1:]
    pool[queue[0], 3] = 1
    n, k = 1, 0
    while k < n:
        s = queue[k]
        here, a, b = line_of[pool[s, 2]], pool[s, 0] - reach, pool[s, 1] + reach
        k += 1
        for side in range(near.shape[1]):
            other = near[here, side]
            if other < 0:
                continue
            r, end = pointer[other], pointer[other + 1]
            if end - r > MANY:
                low_run, high_run = r, end
                while low_run < high_run:
                    middle = (low_run + high_run) // 2
                    if stop[middle] <= a:
                        low_run = middle + 1
                    else:
                        high_run = middle
                r = low_run
            while r < end and start[r] < b:
                if stop[r] > a:
                    if splits[r, 0] != me:
                        n_pool = split(
                            start, offset, values, flags, r, limits, owner, claim, me, splits, pool, n_pool
                        )  # fmt: skip
                    for t in range(splits[r, 1], splits[r, 2]):
                        if pool[t, 3] == 0 and pool[t, 0] < b and pool[t, 1] > a:
                            pool[t, 3] = 1
                            queue[n] = t
                            n += 1
                r += 1
    return n, n_pool
