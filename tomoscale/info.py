"""What a stored scan, volume or result is: its arrays, whether it is complete, and what led to it."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tomoscale import manifest, metadata, store
from tomoscale.errors import TomoscaleError
from tomoscale.journal import Job
from tomoscale.lock import STALE_AFTER_S, is_alive
from tomoscale.metadata import ArrayInfo
from tomoscale.operation import command
from tomoscale.progress import human_bytes, human_time
from tomoscale.record import record_of

METADATA = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata", manifest.FILE})


@command("info")
def show(path: Path, *, as_json: bool = False) -> str | dict[str, Any]:
    """
    Say what a scan, a volume or a result is, whether it is complete, and what led to it.

    Parameters
    ----------
    path : Path
        A Zarr group or array; of a result whose run is not finished, the name that it will have.
    as_json : bool
        Print JSON.

    Returns
    -------
    str or dict
        Words, or what `describe` returns.
    """
    found = describe(path)
    return found if as_json else "\n".join(_words(found))


def describe(path: str | Path) -> dict[str, Any]:
    """
    Return what a scan, a volume or a result is, in plain data.

    Parameters
    ----------
    path : str or Path
        A Zarr group or array, finished or not.

    Returns
    -------
    dict
        `path`, `complete` (None for what tomoscale did not write), `arrays` (by name: shape, dtype, chunks,
        codecs, bytes, stored bytes, chunks missing), `lost` (names of arrays whose metadata are gone), `tables`,
        `history`; of an unfinished run also `run`: its operation and parameters, the share of each array that is
        written, and who writes.

    Raises
    ------
    TomoscaleError
        There is nothing that Zarr knows.
    """
    given = Path(path)
    folder = given.absolute()
    if not folder.exists() and folder.with_name(folder.name + store.INCOMPLETE).is_dir():
        folder = folder.with_name(folder.name + store.INCOMPLETE)
    if not folder.exists():
        raise TomoscaleError(f"{given}: does not exist")
    if folder.is_file():
        raise TomoscaleError(f"{given}: is a file; expected a Zarr directory (`tomoscale convert` makes one)")
    kind = metadata.node_type(folder)
    if kind is None:
        raise TomoscaleError(f"{given}: holds neither a Zarr array nor a Zarr group")
    group = folder if kind == "group" else store.outermost_group(folder)
    record = (record_of(group) if group else None) or {}
    names = store.arrays_of(folder) if kind == "group" else [""]
    found: dict[str, Any] = {
        "path": str(folder),
        "complete": record.get("complete") if record else None,
        "arrays": {name or folder.name: _array(folder / name, ours=bool(record)) for name in names},
        "lost": [name for name in record.get("arrays", ()) if kind == "group" and name not in names],
        "tables": _tables(folder),
        "history": list(record.get("history", [])),
    }
    if record and not record.get("complete") and kind == "group":
        found["run"] = _run(Job(folder.with_name(folder.name.removesuffix(store.INCOMPLETE))))
    return found


# ---------------------------------------------------------------- facts


def _array(folder: Path, *, ours: bool) -> dict[str, Any]:
    info = metadata.array_info(folder)
    n_bytes = math.prod(info.shape) * info.dtype.itemsize
    n_chunks = math.prod(-(-n // c) for n, c in zip(info.shape, info.stored, strict=True))
    n_stored, stored_bytes = _stored(folder)
    return {
        "shape": list(info.shape),
        "dtype": info.dtype.newbyteorder("=").name,
        "chunks": list(info.chunks),
        **({"shards": list(info.stored)} if info.stored != info.chunks else {}),
        "codecs": _codecs(folder, info),
        "bytes": n_bytes,
        "stored_bytes": stored_bytes,
        "n_chunks": n_chunks,
        "missing": n_chunks - n_stored if ours else 0,
    }


def _stored(folder: Path) -> tuple[int, int]:
    """
    Return how many objects an array has, and their bytes.

    Lengths come from the manifest where there is one: to ask the file system for those of 30,000 chunks takes
    seconds on a parallel file system.
    """
    files = list(_files(folder))
    if not (folder / manifest.FILE).is_file():
        return len(files), sum(f.stat().st_size for f in files)
    listed = manifest.read(folder)
    present = [k for f in files if (k := os.path.relpath(f.path, folder).replace(os.sep, "/")) in listed]
    return len(present), sum(listed[k].length for k in present)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            elif entry.name not in METADATA and not entry.name.endswith(".partial"):
                yield entry


def _codecs(folder: Path, info: ArrayInfo) -> str:
    """Name the codecs: `blosc-lz4-bitshuffle, crc32c`."""
    if info.zarr_format == 2:
        compressor = metadata.read_json(folder / ".zarray").get("compressor") or {}
        return "-".join(str(compressor[k]) for k in ("id", "cname") if k in compressor) or "none"
    names = []
    for codec in info.codecs:
        settings = codec.get("configuration") or {}
        if codec["name"] != "bytes":
            names.append(
                "-".join([codec["name"], *(str(settings[k]) for k in ("cname", "shuffle") if k in settings)])
            )
    return ", ".join(names) or "none"


def _tables(folder: Path) -> dict[str, Any]:
    """Return rows and columns of the table beside a result."""
    table = folder.with_name(folder.name.removesuffix(store.INCOMPLETE)).with_suffix(".parquet")
    if not table.is_file():
        return {}
    import pyarrow.parquet

    try:
        facts = pyarrow.parquet.read_metadata(table)
    except (OSError, ValueError, pyarrow.lib.ArrowException) as error:
        text = (str(error).splitlines() or ["damaged"])[0]
        raise TomoscaleError(f"{table}: not a readable table: {text}") from None
    return {table.name: {"rows": facts.num_rows, "columns": list(facts.schema.names)}}


def _run(job: Job) -> dict[str, Any]:
    """Return what is known of a run that is not finished."""
    if not (job.folder / "job.json").is_file():
        return {"operation": "unknown", "parameters": {}, "written": {}, "writer": None}
    header = metadata.read_json(job.folder / "job.json")
    done = job.finished()
    written = {}
    try:
        for name, array in header["arrays"].items():
            total = math.prod(-(-n // c) for n, c in zip(array["shape"], array["chunks"], strict=True))
            written[name] = {"chunks": len(done.get(name, {})), "of": total}
        parameters, inputs = dict(header["parameters"]), dict(header["inputs"])
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise TomoscaleError(f"{job.folder / 'job.json'}: damaged: not the header of a run") from None
    return {
        "operation": str(header.get("operation", "unknown")),
        "parameters": parameters,
        "inputs": inputs,
        "written": written,
        "writer": _writer(job),
    }


def _writer(job: Job) -> dict[str, Any] | None:
    """Return who holds an unfinished result, and whether that process still runs."""
    lock = job.lock
    try:
        owner = json.loads(lock.read_bytes())
        age = time.time() - lock.stat().st_mtime
        same_host = owner.get("host") == socket.gethostname()
        return {**owner, "alive": is_alive(owner) if same_host else age < STALE_AFTER_S}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # none, or one that says nothing


# ---------------------------------------------------------------- words


def _words(found: Mapping[str, Any]) -> Iterator[str]:
    yield found["path"]
    yield state(found)
    yield ""
    yield from _columns([
        ("array", "shape", "type", "chunks", "codecs", "bytes", "stored", "ratio"),
        *(array_row(name, a) for name, a in found["arrays"].items()),
    ])  # fmt: skip
    for name, table in found["tables"].items():
        yield f"{name}: {table['rows']} rows of {', '.join(table['columns'])}"
    for number, step in enumerate(found["history"], 1):
        yield ""
        yield f"{number}. {step['operation']}: {when(step)}"
        rows = [*inputs(step), *parameters(step)]
        width = max((len(k) for k, _ in rows), default=0)
        yield from (f"   {k:<{width}}  {v}" for k, v in rows)


def state(found: Mapping[str, Any]) -> str:
    """Say whether a result is complete, and if not how far it is and who writes it."""
    if found["complete"] is None:
        return "not written by tomoscale: no history, and nothing tells whether it is complete"
    missing = {n: a["missing"] for n, a in found["arrays"].items() if a["missing"]}
    if found["complete"]:
        lost = [f"{n} {'chunk' if n == 1 else 'chunks'} of {name}" for name, n in missing.items()]
        lost += found["lost"]
        return f"complete, but it lacks {', '.join(lost)}; see `tomoscale verify`" if lost else "complete"
    run = found.get("run")
    if run is None:
        return "not complete"
    parts = [f"{name} {w['chunks']} of {w['of']} chunks" for name, w in run["written"].items()]
    who = run["writer"]
    if who is None:
        hand = "nobody writes it now: run the same command again to go on"
    else:
        hand = f"process {who.get('pid')} on {who.get('host')} writes it since {who.get('since')}"
        hand += "" if who["alive"] else ", but is gone: run the same command again to go on"
    options = ", ".join(f"{k} {value(v)}" for k, v in run["parameters"].items())
    return f"not complete: {run['operation']} ({options}); {', '.join(parts)}; {hand}"


def array_row(name: str, array: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one array in words, for a table."""
    ratio = array["bytes"] / array["stored_bytes"] if array["stored_bytes"] else math.nan
    missing = f" ({array['missing']} chunks missing)" if array["missing"] else ""
    return (
        name + missing,
        " × ".join(map(str, array["shape"])),
        array["dtype"],
        " × ".join(map(str, array["chunks"])),
        array["codecs"],
        human_bytes(array["bytes"]),
        human_bytes(array["stored_bytes"]),
        f"{ratio:.2f}" if math.isfinite(ratio) else "",
    )


