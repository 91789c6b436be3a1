"""Decompression into a buffer whose size is known before: a few kilobytes may inflate to gigabytes."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

BLOSC_HEADER = struct.Struct("<4B3I")
"""Versions, flags and type size; then bytes decoded, of a block, and encoded."""

LZMA_BYTES = 256 * 2**20
"""Memory that an xz stream may ask for."""


class Undecodable(ValueError):
    """Stored bytes that are not what their codec writes, or more than the metadata declare."""


def inflate(codec: str, raw: bytes, limit: int) -> bytes:
    """
    Decompress, but never to more than the metadata allow.

    Parameters
    ----------
    codec : str
        One of `COMPRESSORS`.
    raw : bytes
        What is stored.
    limit : int
        Bytes that may come out.

    Raises
    ------
    Undecodable
        Damaged, or larger than the limit.

    Examples
    --------
    >>> inflate("zlib", zlib.compress(bytes(10**6)), 10**6) == bytes(10**6)
    True
    >>> inflate("zlib", zlib.compress(bytes(10**6)), 1024)
    Traceback (most recent call last):
    ...
    tomoscale.inflate.Undecodable: inflates to more than the 1024 bytes of the metadata
    """
    try:
        return COMPRESSORS[codec](raw, limit)
    except Undecodable:
        raise
    except Exception as error:  # every library has its own errors, and some have none of their own
        text = (str(error).splitlines() or [type(error).__name__])[0]
        if "too small" in text or "not large enough" in text or "BUF_ERROR" in text:
            raise too_much(limit) from None
        raise Undecodable(f"does not decompress: {text}") from None


def too_much(limit: int) -> Undecodable:
    """Return the error that says so."""
    return Undecodable(f"inflates to more than the {limit} bytes of the metadata")


def _in_streams(make: Callable[[], Any], raw: bytes, limit: int) -> bytes:
    """Decompress streams that follow each other."""
    parts = []
    left = limit
    while raw:
        stream = make()
        part = stream.decompress(raw, left + 1)
        if len(part) > left:
            raise too_much(limit)
        if not stream.eof:
            raise Undecodable("does not decompress: its end is missing")
        parts.append(part)
        left -= len(part)
        raw = stream.unused_data
    return b"".join(parts)


def _blosc(raw: bytes, limit: int) -> bytes:
    from numcodecs import blosc

    declared = BLOSC_HEADER.unpack_from(raw) if len(raw) >= BLOSC_HEADER.size else (0,) * 7
    if declared[6] != len(raw) or not declared[4]:
        raise Undecodable(f"declares {declared[6]} stored bytes and has {len(raw)}")
    if declared[4] > limit:
        raise Undecodable(f"declares {declared[4]} bytes; expected at most {limit}")
    return bytes(blosc.decompress(raw))


def _zstd(raw: bytes, limit: int) -> bytes:
    from imagecodecs import zstd_decode

    return bytes(zstd_decode(raw, out=limit))


def _lz4(raw: bytes, limit: int) -> bytes:
    """Decompress a block of LZ4 behind its size, as numcodecs writes it."""
    from imagecodecs import lz4_decode

    (size,) = struct.unpack_from("<I", raw)
    if size > limit:
        raise Undecodable(f"declares {size} bytes; expected at most {limit}")
    return bytes(lz4_decode(raw[4:], out=size))


def _lzf(raw: bytes, limit: int) -> bytes:
    from imagecodecs import lzf_decode

    return bytes(lzf_decode(raw, out=limit))


COMPRESSORS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "blosc": _blosc,
    "bz2": lambda raw, limit: _in_streams(bz2.BZ2Decompressor, raw, limit),
    "gzip": lambda raw, limit: _in_streams(lambda: zlib.decompressobj(31), raw, limit),
    "lz4": _lz4,
    "lzf": _lzf,
    "lzma": lambda raw, limit: _in_streams(
        lambda: lzma.LZMADecompressor(lzma.FORMAT_AUTO, LZMA_BYTES), raw, limit
    ),
    "zlib": lambda raw, limit: _in_streams(lambda: zlib.decompressobj(15), raw, limit),
    "zstd": _zstd,
}
