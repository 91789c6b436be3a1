"""Sets that grow together: which components of blocks are one, by the voxels that are neighbours."""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import compiled, part


@part
def root_of(parent, i):  # type: ignore[no-untyped-def]
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@part
def unite(parent, a, b):  # type: ignore[no-untyped-def]
    """Join two sets; the smaller number stays the root, so that a root is its set's first run."""
    a, b = root_of(parent, a), root_of(parent, b)
    if a < b:
        parent[b] = a
    elif b < a:
        parent[a] = b


@compiled
def join_voxels(index, component, n_components, shape, connectivity, wrap):  # type: ignore[no-untyped-def]
    """
    Join components by neighbouring voxels, given as sorted linear indices of a volume.

    Returns the smallest component of every component's set.
    """
    n_frames, n_rows, n_columns = shape
    parent = np.arange(n_components)
    for dz in range(2):
        for dy in range(-1 if dz else 0, 2):
            for dx in range(-1 if dz or dy else 0, 2):
                steps = dz + abs(dy) + abs(dx)
                if steps == 0 or (connectivity == 6 and steps > 1):
                    continue
                _join_offset(index, component, n_frames, n_rows, n_columns, dz, dy, dx, False, parent)
                if wrap and dz and n_frames > 1:
                    _join_offset(index, component, n_frames, n_rows, n_columns, dz, dy, dx, True, parent)
    for i in range(n_components):
        parent[i] = root_of(parent, i)
    return parent


@part
def _join_offset(index, component, n_frames, n_rows, n_columns, dz, dy, dx, around, parent):  # type: ignore[no-untyped-def]
    """Walk two pointers over the voxels: the neighbours of sorted voxels are sorted as well."""
    plane = n_rows * n_columns
    jump = dz * plane + dy * n_columns + dx - (n_frames * plane if around else 0)
    j = 0
    for i in range(len(index)):
        z, inside = index[i] // plane, index[i] % plane
        y, x = inside // n_columns, inside % n_columns
        if (z + dz >= n_frames) != around or not 0 <= y + dy < n_rows or not 0 <= x + dx < n_columns:
            continue
        wanted = index[i] + jump
        while j < len(index) and index[j] < wanted:
            j += 1
        if j < len(index) and index[j] == wanted:
            unite(parent, component[i], component[j])
