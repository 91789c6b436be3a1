"""Zarr as a source: frames, with the dark, flat and angles of the same group."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tomoscale import store
from tomoscale.errors import TomoscaleError
from tomoscale.sources.frames import Scan
from tomoscale.sources.views import OneFrame


def open_zarr(path: Path) -> Scan:
    """
    Return a stored array, and its siblings, as a scan.

    Parameters
    ----------
    path : Path
        What `store.open_volume` opens.
    """
    frames = store.open_volume(path)
    if frames.ndim not in (2, 3):
        raise TomoscaleError(f"{path}: has shape {frames.shape}; expected (frame, row, column)")
    return Scan(_stack(frames), _sibling(frames, "dark"), _sibling(frames, "flat"), _angles(frames))


def _stack(volume: store.Volume) -> store.Volume:
    return OneFrame(volume) if volume.ndim == 2 else volume


def _sibling(frames: store.Volume, name: str) -> store.Volume | None:
    found = frames.sibling(name)
    fits = found is not None and found.ndim in (2, 3) and found.shape[-2:] == frames.shape[-2:]
    return _stack(found) if fits and found is not None else None


def _angles(frames: store.Volume) -> np.ndarray | None:
    found = frames.sibling("omega")
    if found is None or found.shape != frames.shape[:1]:
        return None
    return found.whole().astype(np.float64)
