"""HDF5 and NeXus: a dataset as frames, with the darks, flats and angles that lie beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tomoscale import store
from tomoscale.blocks import Window, shape_of
from tomoscale.errors import TomoscaleError
from tomoscale.sources import hdf5_chunks, roles
from tomoscale.sources.frames import Frames, Scan, numeric, show, sized
from tomoscale.sources.hdf5_links import NONE, datasets, lookup, open_file, opened_part, prove
from tomoscale.sources.rehearsal import rehearse
from tomoscale.sources.views import joined


def open_hdf5(paths: Sequence[Path], dataset: str | None = None, role: roles.Role = "frames") -> Scan:
    """
    Return a dataset of one HDF5 file, or of a series of files, as frames.

    Parameters
    ----------
    paths : sequence of Path
        In the order of the frames.
    dataset : str, optional
        Path of the dataset; not needed where a file holds only one with three axes.

    role : {"frames", "dark", "flat"}
        Which images are meant where there is an image key.

    Raises
    ------
    TomoscaleError
        No or several candidates (listed), or a dataset that reads other files (external storage or
        links, virtual sources outside the folder), misses its filter, or was never written.
    """
    rehearse("hdf5", paths, dataset)
    found = [describe(path, dataset) for path in paths]
    names = [str(p) for p in paths]
    frames = joined([f.frames for f in found], names)
    key = roles.in_a_row(f.key for f in found)
    omega = roles.in_a_row(f.angles for f in found)
    if key is not None:
        return roles.by_key(frames, key, omega, names[0], role)
    dark = next((f.dark for f in found if f.dark is not None), None)
    flat = next((f.flat for f in found if f.flat is not None), None)
    return Scan(frames, dark, flat, omega if omega is not None and len(omega) == frames.shape[0] else None)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Frames):
    """A dataset with three axes, or with two as a single frame."""

    direct = True

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    filtered: bool = False
    others: tuple[str, ...] = ()
    """Files that a virtual dataset reads."""
    lost: np.ndarray = field(default_factory=lambda: NONE)
    """Numbers of frames that were never written."""

    @property
    def held(self) -> int:
        chunk = int(np.prod(self.chunks, dtype=np.int64)) * self.dtype.itemsize
        return 2 * chunk if self.filtered else 0

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path, *self.others)

    def read(self, window: Window) -> np.ndarray:
        out = np.empty(shape_of(window), self.dtype)
        if self.filtered:
            hdf5_chunks.load_plugins()
        try:
            with open_file(self.path) as file:
                dataset = file[self.name]
                chosen = window if dataset.ndim == 3 else window[1:]
                hdf5_chunks.read(dataset, chosen, out if dataset.ndim == 3 else out[0], opened_part)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, TomoscaleError):
                raise
            frames = f"frames {window[0].start} to {window[0].stop - 1}"
            raise TomoscaleError(f"{self.path}: {self.name}: {frames} cannot be read: {error}") from None
        return out

    def unwritten(self) -> np.ndarray:
        return self.lost


@dataclass(frozen=True)
class _Found:
    """What one file holds."""

    frames: store.Volume
    dark: store.Volume | None
    flat: store.Volume | None
    key: np.ndarray | None
    angles: np.ndarray | None


def describe(path: Path, name: str | None) -> _Found:
    """Return what one file holds; nothing but short lists is read."""
    try:
        return _described(path, name)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # HDF5 raises all of them
        if isinstance(error, TomoscaleError):
            raise
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise TomoscaleError(f"{path}: damaged, or of a kind that is not read: {text}") from None


def _described(path: Path, name: str | None) -> _Found:
    with open_file(path) as file:
        known, outside = datasets(file)
        name = lookup(file, name, path) if name else _only(known, outside, path)
        if name not in known:
            known = {**known, name: file[name]}
        frames = _dataset(path, known[name], name)
        key = _near(known, name, roles.KEY, frames.shape[0])
        count = frames.shape[0] if key is None else int((_numbers(key) == roles.PROJECTION).sum())
        angle = _near(known, name, roles.ANGLES, frames.shape[0])
        angle = angle if angle is not None else _near(known, name, roles.ANGLES, count)
        angles = None
        if angle is not None:
            unit = angle.attrs.get("units", "")
            unit = unit.decode(errors="replace") if isinstance(unit, bytes) else str(unit)
            angles = roles.degrees(_numbers(angle), unit, f"{path}: {angle.name}")
        dark, flat = (_beside(path, known, name, names, frames) for names in (roles.DARK, roles.FLAT))
        return _Found(
            frames, dark, flat, None if key is None else np.asarray(_numbers(key), np.int64), angles
        )


def _numbers(dataset: Any) -> np.ndarray:
    """Return all numbers of a short dataset."""
    out = np.empty(dataset.shape, dataset.dtype)
    hdf5_chunks.read(dataset, tuple(slice(0, n) for n in dataset.shape), out, opened_part)
    return out


def _dataset(path: Path, dataset: Any, name: str) -> Dataset:
    """Describe a dataset after proving that all of it can be read from here."""
    where = f"{path}: {name}"
    if dataset.dtype.names or dataset.ndim not in (2, 3):
        raise TomoscaleError(
            f"{where}: has shape {dataset.shape} {dataset.dtype}; expected (frame, row, column) numbers"
        )
    dtype = numeric(dataset.dtype, where)
    sized(dataset.shape, where)
    proof = prove(path, dataset)
    chunks = dataset.chunks or (1, *dataset.shape[-2:])
    return Dataset(
        path=str(path),
        name=name,
        shape=(1,) * (3 - dataset.ndim) + tuple(map(int, dataset.shape)),
        dtype=dtype,
        chunks=((1,) * (3 - len(chunks)) + tuple(map(int, chunks))),
        filtered=proof.filtered,
        others=proof.files,
        lost=proof.lost,
    )


def _only(known: Mapping[str, Any], outside: Mapping[str, str], path: Path) -> str:
    """Return the one dataset that can be meant, or list the candidates."""
    numbers = {n: d for n, d in known.items() if d.dtype.kind in "iuf" and d.size > 1}
    extra = {*roles.DARK, *roles.FLAT}
    thick = [n for n, d in numbers.items() if d.ndim == 3]
    stacks = [n for n in thick if PurePosixPath(n).name not in extra] or thick
    if len(stacks) == 1:
        return stacks[0]
    if not stacks and len(numbers) == 1 and (only := next(iter(numbers))) and numbers[only].ndim == 2:
        return only
    if stacks:
        several = roles.listed(f"{n} ({show(known[n].shape)} {known[n].dtype})" for n in sorted(stacks))
        raise TomoscaleError(
            f"{path}: several datasets could be the frames: {several}; choose one with --dataset "
            f"or FILE::NAME"
        )
    if outside:
        links = roles.listed(f"{n} -> {t}" for n, t in sorted(outside.items()))
        raise TomoscaleError(
            f"{path}: only links to other files, which are not followed ({links}); convert those "
            f"files instead"
        )
    shown = (
        roles.listed(f"{n} ({show(d.shape) or 'scalar'} {d.dtype})" for n, d in sorted(known.items()))
        or "none"
    )
    raise TomoscaleError(f"{path}: no dataset with three axes (frame, row, column); its datasets: {shown}")


def _near(known: Mapping[str, Any], frames: str, names: Sequence[str], length: int) -> Any:
    """Return the list of numbers of a name that lies nearest to the frames, in the same entry."""
    home = PurePosixPath(frames).parent.parts

    def shared(name: str) -> int:
        parts = PurePosixPath(name).parent.parts
        return next(
            (i for i, (a, b) in enumerate(zip(home, parts, strict=False)) if a != b),
            min(len(home), len(parts)),
        )

    needed = min(2, len(home))  # the root and the entry
    fitting = [
        n
        for n, d in known.items()
        if PurePosixPath(n).name in names
        and d.shape == (length,)
        and d.dtype.kind in "iuf"
        and shared(n) >= needed
    ]
    if not fitting:
        return None
    nearest = min(fitting, key=lambda n: (-shared(n), names.index(PurePosixPath(n).name), n))
    prove(Path(known[nearest].file.filename), known[nearest])
    return known[nearest]


def _beside(
    path: Path, known: Mapping[str, Any], frames: str, names: Sequence[str], like: Dataset
) -> store.Volume | None:
    """Return the dark or flat stack that lies in the same group as the frames."""
    for name in names:
        found = known.get(str(PurePosixPath(frames).parent / name))
        if found is not None and found.ndim in (2, 3) and found.shape[-2:] == like.shape[1:] and found.size:
            return _dataset(path, found, found.name)
    return None
