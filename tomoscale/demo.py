"""A trial of the whole chain on a simulated scan, of which the truth is known."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tomoscale import background, blobs, blocks, cluster, report, run, simulate, store
from tomoscale.errors import DamagedError, TomoscaleError
from tomoscale.evaluate.blobs import BlobScore, scored
from tomoscale.operation import command
from tomoscale.parameters import Count, Seed, Shape3
from tomoscale.record import record_of
from tomoscale.store import Volume

MARKER = ".tomoscale-demo"
SCAN, CLEANED, FOUND = "scan.zarr", "cleaned.zarr", "blobs.zarr"
BESIDE = ("scan.parquet", "blobs.parquet", "cleaned-report", "blobs-report")
MADE_BY = {SCAN: "simulate.dct", CLEANED: "background.remove", FOUND: "blobs.segment"}
HALF_WINDOW, STEP = 100, 20
SEED_THRESHOLD, C_MIN, SEED_VOXELS = 60.0, 20.0, 3
ASKED = 2 * SEED_THRESHOLD
"""True blobs with a peak above this must be found."""
MARGIN = 0.06
"""Share of a frame's edge that a simulated scan keeps free of blobs."""
CHECKED_PIXELS = 16


@command("demo")
def trial(
    folder: Path = Path("tomoscale-demo"),
    *,
    shape: Shape3 = (600, 192, 192),
    seed: Seed = 0,
    workers: Count | None = None,
    quiet: bool = False,
) -> Path:
    """
    Simulate a scan, remove its background, find its blobs, hold all against the truth, and draw reports.

    It takes the same ways as the commands `simulate dct`, `background`, `blobs` and `report`, in less than a minute
    on two cores. What was found goes to standard error.

    Parameters
    ----------
    folder : Path
        Where results go. Those of an earlier demo are replaced; other files are left alone.
    shape : (frame, row, column)
        Size of the scan.
    seed : int
        Another seed gives another scan.
    workers : int, optional
        Worker processes; as many as cores by default.
    quiet : bool
        Print what was found only, no plans and no progress.

    Returns
    -------
    Path
        The page about the blobs.

    Raises
    ------
    TomoscaleError
        The folder holds files of other making under the demo's names.
    DamagedError
        The result is not what NumPy gives.
    """
    folder = Path(folder)
    simulate.check_scan(shape)
    _claim(folder)
    begin = time.monotonic()
    scan, cleaned, found = folder / SCAN, folder / CLEANED, folder / FOUND
    margin = max(1, int(MARGIN * min(shape[1:])))
    threading.Thread(target=_compile_for_blobs, daemon=True).start()
    with cluster.connect("local", workers=workers) as connection:
        with blocks.planned_for(connection.block_bytes, connection.slots):
            made = simulate.dct(shape=shape, seed=seed)
        run.write(made, scan, overwrite=True, quiet=quiet, connection=connection)
        with blocks.planned_for(connection.block_bytes, connection.slots):
            result = background.remove(
                store.open_volume(scan), margin=margin, half_window=HALF_WINDOW, step=STEP
            )
        run.write(result, cleaned, overwrite=True, quiet=quiet, connection=connection)
        with blocks.planned_for(connection.block_bytes, connection.slots):
            segmented = _segmented(store.open_volume(cleaned))
        run.write(segmented, found, overwrite=True, quiet=quiet, connection=connection)
    checked = check(scan, cleaned)
    error = background_error(scan, cleaned)
    score = scored(found, scan, ASKED)
    pages = [report.make(r, output=folder / f"{r.stem}-report", quiet=quiet) for r in (cleaned, found)]
    _tell(folder, shape, seed, margin, checked, error, score, pages, time.monotonic() - begin)
    return pages[-1]


def _segmented(frames: Any) -> blobs.Blobs:
    return blobs.segment(frames, seed_threshold=SEED_THRESHOLD, c_min=C_MIN, min_seed_voxels=SEED_VOXELS)


def _compile_for_blobs() -> None:
    """Have the kernels of the last step compiled during the first ones, which a first demo waits for on other cores."""
    with contextlib.suppress(Exception):  # the step itself meets it again, and says so
        blocks.facts(_segmented(np.zeros((8, 8, 8), np.float32)).labels)["prepare"]()


