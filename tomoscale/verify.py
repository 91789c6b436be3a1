"""Hold what is stored against its manifest, and make damaged blocks again."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import stat
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tomoscale import blocks, cluster, manifest, metadata, run, store
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.grid import spans
from tomoscale.journal import Job
from tomoscale.objects import Stored, measure
from tomoscale.operation import command
from tomoscale.plan import check_place
from tomoscale.progress import Progress, human_bytes
from tomoscale.record import record_of
from tomoscale.result import Result

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
    if repair and _is_being_repaired(real):
        _go_on(real, quiet=quiet)
    arrays = _arrays(real)
    damaged, n_objects, n_bytes = find_damage(real, arrays, quick=quick, quiet=quiet)
    repaired = ""
    if damaged and repair:
        make_again(real, damaged, quiet=quiet)
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
    wanted += _tables(path)
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
                if found and found.name not in {d.name for d in damaged if d.key == manifest.FILE}:
                    damaged.append(found)
    return damaged, len(wanted), n_bytes


def _tables(path: Path) -> list[tuple[str, Stored]]:
    """Return the table beside a result, as its record has it."""
    try:
        listed = metadata.attributes_of(path).get("tomoscale", {}).get("tables", {}).values()
        return [("", Stored(f"../{path.with_suffix('.parquet').name}", *map(int, table))) for table in listed]
    except (TomoscaleError, AttributeError, TypeError, ValueError):
        return []  # that the attributes are damaged is found elsewhere


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


# ---------------------------------------------------------------- repair


def make_again(path: Path, damaged: list[Damage], *, quiet: bool = False) -> None:
    """
    Compute what is damaged again.

    The result becomes an unfinished one that holds all that is intact, and its run goes on: on the workers, with
    progress, and, if it is stopped, by `verify --repair` or by the command that made the result.

    Parameters
    ----------
    path : Path
        The result.
    damaged : list of Damage
        What to make again.
    quiet : bool
        Show neither plan nor progress.

    Raises
    ------
    TomoscaleError
        The inputs are not there any more, or are not what they were.
    """
    with (
        cluster.current() as workers,
        blocks.planned_for(workers.block_bytes, workers.slots, workers.most_block_bytes),
    ):
        bad = {d.name for d in damaged}
        linked = next((d.name for d in damaged if d.reason == LINKED), None)
        if linked:
            raise TomoscaleError(f"{path / linked}: {LINKED}")
        if "zarr.json" in bad:
            raise TomoscaleError(
                f"{path}: the record of how it was made (zarr.json) is damaged; run its command again with --overwrite"
            )
        made = _made_again(path, (record_of(path) or {}).get("history", [])[-1:])
        result = Result.of(made)
        header = result.header()
        intact = {
            name: [o for o in _recorded(path / name) if f"{name}/{o.key}" not in bad]
            for name, array in header["arrays"].items()
            if _is_laid_out(path / name, array)
        }
        check_place(path, [])
        Job(path.absolute()).reopen(header, intact)
        run.write(made, path, quiet=quiet, connection=workers)


def _is_laid_out(folder: Path, array: dict[str, Any]) -> bool:
    """Tell whether an array is stored as it would be today: chunks of another layout must not stay among new ones."""
    try:
        info = metadata.array_info(folder)
    except TomoscaleError:
        return False
    return [list(info.shape), str(info.dtype), list(info.chunks)] == [
        array["shape"],
        array["dtype"],
        array["chunks"],
    ]


def _recorded(array: Path) -> list[Stored]:
    """Return the objects of an array that its manifest lists; none if that is damaged."""
    try:
        return [o for o in manifest.read(array).values() if o.key != "zarr.json"]
    except DamagedError:
        return []


def _is_being_repaired(path: Path) -> bool:
    """Tell whether a result is an unfinished one because its repair was stopped."""
    return not path.exists() and Job(path.absolute()).is_reopened


def _go_on(path: Path, *, quiet: bool) -> None:
    """Go on with a repair that was stopped."""
    with (
        cluster.current() as workers,
        blocks.planned_for(workers.block_bytes, workers.slots, workers.most_block_bytes),
    ):
        header = metadata.read_json(Job(path.absolute()).folder / "job.json")
        run.write(_made_again(path, [header]), path, quiet=quiet, connection=workers)


def _made_again(path: Path, history: list[dict[str, Any]]) -> Any:
    """Plan the result once more, from the last step of its record, and make sure that its inputs are the same."""
    if not history:
        raise TomoscaleError(f"{path}: does not say how it was made; it cannot be made again")
    step = {"parameters": {}, "inputs": {}, "versions": {}, **history[-1]}
    module, _, name = step["operation"].rpartition(".")
    function: Any = None
    if module.isidentifier():
        function = getattr(importlib.import_module(f"tomoscale.{module}"), name, None)
    # A record that was tampered with must not make a command act: only operations, which plan and write nothing.
    if not hasattr(function, "command") or getattr(function, "acts", False):
        raise TomoscaleError(f"{path}: made by {step['operation']}, which cannot be repeated")
    wanted = set(inspect.signature(function).parameters) - set(step["parameters"])
    volumes = {n: _input(path, n, record) for n, record in step["inputs"].items() if n in wanted}
    result = function(**volumes, **step["parameters"])
    now = json.loads(json.dumps(Result.of(result).made_by()))
    for name, record in step["inputs"].items():
        if now["inputs"].get(name) != record:
            raise TomoscaleError(f"{path}: its input {name} has changed since; it cannot be made again")
    newer = [f"{n} {v}" for n, v in now["versions"].items() if step["versions"].get(n) != v]
    if newer:
        warnings.warn(
            f"{path}: its damaged blocks are made with other versions than the rest: {', '.join(newer)}"
        )
    return result


def _input(path: Path, name: str, record: dict[str, Any]) -> Any:
    """Open an input where it was."""
    if "path" not in record:
        raise TomoscaleError(f"{path}: its input {name} was in memory; it cannot be made again")
    volume = store.open_volume(record["path"])
    return store.crop(volume, record["roi"]) if "roi" in record else volume
