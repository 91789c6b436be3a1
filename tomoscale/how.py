"""How a command runs an operation: options that are the same for all, and where data and result are."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import Parameter

from tomoscale import presets
from tomoscale.access import Access
from tomoscale.errors import TomoscaleError, bad_input
from tomoscale.parameters import Volume, members
from tomoscale.values import memory_bytes, span


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How to run it, the same for every operation."""

    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
    "Result; by default IN-COMMAND.zarr beside the input."
    workers: int | None = None
    "Worker processes; as many as cores by default."
    threads: int | None = None
    "Threads of each worker; one by default."
    memory: str | None = None
    "Memory of one worker, 8GB say; an equal share of the machine by default."
    scheduler: str = "local"
    "`local` processes, `threads` of this process, the address of a Dask scheduler, or a file of jobs (slurm.yaml)."
    certificates: Path | None = None
    "Folder with ca.pem, cert.pem and key.pem for a scheduler at tls://."
    insecure: bool = False
    "Use a scheduler on another machine without encryption: whoever reaches it can run code as you."
    dashboard: Annotated[bool, Parameter(negative="--no-dashboard")] = True
    "Dask's dashboard of local workers, seen from this machine only."
    roi: str | None = None
    "Work on a part of the input only: k0:k1,r0:r1,c0:c1; `:` for a whole axis."
    on_error: Literal["stop", "continue"] = "stop"
    "`stop` at the first failed block, or `continue` with the others."
    overwrite: bool = False
    "Replace an existing result, or an unfinished one of other parameters."
    dry_run: bool = False
    "Print the plan and stop."
    quiet: bool = False
    "Print the path of the result only."

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one worker in bytes."""
        return memory_bytes(self.memory) if self.memory else None

    @property
    def access(self) -> Access:
        """Who may reach the workers."""
        return Access(self.certificates, self.insecure, self.dashboard)

    def check(self) -> None:
        """Refuse what no run can have."""
        for name in ("workers", "threads"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise TomoscaleError(f"--{name} {number}; expected at least 1")


@Parameter(name="*")
@dataclass(frozen=True)
class HowChosen(How):
    """How to run an operation, and files of its parameters."""

    params: Path | None = None
    "Take parameters from this TOML file; options given here go first."
    save: Path | None = None
    "Write the parameters into this TOML file, for `--params` of another run."


@Parameter(name="*")
@dataclass(frozen=True)
class HowTried(HowChosen):
    """The same for an operation that can show what its parameters do."""

    sweep: tuple[str, ...] = ()
    "Try values, seed_threshold=20,40,80 say: a table, and a picture for each; repeated, all combinations."
    as_json: Annotated[bool, Parameter(name="--json")] = False
    "Print the table of `--sweep` as JSON."

    def check(self) -> None:
        """Refuse what no run can have."""
        super().check()
        if self.as_json and not self.sweep:
            raise TomoscaleError("--json: a run prints the path of its result; --json goes with --sweep")


def split(function: Callable[..., Any], given: Sequence[Any], how: How) -> tuple[tuple[Any, ...], Path]:
    """Tell the data of an operation from its output."""
    data = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if not data:
        return (), Path(given[0])
    if Volume in members(get_type_hints(function)[data[0].name]):
        name = function.command.replace(" ", "-")  # type: ignore[attr-defined]
        volume = _region(given[0], how.roi)
        if getattr(function, "joins", False):
            return (volume, *given[1:]), how.output or _around(given[0], volume, name)
        return (volume, *given[1:]), how.output or _beside(str(given[0]), name)
    if len(given) < 2:
        raise TomoscaleError(f"{function.command}: give one or more sources, then the output")  # type: ignore[attr-defined]
    return (given[:-1],), Path(given[-1])


def execute(function: Callable[..., Any], given: Sequence[Any], options: dict[str, Any], how: How) -> Path:
    """Plan an operation for the workers that there are, and write its result."""
    from tomoscale import blocks, cluster, run

    instead = getattr(function, "instead", None)
    if instead and instead[0](given):
        if options:
            named = ", ".join(f"--{n.replace('_', '-')}" for n in options)
            raise TomoscaleError(f"{function.command}: {named} does not apply to {given[0]} to {given[1]}")  # type: ignore[attr-defined]
        return instead[1](*given, how=how)
    data, target = split(function, given, how)
    with cluster.connect(
        how.scheduler,
        workers=how.workers,
        threads=how.threads,
        memory=how.memory_bytes,
        access=how.access,
        quiet=how.quiet,
    ) as workers:
        with blocks.planned_for(workers.block_bytes, workers.slots, workers.most_block_bytes), bad_input():
            result = function(*data, **options)
        save = getattr(how, "save", None)
        if save is not None:
            presets.save(save, function, options)
        return run.write(
            result,
            target,
            overwrite=how.overwrite,
            dry_run=how.dry_run,
            quiet=how.quiet,
            keep_going=how.on_error == "continue",
            connection=workers,
        )


def _around(source: Any, volume: Any, name: str) -> Path:
    """Return the group of a volume, as the user gave it, to which a result is added."""
    if not getattr(volume, "is_ours", False):
        why = "a part of it" if hasattr(volume, "inner") else "not made by tomoscale"
        raise TomoscaleError(
            f"{name}: {source}: {why}, so nothing is added to it; give another output with -o"
        )
    paths = (Path(source), *Path(source).parents)
    return next((p for p in paths if p.samefile(volume.group)), volume.group)


def _beside(source: str, name: str) -> Path:
    """Return the default output: `scan.zarr` and `scan.zarr/frames` give `scan-background.zarr`."""
    path = Path(source)
    while path.suffix != ".zarr" and path.parent != path and ".zarr" in str(path.parent):
        path = path.parent
    return path.with_name(f"{path.name.removesuffix('.zarr')}-{name}.zarr")


def _region(source: Any, roi: str | None) -> Any:
    from tomoscale import store

    volume = store.open_volume(source)
    if roi is None:
        return volume
    lengths = itertools.chain(volume.shape, itertools.repeat(None))  # `crop` counts them
    return store.crop(volume, [span(part, n) for part, n in zip(roi.split(","), lengths, strict=False)])
