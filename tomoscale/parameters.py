"""Types of parameters with their bounds, and the check that holds them in Python calls and commands alike."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

import numpy as np
from annotated_types import Ge, Gt, Le, Predicate

from tomoscale.errors import TomoscaleError

MOST = 10**9

Count = Annotated[int, Ge(1), Le(MOST)]
"""A number of things: 1, 2, 3 ..."""

Width = Annotated[int, Ge(0), Le(MOST)]
"""A width in pixels or frames; 0 for none."""

Seed = Annotated[int, Ge(0), Le(2**64 - 1)]
"""Of a stream of random numbers."""


def is_odd_or_zero(n: int) -> bool:
    """Tell whether n can be the edge of a centred filter, or 0 for no filter."""
    return n == 0 or n % 2 == 1


Edge = Annotated[int, Ge(0), Le(MOST), Predicate(is_odd_or_zero)]
"""The edge of a centred filter, odd; 0 for none."""

Sigma = tuple[Annotated[float, Ge(0), Le(1000)], ...]
"""Standard deviations in voxels along z, y and x, or one for all; 0 for none."""

Finite = Annotated[float, Predicate(math.isfinite)]
"""A number, neither infinite nor NaN."""

Share = Annotated[float, Gt(0), Le(1)]
"""A share of the whole: above 0, at most 1."""

Shape3 = tuple[Count, Count, Count]

Device = Literal["auto", "cpu", "gpu"]
"""Where blocks are computed."""


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
    dtype: np.dtype
    chunks: tuple[int, ...]


Function = TypeVar("Function", bound=Callable[..., Any])
_MESSAGES = {
    "Predicate 'is_odd_or_zero' failed": "must be odd (or 0 for none)",
    "Predicate 'isfinite' failed": "must be finite",
}


def name_of(function: Callable[..., Any]) -> str:
    """Return the name under which users know a function: `background.remove`, the topic and the verb."""
    topic = function.__module__.removeprefix("tomoscale.").split(".")[0]
    return f"{topic}.{function.__name__}"


@functools.cache
def adapters_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what holds the keyword-only parameters of a function; not volumes, which the operation opens."""
    from pydantic import TypeAdapter

    parameters = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, include_extras=True)
    return {
        p.name: TypeAdapter(hints[p.name])
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and Volume not in members(hints[p.name])
    }


def checked(function: Function) -> Function:
    """
    Hold the types and bounds of the keyword-only parameters, as the signature states them.

    The data, which come by position, are left alone. The first violation is raised as a
    `TomoscaleError` that names function, parameter, bound and value.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        from pydantic import ValidationError

        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise TomoscaleError(f"{name_of(function)}: {error}") from None
        for name, adapter in adapters_of(function).items():
            if name in bound.arguments:
                try:
                    bound.arguments[name] = adapter.validate_python(bound.arguments[name])
                except ValidationError as error:
                    raise TomoscaleError(f"{name_of(function)}: {name}: {first_fault(error)}") from None
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def members(hint: Any) -> tuple[Any, ...]:
    """Return a type and, of a union, its members."""
    return (hint, *getattr(hint, "__args__", ()))


def first_fault(error: Any) -> str:
    """Say in one line what pydantic found first."""
    errors = error.errors()
    found = errors[0]
    if isinstance(found["input"], tuple | list) and found["type"] in ("missing", "too_long"):
        more = sum(e["type"] == "missing" for e in errors)
        n_values = found.get("ctx", {}).get("max_length", len(found["input"]) + more)
        return f"expected {n_values} values, got {found['input']!r}"
    text = _MESSAGES.get(found["msg"], found["msg"])
    return f"{text[0].lower()}{text[1:]}, got {found['input']!r}"
