"""
Components that cross block faces: which parts of which blocks are one.

Every block numbers its components from 0 and lists the voxels on its open faces (`shell`). Joined by neighbouring
voxels, in any of the three axes, over edges and corners too, they become components of the volume. Nothing else of the
blocks takes part, so that joining costs no more than their surface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscale import kernels
from tomoscale.blocks import Window


class Joined(NamedTuple):
    """
    Components of the volume.

    Parameters
    ----------
    offset : (block + 1,) int64
        First component of every block among those of all blocks.
    root : (component,) int64
        The first component of the set that a component belongs to.
    """

    offset: NDArray[np.int64]
    root: NDArray[np.int64]

    @property
    def block(self) -> NDArray[np.int64]:
        """The block of every component's root."""
        return np.searchsorted(self.offset, self.root, "right") - 1


BYTES_PER_SHELL_VOXEL = 40
"""What joining holds for a voxel on an open face."""
LARGEST_UINT32 = 2**32 - 1


def dtype_of(shape: Sequence[int], smallest: int, most: int) -> np.dtype:
    """
    Return the type of labels in which components that do not touch can be numbered from 1.

    Parameters
    ----------
    shape : (int, int, int)
        Of the volume. Between two of them, along a path through all voxels, lies a voxel of none.
    smallest : int
        Voxels of the smallest component.
    most : int
        How many there may be at most for another reason.

    Returns
    -------
    numpy.dtype
        uint32, or uint64 where that may not be enough.

    Examples
    --------
    >>> [str(dtype_of((7200, 2048, 2048), n, 2**34)) for n in (1, 8)]
    ['uint64', 'uint32']
    """
    fit = math.prod(shape) // max(2, smallest) + 1
    return np.dtype(np.uint32 if min(fit, most) <= LARGEST_UINT32 else np.uint64)


def open_faces(window: Window, shape: Sequence[int], wrap: bool = False) -> NDArray[np.bool_]:
    """Tell beyond which faces of a block the volume goes on; with `wrap`, the first axis is a circle."""
    faces = np.array([[s.start > 0, s.stop < n] for s, n in zip(window, shape, strict=True)])
    if wrap:
        faces[0] = True
    return faces


def in_volume(index: NDArray, window: Window, shape: Sequence[int]) -> NDArray[np.int64]:
    """Turn linear indices of a block into those of the volume."""
    _, rows, columns = (s.stop - s.start for s in window)
    line, column = np.divmod(index, columns)
    frame, row = np.divmod(line, rows)
    return (
        ((frame + window[0].start) * shape[1] + row + window[1].start) * shape[2] + column + window[2].start
    )


def join(
    sizes: Sequence[int],
    shells: Sequence[tuple[NDArray, NDArray]],
    shape: Sequence[int],
    *,
    connectivity: int,
    wrap: bool = False,
) -> Joined:
    """
    Join the components of blocks across their faces.

    Parameters
    ----------
    sizes : sequence of int
        Number of components of every block.
    shells : sequence of (index, component)
        Voxels on the open faces of every block: linear index in the volume, and component within the block.
    shape : (int, int, int)
        Of the volume.
    connectivity : int
        6 or 26 neighbours.
    wrap : bool
        Whether the last plane of the first axis meets the first.

    Returns
    -------
    Joined
        One root for all components that are one.
    """
    offset = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    index = np.concatenate([np.empty(0, np.int64), *(i for i, _ in shells)])
    component = np.concatenate(
        [np.empty(0, np.int64), *(c + o for (_, c), o in zip(shells, offset[:-1], strict=True))]
    )
    order = np.argsort(index, kind="stable")
    whole = (int(shape[0]), int(shape[1]), int(shape[2]))
    root: Any = kernels.join_voxels(
        index[order], component[order], int(offset[-1]), whole, connectivity, wrap
    )
    return Joined(offset, root)
