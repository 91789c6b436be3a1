"""
Chunk files of a local, unsharded Zarr v3 array, read and written in the calling thread.

Decoding straight into the block is several times as fast as zarr's single IO thread. Writing follows the
protocol of a run: temporary file, fsync, rename, read back, fsync of the folders; the files of one block
are written behind the encoder by a few threads, so that waiting for the disk overlaps with encoding (`bench_store`).
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from tomoscale import blosc, buffers
from tomoscale.blocks import MIB, Index, Window, shape_of
from tomoscale.errors import DamagedError
from tomoscale.grid import indices, overlaps, shifted
from tomoscale.inflate import Undecodable
from tomoscale.metadata import ArrayInfo
from tomoscale.objects import Stored, checksum, make_folder, read_object, sync_folder, write_object
from tomoscale.stream import Stream


@dataclass(frozen=True)
class ChunkFiles:
    """
    The chunks of one array as files.

    `read` fills any window, `write` stores whole chunks. `of` returns None where the layout is not
    the simple one; then zarr reads.
    """

    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    separator: str
    compressor: tuple[str, int, int, int] | None
    checksum: bool
    fill: float | None = None
    """What a missing chunk means; None: it is lost."""

    @classmethod
    def of(cls, folder: Path, info: ArrayInfo, fill: float | None = None) -> ChunkFiles | None:
        """Return the files of an array, or None if zarr must read it."""
        names = [c.get("name") for c in info.codecs]
        simple = names[:1] == ["bytes"] and names[1:] in ([], ["blosc"], ["crc32c"], ["blosc", "crc32c"])
        if info.zarr_format != 3 or not simple or info.chunks != info.stored:
            return None
        configuration = {c["name"]: c.get("configuration") or {} for c in info.codecs}
        big = configuration["bytes"].get("endian") == "big"
        compressor = None
        if "blosc" in names:
            b = configuration["blosc"]  # when reading, the chunks say by which of them they are compressed
            shuffle = blosc.SHUFFLES.get(str(b.get("shuffle")), 1)
            compressor = (str(b.get("cname", "lz4")), b.get("clevel", 5), shuffle, b.get("blocksize", 0))
        dtype = info.dtype.newbyteorder(">" if big else "<")
        return cls(
            folder, info.shape, info.chunks, dtype, info.separator, compressor, "crc32c" in names, fill
        )

    @functools.cached_property
    def root(self) -> str:
        """The folder, with all links followed: chunks lie below it."""
        return os.path.realpath(self.folder)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along every axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def key(self, index: Index) -> str:
        """Return the name of a chunk below the array's folder."""
        if self.separator.startswith("v2"):
            return self.separator[2:].join(map(str, index))
        return self.separator.join(("c", *map(str, index)))

    def keys(self) -> Iterator[str]:
        """Return the names of all chunks."""
        return map(self.key, indices(self.grid))

    def keys_of(self, start: Sequence[int], shape: Sequence[int]) -> list[str]:
        """Return the names of the chunks of a block."""
        ranges = [range(s // c, -(-(s + n) // c)) for s, n, c in zip(start, shape, self.chunks, strict=True)]
        return [self.key(i) for i in itertools.product(*ranges)]

    # ------------------------------------------------------------ reading

    def read(self, window: Window) -> np.ndarray:
        """
        Decode every chunk that a window touches, straight into the result.

        Raises
        ------
        DamagedError
            Stored bytes are missing or are not what the metadata and the checksum say.
        """
        out = buffers.empty(shape_of(window), self.dtype)
        room = (
            np.empty(2 * self.chunk_bytes + MIB, np.uint8),
            np.empty(self.chunk_bytes + blosc.SLACK, np.uint8),
        )
        for index, part in overlaps(window, self.chunks):
            origin = [i * c for i, c in zip(index, self.chunks, strict=True)]
            corner = [p.start - w.start for p, w in zip(part, window, strict=True)]
            self._decode(index, shifted(part, origin), out, corner, room)
        return out if self.dtype.isnative else out.astype(self.dtype.newbyteorder("="))

    def _decode(
        self,
        index: Index,
        inside: Window,
        out: np.ndarray,
        corner: Sequence[int],
        room: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Decode a window of one chunk to a corner of an array; there is room for the bytes stored, and decoded."""
        path = os.path.join(self.folder, self.key(index))
        target = out[tuple(slice(c, c + w.stop - w.start) for c, w in zip(corner, inside, strict=True))]
        try:
            raw = read_object(path, self.root, room[0])
        except FileNotFoundError:
            if self.fill is None:
                raise DamagedError(f"{path}: chunk is missing; `tomoscale verify` lists all damage") from None
            target[...] = self.fill
            return
        body = raw
        if self.checksum:
            body = raw[:-4]
            if len(raw) < 4 or google_crc32c.value(body) != struct.unpack("<I", raw[-4:])[0]:
                raise DamagedError(f"{path}: checksum does not match; `tomoscale verify` lists all damage")
        if self.compressor is None:
            if len(body) != self.chunk_bytes:
                raise DamagedError(f"{path}: {len(body)} bytes; expected {self.chunk_bytes}")
            target[...] = body.view(self.dtype).reshape(self.chunks)[inside]
            return
        try:
            blosc.decode(body, self.chunks, inside, out, corner, room[1])
        except Undecodable as error:
            raise DamagedError(f"{path}: {error}") from None

    # ------------------------------------------------------------ writing

    def encode(self, part: np.ndarray) -> tuple[list[bytes], int]:
        """Return the stored bytes of one chunk, in pieces, and their `checksum`."""
        flat = np.ascontiguousarray(part, self.dtype).reshape(-1)
        body = flat.tobytes() if self.compressor is None else blosc.encode(flat, self.compressor)
        if not self.checksum:
            return [body], checksum(body)
        crc = google_crc32c.value(body)
        end = struct.pack("<I", crc)
        return [body, end], google_crc32c.extend(crc, end[::-1])  # as `checksum` takes it

    def parts(self, start: Sequence[int], block: np.ndarray | Stream) -> Iterator[tuple[Index, np.ndarray]]:
        """
        Cut a block into whole chunks; those over the end of the array are padded with zeros, as Zarr does.

        Chunks of a stream are made one after the other in the same place, which stays in the cache.
        """
        ranges = [
            range(s // c, -(-(s + n) // c)) for s, n, c in zip(start, block.shape, self.chunks, strict=True)
        ]
        assert all(s % c == 0 for s, c in zip(start, self.chunks, strict=True)), "a block starts with a chunk"
        room = np.empty(self.chunks if isinstance(block, Stream) else 0, block.dtype)
        for index in itertools.product(*ranges):
            begin = [i * c - s for i, c, s in zip(index, self.chunks, start, strict=True)]
            stop = [min(b + c, n) for b, c, n in zip(begin, self.chunks, block.shape, strict=True)]
            window = tuple(map(slice, begin, stop))
            part = block.made(window, room) if isinstance(block, Stream) else block[window]
            if part.shape != self.chunks:
                padded = np.zeros(self.chunks, self.dtype)
                padded[tuple(map(slice, part.shape))] = part
                part = padded
            yield index, part

    def write(self, start: Sequence[int], block: np.ndarray | Stream) -> list[Stored]:
        """
        Store a block of whole chunks durably.

        Parameters
        ----------
        start : sequence of int
            Position of the block's first voxel; a multiple of the chunk's shape.
        block : numpy.ndarray or Stream
            The voxels, or what makes them.

        Returns
        -------
        list of Stored
            Key, length and checksum of every object, as read back from storage.
        """
        writing: list[Future[Stored]] = []
        folders: set[str] = set()
        try:
            for index, part in self.parts(start, block):
                key = self.key(index)
                path = os.path.join(self.folder, key)
                if os.path.dirname(path) not in folders:
                    above = Path(path).parents
                    make_folder(above[0], self.folder)
                    folders.update(map(str, itertools.takewhile(lambda f: f != self.folder.parent, above)))
                pieces, crc = self.encode(part)
                _IN_FLIGHT.acquire()
                job = _writers().submit(write_object, path, pieces, key, crc)
                job.add_done_callback(lambda _: _IN_FLIGHT.release())
                writing.append(job)
        finally:
            stored = [job.result() for job in writing]
        # Their parents as well, whoever made these; several at a time, since each waits for the disk.
        list(_writers().map(sync_folder, folders))
        return stored


_IN_FLIGHT = threading.BoundedSemaphore(6)
"""Encoded chunks that wait for the disk; they bound the memory that writing behind takes."""


@functools.cache
def _writers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="tomoscale-writer")
