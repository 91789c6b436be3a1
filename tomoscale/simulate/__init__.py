"""
Simulated scans and volumes of any size, with the exact truth beside them.

Every frame, slice and blob draws from a random stream of its own, so a result does not depend on how it
is cut into blocks, nor on workers and interruptions. The same seed gives the same bits with the same
version of NumPy (which keeps the bits of its generators, but not of the distributions, between versions).
"""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from tomoscale import blocks
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Seed, Shape3
from tomoscale.simulate import composite, layout, rotation, spots

Amount = Annotated[float, Ge(0), Le(1e6)]
Positive = Annotated[float, Gt(0), Le(1e6)]
Level = Annotated[float, Ge(-1e6), Le(1e6)]
Share = Annotated[float, Ge(0), Le(0.5)]

MIN_FRAMES, MIN_PIXELS = 3, 32

LARGEST = 10**6
"""Voxels across a sphere: more than across any volume."""


@operation("simulate dct")
def dct(
    *,
    shape: Shape3 = (600, 192, 192),
    seed: Seed = 0,
    degrees: Positive = 360.0,
    blobs: Annotated[int, Ge(0), Le(1_000_000)] = 300,
    peak_counts: tuple[Positive, Positive] = (40.0, 6000.0),
    edge_level: Annotated[float, Ge(0.02), Lt(1)] = 0.05,
    centre: Literal["blocked", "direct"] = "blocked",
    glow: Amount = 500.0,
    drift: Share = 0.08,
    dark_level: Annotated[float, Ge(0), Le(10_000)] = 100.0,
    read_noise: Amount = 2.0,
    gain: Amount = 2.0,
    hot_fraction: Annotated[float, Ge(0), Le(0.01)] = 2e-4,
    dark_frames: Annotated[int, Ge(1), Le(10_000)] = 20,
    truth: bool = True,
) -> dict[str, Any]:
    """
    Simulate a diffraction-contrast scan: frames of a rotation, and the truth about them.

    A drifting source with top-ups, a glow around the beam that wobbles and changes with the rotation, a
    beam in the middle, hot and dead pixels, zingers, shot and read noise; and blobs on broken diffraction
    rings, which become long in omega close to the (vertical) rotation axis.

    Parameters
    ----------
    shape : (frame, row, column)
        Size of the scan; at least 3 frames of 32 x 32 pixels.
    seed : int
        Another seed gives another scan.
    degrees : float
        Rotation of the whole scan; frame k is at k * degrees / frames.
    blobs : int
        Number of blobs; where there is no room for all, there are fewer and a warning says how many.
    peak_counts : (float, float)
        Range of the blobs' peaks, drawn evenly on a logarithmic scale; long blobs are fainter.
    edge_level : float
        A voxel carries the label of its blob where the signal is above this share of the blob's peak.
    centre : {"blocked", "direct"}
        The beam in the middle: behind a stop, or direct, bright and absorbed by the sample.
    glow : float
        Counts of the scattering glow at its centre.
    drift : float
        Slow change of the source, relative.
    dark_level : float
        Counts of a pixel without light.
    read_noise : float
        Standard deviation of the read noise, in counts.
    gain : float
        Counts per photon: light of n counts has a variance of gain * n (drawn as Gaussian noise).
    hot_fraction : float
        Share of hot pixels; a quarter as many are dead.
    dark_frames : int
        Frames of the dark stack.
    truth : bool
        Write the truth arrays of every voxel; without them a scan is a seventh of the size.

    Returns
    -------
    dict of str to array
        `frames` (uint16), `dark` (a stack, uint16), `omega` (degrees), `table` (the true blobs), and
        `truth/source` (relative intensity of every frame), `truth/defects` (uint8: 1 hot, 2 dead); with
        `truth` also `truth/background` (float32: the frame without noise, blobs, hot pixels and zingers,
        dark level included), `truth/signal` (float32: the counts of the blobs, without noise) and
        `truth/labels` (uint32: 0 none, 1 the blob with the highest peak).

    Examples
    --------
    >>> from tomoscale import simulate
    >>> scan = simulate.dct(shape=(24, 64, 64), blobs=4, seed=1)
    >>> scan["frames"].shape, scan["frames"].dtype
    ((24, 64, 64), dtype('uint16'))
    >>> scan["table"].num_rows == int(scan["truth/labels"].max().compute())
    True
    """
    check_scan(shape, peak_counts)
    settings = rotation.Settings(
        shape=shape,
        seed=seed,
        degrees=degrees,
        blobs=blobs,
        peak_counts=peak_counts,
        edge_level=edge_level,
        centre=centre,
        glow=glow,
        drift=drift,
        dark_level=dark_level,
        read_noise=read_noise,
        gain=gain,
        hot_fraction=hot_fraction,
    )
    source = rotation.source(settings)
    placed, columns = spots.measured(spots.place(settings), settings, source)
    if len(placed) < blobs:
        warnings.warn(
            f"simulate.dct: placed {len(placed)} of {blobs} blobs, there is no room for more; "
            "take a larger shape or fewer blobs",
            stacklevel=4,
        )
    return {
        **layout.scan_arrays(settings, placed, truth),
        "dark": layout.dark_stack(settings, dark_frames),
        "omega": rotation.omega(settings),
        "truth/source": source,
        "truth/defects": layout.defect_map(settings),
        "table": layout.table(columns, spots.COLUMNS),
    }


