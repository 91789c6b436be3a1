"""What a Zarr array says of itself, checked before anything of it is read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale.codecs import DTYPES, check_v2, check_v3
from tomoscale.errors import TomoscaleError

__all__ = ["DTYPES", "ArrayInfo", "are_integers", "array_info", "attributes_of", "node_type", "read_json"]

MAX_METADATA_BYTES = 2**24
MAX_ARRAY_BYTES = 10**16
MAX_CHUNK_BYTES = 2**32
MAX_CHUNKS = 10**8
MAX_AXES = 32


@dataclass(frozen=True)
class ArrayInfo:
    """Shape, type, chunks and codecs of a stored array, and its attributes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    """Shape of the smallest unit that can be decoded: of inner chunks where there are shards."""
    stored: tuple[int, ...]
    """Shape of a stored object."""
    codecs: tuple[dict[str, Any], ...]
    """In the order of encoding; of Zarr v2 the filters, then the compressor."""
    separator: str
    zarr_format: int
    order: str = "C"
    """Of the voxels in a chunk of Zarr v2: C or F."""
    fill: float = 0
    """What a chunk that is not stored means."""
    dimension_names: tuple[str | None, ...] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """Read a metadata document, which must be a JSON object of sensible size."""
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise TomoscaleError(
                f"{path}: {path.stat().st_size} bytes of metadata; expected at most {MAX_METADATA_BYTES}"
            )
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if isinstance(error, TomoscaleError):
            raise
        raise TomoscaleError(
            f"{path}: not readable as JSON ({type(error).__name__}); the file is damaged"
        ) from None
    except OSError as error:
        raise TomoscaleError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not isinstance(document, dict):
        raise TomoscaleError(f"{path}: holds a JSON {type(document).__name__}; expected an object")
    return document


def node_type(folder: Path) -> str | None:
    """Return `array`, `group` or None for what a folder holds."""
    if (folder / "zarr.json").is_file():
        kind = read_json(folder / "zarr.json").get("node_type")
        return kind if kind in ("array", "group") else None
    if (folder / ".zarray").is_file():
        return "array"
    return "group" if (folder / ".zgroup").is_file() else None


def attributes_of(folder: Path) -> dict[str, Any]:
    """Return the attributes of an array or a group."""
    if (folder / "zarr.json").is_file():
        found = read_json(folder / "zarr.json").get("attributes", {})
    elif (folder / ".zattrs").is_file():
        found = read_json(folder / ".zattrs")
    else:
        return {}
    return found if isinstance(found, dict) else {}


def are_integers(values: Any) -> bool:
    """Tell whether this is a list of integers."""
    return isinstance(values, list) and all(type(v) is int for v in values)


def array_info(folder: Path) -> ArrayInfo:
    """
    Read and check the metadata of a stored array.

    Raises
    ------
    TomoscaleError
        Metadata that are damaged, of an unknown format, or that ask for what this project does not read:
        an unusual type, an unknown codec, an absurd shape.
    """
    try:
        if (folder / "zarr.json").is_file():
            info = _version3(folder)
        else:
            info = _version2(folder)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, TomoscaleError):
            raise
        text = repr(error)[:200]
        raise TomoscaleError(f"{folder}: metadata incomplete or not understood: {text}") from None
    _check(folder, info)
    return info


def _version3(folder: Path) -> ArrayInfo:
    m = read_json(folder / "zarr.json")
    if m["zarr_format"] != 3:
        raise TomoscaleError(f"{folder}: zarr_format {m['zarr_format']!r}; expected 2 or 3")
    if m["chunk_grid"]["name"] != "regular":
        raise TomoscaleError(f"{folder}: chunk grid {m['chunk_grid']['name']!r}; expected 'regular'")
    stored, shape = _integers(m["chunk_grid"]["configuration"]["chunk_shape"]), _integers(m["shape"])
    check_v3(m["codecs"], folder, len(shape))
    sharded = m["codecs"][0]["name"] == "sharding_indexed"
    chunks = _integers(m["codecs"][0]["configuration"]["chunk_shape"]) if sharded else stored
    dtype = _dtype(folder, m["data_type"])
    key = m.get("chunk_key_encoding", {"name": "default"})
    separator = key.get("configuration", {}).get("separator", "/" if key["name"] == "default" else ".")
    if separator not in ("/", ".") or key["name"] not in ("default", "v2"):
        raise TomoscaleError(f"{folder}: chunk keys {key!r} are not understood")
    return ArrayInfo(
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        stored=stored,
        codecs=tuple(m["codecs"]),
        separator=separator if key["name"] == "default" else f"v2{separator}",
        zarr_format=3,
        fill=_fill(m.get("fill_value"), dtype),
        dimension_names=_names(m.get("dimension_names")),
        attributes=attributes_of(folder),
    )


