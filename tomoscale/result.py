"""What an operation returned, sorted into what a run does with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import blocks, store
from tomoscale.blocks import Cost
from tomoscale.errors import TomoscaleError
from tomoscale.operation import Origin, fields_of, versions


@dataclass(frozen=True)
class Pass:
    """Lazy arrays that one set of blocks fills together."""

    arrays: Mapping[str, Any]
    cost: Cost

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks along every axis."""
        return next(iter(self.arrays.values())).numblocks

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Result:
    """
    The fields of a result by what they are.

    Parameters
    ----------
    lazy : mapping
        Arrays filled block by block.
    once : mapping
        Small arrays that are computed before the blocks.
    small : mapping
        Arrays that are there already.
    tables : mapping
        Tables, written beside the output; lazy ones (`parts.derived`) are computed with the first results.
    """

    lazy: Mapping[str, Any]
    once: Mapping[str, Any]
    small: Mapping[str, np.ndarray]
    tables: Mapping[str, Any]

    @classmethod
    def of(cls, result: Any) -> Result:
        """
        Sort the fields of a result, and what it carries over from its input.

        Raises
        ------
        TomoscaleError
            A field that is neither an array nor a table.
        """
        fields = fields_of(result)
        for value in list(fields.values()):
            fields = {**_facts(value).get("carried", {}), **fields}
        lazy, once, small, tables = {}, {}, {}, {}
        for name, value in fields.items():
            if "once" in _facts(value):
                once[name] = value
            elif _is_lazy(value):
                lazy[name] = value
            elif isinstance(value, np.ndarray):
                small[name] = value
            elif hasattr(value, "column_names") or hasattr(value, "dask"):
                tables[name] = value
            else:
                raise TomoscaleError(
                    f"run.write: {name} is a {type(value).__name__}; expected an array or a table"
                )
        return cls(lazy, once, small, tables)

    @property
    def arrays(self) -> dict[str, Any]:
        """All arrays of the output group."""
        return {**self.lazy, **self.once, **self.small}

    @property
    def origin(self) -> Origin:
        """Which operation made it; `run.write` itself for arrays of another making."""
        for array in self.arrays.values():
            if "origin" in _facts(array):
                return _facts(array)["origin"]
        return Origin("run.write", {}, {}, [])

    def header(self) -> dict[str, Any]:
        """Return the fingerprint: what must be equal for a run to go on."""
        arrays = {
            name: {"shape": list(a.shape), "dtype": str(a.dtype), "chunks": list(stored_chunks(a))}
            for name, a in self.arrays.items()
        }
        return {**self.made_by(), "arrays": arrays}

    def made_by(self) -> dict[str, Any]:
        """Return operation, parameters, inputs and versions."""
        return {
            "operation": self.origin.operation,
            "parameters": self.origin.parameters,
            "inputs": self.origin.inputs,
            "versions": versions(),
        }

    @property
    def passes(self) -> list[Pass]:
        """Arrays that the same tasks yield, together."""
        groups: dict[Any, dict[str, Any]] = {}
        costs: dict[Any, Cost] = {}
        for name, array in self.lazy.items():
            facts = _facts(array)
            group = facts.get("made_by", array.name)
            groups.setdefault(group, {})[name] = array
            block = int(math.prod(array.chunksize)) * array.dtype.itemsize
            costs[group] = facts.get("cost") or Cost(block=3 * block, read=0, written=array.nbytes)
        return [Pass(arrays, costs[group]) for group, arrays in groups.items()]

    def needed_first(self) -> dict[Any, dict[str, Any]]:
        """
        Return what must be computed before the blocks, each after what it needs, in the same order every time.

        Returns
        -------
        dict
            The facts of its layer (`once`: its lazy parts; `kept`: a pass) by its key in the graph.
        """
        layers: dict[str, Any] = {}
        needs: dict[str, Any] = {}
        for value in self._made():
            layers.update(value.dask.layers)
            needs.update(value.dask.dependencies)
        order = {name: i for i, name in enumerate(layers)}
        sorter = TopologicalSorter({n: sorted(needs[n], key=order.__getitem__) for n in order})
        stated = [(name, getattr(layers[name], "facts", {})) for name in sorter.static_order()]
        return {
            (name,) + (0,) * (len(facts["stored"]) if "once" in facts else 0): facts
            for name, facts in stated
            if "once" in facts or "kept" in facts
        }

    def _made(self) -> list[Any]:
        """Return all lazy values of the result."""
        return [
            v for v in (*self.lazy.values(), *self.once.values(), *self.tables.values()) if hasattr(v, "dask")
        ]

    def graph(self) -> dict[Any, Any]:
        """Return the tasks of all lazy arrays."""
        merged: dict[Any, Any] = {}
        for value in self._made():
            for layer in value.dask.layers.values():
                merged.update(layer)
        return merged

    @property
    def files(self) -> list[str]:
        """Detector files that are read."""
        return list(dict.fromkeys(f for a in self.lazy.values() for f in _facts(a).get("files", ())))

    @property
    def joins(self) -> Path | None:
        """The complete result that these arrays belong to, if they may be added to it."""
        return next((f["joins"] for a in self.lazy.values() if "joins" in (f := _facts(a))), None)

    def axes_of(self, name: str) -> list[str] | None:
        """Return the names of the axes of an array: of an image, and of what has one value for each of its pixels."""
        facts = _facts(self.arrays[name])
        if "multiscale" in facts:
            return [axis["name"] for axis in facts["multiscale"]["axes"]]
        for image in self.lazy.values():
            kind = _facts(image).get("image")
            if kind and image.shape == self.arrays[name].shape:
                return [axis["name"] for axis in store.AXES[kind]]
        return None

    def ome(self, root: Path, *, alone: bool = True) -> dict[str, Any]:
        """Return what viewers read, of the arrays below a folder; nothing where no image is stated."""
        for name, array in self.lazy.items():
            facts = _facts(array)
            if "multiscale" in facts:
                whole = facts["multiscale"]
                own = [d for d in whole["datasets"] if d["path"] in self.arrays or not alone]
                return {"ome": {"version": "0.5", "multiscales": [{**whole, "datasets": own}]}}
            if "image" in facts:
                scale = facts.get("scale") or self._scale(root)
                return store.ome_image(name, facts["image"], scale, facts.get("unit"))
        return {}

    def _scale(self, root: Path) -> tuple[float, float, float]:
        """Return degrees per frame where the angles are known; pixels have no unit."""
        if "omega" not in self.arrays:
            return 1.0, 1.0, 1.0
        omega = store.open_volume(root / "omega", allow_incomplete=True).whole()
        return (float(omega[-1] - omega[0]) / max(1, len(omega) - 1) or 1.0), 1.0, 1.0


def _facts(value: Any) -> dict[str, Any]:
    return blocks.facts(value) if _is_lazy(value) else {}


def _is_lazy(value: Any) -> bool:
    """Tell a lazy array from a lazy table."""
    return hasattr(value, "dask") and hasattr(type(value), "chunks")


def stored_chunks(array: Any) -> tuple[int, ...]:
    """
    Return the shape of the stored chunks of an array.

    Raises
    ------
    TomoscaleError
        Blocks that are not whole chunks: two tasks would write into one file.
    """
    if isinstance(array, np.ndarray):
        return tuple(max(1, n) for n in array.shape)
    stored = tuple(blocks.facts(array).get("stored", array.chunksize))
    whole = all(n % c == 0 for lengths, c in zip(array.chunks, stored, strict=True) for n in lengths[:-1])
    if not whole:
        raise TomoscaleError(
            f"run.write: blocks {array.chunks} are not whole chunks of {stored}; rechunk the array"
        )
    return tuple(min(c, n) for c, n in zip(stored, array.shape, strict=True))
