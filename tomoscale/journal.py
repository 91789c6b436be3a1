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

import errno
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tomoscale import lock, manifest, store
from tomoscale.chunks import ChunkFiles
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.metadata import differences, read_json
from tomoscale.objects import PARTIAL, Stored, measure, sync_folder, write_object

FOLDER = ".tomoscale"
INTACT = "blocks-intact.jsonl"
"""What a repair need not make again, and what it is to add again at the end."""

Record = dict[str, list[Stored]]
"""Field -> its stored objects, of one block."""


@dataclass
class Job:
    """
    An unfinished result and its record.

    Parameters
    ----------
    target : Path
        Where the complete result will be.
    fingerprint : int, optional
        Checksum of what the run that has begun here makes.
    """

    target: Path
    fingerprint: int | None = None

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
            resumed = self._begin(header, overwrite)
            self.fingerprint = self._fingerprint()
            return resumed
        except BaseException:
            self.release()
            raise

    def _begin(self, header: Mapping[str, Any], overwrite: bool) -> bool:
        resumed = False
        if (earlier := self._earlier(overwrite)) is not None:
            unlike = differences(earlier, json.loads(json.dumps(header)))
            if unlike and not overwrite:
                raise TomoscaleError(
                    f"{self.target}: an unfinished run was started differently: {'; '.join(unlike)}; "
                    "give the same parameters to go on, or --overwrite to start again"
                )
            resumed = not unlike
        if not resumed and self.root.exists():
            if not self.folder.is_dir() and any(self.root.iterdir()):
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

    @property
    def is_reopened(self) -> bool:
        """Whether the unfinished result was a complete one before."""
        return (self.folder / INTACT).is_file()

    def reopen(self, header: Mapping[str, Any], intact: Record, later: Sequence[Mapping[str, Any]]) -> None:
        """
        Turn a complete result into an unfinished one, of which only some objects are stored.

        Parameters
        ----------
        header : mapping
            The fingerprint of the run that is to make the others again.
        intact : Record
            What need not be made again.
        later : sequence of mapping
            Steps that added arrays to the result, which are removed: to be done again when it is complete.
        """
        lock.take(self.lock, self.target)
        try:
            if self.root.exists():
                raise TomoscaleError(
                    f"{self.root}: is in the way of a repair: an unfinished run; finish it, or move it away"
                )
            folder = self.target / FOLDER
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            store.write_json(folder / "job.json", header)
            line = json.dumps({"block": "intact", "objects": intact, "later": list(later)})
            write_object(folder / INTACT, [f"{line}\n".encode()])
            for name in (n for step in later for n in step["arrays"]):
                shutil.rmtree(self.target / name, ignore_errors=True)
            os.rename(self.target, self.root)
            sync_folder(self.target.parent)
        finally:
            self.release()

    def _earlier(self, overwrite: bool) -> dict[str, Any] | None:
        """Return the header of the run that began here; None if there is none, or it is to be replaced anyway."""
        path = self.folder / "job.json"
        try:
            if path.is_file():
                return read_json(path)
            if not any(self.folder.glob("blocks-*.jsonl")):
                return None
            raise TomoscaleError(f"{path}: is missing, and with it what the finished blocks belong to")
        except TomoscaleError as error:
            if overwrite:
                return None
            raise TomoscaleError(f"{error}; give --overwrite to start again") from None

    @property
    def lock(self) -> Path:
        """Who writes now; beside the result, since the result's folder may be replaced."""
        return self.target.with_name(f".{self.target.name}.lock")

    @property
    def _replaced(self) -> Path:
        return self.target.with_name(f".{self.target.name}.replaced")

    def _fingerprint(self) -> int:
        return measure(self.folder / "job.json").crc

    def check_fingerprint(self) -> None:
        """Refuse a block of a run that is over, or was replaced: its worker stood still for long."""
        try:
            is_ours = self._fingerprint() == self.fingerprint
        except FileNotFoundError:
            raise TomoscaleError(f"{self.target}: the run of this block is over") from None
        if not is_ours:
            raise TomoscaleError(
                f"{self.target}: another run has begun here; this block is of an earlier one"
            )

    def check(self) -> None:
        """Make sure that no other run has taken the output."""
        lock.check(self.lock)

    def release(self) -> None:
        """Let another run take the output."""
        lock.release(self.lock)

    def forget(self) -> None:
        """Remove an unfinished output of which nothing was finished, since its input turned out to be bad."""
        lock.take(self.lock, self.target)
        try:
            if not self.finished():
                shutil.rmtree(self.root, ignore_errors=True)
        finally:
            self.release()

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
        self._write_manifests(files)
        store.create_group(self.root, attributes)
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

    def _write_manifests(self, files: Mapping[str, ChunkFiles]) -> None:
        done = self.finished()
        for name, of_array in files.items():
            lacking = set(of_array.keys()) - set(done.get(name, ()))
            if lacking:
                raise DamagedError(f"{self.target}: {len(lacking)} objects of {name} were never recorded")
            array = self.root / name
            recorded = [done[name][key] for key in of_array.keys()]  # a damaged line may name something else
            manifest.write(array, [*recorded, measure(array / "zarr.json", "zarr.json")])

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
                except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
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
        with _appending:
            end = os.fstat(descriptor).st_size
            if os.write(descriptor, line.encode()) < len(line):
                os.ftruncate(descriptor, end)  # or the next line would be torn as well
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        os.fsync(descriptor)


_journals: dict[str, int] = {}
_opening, _appending = threading.Lock(), threading.Lock()


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
