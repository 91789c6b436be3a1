"""Parts, joins and grids of frames, which read no more than they must."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tomoscale import store
from tomoscale.blocks import Window, shape_of
from tomoscale.errors import TomoscaleError
from tomoscale.sources.frames import Frames, show


def narrow(source: store.Volume, window: Window) -> tuple[store.Volume, Window]:
    """Return a lighter source with the same pixels, where there is one."""
    return source.narrow(window) if isinstance(source, Frames) else (source, window)


def held_by(source: store.Volume) -> int:
    """Return the bytes that reading holds beyond its result."""
    return source.held if isinstance(source, Frames) else 0


def unwritten_of(source: store.Volume) -> np.ndarray:
    """Return the numbers of frames that are declared and not there."""
    return source.unwritten() if isinstance(source, Frames) else np.empty(0, np.int64)


def files_of(source: store.Volume) -> tuple[str, ...]:
    """Return the detector files that are read."""
    return source.files if isinstance(source, Frames) else ()


class View(Frames):
    """Frames seen through another source, whose type and files they share."""

    source: store.Volume

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.source.dtype

    @property
    def held(self) -> int:
        return held_by(self.source)

    @property
    def files(self) -> tuple[str, ...]:
        return self.source.files if isinstance(self.source, Frames) else ()

    def history(self) -> list[dict[str, Any]]:
        return self.source.history()


def _runs(index: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Cut an index into runs of consecutive frames: where they go, and where they come from."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    for a, b in itertools.pairwise([0, *breaks.tolist(), len(index)]):
        yield slice(a, b), slice(int(index[a]), int(index[b - 1]) + 1)


@dataclass(frozen=True, eq=False, repr=False)
class Selected(View):
    """Some of the frames of another source, by number; neighbours are read in one go."""

    source: store.Volume
    index: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.index), *self.source.shape[1:])

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.chunks

    def narrow(self, window: Window) -> tuple[store.Volume, Window]:
        index = self.index[window[0]]
        first = int(index.min())
        rows, columns = (slice(0, n) for n in self.source.shape[1:])
        source, inside = narrow(self.source, (slice(first, int(index.max()) + 1), rows, columns))
        frames = slice(0, len(index))
        return Selected(source, index - first + inside[0].start), (frames, *window[1:])

    def read(self, window: Window) -> np.ndarray:
        index = self.index[window[0]]
        runs = list(_runs(index))
        if len(runs) == 1:
            return self.source.read((runs[0][1], *window[1:]))
        out = np.empty((len(index), *shape_of(window[1:])), self.dtype)
        for to, source in runs:
            out[to] = self.source.read((source, *window[1:]))
        return out

    def unwritten(self) -> np.ndarray:
        return np.flatnonzero(np.isin(self.index, unwritten_of(self.source)))

    def identity(self) -> dict[str, Any]:
        chosen = google_crc32c.value(np.ascontiguousarray(self.index, dtype="<i8").tobytes())
        return {**self.source.identity(), "shape": list(self.shape), "selected": f"{chosen:08x}"}


@dataclass(frozen=True, eq=False, repr=False)
class Cropped(View):
    """A window of another source."""

    source: store.Volume
    window: Window

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return shape_of(self.window)

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(min(c, n) for c, n in zip(self.source.chunks, self.shape, strict=True))

    def _outer(self, window: Window) -> Window:
        pairs = zip(self.window, window, strict=True)
        return tuple(slice(o.start + w.start, o.start + w.stop) for o, w in pairs)

    def narrow(self, window: Window) -> tuple[store.Volume, Window]:
        return narrow(self.source, self._outer(window))

    def read(self, window: Window) -> np.ndarray:
        return self.source.read(self._outer(window))

    def unwritten(self) -> np.ndarray:
        lost = unwritten_of(self.source) - self.window[0].start
        return lost[(lost >= 0) & (lost < self.shape[0])]

    def identity(self) -> dict[str, Any]:
        return {**self.source.identity(), "roi": [[s.start, s.stop] for s in self.window]}


@dataclass(frozen=True, eq=False, repr=False)
class Gridded(View):
    """Images that are grids of frames: each becomes its frames, in reading order."""

    source: store.Volume
    rows: int
    columns: int

    @property
    def each(self) -> int:
        """Frames in one image."""
        return self.rows * self.columns

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        images, rows, columns = self.source.shape
        return images * self.each, rows // self.rows, columns // self.columns

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.chunks[0] * self.each, *self.shape[1:]

    @property
    def held(self) -> int:
        image = int(np.prod(self.source.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return held_by(self.source) + 2 * image

    def narrow(self, window: Window) -> tuple[store.Volume, Window]:
        frames = window[0]
        images = slice(frames.start // self.each, -(-frames.stop // self.each))
        rows, columns = (slice(0, n) for n in self.source.shape[1:])
        source, inside = narrow(self.source, (images, rows, columns))
        shift = (images.start - inside[0].start) * self.each
        frames = slice(frames.start - shift, frames.stop - shift)
        return Gridded(source, self.rows, self.columns), (frames, *window[1:])

    def read(self, window: Window) -> np.ndarray:
        frames, rows, columns = window
        first, last = frames.start // self.each, -(-frames.stop // self.each)
        height, width = self.source.shape[1:]
        images = self.source.read((slice(first, last), slice(0, height), slice(0, width)))
        _, row, column = self.shape
        parts = images.reshape(last - first, self.rows, row, self.columns, column).swapaxes(2, 3)
        inside = slice(frames.start - first * self.each, frames.stop - first * self.each)
        return parts.reshape(-1, row, column)[inside, rows, columns]

    def unwritten(self) -> np.ndarray:
        return (unwritten_of(self.source)[:, None] * self.each + np.arange(self.each)).ravel()

    def identity(self) -> dict[str, Any]:
        return {**self.source.identity(), "shape": list(self.shape), "grid": [self.rows, self.columns]}


@dataclass(frozen=True, eq=False, repr=False)
class Joined(Frames):
    """The frames of several sources, one after the other."""

    parts: tuple[store.Volume, ...]

    @property
    def starts(self) -> list[int]:
        """Number of the first frame of every part, and the number of all."""
        return [0, *itertools.accumulate(p.shape[0] for p in self.parts)]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.starts[-1], *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.parts[0].dtype

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.parts[0].chunks

    @property
    def held(self) -> int:
        return max(map(held_by, self.parts))

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f for p in self.parts if isinstance(p, Frames) for f in p.files)

    def _pieces(self, window: Window) -> Iterator[tuple[store.Volume, Window, slice]]:
        """Yield the parts that a window touches, with the window in each and its place in the result."""
        span, starts = window[0], self.starts
        for number in range(bisect.bisect_right(starts, span.start) - 1, len(self.parts)):
            a, b = max(span.start, starts[number]), min(span.stop, starts[number + 1])
            if a >= b:
                break
            inside = slice(a - starts[number], b - starts[number])
            yield self.parts[number], (inside, *window[1:]), slice(a - span.start, b - span.start)

    def narrow(self, window: Window) -> tuple[store.Volume, Window]:
        pieces = list(self._pieces(window))
        if len(pieces) == 1:
            return narrow(*pieces[0][:2])
        light = []
        for part, inside, _ in pieces:
            source, (frames, *_) = narrow(part, (inside[0], *(slice(0, n) for n in part.shape[1:])))
            light.append(Selected(source, np.arange(frames.start, frames.stop)))
        return Joined(tuple(light)), (slice(0, window[0].stop - window[0].start), *window[1:])

    def read(self, window: Window) -> np.ndarray:
        pieces = list(self._pieces(window))
        if len(pieces) == 1:
            return pieces[0][0].read(pieces[0][1])
        out = np.empty(shape_of(window), self.dtype)
        for part, inside, to in pieces:
            out[to] = part.read(inside)
        return out

    def unwritten(self) -> np.ndarray:
        return np.concatenate(
            [unwritten_of(p) + a for p, a in zip(self.parts, self.starts[:-1], strict=True)]
        )

    def identity(self) -> dict[str, Any]:
        if self.files:
            return super().identity()
        return {"shape": list(self.shape), "parts": [p.identity() for p in self.parts]}


@dataclass(frozen=True, eq=False, repr=False)
class OneFrame(View):
    """A stored (row, column) array as a stack of one frame."""

    source: store.Volume

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, *self.source.shape)

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, *self.source.chunks)

    def read(self, window: Window) -> np.ndarray:
        return self.source.read(window[1:])[None]

    def identity(self) -> dict[str, Any]:
        return self.source.identity()


def joined(parts: Sequence[store.Volume], names: Sequence[str]) -> store.Volume:
    """Join sources whose frames have one shape and type; name the first that differs."""
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
            raise TomoscaleError(
                f"{name}: frames of {show(part.shape[1:])} {part.dtype}; expected "
                f"{show(first.shape[1:])} {first.dtype} as in {Path(names[0]).name}"
            )
    return first if len(parts) == 1 else Joined(tuple(parts))
