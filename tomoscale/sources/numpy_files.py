"""NumPy files, read in place; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from tomoscale.blocks import Window
from tomoscale.errors import TomoscaleError
from tomoscale.sources.frames import Frames, Scan, numeric, opened, sized
from tomoscale.sources.raw import Raw
from tomoscale.sources.views import joined

HEADER_BYTES = 10_000
"""What NumPy itself reads of a header that it does not trust."""


class Header(NamedTuple):
    """What stands before the numbers of an array: shape, Fortran order or not, type, and its own length."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def open_npy(paths: Sequence[Path]) -> Scan:
    """
    Return .npy files as frames: stacks, or images one by one.

    Parameters
    ----------
    paths : sequence of Path
        In the order of the frames.
    """
    parts = []
    for path in paths:
        with opened(path) as file:
            header = read_header(file, path)
            size = file.seek(0, 2)
        if header.length + header.nbytes > size:
            raise TomoscaleError(
                f"{path}: truncated: declares {header.length + header.nbytes} bytes, and the file has "
                f"{size}; copy it again"
            )
        parts.append(placed(path, header, header.length))
    if len(parts) > 1 and all(isinstance(p, Raw) and len(p.offsets) == 1 for p in parts):
        joined(parts, [str(p) for p in paths])
        return Scan(_one_raw(parts))  # type: ignore[arg-type]
    return Scan(joined(parts, [str(p) for p in paths]))


def _one_raw(parts: Sequence[Raw]) -> Raw:
    """Put single images in one source, which is lighter than a join."""
    paths = tuple(p.paths[0] for p in parts)
    offsets = np.concatenate([p.offsets for p in parts])
    return Raw(paths, np.arange(len(paths), dtype=np.int32), offsets, parts[0].frame, parts[0].stored)


def read_header(file: IO[bytes], where: str | Path) -> Header:
    """Read the header of an array, which must hold plain numbers."""
    try:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise TomoscaleError(f"{where}: NumPy format {version}; expected plain numbers (format 1 or 2)")
        raw = file.read(2 if version == (1, 0) else 4)
        length = int.from_bytes(raw, "little")
        if length > HEADER_BYTES:
            raise TomoscaleError(f"{where}: a header of {length} bytes; expected at most {HEADER_BYTES}")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(BytesIO(raw + file.read(length)))
    except TomoscaleError:
        raise
    except Exception as error:  # its text is parsed as Python's literals, which fail in many ways
        text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise TomoscaleError(f"{where}: not a readable NumPy array: {text}") from None
    if dtype.hasobject:
        raise TomoscaleError(f"{where}: holds Python objects, which are never unpickled; expected numbers")
    return Header(shape, fortran, dtype, file.tell())


def placed(path: Path, header: Header, offset: int) -> Frames:
    """Return the source for an uncompressed array in a file."""
    numeric(header.dtype, str(path))
    if len(header.shape) not in (2, 3):
        raise TomoscaleError(
            f"{path}: has shape {header.shape}; expected (frame, row, column) or (row, column)"
        )
    shape = sized(header.shape, str(path))
    if header.fortran:
        return Mapped(str(path), offset, shape, header.dtype)
    return Raw.stack(str(path), offset, (1,) * (3 - len(shape)) + shape, header.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Mapped(Frames):
    """An array in Fortran order, through a memory map."""

    direct = True

    path: str
    offset: int
    stored_shape: tuple[int, ...]
    stored: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1,) * (3 - len(self.stored_shape)) + self.stored_shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.stored.newbyteorder("=")

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, *self.shape[1:])

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def read(self, window: Window) -> np.ndarray:
        mapped = np.memmap(self.path, self.stored, "r", self.offset, self.stored_shape, order="F")
        return np.array(mapped.reshape(self.shape)[window], dtype=self.dtype, order="C")
