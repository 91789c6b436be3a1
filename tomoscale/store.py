"""Stored volumes: open what exists, create what a run will fill, and say what an image is to viewers."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tomoscale import metadata, parameters
from tomoscale.blocks import Piece, Window, shape_of, spans
from tomoscale.chunks import ChunkFiles, sync_folder
from tomoscale.errors import TomoscaleError
from tomoscale.metadata import ArrayInfo

INCOMPLETE = ".incomplete"
SAMPLES = 8


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
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

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
        grids = [spans(n, c) for n, c in zip(self.shape, self.chunks, strict=True)]
        total = int(np.prod([len(g) for g in grids]))
        positions = sorted({round(i * (total - 1) / max(1, SAMPLES - 1)) for i in range(SAMPLES)})
        crc = 0
        for position in positions:
            index = np.unravel_index(position, [len(g) for g in grids])
            voxels = self.read(tuple(g[i] for g, i in zip(grids, index, strict=True)))
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
        """The chunk files, where the layout allows reading them directly."""
        lost = None if self.is_ours else 0.0
        return ChunkFiles.of(self.path, self.info, lost)

    @functools.cached_property
    def group(self) -> Path | None:
        """The outermost group that holds the array."""
        return outermost_group(self.path)

    @functools.cached_property
    def is_ours(self) -> bool:
        """Whether tomoscale wrote it, so that a missing chunk is a lost one."""
        return self.group is not None and "tomoscale" in metadata.attributes_of(self.group)

    def read(self, window: Window) -> np.ndarray:
        if self.files is not None:
            return self.files.read(window)
        array = _zarr_array(str(self.path))[window]
        return np.asarray(array).astype(self.dtype, copy=False)

    def attributes(self) -> dict[str, Any]:
        """Return the array's own attributes."""
        return self.info.attributes

    def history(self) -> list[dict[str, Any]]:
        if self.group is None:
            return []
        return list(metadata.attributes_of(self.group).get("tomoscale", {}).get("history", []))

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

    def read(self, window: Window) -> np.ndarray:
        return self.inner.read(
            tuple(
                slice(o.start + w.start, o.start + w.stop) for o, w in zip(self.window, window, strict=True)
            )
        )

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


@functools.lru_cache(maxsize=16)
def _zarr_array(path: str) -> Any:
    import zarr

    return zarr.open_array(path, mode="r")


def outermost_group(path: Path) -> Path | None:
    """Return the outermost Zarr group around a path, or None."""
    found = None
    for folder in path.parents:
        if metadata.node_type(folder) != "group":
            break
        found = folder
    return found


# ---------------------------------------------------------------- opening


def as_volume(source: Any) -> Any:
    """
    Return a volume for what users give where a volume is meant.

    Parameters
    ----------
    source : Volume, path, numpy.ndarray, zarr.Array or None
        A path is opened as by `open_volume`; None, and what is no volume at all, stays what it is.

    Raises
    ------
    TomoscaleError
        A path that holds no readable volume, or a lazy Dask array, which must be written first.
    """
    if isinstance(source, Volume) or source is None:
        return source
    if isinstance(source, str | Path):
        return open_volume(source)
    if isinstance(source, np.ndarray):
        if source.dtype.newbyteorder("=").name not in metadata.DTYPES:
            raise TomoscaleError(
                f"array of dtype {source.dtype}; expected integers or floats of 8 to 64 bits"
            )
        return ArrayVolume(source)
    if hasattr(source, "dask"):
        raise TomoscaleError(
            "a lazy Dask array cannot be read in overlapping blocks without computing it several times; "
            "write it first: tomoscale.run.write(array, 'volume.zarr')"
        )
    root = getattr(getattr(source, "store", None), "root", None)
    if root is not None and hasattr(source, "path"):
        return open_volume(Path(root) / source.path)
    return source


def open_volume(path: str | Path, *, allow_incomplete: bool = False) -> StoredVolume:
    """
    Open a stored array.

    Parameters
    ----------
    path : str or Path
        An array; or a group, of which the first OME-Zarr image is meant, else its array `frames` or
        `volume`; or `group.zarr/name`.
    allow_incomplete : bool
        Open a tomoscale result although its run is not finished; blocks not yet written raise when read.

    Returns
    -------
    StoredVolume
        Shape, dtype, chunks; nothing has been read.

    Raises
    ------
    TomoscaleError
        Nothing readable there, or an unfinished result.
    """
    path = Path(path)
    folder = path.absolute()
    if not folder.exists():
        unfinished = folder.with_name(folder.name + INCOMPLETE)
        hint = f"; its run is not finished ({unfinished.name} exists): run the same command again to go on"
        raise TomoscaleError(f"{path}: does not exist{hint if unfinished.exists() else ''}")
    if folder.is_file():
        raise TomoscaleError(f"{path}: is a file; expected a Zarr directory (`tomoscale convert` makes one)")
    kind = metadata.node_type(folder)
    if kind is None:
        raise TomoscaleError(f"{path}: holds neither a Zarr array nor a Zarr group")
    if kind == "group":
        folder = folder / _array_of_group(path)
    volume = StoredVolume(folder, metadata.array_info(folder))
    _refuse_unfinished(path, volume, allow_incomplete)
    return volume


