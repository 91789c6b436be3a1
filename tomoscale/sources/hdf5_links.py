"""What an HDF5 file points at: links followed inside the file only, and proof that a dataset can be read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tomoscale.errors import TomoscaleError
from tomoscale.sources import roles
from tomoscale.sources.frames import opened
from tomoscale.sources.hdf5_chunks import check_filters

MAX_LINKS = 200_000
MAX_HOPS = 32
MAX_FRAMES = 10_000_000
NONE = np.empty(0, np.int64)
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_file(path: str | Path) -> Any:
    """Open an HDF5 file for reading, or say in one line why not."""
    import h5py

    with opened(path) as file:
        head, size = file.read(8), file.seek(0, 2)
    if not size:
        raise TomoscaleError(f"{path}: empty file; expected HDF5")
    try:
        return h5py.File(path, "r", locking="best-effort")
    except (OSError, RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        if "truncated" in text:
            raise TomoscaleError(
                f"{path}: truncated: the file has {size} bytes and declares more; copy it again"
            ) from None
        if head != SIGNATURE and not h5py.is_hdf5(path):
            raise TomoscaleError(f"{path}: not an HDF5 file (starts with {head[:4]!r})") from None
        raise TomoscaleError(f"{path}: cannot be read as HDF5: {text}") from None


def datasets(file: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Return all datasets of a file by path, each once, and the links that lead out of it.

    Soft links are not walked: what they lead to is found where it lies.
    """
    import h5py

    found: dict[str, Any] = {}
    outside: dict[str, str] = {}
    seen = set()
    queue = [file["/"]]
    links = 0
    while queue:
        group = queue.pop(0)
        for name in group:
            links += 1
            if links > MAX_LINKS:
                raise TomoscaleError(
                    f"{file.filename}: more than {MAX_LINKS} links; name the frames with --dataset"
                )
            path = str(PurePosixPath(group.name) / name)
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                outside[path] = link.filename
                continue
            if not isinstance(link, h5py.HardLink):
                continue
            try:
                item = group[name]
            except (KeyError, OSError, RuntimeError, ValueError):
                continue  # of a kind or version that h5py does not read
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:
                continue
            seen.add(place)
            if isinstance(item, h5py.Group):
                queue.append(item)
            elif isinstance(item, h5py.Dataset) and item.shape and _has_type(item):  # a scalar is no frame
                found[path] = item
    return found, outside


def _has_type(dataset: Any) -> bool:
    """Tell whether NumPy knows the type of a dataset."""
    try:
        return dataset.dtype is not None
    except TypeError:
        return False


