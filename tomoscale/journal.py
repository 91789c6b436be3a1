"""
The job beside an unfinished result: what is being made, who makes it, and which blocks are finished.

    .out.zarr.lock                host and process of the run that writes now
    out.zarr.incomplete/.tomoscale/
        job.json                  operation, parameters, inputs, versions, arrays: the fingerprint
        once-N.npy                small results that every block needs
        blocks-HOST-PID-T.jsonl   one line per finished block, one file per worker process

Every line is appended and made durable after all objects of its block are; a torn last line counts
for nothing. At the end the lines become the manifest of each array (`frames/.manifest.jsonl`), and that of the group
lists the metadata and these manifests.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tomoscale import lock, manifest, store
from tomoscale.chunks import PARTIAL, ChunkFiles, Stored, measure, sync_folder
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.metadata import read_json

FOLDER = ".tomoscale"

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
        lock.take(self.lock, self.target)
        try:
            return self._begin(header, overwrite)
        except BaseException:
            self.release()
            raise

    def _begin(self, header: Mapping[str, Any], overwrite: bool) -> bool:
        resumed = False
        if (self.folder / "job.json").is_file():
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
        if self.target.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
        if resumed:
            self._sweep()
        else:
            store.write_json(self.folder / "job.json", header)
        return resumed

    def reopen(self, header: Mapping[str, Any], intact: Record) -> None:
        """
        Turn a complete result into an unfinished one, of which only some objects are stored.

        Parameters
        ----------
        header : mapping
            The fingerprint of the run that is to make the others again.
        intact : Record
            What need not be made again.
        """
        lock.take(self.lock, self.target)
        try:
            folder = self.target / FOLDER
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            store.write_json(folder / "job.json", header)
            line = json.dumps({"block": "intact", "objects": intact})
            (folder / "blocks-intact.jsonl").write_text(line + "\n", encoding="utf-8")
            os.rename(self.target, self.root)
            sync_folder(self.target.parent)
        finally:
            self.release()

    @property
    def lock(self) -> Path:
        """Who writes now; beside the result, since the result's folder may be replaced."""
        return self.target.with_name(f".{self.target.name}.lock")

    @property
    def _replaced(self) -> Path:
        return self.target.with_name(f".{self.target.name}.replaced")

    def beat(self) -> None:
        """Show other hosts that this run is alive."""
        lock.beat(self.lock)

    def release(self) -> None:
        """Let another run take the output."""
        lock.release(self.lock)

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        for folder, _, files in os.walk(self.root):
            for name in files:
                if name.endswith(PARTIAL):
                    (Path(folder) / name).unlink(missing_ok=True)

    def finish(self, files: Mapping[str, ChunkFiles], attributes: Mapping[str, Any]) -> None:
        """
        Turn the record into manifests, mark the result complete and give it its name, in this order.

        Parameters
        ----------
        files : mapping of str to ChunkFiles
            All arrays of the result.
        attributes : mapping
            Of the complete group.

        Raises
        ------
        DamagedError
            The record lacks an object: nothing is called complete that is not.
        """
        done = self.finished()
        for name, of_array in files.items():
            lacking = set(of_array.keys()) - set(done.get(name, ()))
            if lacking:
                raise DamagedError(f"{self.target}: {len(lacking)} objects of {name} were never recorded")
            array = self.root / name
            manifest.write(array, [*done[name].values(), measure(array / "zarr.json", "zarr.json")])
        store.write_json(self.root / "zarr.json", _group(attributes))
        groups = {p for name in files for p in PurePosixPath(name).parents}
        keys = [str(g / "zarr.json") for g in groups] + [f"{name}/{manifest.FILE}" for name in files]
        manifest.write(self.root, [measure(self.root / key, key) for key in keys])
        # The record goes last: until the result has its name, a killed run must be able to go on.
        shutil.rmtree(self._replaced, ignore_errors=True)
        if self.target.exists():
            os.rename(self.target, self._replaced)
        os.rename(self.root, self.target)
        sync_folder(self.target.parent)
        shutil.rmtree(
            self.target / FOLDER, ignore_errors=True
        )  # files that are open elsewhere may stay on NFS
        shutil.rmtree(self._replaced, ignore_errors=True)

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


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """List what two headers do not share; where an input lies is no difference."""
    if isinstance(then, dict) and isinstance(now, dict):
        found = []
        for key in sorted({*then, *now}):
            if not (name.startswith("inputs") and key == "path"):
                found += _differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        return found
    return [] if then == now else [f"{name} was {then!r} and is now {now!r}"]
