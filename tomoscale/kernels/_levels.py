"""Thresholds of the voxels: one number for all, or one for every pixel, in the type of the frames."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED, TOP, OVER = 1, 2, 4
"""Flags of a voxel: at least the seed threshold, at least c_max, more than c_max."""


class Levels(NamedTuple):
    """
    Thresholds of a block: positive numbers, or (row, column) arrays of them.

    Parameters
    ----------
    c_min : float or array
        Voxels of at least this are foreground.
    seed : float or array
        Foreground of at least this belongs to a seed.
    c_max : float or array
        The most that a voxel of a blob may have.
    """

    c_min: Any
    seed: Any
    c_max: Any = np.inf

    def in_type(self, dtype: np.dtype, n_columns: int) -> NDArray:
        """Return the values that foreground, seeds and c_max are above, and c_max itself: (4, 1 or row, column)."""
        planes = (below(self.c_min, dtype), below(self.seed, dtype), below(self.c_max, dtype),
                  at_most(self.c_max, dtype))  # fmt: skip
        n_rows = max(len(p) if p.ndim else 1 for p in planes)
        return np.stack([np.broadcast_to(p, (n_rows, n_columns)) for p in planes])


def below(threshold: Any, dtype: np.dtype) -> NDArray:
    """
    Return the largest value of a type that is below a positive threshold: what is above it is not.

    >>> [below(t, np.dtype("u2")).item() for t in (2.5, 3, 70000)]
    [2, 2, 65535]
    """
    wanted = np.asarray(threshold, np.float64)
    if dtype.kind in "iu":
        return np.clip(np.ceil(wanted) - 1, 0, np.iinfo(dtype).max).astype(dtype)
    value = _rounded(wanted, dtype)
    return np.where(value.astype(np.float64) < wanted, value, np.nextafter(value, dtype.type(-np.inf)))


def at_most(threshold: Any, dtype: np.dtype) -> NDArray:
    """
    Return the largest value of a type that is not above a positive threshold.

    >>> [at_most(t, np.dtype("u2")).item() for t in (2.5, 3, np.inf)]
    [2, 3, 65535]
    """
    wanted = np.asarray(threshold, np.float64)
    if dtype.kind in "iu":
        return np.clip(np.floor(wanted), 0, np.iinfo(dtype).max).astype(dtype)
    value = _rounded(wanted, dtype)
    return np.where(value.astype(np.float64) <= wanted, value, np.nextafter(value, dtype.type(-np.inf)))


def _rounded(wanted: NDArray, dtype: np.dtype) -> NDArray:
    with np.errstate(over="ignore"):  # infinity, of which the largest finite value is the next one down
        return wanted.astype(dtype)
