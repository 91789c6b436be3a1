"""What every kernel means, in a few lines of NumPy: the oracle of the tests, the first row of the benchmarks."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage


def moving_median(frames: NDArray, half_window: int, step: int) -> NDArray[np.float32]:
    """Median of the frames within `half_window` of every `step`-th frame, cut to the scan."""
    n_frames = len(frames)
    centre = np.minimum(np.arange(0, n_frames, step) + step // 2, n_frames - 1)
    return moving_median_windows(frames, np.maximum(centre - half_window, 0), centre + half_window + 1)


def moving_median_windows(frames: NDArray, starts: ArrayLike, stops: ArrayLike) -> NDArray[np.float32]:
    """Median of frames[start:stop]; NaN where a sample is NaN."""
    windows = zip(np.asarray(starts), np.asarray(stops), strict=True)
    return np.stack([np.median(frames[a:b], axis=0).astype(np.float32) for a, b in windows])


def normalise(frames: NDArray, dark: NDArray | None, scale: ArrayLike | None) -> NDArray[np.float32]:
    """Frames without offset, at one level: the difference and the product are each rounded to float32."""
    offset = 0 if dark is None else dark
    factor = np.float32(1) if scale is None else np.asarray(scale, np.float32)[:, None, None]
    return (frames - offset).astype(np.float32) * factor


def normalise_rint(frames: NDArray, dark: NDArray | None, scale: ArrayLike | None) -> NDArray[np.int32]:
    """Normalised frames, rounded to whole counts."""
    return np.rint(normalise(frames, dark, scale)).astype(np.int32)


def frame_median(frames: NDArray, size: int) -> NDArray:
    """Median of `size` x `size` neighbours, the nearest pixel beyond the edge; NaN where one of them is NaN."""
    smooth = np.stack([ndimage.median_filter(frame, size, mode="nearest") for frame in frames])
    if frames.dtype.kind == "f":
        near_nan = [ndimage.maximum_filter(np.isnan(frame), size, mode="nearest") for frame in frames]
        smooth[np.stack(near_nan)] = np.nan
    return smooth


def clean_frames(
    frames: NDArray,
    dark: NDArray | None,
    scale: ArrayLike | None,
    background: NDArray[np.float32],
    window_of_frame: ArrayLike,
    size: int,
) -> NDArray[np.float32]:
    """Normalised frames minus their background, then the median of neighbours."""
    return frame_median(normalise(frames, dark, scale) - background[np.asarray(window_of_frame)], size)


def from_bit_planes(planes: NDArray[np.uint8], shape: tuple[int, ...], per_block: int, dtype: str) -> NDArray:
    """Samples of which block after block all lowest bits come first, then the next ones, eight in a byte."""
    itemsize = np.dtype(dtype).itemsize
    blocks = np.split(planes, range(per_block * itemsize, len(planes), per_block * itemsize))
    bits = [np.unpackbits(b.reshape(8 * itemsize, -1), axis=1, bitorder="little") for b in blocks]
    samples = [np.packbits(b, axis=0, bitorder="little").T.ravel() for b in bits]
    return np.concatenate(samples).view(dtype).reshape(shape)


def value_counts(values: NDArray) -> NDArray[np.int64]:
    """Number of voxels of every value of an integer type, from its lowest on."""
    info = np.iinfo(values.dtype)
    return np.bincount(values.ravel().astype(np.int64) - info.min, minlength=2**info.bits)


def bin_counts(values: NDArray, edges: NDArray) -> NDArray[np.int64]:
    """Number of values from each edge up to the next, the last one included in the last bin."""
    return np.histogram(values, edges)[0]


def class_counts(values: NDArray, classes: NDArray, n_classes: int, edges: NDArray) -> NDArray[np.int64]:
    """Histogram of the values of every class."""
    return np.stack([np.histogram(values[classes == c], edges)[0] for c in range(n_classes)])


def classes_of(values: NDArray, thresholds: NDArray) -> NDArray[np.uint8]:
    """How many thresholds lie below a value."""
    return np.digitize(values, thresholds, right=True).astype(np.uint8)


def cluster_sums(values: NDArray, origin: ArrayLike, weights: NDArray) -> NDArray[np.int64]:
    """Voxels, and sums of intensity, z, y and x, of those for which a centre's weighted sum is the smallest."""
    places = np.indices(values.shape).reshape(3, -1) + np.reshape(origin, (3, 1))
    features = np.stack([np.ones(values.size), values.ravel(), *places])
    own = (weights @ features).argmin(axis=0)
    return np.stack([features[:, own == k].sum(axis=1) for k in range(len(weights))]).astype(np.int64)


def add_gradients(slices: NDArray) -> NDArray[np.float64]:
    """Sum of the absolute gradients along z."""
    return np.abs(np.gradient(slices.astype(np.float64), axis=0)).sum(axis=0)


def find_components(
    frames: NDArray, threshold: float, seed: float, open_faces: NDArray[np.bool_], connectivity: int
) -> NDArray:
    """Labels 1, 2, ... of the components above a threshold that hold a seed voxel or touch an open face; else 0."""
    labels, _ = ndimage.label(
        frames >= threshold, ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)
    )
    kept = {*np.unique(labels[frames >= seed])}
    for axis, (first, last) in enumerate(open_faces):
        kept |= {*np.unique(labels.take(0, axis))} if first else set()
        kept |= {*np.unique(labels.take(-1, axis))} if last else set()
    return np.searchsorted(sorted(kept | {0}), labels) * np.isin(labels, [*kept])


def grow(
    frames: NDArray, low: float, high: float, place: tuple[int, int, int], connectivity: int
) -> NDArray[np.bool_]:
    """The connected component of {low <= I <= high} around a voxel."""
    structure = ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)
    labels, _ = ndimage.label((frames >= low) & (frames <= high), structure)
    return (labels == labels[place]) & (labels > 0)


def coarse_means(values: NDArray, factors: tuple[int, int, int]) -> NDArray:
    """Mean of the voxels that lie in each coarse one and are not NaN; integers are rounded, to even where in doubt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that of nothing, which stays NaN
        means = np.nanmean(_cells(values.astype(np.float64), factors), axis=-1)
    return (np.rint(means) if values.dtype.kind in "iu" else means).astype(values.dtype)


def coarse_labels(labels: NDArray, factors: tuple[int, int, int]) -> NDArray:
    """The most frequent label in each coarse voxel; of several 0 last, else the smallest first."""

    def most_frequent(cell: NDArray) -> float:
        found, counts = np.unique(cell[~np.isnan(cell)], return_counts=True)
        return min(zip(-counts, found == 0, found, strict=True))[2]

    cells = _cells(labels.astype(np.float64), factors)
    return np.apply_along_axis(most_frequent, -1, cells).astype(labels.dtype)


def _cells(values: NDArray, factors: tuple[int, int, int]) -> NDArray:
    """Voxels of every coarse voxel along the last axis, NaN beyond the end."""
    beside = [(0, -n % f) for n, f in zip(values.shape, factors, strict=True)]
    padded = np.pad(values, beside, constant_values=np.nan)
    split = [n for length, f in zip(padded.shape, factors, strict=True) for n in (length // f, f)]
    cells = padded.reshape(split).transpose(0, 2, 4, 1, 3, 5)
    return cells.reshape(*cells.shape[:3], -1)
