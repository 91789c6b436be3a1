"""
Where scans come from: TIFF, HDF5 and NeXus, EDF, NumPy and Zarr, one module per format.

`open_source` reads headers only. What it returns can be read window by window in any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tomoscale import store
from tomoscale.errors import TomoscaleError
from tomoscale.sources import names, roles
from tomoscale.sources.frames import Frames, Scan, show
from tomoscale.sources.views import (
    Cropped,
    Gridded,
    Joined,
    Selected,
    files_of,
    held_by,
    joined,
    unwritten_of,
)

__all__ = [
    "Cropped",
    "Frames",
    "Gridded",
    "Joined",
    "Scan",
    "Selected",
    "files_of",
    "held_by",
    "open_source",
    "show",
    "stack_of",
    "unwritten_of",
]

Paths = str | Path | Sequence[str | Path]


def open_source(paths: Paths, dataset: str | None = None, role: roles.Role = "frames") -> Scan:
    """
    Open what users call a scan.

    Parameters
    ----------
    paths : str, Path or sequence of them
        A file; a folder of files or a pattern, sorted by number; several files, sorted by number; several
        folders or patterns, one after the other. `FILE::DATASET` names a dataset with its file.
    dataset : str, optional
        The dataset of an HDF5 file, or the member of an .npz archive, that holds the frames.

    role : {"frames", "dark", "flat"}
        Which images are meant where a file holds several kinds under one image key.

    Returns
    -------
    Scan
        Frames, and the dark, flat and omega found with them, or None.

    Raises
    ------
    TomoscaleError
        Files that are missing, damaged, or do not fit together.

    Examples
    --------
    >>> open_source("nowhere/f_*.tif")
    Traceback (most recent call last):
    ...
    tomoscale.errors.TomoscaleError: nowhere/f_*.tif: no file matches this pattern
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise TomoscaleError("no source given; expected files, a folder, or a pattern")
    if len(given) == 1:
        source, _, inner = str(given[0]).partition("::")
        return _scan(*names.expand(source), inner or dataset, role)
    if all(Path(p).is_file() for p in given):
        return _scan(*names.series([Path(p) for p in given]), dataset, role)
    scans = [open_source(p, dataset, role) for p in given]
    omega = roles.in_a_row(s.omega for s in scans)
    frames = joined([s.frames for s in scans], [str(p) for p in given])
    return Scan(frames, scans[0].dark, scans[0].flat, omega)


def _scan(kind: str, paths: list[Path], dataset: str | None, role: roles.Role) -> Scan:
    """Open files of one format."""
    if dataset and kind not in ("hdf5", "npz"):
        raise TomoscaleError(f"{paths[0]}: --dataset {dataset} is for HDF5 and .npz files; this is {kind}")
    if kind == "tiff":
        from tomoscale.sources.tiff import open_tiff

        return open_tiff(paths)
    if kind == "hdf5":
        from tomoscale.sources.hdf5 import open_hdf5

        return open_hdf5(paths, dataset, role)
    if kind == "edf":
        from tomoscale.sources.edf import open_edf

        return open_edf(paths)
    if kind == "zarr":
        from tomoscale.sources.zarr_group import open_zarr

        return open_zarr(paths[0])
    if kind == "npy":
        from tomoscale.sources.numpy_files import open_npy

        return open_npy(paths)
    from tomoscale.sources.npz_files import open_npz

    return open_npz(paths, dataset, role)


def stack_of(
    path: str | Path, role: Literal["dark", "flat"], shapes: Sequence[tuple[int, int]]
) -> store.Volume:
    """
    Open the dark or flat frames that belong to a scan.

    Parameters
    ----------
    path : str or Path
        What `open_source` takes; of a scan with an image key, its darks (or flats) are meant.
    role : {"dark", "flat"}
        Which of them.
    shapes : sequence of (int, int)
        Rows and columns that fit the scan.
    """
    scan = open_source(path, role=role)
    found: store.Volume = getattr(scan, role) or scan.frames
    if found.shape[1:] not in shapes:
        wanted = " or ".join(map(show, shapes))
        raise TomoscaleError(
            f"{path}: {role} has {show(found.shape[1:])} pixels, frames have {wanted}; crop the {role}"
        )
    return found
