"""Gaussian smoothing of volumes: block by block, with a halo read from storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tomoscale import blocks, cubes, devices, kernels
from tomoscale.blocks import Window, grow
from tomoscale.cubes import Cubes, checked_volume, inner
from tomoscale.derived import Derived
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Device, Sigma, Volume

TRUNCATE = 4.0
"""Standard deviations at which the Gaussian ends, as in SciPy."""


class Smoothed(NamedTuple):
    """A smoothed volume."""

    volume: Any


@operation("smooth")
def gaussian(image: Volume, *, sigma: Sigma = (1.0, 1.0, 1.0), device: Device = "auto") -> Smoothed:
    """
    Smooth a volume by a Gaussian.

    Parameters
    ----------
    image : (z, y, x)
        Grey values of any type.
    sigma
        Standard deviation along z, y and x in voxels; one number for all three, 0 to leave an axis alone.
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

    Returns
    -------
    Smoothed
        Lazy array `volume` (z, y, x) float32.

    Raises
    ------
    TomoscaleError
        Not a volume, or a block with its halo that does not fit the memory.

    Notes
    -----
    Equal, bit for bit, to `scipy.ndimage.gaussian_filter` of the whole volume in float32, whatever the chunks:
    mirrored at its faces, cut off at four standard deviations. On a GPU it differs by rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import smooth
    >>> image = np.zeros((9, 9, 9), np.uint16)
    >>> image[4, 4, 4] = 1000
    >>> int(smooth.gaussian(image, sigma=(1, 1, 1)).volume.compute()[4, 4, 4])
    63
    """
    checked_volume("smooth.gaussian", image)
    image, place = devices.placed("smooth.gaussian", image, device, rounds=any(sigma))
    view = smoothed(image, sigma)
    blocks_of = cubes.cut("smooth.gaussian", view, held=4)

    def arguments(index: tuple[int, ...]) -> tuple[Any, ...]:
        return (view.at(blocks_of.window(index)),)

    made = blocks.map_blocks(
        cubes.as_read, arguments, {"volume": blocks_of.field("f4")}, scratch=_scratch(view, blocks_of)
    )
    blocks.state(made["volume"], image="volume", **place)
    return Smoothed(made["volume"])


def _scratch(view: Any, blocks_of: Cubes) -> int:
    return view.working_bytes(tuple(slice(0, e) for e in blocks_of.edges))


@dataclass(frozen=True, repr=False)
class SmoothedVolume(Derived):
    """A volume that is smoothed when it is read: a window is read with its halo, smoothed and cut."""

    sigma: tuple[float, ...]

    @property
    def halo(self) -> tuple[int, ...]:
        """Voxels that enter beyond a window along every axis."""
        return tuple(int(TRUNCATE * s + 0.5) for s in self.sigma)

    def grown(self, window: Window) -> Window:
        return tuple(grow(s, h, n) for s, h, n in zip(window, self.halo, self.shape, strict=True))

    def working_bytes(self, window: Window) -> int:
        """Return the bytes of a window with its halo: raw, as float32, and filtered."""
        around = math.prod(w.stop - w.start + 2 * h for w, h in zip(window, self.halo, strict=True))
        return around * (self.inner.dtype.itemsize + 2 * 4)

    def computed(self, values: np.ndarray, window: Window) -> np.ndarray:
        around = values.astype(np.float32)
        # Axes one after the other, as SciPy does it for the whole volume: every line sees the same samples, and SciPy
        # mirrors where the volume ends.
        found = kernels.ndimage(around).gaussian_filter(around, self.sigma, mode="reflect", truncate=TRUNCATE)
        return found[inner(window, self.grown(window))]


def smoothed(image: Any, sigma: Sequence[float]) -> Any:
    """Return a volume as it is seen through a Gaussian; the same for widths of zero."""
    if len(sigma) == 1:
        sigma = tuple(sigma) * image.ndim
    if len(sigma) != image.ndim:
        raise TomoscaleError(f"sigma has {len(sigma)} numbers; expected 1, or 3 for z, y and x")
    return SmoothedVolume(image, tuple(map(float, sigma))) if any(sigma) else image
