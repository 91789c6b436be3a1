"""Layers of a Dask graph that carry what a run must know before their first task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dask.array as da


@cache
def layer_class() -> type:
    """Return the class of layers, made on first use, since Dask takes long to import."""
    from dask.highlevelgraph import MaterializedLayer

    class Layer(MaterializedLayer):
        """The tasks of one lazy array, and what a run must know before the first of them."""

        def __init__(self, mapping: Mapping, **facts: Any) -> None:
            super().__init__(mapping)
            self.facts = facts

    return Layer


def title_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, also of one with some arguments given already."""
    while hasattr(function, "func"):
        function = function.func
    return function.__name__.strip("_")


def layer(tasks: Mapping[Any, Any], **stated: Any) -> Any:
    """Return tasks as a layer of a graph that carries facts."""
    return layer_class()(tasks, **stated)


def facts(array: da.Array) -> dict[str, Any]:
    """Return what the maker of a lazy array stated: `stored`, `cost`, `once`, `origin`; empty if nothing."""
    return getattr(array.dask.layers.get(array.name), "facts", {})


def state(array: da.Array, **more: Any) -> None:
    """State further facts about a lazy array (its origin, say)."""
    layer = array.dask.layers[array.name]
    layer.facts = {**layer.facts, **more}
