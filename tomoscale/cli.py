"""The command: one subcommand per operation, built from its signature and docstring."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import cyclopts
from cyclopts import App, Parameter

from tomoscale import TOPICS
from tomoscale._version import __version__
from tomoscale.errors import InterruptedRunError, TomoscaleError
from tomoscale.parameters import Count, Grid, Rect, Span, Volume

UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How to run it, the same for every operation."""

    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
    "Result; by default IN-COMMAND.zarr beside where you are."
    workers: Count | None = None
    "Worker processes; as many as cores by default."
    threads: Count | None = None
    "Threads of each worker; one by default."
    memory: str | None = None
    "Memory of one worker, 8GB say; an equal share of the machine by default."
    scheduler: str = "local"
    "`local` processes, `threads` of this process, or the address of a Dask scheduler."
    roi: str | None = None
    "Work on a part of the input only: k0:k1,r0:r1,c0:c1."
    on_error: str = "stop"
    "`stop` at the first failed block, or `continue` with the others."
    overwrite: bool = False
    "Replace an existing result, or an unfinished one of other parameters."
    dry_run: bool = False
    "Print the plan and stop."
    quiet: bool = False
    "Print the path of the result only."


# ---------------------------------------------------------------- values as people type them


def _numbers(type_: Any, tokens: Sequence[Any]) -> Any:
    """Read `64,128,128`; also several tokens."""
    words = [w for t in tokens for w in t.value.replace("x", ",").split(",") if w]
    try:
        return tuple(float(w) if any(c in w for c in ".einf") else int(w) for w in words)
    except ValueError:
        raise TomoscaleError(
            f"{' '.join(t.value for t in tokens)!r}: expected numbers separated by commas"
        ) from None


def _span(text: str) -> Span:
    start, colon, stop = text.partition(":")
    if not colon or not start.lstrip("-").isdigit() or not stop.lstrip("-").isdigit():
        raise TomoscaleError(f"range {text!r}; expected start:stop")
    return Span(int(start), int(stop))


def _rects(type_: Any, tokens: Sequence[Any]) -> tuple[Rect, ...]:
    """Read `100:180,40:200`, repeated."""
    found = []
    for token in tokens:
        parts = token.value.split(",")
        if len(parts) != 2:
            raise TomoscaleError(f"rectangle {token.value!r}; expected r0:r1,c0:c1")
        found.append(Rect(*map(_span, parts)))
    return tuple(found)


