"""Sums of the gradient along z: a map of them all, and running ones as a volume that is computed when it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tomoscale import kernels
from tomoscale.blocks import Window, grow, volume_of
from tomoscale.cubes import inner
from tomoscale.derived import Derived
from tomoscale.histogram import find_extremes
from tomoscale.readings import Series
from tomoscale.smooth import TRUNCATE


@dataclass(frozen=True, repr=False)
class RunningSums(Derived):
    """
    Sums of |gradient along z| up to every slice, smoothed.

    Parameters
    ----------
    inner : Volume
        Grey values.
    who : str
        The operation, for errors.
    sigma : float
        Standard deviation of the Gaussian in voxels; 0 for none.
    """

    who: str
    sigma: float

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        # Every slice needs all those below: columns that are cut along z would be read again and again.
        return (self.inner.shape[0], *self.inner.chunks[1:])

    @property
    def halo(self) -> tuple[int, ...]:
        reach = int(TRUNCATE * self.sigma + 0.5)
        return 0, reach, reach  # along z nothing is cut

    def grown(self, window: Window) -> Window:
        axes = zip(window[1:], self.halo[1:], self.shape[1:], strict=True)
        rows, columns = (grow(w, h, n) for w, h, n in axes)
        return slice(0, self.shape[0]), rows, columns

    def working_bytes(self, window: Window) -> int:
        """Return the bytes of whole columns with their halo: raw, summed and filtered, and one map of sums."""
        around = self.grown(window)
        return volume_of(around) * (self.inner.dtype.itemsize + 2 * 4) + 8 * volume_of(around[1:])

    def computed(self, values: np.ndarray, window: Window) -> np.ndarray:
        grown = self.grown(window)
        find_extremes(self.who, [(grown, values)])  # type: ignore[arg-type]
        out = kernels.running_gradients(values)
        if self.sigma:
            out = kernels.ndimage(out).gaussian_filter(out, self.sigma, truncate=TRUNCATE)
        return out[inner(window, grown)]


def gradient_sums(
    who: str, shape: tuple[int, ...], slabs: list[slice], series: Series, band: slice
) -> np.ndarray:
    """Return the sum of absolute gradients of some rows, slab after slab."""
    total = np.zeros((band.stop - band.start, shape[2]))
    for own, (window, slices) in zip(slabs, series, strict=True):
        find_extremes(who, [(window, slices)])  # type: ignore[arg-type]
        kernels.add_gradients(slices, window[0].start, (own.start, own.stop), shape[0], total)
    return total


def smoothed_map(sigma: float, total: np.ndarray) -> np.ndarray:
    """Return the map in float32, smoothed."""
    from scipy import ndimage

    values = total.astype(np.float32)
    return ndimage.gaussian_filter(values, sigma, truncate=TRUNCATE) if sigma else values