def _array_of_group(path: Path) -> str:
    """Return which array of a group is meant."""
    attributes = metadata.attributes_of(path)
    images = attributes.get("ome", attributes).get("multiscales") or []
    try:
        name = images[0]["datasets"][0]["path"]
        if metadata.node_type(path / name) == "array" and ".." not in Path(name).parts:
            return str(name)
    except (IndexError, KeyError, TypeError):
        pass
    for name in ("frames", "volume"):
        if metadata.node_type(path / name) == "array":
            return name
    names = arrays_of(path)
    listed = ", ".join(names) if names else "none"
    raise TomoscaleError(
        f"{path}: a group without `frames` or `volume`; address one of its arrays ({listed})"
    )


def arrays_of(group: Path) -> list[str]:
    """Return the paths of all arrays below a group."""
    found = []
    for folder, inner, _ in os.walk(group):
        for name in sorted(inner):
            if metadata.node_type(Path(folder) / name) == "array":
                found.append(str((Path(folder) / name).relative_to(group)))
        inner[:] = [n for n in sorted(inner) if metadata.node_type(Path(folder) / n) == "group"]
    return sorted(found)


def _refuse_unfinished(path: Path, volume: StoredVolume, allow_incomplete: bool) -> None:
    """Hold back a tomoscale result that is not complete, or that lost chunks since."""
    if volume.group is None or allow_incomplete:
        return
    record = metadata.attributes_of(volume.group).get("tomoscale")
    if record is None:
        return
    if not record.get("complete"):
        raise TomoscaleError(
            f"{path}: its run is not finished; run the same command again to go on, or open with allow_incomplete"
        )
    if volume.files is not None:
        present = {
            os.path.relpath(os.path.join(d, f), volume.path) for d, _, fs in os.walk(volume.path) for f in fs
        }
        missing = [k for k in volume.files.keys() if k not in present]
        if missing:
            raise TomoscaleError(
                f"{path}: {len(missing)} of {int(np.prod(volume.files.grid))} chunks are missing, first {missing[0]}; "
                "`tomoscale verify --repair` makes them again"
            )


# ---------------------------------------------------------------- creating


def create_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Create or replace the metadata of a group, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def create_array(
    folder: Path,
    shape: Sequence[int],
    dtype: np.dtype,
    chunks: Sequence[int],
    names: Sequence[str] | None = None,
) -> ChunkFiles:
    """
    Create an array for a run to fill.

    The codecs are lz4 with bitshuffle, followed by crc32c: without it, one flipped bit in four to one
    in twenty would be noticed when read.

    Parameters
    ----------
    folder : Path
        Where; the groups around it are created if need be.
    shape : sequence of int
        Shape of the array.
    dtype : numpy.dtype
        Type of the voxels.
    chunks : sequence of int
        Shape of a stored chunk.
    names : sequence of str, optional
        Names of the axes.

    Returns
    -------
    ChunkFiles
        The array's files, ready for `write`.
    """
    dtype = np.dtype(dtype)
    blosc = {"typesize": dtype.itemsize, "cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    document: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [int(n) for n in shape],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [int(c) for c in chunks]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
            {"name": "crc32c"},
        ],
        "attributes": {},
        "storage_transformers": [],
    }
    if names:
        document["dimension_names"] = list(names)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "zarr.json", document)
    files = ChunkFiles.of(folder, metadata.array_info(folder))
    assert files is not None
    return files


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document durably, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


AXES = {
    "scan": [
        {"name": "omega", "type": "angle", "unit": "degree"},
        {"name": "y", "type": "space"},
        {"name": "x", "type": "space"},
    ],
    "volume": [{"name": n, "type": "space"} for n in "zyx"],
}


def ome_image(
    name: str, kind: str, scale: Sequence[float] = (1.0, 1.0, 1.0), unit: str | None = None
) -> dict[str, Any]:
    """
    Return OME-NGFF 0.5 metadata, so that viewers open the output group as an image.

    Parameters
    ----------
    name : str
        Path of the array in the group.
    kind : {"scan", "volume"}
        Axes: omega (degrees), y, x; or z, y, x.
    scale : sequence of float
        Size of a voxel along every axis.
    unit : str, optional
        Unit of the spatial axes, `micrometer` say.
    """
    axes = [dict(a, unit=unit) if a["type"] == "space" and unit else dict(a) for a in AXES[kind]]
    transformation = {"type": "scale", "scale": [float(s) for s in scale]}
    dataset = {"path": name, "coordinateTransformations": [transformation]}
    return {"ome": {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": [dataset]}]}}
