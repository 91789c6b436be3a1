"""Stored volumes: open what exists, create what a run will fill, and say what an image is to viewers."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import metadata, record
from tomoscale.chunks import ChunkFiles
from tomoscale.errors import TomoscaleError
from tomoscale.objects import sync_folder
from tomoscale.record import INCOMPLETE
from tomoscale.volume import ArrayVolume, CroppedVolume, StoredVolume, Volume, crop, outermost_group

__all__ = [
    "INCOMPLETE",
    "ArrayVolume",
    "CroppedVolume",
    "StoredVolume",
    "Volume",
    "arrays_of",
    "as_volume",
    "create_array",
    "create_group",
    "crop",
    "group_document",
    "ome_image",
    "open_volume",
    "outermost_group",
    "write_json",
]

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
        An array; or a group, of which the first OME-Zarr image is meant, else its array `frames`, `volume` or
        `map`; or `group.zarr/name`.
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
    if not allow_incomplete:
        _refuse_unfinished(path, volume)
    return volume


def _array_of_group(path: Path) -> str:
    """Return which array of a group is meant."""
    try:
        name = record.images_of(path)[0]["datasets"][0]["path"]
    except (IndexError, KeyError, TypeError):
        name = None
    if record.is_inside(name) and metadata.node_type(path / name) == "array":
        return str(name)
    for name in ("frames", "volume", "map"):
        if metadata.node_type(path / name) == "array":
            return name
    names = arrays_of(path)
    listed = ", ".join(names) if names else "none"
    raise TomoscaleError(
        f"{path}: a group without `frames`, `volume` or `map`; address one of its arrays ({listed})"
    )


def arrays_of(group: Path) -> list[str]:
    """Return the paths of all arrays below a group."""
    found = []
    for folder, inner, _ in os.walk(group, onerror=_refuse_unreadable):
        for name in sorted(inner):
            if metadata.node_type(Path(folder) / name) == "array":
                found.append(str((Path(folder) / name).relative_to(group)))
        inner[:] = [n for n in sorted(inner) if metadata.node_type(Path(folder) / n) == "group"]
    return sorted(found)


def _refuse_unreadable(error: OSError) -> None:
    """Refuse a folder that cannot be listed: what is in it would count as missing."""
    raise TomoscaleError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _refuse_unfinished(path: Path, volume: StoredVolume) -> None:
    """Hold back an array that was not written to its end, or that lost chunks since."""
    written = record.record_of(volume.group) if volume.group else None
    if written is not None and not written["complete"]:
        raise TomoscaleError(
            f"{path}: its run is not finished; run the same command again to go on, or open with allow_incomplete"
        )
    present = set()
    for folder, inner, files in os.walk(volume.path, onerror=_refuse_unreadable):
        for name in inner:
            if (link := Path(folder, name)).is_symlink():
                raise TomoscaleError(f"{link}: a link, which is not followed; move the folder there")
        below = os.path.relpath(folder, volume.path)
        present |= {
            os.path.normpath(f"{below}/{f}") for f in files if not f.startswith(".") and f != "zarr.json"
        }
    if not present:
        raise TomoscaleError(f"{path}: holds no chunk at all; it was created and never written")
    total = math.prod(volume.objects.grid)
    if (
        total > 4 * len(present) + 10_000
    ):  # hardly any is there: to look for each would take longer than to say so
        missing = total - len(present)
    else:
        missing = sum(key not in present for key in volume.objects.keys())
    first = next((key for key in volume.objects.keys() if key not in present), "")
    if missing and written is not None:
        raise TomoscaleError(
            f"{path}: {missing} of {total} chunks are missing, first {first}; "
            "`tomoscale verify --repair` makes them again"
        )
    if missing:
        warnings.warn(f"{path}: {missing} of {total} chunks are not stored and read as {volume.info.fill}")


# ---------------------------------------------------------------- creating


def create_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Create or replace the metadata of a group, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    write_json(folder / "zarr.json", group_document(attributes))


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


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
    sync_folder(folder.parent)
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
