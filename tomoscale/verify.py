"""Hold what is stored against its manifest, and make damaged blocks again."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tomoscale import journal, metadata, passes, store, worker
from tomoscale.chunks import ChunkFiles, Stored, measure
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.operation import command
from tomoscale.progress import Progress, human_bytes
from tomoscale.result import Result, stored_chunks


class Damage(NamedTuple):
    """An object that is not what the manifest says, and in which way."""

    array: str
    key: str
    reason: str


@command("verify")
def verify(path: Path, *, quick: bool = False, repair: bool = False, as_json: bool = False) -> Any:
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
    arrays = _arrays(path)
    damaged, n_objects, n_bytes = find_damage(path, arrays, quick=quick)
    if damaged and repair:
        again = repair_blocks(path, damaged)
        damaged, n_objects, n_bytes = find_damage(path, arrays, quick=quick)
        if not damaged:
            return _report(path, [], n_objects, n_bytes, as_json, f", {again} blocks made again")
    if damaged and not as_json:
        listed = "; ".join(f"{d.array}/{d.key}: {d.reason}" for d in damaged[:20])
        more = f" and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise DamagedError(f"{path}: {len(damaged)} of {n_objects} objects are damaged: {listed}{more}")
    return _report(path, damaged, n_objects, n_bytes, as_json)


def find_damage(path: Path, arrays: list[str], *, quick: bool) -> tuple[list[Damage], int, int]:
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

    Returns
    -------
    damaged : list of Damage
        What does not match.
    n_objects, n_bytes : int
        What was looked at.
    """
    wanted = [(name, o) for name in arrays for o in journal.read_manifest(path / name).values()]
    n_bytes = sum(o.length for _, o in wanted)
    damaged: list[Damage] = []
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
        Progress(f"verify {path.name}", len(wanted), block_bytes=n_bytes / max(1, len(wanted))) as progress,
    ):
        for found in threads.map(lambda w: _compare(path, *w, quick=quick), wanted):
            progress.advance()
            if found:
                damaged.append(found)
    return damaged, len(wanted), n_bytes


def _compare(path: Path, name: str, wanted: Stored, *, quick: bool) -> Damage | None:
    file = path / name / wanted.key
    try:
        length = file.stat().st_size
        if length != wanted.length:
            return Damage(name, wanted.key, f"{length} bytes, {wanted.length} were written")
        if not quick and measure(file).crc != wanted.crc:
            return Damage(name, wanted.key, "its bytes have changed")
    except FileNotFoundError:
        return Damage(name, wanted.key, "missing")
    except OSError as error:
        return Damage(name, wanted.key, f"cannot be read: {error.strerror}")
    return None


def _arrays(path: Path) -> list[str]:
    """Return the arrays of a complete result."""
    if not path.is_dir():
        raise TomoscaleError(f"{path}: does not exist or is no Zarr directory")
    record = metadata.attributes_of(path).get("tomoscale")
    if record is None:
        raise TomoscaleError(
            f"{path}: not a result of tomoscale; only those have a manifest to verify against"
        )
    if not record.get("complete"):
        raise TomoscaleError(f"{path}: its run is not finished; run the same command again to go on")
    return sorted(record["arrays"])


def _report(
    path: Path, damaged: list[Damage], n_objects: int, n_bytes: int, as_json: bool, more: str = ""
) -> Any:
    if as_json:
        listed = [d._asdict() for d in damaged]
        return {"path": str(path), "objects": n_objects, "bytes": n_bytes, "damaged": listed}
    return f"{path}: {n_objects} objects, {human_bytes(n_bytes)}: intact{more}"


# ---------------------------------------------------------------- repair


def repair_blocks(path: Path, damaged: list[Damage]) -> int:
    """
    Compute the blocks of damaged objects again and write them in place.

    Parameters
    ----------
    path : Path
        The result.
    damaged : list of Damage
        What to make again.

    Returns
    -------
    int
        Number of blocks made.

    Raises
    ------
    TomoscaleError
        The inputs are not there any more, or are not what they were.
    """
    result = Result.of(_made_again(path))
    manifests = {name: journal.read_manifest(path / name) for name in result.arrays}
    files = {name: _files(path / name, array) for name, array in result.arrays.items()}
    bad = {(d.array, d.key) for d in damaged}
    graph = result.graph()
    small = dict(result.small)
    for key, facts in result.needed_first().items():
        kept = passes.known(graph, facts)
        gathering = passes.Gathering(facts)
        for i, at in enumerate(gathering.indices if kept is None else ()):
            gathering.add(i, worker.compute(graph, [(facts["once"].name, *at)])[0])
        passes.place(graph, key, facts, gathering.value if kept is None else kept)
    small |= {name: graph[(a.name,) + (0,) * a.ndim] for name, a in result.once.items()}
    count = 0
    for name, array in small.items():
        if any(d.array == name for d in damaged):
            manifests[name].update({o.key: o for o in files[name].write((0,) * array.ndim, array)})
            count += 1
    for one in result.passes:
        for index in np.ndindex(*one.grid):
            places = worker.places_of(one, files, index)
            if any((p.field, k) in bad for p in places for k in p.keys()):
                fields = worker.compute(graph, [(a.name, *index) for a in one.arrays.values()])
                for place, field in zip(places, fields, strict=True):
                    manifests[place.field].update({o.key: o for o in place.files.write(place.start, field)})
                count += 1
    for name, objects in manifests.items():
        objects["zarr.json"] = measure(path / name / "zarr.json", "zarr.json")
        journal.write_manifest(path / name, objects.values())
    return count


def _files(folder: Path, array: Any) -> ChunkFiles:
    """Return the files of an array; its metadata are written again if they are damaged."""
    try:
        files = ChunkFiles.of(folder, metadata.array_info(folder))
    except TomoscaleError:
        files = None
    if files is None or files.shape != array.shape:
        return store.create_array(folder, array.shape, array.dtype, stored_chunks(array))
    return files


def _made_again(path: Path) -> Any:
    """Plan the result once more, from its own record, and make sure that its inputs are the same."""
    step = metadata.attributes_of(path)["tomoscale"]["history"][-1]
    module, _, name = step["operation"].rpartition(".")
    function: Any = None
    if module.isidentifier():
        function = getattr(importlib.import_module(f"tomoscale.{module}"), name, None)
    if not hasattr(function, "command"):
        raise TomoscaleError(f"{path}: made by {step['operation']}, which cannot be repeated")
    wanted = set(inspect.signature(function).parameters) - set(step["parameters"])
    volumes = {n: _input(path, n, record) for n, record in step["inputs"].items() if n in wanted}
    result = function(**volumes, **step["parameters"])
    now = json.loads(json.dumps(Result.of(result).origin.inputs))
    for name, record in step["inputs"].items():
        if now.get(name) != record:
            raise TomoscaleError(f"{path}: its input {name} has changed since; it cannot be made again")
    return result


def _input(path: Path, name: str, record: dict[str, Any]) -> Any:
    """Open an input where it was."""
    if "path" not in record:
        raise TomoscaleError(f"{path}: its input {name} was an array in memory; it cannot be made again")
    volume = store.open_volume(record["path"])
    return store.crop(volume, record["roi"]) if "roi" in record else volume
