"""Clusters of grey values and their places (k-means), out of core: no feature matrix, and sums that are exact."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from tomoscale import blocks, clusters, cubes, devices, histogram, kernels, passes
from tomoscale.blocks import Index, Window
from tomoscale.clusters import SETTLED, STEPS, Features
from tomoscale.cubes import checked_volume
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Count, Device, Sigma, Volume, Width
from tomoscale.smooth import smoothed

Clusters = Annotated[int, Ge(2), Le(64)]
BINS = 65536
"""Bins of floating-point intensities that are clustered without coordinates."""
ROW_BYTES = 64 * 1024


class Clustered(NamedTuple):
    """The cluster of every voxel; centres, sum of squares and number of passes of the fit."""

    labels: Any
    centres: Any
    inertia: Any
    iterations: Any


@operation("kmeans")
def segment(
    image: Volume,
    *,
    k: Clusters = 3,
    features: Literal["coordinates", "intensity"] = "coordinates",
    threshold: float | None = None,
    below: Literal["background", "zero"] = "background",
    sigma: Sigma = (0.0,),
    initial: Volume | None = None,
    seed: Width = 0,
    n_init: Count = 4,
    tolerance: Annotated[float, Ge(0)] = 1e-4,
    most_iterations: Count = 100,
    device: Device = "auto",
) -> Clustered:
    """
    Cluster the voxels of a volume by intensity and place (k-means).

    Parameters
    ----------
    image : (z, y, x)
        Grey values: integers of up to 32 bits (16 for the intensity alone), or floating-point numbers.
    k
        Number of clusters.
    features
        Intensity and `coordinates`, each standardised to mean 0 and deviation 1, or the `intensity` alone, for which
        the best of all solutions is found from the histogram.
    threshold
        Voxels below it are left out before anything is computed.
    below
        What becomes of them: `background`, label 0; or they stay, with the intensity `zero`.
    sigma
        Standard deviation in voxels of a Gaussian before all, along z, y and x or one for all; 0 for none.
    initial : (k, 4), optional
        Centres to begin with: intensity, z, y and x, as an earlier result holds them in `centres`. By default the
        best of some fits of a sample.
    seed
        Of the sample, and of its first centres.
    n_init
        Fits of the sample.
    tolerance
        The fit has settled when the squared shifts of all standardised centres sum up to less.
    most_iterations
        Passes after which it ends anyway.
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

    Returns
    -------
    Clustered
        Lazy arrays: `labels` (z, y, x) uint8, 1 to k by ascending intensity of the centre, 0 below the threshold;
        `centres` (k, 4) float64: intensity, z, y, x (not a number without coordinates); `inertia` (1,): sum of
        squared standardised distances; `iterations` (1,): passes of the fit.

    Raises
    ------
    TomoscaleError
        Not a volume; when it runs, NaN, one value only, nothing above the threshold, fewer voxels or values than
        clusters.

    Notes
    -----
    Equal to `sklearn.cluster.KMeans` on standardised float64 features from the same centres, without their matrix:
    coordinates are not stored, and sums are of integers (floating-point intensities in units of 2**-30 of the
    largest), so that neither chunks nor workers matter. A cluster that loses all voxels keeps its centre. Every
    iteration reads the volume once, and is kept: a run that goes on does not repeat it.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import kmeans
    >>> image = np.zeros((4, 8, 8), np.uint8)
    >>> image[:, :, 4:] = 90
    >>> found = kmeans.segment(image, k=2, features="intensity")
    >>> found.centres.compute()[:, 0], np.bincount(found.labels.compute().ravel())
    (array([ 0., 90.]), array([  0, 128, 128]))
    """
    who = "kmeans.segment"
    shape = checked_volume(who, image)
    image, place = devices.placed(who, image, device, rounds=any(sigma))
    view = smoothed(image, sigma)
    limit = -math.inf if threshold is None else float(threshold)
    if math.isnan(limit):
        raise TomoscaleError(f"{who}: threshold is not a number")
    is_integer = view.dtype.kind in "iu"
    how = Features(who, shape, k, seed, n_init, limit, below == "zero", tolerance, is_integer)
    if features == "intensity":
        if initial is not None:
            raise TomoscaleError(
                f"{who}: intensities alone need no initial centres: the best solution is found"
            )
        return _stated(_by_intensity(view, how), place)
    if initial is not None and initial.shape != (k, 4):
        raise TomoscaleError(
            f"{who}: initial has shape {initial.shape}; expected ({k}, 4): intensity, z, y, x of every centre"
        )
    return _stated(_by_place(view, how, initial, most_iterations), place)


def _stated(made: Clustered, place: dict[str, Any]) -> Clustered:
    blocks.state(made.labels, image="volume", **place)
    return made


def _by_place(view: Any, how: Features, initial: Any, most_iterations: int) -> Clustered:
    """Survey, then one pass for each iteration until the centres settle, then the labels."""
    if how.is_integer and view.dtype.itemsize <= 4:
        # Only floating-point intensities need them, to become integers: a pass less.
        extremes = passes.derive(functools.partial(np.zeros, 2), np.zeros(2), ())
    else:
        extremes = histogram.extremes(how.who, view)
    like = clusters.packed(np.zeros((9, clusters.DIGITS), np.int64), np.zeros((clusters.SAMPLE, 3), np.int64))
    first, drawing = functools.partial(clusters.survey, how), clusters.SAMPLE_BYTES
    survey = passes.fold(view, first, like, combine=clusters.merged, small=(extremes,), scratch=drawing)
    scale = passes.derive(functools.partial(clusters.scaling, how), np.zeros((3, 4)), (extremes, survey))
    none = np.zeros((how.k + 1, 5))
    if initial is None:
        state = passes.derive(functools.partial(clusters.seeded, how), none, (survey, scale))
    else:
        centres = initial.whole().astype(np.float64)
        if not np.isfinite(centres).all():
            raise TomoscaleError(f"{how.who}: initial centres are not all numbers")
        state = passes.derive(functools.partial(clusters.given, how, centres), none, (scale,))
    sums = np.zeros((how.k, 5, clusters.DIGITS), np.int64)
    assign, step = functools.partial(clusters.assigned, how), functools.partial(clusters.moved, how)
    for _ in range(most_iterations):
        small = (extremes, scale, state)
        added = passes.fold(view, assign, sums, small=small, scratch=ROW_BYTES, settled=is_settled)
        state = passes.derive(step, none, (*small, added), settled=last_state)
    return _result(view, how, scale, state)


def is_settled(extremes: np.ndarray, scale: np.ndarray, state: np.ndarray) -> np.ndarray | None:
    """Return sums that nobody needs once the centres have settled."""
    if not state[-1, SETTLED]:
        return None
    return np.zeros((len(state) - 1, 5, clusters.DIGITS), np.int64)


def last_state(
    extremes: np.ndarray, scale: np.ndarray, state: np.ndarray, sums: np.ndarray
) -> np.ndarray | None:
    """Return the state once it has settled."""
    return state if state[-1, SETTLED] else None


def _result(view: Any, how: Features, scale: Any, state: Any) -> Clustered:
    cut = cubes.cut(how.who, view, held=1)
    working = getattr(view, "working_bytes", lambda w: 0)(tuple(slice(0, e) for e in cut.edges))

    def arguments(index: Index) -> tuple[Any, ...]:
        return cut.window(index), view.at(cut.window(index))

    call = functools.partial(labelled, how)
    labels = blocks.map_blocks(
        call, arguments, {"labels": cut.field("u1")}, small=(scale, state), scratch=ROW_BYTES + working
    )["labels"]
    return Clustered(
        labels,
        passes.derive(real_centres, np.zeros((how.k, 4)), (scale, state)),
        passes.derive(inertia_of, np.zeros(1), (state,)),
        passes.derive(steps_of, np.zeros(1, np.int64), (state,)),
    )


def ranks_of(state: np.ndarray) -> np.ndarray:
    """Return the order of the centres by intensity, then by place."""
    return np.lexsort(state[:-1, 3::-1].T)


def labelled(
    how: Features, window: Window, values: np.ndarray, scale: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """Return the label of every voxel: 1 for the centre of the lowest intensity."""
    origin = (window[0].start, window[1].start, window[2].start)
    weights = clusters.weights_of(state, scale)[ranks_of(state)]
    return kernels.cluster_labels(values, origin, weights, how.limit, how.as_zero)


def real_centres(scale: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Return the centres in the units of the volume, by ascending intensity."""
    return state[ranks_of(state), :4] * scale[1] + scale[0]


