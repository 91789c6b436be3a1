"""Labels of voxels from the stretches of their owners."""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import compiled


@compiled
def owned(line, start, stop, owner):  # type: ignore[no-untyped-def]
    """Return the stretches of one owner."""
    most = len(owner)  # memory that is not written is none
    lines = np.empty(most, np.int64)
    starts, stops, of = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    n = v = 0
    for run in range(len(line)):
        before = -1
        for x in range(start[run], stop[run]):
            who = owner[v]
            if who != before:
                if before >= 0:
                    stops[n - 1] = x
                if who >= 0:
                    lines[n], starts[n], of[n] = line[run], x, who
                    n += 1
                before = who
            v += 1
        if before >= 0:
            stops[n - 1] = stop[run]
    return lines[:n], starts[:n], stops[:n], of[:n]


@compiled
def paint(labels, line, start, stop, of, number, first_frame, first_row, first_column, n_rows):  # type: ignore[no-untyped-def]
    """Write the labels of stretches into a block of the label volume that starts at a frame, row and column."""
    frames, rows, columns = labels.shape
    for i in range(len(line)):
        z, y = line[i] // n_rows - first_frame, line[i] % n_rows - first_row
        if 0 <= z < frames and 0 <= y < rows:
            for x in range(max(0, start[i] - first_column), min(columns, stop[i] - first_column)):
                labels[z, y, x] = number[of[i]]
