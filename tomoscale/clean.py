"""One block of a scan: normalised, ranked, its background subtracted, its frames smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tomoscale import buffers, kernels, stream
from tomoscale.call import Part, Piece
from tomoscale.errors import TomoscaleError
from tomoscale.grid import Window, grow, shape_of, spans
from tomoscale.stream import Stream

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

    @property
    def reach(self) -> int:
        """Pixels around a block that its result depends on."""
        return self.smoothing // 2 + (HOT_REACH if self.hot_pixels else 0)


def clean_columns(
    raw: np.ndarray,
    dark: np.ndarray | None,
    where: Windows,
    options: Options,
    level: np.ndarray | None = None,
) -> tuple[np.ndarray | Stream, ...]:
    """Return the cleaned frames of a block, its backgrounds and, on request, its hot pixels."""
    raw, offset = _ranked(raw, None if dark is None else median_image(dark))
    scale = None
    if level is not None:
        scale = (level.mean() / level).astype(np.float32)[where.first : where.first + len(raw)]
    background = _backgrounds(raw, offset, scale, where, options.ranking)

    hot = _hot_pixels(background) if options.hot_pixels else None
    clean = _Cleaning(raw, offset, scale, background, hot, where, options)
    n_frames = where.frames.stop - where.frames.start
    frames = stream.array((n_frames, *where.shape), options.dtype, clean)
    own = tuple(slice(c, c + n) for c, n in zip(where.crop, where.shape, strict=True))
    found = background[:, *own].copy()
    return (frames, found) if hot is None else (frames, found, hot[:, *own].astype(np.uint8))


@dataclass(frozen=True)
class _Cleaning:
    """A block whose backgrounds are known, so that any part of it can be cleaned."""

    raw: np.ndarray
    dark: np.ndarray | None
    scale: np.ndarray | None
    background: np.ndarray
    hot: np.ndarray | None
    where: Windows
    options: Options

    def __call__(self, window: Window, out: np.ndarray) -> None:
        """Write the cleaned values of a window of the block."""
        try:
            self._write(window, out)
        except kernels.NanError as error:
            found = str(error).removeprefix("clean_frames: ")
            raise TomoscaleError(f"background.remove: {found}") from None

    def _write(self, window: Window, out: np.ndarray) -> None:
        frames, corner = window[0], [c + w.start for c, w in zip(self.where.crop, window[1:], strict=True)]
        size = max(1, self.options.smoothing)
        if self.hot is None:
            self._subtract(frames, corner, size, out)
            return
        # The neighbours that a pixel is smoothed with are repaired too, by neighbours of theirs.
        around = tuple(
            grow(slice(c, c + n), size // 2 + 1, whole)
            for c, n, whole in zip(corner, out.shape[1:], self.raw.shape[1:], strict=True)
        )
        cleaned = np.empty((len(out), *shape_of(around)), np.float32)
        self._subtract(frames, [w.start for w in around], 1, cleaned)
        hot = np.ascontiguousarray(self.hot[:, *around])
        kernels.replace_pixels(cleaned, hot, self._groups(frames))
        crop = tuple(c - w.start for c, w in zip(corner, around, strict=True))
        nothing = np.zeros((1, *cleaned.shape[1:]), np.float32)
        which = np.zeros(len(out), np.int64)
        first = self.where.frames.start + frames.start
        kernels.clean_frames(cleaned, None, None, nothing, which, size, out, crop=crop, first=first)

    def _subtract(self, frames: slice, corner: Sequence[int], size: int, out: np.ndarray) -> None:
        """Write normalised frames without their backgrounds, medians of so many pixels, from a corner on."""
        first = self.where.frames.start + frames.start
        read = slice(first - self.where.first, first - self.where.first + len(out))
        kernels.clean_frames(
            self.raw[read],
            self.dark,
            None if self.scale is None else self.scale[read],
            self.background,
            self._groups(frames),
            size,
            out,
            crop=(corner[0], corner[1]),
            first=first,
        )

    def _groups(self, frames: slice) -> np.ndarray:
        return np.arange(frames.start, frames.stop) // self.where.step


def in_bands(n: int, frames: Piece, dark: Piece | None, where: Windows, options: Options) -> list[Part]:
    """Cut the arguments of a block into bands of its rows, each with its halo."""
    rows, around = where.shape[0], frames.window[1]
    first = around.start + where.crop[0]
    parts: list[Part] = []
    for band in (slice(rows * i // n, rows * (i + 1) // n) for i in range(n if n <= rows else 0)):
        grown = slice(
            max(around.start, first + band.start - options.reach),
            min(around.stop, first + band.stop + options.reach),
        )
        inside = where._replace(
            crop=(first + band.start - grown.start, where.crop[1]),
            shape=(band.stop - band.start, where.shape[1]),
        )
        pieces = [
            None if p is None else replace(p, window=(*p.window[:-2], grown, p.window[-1]))
            for p in (frames, dark)
        ]
        parts.append(((*pieces, inside, options), (slice(None), band)))
    return parts


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
    where = Windows(0, slice(0, 4), np.array([0]), np.array([4]), 4, (0, 0), (5, 6))
    image = None if dark is None else median_image(np.zeros((5, 6), dark))
    frames, offset = _ranked(np.zeros((4, 5, 6), raw), image)
    scale = np.ones(4, np.float32) if normalised else None

    def clean() -> None:
        background = np.zeros((1, 5, 6), np.float32)
        hot = _hot_pixels(background) if options.hot_pixels else None
        cleaning = _Cleaning(frames, offset, scale, background, hot, where, options)
        cleaning((slice(0, 4), slice(0, 5), slice(0, 6)), np.empty((4, 5, 6), options.dtype))

    kernels.together(lambda: _backgrounds(frames, offset, scale, where, options.ranking), clean)


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
