"""What the headers of a TIFF file say of its pages, checked before any pixel is read."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tomoscale.errors import TomoscaleError
from tomoscale.sources.frames import numeric, opened

WIDTH, LENGTH, BITS, COMPRESSION, FILL_ORDER, DESCRIPTION = 256, 257, 258, 259, 266, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 322, 323, 324, 325, 339
WANTED = frozenset(v for k, v in list(globals().items()) if k.isupper() and isinstance(v, int))
TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
CODECS = {
    1: "none",
    5: "LZW",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    34925: "LZMA",
    50000: "Zstandard",
}
REFUSED = {
    2: "CCITT",
    3: "CCITT fax",
    4: "CCITT fax",
    6: "JPEG",
    7: "JPEG",
    33003: "JPEG 2000",
    34712: "JPEG 2000",
}
HEAD_BYTES = 4096
MAX_PAGES = 10_000_000
MANY = 16
"""Times its own size that the headers of a file may have in all."""


class Page(NamedTuple):
    """One image of a file: where its directory is, its frame, and where plain pixels start (-1: encoded)."""

    directory: int
    frame: tuple[int, int]
    dtype: np.dtype
    pixels: int


class _Reader:
    """Bytes of a file by offset, with the first of them kept."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.read = path, file, 0
        self.head = file.read(HEAD_BYTES)
        self.size = file.seek(0, 2) if len(self.head) == HEAD_BYTES else len(self.head)

    def bytes(self, offset: int, length: int, what: str) -> bytes:
        self.read += length
        if self.read > MANY * self.size + HEAD_BYTES * MANY:
            raise TomoscaleError(f"{self.path}: damaged: its pages point at the same tables over and over")
        if offset + length > self.size:
            raise TomoscaleError(
                f"{self.path}: truncated: {what} at byte {offset} lies beyond the end of the file "
                f"({self.size} bytes)"
            )
        if offset + length <= len(self.head):
            return self.head[offset : offset + length]
        self.file.seek(offset)
        return self.file.read(length)


def read_pages(path: Path) -> list[Page]:
    """
    Return the images of a TIFF file.

    Parameters
    ----------
    path : Path
        A classic or a big TIFF, of either byte order. The stacks that ImageJ writes behind a single
        directory count as the images that they are.

    Returns
    -------
    list of Page
        In the order of the file.

    Raises
    ------
    TomoscaleError
        No TIFF, a damaged one, or images of a kind that frames are not.
    """
    with opened(path) as file:
        reader = _Reader(path, file)
        if not reader.head:
            raise TomoscaleError(f"{path}: empty file; expected a TIFF")
        order = {b"II": "<", b"MM": ">"}.get(reader.head[:2])
        version = struct.unpack(f"{order}H", reader.head[2:4])[0] if order and len(reader.head) >= 8 else 0
        if version not in (42, 43):
            raise TomoscaleError(f"{path}: not a TIFF (starts with {reader.head[:4]!r})")
        big = version == 43
        (offset,) = struct.unpack(
            f"{order}{'Q' if big else 'I'}", reader.bytes(8 if big else 4, 8 if big else 4, "header")
        )
        pages: list[Page] = []
        seen = set()
        while offset:
            if offset in seen or len(pages) > MAX_PAGES:
                raise TomoscaleError(f"{path}: damaged: its directories form a loop after page {len(pages)}")
            seen.add(offset)
            tags, following = _directory(reader, offset, order or "<", big)
            page = _page(reader, offset, tags, order or "<", f"{path}: page {len(pages) + 1}")
            if not pages and not following:
                return _stack(reader, page, tags)
            pages.append(page)
            offset = following
    if not pages:
        raise TomoscaleError(f"{path}: a TIFF without any image")
    return pages


def _directory(reader: _Reader, offset: int, order: str, big: bool) -> tuple[dict[int, np.ndarray], int]:
    """Read a directory: the values of the tags that matter, and where the next directory is."""
    head, entry, link = ("Q", 20, 8) if big else ("H", 12, 4)
    width = struct.calcsize(head)
    (count,) = struct.unpack(order + head, reader.bytes(offset, width, "a directory"))
    if count > 4096:
        raise TomoscaleError(f"{reader.path}: damaged: a directory of {count} entries at byte {offset}")
    table = reader.bytes(offset + width, count * entry + link, "a directory")
    tags = {}
    for code, kind, n, value in struct.iter_unpack(
        order + ("HHQ8s" if big else "HHI4s"), table[: count * entry]
    ):
        if code not in WANTED or kind not in TYPES:
            continue
        dtype = np.dtype(order + TYPES[kind])
        length = n * dtype.itemsize
        if length > len(value):
            (place,) = struct.unpack(order + ("Q" if big else "I"), value)
            value = reader.bytes(place, length, f"tag {code}")
        tags[code] = np.frombuffer(value, dtype, n)
    (following,) = struct.unpack(order + ("Q" if big else "I"), table[count * entry :])
    return tags, following


