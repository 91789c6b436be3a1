"""Zarr to TIFF: one file per frame, for programs that read nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tomoscale import blocks, cluster, metadata, store
from tomoscale.errors import TomoscaleError, bad_input
from tomoscale.operation import command
from tomoscale.parameters import Volume
from tomoscale.plan import check_place
from tomoscale.progress import Progress, human_bytes
from tomoscale.schedule import Task, execute
from tomoscale.sources.tiff_header import read_pages

RECORD = ".tomoscale.json"


def is_export(paths: Sequence[str | Path]) -> bool:
    """
    Tell whether `convert PATHS...` means Zarr to TIFF: a Zarr, and then a folder that is none.

    Examples
    --------
    >>> is_export(["frames/", "scan.zarr"]), is_export(["scan.zarr", "frames/"])
    (False, True)
    """
    if len(paths) != 2 or Path(paths[-1]).suffix == ".zarr":
        return False
    first = Path(paths[0])
    return ".zarr" in (first.suffix, *(p.suffix for p in first.parents)) or (
        first.is_dir() and metadata.node_type(first) is not None
    )


@command("export")
def to_tiff(
    volume: Volume,
    folder: Path,
    *,
    compression: Literal["none", "zlib"] = "none",
    overwrite: bool = False,
    how: Any = None,
) -> Path:
    """
    Write every frame of a scan, or every slice of a volume, as a TIFF file.

    The same call goes on where an earlier one was stopped: files that are complete are kept.

    Parameters
    ----------
    volume : (frame, row, column)
        A scan or a volume; `scan.zarr/dark` for its darks.
    folder : path
        Gets `frame_0000.tif` and so on; must be empty, or hold an earlier export of the same volume.
    compression : {"none", "zlib"}
        `none` is the fastest to read; `zlib` is lossless as well.
    overwrite : bool
        Replace the frames of another export.
    how : object, optional
        How to run it: `scheduler`, `workers`, `threads`, `memory_bytes`, `overwrite`, `dry_run`, `quiet`; by
        default on the session's workers, without a word.

    Returns
    -------
    path
        The folder.
    """
    source, folder = store.as_volume(volume), Path(folder)
    if len(source.shape) not in (2, 3):
        raise TomoscaleError(f"export: array of shape {source.shape}; expected (frame, row, column)")
    if getattr(how, "roi", None):
        raise TomoscaleError(
            "export: --roi is not for TIFF files; convert the part to a Zarr, and export that"
        )
    if getattr(how, "dry_run", False):
        print(_plan(source, compression), file=sys.stderr)
        return folder
    overwrite = overwrite or getattr(how, "overwrite", False)
    with bad_input():
        record = {"source": source.identity(), "compression": compression}
    path = record["source"].get("path")
    if path:
        check_place(folder, [store.outermost_group(Path(path)) or Path(path)])
    _prepare(folder, record, overwrite)
    with _workers(how) as workers:
        tasks = _tasks(source, folder, compression, workers.block_bytes)
        each = source.nbytes / max(1, len(tasks))
        quiet = getattr(how, "quiet", how is None)
        with Progress("export", len(tasks), block_bytes=each, quiet=quiet) as progress:
            outcome = execute(tasks, workers, lambda task, n: progress.advance(worked=n > 0))
    outcome.check(f"export of {path or 'an array in memory'}")
    return folder


def _workers(how: Any) -> Any:
    if how is None:
        return cluster.current(None)
    memory = getattr(how, "memory_bytes", None)
    access = getattr(how, "access", cluster.LOCAL)
    return cluster.connect(
        how.scheduler, workers=how.workers, threads=how.threads, memory=memory, access=access
    )


def _plan(source: store.Volume, compression: str) -> str:
    """Say what would be written."""
    n = source.shape[0] if source.ndim == 3 else 1
    frame = " x ".join(map(str, source.shape[-2:]))
    kind = "uncompressed" if compression == "none" else compression
    return (
        f"export\n  {n} TIFF files of {frame} {source.dtype}, {kind}; {human_bytes(source.nbytes)} of pixels"
    )


def _prepare(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Make the folder, or make sure that what lies there is of the same export."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise TomoscaleError(f"{folder}: cannot be created: {error.strerror}") from None
    path = folder / RECORD
    present = [p for p in folder.iterdir() if p.name != RECORD]
    before = metadata.read_json(path) if path.is_file() else None
    if before == record:
        return
    if present and before is None:  # raw frames, say: nothing of them is replaced
        raise TomoscaleError(f"{folder}: holds files that are no export; give an empty folder")
    if present and not overwrite:
        raise TomoscaleError(
            f"{folder}: holds another export; give an empty folder, or --overwrite to replace its frames"
        )
    for old in [*folder.glob("frame_*.tif"), *folder.glob(".frame_*.partial")]:
        old.unlink()
    store.write_json(path, json.loads(json.dumps(record)))


def _tasks(source: store.Volume, folder: Path, compression: str, allowed: int) -> list[Task]:
    """Return one call for every band of frames, of whole stored chunks if they fit."""
    n = source.shape[0] if source.ndim == 3 else 1
    frame = int(np.prod(source.shape[-2:], dtype=np.int64)) * source.dtype.itemsize
    depth = source.chunks[0] if source.ndim == 3 else 1
    fits = allowed // frame - 2  # one being encoded, and some chunks being decoded
    if fits < 1:
        raise TomoscaleError(
            f"export: a frame takes {human_bytes(frame)}, and a block may take "
            f"{human_bytes(allowed)}; more --memory"
        )
    digits = max(4, len(str(n - 1)))

    def task(span: slice) -> Task:
        arguments = (source, folder, span.start, span.stop, digits, compression)
        return Task(f"{span.start} to {span.stop - 1}", lambda: (write_tiffs, arguments))

    return [task(span) for span in blocks.spans(n, min(depth, fits))]


def write_tiffs(
    source: store.Volume, folder: Path, start: int, stop: int, digits: int = 4, compression: str = "none"
) -> int:
    """
    Write a range of frames as files, each whole or not at all; those that are complete are kept.

    Parameters
    ----------
    source : Volume
        Where the frames are.
    folder : Path
        Where the files go.
    start, stop : int
        Half-open range of frames.
    digits : int
        Of the number in the file names.
    compression : {"none", "zlib"}
        How the pixels are encoded.

    Returns
    -------
    int
        Files written.
    """
    from tifffile import imwrite

    paths = {k: folder / f"frame_{k:0{digits}d}.tif" for k in range(start, stop)}
    missing = [k for k, path in paths.items() if not _is_complete(path, source)]
    if not missing:
        return 0
    first, last = missing[0], missing[-1] + 1
    pixels = tuple(slice(0, n) for n in source.shape[-2:])
    band = source.read((slice(first, last), *pixels)) if source.ndim == 3 else source.read(pixels)[None]
    options: dict[str, Any] = {"photometric": "minisblack", "metadata": None, "software": "tomoscale"}
    if compression == "zlib":
        options |= {"compression": "zlib", "predictor": band.dtype.kind in "iu", "maxworkers": 1}
    for k in missing:
        temporary = folder / f".{paths[k].name}.{os.getpid()}.partial"
        imwrite(temporary, band[k - first], **options)
        temporary.replace(paths[k])
    return len(missing)


def _is_complete(path: Path, source: store.Volume) -> bool:
    """Tell whether a file holds one whole frame of the source."""
    if not path.is_file():
        return False
    try:
        pages = read_pages(path)
    except TomoscaleError:
        return False
    dtype = pages[0].dtype.newbyteorder("=")
    return len(pages) == 1 and pages[0].frame == source.shape[-2:] and dtype == source.dtype
