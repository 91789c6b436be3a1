"""Voxels of runs on the open faces of a block: where components of two blocks may be one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._compile import compiled


def shell_of_runs(
    line: NDArray, start: NDArray, stop: NDArray, component: NDArray, shape: Any, faces: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the voxels of runs that lie on open faces, as indices within the block, and their components."""
    runs = line, start, stop, component
    none: Any = np.empty(0, np.int64), np.empty(0, np.int32)
    if not faces.any():
        return none
    count = _shell_voxels(*runs, *shape, faces, *none)
    found = np.empty(count, np.int64), np.empty(count, np.int32)
    _shell_voxels(*runs, *shape, faces, *found)
    return found


@compiled
def _shell_voxels(line, start, stop, component, n_frames, n_rows, n_columns, faces, index, of):  # type: ignore[no-untyped-def]
    """Count the voxels on open faces; list them where there is room."""
    n = 0
    for i in range(len(line)):
        z, y = line[i] // n_rows, line[i] % n_rows
        outer = (
            (z == 0 and faces[0, 0])
            or (z == n_frames - 1 and faces[0, 1])
            or (y == 0 and faces[1, 0])
            or (y == n_rows - 1 and faces[1, 1])
        )
        for x in range(start[i], stop[i]):
            if outer or (x == 0 and faces[2, 0]) or (x == n_columns - 1 and faces[2, 1]):
                if n < len(index):
                    index[n] = np.int64(line[i]) * n_columns + x
                    of[n] = component[i]
                n += 1
    return n