def _page(reader: _Reader, directory: int, tags: dict[int, np.ndarray], order: str, where: str) -> Page:
    """Check a directory, and that all it points at lies inside the file."""

    def one(code: int, default: int = 0) -> int:
        values = tags.get(code)
        return int(values[0]) if values is not None and len(values) else default

    rows, columns = one(LENGTH), one(WIDTH)
    if rows < 1 or columns < 1:
        raise TomoscaleError(f"{where}: declares {rows} x {columns} pixels; expected at least one")
    if one(SAMPLES, 1) != 1:
        colour = "a colour image); expected one: convert to grey"
        if one(PLANAR) == 2:  # tifffile.imwrite takes three or four frames for one image by default
            colour = (
                "plane by plane: a colour image, or a stack of so many frames); expected one: convert to grey, or "
                "write the stack with tifffile.imwrite(..., photometric='minisblack')"
            )
        raise TomoscaleError(f"{where}: {one(SAMPLES)} samples per pixel ({colour}")
    compression = one(COMPRESSION, 1)
    if compression not in CODECS:
        name = REFUSED.get(compression, "unknown")
        raise TomoscaleError(
            f"{where}: compression {compression} ({name}) is not read; known are "
            f"{', '.join(sorted(set(CODECS.values())))}"
        )
    dtype = _dtype(one(BITS, 1), one(SAMPLE_FORMAT, 1), order, where)
    nbytes = rows * columns * dtype.itemsize
    if TILE_OFFSETS in tags:
        across, down = -(-columns // max(1, one(TILE_WIDTH))), -(-rows // max(1, one(TILE_LENGTH)))
        offsets, counts, expected = tags[TILE_OFFSETS], tags.get(TILE_BYTES), across * down
        if one(TILE_WIDTH) * one(TILE_LENGTH) > 4 * rows * columns + 2**20:
            raise TomoscaleError(
                f"{where}: damaged: tiles of {one(TILE_LENGTH)} x {one(TILE_WIDTH)} in {rows} x {columns}"
            )
    else:
        offsets, counts = tags.get(STRIP_OFFSETS, np.empty(0, np.uint32)), tags.get(STRIP_BYTES)
        expected = -(-rows // max(1, min(rows, one(ROWS_PER_STRIP, rows))))
    if counts is None and compression == 1 and len(offsets) == expected == 1:
        counts = np.array([nbytes])
    if counts is None or len(offsets) != expected or len(counts) != expected:
        raise TomoscaleError(f"{where}: damaged: {len(offsets)} strips or tiles; expected {expected}")
    starts, lengths = offsets.astype(np.float64), counts.astype(np.float64)
    if not (lengths.all() and starts.all()):
        raise TomoscaleError(f"{where}: a strip or tile was never written; the frame is not complete")
    if (starts + lengths).max() > reader.size:
        raise TomoscaleError(
            f"{where}: truncated: pixels up to byte {(starts + lengths).max():.0f}, "
            f"and the file has {reader.size}; copy it again"
        )
    plain = compression == 1 and TILE_OFFSETS not in tags and one(FILL_ORDER, 1) == 1
    if compression == 1 and lengths.sum() < nbytes:
        raise TomoscaleError(
            f"{where}: declares {nbytes} bytes of pixels and holds {lengths.sum():.0f}; it is damaged"
        )
    follows = plain and bool(np.all(starts[1:] == starts[:-1] + lengths[:-1]))
    return Page(directory, (rows, columns), dtype, int(offsets[0]) if follows else -1)


def _dtype(bits: int, sample_format: int, order: str, where: str) -> np.dtype:
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(sample_format)
    if kind is None:
        raise TomoscaleError(f"{where}: complex pixels; expected integers or floats of 8 to 64 bits")
    if bits not in ((16, 32, 64) if kind == "f" else (8, 16, 32, 64)):
        raise TomoscaleError(f"{where}: {bits} bits per pixel; expected 8, 16, 32 or 64")
    dtype = np.dtype(f"{order}{kind}{bits // 8}")
    numeric(dtype, where)
    return dtype


def _stack(reader: _Reader, page: Page, tags: dict[int, np.ndarray]) -> list[Page]:
    """Return the images of a file with one directory: one, or as many as ImageJ or tifffile declare."""
    n = _declared(tags.get(DESCRIPTION, np.empty(0, np.uint8)).tobytes(), page.frame)
    if n <= 1 or page.pixels < 0:
        return [page]
    nbytes = page.frame[0] * page.frame[1] * page.dtype.itemsize
    end = page.pixels + n * nbytes
    if end > reader.size:
        raise TomoscaleError(
            f"{reader.path}: truncated: {n} images end at byte {end}, and the file has "
            f"{reader.size}; copy it again"
        )
    return [page._replace(pixels=page.pixels + i * nbytes) for i in range(n)]


def _declared(description: bytes, frame: tuple[int, int]) -> int:
    """Return the number of images that a description declares behind one directory."""
    if description.startswith(b"ImageJ="):
        found = re.search(rb"^images=(\d{1,9})\s*$", description, re.MULTILINE)
        return int(found[1]) if found else 1
    if description.startswith(b'{"shape"'):
        try:
            shape = json.loads(description.rstrip(b"\0"))["shape"]
            total = int(np.prod([int(v) for v in shape], dtype=np.float64))
        except (ValueError, TypeError, KeyError, OverflowError):
            return 1
        return total // (frame[0] * frame[1])
    return 1
