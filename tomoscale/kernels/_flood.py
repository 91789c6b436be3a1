"""
The flood that grows one blob over sparse voxels.

It spreads by stretches of a run, not by voxels: a stretch looks once into each neighbouring line.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import compiled, inlined, part


@compiled
def neighbours(component, lines, n_frames, n_rows, diagonal, wrap):  # type: ignore[no-untyped-def]
    """Return the places of the neighbouring lines of the same component, -1 for none; the order is fixed."""
    near = np.full((len(lines), 8), -1, np.int32)
    k = 0
    for dz in range(-1, 2):
        for dy in range(-1, 2):
            if (dz == 0 and dy == 0) or (dz and dy and not diagonal):
                continue
            for around in range(2 if wrap and dz and n_frames > 1 else 1):
                jump = dz * n_rows + dy - (dz * n_frames * n_rows if around else 0)
                j = 0
                for i in range(len(lines)):
                    z, y = lines[i] // n_rows, lines[i] % n_rows
                    outside = not 0 <= z + dz < n_frames
                    if outside != (around == 1) or not 0 <= y + dy < n_rows:
                        continue
                    wanted = lines[i] + jump
                    own = component[i]
                    while j < len(lines) and (
                        component[j] < own or (component[j] == own and lines[j] < wanted)
                    ):
                        j += 1
                    if j < len(lines) and component[j] == own and lines[j] == wanted:
                        near[i, k] = j
            k += 1
    return near[:, :k].copy()


@inlined
def _is_in(values, v, low, high, stamp, me, owner, claim):  # type: ignore[no-untyped-def]
    value = values[v]
    return low <= value and value <= high and stamp[v] != me and not (claim and owner[v] >= 0)


@inlined
def _push(start, stop, offset, values, run, at, x, low, high, stamp, me, owner, claim, queue, n):  # type: ignore[no-untyped-def]
    """Add the stretch around a voxel: all of its run that is in range."""
    shift = offset[run] - start[run]
    first = x
    while first > start[run] and _is_in(values, shift + first - 1, low, high, stamp, me, owner, claim):
        first -= 1
    last = x + 1
    while last < stop[run] and _is_in(values, shift + last, low, high, stamp, me, owner, claim):
        last += 1
    for v in range(shift + first, shift + last):
        stamp[v] = me
    queue[n, 0], queue[n, 1], queue[n, 2], queue[n, 3] = at, first, last, run
    return last


@part
def flood(net, run, at, x, low, high, stamp, me, owner, claim, queue):  # type: ignore[no-untyped-def]
    """Fill the queue with all stretches that connect to a voxel; return their number."""
    pointer, start, stop, offset, values, near, reach = net[1], net[2], net[3], net[4], net[5], net[6], net[7]
    _push(start, stop, offset, values, run, at, x, low, high, stamp, me, owner, claim, queue, 0)
    n, k = 1, 0
    while k < n:
        here = queue[k, 0]
        a, b = queue[k, 1] - reach, queue[k, 2] + reach
        k += 1
        for side in range(near.shape[1]):
            other = near[here, side]
            if other < 0:
                continue
            r, end = pointer[other], pointer[other + 1]
            if end - r > 8:
                low_run, high_run = r, end
                while low_run < high_run:
                    middle = (low_run + high_run) // 2
                    if stop[middle] <= a:
                        low_run = middle + 1
                    else:
                        high_run = middle
                r = low_run
            while r < end and start[r] < b:
                shift = offset[r] - start[r]
                c = max(a, start[r])
                c_end = min(b, stop[r])
                while c < c_end:
                    if _is_in(values, shift + c, low, high, stamp, me, owner, claim):
                        c = _push(
                            start, stop, offset, values, r, other, c, low, high, stamp, me, owner, claim, queue, n
                        )  # fmt: skip
                        n += 1
                    else:
                        c += 1
                r += 1
    return n
