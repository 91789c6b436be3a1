"""The small arithmetic of k-means: exact sums, standardisation, seeding on a sample, one step of Lloyd."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tomoscale import kernels
from tomoscale.errors import TomoscaleError
from tomoscale.readings import Series

SAMPLE = 2**16
"""Voxels on which the first centres settle: with 2**14, fits of real volumes took one to three passes more."""
TRIED = 2**14
"""Of these, the ones on which several fits are tried."""
SAMPLE_BYTES = 6 * SAMPLE * 24
"""What one pass holds while it draws them."""
DIGITS = 5
"""Digits of 30 bits: sums of integers beyond 64 bits, added without carrying."""
SAMPLE_STEPS = 300
SAMPLE_SHIFT = 1e-9
"""Sum of squared shifts at which centres of the sample have settled: far less than sampling moves them."""
SETTLED, STEPS, INERTIA = range(3)
"""What the last row of a state holds; the others are standardised centres and their number of voxels."""


class Features(NamedTuple):
    """
    What clusters are made of.

    Parameters
    ----------
    who : str
        The operation, for errors.
    shape : (int, int, int)
        Of the volume.
    k, seed, n_init : int
        Clusters; of the sample and its restarts.
    limit : float
        Voxels below do not count,
    as_zero : bool
        or count as zero.
    tolerance : float
        Sum of squared shifts of all standardised centres below which a fit has settled.
    is_integer : bool
        Whether intensities are integers.
    """

    who: str
    shape: tuple[int, int, int]
    k: int
    seed: int
    n_init: int
    limit: float
    as_zero: bool
    tolerance: float
    is_integer: bool


def digits(number: int) -> list[int]:
    """Return a number as digits of 30 bits, the last one signed."""
    low = [(number >> (30 * i)) & (2**30 - 1) for i in range(DIGITS - 1)]
    return [*low, number >> (30 * (DIGITS - 1))]


def number(of: np.ndarray) -> int:
    """
    Return the number of digits, also of a sum of digits.

    >>> number(np.array(digits(10**30)) + digits(-3)) - 10**30
    -3
    """
    return sum(int(d) << (30 * i) for i, d in enumerate(of))


def unit_of(features: Features, extremes: np.ndarray) -> float:
    """Return the power of two by which floating-point intensities become integers of 31 bits."""
    if features.is_integer:
        return 1.0
    largest = float(np.abs(extremes).max())
    return 2.0 ** (30 - math.frexp(largest)[1]) if largest > 0 else 1.0


# ---------------------------------------------------------------- first pass


def survey(features: Features, series: Series, extremes: np.ndarray) -> np.ndarray:
    """Return the moments of all voxels that count, as digits, and a sample of them."""
    unit, sums = unit_of(features, extremes), [0] * 9
    kept = np.full((SAMPLE, 3), np.iinfo(np.int64).max)
    for window, values in series:
        origin = (window[0].start, window[1].start, window[2].start)
        n, s, high, low, *rest = map(
            int, kernels.moments(values, origin, unit, features.limit, features.as_zero)[:10]
        )
        for i, term in enumerate((n, s, (high << 32) + low, *rest)):
            sums[i] += term
        kept = kernels.sample(
            values, origin, features.shape, features.seed, features.limit, features.as_zero, kept
        )
    return packed(np.array([digits(s) for s in sums]), kept)


def packed(sums: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return digits and sample in one array."""
    return np.concatenate([sums.ravel(), kept.ravel()])