def lookup(file: Any, name: str, path: str | Path) -> str:
    """
    Return the place of a dataset, following soft links and refusing those that leave the file.

    Parameters
    ----------
    file : h5py.File
        Where to look.
    name : str
        Path of the dataset.
    path : str or Path
        Name of the file, for messages.
    """
    import h5py

    rest = [p for p in name.split("/") if p not in ("", ".")]
    here, hops = file["/"], 0
    while rest:
        step = rest.pop(0)
        link = here.get(step, getlink=True) if isinstance(here, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise TomoscaleError(
                f"{path}: {name}: a link to another file ({link.filename}), which is not followed; "
                f"convert that file instead"
            )
        if isinstance(link, h5py.SoftLink):
            hops += 1
            if hops > MAX_HOPS:
                raise TomoscaleError(f"{path}: {name}: its links form a loop")
            here = file["/"] if link.path.startswith("/") else here
            rest = [p for p in link.path.split("/") if p not in ("", ".")] + rest
            continue
        if not isinstance(link, h5py.HardLink):
            stacks = roles.listed(n for n, d in datasets(file)[0].items() if d.ndim in (2, 3))
            raise TomoscaleError(f"{path}: no dataset {name}; it holds {stacks or 'none'}")
        here = here[step]
    if not isinstance(here, h5py.Dataset) or here.shape is None:
        raise TomoscaleError(f"{path}: {name} is a group; expected a dataset, choose one with --dataset")
    return str(here.name)


@dataclass(frozen=True)
class Proof:
    """What was learnt of a dataset: whether it has filters, files that it reads, frames never written."""

    filtered: bool
    files: tuple[str, ...]
    lost: np.ndarray


def prove(path: Path, dataset: Any, depth: int = 0) -> Proof:
    """
    Hold back a dataset that reads foreign files, misses a filter, or claims what the file does not hold.

    Parameters
    ----------
    path : Path
        The file.
    dataset : h5py.Dataset
        Nothing of it is read.
    depth : int
        How many virtual datasets led here.
    """
    where = f"{path}: {dataset.name}"
    if dataset.external:
        raise TomoscaleError(
            f"{where}: its pixels lie in another file ({dataset.external[0][0]}), which is not read"
        )
    if dataset.is_virtual:
        return _prove_virtual(path, dataset, depth)
    filtered = check_filters(where, dataset)
    if dataset.chunks:
        return Proof(filtered, (), _never_written(dataset))
    import h5py

    compact = dataset.id.get_create_plist().get_layout() == h5py.h5d.COMPACT
    if not compact and dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
        raise TomoscaleError(f"{where}: claims {_bytes(dataset)}, and nothing of it was ever written")
    return Proof(False, (), NONE)


def _bytes(dataset: Any) -> str:
    size = float(math.prod(dataset.shape)) * dataset.dtype.itemsize
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def _never_written(dataset: Any) -> np.ndarray:
    """Return the frames of which a chunk is missing in the file: HDF5 would make them up."""
    grid = [-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
    present = dataset.id.get_num_chunks()
    if present == math.prod(grid):
        return NONE
    if dataset.shape[0] > MAX_FRAMES:
        raise TomoscaleError(
            f"{dataset.file.filename}: {dataset.name}: claims {_bytes(dataset)} in {math.prod(grid)} chunks, "
            f"and the file holds {present} of them"
        )
    count = np.zeros(grid[0], np.int64)

    def note(chunk: Any) -> None:
        count[chunk.chunk_offset[0] // dataset.chunks[0]] += 1

    dataset.id.chunk_iter(note)
    bands = np.flatnonzero(count < math.prod(grid[1:]))
    if dataset.ndim < 3:
        return np.zeros(1, np.int64)
    frames = (bands[:, None] * dataset.chunks[0] + np.arange(dataset.chunks[0])).ravel()
    return frames[frames < dataset.shape[0]]


def _prove_virtual(path: Path, dataset: Any, depth: int) -> Proof:
    """Prove the parts of a virtual dataset, which must lie in the folder of the file or below it."""
    where = f"{path}: {dataset.name}"
    if depth > 3:
        raise TomoscaleError(f"{where}: virtual datasets of virtual datasets; expected at most three of them")
    folder = path.resolve().parent
    covered = 0
    filtered = False
    files: dict[str, None] = {}
    lost = [NONE]
    known: dict[tuple[str, str], Proof] = {}
    for part in dataset.virtual_sources():
        target = path if part.file_name == "." else folder / part.file_name
        if "%" in part.file_name:
            raise TomoscaleError(
                f"{where}: a virtual dataset with a pattern ({part.file_name}); convert those files instead"
            )
        if not target.resolve().is_relative_to(folder):
            raise TomoscaleError(
                f"{where}: a virtual dataset that reads outside its folder ({part.file_name}), which "
                f"is refused"
            )
        if not target.is_file():
            raise TomoscaleError(
                f"{where}: a part of the virtual dataset is missing: {part.file_name}; put it beside "
                f"{path.name}"
            )
        key = (str(target), part.dset_name)
        if key not in known:
            with open_file(target) as file:
                known[key] = prove(target, file[lookup(file, part.dset_name, target)], depth + 1)
        proof = known[key]
        filtered |= proof.filtered
        covered += part.vspace.get_select_npoints()
        if target != path:
            files.update(dict.fromkeys((str(target), *proof.files)))
        if proof.lost.size:
            first, last = (bounds[0] for bounds in part.vspace.get_select_bounds())
            lost.append(np.arange(first, last + 1))
    if covered < math.prod(dataset.shape):
        raise TomoscaleError(
            f"{where}: a virtual dataset with holes: {covered} of {math.prod(dataset.shape)} "
            f"pixels have a source"
        )
    return Proof(filtered, tuple(files), np.unique(np.concatenate(lost)))


@contextlib.contextmanager
def opened_part(dataset: Any, part: Any) -> Iterator[Any]:
    """Open a dataset that a virtual one reads, as `prove` has found it."""
    path = Path(dataset.file.filename)
    if part.file_name == ".":
        yield dataset.file[lookup(dataset.file, part.dset_name, path)]
        return
    target = path.resolve().parent / part.file_name
    with open_file(target) as file:
        yield file[lookup(file, part.dset_name, target)]
