"""
Blocks on a GPU: all that may be computed there, held against the CPU, then measured on both.

`python benchmarks/gpu/run.py` prints a table in Markdown, in megavoxels per second: one core of the CPU, the GPU for a
block that lies there, and the GPU with both copies, as in a run. It needs NumPy, SciPy, Numba and CuPy, and no
installation. Without a GPU it ends with a line and status 2, after a difference with status 1.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tomoscale import clusters, histogram, kernels, thresholds, tiles
from tomoscale.errors import TomoscaleError

WHO = "benchmarks/gpu/run.py"
SHAPE = (64, 512, 512)
ROUNDING = 1e-6
"""Of a Gaussian in float32, of the largest value: its sums are made in another order, or precision."""


class Case(NamedTuple):
    """What is computed of a block, and by how much it may differ."""

    name: str
    values: np.ndarray
    function: Callable[[Any], Any]
    most: float = 0.0


def phases(dtype: str) -> np.ndarray:
    """Return two phases with noise."""
    values = np.random.default_rng(0).normal(0.3, 0.05, SHAPE).astype(np.float32)
    values[:, SHAPE[1] // 2 :] += 0.35
    values = values.clip(0, 1)
    return values if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


def counted(function: Callable[..., Any], *before: Any, size: int) -> Callable[[Any], np.ndarray]:
    """Let a kernel that adds to an array return it."""

    def call(values: Any) -> np.ndarray:
        counts = np.zeros(size, np.int64)
        function(values, *before, counts)
        return counts

    return call


def passed(function: Callable[..., Any], how: Any, *rest: Any) -> Callable[[Any], Any]:
    """Let a pass over windows take one of them: the whole block."""
    return lambda values: function(how, whole(values), *rest)


def whole(values: Any) -> Any:
    """Return a block as a pass reads it."""
    return [(tuple(slice(0, n) for n in values.shape), values)]


def cases() -> list[Case]:
    """Return all that operations compute where a block lies."""
    byte, short, single = (phases(dtype) for dtype in ("uint8", "uint16", "float32"))
    ends = np.array([single.min(), single.max()], np.float64)
    edges = histogram.bins_between(ends[0], ends[1], 256, single.dtype)
    tops = histogram.count_tops(WHO, whole(single))
    chosen = np.array([[int(tops.argmax()), 0]])
    found = [
        Case("extremes, float32", single, passed(histogram.find_extremes, WHO)),
        Case("NaN refused, float32", single, is_nan_refused),
        Case("histogram, uint8", byte, counted(kernels.value_counts, size=256)),
        Case("histogram, uint16", short, counted(kernels.value_counts, size=65536)),
        Case("histogram, float32", single, counted(kernels.bin_counts, edges, size=256)),
        Case("percentile, first pass", single, passed(histogram.count_tops, WHO)),
        Case("percentile, second pass", single, lambda v: histogram.count_lows(whole(v), chosen)),
        Case("four classes, uint16", short, lambda v: thresholds.classify(v, np.array([9e3, 3e4, 5e4]))),
        Case("scaled, uint16", short, lambda v: thresholds.scaled(v, np.array([9e3, 5e4]))),
        Case("pairs of classes, uint8", byte // 64, pairs),
        Case("gradients, summed", short, gradients),
        Case("gradients, running sum", short, kernels.running_gradients),
        Case("Gaussian, sigma 1", single, gaussian, ROUNDING),
    ]
    for name, values in (("uint16", short), ("float32", single)):
        found += contrast(name, values) + clustered(name, values)
    return found


def is_nan_refused(values: Any) -> np.ndarray:
    """Tell whether one NaN in a block is seen."""
    values = values.copy()
    values[-1, -1, -1] = np.nan
    try:
        histogram.find_extremes(WHO, whole(values))
    except TomoscaleError:
        return np.array([True])
    return np.array([False])


def pairs(values: Any) -> np.ndarray:
    """Return how often each class of a block lies where each class of it turned round does."""
    counts = np.zeros((len(values), 4, 4), np.int64)
    kernels.confusion(values, values[:, ::-1].copy(), values[:1, :1, :1] | 1, counts)
    return counts


def gradients(values: Any) -> np.ndarray:
    """Return the depth map of a block."""
    total = np.zeros(values.shape[1:])
    kernels.add_gradients(values, 0, (0, len(values)), len(values), total)
    return total


def gaussian(values: Any) -> Any:
    """Return a block smoothed."""
    return kernels.ndimage(values).gaussian_filter(values, (1.0, 1.0, 1.0), mode="reflect", truncate=4.0)


def contrast(name: str, values: np.ndarray) -> list[Case]:
    """Return the passes of CLAHE, of slices and of a volume."""
    slab = slice(0, SHAPE[0])
    dtype = np.dtype("f8" if values.dtype.kind in "iu" else "f4")
    flat = tiles.Tiles(WHO, SHAPE, (1, 64, 64), True, 0.01, 256, dtype)
    ends = tiles.slice_ends(flat, whole(values), slab)
    tables = tiles.slice_tables(flat, whole(values), slab, ends)
    reach = tiles.slice_levels(flat, whole(values), slab, ends, tables)
    deep = tiles.Tiles(WHO, SHAPE, (16, 64, 64), False, 0.01, 256, dtype)
    both = histogram.find_extremes(WHO, whole(values))
    cubes = tiles.tables_of(deep, tiles.volume_counts(deep, whole(values), both))
    range_of_all = tiles.summary(deep, tiles.volume_levels(deep, whole(values), both, cubes))
    return [
        Case(f"CLAHE 2D, {name}, extremes", values, passed(tiles.slice_ends, flat, slab)),
        Case(f"CLAHE 2D, {name}, tables", values, passed(tiles.slice_tables, flat, slab, ends)),
        Case(f"CLAHE 2D, {name}, levels", values, passed(tiles.slice_levels, flat, slab, ends, tables)),
        Case(f"CLAHE 2D, {name}, result", values, equalised(flat, ends, tables, reach)),
        Case(f"CLAHE 3D, {name}, tables", values, passed(tiles.volume_counts, deep, both)),
        Case(f"CLAHE 3D, {name}, levels", values, passed(tiles.volume_levels, deep, both, cubes)),
        Case(f"CLAHE 3D, {name}, result", values, equalised(deep, both, cubes, range_of_all)),
    ]


def equalised(how: tiles.Tiles, *small: np.ndarray) -> Callable[[Any], Any]:
    """Return the last pass of CLAHE."""
    window = tuple(slice(0, n) for n in SHAPE)
    dtype = np.dtype("f4")
    return lambda values: tiles.equalise_block(how, lambda v, z: v, dtype, window, values, *small)


def clustered(name: str, values: np.ndarray) -> list[Case]:
    """Return the passes of k-means."""
    how = clusters.Features(WHO, SHAPE, 3, 0, 4, -np.inf, False, 1e-4, values.dtype.kind in "iu")
    ends = histogram.find_extremes(WHO, whole(values))
    surveyed = clusters.survey(how, whole(values), ends)
    scale = clusters.scaling(how, ends, surveyed)
    state = clusters.seeded(how, surveyed, scale)
    weights = clusters.weights_of(state, scale)
    return [
        Case(f"k-means, {name}, survey", values, passed(clusters.survey, how, ends)),
        Case(f"k-means, {name}, sums", values, passed(clusters.assigned, how, ends, scale, state)),
        Case(f"k-means, {name}, labels", values, partial(labels, weights)),
    ]


def labels(weights: np.ndarray, values: Any) -> Any:
    """Return the clusters of a block."""
    return kernels.cluster_labels(values, (0, 0, 0), weights, -np.inf, False)


# ---------------------------------------------------------------- held against the CPU, then measured


def seconds(function: Callable[[], Any], finished: Callable[[], Any] = lambda: None, times: int = 3) -> float:
    """Return the shortest time of some calls, after one that is not counted."""
    function()
    taken = []
    for _ in range(times):
        finished()
        begin = time.perf_counter()
        function()
        finished()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def difference(found: np.ndarray, expected: np.ndarray, most: float) -> str | None:
    """Say how a result differs from the CPU's by more than it may, None if it does not."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"{found.dtype} {found.shape}, expected {expected.dtype} {expected.shape}"
    if not most:
        wrong = np.count_nonzero(found != expected)
        return f"{wrong} of {found.size} values differ" if wrong else None
    apart = float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())
    return f"off by {apart:.3g} of the largest value, may be {most:.3g}" if apart > most else None


