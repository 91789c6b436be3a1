"""A search for parameters on a part of the data: a table of what came out, and a picture for each value."""

from __future__ import annotations

import functools
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from tomoscale import how, presets
from tomoscale.errors import TomoscaleError, bad_input
from tomoscale.how import HowTried
from tomoscale.parameters import Volume, members
from tomoscale.progress import human_bytes

HELD_BYTES = 12
"""What a picture needs for a voxel besides the voxel: its label, and room to work."""
USABLE = 0.7


def values(function: Callable[..., Any], words: Sequence[str]) -> dict[str, list[Any]]:
    """
    Read what is to be tried: `seed_threshold=20,40,80`.

    Parameters
    ----------
    function : callable
        The operation.
    words : sequence of str
        One for each parameter. Values that hold commas themselves are separated by a slash: `min_size=1,3,3/2,5,5`.

    Returns
    -------
    dict of str to list
        Values by parameter, checked for type and bounds.

    Raises
    ------
    TomoscaleError
        A parameter that the operation does not have, or a value that it does not take.
    """
    found: dict[str, list[Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        parameters = presets.parameters_of(function)
        if name not in parameters:
            known = presets.closest(name, parameters)
            raise TomoscaleError(f"--sweep: {function.command} has no parameter {name}{known}")  # type: ignore[attr-defined]
        hint = get_type_hints(function)[name]
        if not equals or not text.strip() or Volume in members(hint):
            raise TomoscaleError(
                f"--sweep {word}: expected name=value,value,... of a parameter that is no volume"
            )
        if name in found:
            raise TomoscaleError(f"--sweep: {name} is given twice; give all its values at once")
        many = any(getattr(h, "__origin__", None) is tuple for h in members(hint))
        parts = [p.strip() for p in text.split("/" if many else ",") if p.strip()]
        found[name] = [_read(function, name, part.split(",") if many else [part], many) for part in parts]
    return found


def _read(function: Callable[..., Any], name: str, words: Sequence[str], many: bool) -> Any:
    """Return a value as the signature types it: numbers, unless it asks for the word."""
    faults = []
    for read in (_plain, str.strip):
        value = [read(w) for w in words]
        try:
            return presets.value_of(f"--sweep {name}", function, name, value if many else value[0])
        except TomoscaleError as error:
            faults.append(error)
    raise faults[0]


def _plain(word: str) -> Any:
    """Return the number or the truth value that a word stands for, else the word."""
    if word in ("true", "false"):
        return word == "true"
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            pass
    return word.strip()


def run(
    function: Callable[..., Any],
    given: Sequence[Any],
    options: Mapping[str, Any],
    swept: Mapping[str, Sequence[Any]],
    chosen: HowTried,
) -> Any:
    """
    Try all combinations of values, each by the same way as a full run, and draw what came out.

    Parameters
    ----------
    function : callable
        An operation that states its outcome.
    given : sequence
        Its data.
    options : mapping
        Its other parameters.
    swept : mapping
        Values to try by parameter.
    chosen : HowTried
        How to run it; `roi` says on which part, `output` is the folder for pictures and parameters.

    Returns
    -------
    str or dict
        The table: a row for each combination, with its figures or why it was refused.

    Raises
    ------
    TomoscaleError
        The part does not fit the memory, or the folder is a file.
    """
    from tomoscale import cluster

    if chosen.save is not None:
        raise TomoscaleError(
            "--save with --sweep: a sweep writes the parameters of every value beside its picture"
        )
    (region,), target = how.split(function, given, chosen)
    folder = chosen.output or target.with_name(f"{target.stem}-sweep")
    if folder.is_file() or (folder / "zarr.json").exists():
        raise TomoscaleError(f"{folder}: exists and is no folder of pictures; give another one with -o")
    combinations = [dict(zip(swept, v, strict=True)) for v in itertools.product(*swept.values())]
    _check_memory(region, chosen.memory_bytes)
    with cluster.connect(
        chosen.scheduler,
        workers=chosen.workers,
        threads=chosen.threads,
        memory=chosen.memory_bytes,
        access=chosen.access,
    ) as workers:
        if not chosen.dry_run:
            workers.executor.submit(int).result()  # so that the first value is not timed with their start
        trial = _Trial(function, region, options, folder, workers, chosen)
        rows = [trial.of(values) for values in combinations]
    if chosen.dry_run:
        return None
    if chosen.as_json:
        return {"folder": str(folder), "rows": rows}
    return f"{table(rows)}\n{folder}"


def _check_memory(region: Any, memory: int | None) -> None:
    """Refuse a part that pictures cannot be made of: it is held whole, with its labels."""
    import psutil

    free = psutil.virtual_memory().available if memory is None else memory
    need = int(np.prod(region.shape, dtype=np.int64)) * (region.dtype.itemsize + HELD_BYTES)
    if need > USABLE * free:
        raise TomoscaleError(
            f"--sweep: {' x '.join(map(str, region.shape))} voxels take {human_bytes(need)}, of {human_bytes(free)} "
            f"memory {USABLE:.0%} may be used; give a smaller part with --roi k0:k1,r0:r1,c0:c1"
        )


class _Trial:
    """One part of the data, and all that is tried on it."""

    def __init__(
        self,
        function: Callable[..., Any],
        region: Any,
        options: Mapping[str, Any],
        folder: Path,
        workers: Any,
        chosen: HowTried,
    ) -> None:
        self.function, self.region, self.options = function, region, options
        self.folder, self.workers, self.chosen = folder, workers, chosen

    @functools.cached_property
    def voxels(self) -> np.ndarray:
        return self.region.whole()

    def of(self, tried: dict[str, Any]) -> dict[str, Any]:
        """Try one combination; return its row."""
        from tomoscale import blocks, run

        name = ",".join(f"{n}={_word(v)}" for n, v in tried.items())
        options = {**self.options, **tried}
        result = self.folder / ".trial.zarr"
        row: dict[str, Any] = dict(tried)
        begin = time.monotonic()
        if not self.chosen.dry_run:
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with blocks.planned_for(self.workers.block_bytes, self.workers.slots), bad_input():
                made = self.function(self.region, **options)
            run.write(
                made, result if self.folder.is_dir() else self.folder, overwrite=True,
                dry_run=self.chosen.dry_run, quiet=not self.chosen.dry_run, connection=self.workers,
            )  # fmt: skip
            if self.chosen.dry_run:
                return row
            seconds = time.monotonic() - begin
            row |= {**self.function.outcome(result), "seconds": round(seconds, 3)}  # type: ignore[attr-defined]
            row |= self._kept(name.replace("/", "_"), options, result, row)
        except TomoscaleError as error:
            if error.exit_status != TomoscaleError.exit_status:
                raise
            row["refused"] = str(error)
        finally:
            _remove(result)
        if not self.chosen.quiet:
            print(f"{name}: {row.get('refused') or row.get('picture')}", file=sys.stderr, flush=True)
        return row

    def _kept(
        self, name: str, options: Mapping[str, Any], result: Path, row: Mapping[str, Any]
    ) -> dict[str, str]:
        """Write the picture of a result, and its parameters for the full run."""
        from tomoscale import outlines, pictures, store

        labels = store.open_volume(result / "labels").whole()
        title = ", ".join(f"{n} {_word(v)}" for n, v in row.items() if n != "seconds" and v != 0)
        picture, parameters = self.folder / f"{name}.png", self.folder / f"{name}.toml"
        picture.write_bytes(pictures.png(outlines.over(self.voxels, labels, title, self.region)))
        presets.save(parameters, self.function, options)
        return {"picture": str(picture), "params": str(parameters)}


def _remove(result: Path) -> None:
    """Remove the result of a trial, whatever became of it."""
    for path in result.parent.glob(f"{result.name}*"):
        shutil.rmtree(path, ignore_errors=True)
    result.with_suffix(".parquet").unlink(missing_ok=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as aligned columns; a refused one ends with why."""
    names = list(dict.fromkeys(n for row in rows for n in row if n not in ("picture", "params", "refused")))
    lines = [names, *([_word(row.get(n, "")) for n in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(w.rjust(n) for w, n in zip(line, widths, strict=True)) for line in lines]
    for place, row in enumerate(rows, 1):
        if "refused" in row:
            text[place] = f"{text[place].rstrip()}  refused: {row['refused']}"
    return "\n".join(text)


def _word(value: Any) -> str:
    """Return a value as it is typed in a command."""
    if isinstance(value, tuple | list):
        return ",".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
