"""Box and sums of one grown blob, from the stretches that the flood put into its queue."""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import part


@part
def box_of(net, pool, queue, n, n_frames, wrap, seen, me, box):  # type: ignore[no-untyped-def]
    """Fill in the box; return the first frame. A blob that wraps around ends beyond the last frame."""
    frame, row = net[0]
    line_of = net[1]
    for k in range(n):
        s = queue[k]
        at = line_of[pool[s, 2]]
        z, y = frame[at], row[at]
        seen[z] = me
        box[2], box[3] = min(box[2], z), max(box[3], z + 1)
        box[4], box[5] = min(box[4], y), max(box[5], y + 1)
        box[6], box[7] = min(box[6], pool[s, 0]), max(box[7], pool[s, 1])
    if wrap and box[2] == 0 and box[3] == n_frames:
        gap = 0
        while gap < n_frames and seen[gap] == me:
            gap += 1
        if gap < n_frames:
            first = n_frames
            while seen[first - 1] == me:
                first -= 1
            box[2], box[3] = first, n_frames + gap
    return box[2]


@part
def sum_up(net, pool, queue, n, n_frames, first, z0, y0, x0, box, sums):  # type: ignore[no-untyped-def]
    """Add up voxels, intensity and its moments about the maximum at z0, y0, x0."""
    frame, row = net[0]
    line_of, start, offset, values = net[1], net[3], net[5], net[6]
    if z0 < first:
        z0 += n_frames
    voxels = np.int64(0)
    for k in range(n):
        t = queue[k]
        run = pool[t, 2]
        at = line_of[run]
        z = frame[at]
        if z < first:
            z += n_frames
        f, r = np.float64(z - z0), np.float64(row[at] - y0)
        shift = offset[run] - start[run]
        s = sx = sxx = 0.0
        for x in range(pool[t, 0], pool[t, 1]):
            value, c = values[shift + x], np.float64(x - x0)
            s += value
            sx += value * c
            sxx += value * c * c
        voxels += pool[t, 1] - pool[t, 0]
        sums[0] += s
        sums[1] += s * f
        sums[2] += s * r
        sums[3] += sx
        sums[4] += s * f * f
        sums[5] += s * f * r
        sums[6] += sx * f
        sums[7] += s * r * r
        sums[8] += sx * r
        sums[9] += sxx
    box[1] = voxels