def merged(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Add the moments of two parts and keep the first voxels of both samples."""
    n = 9 * DIGITS
    both = np.concatenate([a[n:].reshape(-1, 3), b[n:].reshape(-1, 3)])
    order = np.argsort(both[:, 0], kind="stable")[:SAMPLE]
    return packed(a[:n] + b[:n], both[order])


def scaling(features: Features, extremes: np.ndarray, surveyed: np.ndarray) -> np.ndarray:
    """
    Return mean and standard deviation of the features: intensity, z, y, x.

    Returns
    -------
    (3, 4) float64
        A deviation of 0 counts as 1, as in scikit-learn; the last row tells which ones are not 0.

    Raises
    ------
    TomoscaleError
        Fewer voxels than clusters, or one intensity only.
    """
    sums = [number(d) for d in surveyed[: 9 * DIGITS].reshape(9, DIGITS)]
    n, unit = sums[0], unit_of(features, extremes)
    if n == 0:
        raise TomoscaleError(f"{features.who}: no voxel reaches the threshold {features.limit:g}; lower it")
    if n < features.k:
        raise TomoscaleError(
            f"{features.who}: {n} voxels are left for {features.k} clusters; lower the threshold"
        )
    found = np.empty((3, 4))
    for axis, (s, q) in enumerate(zip(sums[1::2], sums[2::2], strict=True)):
        scale = unit if axis == 0 else 1.0
        spread = math.sqrt((n * q - s * s) / (n * n)) / scale  # exact until the division
        found[:, axis] = s / n / scale, spread or 1.0, spread > 0
        if axis == 0 and not spread:
            raise TomoscaleError(
                f"{features.who}: all voxels that count have the value {found[0, 0]:g}; there is nothing to tell apart"
            )
    return found


# ---------------------------------------------------------------- centres


def seeded(features: Features, surveyed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the state before the first pass: the best of some fits of a part of the sample, then of all of it."""
    kept = surveyed[9 * DIGITS :].reshape(-1, 3)
    kept = kept[kept[:, 0] < np.iinfo(np.int64).max]
    places = np.unravel_index(kept[:, 1], features.shape)
    points = np.stack([kept[:, 2].copy().view(np.float64), *places], axis=1)
    points = (points - scale[0]) / scale[1]
    random = np.random.default_rng(features.seed)
    tried = points[:TRIED]  # by hash: as random as all of them
    fits = [_fit(tried, _spread(tried, features.k, random)) for _ in range(features.n_init)]
    best = min(fits, key=lambda f: f[1])[0]
    return state_of(_fit(points, best)[0])


def state_of(centres: np.ndarray) -> np.ndarray:
    """Return a state that has made no step."""
    state = np.zeros((len(centres) + 1, 5))
    state[:-1, :4] = centres
    return state


def given(features: Features, initial: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the state of centres in real units."""
    return state_of((initial - scale[0]) / scale[1])


def _spread(points: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Choose centres far from each other (k-means++)."""
    chosen = [points[random.integers(len(points))]]
    nearest = np.full(len(points), np.inf)
    for _ in range(k - 1):
        nearest = np.minimum(nearest, ((points - chosen[-1]) ** 2).sum(axis=1))
        total = np.cumsum(nearest)
        pick = np.searchsorted(total, random.random() * total[-1], side="right")
        chosen.append(points[min(pick, len(points) - 1)])
    return np.array(chosen)


def _fit(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centres of a sample, and the sum of squares."""
    for _ in range(SAMPLE_STEPS):
        own, least = np.zeros(len(points), np.int64), np.full(len(points), np.inf)
        for c, centre in enumerate(centres):  # one by one: memory does not grow with k
            apart = ((points - centre) ** 2).sum(axis=1)
            own[apart < least] = c
            np.minimum(least, apart, out=least)
        moved = np.array(
            [points[own == c].mean(axis=0) if (own == c).any() else centres[c] for c in range(len(centres))]
        )
        shift, centres = float(((moved - centres) ** 2).sum()), moved
        if shift <= SAMPLE_SHIFT:
            break
    return centres, float(least.sum())


def weights_of(state: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return constant and factors of every centre: |c|^2 - 2 c.f as a sum over intensity, z, y and x."""
    centres = state[:-1, :4]
    slope = -2 * centres / scale[1]
    constant = (centres**2).sum(axis=1) - (slope * scale[0]).sum(axis=1)
    return np.column_stack([constant, slope])


def assigned(
    features: Features, series: Series, extremes: np.ndarray, scale: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """Return count and sums of every cluster, as digits."""
    weights, unit = weights_of(state, scale), unit_of(features, extremes)
    total = [[0] * 5 for _ in range(features.k)]
    for window, values in series:
        origin = (window[0].start, window[1].start, window[2].start)
        sums = kernels.cluster_sums(values, origin, weights, unit, features.limit, features.as_zero)
        for mine, more in zip(total, sums.tolist(), strict=True):
            for i, term in enumerate(more):
                mine[i] += term
    return np.array([[digits(s) for s in mine] for mine in total])


def moved(
    features: Features, extremes: np.ndarray, scale: np.ndarray, state: np.ndarray, sums: np.ndarray
) -> np.ndarray:
    """Return the next state: every centre at the mean of its voxels; one without voxels stays."""
    after = state.copy()
    unit, inertia, n_all = unit_of(features, extremes), 0.0, 0
    for c, of in enumerate(sums):
        n, *terms = (number(d) for d in of)
        after[c, 4] = n
        n_all += n
        if n:
            means = np.array([t / n for t in terms])
            means[0] /= unit
            after[c, :4] = (means - scale[0]) / scale[1]
        inertia -= n * float((after[c, :4] ** 2).sum())
    # Standardised features have the square sum n each: what is not between the centres is within.
    shift = float(((after[:-1, :4] - state[:-1, :4]) ** 2).sum())
    after[-1, [SETTLED, STEPS, INERTIA]] = (
        shift <= features.tolerance,
        state[-1, STEPS] + 1,
        max(inertia + float(scale[2].sum()) * n_all, 0.0),
    )
    return after
