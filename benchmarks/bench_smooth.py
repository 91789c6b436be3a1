"""
A Gaussian over a volume.

`python benchmarks/bench_smooth.py` prints the table in megavoxels per second, all measured in one run on one core
(processor time, since machines are shared); `asv run --bench Smooth` follows ours and SciPy over the commits.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import scipy
from dask_image.ndfilters import gaussian_filter as dask_gaussian
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tomoscale import blocks, smooth

SIGMA = 1.5
CHUNKS = (64, 64, 64)


def volume(shape: tuple[int, ...]) -> NDArray:
    """Return noise."""
    return np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)


def with_scipy(image: NDArray) -> NDArray:
    """Filter the whole volume, in memory."""
    return gaussian_filter(image.astype(np.float32), SIGMA)


def with_dask_image(image: NDArray) -> NDArray:
    """Filter chunks with overlap, in one thread."""
    lazy = da.from_array(image, chunks=CHUNKS).astype(np.float32)
    with dask.config.set(scheduler="sync"):
        return dask_gaussian(lazy, SIGMA, mode="reflect").compute()


def ours(image: NDArray) -> NDArray:
    """Filter blocks that read their halo, in one thread."""
    with blocks.planned_for(64_000_000, 1):
        lazy = smooth.gaussian(image, sigma=(SIGMA,)).volume
    return lazy.compute(scheduler="sync")


METHODS: dict[str, Callable[[NDArray], NDArray]] = {
    "SciPy, the whole volume": with_scipy,
    "dask-image": with_dask_image,
    "**tomoscale**": ours,
}


class Smooth:
    """For asv."""

    def setup(self) -> None:
        self.image = volume((32, 96, 96))
        ours(self.image)

    def time_ours(self) -> None:
        ours(self.image)

    def time_scipy(self) -> None:
        with_scipy(self.image)


def spent(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the least processor time of three calls, and the result."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def main() -> None:
    """Print the table."""
    image = volume((128, 192, 192))
    print(f"{platform.machine()}, scipy {scipy.__version__}, {image.shape} uint16, sigma {SIGMA}\n")
    expected = with_scipy(image)
    print("| | Mvoxel/s | times SciPy |\n|---|---|---|")
    reference = 0.0
    for name, method in METHODS.items():
        method(image[:16])
        seconds, found = spent(method, image)
        if method is not with_dask_image:  # which filters in another order
            np.testing.assert_array_equal(found, expected)
        reference = reference or seconds
        print(f"| {name} | {image.size / seconds / 1e6:.1f} | {reference / seconds:.2f} |")


if __name__ == "__main__":
    main()
