"""Values as people type them in a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from tomoscale.errors import TomoscaleError
from tomoscale.parameters import Grid, Rect, Span

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


def numbers(type_: Any, tokens: Sequence[Any]) -> Any:
    """Read `64,128,128` or `2x2`; also several tokens."""
    words = [w for t in tokens for w in t.value.replace("x", ",").split(",") if w]
    try:
        return tuple(float(w) if any(c in w for c in ".einf") else int(w) for w in words)
    except ValueError:
        raise TomoscaleError(
            f"{' '.join(t.value for t in tokens)!r}: expected numbers separated by commas, or by x as in 2x2"
        ) from None


def span(text: str, length: int | None = None) -> Span:
    """
    Read `100:180`; along an axis of known length also `100:`, `:180` and `:`.

    >>> span("100:", 180)
    Span(start=100, stop=180)
    """
    whole = ("0", str(length)) if length is not None else ("", "")
    try:
        start, stop = (int(word or end) for word, end in zip(text.split(":"), whole, strict=True))
    except ValueError:
        raise TomoscaleError(f"range {text!r}; expected start:stop") from None
    return Span(start, stop)


def spans(type_: Any, tokens: Sequence[Any]) -> tuple[Span, ...]:
    """Read `0:100,40:200,40:200`."""
    return tuple(span(part) for token in tokens for part in token.value.split(","))


def rect(text: str) -> Rect:
    """Read `100:180,40:200`."""
    parts = text.split(",")
    if len(parts) != 2:
        raise TomoscaleError(f"rectangle {text!r}; expected r0:r1,c0:c1")
    return Rect(*map(span, parts))


def grid(text: str) -> Grid:
    """Read `2x2`."""
    rows, cross, columns = text.partition("x")
    if not (cross and rows.isdigit() and columns.isdigit()):
        raise TomoscaleError(f"grid {text!r}; expected rows x columns, as in 2x2")
    return Grid(int(rows), int(columns))


def rects(type_: Any, tokens: Sequence[Any]) -> tuple[Rect, ...]:
    """Read `100:180,40:200`, repeated."""
    return tuple(rect(token.value) for token in tokens)


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


def at_home(argument: str) -> str:
    """
    Write out `~` where the shell has left it, as after an equals sign.

    >>> at_home("--dark=~/d.zarr") == f"--dark={Path.home()}/d.zarr"
    True
    """
    option, equals, value = argument.partition("=")
    if argument.startswith("--") and value.startswith("~/"):
        return f"{option}{equals}{Path(value).expanduser()}"
    return str(Path(argument).expanduser()) if argument.startswith("~/") else argument


def as_subcommand(arguments: Sequence[str], functions: Iterable[Callable[..., Any]]) -> list[str]:
    """
    Let a subcommand be given as an option: `otsu IN.zarr --mask` for `otsu mask IN.zarr`.

    Parameters
    ----------
    arguments : sequence of str
        The command line.
    functions : iterable of callable
        The commands.

    Examples
    --------
    >>> from tomoscale import otsu
    >>> as_subcommand(["otsu", "volume.zarr", "--mask"], [otsu.segment, otsu.initial_mask])
    ['otsu', 'mask', 'volume.zarr']
    """
    commands = {f.command for f in functions}  # type: ignore[attr-defined]
    for n, word in enumerate(arguments):
        if word.startswith("--") and arguments[0] in commands and f"{arguments[0]} {word[2:]}" in commands:
            return [arguments[0], word[2:], *arguments[1:n], *arguments[n + 1 :]]
    return list(arguments)


def joined(arguments: Sequence[str], functions: Iterable[Callable[..., Any]]) -> list[str]:
    """
    Put the numbers of an option that takes so many of them into one word.

    Parameters
    ----------
    arguments : sequence of str
        The command line.
    functions : iterable of callable
        The commands.

    Examples
    --------
    >>> from tomoscale import simulate
    >>> joined(["simulate", "dct", "--shape", "600", "192", "192", "o.zarr"], [simulate.dct])
    ['simulate', 'dct', '--shape=600,192,192', 'o.zarr']
    """
    rest, found = list(arguments), []
    words = ((f, f.command.split()) for f in functions)  # type: ignore[attr-defined]
    lengths = next((_lengths(f) for f, command in words if rest[: len(command)] == command), {})
    while rest:
        word = rest.pop(0)
        values = rest[: lengths.get(word, 0)]
        if values and len(values) == lengths[word] and all(map(_is_number, values)):
            found.append(f"{word}={','.join(values)}")
            del rest[: len(values)]
        else:
            found.append(word)
    return found


def _lengths(function: Callable[..., Any]) -> dict[str, int]:
    """Return the options of a function that take several numbers, and how many."""
    found = {}
    for name, hint in get_type_hints(function).items():
        for part in (hint, *get_args(hint)):
            several = get_args(part)
            if get_origin(part) is tuple and set(several) <= {int, float}:
                found[f"--{name.replace('_', '-')}"] = len(several)
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
