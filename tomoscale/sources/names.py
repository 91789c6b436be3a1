"""Which files are meant, and in which order: by the number in their names."""

from __future__ import annotations

import glob
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tomoscale import metadata
from tomoscale.errors import TomoscaleError

FORMATS = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".nxs": "hdf5",
    ".nx": "hdf5",
    ".edf": "edf",
    ".npy": "npy",
    ".npz": "npz",
}
KNOWN = "TIFF (.tif), HDF5 (.h5, .hdf5, .nxs), EDF (.edf), NumPy (.npy, .npz), Zarr"


def format_of(path: Path) -> str | None:
    """Return the format that a path stands for, by its suffix; Zarr by what the folder holds."""
    if path.suffix.lower() == ".zarr" or (path.is_dir() and metadata.node_type(path)):
        return "zarr"
    if any(parent.suffix.lower() == ".zarr" for parent in path.parents):
        return "zarr"
    return FORMATS.get(path.suffix.lower())


def expand(source: str | Path) -> tuple[str, list[Path]]:
    """
    Return the format and the ordered files that a path, a folder or a pattern stands for.

    Parameters
    ----------
    source : str or Path
        A file, a folder of files, a Zarr, or a pattern with `*`, `?` or `[...]`.

    Returns
    -------
    tuple
        Name of the format and the paths.
    """
    path = Path(source)
    if path.is_dir() and format_of(path) != "zarr":
        return _folder(path)
    if path.exists() or format_of(path) == "zarr":
        return _format(path), [path]
    if glob.has_magic(str(source)):
        found = sorted(Path(p) for p in glob.iglob(str(source)))  # noqa: PTH207 (patterns may be absolute)
        if not found:
            raise TomoscaleError(f"{source}: no file matches this pattern")
        return series(found)
    raise TomoscaleError(f"{source}: does not exist")


def series(paths: Sequence[Path]) -> tuple[str, list[Path]]:
    """Return the format and the order of files given by name."""
    formats = {_format(p): p for p in paths}
    if len(formats) > 1:
        a, b = list(formats.values())[:2]
        raise TomoscaleError(f"{a.name} and {b.name} are of different formats; expected one series of files")
    return next(iter(formats)), in_order(paths)


def _format(path: Path) -> str:
    found = format_of(path)
    if found is None:
        raise TomoscaleError(
            f"{path}: format {path.suffix or 'without suffix'} is not read; known are {KNOWN}"
        )
    return found


def _folder(folder: Path) -> tuple[str, list[Path]]:
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()]
    known = [p for p in files if p.suffix.lower() in FORMATS]
    if not known:
        suffixes = ", ".join(sorted({p.suffix or p.name for p in files})[:5]) or "no files"
        raise TomoscaleError(f"{folder}: holds no frames ({suffixes}); expected {KNOWN}")
    kinds = Counter(FORMATS[p.suffix.lower()] for p in known)
    if len(kinds) > 1:
        counted = ", ".join(f"{n} {k}" for k, n in sorted(kinds.items()))
        raise TomoscaleError(
            f"{folder}: holds several formats ({counted}); give a pattern such as {folder}/*.tif"
        )
    return series(sorted(known))


def in_order(paths: Sequence[Path]) -> list[Path]:
    """
    Sort files by the number in their names, and refuse gaps and doubles.

    The number is the last one in the name that differs from file to file (of a name with a time behind
    the number: the last that counts without gaps).

    Examples
    --------
    >>> [p.name for p in in_order([Path("f_10.tif"), Path("f_9.tif"), Path("f_8.tif")])]
    ['f_8.tif', 'f_9.tif', 'f_10.tif']
    """
    if len(paths) < 2:
        return list(paths)
    cut = [re.split(r"(\d+)", p.name.removesuffix(p.suffix)) for p in paths]
    _refuse_different_names(paths, ["#".join(c[::2]) for c in cut])
    columns = list(zip(*([int(n) for n in c[1::2]] for c in cut), strict=True))
    varying = [c for c in columns if len(set(c)) > 1]
    numbers = next(
        (c for c in reversed(varying) if _counts(c)), varying[-1] if varying else (0,) * len(paths)
    )
    ordered = sorted(zip(numbers, paths, strict=True))
    for (a, first), (b, second) in itertools.pairwise(ordered):
        if a == b:
            raise TomoscaleError(
                f"{first} and {second}: two files with the number {a}; expected one per frame"
            )
    if not _counts(numbers):
        raise TomoscaleError(_gaps(ordered))
    return [p for _, p in ordered]


def _counts(numbers: Sequence[int]) -> bool:
    """Tell whether numbers are a range, each once."""
    return len(set(numbers)) == len(numbers) == max(numbers) - min(numbers) + 1


def _refuse_different_names(paths: Sequence[Path], texts: Sequence[str]) -> None:
    usual = Counter(texts).most_common(1)[0][0]
    for path, text in zip(paths, texts, strict=True):
        if text != usual:
            other = paths[texts.index(usual)]
            raise TomoscaleError(
                f"{path.name} and {other.name}: names that differ by more than a number; "
                "expected one series (give a pattern; darks and flats by --dark and --flat)"
            )


def _gaps(ordered: Sequence[tuple[int, Path]]) -> str:
    """Say which numbers are missing."""
    missing = []
    total = 0
    for (a, _), (b, _) in itertools.pairwise(ordered):
        if b - a > 1:
            total += b - a - 1
            missing.append(f"{a + 1}" if b - a == 2 else f"{a + 1} to {b - 1}")
    shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
    first, last = ordered[0][1], ordered[-1][1].name
    plural = "frame is" if total == 1 else "frames are"
    return (
        f"{first.parent}: {total} {plural} missing between {first.name} and {last}: {shown}; "
        "a scan with a gap has no angles: find the files, or convert the part before and after"
    )