@operation("simulate spheres")
def spheres(
    *,
    shape: Shape3 = (128, 256, 256),
    seed: Seed = 0,
    volume_fraction: Annotated[float, Gt(0), Le(0.5)] = 0.25,
    diameter_um: tuple[Positive, Positive] = (38.0, 45.0),
    voxel_um: Positive = 0.65,
    sample: Literal["block", "cylinder", "full"] = "block",
    levels: tuple[Level, Level, Level] = (0.0, 0.35, 1.0),
    noise: Amount = 0.25,
    shading: Share = 0.06,
    fringe: Amount = 0.45,
    energy_kev: Positive = 27.4,
    distance_mm: Positive = 60.0,
    rings: Amount = 0.25,
    truth: bool = True,
) -> dict[str, Any]:
    """
    Simulate a reconstructed volume of glass spheres in a polymer, and the truth about it.

    Spheres of nearly one size, disjoint, in a sample surrounded by air; with edges of one voxel, the
    fringes of phase contrast, a shading field, ring artefacts and high-frequency noise.

    Parameters
    ----------
    shape : (z, y, x)
        Size of the volume.
    seed : int
        Another seed gives another volume.
    volume_fraction : float
        Share of glass in the sample, up to 0.5; a warning says how many spheres found no room.
    diameter_um : (float, float)
        Smallest and largest diameter, in micrometres: a Gaussian cut at two standard deviations.
    voxel_um : float
        Edge of a voxel, in micrometres.
    sample : {"block", "cylinder", "full"}
        What holds the spheres: a square block, turned; a cylinder; or polymer everywhere.
    levels : (float, float, float)
        Grey values of air, polymer and glass.
    noise : float
        Standard deviation of the noise.
    shading : float
        Relative strength of the shading field.
    fringe : float
        Strength of the fringes, relative to the step from polymer to glass.
    energy_kev : float
        Photon energy; with the distance it gives the width of the fringes.
    distance_mm : float
        From sample to detector.
    rings : float
        Strength of the ring artefacts.
    truth : bool
        Write the truth of every voxel.

    Returns
    -------
    dict of str to array
        `volume` (float32), `table` (the spheres), and with `truth` also `truth/labels` (uint8: 0 air,
        1 polymer, 2 glass, by the centre of the voxel).

    Examples
    --------
    Without phase retrieval there is hardly any contrast but the edges:

    >>> from tomoscale import simulate
    >>> made = simulate.spheres(
    ...     shape=(24, 96, 96), levels=(0.0, 0.2, 0.28), fringe=7.0, noise=0.12, shading=0.15
    ... )
    >>> made["volume"].shape, made["table"].column_names[:4]
    ((24, 96, 96), ['label', 'z', 'y', 'x'])
    """
    if diameter_um[0] > diameter_um[1]:
        raise TomoscaleError(f"simulate.spheres: diameter_um={diameter_um}; give the smaller one first")
    if diameter_um[0] < 3 * voxel_um:
        raise TomoscaleError(
            f"simulate.spheres: diameters from {diameter_um[0]} um are below 3 voxels of {voxel_um} um; "
            "take larger spheres or a smaller voxel_um"
        )
    if diameter_um[1] > LARGEST * voxel_um:
        raise TomoscaleError(
            f"simulate.spheres: diameters up to {diameter_um[1]} um are above {LARGEST:,} voxels of {voxel_um} um; "
            "take smaller spheres or a larger voxel_um"
        )
    wave_um = 1.2398e-3 / energy_kev
    settings = composite.Settings(
        shape=shape,
        seed=seed,
        diameter=(diameter_um[0] / voxel_um, diameter_um[1] / voxel_um),
        volume_fraction=volume_fraction,
        sample=sample,
        levels=levels,
        noise=noise,
        shading=shading,
        fringe=fringe,
        fringe_width=math.sqrt(wave_um * distance_mm * 1e3) / voxel_um,
        rings=rings,
    )
    if (n := composite.n_spheres(settings)) > composite.MAX_SPHERES:
        raise TomoscaleError(
            f"simulate.spheres: this would take {n} spheres, at most {composite.MAX_SPHERES} are packed; "
            "raise diameter_um or lower volume_fraction"
        )
    packed, thinned = composite.pack(settings)
    if thinned:
        warnings.warn(
            f"simulate.spheres: {thinned} of {n} spheres found no room; take a lower volume_fraction",
            stacklevel=4,
        )
    arrays = layout.volume_arrays(settings, packed, truth)
    blocks.state(arrays["volume"], image="volume", scale=(voxel_um,) * 3, unit="micrometer")
    return {**arrays, "table": layout.sphere_table(settings, packed, voxel_um)}


def check_scan(shape: tuple[int, int, int], peak_counts: tuple[float, float] = (0, 0)) -> None:
    """Refuse scans that are too small to mean anything, and peaks the wrong way round."""
    if shape[0] < MIN_FRAMES or min(shape[1:]) < MIN_PIXELS:
        raise TomoscaleError(
            f"simulate.dct: shape={shape} is too small; "
            f"give at least {MIN_FRAMES} frames of {MIN_PIXELS} x {MIN_PIXELS} pixels"
        )
    if peak_counts[0] > peak_counts[1]:
        raise TomoscaleError(f"simulate.dct: peak_counts={peak_counts}; give the smaller one first")
