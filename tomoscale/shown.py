"""A result as its report sees it: its arrays, its history, and the frames that it was made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import info, store, survey
from tomoscale.blocks import MIB, spans
from tomoscale.errors import TomoscaleError
from tomoscale.record import images_of
from tomoscale.store import StoredVolume, Volume
from tomoscale.survey import Survey

MEANT = ("", "frames", "volume", "map", "labels")
"""Arrays that are meant when none is named."""
DARK_BYTES = 64 * MIB
"""Read at a time of a stack of dark frames."""


@dataclass(frozen=True)
class Shown:
    """What the report is about, and what one reading of it finds."""

    volume: StoredVolume
    sampled: bool = False
    quiet: bool = True

    @cached_property
    def survey(self) -> Survey:
        """What one reading of the array finds."""
        return survey.of(self.volume, sampled=self.sampled, title="report: reading", quiet=self.quiet)

    @property
    def root(self) -> Path:
        """The group, or the array where there is none."""
        return self.volume.group or self.volume.path

    @property
    def array(self) -> str:
        """Path of the array in its group."""
        return str(self.volume.path.relative_to(self.root)) if self.volume.group else ""

    @property
    def title(self) -> str:
        """Name of the result; with the array where it is not the one that is meant without a name."""
        return self.root.name if self.array in MEANT else f"{self.root.name}/{self.array}"

    def name_beside(self, ending: str) -> Path:
        """Return a name beside the result: `scan-background-report` for `scan-background.zarr`."""
        stem = self.title.replace(".zarr", "").replace("/", "-")
        return self.root.with_name(stem + ending)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `tomoscale info` says."""
        return info.describe(self.root)

    @property
    def step(self) -> dict[str, Any]:
        """The last step of the history; empty for a scan of another making."""
        return self.facts["history"][-1] if self.facts["history"] else {}

    @property
    def is_scan(self) -> bool:
        """Whether the first axis is that of the frames."""
        names = [a.get("name") for a in self._ome_axes()] or list(self.volume.info.dimension_names or ())
        if names:
            return names[0] != "z"
        return self.array == "frames" or self.omega is not None

    def _ome_axes(self) -> list[dict[str, Any]]:
        axes = [i.get("axes") for i in images_of(self.root)[:1]]
        return [a for a in axes[0] if isinstance(a, dict)] if axes and isinstance(axes[0], list) else []

    @property
    def is_cleaned(self) -> bool:
        """Whether these are frames without their background."""
        return self.array == "frames" and self.step.get("operation") == "background.remove"

    @cached_property
    def omega(self) -> np.ndarray | None:
        """Rotation angles in degrees, if they are known."""
        return self._per_frame("omega")

    @cached_property
    def level(self) -> np.ndarray | None:
        """Level of every frame in the margin; None where frames were not normalised."""
        level = self._per_frame("level") if self.is_cleaned else None
        return None if level is None or np.all(level == 1) else level

    def _per_frame(self, name: str) -> np.ndarray | None:
        found = self.volume.sibling(name)
        return found.whole() if found is not None and found.shape == self.volume.shape[:1] else None

    @property
    def abscissa(self) -> tuple[np.ndarray, str]:
        """Positions of the frames and their name: omega where it is known."""
        if self.omega is not None:
            return self.omega, "omega (degrees)"
        return np.arange(self.volume.shape[0]), "frame"

    def place(self, k: int) -> str:
        """Say which frame: `frame 83 (omega 49.8°)`."""
        return f"frame {k}" + ("" if self.omega is None else f" (omega {self.omega[k]:.2f}°)")

    @cached_property
    def _table(self) -> Any:
        import pyarrow.parquet

        file = self.root.with_suffix(".parquet")
        return pyarrow.parquet.read_table(file) if file.is_file() else None

    @property
    def table(self) -> dict[str, np.ndarray]:
        """Columns of the table beside the result; empty where there is none."""
        names = [] if self._table is None else self._table.column_names
        return {n: self._table[n].to_numpy(zero_copy_only=False) for n in names}

    @property
    def found(self) -> dict[str, Any]:
        """What the table says of the whole: thresholds, and what was rejected; empty where it says nothing."""
        stated = {} if self._table is None else self._table.schema.metadata or {}
        return json.loads(stated.get(b"tomoscale", b"{}"))

    def background_of(self, k: int) -> np.ndarray | None:
        """Return the background that frame k was cleaned with, or None."""
        background, step = self.volume.sibling("background"), self.step.get("parameters", {}).get("step")
        if background is None:
            return None
        if type(step) is not int or step < 1 or background.ndim != 3 or k // step >= background.shape[0]:
            raise TomoscaleError(
                f"{self.root}: its record is damaged: step {step!r} of {background.shape} backgrounds"
            )
        return frame_of(background, k // step)

    def before(self, k: int) -> tuple[np.ndarray | None, str]:
        """Return the raw frame, treated as the operation did before it took the background off, or why not."""
        raw, note = self.made_from
        if raw is None:
            return None, note
        before = frame_of(raw, k).astype(np.float32)
        dark = self.volume.sibling("dark")
        if dark is not None:
            before -= image_of(dark)
        if self.level is not None:
            before *= np.float32(self.level.mean() / self.level[k])
        return before, ""

    @cached_property
    def made_from(self) -> tuple[Volume | None, str]:
        """The frames, or the volume, that the result was made from, or why they cannot be shown."""
        inputs = self.step.get("inputs", {})
        source = inputs.get("frames", inputs.get("image", {}))
        if "path" not in source:
            return None, "The input was an array in memory, so it is not shown."
        try:
            found = self._input(source)
        except TomoscaleError as error:
            return None, f"The input is gone, so it is not shown: {error}"
        if found is None:
            return None, f"The input {source['path']} has changed since, so it is not shown."
        return found, ""

    def _input(self, source: dict[str, Any]) -> Volume | None:
        """Open the input where it was, or beside the result if both were moved; None if it is another one now."""
        recorded = Path(source["path"])
        moved = [self.root.parent / Path(*recorded.parts[-n:]) for n in (2, 1)]
        place = next((p for p in (recorded, *moved) if p.exists()), recorded)
        volume: Volume = store.open_volume(place)
        if volume.identity()["sample"] != source.get("sample"):
            return None
        return store.crop(volume, source["roi"]) if "roi" in source else volume


def frame_of(volume: Volume, k: int) -> np.ndarray:
    """Return one frame."""
    return volume.read((slice(k, k + 1), *(slice(0, n) for n in volume.shape[1:])))[0]


def image_of(dark: Volume) -> np.ndarray:
    """Return a dark as one image, float32; of a stack the median, some rows at a time."""
    if dark.ndim == 2:
        return dark.whole().astype(np.float32)
    n, rows, columns = dark.shape
    height = max(1, DARK_BYTES // (n * columns * dark.dtype.itemsize))
    every, wide = slice(0, n), slice(0, columns)
    bands = [np.median(dark.read((every, band, wide)), axis=0) for band in spans(rows, height)]
    return np.concatenate(bands).astype(np.float32)
