"""
Blobs of a volume by the double threshold: label, bounding boxes, table.

`python benchmarks/bench_blobs.py` prints the table in megavoxels per second for 512^3 float32 voxels with about 2,000
blobs, all measured in one run on one core; `asv run --bench Blobs` follows ours and the reference over the commits.
Peers label {I >= c_min} and measure what they label; ours also grows every blob by its own maximum. One row does that
with SciPy: the same labels, which is checked. All run with the allocator settings of a worker.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import cc3d
import llvmlite.binding
import numba
import numpy as np
import scipy
import skimage
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from tomoscale import blobs, blocks, buffers, worker
from tomoscale.workers import WORKER_ENVIRONMENT

SEED, C_MIN, TAU = 40.0, 15.0, 0.1


def crowd(edge: int, n_blobs: int) -> NDArray[np.float32]:
    """Return noise of standard deviation 4 with ellipsoidal blobs of 60 to 1,000 counts."""
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((edge, edge, edge), np.float32)
    frames *= 4
    for _ in range(n_blobs):
        half = rng.uniform(2, 6, 3)
        reach = np.ceil(2 * half).astype(int)
        centre = rng.integers(0, edge, 3)
        window = tuple(slice(max(0, c - r), min(edge, c + r + 1)) for c, r in zip(centre, reach, strict=True))
        away = np.meshgrid(
            *(np.arange(w.start, w.stop) - c for w, c in zip(window, centre, strict=True)), indexing="ij"
        )
        distance = sum((a / h) ** 2 for a, h in zip(away, half, strict=True))
        frames[window] += np.exp(rng.uniform(np.log(60), np.log(1000))) * np.exp(-distance)
    return frames


def scipy_loop(frames: NDArray) -> Any:
    """The reference as people write it: label, then look at the box of every component."""
    labels, _ = ndimage.label(frames >= C_MIN)
    rows = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[box] == number
        values = frames[box]
        top = values[inside].max()
        if top < SEED:
            continue
        where = np.argwhere(inside & (values >= max(C_MIN, TAU * top)))
        weight = values[tuple(where.T)]
        rows.append((top, weight.sum(), *(where * weight[:, None]).sum(0) / weight.sum()))
    return labels, rows


def scipy_growth(frames: NDArray) -> Any:
    """The same result as ours: within the box of every component, each seed grows by its own maximum."""
    components, _ = ndimage.label(frames >= C_MIN)
    grown = []
    for number, box in enumerate(ndimage.find_objects(components), 1):
        values = np.where(components[box] == number, frames[box], 0)
        if values.max() < SEED:
            continue
        values = values.astype(np.float64)
        seeds, n_seeds = ndimage.label(values >= SEED)
        for top in ndimage.maximum_position(values, seeds, np.arange(1, n_seeds + 1)):
            peak = values[top]
            reached, _ = ndimage.label((values >= max(C_MIN, TAU * peak)) & (values <= peak))
            blob = reached == reached[top]
            where = np.argwhere(blob)
            place = tuple(s.start + t for s, t in zip(box, top, strict=True))
            row = (where.min(0), where.max(0), *moments(where, values[blob]), (seeds == seeds[top]).sum())
            grown.append((-peak, np.ravel_multi_index(place, frames.shape), box, blob, row))
    grown.sort(key=lambda g: g[:2])
    labels = np.zeros(frames.shape, np.uint32)
    for number, (_, _, box, blob, _) in enumerate(grown, 1):
        labels[box][blob & (labels[box] == 0)] = number
    return labels, [(-g[0], g[1], *g[4]) for g in grown]


def moments(where: NDArray, weight: NDArray) -> tuple[Any, ...]:
    """Return size, sum, centroid and second central moments."""
    mean = weight @ where / weight.sum()
    away = where - mean
    return len(where), weight.sum(), mean, (away * weight[:, None]).T @ away / weight.sum()


def skimage_regions(frames: NDArray) -> Any:
    """Hysteresis threshold, label, table."""
    from skimage.filters import apply_hysteresis_threshold

    labels = measure.label(apply_hysteresis_threshold(frames, C_MIN, SEED), connectivity=1)
    return labels, measure.regionprops_table(labels, frames, PROPERTIES)


def cc3d_regions(frames: NDArray) -> Any:
    """The fastest labelling of a whole volume, and the table of what holds a seed."""
    labels, n = cc3d.connected_components(frames >= C_MIN, connectivity=6, return_N=True)
    bright = np.zeros(n + 1, bool)
    bright[labels[frames >= SEED]] = True
    bright[0] = False
    number = np.cumsum(bright, dtype=labels.dtype) * bright
    labels = number[labels]
    return labels, measure.regionprops_table(labels, frames, PROPERTIES)


PROPERTIES = ("label", "area", "bbox", "intensity_max", "intensity_mean", "centroid_weighted")


def dask_image_label(frames: NDArray) -> Any:
    """Label in 64 chunks, the maximum of each."""
    import dask.array as da
    from dask_image import ndmeasure

    lazy = da.from_array(frames, chunks=tuple(n // 4 for n in frames.shape))
    labels, n = ndmeasure.label(lazy >= C_MIN)
    return labels.compute(scheduler="sync"), int(n)


def ours(frames: NDArray) -> Any:
    """Blocks of labels and the table, computed as a run computes them, in this thread."""
    with blocks.planned_for(6_000_000_000, 1):
        found = blobs.segment(frames, seed_threshold=SEED, c_min=C_MIN, tau=TAU)
    keys = [(found.labels.name, *i) for i in np.ndindex(*found.labels.numblocks)]
    with buffers.reused():
        return worker.compute({**found.labels.dask, **found.table.dask}, [keys, found.table.key])


METHODS: dict[str, Callable[[NDArray], Any]] = {
    "scipy.ndimage, loop over boxes": scipy_loop,
    "scipy.ndimage, the same growth": scipy_growth,
    "scikit-image, regionprops": skimage_regions,
    "cc3d, regionprops": cc3d_regions,
    "dask-image label": dask_image_label,
    "tomoscale": ours,
}


SLOW = ("scipy.ndimage, the same growth", "scikit-image, regionprops", "dask-image label")


class Blobs:
    params = (["scipy.ndimage, loop over boxes", "tomoscale"],)
    param_names = ("method",)
    number, repeat, warmup_time = 1, 3, 0.0

    def setup(self, method: str) -> None:
        self.frames = crowd(192, 100)
        ours(self.frames[:8])  # compile

    def time_volume(self, method: str) -> None:
        METHODS[method](self.frames)


def mvoxel_per_s(method: Callable[[NDArray], Any], frames: NDArray, repeat: int = 3) -> float:
    best = np.inf
    for _ in range(repeat):
        start = time.perf_counter()
        method(frames)
        best = min(best, time.perf_counter() - start)
    return frames.size / best / 1e6


def main() -> None:
    print(f"{llvmlite.binding.get_host_cpu_name()}, Python {platform.python_version()}, one core")
    print(f"numpy {np.__version__}, numba {numba.__version__}, scipy {scipy.__version__}, ", end="")
    print(f"scikit-image {skimage.__version__}, cc3d {version('connected-components-3d')}\n")
    frames = crowd(512, 2000)
    (blocks_of_labels, table), (labels, rows) = ours(frames), scipy_growth(frames)
    np.testing.assert_array_equal(np.reshape(blocks_of_labels, frames.shape), labels)
    np.testing.assert_array_equal(table["voxels"].to_numpy(), [row[4] for row in rows])
    print(f"512^3 float32, {len(table):,} blobs, {(frames >= C_MIN).mean():.2%} of the voxels above c_min")
    print(f"{'':36}{'Mvoxel/s':>10}{'ours is':>10}")
    speed = {}
    for name in reversed(METHODS):
        cut = frames[:128, :256, :256] if name.startswith("dask") else frames
        speed[name] = mvoxel_per_s(METHODS[name], cut, 1 if name in SLOW else 3)
    for name in METHODS:
        print(f"{name:36}{speed[name]:10.2f}{speed['tomoscale'] / speed[name]:9.1f}x", flush=True)


if __name__ == "__main__":
    if not os.environ.items() >= WORKER_ENVIRONMENT.items():  # read once, when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WORKER_ENVIRONMENT})
    main()
