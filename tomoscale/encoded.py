"""
Chunks of the layouts that tomoscale itself does not write: sharded, Zarr v2, transposed, gzip, zstd.

They are decoded here and not by a library, since a chunk must not take more memory than its metadata
declare, whatever is in it.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tomoscale import buffers
from tomoscale.blocks import MIB, Index, Window, shape_of
from tomoscale.codecs import decode_v2, decode_v3
from tomoscale.errors import DamagedError
from tomoscale.grid import indices, overlaps, shifted
from tomoscale.inflate import Undecodable
from tomoscale.metadata import ArrayInfo
from tomoscale.objects import open_object

ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold."""


@dataclass(frozen=True)
class EncodedChunks:
    """
    The stored objects of an array, read only.

    Parameters
    ----------
    folder : Path
        Of the array.
    info : ArrayInfo
        Its metadata.
    """

    folder: Path
    info: ArrayInfo

    @functools.cached_property
    def root(self) -> str:
        """The folder, with all links followed."""
        return os.path.realpath(self.folder)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of stored objects along every axis."""
        return tuple(-(-n // s) for n, s in zip(self.info.shape, self.info.stored, strict=True))

    def key(self, index: Index) -> str:
        """Return the name of an object below the array's folder."""
        separator = self.info.separator
        if separator.startswith("v2"):
            return separator[2:].join(map(str, index))
        return separator.join(("c", *map(str, index)))

    def keys(self) -> Iterator[str]:
        """Return the names of all objects."""
        return map(self.key, indices(self.grid))

    def read(self, window: Window) -> np.ndarray:
        """Decode every chunk that a window touches; what is not stored is the fill value."""
        info = self.info
        out = buffers.empty(shape_of(window), info.dtype.newbyteorder("="))
        starts = [s.start for s in window]
        for index, part in overlaps(window, info.stored):
            path = os.path.join(self.folder, self.key(index))
            try:
                with open_object(path, self.root) as file:
                    table = self._table(file) if self._shards else None
                    for inner, piece in overlaps(part, info.chunks):
                        chunk = self._chunk(file, inner, table)
                        origin = [i * c for i, c in zip(inner, info.chunks, strict=True)]
                        out[shifted(piece, starts)] = (
                            info.fill if chunk is None else chunk[shifted(piece, origin)]
                        )
            except FileNotFoundError:
                out[shifted(part, starts)] = info.fill
            except Undecodable as error:
                raise DamagedError(f"{path}: {error}") from None
        return out

    def _chunk(self, file: FileIO, inner: Index, table: np.ndarray | None) -> np.ndarray | None:
        """Decode one chunk of a stored object; None where a shard does not hold it."""
        info, size = self.info, os.fstat(file.fileno()).st_size
        offset, length = 0, size
        if table is not None:
            offset, length = map(int, table[tuple(i % p for i, p in zip(inner, table.shape, strict=False))])
            if offset == length == ABSENT:
                return None
            if offset + length > size:
                raise Undecodable(f"its chunk {inner} ends at byte {offset + length} of {size}")
        limit = 2 * max(8, info.dtype.itemsize) * math.prod(info.chunks) + MIB
        if length > limit:
            raise Undecodable(f"{length} bytes; a chunk of it takes at most {limit}")
        file.seek(offset)
        raw = file.read(length)
        if info.zarr_format == 2:
            return decode_v2(info.codecs, raw, info.chunks, info.dtype, info.order)
        return decode_v3(self._shards.get("codecs", info.codecs), raw, info.chunks, info.dtype)

    @property
    def _shards(self) -> dict[str, Any]:
        """Settings of the shards; empty where there are none."""
        first = self.info.codecs[0] if self.info.codecs else {}
        return dict(first["configuration"]) if first.get("name") == "sharding_indexed" else {}

    def _table(self, file: FileIO) -> np.ndarray:
        """Return offset and length of every chunk of a shard."""
        per_shard = tuple(s // c for s, c in zip(self.info.stored, self.info.chunks, strict=True))
        checked = len(self._shards["index_codecs"]) == 2
        n_bytes = 16 * math.prod(per_shard)
        size = os.fstat(file.fileno()).st_size
        if size < n_bytes + 4 * checked:
            raise Undecodable(f"{size} bytes; the index of a shard alone has {n_bytes + 4 * checked}")
        file.seek(0 if self._shards.get("index_location", "end") == "start" else size - n_bytes - 4 * checked)
        raw = file.read(n_bytes + 4 * checked)
        if checked and google_crc32c.value(raw[:n_bytes]) != struct.unpack("<I", raw[n_bytes:])[0]:
            raise Undecodable("the checksum of its index does not match")
        return np.frombuffer(raw[:n_bytes], "<u8").reshape(*per_shard, 2)
