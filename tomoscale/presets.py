"""Parameters as files: what a run was given, to be read by another."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from tomoscale._version import __version__
from tomoscale.errors import TomoscaleError
from tomoscale.parameters import Grid, Rect, Span, Volume, adapters_of, first_fault, members
from tomoscale.values import grid, rect, span

SECTION = re.compile(r"^\s*\[[^\[\]]+\]", re.MULTILINE)
WORDS: tuple[tuple[type, Callable[[str], Any]], ...] = ((Rect, rect), (Span, span), (Grid, grid))
"""Types that may be written as in a command."""


def read(path: str | Path, function: Callable[..., Any]) -> dict[str, Any]:
    """
    Read the parameters of an operation from a file.

    Parameters
    ----------
    path : str or Path
        A TOML file with a section of the operation's name: `[background]`, `[simulate.dct]`.
    function : callable
        The operation.

    Returns
    -------
    dict
        Keyword arguments, checked for type and bounds.

    Raises
    ------
    TomoscaleError
        No such file or section, an unknown parameter, or a value that the operation does not take.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TomoscaleError(f"{path}: is no TOML file: {error}") from None
    except OSError as error:
        raise TomoscaleError(f"{path}: {error.strerror}; expected a file of parameters") from None
    loose = [name for name, value in content.items() if not isinstance(value, dict)]
    if loose:
        raise TomoscaleError(
            f"{path}: {loose[0]} stands in no section; put it below a line [{section_of(function)}]"
        )
    given: Any = content
    for word in function.command.split():  # type: ignore[attr-defined]
        given = given.get(word) if isinstance(given, dict) else None
    if not isinstance(given, dict):
        there = ", ".join(_sections(content)) or "nothing"
        raise TomoscaleError(
            f"{path}: holds parameters of {there}; expected a section [{section_of(function)}]"
        )
    where = f"{path}: [{section_of(function)}]"
    known = parameters_of(function)
    given = {
        n: v for n, v in given.items() if n in known or not isinstance(v, dict)
    }  # `depth`, not `depth.project`
    for name in given:
        if name not in known:
            raise TomoscaleError(f"{where} has no parameter {name}{closest(name, parameters_of(function))}")
    return {name: value_of(f"{where} {name}", function, name, value) for name, value in given.items()}


def save(path: str | Path, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """
    Write the parameters of an operation into a file, those that were left at their defaults too.

    Parameters
    ----------
    path : str or Path
        A TOML file; sections of other operations in it are kept.
    function : callable
        The operation.
    options : mapping
        What it was given; the others have their defaults.

    Raises
    ------
    TomoscaleError
        The file exists and is no file of parameters, or cannot be written.
    """
    path = Path(path)
    volumes = [n for n, h in get_type_hints(function).items() if Volume in members(h)]
    values = {n: options.get(n, p.default) for n, p in parameters_of(function).items()}
    lines = [
        f"[{section_of(function)}]",
        f"# Parameters of `tomoscale {function.command}`, written by tomoscale {__version__}.",  # type: ignore[attr-defined]
        "# `--params` with the name of this file reads them; options of the command go first.",
    ]
    for name, value in values.items():
        if value is None or value is inspect.Parameter.empty:
            continue
        is_place = isinstance(value, Path) or (name in volumes and value != "none")
        lines.append(f"{name} = {_toml(Path(value).absolute() if is_place else value)}")
    others = _other_sections(path, section_of(function))
    text = "\n\n".join([*others, "\n".join(lines)]) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise TomoscaleError(f"{path}: {error.strerror}; the parameters cannot be saved there") from None


def section_of(function: Callable[..., Any]) -> str:
    """Return the name of an operation's section: `simulate.dct`."""
    return function.command.replace(" ", ".")  # type: ignore[attr-defined]


def closest(word: str, known: Iterable[str]) -> str:
    """
    Return what may have been meant, as the end of a message.

    >>> closest("seed_treshold", ["seed_threshold", "tau"]), closest("x", ["seed", "tau"])
    ('; did you mean seed_threshold?', '; expected one of seed, tau')
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of an operation that are no data."""
    found = inspect.signature(function).parameters
    return {n: p for n, p in found.items() if p.kind is p.KEYWORD_ONLY}


def _sections(content: Mapping[str, Any], before: str = "") -> list[str]:
    """Return the names of all sections that hold parameters."""
    found = []
    for name, value in content.items():
        inner = _sections(value, f"{before}{name}.") if isinstance(value, dict) else []
        found += inner or ([f"{before}{name}"] if isinstance(value, dict) else [])
    return found


def value_of(where: str, function: Callable[..., Any], name: str, value: Any) -> Any:
    """
    Hold a value against the signature, without turning words into numbers.

    Parameters
    ----------
    where : str
        Begins the message of an error.
    function : callable
        The operation.
    name : str
        One of its parameters.
    value : object
        As TOML and JSON know it; rectangles, ranges and grids also as in a command.

    Returns
    -------
    object
        What the operation takes.

    Raises
    ------
    TomoscaleError
        A value of another type, or out of bounds.
    """
    from pydantic import ValidationError

    hint = get_type_hints(function)[name]
    if Volume in members(hint):
        if not isinstance(value, str):
            raise TomoscaleError(f"{where}: expected a path in quotes, got {value!r}")
        return value
    try:
        value = _worded(value, hint)
        # As JSON, of which a list is a tuple and a string a path, but no 1 is true and no "1" a number.
        return adapters_of(function)[name].validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise TomoscaleError(f"{where}: {first_fault(error)}") from None
    except TomoscaleError as error:
        raise TomoscaleError(f"{where}: {error}") from None


def _worded(value: Any, hint: Any) -> Any:
    """Read rectangles, ranges and grids that are written as in a command."""
    kind = next((read for type_, read in WORDS if _holds(hint, type_)), None)
    if kind is None:
        return value
    if isinstance(value, list):
        return [kind(v) if isinstance(v, str) else v for v in value]
    return kind(value) if isinstance(value, str) else value


def _holds(hint: Any, type_: type) -> bool:
    return hint is type_ or any(_holds(h, type_) for h in getattr(hint, "__args__", ()))


def _toml(value: Any) -> str:
    """Return a value as TOML writes it; rectangles, ranges and grids as in a command."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Rect):
        return _toml(",".join(f"{s.start}:{s.stop}" for s in value))
    if isinstance(value, Span):
        return _toml(f"{value.start}:{value.stop}")
    if isinstance(value, Grid):
        return _toml(f"{value.rows}x{value.columns}")
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return repr(value)


def _other_sections(path: Path, section: str) -> list[str]:
    """Return the text of a file's sections but one, comments included."""
    if not path.exists():
        return []
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise TomoscaleError(
            f"{path}: exists and is no file of parameters: {error}; save to another file"
        ) from None
    if not all(isinstance(v, dict) for v in content.values()):
        raise TomoscaleError(f"{path}: exists and is no file of parameters; save to another file")
    starts = [m.start() for m in SECTION.finditer(text)]
    parts = [text[a:b].strip() for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    return [p for p in parts if p and not re.match(rf"\[\s*{re.escape(section)}\s*\]", p)]
