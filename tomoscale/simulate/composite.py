"""
Slices of a reconstructed composite: glass spheres in a polymer, with what tomography adds.

    grey = (levels + fringes) * shading + rings + noise

Each of the parts is a function of the voxel and, where random, of a stream that belongs to one slice of
one tile of TILE x TILE voxels, so any block of whole tiles can be made by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tomoscale.blocks import Window, shape_of
from tomoscale.simulate.streams import knots, smooth, stream

TILE = 128
GAP = 1.5
"""Voxels that packing leaves between two spheres, so that their labels never share a face or an edge."""
SLACK = 1.4
"""Aim of packing, in gaps: 17,000 spheres have their gap after 26 rounds; aiming at 1 took all 300."""
ROUNDS = 300
MAX_SPHERES = 1_000_000
FAR = -1e3
AIR, POLYMER, GLASS = 0, 1, 2


@dataclass(frozen=True)
class Settings:
    """A whole volume in numbers; lengths are voxels."""

    shape: tuple[int, int, int]
    seed: int
    diameter: tuple[float, float]
    volume_fraction: float
    sample: Literal["block", "cylinder", "full"]
    levels: tuple[float, float, float]
    noise: float
    shading: float
    fringe: float
    fringe_width: float
    rings: float
    ring_fraction: float = 0.04

    @property
    def reach(self) -> float:
        """Distance from a surface at which its fringes are gone."""
        return 4 * self.fringe_width + 2


class Spheres(NamedTuple):
    """Centres (n, 3) as z, y, x and radii (n,), in voxels, float64."""

    centres: np.ndarray
    radii: np.ndarray

    def near(self, window: Window, reach: float) -> Spheres:
        """Return the spheres that lie within reach of a window."""
        low = np.array([s.start for s in window]) - reach
        high = np.array([s.stop for s in window]) - 1 + reach
        radii = self.radii[:, None]
        keep = ((self.centres + radii > low) & (self.centres - radii < high)).all(1)
        return Spheres(self.centres[keep], self.radii[keep])


# ---------------------------------------------------------------- packing


def _cell(settings: Settings) -> np.ndarray:
    """Return the edges of the periodic cell: the volume and, around it, room for spheres that stick out."""
    largest = settings.diameter[1]
    return np.maximum(np.array(settings.shape) + largest, 4 * largest)


def n_spheres(settings: Settings) -> int:
    """Return how many spheres the volume fraction asks for in the cell."""
    size = _cell(settings)
    mean_diameter = sum(settings.diameter) / 2
    return round(settings.volume_fraction * float(size.prod()) / (math.pi / 6 * mean_diameter**3))


def pack(settings: Settings) -> tuple[Spheres, int]:
    """
    Pack spheres at random in a periodic cell and push them apart until they are disjoint.

    (A cell with walls would collect spheres there and be short of glass inside.) What is still too close
    after the last round is thinned out, so that the truth is exact and the volume fraction may fall short.
    Spheres outside of the sample are left out, those across its side are cut by it.

    Returns
    -------
    spheres : Spheres
        Those that are at least partly inside.
    thinned : int
        How many were dropped for want of room.
    """
    rng = stream(settings.seed, "pack")
    low, high = settings.diameter
    size = _cell(settings)
    n = n_spheres(settings)
    radii = np.clip(rng.normal((low + high) / 2, (high - low) / 4, n), low, high) / 2
    x = rng.random((n, 3)) * size
    for _ in range(ROUNDS):
        i, j, overlap, apart = _overlaps(x, radii + SLACK * GAP / 2, size)
        if overlap.max(initial=0) <= (SLACK - 1) * GAP:
            break
        push = (0.55 * overlap / np.linalg.norm(apart, axis=1))[:, None] * apart
        for axis in range(3):
            x[:, axis] += np.bincount(i, push[:, axis], n) - np.bincount(j, push[:, axis], n)
        x %= size
        x[x == size] = 0
    keep = np.ones(n, bool)
    i, j, *_ = _overlaps(x, radii + GAP / 2, size)
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        if keep[a] and keep[b]:
            keep[b] = False
    thinned = n - int(keep.sum())
    centres = x - (high + 1) / 2  # the volume begins at voxel face -0.5
    keep &= (centres + radii[:, None] > -0.5).all(1)
    keep &= (centres - radii[:, None] < np.array(settings.shape) - 0.5).all(1)
    keep &= side_distance(settings, centres[:, 1], centres[:, 2]) > -radii
    return Spheres(centres[keep], radii[keep]), thinned


def _overlaps(
    x: np.ndarray, radii: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the overlapping pairs (i, j) in ascending order, by how much, and the way from j to i."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(x, boxsize=size).query_pairs(2 * radii.max(initial=0), output_type="ndarray")
    i, j = pairs[np.lexsort(pairs.T[::-1])].T
    apart = x[i] - x[j]
    apart -= size * np.rint(apart / size)
    overlap = radii[i] + radii[j] - np.sqrt((apart**2).sum(1))
    hit = overlap > 0
    return i[hit], j[hit], overlap[hit], apart[hit] + 1e-9


def side_distance(settings: Settings, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the distance to the side of the sample, the same in every slice, in voxels; positive inside."""
    rows, columns = settings.shape[1:]
    y, x = y - (rows - 1) / 2, x - (columns - 1) / 2
    if settings.sample == "full":
        return np.full(np.broadcast_shapes(y.shape, x.shape), -FAR, y.dtype)
    if settings.sample == "cylinder":
        return 0.45 * min(rows, columns) - np.hypot(y, x)
    turn = float(stream(settings.seed, "turn").uniform(0.15, 0.6))
    half = 0.36 * min(rows, columns)
    u = abs(math.cos(turn) * x + math.sin(turn) * y) - half
    v = abs(math.cos(turn) * y - math.sin(turn) * x) - half
    return -(np.minimum(np.maximum(u, v), 0) + np.hypot(np.maximum(u, 0), np.maximum(v, 0)))


