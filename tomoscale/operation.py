"""An operation: an ordinary function whose signature is also its command, its checks and its provenance."""

from __future__ import annotations

import functools
import inspect
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from tomoscale import blocks, store
from tomoscale._version import __version__
from tomoscale.parameters import Volume, checked, name_of

Function = TypeVar("Function", bound=Callable[..., Any])
VERSIONED = ("dask", "numba", "numcodecs", "numpy", "zarr")


@dataclass(frozen=True)
class Origin:
    """Which operation made an array, from what: the record that a result carries."""

    operation: str
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def who(self) -> str:
        """The operation and its first input, for errors."""
        path = next((i["path"] for i in self.inputs.values() if i.get("path")), None)
        return self.operation + (f" of {path}" if path else "")


def operation(
    command: str, *, instead: Any = None, outcome: Any = None, joins: bool = False
) -> Callable[[Function], Function]:
    """
    Make a function an operation.

    Its keyword-only parameters are checked (`parameters.checked`), volumes may be given as paths or
    arrays, and the lazy arrays that it returns carry their origin.

    Parameters
    ----------
    command : str
        The subcommand, `background` or `simulate dct`.
    instead : (predicate, function), optional
        What the command does when the predicate holds for its arguments: `convert` back to files.
    outcome : function, optional
        Figures of a written result by their names, from its path: what a search for parameters compares. The
        result must have `labels` of the shape of the first input; their outlines are drawn on it.
    joins : bool
        Whether the command adds the result to the group of its input, unless another output is given.
    """

    def decorate(function: Function) -> Function:
        inner = checked(function)
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            volumes = _volume_parameters(function)
            opened = [
                _open(a) if n in volumes else a for n, a in zip(signature.parameters, args, strict=False)
            ]
            named = {n: _open(a) if n in volumes else a for n, a in options.items()}
            result = inner(*opened, **named)
            bound = signature.bind(*opened, **named)
            bound.apply_defaults()
            _stamp(result, _origin(function, bound.arguments))
            return result

        call.command = command  # type: ignore[attr-defined]
        call.instead = instead  # type: ignore[attr-defined]
        call.joins = joins  # type: ignore[attr-defined]
        if outcome is not None:
            call.outcome = outcome  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


def command(name: str) -> Callable[[Function], Function]:
    """Make a function that acts at once (`info`, `report`) a command of this name."""

    def decorate(function: Function) -> Function:
        inner = checked(function)
        inner.command = name  # type: ignore[attr-defined]
        inner.acts = True  # type: ignore[attr-defined]
        return inner

    return decorate


def _open(value: Any) -> Any:
    """Open what stands for a volume; the word `none` refuses one that would be found."""
    return value if isinstance(value, str) and value == "none" else store.as_volume(value)


@functools.cache
def _volume_parameters(function: Callable[..., Any]) -> frozenset[str]:
    hints = get_type_hints(function)
    return frozenset(n for n, h in hints.items() if Volume in (h, *getattr(h, "__args__", ())))


def fields_of(result: Any) -> dict[str, Any]:
    """Return the fields of a result by name: of a named tuple, a mapping, or a single array."""
    if isinstance(result, Mapping):
        return dict(result)
    if hasattr(result, "_asdict"):
        return dict(result._asdict())
    return {"volume": result}


def _origin(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Origin:
    parameters: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for name, value in arguments.items():
        if name == "device":
            continue  # results do not depend on it; those that do say so
        if isinstance(value, store.Volume):
            inputs[name] = value.identity()
            history = history or value.history()
        else:
            parameters[name] = _plain(value)
    return Origin(name_of(function), parameters, inputs, history)


def _plain(value: Any) -> Any:
    """Return a parameter as JSON holds it."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers: strict readers would refuse the whole record
    if hasattr(value, "identity"):
        return value.identity().get("path") or value.identity()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def _stamp(result: Any, origin: Origin) -> None:
    for array in _lazy(result):
        stated = blocks.facts(array)
        known = replace(origin, **{n: stated[n] for n in ("inputs", "history") if n in stated})
        beside = {n: i for n, i in stated.get("beside", {}).items() if n not in known.inputs}
        # A network in memory, say, is known by its identity alone: it cannot be given again.
        parameters = {
            n: v for n, v in known.parameters.items() if n not in beside or v is None or isinstance(v, str)
        }
        parameters |= stated.get("parameters", {})
        known = replace(known, parameters=parameters, inputs={**known.inputs, **beside})
        blocks.state(array, origin=known)


def _lazy(result: Any) -> Iterator[Any]:
    for value in fields_of(result).values():
        if hasattr(value, "dask") and hasattr(type(value), "chunks"):
            yield value


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    return {
        "tomoscale": __version__,
        "python": platform.python_version(),
        **{n: version(n) for n in VERSIONED},
    }
