"""Random numbers that belong to a purpose and an index, so that no result depends on how a scan is cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tomoscale.blocks import Window


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """
    Make the generator of one purpose and index: of frame 17's noise, say.

    NumPy keeps the bits of its generators, but not of the distributions drawn from them, from one version
    to the next: the same seed gives the same bits with the same version of NumPy.
    """
    key = [seed, len(purpose), *purpose.encode(), *index]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def knots(rng: np.random.Generator, cells: int, n_axes: int) -> np.ndarray:
    """Draw the values in [-1, 1] between which `smooth` interpolates."""
    return rng.uniform(-1, 1, (cells + 1,) * n_axes).astype(np.float32)


def smooth(values: np.ndarray, shape: Sequence[int], window: Window | None = None) -> np.ndarray:
    """
    Spread knots over a whole shape, smoothly, and return a window of it.

    >>> smooth(np.float32([0, 1]), (5,))
    array([0.     , 0.15625, 0.5    , 0.84375, 1.     ], dtype=float32)
    """
    field = values
    for axis, n in enumerate(shape):
        cells = values.shape[axis] - 1
        x = np.linspace(0, cells, n, dtype=np.float32)[window[axis] if window else slice(None)]
        below = np.minimum(x.astype(np.intp), cells - 1)
        t = (x - below).astype(np.float32)
        t = (t * t * (3 - 2 * t)).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        lower = np.take(field, below, axis)
        step = np.take(field, below + 1, axis)
        step -= lower
        step *= t
        step += lower
        field = step
    return field