def whole(settings: Settings, spheres: Spheres) -> np.ndarray:
    """Tell which spheres lie wholly inside the volume and the sample."""
    centres, radii = spheres
    r = radii[:, None]
    inside = ((centres - r > -0.5) & (centres + r < np.array(settings.shape) - 0.5)).all(1)
    return inside & (side_distance(settings, centres[:, 1], centres[:, 2]) > radii)


# ---------------------------------------------------------------- grey values


def brick(settings: Settings, window: Window, spheres: Spheres) -> tuple[np.ndarray, np.ndarray]:
    """
    Make a block of the volume.

    Parameters
    ----------
    settings : Settings
        The whole volume.
    window : tuple of slice
        Where the block lies; in y and x it is one tile.
    spheres : Spheres
        Those near the window.

    Returns
    -------
    grey : (z, y, x)
        float32.
    labels : (z, y, x)
        uint8: 0 air, 1 polymer, 2 glass, by the centre of the voxel.
    """
    surface = _nearest_surface(settings, window, spheres)
    shape = settings.shape
    _, rows, columns = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :]
    side = side_distance(settings, y, x).astype(np.float32)
    host = np.clip(side + 0.5, 0, 1)
    air, polymer, glass = settings.levels
    side_fringe = 0.3 * (polymer - air) * fringe(side / settings.fringe_width)
    shade_knots = knots(stream(settings.seed, "shade"), 3, 2)
    shade = 1 + settings.shading * smooth(shade_knots, shape[1:], (rows, columns))
    rings = _Rings(settings, y, x)

    grey = np.empty(shape_of(window), np.float32)
    labels = np.empty(shape_of(window), np.uint8)
    for i, z in enumerate(range(window[0].start, window[0].stop)):
        near = surface[i]
        labels[i] = np.where(side > 0, np.where(near > 0, GLASS, POLYMER), AIR)
        value = fringe(near / settings.fringe_width)
        value *= settings.fringe
        value += np.clip(near + 0.5, 0, 1)
        value *= glass - polymer
        value += polymer - air
        value *= host
        value += air + side_fringe
        value *= shade
        value += rings.slice(z)
        value += _noise(settings, z, rows, columns)
        grey[i] = value
    return grey, labels