def memory_bytes(text: str) -> int:
    """
    Read an amount of memory.

    >>> memory_bytes("8GB"), memory_bytes("512 MiB")
    (8000000000, 536870912)
    """
    word = text.strip().upper().removesuffix("B").replace(" ", "")
    number = word.rstrip("KMGTI")
    try:
        amount = int(float(number) * UNITS[word[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        raise TomoscaleError(f"--memory {text!r}; expected an amount such as 8GB or 512MiB") from None
    if amount <= 0:
        raise TomoscaleError(f"--memory {text!r}; expected more than nothing")
    return amount


def _typed(hint: Any, parameter: inspect.Parameter) -> Any:
    """Return the command's type of a parameter: a path for a volume, commas for a tuple, `--no-X` to switch off."""
    if parameter.default is True:
        return Annotated[hint, Parameter(negative=f"--no-{parameter.name.replace('_', '-')}")]
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if Volume in parts:
        return str | None if type(None) in parts else str
    for part in parts:
        if part is Grid:
            return Annotated[hint, Parameter(converter=_numbers, n_tokens=1, accepts_keys=False)]
        if get_origin(part) is tuple:
            converter = _rects if get_args(part)[0] is Rect else _numbers
            if get_args(part)[0] in (Path, str):
                return hint
            return Annotated[hint, Parameter(converter=converter, n_tokens=1, accepts_keys=False)]
    return hint


# ---------------------------------------------------------------- commands


def functions() -> Iterator[Callable[..., Any]]:
    """Return the functions of all topics that are commands."""
    for topic in TOPICS:
        module = importlib.import_module(f"tomoscale.{topic}")
        for name in vars(module):
            function = getattr(module, name)
            if (
                callable(function)
                and hasattr(function, "command")
                and function.__module__.startswith(module.__name__)
            ):
                yield function


def build() -> App:
    """Build the command from the operations."""
    app = App(
        name="tomoscale",
        version=__version__,
        help="X-ray scans and volumes that do not fit in memory.",
        help_format="plaintext",
        default_parameter=Parameter(negative=""),
        version_flags=["--version"],
    )
    groups: dict[str, App] = {}
    for function in functions():
        *path, name = function.command.split()  # type: ignore[attr-defined]
        parent = app
        for word in path:
            if word not in groups:
                module = inspect.getmodule(function)
                groups[word] = App(
                    name=word, help=(module.__doc__ or "").strip().splitlines()[0], help_format="plaintext"
                )
                app.command(groups[word])
            parent = groups[word]
        parent.command(_adapted(function), name=name)
    return app


def _adapted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the command's types and, where it plans a run, with how to run it."""
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    parameters = [p.replace(annotation=_typed(hints[n], p)) for n, p in signature.parameters.items()]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    data = [p.replace(kind=p.POSITIONAL_ONLY) for p in parameters if p.kind is not p.KEYWORD_ONLY]
    how = inspect.Parameter("how", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=How | None)
    acts = getattr(function, "acts", False)
    if not acts and not data:
        target = inspect.Parameter(
            "out", inspect.Parameter.POSITIONAL_ONLY, annotation=Annotated[Path, Parameter(help="Result.")]
        )
        data = [target]
    if not acts or "how" in signature.parameters:
        keywords = [p for p in keywords if p.name != "how"] + [how]

    def call(*positional: Any, **options: Any) -> Any:
        given = options.pop("how", None) or How()
        if acts:
            return function(
                *positional, **options, **({"how": given} if "how" in signature.parameters else {})
            )
        return execute(function, positional, options, given)

    call.__signature__ = signature.replace(parameters=[*data, *keywords], return_annotation=Any)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in (*data, *keywords)}
    call.__doc__, call.__name__, call.__module__ = function.__doc__, function.__name__, __name__
    return call


def execute(
    function: Callable[..., Any], positional: Sequence[Any], options: dict[str, Any], how: How
) -> Path:
    """Plan an operation for the workers that there are, and write its result."""
    from tomoscale import blocks, cluster, run

    if how.on_error not in ("stop", "continue"):
        raise TomoscaleError(f"--on-error {how.on_error!r}; expected stop or continue")
    name = function.command.split()[0]  # type: ignore[attr-defined]
    volumes = inspect.signature(function).parameters.values()
    makes = not any(p.kind is not p.KEYWORD_ONLY for p in volumes)
    source = None if makes else positional[0]
    target = Path(positional[0]) if makes else how.output or _beside(str(source), name)
    memory = memory_bytes(how.memory) if how.memory else None
    with cluster.connect(how.scheduler, workers=how.workers, threads=how.threads, memory=memory) as workers:
        with blocks.planned_for(workers.block_bytes, workers.slots):
            result = function(*(() if makes else (_region(source, how.roi),)), **options)
        return run.write(
            result,
            target,
            overwrite=how.overwrite,
            dry_run=how.dry_run,
            quiet=how.quiet,
            keep_going=how.on_error == "continue",
            connection=workers,
        )


def _beside(source: str, name: str) -> Path:
    """Return the default output: `scan.zarr/frames` gives `scan-background.zarr` in the working folder's sight."""
    path = Path(source)
    while path.suffix != ".zarr" and path.parent != path and ".zarr" in str(path.parent):
        path = path.parent
    return path.with_name(f"{path.name.removesuffix('.zarr')}-{name}.zarr")


def _region(source: Any, roi: str | None) -> Any:
    from tomoscale import store

    volume = store.open_volume(source)
    if roi is None:
        return volume
    return store.crop(volume, [_span(part) for part in roi.split(",")])


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line; that of the process by default.

    Returns
    -------
    int
        Exit status: 0 complete, 2 bad input or parameters, 3 failed blocks, 75 interrupted and resumable.
    """
    from tomoscale import schedule

    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    try:
        with schedule.interruptible():
            result = build()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (TomoscaleError, cyclopts.CycloptsError) as error:
        _say(error)
        status = getattr(error, "exit_status", 2)
        if isinstance(error, InterruptedRunError):
            sys.stdout.flush()
            os._exit(
                status
            )  # workers see that we are gone; an orderly farewell may take them longer than is left
        return status
    except BrokenPipeError:
        return 0
    if result is not None:
        print(json.dumps(result, indent=1) if isinstance(result, dict | list) else result)
    return 0


def _say(message: object) -> None:
    """Print an error or a warning as one line."""
    print(f"tomoscale: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
