"""
The job beside an unfinished result: what is being made, who makes it, and which blocks are finished.

    out.zarr.incomplete/.tomoscale/
        job.json                  operation, parameters, inputs, versions, arrays: the fingerprint
        lock.json                 host and process of the run that writes now
        once-N.npy                small results that every block needs
        blocks-HOST-PID-T.jsonl   one line per finished block, one file per worker process

Every line is appended and made durable after all objects of its block are; a torn last line counts
for nothing. At the end the lines become the manifest of each array (`frames/.manifest.jsonl`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import store
from tomoscale.chunks import PARTIAL, Stored, measure, sync_folder
from tomoscale.errors import TomoscaleError
from tomoscale.metadata import read_json

FOLDER = ".tomoscale"
MANIFEST = ".manifest.jsonl"
STALE_AFTER_S = 120

Record = dict[str, list[Stored]]
"""Field -> its stored objects, of one block."""


@dataclass(frozen=True)
class Job:
    """
    An unfinished result and its record.

    Parameters
    ----------
    target : Path
        Where the complete result will be.
    """

    target: Path

    @property
    def root(self) -> Path:
        """The group being written."""
        return self.target.with_name(self.target.name + store.INCOMPLETE)

    @property
    def folder(self) -> Path:
        """The record."""
        return self.root / FOLDER

    # ------------------------------------------------------------ begin, go on, end

    def begin(self, header: Mapping[str, Any], *, overwrite: bool = False) -> bool:
        """
        Take the output for this run.

        Parameters
        ----------
        header : mapping
            Operation, parameters, inputs, versions and arrays; together the fingerprint.
        overwrite : bool
            Throw away an unfinished result of other parameters.

        Returns
        -------
        bool
            Whether an earlier run of the same fingerprint goes on.

        Raises
        ------
        TomoscaleError
            Another run is writing, or an earlier one had another fingerprint.
        """
        resumed = False
        if (self.folder / "job.json").is_file():
            self._refuse_while_locked()
            differences = _differences(read_json(self.folder / "job.json"), json.loads(json.dumps(header)))
            if differences and not overwrite:
                raise TomoscaleError(
                    f"{self.target}: an unfinished run was started differently: {'; '.join(differences)}; "
                    "give the same parameters to go on, or --overwrite to start again"
                )
            resumed = not differences
        if not resumed and self.root.exists():
            if not overwrite and not self.folder.is_dir() and any(self.root.iterdir()):
                raise TomoscaleError(f"{self.root}: exists and is not an unfinished run; move it away")
            shutil.rmtree(self.root)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        if resumed:
            self._sweep()
        else:
            store.write_json(self.folder / "job.json", header)
        return resumed

    def _refuse_while_locked(self) -> None:
        lock = self.folder / "lock.json"
        try:
            owner = json.loads(lock.read_bytes())
            age = time.time() - lock.stat().st_mtime
        except (OSError, ValueError):
            return
        same_host = owner.get("host") == socket.gethostname()
        alive = is_alive(owner) if same_host else age < STALE_AFTER_S
        if alive:
            raise TomoscaleError(
                f"{self.target}: another run is writing it: process {owner.get('pid')} on {owner.get('host')} "
                f"since {owner.get('since')}; wait for it or stop it"
            )

    def _lock(self) -> None:
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        lock = self.folder / "lock.json"
        lock.unlink(missing_ok=True)  # what `_refuse_while_locked` let pass is stale
        try:
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise TomoscaleError(f"{self.target}: another run took it in this moment") from None
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner, file)

    def beat(self) -> None:
        """Show other hosts that this run is alive."""
        try:
            os.utime(self.folder / "lock.json")
        except FileNotFoundError:
            raise TomoscaleError(f"{self.root}: was taken away while it was being written") from None

    def release(self) -> None:
        """Let another run take the output."""
        if not self.folder.is_dir():
            return
        (self.folder / "lock.json").unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        for folder, _, files in os.walk(self.root):
            for name in files:
                if name.endswith(PARTIAL):
                    (Path(folder) / name).unlink(missing_ok=True)

    def finish(self, fields: Iterable[str], attributes: Mapping[str, Any]) -> None:
        """Turn the record into manifests, mark the result complete and give it its name, in this order."""
        done = self.finished()
        for name in fields:
            array = self.root / name
            write_manifest(array, [*done[name].values(), measure(array / "zarr.json", "zarr.json")])
        store.write_json(self.root / "zarr.json", _group(attributes))
        # The record goes last: until the result has its name, a killed run must be able to go on.
        replaced = self.target.with_name(f".{self.target.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if self.target.exists():
            os.rename(self.target, replaced)
        os.rename(self.root, self.target)
        sync_folder(self.target.parent)
        shutil.rmtree(self.target / FOLDER)
        shutil.rmtree(replaced, ignore_errors=True)

    # ------------------------------------------------------------ blocks

    def finished(self) -> dict[str, dict[str, Stored]]:
        """Return the recorded objects of every field by key; the newest record of an object counts."""
        done: dict[str, dict[str, Stored]] = {}
        for file in sorted(self.folder.glob("blocks-*.jsonl"), key=lambda f: f.stat().st_mtime_ns):
            for line in file.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    for name, objects in entry["objects"].items():
                        done.setdefault(name, {}).update({o[0]: Stored(*o) for o in objects})
                except (ValueError, KeyError, TypeError, IndexError):
                    continue  # the torn last line of a killed process
        return done

    def is_intact(self, record: Record) -> bool:
        """Tell whether every object of a finished block is still stored as it was recorded."""
        try:
            return all(
                measure(self.root / name / o.key, o.key) == o
                for name, objects in record.items()
                for o in objects
            )
        except OSError:
            return False

    def append(self, block: str, record: Record) -> None:
        """Record a finished block, durably."""
        line = json.dumps({"block": block, "time": round(time.time(), 3), "objects": record}) + "\n"
        descriptor = _journal_of_this_process(self.folder)
        os.write(descriptor, line.encode())
        os.fsync(descriptor)

    # ------------------------------------------------------------ small results

    def load_once(self, number: int) -> np.ndarray | None:
        """Return a small result of an earlier run, or None."""
        try:
            return np.load(self.folder / f"once-{number}.npy", allow_pickle=False)
        except (OSError, ValueError):
            return None

    def keep_once(self, number: int, array: np.ndarray) -> None:
        """Keep a small result for a resumed run."""
        path = self.folder / f"once-{number}.npy"
        temporary = path.with_suffix(PARTIAL)
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_manifest(array: Path, objects: Iterable[Stored]) -> None:
    """Write length and checksum of every stored object of an array, keyed, so that a swap of two is seen."""
    path = array / MANIFEST
    temporary = path.with_name(path.name + PARTIAL)
    with open(temporary, "w", encoding="ascii") as file:
        for stored in sorted(objects):
            file.write(json.dumps(stored) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_manifest(array: Path) -> dict[str, Stored]:
    """Return the manifest of an array by key."""
    try:
        lines = (array / MANIFEST).read_text(encoding="ascii").splitlines()
        return {s.key: s for s in (Stored(*json.loads(line)) for line in lines)}
    except FileNotFoundError:
        raise TomoscaleError(f"{array}: no manifest; only results of tomoscale can be verified") from None
    except (ValueError, TypeError):
        raise TomoscaleError(f"{array / MANIFEST}: damaged") from None


_journals: dict[str, int] = {}
_opening = threading.Lock()


def _journal_of_this_process(folder: Path) -> int:
    """Return the descriptor of this process's file; a new one if the job was replaced since."""
    key = f"{folder}:{os.getpid()}"
    with _opening:
        descriptor = _journals.get(key)
        if descriptor is not None:
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)
        name = f"blocks-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        sync_folder(folder)
        _journals[key] = descriptor
        return descriptor


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def _started(pid: int) -> float | None:
    """Return when a process started, to tell it from a later one of the same number; None if it is no more."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except psutil.Error:
        return None


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Tell whether the process that a lock names still runs on this machine."""
    started = _started(int(owner.get("pid", 0)))
    return started is not None and abs(started - float(owner.get("started") or 0)) < 2


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """List what two headers do not share; where an input lies is no difference."""
    if isinstance(then, dict) and isinstance(now, dict):
        found = []
        for key in sorted({*then, *now}):
            if not (name.startswith("inputs") and key == "path"):
                found += _differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        return found
    return [] if then == now else [f"{name} was {then!r} and is now {now!r}"]
