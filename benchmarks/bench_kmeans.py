"""
k-means of intensity and coordinates, per iteration.

`python benchmarks/bench_kmeans.py` prints the table in megavoxels per second and iteration, all measured in one run on
one core (processor time, since machines are shared); `asv run --bench Kmeans` follows ours over the commits.
"""

from __future__ import annotations

import functools
import platform
import time
import tracemalloc
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from tomoscale import kernels, kmeans

STANDARD = np.array([[-0.6, -0.5, 0.1, 0.3], [0.2, 0.4, -0.3, 0.1], [1.4, 0.1, 0.2, -0.4]])


def volume(shape: tuple[int, ...]) -> NDArray:
    """Return three phases with noise."""
    values = np.random.default_rng(0).normal(20000, 2000, shape)
    values[:, shape[1] // 2 :] += 15000
    values[:, :, shape[2] // 2 :] += 6000
    return values.clip(0, 65535).astype(np.uint16)


def features(image: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return the standardised matrix that scikit-learn needs, and its scaling."""
    places = np.indices(image.shape)
    matrix = np.stack([image, *places], axis=-1).reshape(-1, 4).astype(np.float64)
    mean, deviation = matrix.mean(axis=0), matrix.std(axis=0)
    return (matrix - mean) / deviation, mean, deviation


def weights(mean: NDArray, deviation: NDArray, centres: NDArray) -> NDArray:
    """Return what the kernel takes for centres."""
    slope = -2 * centres / deviation
    return np.column_stack([(centres**2).sum(axis=1) - (slope * mean).sum(axis=1), slope])


def sums(image: NDArray, factors: NDArray) -> NDArray:
    """Run one iteration of ours."""
    return kernels.cluster_sums(image, (0, 0, 0), factors, 1.0, -np.inf, False)


def spent(function: Any, times: int = 3) -> tuple[float, Any]:
    """Return the least processor time of some calls, and the result."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        result = function()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


class Kmeans:
    """For asv."""

    def setup(self) -> None:
        self.image = volume((16, 96, 96))
        matrix, mean, deviation = features(self.image)
        del matrix
        self.factors = weights(mean, deviation, STANDARD)
        sums(self.image, self.factors)

    def time_iteration(self) -> None:
        sums(self.image, self.factors)


def main() -> None:
    """Print the table."""
    image = volume((64, 256, 256))
    print(
        f"{platform.machine()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}, {image.shape}, k = 3\n"
    )
    with threadpool_limits(1):
        matrix, mean, deviation = features(image)
        model = KMeans(3, init=STANDARD, n_init=1, tol=0, max_iter=8, algorithm="lloyd")
        whole, fit = spent(functools.partial(model.fit, matrix), 1)
        theirs = whole / fit.n_iter_
    factors = weights(mean, deviation, STANDARD)
    sums(image, factors)
    ours, found = spent(lambda: sums(image, factors), 5)
    own = ((matrix[:, None, :] - STANDARD) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(np.bincount(own), found[:, 0])
    del matrix, own
    tracemalloc.start()
    sums(image, factors)
    extra = tracemalloc.get_traced_memory()[1]
    print("| one iteration | Mvoxel/s | times scikit-learn | MB beyond the volume |\n|---|---|---|---|")
    print(f"| scikit-learn, float64 | {image.size / theirs / 1e6:.0f} | 1 | {image.size * 32 / 1e6:.0f} |")
    print(f"| **tomoscale** | {image.size / ours / 1e6:.0f} | {theirs / ours:.0f} | {extra / 1e6:.1f} |")
    lazy = kmeans.segment(image, most_iterations=10)
    print(f"\nA fit of this volume settled after {lazy.iterations.compute(scheduler='sync')[0]} iterations.")


if __name__ == "__main__":
    main()