def _claim(folder: Path) -> None:
    """Take a folder for the demo, unless it holds something of another making under one of the demo's names."""
    if folder.is_file():
        raise TomoscaleError(f"demo: {folder} is a file; give a folder")
    if not (folder / MARKER).exists():
        unfinished = [name + store.INCOMPLETE for name in MADE_BY]
        taken = [n for n in (*MADE_BY, *BESIDE, *unfinished) if (folder / n).exists()]
    else:
        taken = [n for n, operation in MADE_BY.items() if _maker(folder / n) not in (None, operation)]
    if taken:
        raise TomoscaleError(f"demo: {folder / taken[0]} was not made by a demo; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("`tomoscale demo` made this folder and replaces its own files in it.\n")


def _maker(result: Path) -> str | None:
    """Return the operation that made a result; None if there is none."""
    if not result.exists():
        return None
    history = (record_of(result) or {}).get("history") or [{}]
    return str(history[-1].get("operation", "unknown"))


# ---------------------------------------------------------------- against NumPy


def check(scan: Path, cleaned: Path) -> str:
    """
    Hold a result against NumPy and SciPy, bit for bit.

    The backgrounds of some pixels, among them hot ones, must be `numpy.median` of their windows, and the
    frame in the middle the median of 3 × 3 neighbours of what is left of the raw one.

    Parameters
    ----------
    scan, cleaned : Path
        A simulated scan, and what `background.remove` made of it.

    Returns
    -------
    str
        What was compared.

    Raises
    ------
    DamagedError
        A bit differs.
    """
    from scipy.ndimage import median_filter

    raw, result = store.open_volume(scan), store.open_volume(cleaned)
    step = result.history()[-1]["parameters"]
    level, backgrounds = _beside(result, "level").whole(), _beside(result, "background")
    scale = (level.mean() / level).astype(np.float32)
    starts, stops = background.windows(raw.shape[0], step["half_window"], step["step"])
    dark = np.median(_beside(raw, "dark").whole(), axis=0).astype(np.float32)
    pixels = _some_pixels(_beside(raw, "truth/defects").whole())
    for row, column in pixels:
        window = slice(0, raw.shape[0]), slice(row, row + 1), slice(column, column + 1)
        counts = np.rint((raw.read(window)[:, 0, 0] - dark[row, column]) * scale)
        expected = [np.median(counts[a:b]) for a, b in zip(starts, stops, strict=True)]
        found = backgrounds.read((slice(0, len(starts)), *window[1:]))[:, 0, 0]
        _hold(np.array(expected, np.float32), found, f"the background of pixel ({row}, {column})")
    k = raw.shape[0] // 2
    left = (_frame(raw, k) - dark) * scale[k] - _frame(backgrounds, k // step["step"])
    expected_frame = median_filter(left, step["smoothing"], mode="nearest")
    _hold(expected_frame, _frame(result, k), f"frame {k}")
    return f"backgrounds of {len(pixels)} pixels in {len(starts)} windows, and frame {k}"


def _some_pixels(defects: np.ndarray) -> list[tuple[int, int]]:
    """Choose pixels at random, the corners, and a hot and a dead one where there are."""
    rows, columns = defects.shape
    rng = np.random.default_rng(0)
    chosen = [(int(rng.integers(rows)), int(rng.integers(columns))) for _ in range(CHECKED_PIXELS)]
    chosen += [(0, 0), (rows - 1, columns - 1)]
    for kind in (1, 2):
        chosen += [(int(r), int(c)) for r, c in np.argwhere(defects == kind)[:1]]
    return chosen


def _hold(expected: np.ndarray, found: np.ndarray, what: str) -> None:
    if not np.array_equal(expected, found):
        n, apart = np.count_nonzero(expected != found), np.abs(expected - found).max()
        raise DamagedError(
            f"demo: {what} is not what NumPy gives: {n} of {found.size} values differ, by {apart:g} at most; "
            "please report this with the output of `tomoscale info`"
        )


# ---------------------------------------------------------------- against the truth


class BackgroundError(NamedTuple):
    """Median and 95th percentile of the absolute error of a background, in counts and in percent."""

    median: float
    p95: float
    median_percent: float
    p95_percent: float


def background_error(scan: Path, cleaned: Path) -> BackgroundError:
    """
    Return how far backgrounds are from the truth.

    A background belongs to the frame in the centre of its window. There the truth is the noise-free frame
    without blobs, less the dark that was subtracted, brought to the mean level of the margin as the frames were.
    Hot and dead pixels are left out: they are no light.

    Parameters
    ----------
    scan, cleaned : Path
        A simulated scan with its truth, and what `background.remove` made of it.

    Returns
    -------
    BackgroundError
        Over all pixels of all centre frames; percent are of the true background of the same pixel.
    """
    raw, result = store.open_volume(scan), store.open_volume(cleaned)
    truth, backgrounds = _beside(raw, "truth/background"), _beside(result, "background")
    level = _beside(result, "level").whole()
    good = _beside(raw, "truth/defects").whole() == 0
    dark = np.median(_beside(raw, "dark").whole(), axis=0)
    step = result.history()[-1]["parameters"]["step"]
    errors, shares = [], []
    for j in range(backgrounds.shape[0]):
        centre = min(j * step + step // 2, raw.shape[0] - 1)
        true = (_frame(truth, centre) - dark) * (level.mean() / level[centre])
        error = np.abs(_frame(backgrounds, j) - true)[good]
        errors.append(error)
        shares.append(100 * error / np.maximum(np.abs(true[good]), 1.0))
    both = (np.concatenate(errors), np.concatenate(shares))
    counts, percent = ([float(v) for v in np.percentile(values, (50, 95))] for values in both)
    return BackgroundError(*counts, *percent)


def _beside(volume: Volume, name: str) -> Volume:
    found = volume.sibling(name)
    if found is None:
        raise TomoscaleError(f"demo: {volume} has no {name} beside it; it needs a scan of `simulate dct`")
    return found


def _frame(volume: Volume, k: int) -> np.ndarray:
    return volume.read((slice(k, k + 1), *(slice(0, n) for n in volume.shape[1:])))[0]


# ---------------------------------------------------------------- words


def _tell(
    folder: Path,
    shape: Sequence[int],
    seed: int,
    margin: int,
    checked: str,
    error: BackgroundError,
    score: BlobScore,
    pages: Sequence[Path],
    seconds: float,
) -> None:
    """Say what was done, where it is and how good it is."""
    n, rows, columns = shape
    scan = "" if tuple(shape) == (600, 192, 192) else f" --shape {n},{rows},{columns}"
    scan += f" --seed {seed}" if seed else ""
    options = f"--margin {margin} --half-window {HALF_WINDOW} --step {STEP}"
    thresholds = f"--seed-threshold {SEED_THRESHOLD:g} --c-min {C_MIN:g} --min-seed-voxels {SEED_VOXELS}"
    off = score.centroid_error["distance"]
    lines = [
        f"demo: {n} frames of {rows} x {columns} from simulation to report in {seconds:.0f} s, in {folder}",
        f"  scan       {folder / SCAN}, with the truth",
        f"  results    {folder / CLEANED}, {folder / FOUND}",
        f"  reports    {', '.join(map(str, pages))}",
        f"  checked    {checked}: equal to numpy.median and scipy.ndimage.median_filter, bit for bit",
        f"  error      half of all background pixels are within {error.median:.2f} counts "
        f"({error.median_percent:.1f} %) of the truth, 95 of 100 within {error.p95:.2f} counts "
        f"({error.p95_percent:.1f} %);",
        "             the truth is the noise-free frame in the centre of each window, less the dark, at the mean "
        "level of the margin",
        f"  blobs      {score.matched} of {score.true} true blobs with a peak above {ASKED:g} counts were found, "
        f"{score.false} of {score.found} found ones are false, {score.split} split",
        *(
            []
            if off.median is None
            else [f"             half of their centroids are within {off.median:.3f} voxels"]
        ),
        "the same with single commands, in an empty folder:",
        f"  mkdir -p {folder}",
        f"  tomoscale simulate dct {folder / SCAN}{scan}",
        f"  tomoscale background {folder / SCAN} -o {folder / CLEANED} {options}",
        f"  tomoscale blobs {folder / CLEANED} -o {folder / FOUND} {thresholds}",
        f"  tomoscale evaluate blobs {folder / FOUND} {folder / SCAN} --peak-above {ASKED:g}",
        f"  tomoscale report {folder / FOUND}",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
