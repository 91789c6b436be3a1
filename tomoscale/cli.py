"""The command: one subcommand per operation, built from its signature and docstring."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin, get_type_hints

import cyclopts
from cyclopts import App, Parameter

from tomoscale import TOPICS, jobs, lock, presets, sweep
from tomoscale._version import __version__
from tomoscale.errors import InterruptedRunError, TomoscaleError
from tomoscale.how import How, HowChosen, HowTried, execute
from tomoscale.parameters import Device, Grid, Rect, Span, Volume, members
from tomoscale.signals import interruptible
from tomoscale.values import as_subcommand, at_home, joined, numbers, rects, spans

ON_CPU = Annotated[Device, Parameter(help="Where blocks are computed: here on the CPU only, so far.")]
"""The option of operations that have no choice."""
LONGEST = 4000
"""Characters of an error."""


def _typed(hint: Any, parameter: inspect.Parameter) -> Any:
    """Return the command's type of a parameter: a path for a volume, commas for a tuple, `--no-X` to switch off."""
    if parameter.default is True:
        return Annotated[hint, Parameter(negative=f"--no-{parameter.name.replace('_', '-')}")]
    if parameter.name == "output":
        return Annotated[hint, Parameter(name=["--output", "-o"])]
    if parameter.name.startswith("as_"):
        return Annotated[hint, Parameter(name=f"--{parameter.name.removeprefix('as_')}")]
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if Volume in parts:
        return str | None if type(None) in parts else str
    if any(get_origin(p) is tuple and get_args(p)[0] is Span for p in parts):
        return Annotated[hint, Parameter(converter=spans, n_tokens=1, accepts_keys=False)]
    for part in parts:
        if part is Grid:
            return Annotated[hint, Parameter(converter=numbers, n_tokens=1, accepts_keys=False)]
        if get_origin(part) is tuple:
            converter = rects if get_args(part)[0] is Rect else numbers
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
        help_format="markdown",
        default_parameter=Parameter(negative=""),
        version_flags=["--version"],
    )
    groups: dict[str, App] = {}
    found = list(functions())
    for function in found:
        *path, name = function.command.split()  # type: ignore[attr-defined]
        if any(other.command.startswith(f"{name} ") for other in found):  # type: ignore[attr-defined]
            path, name = [name], ""  # `otsu` itself, beside `otsu mask`
        topic = sys.modules[".".join(function.__module__.split(".")[:2])]
        parent = app
        for word in path:
            if word not in groups:
                summary = (topic.__doc__ or "").strip().splitlines()[0]
                groups[word] = App(name=word, help=summary, help_format="markdown")
                app.command(groups[word])
            parent = groups[word]
        adapted = _adapted(function)
        if name:
            parent.command(adapted, name=name, usage=_usage(function.command, adapted))  # type: ignore[attr-defined]
        else:
            parent.default(adapted)
    return app


def _usage(command: str, adapted: Callable[..., Any]) -> str | None:
    """Say that the last of several files is the output; None for what cyclopts says itself."""
    for p in inspect.signature(adapted).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            return f"Usage: tomoscale {command} [OPTIONS] {p.name.upper()}... OUT"
    return None


def _adapted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the command's types and, where it plans a run, with how to run it."""
    signature, command = inspect.signature(function), function.command  # type: ignore[attr-defined]
    hints = get_type_hints(function)  # without bounds: the function holds them, and says so in the same words
    parameters = [
        p.replace(annotation=_typed(hints[n], p)) for n, p in signature.parameters.items() if n != "how"
    ]
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    data = _data(function, [p for p in parameters if p.kind is not p.KEYWORD_ONLY], hints)
    acts = getattr(function, "acts", False)
    required = [] if acts else [p.name for p in options if p.default is p.empty]
    options = [_optional(p) if p.name in required else p for p in options]
    kind = How if acts else (HowTried if hasattr(function, "outcome") else HowChosen)
    on_cpu_only = not acts and "device" not in signature.parameters
    if on_cpu_only:
        options.append(
            inspect.Parameter("device", inspect.Parameter.KEYWORD_ONLY, default="auto", annotation=ON_CPU)
        )
    if not acts or "how" in signature.parameters:
        options.append(
            inspect.Parameter("how", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind | None)
        )

    def call(*given: Any, **chosen: Any) -> Any:
        how: Any = chosen.pop("how", None) or kind()
        how.check()
        if on_cpu_only and chosen.pop("device", "auto") == "gpu":
            raise TomoscaleError(f"{command}: computes on the CPU only, so far; leave out --device gpu")
        if acts:
            return function(*given, **chosen, **({"how": how} if "how" in signature.parameters else {}))
        if how.params is not None:
            chosen = {**presets.read(how.params, function), **chosen}
        swept = sweep.values(function, how.sweep) if kind is HowTried else {}
        missing = [f"--{n.replace('_', '-')}" for n in required if n not in {**chosen, **swept}]
        if missing:
            raise TomoscaleError(f"{command}: {missing[0]} is missing; give it, or --params FILE that has it")
        return (
            sweep.run(function, given, chosen, swept, how) if swept else execute(function, given, chosen, how)
        )

    call.__signature__ = signature.replace(parameters=[*data, *options], return_annotation=Any)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in (*data, *options)}
    call.__doc__, call.__name__, call.__module__ = function.__doc__, function.__name__, __name__
    return call


