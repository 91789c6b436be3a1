"""Arrays that can be read window by window: stored, in memory, or a part of another."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tomoscale import metadata, parameters, record
from tomoscale.blocks import Piece, Window, covering, shape_of
from tomoscale.chunks import ChunkFiles
from tomoscale.encoded import EncodedChunks
from tomoscale.errors import TomoscaleError
from tomoscale.metadata import ArrayInfo

SAMPLES = 8
"""Chunks whose checksum tells one array from another."""


class Volume(parameters.Volume):
    """An array that can be read window by window, in this process or in a worker."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def place(self) -> tuple[Window, tuple[int, ...]]:
        """Where it lies in the volume that it is a part of, and the shape of that."""
        return tuple(slice(0, n) for n in self.shape), self.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def most_bytes(self) -> float:
        """Bytes that a block of it may take where it is computed, unless that is the worker."""
        return math.inf

    @property
    def halo(self) -> tuple[int, ...]:
        """Voxels that are read beyond a window, along every axis."""
        return (0,) * self.ndim

    def decoded(self, window: Window) -> int:
        """Return the bytes that are decoded to read a window: whole chunks."""
        axes = zip(window, self.chunks, self.shape, strict=True)
        return math.prod(covering(s, c, n) for s, c, n in axes) * self.dtype.itemsize

    def read(self, window: Window) -> np.ndarray:
        """Return the voxels of a window."""
        raise NotImplementedError

    def whole(self) -> np.ndarray:
        """Return all voxels, of a small array."""
        return self.read(tuple(slice(0, n) for n in self.shape))

    def at(self, window: Window) -> Piece:
        """Return a window that its task reads when it runs."""
        return Piece(self, window)

    def identity(self) -> dict[str, Any]:
        """Return what tells this array from another: shape, type and a checksum of sampled chunks."""
        return {"shape": list(self.shape), "dtype": str(self.dtype), "sample": self._sample()}

    def history(self) -> list[dict[str, Any]]:
        """Return the operations that led to this array, oldest first."""
        return []

    def sibling(self, name: str) -> Volume | None:
        """Return another array of the same group, or None."""
        return None

    def _sample(self) -> str:
        """Return the crc32c of some chunks, evenly spread."""
        grid = [-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)]
        total = math.prod(grid)
        positions = sorted({round(i * (total - 1) / max(1, SAMPLES - 1)) for i in range(SAMPLES)})
        crc = 0
        for position in positions:
            index = np.unravel_index(position, grid)
            window = (
                slice(int(i) * c, min((int(i) + 1) * c, n))
                for i, c, n in zip(index, self.chunks, self.shape, strict=True)
            )
            voxels = self.read(tuple(window))
            crc = google_crc32c.extend(crc, voxels.tobytes())
        return f"{crc:08x}"


