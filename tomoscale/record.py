"""What tomoscale and viewers wrote down about a result, in the form that all who read it may rely on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tomoscale.errors import TomoscaleError
from tomoscale.metadata import are_integers, attributes_of

INCOMPLETE = ".incomplete"
"""What the name of a result ends with until its run is finished."""


def images_of(folder: Path) -> list[dict[str, Any]]:
    """Return the OME-Zarr images of a group, of version 0.4 or 0.5."""
    attributes = attributes_of(folder)
    inner = attributes.get("ome", attributes)
    images = inner.get("multiscales") if isinstance(inner, dict) else None
    return [i for i in images if isinstance(i, dict)] if isinstance(images, list) else []


def is_inside(name: Any) -> bool:
    """
    Tell whether a name that stands in a file leads to something below the folder that it is relative to.

    >>> [is_inside(n) for n in ("truth/labels", "../secret", "/etc/passwd", "", 3)]
    [True, False, False, False, False]
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path != PurePosixPath(".")


def record_of(folder: Path) -> dict[str, Any] | None:
    """
    Return what tomoscale wrote down about a result, or None where it wrote nothing.

    Parameters
    ----------
    folder : Path
        The group.

    Returns
    -------
    dict or None
        `complete`; and of a complete result `arrays` (names below the group) and `history` (operation,
        parameters, inputs and versions of every step; `arrays` of one that added some later), of the types that are
        expected of them.

    Raises
    ------
    TomoscaleError
        A record of another form: it was damaged, or made by something else.
    """
    record = attributes_of(folder).get("tomoscale")
    if record is None:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("complete"), bool):
        raise TomoscaleError(
            f"{folder}: its record is damaged: it does not say whether the result is complete"
        )
    arrays, history = record.get("arrays", []), record.get("history", [])
    if not isinstance(arrays, list) or not all(map(is_inside, arrays)):
        raise TomoscaleError(f"{folder}: its record is damaged: arrays {str(arrays)[:100]}")
    if not isinstance(history, list) or not all(map(is_step, history)):
        raise TomoscaleError(f"{folder}: its record is damaged: the history is none")
    # The name counts too: a run that finishes, or a repair that begins, may be killed before or after it gets it.
    complete = record["complete"] and not folder.name.endswith(INCOMPLETE)
    return {**record, "complete": complete, "arrays": arrays, "history": history}


def added_steps(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps of a result's history that added arrays to it when it was complete: the last ones."""
    n = len(history)
    while n and "arrays" in history[n - 1]:
        n -= 1
    return list(history[n:])


def tables_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return length and checksum of the tables beside a result, by name; none if its attributes are damaged."""
    try:
        tables = attributes_of(folder).get("tomoscale", {}).get("tables", {})
        return {folder.with_suffix(".parquet").name: (int(n), int(crc)) for n, crc in tables.values()}
    except (TomoscaleError, AttributeError, TypeError, ValueError):
        return {}


def is_step(step: Any) -> bool:
    """Tell whether a step of a history has the form that all that read it expect."""
    if not isinstance(step, dict) or not isinstance(step.get("operation"), str):
        return False
    groups = [step.get(name, {}) for name in ("parameters", "inputs", "versions")]
    figures = [step.get(name, 0) for name in ("seconds", "peak_bytes")]
    added = step.get("arrays", [])
    return (
        all(isinstance(g, dict) for g in groups)
        and isinstance(added, list)
        and all(map(is_inside, added))
        and all(type(f) in (int, float) and math.isfinite(f) and f >= 0 for f in figures)
        and all(_is_identity(i) for i in groups[1].values())
    )


def _is_identity(found: Any) -> bool:
    """Tell whether this says which array an input was."""
    if not isinstance(found, dict):
        return False
    shape, roi, path = found.get("shape", []), found.get("roi", []), found.get("path", "")
    if not isinstance(path, str) or "\0" in path or not isinstance(roi, list):
        return False
    return are_integers(shape) and all(are_integers(r) and len(r) == 2 for r in roi)
