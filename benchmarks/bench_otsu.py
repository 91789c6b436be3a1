"""
Otsu's thresholds of a volume, and its local contrast.

`python benchmarks/bench_otsu.py` prints the tables in megavoxels per second, all measured in one run on one core;
`asv run --bench Otsu` follows ours and the reference over the commits.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import skimage
from numpy.typing import NDArray
from skimage.exposure import equalize_adapthist
from skimage.filters import threshold_multiotsu, threshold_otsu

from tomoscale import blocks, kernels, otsu


def volume(dtype: str, shape: tuple[int, ...]) -> NDArray:
    """Return two phases with noise."""
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 0.05, shape).astype(np.float32)
    values[:, shape[1] // 2 :] += 0.35
    values = values.clip(0, 1)
    return values if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


def computed(make: Callable[..., Any], *arguments: Any, **options: Any) -> NDArray:
    """Run one operation in this thread."""
    with blocks.planned_for(1_600_000_000, 1):
        lazy = make(*arguments, **options)
    return lazy[-1].compute(scheduler="sync")


def best_of(function: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Return the shortest time of some calls, and the result."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), result


class Otsu:
    """For asv."""

    params = (["uint8", "uint16", "float32"],)
    param_names = ("dtype",)

    def setup(self, dtype: str) -> None:
        self.image = volume(dtype, (32, 128, 128))
        computed(otsu.segment, self.image)

    def time_thresholds(self, dtype: str) -> None:
        computed(otsu.segment, self.image)

    def time_skimage(self, dtype: str) -> None:
        threshold_otsu(self.image)


def counting() -> None:
    """Print the table of counting alone: what scikit-image's thresholds of integers rest on, and ours."""
    print("\n| histogram | Mvoxel/s | times numpy.bincount |\n|---|---|---|")
    two_phases = volume("uint16", (64, 256, 256))
    images = {
        "uint8": volume("uint8", two_phases.shape),
        "uint16, two phases": two_phases,
        "uint16, 12 bits": two_phases >> 4,
        "uint16, full range": np.random.default_rng(0).integers(0, 65536, two_phases.shape, np.uint16),
    }
    for name, image in images.items():
        counts = np.zeros(256**image.itemsize, np.int64)
        kernels.value_counts(image, counts)
        theirs, _ = best_of(lambda i=image: np.bincount(i.ravel()))
        ours, _ = best_of(lambda i=image, c=counts: kernels.value_counts(i, c))
        assert np.array_equal(np.bincount(image.ravel(), minlength=counts.size) * 4, counts)
        print(f"| numpy.bincount, {name} | {image.size / theirs / 1e6:.0f} | 1 |")
        print(f"| **tomoscale**, {name} | {image.size / ours / 1e6:.0f} | {theirs / ours:.1f} |")


def thresholds() -> None:
    """Print the table of thresholds."""
    print("\n| thresholds | Mvoxel/s | times scikit-image |\n|---|---|---|")
    cases = [
        ("uint8", 2, 8), ("uint16", 2, 16), ("float32", 2, 0),
        ("uint8", 4, 8), ("uint16", 3, 12), ("uint16", 3, 14), ("uint16", 4, 10),
    ]  # fmt: skip
    for dtype, classes, bits in cases:
        image = volume(dtype, (128, 256, 256))
        # scikit-image tries all combinations of the values that occur: of 16 bits hours for 4 classes.
        image = image >> (16 - bits) if dtype == "uint16" else image
        computed(otsu.segment, image[:2], classes=classes)
        if classes == 2:
            theirs, expected = best_of(lambda i=image: threshold_otsu(i), 2)
        else:
            theirs, expected = best_of(lambda i=image, c=classes: threshold_multiotsu(i, c), 1)
        ours, found = best_of(lambda i=image, c=classes: computed(otsu.segment, i, classes=c))
        assert np.array_equal(np.atleast_1d(expected), found)
        name = f"{dtype}{f' of {bits} bits' if bits in (10, 12, 14) else ''}, {classes} classes"
        print(f"| scikit-image, {name} | {image.size / theirs / 1e6:.1f} | 1 |")
        print(f"| **tomoscale**, {name} | {image.size / ours / 1e6:.1f} | {theirs / ours:.1f} |")


def contrast() -> None:
    """Print the table of local contrast."""
    print("\n| local contrast | Mvoxel/s | times scikit-image |\n|---|---|---|")
    for dimensions, shape in ((2, (4, 1024, 1024)), (3, (64, 192, 192))):
        image = volume("uint16", shape)
        options = {"dimensions": dimensions, "dtype": "float64"}
        ours, found = best_of(lambda i=image, o=options: computed(otsu.equalize, i, **o))
        if dimensions == 2:
            theirs, expected = best_of(lambda i=image: np.stack([equalize_adapthist(s) for s in i]), 1)
        else:
            theirs, expected = best_of(lambda i=image: equalize_adapthist(i), 1)
        assert np.array_equal(expected, found)
        print(f"| scikit-image, {dimensions}D | {image.size / theirs / 1e6:.1f} | 1 |")
        print(f"| **tomoscale**, {dimensions}D | {image.size / ours / 1e6:.1f} | {theirs / ours:.1f} |")


def main() -> None:
    """Print the tables."""
    print(
        f"{platform.processor() or platform.machine()}, numpy {np.__version__}, skimage {skimage.__version__}"
    )
    counting()
    thresholds()
    contrast()


if __name__ == "__main__":
    main()