@dataclass(frozen=True, repr=False)
class ArrayVolume(Volume):
    """An array in memory; each task gets its own window of it."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.array.dtype

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(max(1, min(n, 64)) for n in self.shape)

    def read(self, window: Window) -> np.ndarray:
        return self.array[window]

    def at(self, window: Window) -> Piece:
        cut = ArrayVolume(self.array[window])
        return Piece(cut, tuple(slice(0, n) for n in cut.shape))

    def __repr__(self) -> str:
        return f"ArrayVolume({self.shape}, {self.dtype})"


@dataclass(frozen=True, repr=False)
class StoredVolume(Volume):
    """A Zarr array on disk. Only its path and metadata travel to workers."""

    path: Path
    info: ArrayInfo

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.info.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.info.dtype.newbyteorder("=")

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.info.chunks

    @functools.cached_property
    def files(self) -> ChunkFiles | None:
        """The chunk files, where the layout is the one that tomoscale writes."""
        lost = None if self.is_ours else self.info.fill
        return ChunkFiles.of(self.path, self.info, lost)

    @functools.cached_property
    def objects(self) -> ChunkFiles | EncodedChunks:
        """The stored objects, of any layout."""
        return self.files or EncodedChunks(self.path, self.info)

    @functools.cached_property
    def group(self) -> Path | None:
        """The outermost group that holds the array."""
        return outermost_group(self.path)

    @functools.cached_property
    def is_ours(self) -> bool:
        """Whether tomoscale wrote it, so that a missing chunk is a lost one."""
        return self.group is not None and "tomoscale" in metadata.attributes_of(self.group)

    def read(self, window: Window) -> np.ndarray:
        return self.objects.read(window)

    def attributes(self) -> dict[str, Any]:
        """Return the array's own attributes."""
        return self.info.attributes

    def history(self) -> list[dict[str, Any]]:
        if self.group is None:
            return []
        steps = (record.record_of(self.group) or {}).get("history", [])
        name = self.path.relative_to(self.group).as_posix()
        added = record.added_steps(steps)  # other arrays, perhaps
        return [*steps[: len(steps) - len(added)], *(s for s in added if name in s["arrays"])]

    def identity(self) -> dict[str, Any]:
        return {"path": str(self.path), **super().identity()}

    def sibling(self, name: str) -> Volume | None:
        folder = self.path.parent / name
        return (
            StoredVolume(folder, metadata.array_info(folder))
            if metadata.node_type(folder) == "array"
            else None
        )

    def __repr__(self) -> str:
        return f"Volume({str(self.path)!r}, {self.shape}, {self.dtype})"


@dataclass(frozen=True, repr=False)
class CroppedVolume(Volume):
    """A part of a volume; arrays beside it are cut in the same way."""

    inner: Volume
    window: Window

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return shape_of(self.window)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.inner.dtype

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(min(c, n) for c, n in zip(self.inner.chunks, self.shape, strict=True))

    @property
    def place(self) -> tuple[Window, tuple[int, ...]]:
        outer, shape = self.inner.place
        return _shifted(self.window, outer), shape

    def read(self, window: Window) -> np.ndarray:
        return self.inner.read(_shifted(window, self.window))

    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity(), "roi": [[s.start, s.stop] for s in self.window]}

    def history(self) -> list[dict[str, Any]]:
        return self.inner.history()

    def sibling(self, name: str) -> Volume | None:
        found = self.inner.sibling(name)
        if found is None:
            return None
        frames, *pixels = self.window
        per_frame = found.shape[0] == self.inner.shape[0] and found.ndim == 1
        if per_frame:
            return CroppedVolume(found, (frames,))
        if found.shape[-2:] != self.inner.shape[1:]:
            return found
        return CroppedVolume(found, (*(slice(0, n) for n in found.shape[:-2]), *pixels))


def _shifted(window: Window, outer: Window) -> Window:
    """Return a window of a part as one of the whole."""
    return tuple(slice(o.start + w.start, o.start + w.stop) for o, w in zip(outer, window, strict=True))


def crop(volume: Volume, roi: Sequence[tuple[int, int]]) -> CroppedVolume:
    """
    Return a part of a volume.

    Parameters
    ----------
    volume : Volume
        The whole.
    roi : sequence of (int, int)
        A half-open range for every axis.

    Returns
    -------
    CroppedVolume
        The part; nothing has been read.

    Raises
    ------
    TomoscaleError
        A range outside the volume.
    """
    if len(roi) != volume.ndim:
        raise TomoscaleError(f"roi has {len(roi)} ranges, the volume has {volume.ndim} axes {volume.shape}")
    for (start, stop), size in zip(roi, volume.shape, strict=True):
        if not 0 <= start < stop <= size:
            raise TomoscaleError(f"roi {start}:{stop} lies outside an axis of {size}; shape {volume.shape}")
    return CroppedVolume(volume, tuple(slice(a, b) for a, b in roi))


def outermost_group(path: Path) -> Path | None:
    """Return the outermost Zarr group around a path, or None."""
    found = None
    for folder in path.parents:
        if metadata.node_type(folder) != "group":
            break
        found = folder
    return found
