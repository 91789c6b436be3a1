"""Compute damaged blocks of a result again, from the inputs and parameters that it records."""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

from tomoscale import blocks, cluster, manifest, metadata, run, store
from tomoscale.cluster import Connection
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.journal import INTACT, Job
from tomoscale.objects import Stored
from tomoscale.plan import check_place
from tomoscale.record import added_steps, is_step, record_of
from tomoscale.result import Result


def make_again(path: Path, damaged: set[str], *, quiet: bool = False) -> None:
    """
    Compute what is damaged again.

    The result becomes an unfinished one that holds all that is intact, and its run goes on: on the workers, with
    progress, and, if it is stopped, by `verify --repair` or by the command that made the result.

    Parameters
    ----------
    path : Path
        The result.
    damaged : set of str
        Objects to make again, by their paths within it.
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
        if "zarr.json" in damaged:
            raise TomoscaleError(
                f"{path}: the record of how it was made (zarr.json) is damaged; run its command again with --overwrite"
            )
        history = (record_of(path) or {}).get("history", [])
        later = added_steps(history)
        added = [f"{name}/" for step in later for name in step["arrays"]]
        if not all(name.startswith(tuple(added)) for name in damaged):
            _make_rest_again(path, history[: len(history) - len(later)], damaged, later, workers, quiet)
            damaged = set(added)
        for step in later:
            if any(name.startswith(tuple(f"{n}/" for n in step["arrays"])) for name in damaged):
                run.write(_made_again(path, [step]), path, overwrite=True, quiet=quiet, connection=workers)


def _make_rest_again(
    path: Path,
    history: list[dict[str, Any]],
    damaged: set[str],
    later: list[dict[str, Any]],
    workers: Connection,
    quiet: bool,
) -> None:
    """Compute what is damaged of the arrays that the last step of a history made; those added later are gone then."""
    made = _made_again(path, history[-1:])
    result = Result.of(made)
    header = result.header()
    intact = {
        name: [o for o in _recorded(path / name) if f"{name}/{o.key}" not in damaged]
        for name, array in header["arrays"].items()
        if _is_laid_out(path / name, array)
    }
    check_place(path, [])
    Job(path.absolute()).reopen(header, intact, later)
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


def is_stopped(path: Path) -> bool:
    """Tell whether a result is an unfinished one because its repair was stopped."""
    return not path.exists() and Job(path.absolute()).is_reopened


def go_on(path: Path, *, quiet: bool = False) -> None:
    """Go on with a repair that was stopped."""
    with (
        cluster.current() as workers,
        blocks.planned_for(workers.block_bytes, workers.slots, workers.most_block_bytes),
    ):
        job = Job(path.absolute())
        header = metadata.read_json(job.folder / "job.json")
        later = _later(job)
        run.write(_made_again(path, [header]), path, quiet=quiet, connection=workers)
        for step in later:
            run.write(_made_again(path, [step]), path, overwrite=True, quiet=quiet, connection=workers)


def _later(job: Job) -> list[dict[str, Any]]:
    """Return the steps whose arrays are to be added again when a repair that was stopped is over."""
    steps = json.loads((job.folder / INTACT).read_bytes()).get("later", [])
    return [s for s in steps if is_step(s) and s.get("arrays")]


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