def scratch_bytes(block: tuple[int, int, int]) -> int:
    """Bytes that `brick` holds beyond its result: the surface, one sphere's box, some slices."""
    voxels = math.prod(block)
    return 12 * voxels + 64 * block[1] * block[2] + 200_000


def _nearest_surface(settings: Settings, window: Window, spheres: Spheres) -> np.ndarray:
    """Return the distance to the nearest sphere's surface, positive inside; FAR where none is in reach."""
    surface = np.full(shape_of(window), FAR, np.float32)
    first = np.array([s.start for s in window])
    for centre, radius in zip(spheres.centres, spheres.radii, strict=True):
        low = np.maximum(np.floor(centre - radius - settings.reach).astype(int), first)
        high = np.minimum(np.ceil(centre + radius + settings.reach).astype(int) + 1, [s.stop for s in window])
        if (low >= high).any():
            continue
        offsets = (np.arange(a, b) - c for a, b, c in zip(low, high, centre, strict=True))
        z, y, x = (o.astype(np.float32) ** 2 for o in offsets)
        depth = z[:, None, None] + (y[:, None] + x)
        np.sqrt(depth, out=depth)
        np.subtract(np.float32(radius), depth, out=depth)
        part = surface[tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))]
        np.maximum(part, depth, out=part)
    return surface


def fringe(distance: np.ndarray) -> np.ndarray:
    """
    Return the phase-contrast edge over a distance in fringe widths, positive inside.

    Bright inside, dark outside, then a ripple that dies away.
    """
    ripple = np.exp(-np.minimum(abs(distance), 60))
    ripple *= np.cos(2.2 * distance)
    ripple *= -0.25
    edge = np.minimum(distance * distance, 60)
    edge *= -0.5
    edge += 0.5
    np.exp(edge, out=edge)
    edge *= distance
    edge += ripple
    return edge


class _Rings:
    """Ring artefacts of a tile: detector columns that misbehave, each for some dozen slices."""

    def __init__(self, settings: Settings, y: np.ndarray, x: np.ndarray) -> None:
        rows, columns = settings.shape[1:]
        n = int(math.hypot(rows, columns) / 2) + 2
        self.settings = settings
        self.index = np.hypot(y - (rows - 1) / 2, x - (columns - 1) / 2).astype(np.intp)
        rng = stream(settings.seed, "rings")
        fading = 0.4 + 0.6 / np.sqrt(1 + np.arange(n) / 20)
        bad = rng.random(n) < settings.ring_fraction
        self.strength = settings.rings * fading * rng.normal(0, 1, n) * bad
        self.jitter = 0.04 * settings.rings * fading
        self.life, self.phase = rng.uniform(20, 200, n), rng.uniform(0, 2 * np.pi, n)

    def slice(self, z: int) -> np.ndarray:
        """Return what the rings add to a slice of the tile."""
        rng = stream(self.settings.seed, "ring", z)
        profile = self.strength * np.cos(z / self.life + self.phase)
        profile += self.jitter * rng.standard_normal(len(profile))
        return np.take(profile.astype(np.float32), self.index)


def _noise(settings: Settings, z: int, rows: slice, columns: slice) -> np.ndarray:
    """Return the noise of a slice of one tile: like a reconstruction's, strongest at high frequencies."""
    rng = stream(settings.seed, "noise", z, rows.start, columns.start)
    white = rng.standard_normal((rows.stop - rows.start + 1, columns.stop - columns.start + 1), np.float32)
    white *= settings.noise / math.sqrt(1.18)
    sharp = white[:-1, 1:] + white[1:, :-1]
    sharp *= -0.3
    sharp += white[1:, 1:]
    return sharp
