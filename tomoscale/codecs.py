"""
Codecs of stored bytes: a list of those that are read, since one named in a file may be one that runs code.

Chains of them are checked before anything is read, and decoded to what the metadata declare.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tomoscale.errors import TomoscaleError
from tomoscale.inflate import COMPRESSORS, Undecodable, inflate, too_much

DTYPES = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)) | {
    "float16",
    "float32",
    "float64",
}
CHECKSUMS = frozenset({"adler32", "crc32", "crc32c", "fletcher32"})
FILTERS = frozenset({"bitround", "delta", "fixedscaleoffset", "shuffle"})
CODECS_V2 = (frozenset(COMPRESSORS) - {"lzf"}) | CHECKSUMS | FILTERS
CODECS_V3 = frozenset({"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"})


# ---------------------------------------------------------------- checked before anything is read


def check_v2(configuration: Any, where: object) -> dict[str, Any]:
    """
    Return the configuration of a codec of Zarr v2 that is read.

    Raises
    ------
    TomoscaleError
        A codec that is not in the list (`pickle` runs code), or settings that are none.
    """
    name = configuration.get("id") if isinstance(configuration, dict) else configuration
    if not isinstance(name, str) or name not in CODECS_V2:
        raise TomoscaleError(f"{where}: codec {name!r} is not read; known are {', '.join(sorted(CODECS_V2))}")
    for key in ("dtype", "astype"):
        given = configuration.get(key)
        if given is not None and not _is_numeric(given):
            raise TomoscaleError(f"{where}: codec {name!r} of dtype {given!r}; expected plain numbers")
    size = configuration.get("elementsize", 4)
    if type(size) is not int or not 1 <= size <= 64:
        raise TomoscaleError(f"{where}: codec {name!r} for elements of {size!r} bytes; expected 1 to 64")
    if name == "lzma" and configuration.get("format", 1) not in (1, 2):
        raise TomoscaleError(f"{where}: raw lzma streams are not read; expected xz")
    return dict(configuration)


def _is_numeric(name: Any) -> bool:
    try:
        return isinstance(name, str) and np.dtype(name).newbyteorder("=").name in DTYPES
    except (TypeError, ValueError):
        return False


def check_v3(codecs: Any, where: object, rank: int, *, inside: bool = False) -> None:
    """
    Refuse a chain of Zarr v3 codecs that is not read.

    Parameters
    ----------
    codecs : list
        As it stands in the metadata.
    where : object
        The array, for messages.
    rank : int
        Axes of the array.
    inside : bool
        Whether these are the codecs of the chunks within a shard.

    Raises
    ------
    TomoscaleError
        An unknown codec, or an order that makes no sense.
    """
    if not isinstance(codecs, list) or not codecs:
        raise TomoscaleError(f"{where}: no codecs in the metadata")
    for codec in codecs:
        name = codec.get("name") if isinstance(codec, dict) else codec
        if not isinstance(name, str) or name not in CODECS_V3:
            raise TomoscaleError(
                f"{where}: codec {name!r} is not read; known are {', '.join(sorted(CODECS_V3))}"
            )
        if not isinstance(codec.get("configuration"), dict | None):
            raise TomoscaleError(f"{where}: codec {name!r} has settings that are no object")
    names = [c["name"] for c in codecs]
    before = names[: names.index("bytes")] if "bytes" in names else names
    after = names[len(before) + 1 :]
    if names[0] == "sharding_indexed" and len(names) == 1 and not inside:
        _check_shards(codecs[0].get("configuration") or {}, where, rank)
    elif set(before) - {"transpose"} or set(after) & {"bytes", "transpose"} or len(before) == len(names):
        raise TomoscaleError(f"{where}: codecs {', '.join(names)} in this order are not read")
    elif "sharding_indexed" in after:
        raise TomoscaleError(f"{where}: shards that are compressed as a whole, or in shards, are not read")
    for codec in codecs[: len(before)]:
        if codec["name"] == "transpose":
            _order(codec, where, rank)


def _check_shards(settings: Mapping[str, Any], where: object, rank: int) -> None:
    index = [c.get("name") for c in settings.get("index_codecs", []) if isinstance(c, dict)]
    if index not in (["bytes", "crc32c"], ["bytes"]):
        raise TomoscaleError(
            f"{where}: shards with an index of {index} are not read; expected bytes and crc32c"
        )
    if (settings["index_codecs"][0].get("configuration") or {}).get("endian", "little") != "little":
        raise TomoscaleError(f"{where}: shards with a big-endian index are not read")
    if settings.get("index_location", "end") not in ("start", "end"):
        raise TomoscaleError(f"{where}: the index of a shard at {settings['index_location']!r}")
    check_v3(settings.get("codecs"), where, rank, inside=True)


def _order(codec: Mapping[str, Any], where: object, rank: int) -> tuple[int, ...]:
    order = (codec.get("configuration") or {}).get("order")
    if (
        not isinstance(order, list)
        or order != [o for o in order if type(o) is int]
        or (sorted(order) != list(range(rank)))
    ):
        raise TomoscaleError(f"{where}: transposed to {order!r}; expected an order of {rank} axes")
    return tuple(order)


# ---------------------------------------------------------------- decoding


def decode_v3(
    codecs: Sequence[Mapping[str, Any]], raw: bytes, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """
    Decode a chunk of Zarr v3 that `check_v3` has let pass.

    Parameters
    ----------
    codecs : sequence of mapping
        Transpositions, `bytes`, then what compresses and checks.
    raw : bytes
        What is stored.
    shape, dtype
        Of the chunk.

    Raises
    ------
    Undecodable
        Not what these codecs write.
    """
    orders = [_order(c, "", len(shape)) for c in codecs if c["name"] == "transpose"]
    settings = next(c.get("configuration") or {} for c in codecs if c["name"] == "bytes")
    after = [c["name"] for c in codecs if c["name"] not in ("transpose", "bytes")]
    n_bytes = _bytes_of(shape, dtype)
    for position, name in reversed(list(enumerate(after))):
        before = after[:position]  # what stands between the voxels and this codec
        more = 4 * before.count("crc32c") + (n_bytes // 64 + 4096 if set(before) - {"crc32c"} else 0)
        limit = n_bytes + more
        raw = _without_crc32c(raw) if name == "crc32c" else inflate(name, raw, limit)
    stored = dtype.newbyteorder(">" if settings.get("endian") == "big" else "<")
    _expect(len(raw), n_bytes)
    seen = shape
    for order in orders:
        seen = tuple(seen[o] for o in order)
    array = np.frombuffer(raw, stored).reshape(seen)
    for order in reversed(orders):
        array = array.transpose(np.argsort(order))
    return array


def _without_crc32c(raw: bytes) -> bytes:
    import google_crc32c

    body = raw[:-4]
    if len(raw) < 4 or google_crc32c.value(body) != struct.unpack("<I", raw[-4:])[0]:
        raise Undecodable("checksum does not match")
    return body


def decode_v2(
    filters: Sequence[Mapping[str, Any]],
    raw: bytes,
    shape: tuple[int, ...],
    dtype: np.dtype,
    order: str,
) -> np.ndarray:
    """
    Decode a chunk of Zarr v2 whose codecs `check_v2` has let pass.

    Parameters
    ----------
    filters : sequence of mapping
        In the order of encoding; the compressor is the last.
    raw : bytes
        What is stored.
    shape, dtype
        Of the chunk.
    order : {"C", "F"}
        Of its voxels.

    Raises
    ------
    Undecodable
        Not what these codecs write.
    """
    from numcodecs import get_codec

    n_bytes = _bytes_of(shape, dtype)
    widest = n_bytes // dtype.itemsize * 8 + 64  # a filter may store another type, of 64 bits at most
    data: Any = raw
    for number, configuration in reversed(list(enumerate(filters))):
        name = configuration["id"]
        if name in COMPRESSORS:
            data = inflate(name, bytes(data), n_bytes if not number else widest)
            continue
        try:
            data = get_codec(dict(configuration)).decode(data)
        except Exception as error:  # as above
            raise Undecodable(f"codec {name} does not decode: {str(error).splitlines()[:1]}") from None
        if memoryview(data).nbytes > widest:
            raise too_much(widest)
    _expect(memoryview(data).nbytes, n_bytes)
    flat = np.frombuffer(
        np.ascontiguousarray(data).reshape(-1).view("u1") if isinstance(data, np.ndarray) else data, dtype
    )
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _bytes_of(shape: Sequence[int], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _expect(n_bytes: int, expected: int) -> None:
    if n_bytes != expected:
        raise Undecodable(f"{n_bytes} bytes; expected {expected}")
