"""
Arrays that are added to a complete result, which stays complete all the time.

They are made as a result of their own, beside it (`OUT.zarr.added.incomplete`), with a job that goes on where it was
stopped. At the end their folders move into the result, where nothing lists them yet; then its metadata and its manifest
are replaced together (`manifest.extend`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tomoscale import manifest, store
from tomoscale.chunks import ChunkFiles
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.journal import Job
from tomoscale.metadata import attributes_of, read_json
from tomoscale.objects import PARTIAL, measure, sync_folder
from tomoscale.record import added_steps, is_inside, record_of

REPLACED = "replaced.json"
"""In the job: which arrays of before are being removed."""


class Addition(Job):
    """A job whose arrays become part of a complete result."""

    @property
    def root(self) -> Path:
        """The group being written."""
        return self.target.with_name(f"{self.target.name}.added{store.INCOMPLETE}")

    def check_replaced(self, names: Sequence[str], allowed: bool) -> None:
        """
        Refuse to add to what is no complete result, and to replace arrays unasked.

        Parameters
        ----------
        names : sequence of str
            The arrays to add.
        allowed : bool
            Whether arrays that were added before may be replaced.

        Raises
        ------
        TomoscaleError
            Not a complete result, or it has such arrays; of others than those added before whatever is allowed.
        """
        record = _complete(self.target)
        if not os.access(self.target, os.W_OK | os.X_OK):
            raise TomoscaleError(f"{self.target}: is not writable; give another output with -o")
        there = [n for n in names if n in record["arrays"]]
        added = {n for step in added_steps(record["history"]) for n in step["arrays"]}
        if there and not allowed:
            raise TomoscaleError(
                f"{self.target}: has {', '.join(there)} already; give --overwrite to replace them"
            )
        in_the_way = [n for n in there if n not in added]
        if not (self.folder / "job.json").exists():  # else a run that was killed may have left it
            in_the_way += [n for n in names if n not in there and os.path.lexists(self.target / n)]
        if in_the_way:
            raise TomoscaleError(
                f"{self.target / in_the_way[0]}: is in the way, and was not added by tomoscale; move it away"
            )

    def _begin(self, header: Mapping[str, Any], overwrite: bool) -> bool:
        names = {*header["arrays"]}
        with contextlib.suppress(TomoscaleError, TypeError):  # an unfinished run may have made other arrays
            names |= {*read_json(self.folder / "job.json").get("arrays", ())}
        self._tidy(_complete(self.target)["arrays"], list(filter(is_inside, names)))
        return super()._begin(header, overwrite)

    def _tidy(self, recorded: Sequence[str], names: Sequence[str]) -> None:
        """Finish removing arrays, and take back those that were moved, where a run was killed meanwhile."""
        record = self.folder / REPLACED
        replaced = read_json(record).get("arrays", []) if record.exists() else []
        for name in filter(is_inside, replaced):
            if name not in recorded and (name not in names or (self.root / name).exists()):
                shutil.rmtree(self.target / name, ignore_errors=True)
        for name in names:
            was_moved = (self.target / name / manifest.FILE).exists() and not (self.root / name).exists()
            if name not in recorded and self.root.exists() and was_moved:
                os.rename(self.target / name, self.root / name)
        for left in self.target.glob(f".*{PARTIAL}"):
            left.unlink(missing_ok=True)

    def finish(self, files: Mapping[str, ChunkFiles], attributes: Mapping[str, Any]) -> None:
        """
        Make the arrays part of the result, which is complete before, meanwhile and afterwards.

        Parameters
        ----------
        files : mapping of str to ChunkFiles
            The arrays.
        attributes : mapping
            Those of a group of these arrays alone.

        Raises
        ------
        DamagedError
            The record of the arrays lacks an object, or the metadata of the result are not what was written.
        """
        self._write_manifests(files)
        names = list(files)
        steps = added_steps(_complete(self.target)["history"])
        replaced = [n for step in steps if {*step["arrays"]} & {*names} for n in step["arrays"]]
        if replaced:
            store.write_json(self.folder / REPLACED, {"arrays": replaced})
            _remove(self.target, replaced)
        for name in names:
            os.rename(self.root / name, self.target / name)
            sync_folder((self.target / name).parent)
        keys = [f"{name}/{file}" for name in names for file in ("zarr.json", manifest.FILE)]
        objects = [*_others(self.target, []), *(measure(self.target / key, key) for key in keys)]
        _replace(self.target, _with(attributes_of(self.target), attributes), objects)
        # Under another name first: what a killed run leaves of it must be in nobody's way.
        shutil.rmtree(self._replaced, ignore_errors=True)
        os.rename(self.root, self._replaced)
        shutil.rmtree(self._replaced, ignore_errors=True)


def _remove(group: Path, names: Sequence[str]) -> None:
    """Remove arrays that were added to a result, which is complete without them."""
    _replace(group, _without(attributes_of(group), names), _others(group, names))
    for name in names:
        shutil.rmtree(group / name, ignore_errors=True)


def _complete(group: Path) -> dict[str, Any]:
    """Return the record of a complete result of tomoscale."""
    record = record_of(group) if group.is_dir() else None
    if record is None or not record["complete"]:
        why = "was not made by tomoscale" if record is None else "is not complete"
        raise TomoscaleError(f"{group}: {why}, so nothing is added to it; give another output with -o")
    return record


def _others(group: Path, names: Sequence[str]) -> list[Any]:
    """Return what the manifest lists beside the metadata of the group and of some arrays; these must be intact."""
    listed = manifest.read(group)
    if listed.pop("zarr.json", None) != measure(group / "zarr.json", "zarr.json"):
        raise DamagedError(f"{group}: its metadata have changed; `tomoscale verify` lists all damage")
    return [o for key, o in listed.items() if not any(key.startswith(f"{n}/") for n in names)]


def _replace(group: Path, attributes: Mapping[str, Any], objects: Sequence[Any]) -> None:
    manifest.extend(group, json.dumps(store.group_document(attributes), indent=1).encode(), objects)


def _with(attributes: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a result with what those of the added arrays say."""
    record, added = attributes["tomoscale"], more["tomoscale"]
    step = {**added["history"][-1], "arrays": added["arrays"]}
    record = {
        **record,
        "arrays": [*record["arrays"], *added["arrays"]],
        "history": [*record["history"], step],
    }
    ome = attributes.get("ome", {"version": "0.5", "multiscales": []})
    images = {_image(i): i for i in (*ome["multiscales"], *more["ome"]["multiscales"])}
    return {**attributes, "tomoscale": record, "ome": {**ome, "multiscales": [*images.values()]}}


def _without(attributes: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the attributes of a result as if arrays had never been added."""
    record = attributes["tomoscale"]
    gone = [s for s in added_steps(record["history"]) if {*s["arrays"]} & {*names}]
    record = {
        **record,
        "arrays": [n for n in record["arrays"] if n not in names],
        "history": [s for s in record["history"] if s not in gone],
    }
    images = []
    for image in attributes["ome"]["multiscales"]:
        left = [d for d in image["datasets"] if d["path"] not in names]
        images += [{**image, "datasets": left}] if left else []
    return {**attributes, "tomoscale": record, "ome": {**attributes["ome"], "multiscales": images}}


def _image(multiscale: Mapping[str, Any]) -> str:
    """Return the array of full resolution."""
    return multiscale["datasets"][0]["path"]