def copies(cupy: Any, finished: Callable[[], Any]) -> list[str]:
    """Measure the way to the GPU and back."""
    values = phases("uint16")
    there = cupy.asarray(values)
    to = seconds(lambda: cupy.asarray(values), finished)
    back = seconds(there.get, finished)
    return [
        f"{word}: {values.nbytes / taken / 1e9:.1f} GB/s"
        for word, taken in (("copy there", to), ("back", back))
    ]


def main() -> int:
    """Check, measure, and print the table."""
    try:
        import cupy

        if not cupy.cuda.runtime.getDeviceCount():
            raise RuntimeError("CuPy finds no GPU")
        int(cupy.arange(2).sum())
    except Exception as error:
        print(f"{WHO}: no GPU to measure: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finished = cupy.cuda.Device().synchronize
    wrong, rows = [], []
    for case in cases():
        expected = case.function(case.values)
        there = cupy.asarray(case.values)
        differs = difference(kernels.host(case.function(there)), expected, case.most)
        if differs:
            wrong.append(f"{case.name}: {differs}")
            continue
        cpu = seconds(lambda c=case: c.function(c.values))
        gpu = seconds(lambda c=case, t=there: c.function(t), finished)
        run = seconds(lambda c=case: kernels.host(c.function(cupy.asarray(c.values))), finished)
        rates = " | ".join(f"{case.values.size / taken / 1e6:,.0f}" for taken in (cpu, gpu, run))
        rows.append(f"| {case.name} | {rates} | {cpu / run:.1f} |")
    gpu_name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    versions = f"NumPy {np.__version__}, CuPy {cupy.__version__}"
    shape = " x ".join(map(str, SHAPE))
    print(f"{gpu_name}; {platform.processor() or platform.machine()}; {versions}; blocks of {shape}")
    print(f"{', '.join(copies(cupy, finished))}\n")
    print("| Mvoxel/s | CPU, one core | GPU | GPU with copies | times the CPU |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(rows))
    for line in wrong:
        print(f"{WHO}: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
