"""What the arrays of a file are called, and how darks, flats and angles are told from frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from tomoscale import store
from tomoscale.errors import TomoscaleError
from tomoscale.sources.frames import Scan
from tomoscale.sources.views import Selected

FRAMES = ("frames", "data", "images", "projections", "raw", "volume")
DARK = ("dark", "darks", "data_dark", "dark_field")
FLAT = ("flat", "flats", "data_white", "flat_field")
KEY = ("image_key",)
ANGLES = ("rotation_angle", "omega", "theta", "angles")
Role = Literal["frames", "dark", "flat"]
PROJECTION, FLAT_FIELD, DARK_FIELD, INVALID = range(4)


def by_key(
    frames: store.Volume, key: np.ndarray, angles: np.ndarray | None, where: str, role: Role = "frames"
) -> Scan:
    """
    Tell projections, flats and darks apart by a NeXus image key.

    Parameters
    ----------
    frames : Volume
        All images, in the order of the file.
    key : numpy.ndarray
        For every image 0 for a projection, 1 for a flat, 2 for a dark, 3 for one to be left out.
    angles : numpy.ndarray, optional
        Degrees, one for every image or one for every projection.
    where : str
        Name of the file, for messages.
    role : {"frames", "dark", "flat"}
        Which images become the frames of the result, if there are such.
    """
    if not np.isin(key, range(4)).all():
        wrong = key[~np.isin(key, range(4))][0]
        raise TomoscaleError(
            f"{where}: image_key holds {wrong}; expected 0 (projection), 1 (flat), 2 (dark), 3 (invalid)"
        )

    def having(value: int) -> np.ndarray:
        return np.flatnonzero(key == value)

    dark, flat, chosen = having(DARK_FIELD), having(FLAT_FIELD), having(PROJECTION)
    if role != "frames":
        wanted = {"dark": dark, "flat": flat}[role]
        chosen = wanted if wanted.size else chosen
    if not chosen.size:
        raise TomoscaleError(f"{where}: image_key marks no projection (0) among {len(key)} images")
    if angles is not None and len(angles) == len(key):
        angles = angles[chosen]
    return Scan(
        frames if chosen.size == len(key) else Selected(frames, chosen),
        Selected(frames, dark) if dark.size else None,
        Selected(frames, flat) if flat.size else None,
        angles if angles is not None and len(angles) == chosen.size else None,
    )


def in_a_row(angles: Iterable[np.ndarray | None]) -> np.ndarray | None:
    """Join the angles of several files; None unless all have them."""
    known = list(angles)
    found = [a for a in known if a is not None]
    return np.concatenate(found) if found and len(found) == len(known) else None


def degrees(values: np.ndarray, unit: str, where: str) -> np.ndarray:
    """Return angles in degrees; without a unit they are degrees already."""
    angles = np.asarray(values, np.float64)
    unit = unit.strip().lower()
    if unit.startswith("rad"):
        return np.rad2deg(angles)
    if unit in ("", "°", "none", "unknown") or unit.startswith("deg"):
        return angles
    raise TomoscaleError(f"{where}: angles in {unit!r}; expected degrees or radians")


def listed(candidates: Iterable[str], limit: int = 12) -> str:
    """Write the first candidates of a list in one line."""
    names = list(candidates)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
