"""One block of a scan: normalised, ranked, its background subtracted, its frames smoothed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tomoscale import buffers, kernels
from tomoscale.grid import spans

STRIP = 512
"""Pixels normalised at a time before they are ranked: their column of frames stays in the L3 cache."""
FRAME_SCRATCH = STRIP * (4 + 4) + 256 * 4 * 3
"""Bytes for each frame of a block: a strip as float32 and as integers, and the tiles of the ranking."""
SCRATCH = 16_000_000
HOT_SIGMAS = 8.0
HOT_REACH = 5
"""Pixels around one that its repair looks at: two medians of 5 x 5 for the decision on a neighbour."""


class Windows(NamedTuple):
    """Where a block lies: its frames in the scan, windows in the frames read, pixels without the halo."""

    first: int
    frames: slice
    starts: np.ndarray
    stops: np.ndarray
    step: int
    crop: tuple[int, ...]
    shape: tuple[int, ...]


class Options(NamedTuple):
    """What is to be done to a block."""

    ranking: str
    smoothing: int
    hot_pixels: bool
    dtype: np.dtype


def clean_columns(
    raw: np.ndarray,
    dark: np.ndarray | None,
    where: Windows,
    options: Options,
    level: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Return the cleaned frames of a block, its backgrounds and, on request, its hot pixels."""
    raw, offset = _ranked(raw, None if dark is None else median_image(dark))
    scale = None
    if level is not None:
        scale = (level.mean() / level).astype(np.float32)[where.first : where.first + len(raw)]
    background = _backgrounds(raw, offset, scale, where, options.ranking)

    frames = slice(where.frames.start - where.first, where.frames.stop - where.first)
    group = np.arange(where.frames.stop - where.frames.start) // where.step
    out = buffers.empty((len(group), *where.shape), options.dtype)
    own = (
        slice(where.crop[0], where.crop[0] + where.shape[0]),
        slice(where.crop[1], where.crop[1] + where.shape[1]),
    )
    scale = None if scale is None else scale[frames]
    if not options.hot_pixels:
        kernels.clean_frames(
            raw[frames], offset, scale, background, group, max(1, options.smoothing), out, crop=where.crop
        )
        return out, background[:, *own].copy()
    hot = _hot_pixels(background)
    cleaned = buffers.empty((len(group), *raw.shape[1:]), np.float32)
    kernels.clean_frames(raw[frames], offset, scale, background, group, 1, cleaned)
    kernels.replace_pixels(cleaned, hot, group)
    zero = np.zeros((1, *raw.shape[1:]), np.float32)
    kernels.clean_frames(
        cleaned, None, None, zero, np.zeros_like(group), max(1, options.smoothing), out, crop=where.crop
    )
    return out, background[:, *own].copy(), hot[:, *own].astype(np.uint8)


def is_ranked(dtype: np.dtype) -> bool:
    """Tell whether kernels rank this type as it is; others become float32 first, in a copy of the block."""
    return dtype.newbyteorder("=").name in ("uint8", "uint16", "int16", "int32", "float32")


def _ranked(raw: np.ndarray, dark: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return frames of a type that kernels rank, and the dark that is still to be subtracted."""
    if is_ranked(raw.dtype):
        return raw, dark
    single = buffers.empty(raw.shape, np.float32)
    for few in spans(len(raw), 16):  # a whole block in float64 would not be within the plan
        single[few] = raw[few] if dark is None else raw[few].astype(np.float64) - dark
    return single, None


def prepare(raw: np.dtype, dark: np.dtype | None, normalised: bool, options: Options) -> None:
    """Clean a few pixels of the same types, so that the kernels are compiled and kept for the workers."""
    frames = np.zeros((4, 5, 6), raw)
    where = Windows(0, slice(0, 4), np.array([0]), np.array([4]), 4, (0, 0), (5, 6))
    image = None if dark is None else np.zeros((5, 6), dark)
    clean_columns(frames, image, where, options, *([np.ones(4)] if normalised else []))


def median_image(dark: np.ndarray) -> np.ndarray:
    """Return the dark image of a stack; float32 where that holds every value exactly."""
    image = np.median(dark, axis=0) if dark.ndim == 3 else dark
    single = image.astype(np.float32)
    return single if np.array_equal(single, image, equal_nan=True) else image.astype(np.float64)


def _backgrounds(
    raw: np.ndarray, dark: np.ndarray | None, scale: np.ndarray | None, where: Windows, ranking: str
) -> np.ndarray:
    """Return the median of every window, strip by strip where frames must be normalised first."""
    if dark is None and scale is None and (ranking == "exact" or raw.dtype.kind != "f"):
        return kernels.moving_median_windows(raw, where.starts, where.stops)
    rows, width = raw.shape[1:]
    out = np.empty((len(where.starts), rows, width), np.float32)
    tall = max(1, STRIP // width)
    for top in range(0, rows, tall):
        for left in range(0, width, STRIP):
            part = np.s_[top : top + tall, left : left + STRIP]
            values = _normalised(raw[:, *part], None if dark is None else dark[part], scale, ranking)
            out[:, *part] = kernels.moving_median_windows(values, where.starts, where.stops)
    return out


def _normalised(
    raw: np.ndarray, dark: np.ndarray | None, scale: np.ndarray | None, ranking: str
) -> np.ndarray:
    """Return what is ranked: whole counts as integers where they fit, else float32."""
    if ranking == "fixed":
        counts, fits = kernels.normalise_rint(raw, dark, scale)
        if fits:
            return counts
    values = kernels.normalise(raw, dark, scale)
    return np.rint(values) if ranking == "fixed" else values


def _hot_pixels(background: np.ndarray) -> np.ndarray:
    """
    Tell which pixels stand out of the 5 x 5 around them in a background, hence in most of its frames.

    The measure is the median absolute deviation of that neighbourhood, at least one count.
    """
    around = kernels.frame_median(background, 5)
    apart = np.abs(background - around)
    sigma = 1.4826 * kernels.frame_median(apart, 5)
    return apart > HOT_SIGMAS * np.maximum(sigma, 1.0)
