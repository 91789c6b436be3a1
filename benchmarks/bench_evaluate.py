"""
Scores of masks.

`python benchmarks/bench_evaluate.py` prints the table in megavoxels per second, all measured in one run on one core
(processor time, since machines are shared); `asv run --bench Masks` follows ours over the commits.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from tomoscale import store
from tomoscale.evaluate import masks


def pair(shape: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Return true classes, and what was found with one voxel in ten wrong."""
    rng = np.random.default_rng(0)
    true = (np.indices(shape).sum(axis=0) // 16 % 3).astype(np.uint8)
    return np.where(rng.random(shape) < 0.1, rng.integers(0, 3, shape), true).astype(np.uint8), true


def with_scikit_learn(found: NDArray, true: NDArray) -> NDArray:
    """Count pairs of classes, of the whole volume only."""
    return confusion_matrix(true.ravel(), found.ravel())


def with_numpy(found: NDArray, true: NDArray) -> NDArray:
    """Count pairs of classes, slice by slice."""
    pairs = [
        np.bincount((t.astype(np.intp) * 3 + f).ravel(), minlength=9)
        for t, f in zip(true, found, strict=True)
    ]
    return np.sum(pairs, axis=0).reshape(3, 3)


def ours(found: NDArray, true: NDArray) -> NDArray:
    """Count pairs of classes, slice by slice, window by window."""
    return masks.confusion_of(store.as_volume(found), store.as_volume(true)).sum(axis=0)


METHODS: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "scikit-learn, confusion_matrix": with_scikit_learn,
    "numpy.bincount of pairs": with_numpy,
    "**tomoscale**": ours,
}


class Masks:
    """For asv."""

    def setup(self) -> None:
        self.pair = pair((16, 96, 96))
        ours(*self.pair)

    def time_ours(self) -> None:
        ours(*self.pair)

    def time_numpy(self) -> None:
        with_numpy(*self.pair)


def spent(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the least processor time of two calls, and the result."""
    seconds = []
    for _ in range(2):
        begin = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def main() -> None:
    """Print the table."""
    found, true = pair((64, 192, 192))
    print(
        f"{platform.machine()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}, {true.shape}, 3 classes\n"
    )
    ours(found[:2], true[:2])
    print("| | Mvoxel/s | times scikit-learn |\n|---|---|---|")
    reference, expected = 0.0, with_numpy(found, true)
    for name, method in METHODS.items():
        seconds, counts = spent(method, found, true)
        np.testing.assert_array_equal(counts, expected)
        reference = reference or seconds
        print(f"| {name} | {true.size / seconds / 1e6:.1f} | {reference / seconds:.0f} |")


if __name__ == "__main__":
    main()