def _version2(folder: Path) -> ArrayInfo:
    m = read_json(folder / ".zarray")
    if m["zarr_format"] != 2:
        raise TomoscaleError(f"{folder}: zarr_format {m['zarr_format']!r}; expected 2 or 3")
    given = [*(m.get("filters") or []), *([m["compressor"]] if m.get("compressor") else [])]
    codecs = tuple(check_v2(codec, folder) for codec in given)
    separator, order = m.get("dimension_separator") or ".", m.get("order", "C")
    if separator not in ("/", ".") or order not in ("C", "F"):
        raise TomoscaleError(
            f"{folder}: chunk keys with {separator!r}, or order {order!r}, are not understood"
        )
    chunks, dtype = _integers(m["chunks"]), _dtype(folder, m["dtype"])
    return ArrayInfo(
        shape=_integers(m["shape"]),
        dtype=dtype,
        chunks=chunks,
        stored=chunks,
        codecs=codecs,
        separator=f"v2{separator}",
        zarr_format=2,
        order=order,
        fill=_fill(m.get("fill_value"), dtype),
        attributes=attributes_of(folder),
    )


def _fill(value: Any, dtype: np.dtype) -> float:
    """Return what a chunk that is not stored means, exactly: an integer, or a float that may be NaN."""
    if value is None:
        return 0
    if dtype.kind == "f":
        if isinstance(value, str) and value.startswith("0x"):
            return float(np.array(int(value, 16), f"u{dtype.itemsize}").view(f"f{dtype.itemsize}"))
        return float(value)
    if type(value) not in (int, float) or value != int(value):
        raise TypeError(f"fill value {value!r}")
    if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        raise ValueError(f"fill value {value!r} of {dtype}")
    return int(value)


def _names(names: Any) -> tuple[str | None, ...] | None:
    return tuple(n if isinstance(n, str) else None for n in names) if isinstance(names, list) else None


def _integers(values: Any) -> tuple[int, ...]:
    if not are_integers(values):
        raise TypeError(f"{values!r} is not a list of integers")
    return tuple(values)


def _dtype(folder: Path, name: Any) -> np.dtype:
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.newbyteorder("=").name not in DTYPES or dtype.hasobject:
        raise TomoscaleError(f"{folder}: dtype {name!r}; expected integers or floats of 8 to 64 bits")
    return dtype


def _check(folder: Path, info: ArrayInfo) -> None:
    if len(info.shape) > MAX_AXES:
        raise TomoscaleError(f"{folder}: {len(info.shape)} axes; at most {MAX_AXES} are read")
    if any(n < 1 for n in info.shape) or not info.shape:
        raise TomoscaleError(f"{folder}: shape {info.shape}; expected at least one element along every axis")
    if any(c < 1 for c in (*info.chunks, *info.stored)):
        raise TomoscaleError(f"{folder}: chunks {info.chunks}; expected at least 1 along every axis")
    if len(info.chunks) != len(info.shape) or len(info.stored) != len(info.shape):
        raise TomoscaleError(f"{folder}: chunks {info.chunks} do not have the rank of shape {info.shape}")
    if any(s % c for s, c in zip(info.stored, info.chunks, strict=True)):
        raise TomoscaleError(f"{folder}: shards {info.stored} are not whole chunks {info.chunks}")
    total = math.prod(info.shape) * info.dtype.itemsize
    if total > MAX_ARRAY_BYTES:
        raise TomoscaleError(
            f"{folder}: shape {info.shape} claims {total:.2e} bytes; at most {MAX_ARRAY_BYTES:.0e} are read"
        )
    chunk = math.prod(info.chunks) * info.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:
        raise TomoscaleError(
            f"{folder}: a chunk {info.chunks} claims {chunk:.2e} bytes; at most {MAX_CHUNK_BYTES:.0e} are read"
        )
    count = math.prod(-(-n // c) for n, c in zip(info.shape, info.chunks, strict=True))
    if count > MAX_CHUNKS:
        raise TomoscaleError(
            f"{folder}: shape {info.shape} claims {count:.2e} chunks {info.chunks}; at most {MAX_CHUNKS:.0e} are read"
        )
