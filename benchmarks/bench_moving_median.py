"""
Moving medians: one window of 501 frames every 50 frames, and at every frame.

`python benchmarks/bench_moving_median.py` prints the table in nanoseconds per median, all of it measured in
one run on one core; `asv run --bench moving_median` follows ours and the reference over the commits.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import bottleneck
import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoscale import kernels

HALF_WINDOW = 250
KINDS = (
    "realistic uint16",
    "full-range uint16",
    "realistic int16",
    "realistic int32",
    "realistic float32",
    "full-range uint8",
)


def scan(kind: str, n_frames: int, n_pixels: int = 2048) -> NDArray:
    """Return frames: noise on a glow that drifts by 5 %, with short bright blobs; or any numbers."""
    rng = np.random.default_rng(0)
    like, _, dtype = kind.rpartition(" ")
    if like == "full-range":
        return rng.integers(0, np.iinfo(dtype).max, (n_frames, 16, n_pixels // 16), dtype, endpoint=True)
    glow = rng.uniform(100, 600, n_pixels) * (1 + 0.05 * np.sin(3 * np.arange(n_frames) / n_frames))[:, None]
    frames = rng.normal(glow, rng.uniform(10, 40, n_pixels))
    for _ in range(frames.size // 20_000):
        k, p = rng.integers(n_frames), rng.integers(n_pixels)
        frames[k : k + 5, p : p + 8] += rng.uniform(200, 3000)
    if dtype != "float32":
        frames = np.rint(frames.clip(0, 65_535 if dtype == "uint16" else 32_767))
    return frames.astype(dtype).reshape(n_frames, 16, -1)


def ours(frames: NDArray, step: int) -> NDArray:
    return kernels.moving_median(frames, HALF_WINDOW, step)


def numpy_median(frames: NDArray, step: int) -> NDArray:
    """The reference, on one window in the middle of the scan: its cost does not depend on which."""
    return np.median(frames[100 : 101 + 2 * HALF_WINDOW], axis=0)


def sort_transposed(frames: NDArray, step: int) -> NDArray:
    """
    The honest baseline: NumPy's vector code sorts ten windows of transposed columns.

    A scan is transposed once for all windows and ten times faster by tiles than by NumPy, so that is left out.
    """
    columns = frames[100 : 101 + 2 * HALF_WINDOW].reshape(
        -1, 2 * HALF_WINDOW + 1
    )  # the same samples, other pixels
    room, medians = np.empty_like(columns), []
    for _ in range(10):
        room[:] = columns  # np.sort would ask the system for this memory each time: up to three times as slow
        room.sort(axis=1)
        medians.append(room[:, HALF_WINDOW].copy())
    return np.concatenate(medians)


def transpose_and_sort(frames: NDArray, step: int) -> NDArray:
    """The same with the transposition by NumPy, as one would write it: one window of every pixel."""
    window = frames[100 : 101 + 2 * HALF_WINDOW].reshape(2 * HALF_WINDOW + 1, -1)
    return np.sort(np.ascontiguousarray(window.T), axis=1)[:, HALF_WINDOW]


def bottleneck_dense(frames: NDArray, step: int) -> NDArray:
    columns = np.ascontiguousarray(frames.reshape(len(frames), -1).T.astype(np.float32))
    return bottleneck.move_median(columns, 2 * HALF_WINDOW + 1, min_count=1, axis=1)


def scipy_dense(frames: NDArray, step: int) -> NDArray:
    """SciPy's fast path for one dimension, pixel by pixel, on a few of them."""
    columns = np.ascontiguousarray(frames[:, 0, :16].T.astype(np.float32))
    return np.stack(
        [ndimage.median_filter(column, 2 * HALF_WINDOW + 1, mode="nearest") for column in columns]
    )


METHODS: dict[str, Callable[[NDArray, int], NDArray]] = {
    "numpy.median": numpy_median,
    "numpy.sort, transposed": sort_transposed,
    "transpose, numpy.sort": transpose_and_sort,
    "bottleneck.move_median": bottleneck_dense,
    "scipy.ndimage, 1D": scipy_dense,
    "tomoscale": ours,
}


class MovingMedian:
    params = (list(METHODS), list(KINDS), [50, 1])
    param_names = ("method", "frames", "step")
    number, repeat, warmup_time = 1, 3, 0.0

    def setup(self, method: str, kind: str, step: int) -> None:
        if method in ("bottleneck.move_median", "scipy.ndimage, 1D") and step > 1:
            raise NotImplementedError("dense only")
        self.frames = scan(kind, 2000 if step > 1 else 700, 512)
        ours(self.frames[:20], step)  # compile

    def time_block(self, method: str, kind: str, step: int) -> None:
        METHODS[method](self.frames, step)


def ns_per_median(
    method: Callable[[NDArray, int], NDArray], frames: NDArray, step: int, repeat: int = 3
) -> float:
    best = np.inf
    for _ in range(repeat):
        start = time.perf_counter()
        result = method(frames, step)
        best = min(best, time.perf_counter() - start)
    return 1e9 * best / result.size


def main() -> None:
    print(
        f"{platform.processor() or platform.machine()}, {_cpu()}, Python {platform.python_version()}, one core"
    )
    print(f"numpy {np.__version__}, numba {numba.__version__}, bottleneck {bottleneck.__version__}")
    print(
        f"\n{'ns per median, window 501':44}"
        + "".join(f"{m:>24}" for m in METHODS)
        + f"{'numpy / tomoscale':>20}"
    )
    for step in (50, 1):
        for kind in KINDS:
            frames = scan(kind, 7200 if step > 1 else 1500)
            ours(frames[:20], step)
            row = {}
            for name, method in METHODS.items():
                slow = name == "numpy.median"
                dense = name in ("bottleneck.move_median", "scipy.ndimage, 1D")
                row[name] = (
                    np.nan if dense and step > 1 else ns_per_median(method, frames, step, 1 if slow else 3)
                )
            print(f"{f'{kind}, step {step}':44}" + "".join(f"{t:24,.1f}" for t in row.values()), end="")
            print(f"{row['numpy.median'] / row['tomoscale']:19,.0f}x", flush=True)


def _cpu() -> str:
    import llvmlite.binding

    return str(llvmlite.binding.get_host_cpu_name())


if __name__ == "__main__":
    main()
