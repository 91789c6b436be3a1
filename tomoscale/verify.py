"""Hold what is stored against its manifest, and have damaged blocks made again."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tomoscale import manifest, store
from tomoscale import repair as _repair
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.grid import spans
from tomoscale.objects import Stored, measure
from tomoscale.operation import command
from tomoscale.progress import Progress, human_bytes
from tomoscale.record import record_of, tables_of

SHOWN = 20
"""Damaged objects that an error names."""
MANY = 4096
"""Objects handed to threads at a time."""
LINKED = "in a folder that is a link, which is not followed; move the folder there"


class Damage(NamedTuple):
    """An object that is not what the manifest says, and in which way; `array` is empty for the group itself."""

    array: str
    key: str
    reason: str

    @property
    def name(self) -> str:
        """Path of the object within the result."""
        return f"{self.array}/{self.key}".lstrip("/")


@command("verify")
def verify(
    path: Path, *, quick: bool = False, repair: bool = False, as_json: bool = False, quiet: bool = False
) -> Any:
    """
    Check every stored object of a result.

    Parameters
    ----------
    path : path
        A complete result of tomoscale.
    quick
        Look at presence and length only, not at the checksums.
    repair
        Compute the damaged blocks again, from the inputs and parameters that the result records.
    as_json
        Print the findings as JSON.
    quiet
        Show no progress.

    Returns
    -------
    str or dict
        What was found, if nothing is damaged or all is repaired.

    Raises
    ------
    DamagedError
        Objects are missing or changed; all are listed.
    TomoscaleError
        Not a complete result of tomoscale; or, with `repair`, its inputs are gone or changed.
    """
    real = Path(os.path.realpath(path))  # has the name of the table, and keeps its place during a repair
    if repair and _repair.is_stopped(real):
        _repair.go_on(real, quiet=quiet)
    arrays = _arrays(real)
    damaged, n_objects, n_bytes = find_damage(real, arrays, quick=quick, quiet=quiet)
    repaired = ""
    if damaged and repair:
        linked = next((d.name for d in damaged if d.reason == LINKED), None)
        if linked:
            raise TomoscaleError(f"{path / linked}: {LINKED}")
        _repair.make_again(real, {d.name for d in damaged}, quiet=quiet)
        repaired = f", {len(damaged)} of them made again"
        damaged, n_objects, n_bytes = find_damage(real, arrays, quick=quick, quiet=quiet)
    found = {
        "path": str(path),
        "objects": n_objects,
        "bytes": n_bytes,
        "damaged": [d._asdict() for d in damaged],
    }
    if damaged:
        listed = "; ".join(f"{d.name}: {d.reason}" for d in damaged[:SHOWN])
        more = f" and {len(damaged) - SHOWN} more, `--json` lists them" if len(damaged) > SHOWN else ""
        error = DamagedError(f"{path}: {len(damaged)} of {n_objects} objects are damaged: {listed}{more}")
        error.found = found if as_json else None
        raise error
    return found if as_json else f"{path}: {n_objects} objects, {human_bytes(n_bytes)}: intact{repaired}"


def find_damage(
    path: Path, arrays: list[str], *, quick: bool = False, quiet: bool = False
) -> tuple[list[Damage], int, int]:
    """
    Compare stored objects with the manifests.

    Parameters
    ----------
    path : Path
        The result.
    arrays : list of str
        Arrays to look at.
    quick : bool
        Compare presence and length only.
    quiet : bool
        Show no progress.

    Returns
    -------
    damaged : list of Damage
        What does not match.
    n_objects, n_bytes : int
        What was looked at.
    """
    damaged: list[Damage] = []
    wanted: list[tuple[str, Stored]] = []
    for node in ("", *arrays):  # the group's own manifest lists the metadata and the manifests of the arrays
        try:
            wanted += [(node, o) for o in manifest.read(path / node).values()]
        except DamagedError as error:
            damaged.append(Damage(node, manifest.FILE, str(error).rpartition(": ")[2]))
    wanted += [("", Stored(f"../{name}", *facts)) for name, facts in tables_of(path).items()]
    n_bytes = sum(o.length for _, o in wanted)
    each = n_bytes / max(1, len(wanted))
    real = functools.lru_cache(MANY)(os.path.realpath)
    compare = functools.partial(_compare, path, real, quick=quick)
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
        Progress(f"verify {path.name}", len(wanted), block_bytes=each, quiet=quiet) as progress,
    ):
        for few in spans(len(wanted), MANY):  # a bounded number of calls at a time
            for found in threads.map(compare, wanted[few]):
                progress.advance()
                if found and found.name == "zarr.json" and _is_listed(path):
                    continue  # levels joined since the manifest was read
                if found and found.name not in {d.name for d in damaged if d.key == manifest.FILE}:
                    damaged.append(found)
    return damaged, len(wanted), n_bytes


def _is_listed(path: Path) -> bool:
    """Tell whether the metadata of a group are those that its manifest lists by now: both change together."""
    try:
        is_file = stat.S_ISREG((path / "zarr.json").lstat().st_mode)
        return is_file and manifest.read(path)["zarr.json"] == measure(path / "zarr.json", "zarr.json")
    except (DamagedError, KeyError, OSError):
        return False


def _compare(
    path: Path, real: Callable[[Path], str], object: tuple[str, Stored], *, quick: bool
) -> Damage | None:
    node, wanted = object
    file = path / node / wanted.key
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            return Damage(node, wanted.key, "no regular file")
        if real(file.parent) != os.path.normpath(os.path.join(real(path), file.parent.relative_to(path))):
            return Damage(node, wanted.key, LINKED)
        length = found.st_size
        if length != wanted.length:
            return Damage(node, wanted.key, f"{length} bytes, {wanted.length} were written")
        if not quick and measure(file).crc != wanted.crc:
            return Damage(node, wanted.key, "its bytes have changed")
    except FileNotFoundError:
        return Damage(node, wanted.key, "missing")
    except OSError as error:
        return Damage(node, wanted.key, f"cannot be read: {error.strerror}")
    return None


def _arrays(path: Path) -> list[str]:
    """Return the arrays of a complete result."""
    if not path.is_dir():
        unfinished = path.with_name(path.name + store.INCOMPLETE).is_dir()
        why = (
            "its run is not finished; run the same command again"
            if unfinished
            else "does not exist or is no Zarr directory"
        )
        raise TomoscaleError(f"{path}: {why}")
    try:  # which outlives damage to the attributes
        listed = manifest.read(path)
        return sorted(k.removesuffix(f"/{manifest.FILE}") for k in listed if k.endswith(f"/{manifest.FILE}"))
    except DamagedError:
        record = record_of(path)
    if record is None:
        raise TomoscaleError(
            f"{path}: not a result of tomoscale; only those have a manifest to verify against"
        )
    if not record["complete"]:
        raise TomoscaleError(f"{path}: its run is not finished; run the same command again to go on")
    return sorted(record["arrays"])
