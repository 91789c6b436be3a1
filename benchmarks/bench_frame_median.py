"""
Medians of 3 x 3 and 5 x 5 neighbours per frame, and the fused cleaning of a block.

`python benchmarks/bench_frame_median.py` prints the table in megapixels per second, all measured in one run on
one core; `asv run --bench FrameMedian` follows ours and the reference over the commits.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable

import llvmlite.binding
import numba
import numpy as np
import scipy
import skimage
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import rank

from tomoscale import kernels
from tomoscale.kernels import reference


def noise(dtype: str, shape: tuple[int, ...]) -> NDArray:
    return np.random.default_rng(0).normal(300, 30, shape).astype(dtype)


def ours(frames: NDArray, size: int) -> NDArray:
    return kernels.frame_median(frames, size)


def ours_in_place(frames: NDArray, size: int) -> NDArray:
    """Into memory that is there: asking the system for more takes as long as the medians."""
    return kernels.frame_median(frames, size, _kept(frames.shape, frames.dtype.name))


@functools.lru_cache(maxsize=1)
def _kept(shape: tuple[int, ...], dtype: str) -> NDArray:
    return np.zeros(shape, dtype)


def skimage_rank(frames: NDArray, size: int) -> NDArray:
    """Integers only; on one frame."""
    return rank.median(frames[0].astype(np.uint16), np.ones((size, size)))


def numpy_median(frames: NDArray, size: int) -> NDArray:
    """Medians of a sliding window view of one frame, without its border."""
    return np.median(np.lib.stride_tricks.sliding_window_view(frames[0], (size, size)), axis=(2, 3))


def scipy_filter(frames: NDArray, size: int) -> NDArray:
    """The reference, on one frame."""
    return ndimage.median_filter(frames[0], size, mode="nearest")


METHODS: dict[str, Callable[[NDArray, int], NDArray]] = {
    "scipy.ndimage": scipy_filter,
    "numpy.median": numpy_median,
    "skimage.filters.rank": skimage_rank,
    "tomoscale": ours,
    "tomoscale, out=": ours_in_place,
}


def clean(frames: NDArray, size: int, dtype: str = "float32") -> NDArray:
    """Clean a block that has a halo of one pixel, with dark image and level, into memory that is there."""
    n_frames, rows, columns = frames.shape
    dark, scale = np.full((rows, columns), 100.5), np.linspace(0.9, 1.1, n_frames, dtype=np.float32)
    background = np.full((-(-n_frames // 50), rows, columns), 200, np.float32)
    out = _kept((n_frames, rows - 2, columns - 2), dtype)
    return kernels.clean_frames(
        frames, dark, scale, background, np.arange(n_frames) // 50, size, out, crop=(1, 1)
    )


def clean_by_parts(frames: NDArray, size: int, dtype: str = "float32") -> NDArray:
    """The same as NumPy and SciPy would, on four frames."""
    n_frames, rows, columns = frames[:4].shape
    dark, scale = np.full((rows, columns), 100.5), np.linspace(0.9, 1.1, n_frames, dtype=np.float32)
    background = np.full((1, rows, columns), 200, np.float32)
    return reference.clean_frames(frames[:4], dark, scale, background, np.zeros(n_frames, int), size)


class FrameMedian:
    params = (list(METHODS), ["uint16", "float32"], [3, 5])
    param_names = ("method", "dtype", "size")
    number, repeat, warmup_time = 1, 3, 0.0

    def setup(self, method: str, dtype: str, size: int) -> None:
        self.frames = noise(dtype, (8, 128, 128))
        ours(self.frames[:1], size)  # compile

    def time_frames(self, method: str, dtype: str, size: int) -> None:
        METHODS[method](self.frames, size)


class CleanFrames:
    params = (["reference", "tomoscale"], [1, 3])
    param_names = ("method", "size")
    number, repeat, warmup_time = 1, 3, 0.0

    def setup(self, method: str, size: int) -> None:
        self.frames = noise("uint16", (100, 130, 130))
        self.clean = clean if method == "tomoscale" else clean_by_parts
        clean(self.frames[:1], size)

    def time_block(self, method: str, size: int) -> None:
        self.clean(self.frames, size)


def mpixel_per_s(method: Callable[[NDArray, int], NDArray], frames: NDArray, size: int) -> float:
    """Return the best of three calls, of a fast method of as many as take 0.3 s."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < 0.3:
        start = time.perf_counter()
        result = method(frames, size)
        taken.append(time.perf_counter() - start)
    return result.size / min(taken) / 1e6


def main() -> None:
    print(f"{llvmlite.binding.get_host_cpu_name()}, Python {platform.python_version()}, one core")
    print(f"numpy {np.__version__}, numba {numba.__version__}, scipy {scipy.__version__}, ", end="")
    print(f"scikit-image {skimage.__version__}")
    print(f"\n{'Mpixel/s':32}" + "".join(f"{m:>22}" for m in METHODS) + f"{'the last / scipy':>20}")
    for shape in ((200, 128, 128), (4, 512, 512)):
        for dtype in ("uint16", "float32"):
            for size in (3, 5):
                frames = noise(dtype, shape)
                speed = {name: mpixel_per_s(method, frames, size) for name, method in METHODS.items()}
                print(f"{f'{shape}, {dtype}, {size} x {size}':32}", end="")
                print("".join(f"{v:22,.1f}" for v in speed.values()), end="")
                print(f"{speed['tomoscale, out='] / speed['scipy.ndimage']:19,.0f}x", flush=True)
    print(f"\n{'cleaning, Mpixel/s':32}{'reference':>22}{'tomoscale':>22}")
    for shape in ((500, 130, 130), (20, 514, 514), (400, 34, 2050)):
        for size in (1, 3, 5):
            frames = noise("uint16", shape)
            clean(frames[:1], size)
            slow, fast = mpixel_per_s(clean_by_parts, frames, size), mpixel_per_s(clean, frames, size)
            print(f"{f'{shape}, uint16, {size} x {size}':32}{slow:22,.1f}{fast:22,.1f}")


if __name__ == "__main__":
    main()
