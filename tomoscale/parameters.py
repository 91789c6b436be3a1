"""Types of parameters with their bounds, and the check that holds them in Python calls and commands alike."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from annotated_types import Ge, Predicate

from tomoscale.errors import TomoscaleError

Count = Annotated[int, Ge(1)]
"""A number of things: 1, 2, 3 ..."""

Width = Annotated[int, Ge(0)]
"""A width in pixels or frames; 0 for none."""


def is_odd_or_zero(n: int) -> bool:
    """Tell whether n can be the edge of a centred filter, or 0 for no filter."""
    return n == 0 or n % 2 == 1


Edge = Annotated[int, Ge(0), Predicate(is_odd_or_zero)]
"""The edge of a centred filter, odd; 0 for none."""

Shape3 = tuple[Count, Count, Count]


class Span(NamedTuple):
    """A half-open range `start:stop`."""

    start: int
    stop: int


class Rect(NamedTuple):
    """A rectangle of pixels `r0:r1,c0:c1`, half-open."""

    rows: Span
    columns: Span


class Grid(NamedTuple):
    """A detector image that is a grid of images, `2x2`: rows of it, columns of it."""

    rows: Count
    columns: Count


class Volume:
    """
    A scan or a volume that can be read window by window.

    Stored volumes come from `tomoscale.store.open_volume`; operations also take a path or a NumPy array
    where they ask for a volume.
    """

    shape: tuple[int, ...]


Function = TypeVar("Function", bound=Callable[..., Any])
_MESSAGES = {
    "is_odd_or_zero": "must be odd (or 0 for none)",
}


def name_of(function: Callable[..., Any]) -> str:
    """Return the name under which users know a function: `background.remove`."""
    return f"{function.__module__.removeprefix('tomoscale.')}.{function.__name__}"


def checked(function: Function) -> Function:
    """
    Hold the types and bounds of the keyword-only parameters, as the signature states them.

    The data, which come by position, are left alone. The first violation is raised as a
    `TomoscaleError` that names function, parameter, bound and value.
    """
    signature = inspect.signature(function)
    names = [n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]

    @functools.cache
    def model() -> Any:
        from pydantic import ConfigDict, create_model

        hints = get_type_hints(function, include_extras=True)
        config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
        fields: dict[str, Any] = {n: (_plain(hints[n]), signature.parameters[n].default) for n in names}
        return create_model(function.__name__, __config__=config, **fields)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        from pydantic import ValidationError

        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise TomoscaleError(f"{name_of(function)}: {error}") from None
        given = {n: v for n, v in bound.arguments.items() if n in names}
        try:
            good = model()(**given)
        except ValidationError as error:
            raise TomoscaleError(f"{name_of(function)}: {_first(error)}") from None
        bound.arguments.update({n: getattr(good, n) for n in given})
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def _plain(hint: Any) -> Any:
    """Leave volumes to the operation: they may come as paths or arrays."""
    return Any if Volume in _members(hint) else hint


def _members(hint: Any) -> tuple[Any, ...]:
    return (hint, *getattr(hint, "__args__", ()))


def _first(error: Any) -> str:
    """Say in one line what pydantic found first."""
    found = error.errors()[0]
    where = found["loc"][0] if found["loc"] else "parameters"
    predicate = getattr(found.get("ctx", {}).get("error"), "args", None) or ()
    text = found["msg"]
    for name, message in _MESSAGES.items():
        if name in text or name in map(str, predicate):
            text = message
    value = found["input"]
    shown = (
        value
        if isinstance(value, str | Path) or not isinstance(value, float) or math.isfinite(value)
        else value
    )
    return f"{where}: {text[0].lower()}{text[1:]}, got {shown!r}"
