"""Blobs that were found, held against those that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from tomoscale.errors import bad_input
from tomoscale.evaluate.matching import (
    AXES,
    Columns,
    candidates,
    differences,
    distances,
    moved,
    pairs,
    period_of,
    read_table,
)
from tomoscale.operation import command


@dataclass(frozen=True)
class Spread:
    """
    How large errors are.

    Parameters
    ----------
    median, p95, highest : float or None
        Half of all errors are below the first, 95 of 100 below the second; None where there are none.
    """

    median: float | None
    p95: float | None
    highest: float | None

    @classmethod
    def of(cls, errors: np.ndarray) -> Spread:
        """Measure absolute errors."""
        if not len(errors):
            return cls(None, None, None)
        errors = np.abs(errors)
        return cls(float(np.median(errors)), float(np.percentile(errors, 95)), float(errors.max()))


@dataclass(frozen=True)
class Class:
    """
    True blobs of similar peaks.

    Parameters
    ----------
    low, high : float
        Peaks from the first up to, but without, the second, in counts.
    true, matched : int
        How many there are, and how many of them were found.
    """

    low: float
    high: float
    true: int
    matched: int


@dataclass(frozen=True)
class BlobScore:
    """
    How good a table of blobs is.

    Parameters
    ----------
    result, truth : str
        The tables.
    peak_above : float
        True blobs with lower peaks are not asked for; a found one that matches them is not false either.
    true, found, matched : int
        True blobs that are asked for, found blobs, and pairs of them.
    absorbed : int
        Rows that are no found blobs of their own: their peak belongs to a brighter one.
    recall : float or None
        Share of the true blobs that were found; None if there are none.
    missed, merged : int
        True blobs that were not found: their peak lies in the box of no found blob; or it lies in that of one
        that matches another.
    false, split : int
        Found blobs that match none: their peak lies in the box of no true blob; or in that of one that is
        matched by another.
    centroid_error : dict of str to Spread
        Of the pairs: along `frame`, `row` and `column`, their `distance` in voxels, and `omega` in degrees if
        both tables have it.
    intensity_ratio, voxels_ratio : float or None
        Median over the pairs of found / true.
    by_peak : list of Class
        Recall of the true blobs by their peaks, in octaves, faint ones first.
    """

    result: str
    truth: str
    peak_above: float
    true: int
    found: int
    matched: int
    absorbed: int
    recall: float | None
    missed: int
    merged: int
    false: int
    split: int
    centroid_error: dict[str, Spread]
    intensity_ratio: float | None
    voxels_ratio: float | None
    by_peak: list[Class]

    def __str__(self) -> str:
        """Return it in words."""
        return "\n".join(_words(self))


@command("evaluate blobs")
def blobs(
    result: Path,
    truth: Path,
    *,
    peak_above: Annotated[float, Ge(0)] = 0.0,
    as_json: bool = False,
) -> BlobScore | dict[str, Any]:
    """
    Hold a table of blobs against the true one: recall, false blobs, error of the centroids.

    A found and a true blob may be a pair if the peak of each lies in the box of the other. Of all ways to pair them
    one to one, that with the most pairs is taken; among those, that with the smallest sum of distances between
    centroids. Rows of a blob whose peak belongs to a brighter one (`absorbed_into`) do not count.

    Parameters
    ----------
    result : Path
        OUT.zarr of `tomoscale blobs`, or its OUT.parquet. Of a part (`--roi`) only the true blobs count whose peak
        lies in it.
    truth : Path
        Scan of `tomoscale simulate dct`, or its table.
    peak_above : float
        Ask only for true blobs with a peak above so many counts: those that the thresholds should find.
    as_json : bool
        Print JSON.

    Returns
    -------
    BlobScore or dict
        The score; its `str` is for people.

    Raises
    ------
    TomoscaleError
        A table that is not there, or is none of blobs.

    Examples
    --------
    >>> from tomoscale import evaluate, run, simulate
    >>> import tempfile, pathlib
    >>> scan = pathlib.Path(tempfile.mkdtemp()) / "scan.zarr"
    >>> _ = run.write(simulate.dct(shape=(24, 64, 64), blobs=4, seed=1, truth=False), scan, quiet=True)
    >>> score = evaluate.blobs(scan, scan)
    >>> score.recall, score.false, score.centroid_error["distance"].highest
    (1.0, 0, 0.0)
    """
    score = scored(result, truth, peak_above)
    return asdict(score) if as_json else score


# ---------------------------------------------------------------- score


def scored(result: Path, truth: Path, peak_above: float = 0.0) -> BlobScore:
    """
    Score a stored result.

    Parameters
    ----------
    result, truth : Path
        Tables, or what they lie beside.
    peak_above : float
        True blobs with lower peaks are not asked for.

    Returns
    -------
    BlobScore
        The score.
    """
    with bad_input():
        found, true = read_table(result), read_table(truth)
        inside = moved(found, result)
        true = {n: v[inside(true)] for n, v in true.items()}
        return compared(found, true, peak_above, (str(result), str(truth)), period_of(result))


def compared(
    found: Columns, true: Columns, peak_above: float, names: tuple[str, str], period: int = 0
) -> BlobScore:
    """
    Score a table of blobs against the true one.

    Parameters
    ----------
    found, true : dict of str to (blob,)
        Columns of the tables.
    peak_above : float
        True blobs with lower peaks are not asked for.
    names : (str, str)
        What the tables are called.
    period : int
        Frames of a full turn, where found blobs may go over its end; 0 where they do not.

    Returns
    -------
    BlobScore
        The score.
    """
    absorbed = found["absorbed_into"] > 0
    found = {n: v[~absorbed] for n, v in found.items()}
    f, t = pairs(found, true, period)
    asked = true["peak"] > peak_above
    is_matched = np.isin(np.arange(len(asked)), t)
    in_a_true_box = np.isin(np.arange(len(found["label"])), candidates(found, true)[0])
    in_a_found_box = np.isin(np.arange(len(asked)), candidates(true, found, period)[0])
    alone = ~np.isin(np.arange(len(found["label"])), f)
    lost = asked & ~is_matched
    kept = asked[t]
    f, t = f[kept], t[kept]
    errors = {a: Spread.of(differences(found, true, f, t, a, period)) for a in AXES}
    errors["distance"] = Spread.of(distances(found, true, f, t, period))
    if "omega" in found and "omega" in true:
        errors["omega"] = Spread.of((found["omega"][f] - true["omega"][t] + 180) % 360 - 180)
    return BlobScore(
        *names,
        peak_above,
        true=int(asked.sum()),
        found=len(found["label"]),
        matched=len(t),
        absorbed=int(absorbed.sum()),
        recall=len(t) / int(asked.sum()) if asked.any() else None,
        missed=int((lost & ~in_a_found_box).sum()),
        merged=int((lost & in_a_found_box).sum()),
        false=int((alone & ~in_a_true_box).sum()),
        split=int((alone & in_a_true_box).sum()),
        centroid_error=errors,
        intensity_ratio=_median_ratio(found["intensity"][f], true["intensity"][t]),
        voxels_ratio=_median_ratio(found["voxels"][f], true["voxels"][t]),
        by_peak=_octaves(true["peak"][asked], is_matched[asked]),
    )


def _median_ratio(found: np.ndarray, true: np.ndarray) -> float | None:
    return float(np.median(found / true)) if len(true) else None


def _octaves(peaks: np.ndarray, matched: np.ndarray) -> list[Class]:
    """Count what was found for peaks from 2^n to 2^(n + 1)."""
    octave = np.floor(np.log2(np.maximum(peaks.astype(np.float64), 2.0**-20))).astype(int)
    return [
        Class(2.0**n, 2.0 ** (n + 1), int((octave == n).sum()), int(matched[octave == n].sum()))
        for n in sorted(set(octave.tolist()))
    ]


def _words(score: BlobScore) -> Iterator[str]:
    above = f" with a peak above {score.peak_above:g}" if score.peak_above else ""
    share = "" if score.recall is None else f", {100 * score.recall:.1f} %"
    yield f"{score.result} against {score.truth}"
    yield f"  recall      {score.matched} of {score.true} true blobs{above}{share}"
    yield f"  not found   {score.missed}, and {score.merged} in the box of another found blob"
    yield f"  false       {score.false} of {score.found} found blobs, and {score.split} in the box of another true one"
    if score.absorbed:
        yield f"  absorbed    {score.absorbed} rows whose peak belongs to a brighter blob, not counted"
    if score.matched:
        for name, unit in (("distance", "voxels"), *((a, a + "s") for a in AXES), ("omega", "degrees")):
            error = score.centroid_error.get(name)
            if error is not None:
                yield (
                    f"  {'centroid' if name == 'distance' else '':<11} {name:<8} off by {error.median:.3f} {unit} "
                    f"(median), {error.p95:.3f} (95 %), {error.highest:.3f} (highest)"
                )
        yield f"  intensity   {score.intensity_ratio:.3f} of the true one (median), voxels {score.voxels_ratio:.3f}"
    for one in score.by_peak:
        yield f"  peak {one.low:g} to {one.high:g}: {one.matched} of {one.true}"