def inertia_of(state: np.ndarray) -> np.ndarray:
    """Return the sum of squared distances."""
    return state[-1:, clusters.INERTIA].copy()


def steps_of(state: np.ndarray) -> np.ndarray:
    """Return the number of iterations."""
    return state[-1:, STEPS].astype(np.int64)


# ---------------------------------------------------------------- intensity alone


def _by_intensity(view: Any, how: Features) -> Clustered:
    counted = histogram.of(how.who, view, BINS)
    solve = functools.partial(solved, how, view.dtype)
    # One row for each class: its last value, its mean; then what is left over.
    fit = passes.derive(solve, np.zeros((how.k + 1, 2)), (counted.counts, counted.extremes))
    cut = cubes.cut(how.who, view, held=1)
    labels = cubes.each(view, cut, "u1", functools.partial(classified, how), small=(fit,))
    return Clustered(
        labels,
        passes.derive(means_of, np.zeros((how.k, 4)), (fit,)),
        passes.derive(left_over, np.zeros(1), (fit,)),
        passes.derive(one_pass, np.zeros(1, np.int64), (fit,)),
    )


def solved(how: Features, dtype: np.dtype, counts: np.ndarray, extremes: np.ndarray) -> np.ndarray:
    """Return the last value and the mean of every class, then the sum of squares of standardised intensities."""
    there = np.flatnonzero(counts)
    if dtype.kind in "iu":
        values = last = there.astype(np.float64) + np.iinfo(dtype).min
    else:
        edges = histogram.bins_between(extremes[0], extremes[1], len(counts), dtype).astype(np.float64)
        values, last = (
            ((edges[:-1] + edges[1:]) / 2)[there],
            np.nextafter(edges[1:].astype(dtype), -np.inf, dtype=dtype)[there],
        )
    weights = counts[there]
    keep = last >= how.limit
    if how.as_zero and not keep.all():
        n_zero, values, last, weights = weights[~keep].sum(), values[keep], last[keep], weights[keep]
        values, last, weights = np.append(values, 0.0), np.append(last, 0.0), np.append(weights, n_zero)
        values, places = np.unique(values, return_inverse=True)
        weights = np.bincount(places, weights).astype(np.int64)
        last = values if dtype.kind in "iu" else np.maximum.reduceat(np.sort(last), np.arange(len(values)))
    else:
        values, last, weights = values[keep], last[keep], weights[keep]
    if not len(values):
        raise TomoscaleError(
            f"{how.who}: no voxel reaches the threshold {how.limit:g}; the highest value is {extremes[1]:g}"
        )
    if len(values) < how.k:
        raise TomoscaleError(
            f"{how.who}: {len(values)} different values are left for {how.k} clusters; give a smaller k"
        )
    cuts = kernels.optimal_cuts(values, weights, how.k)
    begins, ends = np.append(0, cuts + 1), np.append(cuts, len(values) - 1)
    out = np.empty((how.k + 1, 2))
    within = 0.0
    for c, (a, b) in enumerate(zip(begins, ends, strict=True)):
        mean = np.average(values[a : b + 1], weights=weights[a : b + 1])
        out[c] = last[b], mean
        within += float((weights[a : b + 1] * (values[a : b + 1] - mean) ** 2).sum())
    variance = np.average((values - np.average(values, weights=weights)) ** 2, weights=weights)
    out[-1] = within / variance, 0.0
    return out


def classified(how: Features, values: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Return the label of every voxel from the last values of the classes."""
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    low = values < how.limit
    if how.as_zero:
        values = kernels.namespace(values).where(low, values.dtype.type(0), values)
    found = kernels.classes_of(values, fit[: how.k - 1, 0].astype(values.dtype))
    found += 1
    if not how.as_zero:
        found[low] = 0
    return found


def means_of(fit: np.ndarray) -> np.ndarray:
    """Return the mean intensities; there are no places."""
    out = np.full((len(fit) - 1, 4), np.nan)
    out[:, 0] = fit[:-1, 1]
    return out


def left_over(fit: np.ndarray) -> np.ndarray:
    """Return the sum of squares."""
    return fit[-1:, 0].copy()


def one_pass(fit: np.ndarray) -> np.ndarray:
    """Return that the histogram was read once."""
    return np.ones(1, np.int64)