def _optional(parameter: inspect.Parameter) -> inspect.Parameter:
    """Let a file of parameters give what the function cannot do without."""
    shown = Parameter(show_default=lambda _: "none: needed here or in --params")
    return parameter.replace(default=None, annotation=Annotated[parameter.annotation | None, shown])


def _data(
    function: Callable[..., Any], data: list[inspect.Parameter], hints: dict[str, Any]
) -> list[inspect.Parameter]:
    """Return what comes by position: IN for a volume, SOURCE... OUT for files, OUT for what is made of nothing."""
    if getattr(function, "acts", False) or (data and Volume in members(hints[data[0].name])):
        return [p.replace(kind=p.POSITIONAL_ONLY) for p in data]
    if data:
        return [data[0].replace(kind=inspect.Parameter.VAR_POSITIONAL, annotation=Path)]
    result = Annotated[Path, Parameter(help="Result.")]
    return [inspect.Parameter("out", inspect.Parameter.POSITIONAL_ONLY, annotation=result)]


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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    # When we leave at a signal, a helper of multiprocessing removes what is left, and would say so on standard error.
    sys.warnoptions.append("ignore:resource_tracker")
    given = [at_home(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    try:
        with interruptible(_leave):
            known = list(functions())
            result = build()(
                joined(as_subcommand(given, known), known),
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
    except InterruptedRunError as error:
        _leave(str(error))
    except cyclopts.UnusedCliTokensError as error:
        _say(_too_many(error))
        return 2
    except (TomoscaleError, cyclopts.CycloptsError) as error:
        if found := getattr(error, "found", None):
            _print(json.dumps(found, indent=1))
        _say(error)
        return getattr(error, "exit_status", 2)
    except OSError as error:
        _say(f"{error.filename or 'storage'}: {error.strerror or error}")
        return 2
    except MemoryError:
        _say("this takes more memory than there is; try a part with --roi, or a smaller input")
        return 2
    if result is None or _print(
        json.dumps(result, indent=1) if isinstance(result, dict | list) else str(result)
    ):
        return 0
    return 3


def _too_many(error: cyclopts.UnusedCliTokensError) -> str:
    """Say which arguments nothing takes, and how to give what people mean by them most often."""
    command = " ".join(error.command_chain or ())
    takes = inspect.signature(error.target).parameters if error.target else {}
    hint = "an output is given as --output NAME; " if takes.keys() & {"output", "how"} else ""
    return f"{command}: nothing takes {', '.join(error.unused_tokens or ())}; {hint}see tomoscale {command} --help"


def _leave(message: str) -> NoReturn:
    """Leave at once, with a lock for nobody and no job in a queue; workers see that we are gone."""
    os.write(2, f"tomoscale: {message}\n".encode())
    lock.let_go()
    jobs.cancel()
    os._exit(InterruptedRunError.exit_status)


def _print(text: str) -> bool:
    """Print a result; return whether it could be. That nobody reads it to its end is no error."""
    try:
        print("\n".join(map(_shown, text.split("\n"))), flush=True)
        return True
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return True
        _say(f"standard output: {error.strerror}")
        return False


def _say(message: object) -> None:
    """Print an error or a warning as one line of sensible length."""
    text = _shown(" ".join(str(message).split()))
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ..."
    with contextlib.suppress(OSError):  # nobody listens any more
        print(f"tomoscale: {text}", file=sys.stderr, flush=True)


def _shown(text: str) -> str:
    """Write out what a terminal would take for a command: names and attributes come from files."""
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else repr(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
