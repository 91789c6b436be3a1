"""TIFF: single files, multi-page files, and series of either."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tomoscale.blocks import Window, shape_of
from tomoscale.errors import TomoscaleError
from tomoscale.sources.frames import Frames, Scan, show
from tomoscale.sources.raw import Raw
from tomoscale.sources.tiff_header import Page, read_pages


def open_tiff(paths: Sequence[Path]) -> Scan:
    """
    Return the pages of TIFF files as frames.

    Every header is read and checked; frames stored as plain pixels are read without a TIFF library.

    Parameters
    ----------
    paths : sequence of Path
        In the order of the frames.

    Raises
    ------
    TomoscaleError
        The first file or page that is damaged, or of another shape or type than the first.
    """
    pages: list[Page] = []
    file: list[int] = []
    for number, path in enumerate(paths):
        found = read_pages(path)
        first = pages[0] if pages else found[0]
        for position, page in enumerate(found):
            if page.frame != first.frame or page.dtype != first.dtype:
                where = f"{path}: page {position + 1}" if len(found) > 1 else f"{path}"
                raise TomoscaleError(
                    f"{where}: {show(page.frame)} {_name(page.dtype)}; expected {show(first.frame)} "
                    f"{_name(first.dtype)} as in the first frame ({paths[0].name})"
                )
        pages += found
        file += [number] * len(found)
    names = tuple(map(str, paths))
    files = np.array(file, np.int32)
    if all(p.pixels >= 0 for p in pages):
        offsets = np.array([p.pixels for p in pages], np.int64)
        return Scan(Raw(names, files, offsets, pages[0].frame, pages[0].dtype))
    if len({(f, p.directory) for f, p in zip(file, pages, strict=True)}) != len(pages):
        raise TomoscaleError(
            f"{paths[0]}: plain stacks of one directory mixed with compressed pages; convert them apart"
        )
    directories = np.array([p.directory for p in pages], np.int64)
    return Scan(Encoded(names, files, directories, pages[0].frame, pages[0].dtype.newbyteorder("=")))


def _name(dtype: np.dtype) -> str:
    return dtype.newbyteorder("=").name + ("" if dtype.isnative or dtype.itemsize == 1 else " big-endian")


@dataclass(frozen=True, eq=False, repr=False)
class Encoded(Frames):
    """Pages that must be decoded (compressed, tiled or scattered), each from its directory in a file."""

    direct = True

    paths: tuple[str, ...]
    file: np.ndarray
    directories: np.ndarray
    frame: tuple[int, int]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.file), *self.frame)

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, *self.frame)

    @property
    def held(self) -> int:
        return 2 * self.frame[0] * self.frame[1] * self.dtype.itemsize

    @property
    def files(self) -> tuple[str, ...]:
        return self.paths

    def narrow(self, window: Window) -> tuple[Encoded, Window]:
        span = window[0]
        used, file = np.unique(self.file[span], return_inverse=True)
        paths = tuple(self.paths[i] for i in used)
        light = Encoded(paths, file.astype(np.int32), self.directories[span], self.frame, self.dtype)
        return light, (slice(0, span.stop - span.start), *window[1:])

    def read(self, window: Window) -> np.ndarray:
        from tifffile import TiffFile, TiffPage

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is said below, in one line
        frames, rows, columns = window
        out = np.empty(shape_of(window), self.dtype)
        file, directories = self.file[frames], self.directories[frames]
        for number in dict.fromkeys(file.tolist()):
            path = self.paths[number]
            try:
                with TiffFile(path) as tiff:
                    for i in np.flatnonzero(file == number):
                        tiff.filehandle.seek(int(directories[i]))
                        page = TiffPage(tiff, index=0)
                        if page.shape != self.frame:
                            raise ValueError(f"the page is now {show(page.shape)}")
                        out[i] = page.asarray(maxworkers=1)[rows, columns]
            except Exception as error:  # decoders raise many kinds
                raise TomoscaleError(
                    f"{path}: a page cannot be decoded: {str(error).splitlines()[0]}"
                ) from None
        return out
