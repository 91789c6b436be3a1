"""
The sum of absolute gradients along z.

`python benchmarks/bench_depth.py` prints the table in megavoxels per second, all measured in one run on one core
(processor time, since machines are shared); `asv run --bench Depth` follows ours over the commits.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

from tomoscale import kernels


def volume(shape: tuple[int, ...]) -> NDArray:
    """Return noise."""
    return np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)


def with_numpy(image: NDArray) -> NDArray:
    """Return what it means."""
    return np.abs(np.gradient(image.astype(np.float64), axis=0)).sum(axis=0)


def with_dask(image: NDArray) -> NDArray:
    """The same on chunks, in one thread."""
    lazy = da.from_array(image, chunks=(64, 128, 128)).astype(np.float64)
    with dask.config.set(scheduler="sync"):
        return da.fabs(da.gradient(lazy, axis=0)).sum(axis=0).compute()


def ours(image: NDArray) -> NDArray:
    """One pass, nothing stored between."""
    total = np.zeros(image.shape[1:])
    kernels.add_gradients(image, 0, (0, len(image)), len(image), total)
    return total


METHODS: dict[str, Callable[[NDArray], NDArray]] = {
    "numpy": with_numpy,
    "dask": with_dask,
    "**tomoscale**": ours,
}


class Depth:
    """For asv."""

    def setup(self) -> None:
        self.image = volume((32, 128, 128))
        ours(self.image)

    def time_ours(self) -> None:
        ours(self.image)

    def time_numpy(self) -> None:
        with_numpy(self.image)


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
    image = volume((128, 256, 256))
    print(f"{platform.machine()}, numpy {np.__version__}, dask {dask.__version__}, {image.shape} uint16\n")
    expected = with_numpy(image)
    times = {}
    for name, method in METHODS.items():
        method(image[:4])
        times[name], found = spent(method, image)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    print("| | Mvoxel/s | times dask |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {image.size / seconds / 1e6:.0f} | {times['dask'] / seconds:.1f} |")


if __name__ == "__main__":
    main()
