"""Frames that lie in files: what every format offers, and what all formats check."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from tomoscale import metadata, store
from tomoscale.blocks import Piece, Window
from tomoscale.errors import TomoscaleError

EXPECTED = "one with frames: TIFF, HDF5, EDF, NumPy"
SAMPLED_FILES = 16
SAMPLED_BYTES = 4096
MOST = 10_000_000
"""Frames, rows or columns of a source: more are a mistake, or meant to fill the memory."""


class Frames(store.Volume):
    """
    Detector frames in files, read window by window.

    Holds paths and places, never pixels, and no open file: it travels to workers with their tasks, and
    `at` leaves behind what lies outside the window.
    """

    direct = False
    """Whether `read` fills the array that it returns without holding another of its size."""

    @property
    def held(self) -> int:
        """Bytes that reading holds beyond the window that it returns."""
        return 0

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all files that hold the frames."""
        raise NotImplementedError

    def narrow(self, window: Window) -> tuple[store.Volume, Window]:
        """Return a lighter source, and the window of it, that hold the same pixels."""
        return self, window

    def at(self, window: Window) -> Piece:
        return Piece(*self.narrow(window))

    def unwritten(self) -> np.ndarray:
        """Return the numbers of frames that the file declares but does not hold."""
        return np.empty(0, dtype=np.int64)

    def identity(self) -> dict[str, Any]:
        """Return what tells these files from others, or from what they were earlier."""
        return {**identity_of(self.files), "shape": list(self.shape), "dtype": str(self.dtype)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype})"


class Scan(NamedTuple):
    """What a source holds: frames, detector offsets, open beams, and one angle in degrees per frame."""

    frames: store.Volume
    dark: store.Volume | None = None
    flat: store.Volume | None = None
    omega: np.ndarray | None = None


def identity_of(paths: Sequence[str]) -> dict[str, Any]:
    """Return names, sizes, modification times and the checksum of sampled bytes of some files."""
    listing = crc = total = 0
    chosen = {round(i * (len(paths) - 1) / (SAMPLED_FILES - 1)) for i in range(SAMPLED_FILES)}
    places = max(3, 64 // len(paths))
    for number, path in enumerate(paths):
        found = Path(path).stat()
        about = f"{Path(path).name} {found.st_size} {found.st_mtime_ns}\n"
        listing = google_crc32c.extend(listing, os.fsencode(about))
        total += found.st_size
        if number in chosen:
            with opened(path) as file:
                for place in range(places):
                    file.seek(max(0, found.st_size - SAMPLED_BYTES) * place // (places - 1))
                    crc = google_crc32c.extend(crc, file.read(SAMPLED_BYTES))
    names = list(dict.fromkeys(Path(p).name for p in (paths[0], paths[-1])))  # in the order of the frames
    return {
        "files": len(paths),
        "names": names,
        "bytes": total,
        "listing": f"{listing:08x}",
        "sample": f"{crc:08x}",
    }


def opened(path: str | Path) -> FileIO:
    """Open a file without buffer, or say in one line why not."""
    try:
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise TomoscaleError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe would never end, or never begin
        file.close()
        raise TomoscaleError(f"{path}: is no regular file; expected {EXPECTED}")
    return file


def read_into(file: FileIO, offset: int, out: np.ndarray, path: str | Path) -> None:
    """Fill a contiguous array with the bytes of a file from an offset on."""
    rest = out.reshape(-1).view(np.uint8).data
    file.seek(offset)
    while rest:
        got = file.readinto(rest)
        if not got:
            raise TomoscaleError(
                f"{path}: ends {len(rest)} bytes too early; it is truncated, or still being written"
            )
        rest = rest[got:]


def numeric(dtype: np.dtype, where: str) -> np.dtype:
    """Return the type in this machine's byte order, or refuse it by name."""
    native = dtype.newbyteorder("=")
    if native.name not in metadata.DTYPES:
        kind = "structured" if dtype.names else native.name
        raise TomoscaleError(f"{where}: pixels of type {kind}; expected integers or floats of 8 to 64 bits")
    return native


def sized(shape: Sequence[int], where: str) -> tuple[int, ...]:
    """Return a shape as integers, or refuse an axis without pixels."""
    if any(n < 1 for n in shape):
        raise TomoscaleError(
            f"{where}: has shape {tuple(map(int, shape))}; expected at least one pixel along every axis"
        )
    if any(n > MOST for n in shape):
        raise TomoscaleError(
            f"{where}: claims to have {show(map(int, shape))} pixels; at most {MOST} along an axis"
        )
    return tuple(int(n) for n in shape)


def show(shape: Iterable[int]) -> str:
    """
    Write a shape as people do.

    >>> show((2048, 2560))
    '2048 x 2560'
    """
    return " x ".join(map(str, shape))
