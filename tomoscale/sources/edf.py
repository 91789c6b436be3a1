"""EDF, the format of ESRF detectors: headers through fabio, pixels straight from the file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale.errors import TomoscaleError
from tomoscale.sources.frames import Scan, numeric, opened, show, sized
from tomoscale.sources.raw import Raw
from tomoscale.sources.rehearsal import rehearse


def open_edf(paths: Sequence[Path]) -> Scan:
    """
    Return the images of EDF files as frames.

    Parameters
    ----------
    paths : sequence of Path
        In the order of the frames.

    Raises
    ------
    TomoscaleError
        fabio is not installed; or the first file that is damaged, compressed, or of another shape or type.
    """
    try:
        import fabio.edfimage  # noqa: F401
    except ImportError:
        raise TomoscaleError(f"{paths[0]}: EDF needs fabio; pip install 'tomoscale[formats]'") from None
    logging.getLogger("fabio").setLevel(logging.CRITICAL)  # what is wrong is said below, in one line

    rehearse("edf", paths)
    file: list[int] = []
    offsets: list[int] = []
    first: tuple[tuple[int, ...], np.dtype] | None = None
    for number, path in enumerate(paths):
        for offset, shape, dtype in describe(path):
            first = first or (shape, dtype)
            if (shape, dtype) != first:
                raise TomoscaleError(
                    f"{path}: {show(shape)} {dtype.name}; expected {show(first[0])} {first[1].name} as in "
                    f"{paths[0].name}"
                )
            file.append(number)
            offsets.append(offset)
    assert first is not None
    (rows, columns), dtype = first
    return Scan(
        Raw(
            tuple(map(str, paths)),
            np.array(file, np.int32),
            np.array(offsets, np.int64),
            (rows, columns),
            dtype,
        )
    )


def describe(path: Path, dataset: None = None) -> list[tuple[int, tuple[int, ...], np.dtype]]:
    """Return offset, shape and type of the images of a file, after checking that it holds them."""
    from fabio.edfimage import EdfImage

    with opened(path) as file:
        head, size = file.read(512), file.seek(0, 2)
    if not size:
        raise TomoscaleError(f"{path}: empty file; expected EDF")
    if not head.lstrip().startswith(b"{"):
        raise TomoscaleError(f"{path}: not an EDF file (starts with {head[:4]!r})")
    try:
        image = EdfImage().read(str(path))
        frames = list(image._frames)
        image.close()
    except Exception as error:  # fabio raises many kinds
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise TomoscaleError(f"{path}: its EDF header cannot be read: {text}") from None
    if not frames:
        raise TomoscaleError(f"{path}: an EDF file without any image")
    return [_place(path, f, size, f"{path}: image {n + 1}") for n, f in enumerate(frames)]


def _place(path: Path, frame: Any, size: int, where: str) -> tuple[int, tuple[int, ...], np.dtype]:
    if frame.bfname is not None:
        raise TomoscaleError(
            f"{where}: its pixels lie in another file ({Path(frame.bfname).name}), which is not read"
        )
    if frame._data_compression is not None:
        raise TomoscaleError(
            f"{where}: compressed ({frame._data_compression}) EDF is not read; expected plain pixels"
        )
    shape = sized(frame.shape, where)
    if len(shape) != 2:
        raise TomoscaleError(f"{where}: has shape {shape}; expected (row, column)")
    numeric(frame._dtype, where)
    dtype = frame._dtype.newbyteorder(">" if frame.swap_needed() == np.little_endian else "<")
    nbytes = shape[0] * shape[1] * dtype.itemsize
    if frame.start + nbytes > size:
        raise TomoscaleError(
            f"{where}: truncated: pixels up to byte {frame.start + nbytes}, and the file has "
            f"{size}; copy it again"
        )
    return frame.start, shape, dtype
