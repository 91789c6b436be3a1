"""Seeds of sparse voxels: which voxels above the seed threshold are one, where they are highest."""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import compiled
from tomoscale.kernels._levels import SEED
from tomoscale.kernels._runs import join_lines
from tomoscale.kernels._union import root_of


@compiled
def seeds(net, most):  # type: ignore[no-untyped-def]
    """
    Return run, column, voxel and value of the maximum of every seed, and its size.

    There are at most so many stretches of seed voxels; each joins those it touches in the neighbouring lines before its
    own.
    """
    pointer, start, _, offset, values, flags, near, reach = net[2:]
    n_lines = len(pointer) - 1
    begin, end, run_of = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    top = np.empty(most, np.int64)
    first = np.empty(n_lines + 1, np.int32)
    n = 0
    for line in range(n_lines):
        first[line] = n
        for run in range(pointer[line], pointer[line + 1]):
            shift, inside = start[run] - offset[run], False
            for v in range(offset[run], offset[run + 1]):
                if flags[v] & SEED:
                    if not inside:
                        begin[n], top[n], run_of[n] = v + shift, v, run
                        n += 1
                        inside = True
                    elif values[v] > values[top[n - 1]]:
                        top[n - 1] = v
                    end[n - 1] = v + shift + 1
                else:
                    inside = False
    first[n_lines] = n
    parent = np.arange(n, dtype=np.int32)
    for line in range(n_lines):
        for side in range(near.shape[1] // 2):
            other = near[line, side]
            if other >= 0:
                join_lines(
                    begin, end, first[line], first[line + 1], first[other], first[other + 1], reach, parent
                )
    number, sizes, n_seeds = np.empty(n, np.int32), np.zeros(n, np.int64), 0
    for s in range(n):
        root = root_of(parent, s)
        if root == s:
            number[s] = n_seeds
            top[n_seeds], run_of[n_seeds] = top[s], run_of[s]
            n_seeds += 1
        else:
            number[s] = number[root]
        k = number[s]
        sizes[k] += end[s] - begin[s]
        if values[top[s]] > values[top[k]]:
            top[k], run_of[k] = top[s], run_of[s]
    voxel, run = top[:n_seeds], run_of[:n_seeds].astype(np.int64)
    return run, voxel - offset[run] + start[run], voxel, values[voxel], sizes[:n_seeds]