def when(step: Mapping[str, Any]) -> str:
    """Say when a step was finished, how long it took, with how much memory, and by which version."""
    finished = str(step.get("finished", "at an unknown time")).replace("T", " ").replace("+", " +")
    seconds = float(step.get("seconds", 0))
    took = human_time(seconds) if seconds >= 60 else f"{seconds:.1f} s"
    peak = f" with {human_bytes(step['peak_bytes'])} per worker" if step.get("peak_bytes") else ""
    return f"{finished}, in {took}{peak}, by tomoscale {step.get('versions', {}).get('tomoscale', 'unknown')}"


def inputs(step: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the inputs of a step in words."""
    return [(name, _identity(i)) for name, i in step.get("inputs", {}).items()]


def parameters(step: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the parameters of a step in words; of a volume that was used without being named, that it was found."""
    used = step.get("inputs", {})
    return [
        (name, "found with the input" if v is None and name in used else value(v))
        for name, v in step.get("parameters", {}).items()
    ]


def _identity(source: Mapping[str, Any]) -> str:
    names = " to ".join(source.get("names", []))  # of files: the first and the last
    shape = " × ".join(map(str, source.get("shape", [])))
    part = f", part {','.join(f'{a}:{b}' for a, b in source['roi'])}" if "roi" in source else ""
    return f"{source.get('path') or names or 'an array in memory'} ({shape} {source.get('dtype', '')}{part})"


def value(given: Any) -> str:
    """
    Write a parameter as people type it.

    >>> value([40.0, 6000.0]), value(None), value(True)
    ('40,6000', 'default', 'yes')
    """
    if given is None:
        return "default"
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, float):
        return f"{given:g}"
    if isinstance(given, list | tuple):
        return ",".join(map(value, given)) or "none"
    if isinstance(given, Mapping):
        return _identity(given) if "shape" in given else json.dumps(given)
    return str(given)


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lay out rows in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
