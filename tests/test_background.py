"""The background of a scan is what the definition says, whatever the chunks, the workers and the memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import dask
import numpy as np
import oracle
import pytest
from conftest import small_scan, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import background, blocks, cluster, columns, first, run, store
from tomoscale.errors import TomoscaleError


def border(shape, width):
    margin = np.ones(shape, bool)
    margin[width:-width, width:-width] = False
    return margin


def computed(cleaned):
    return dask.compute(*cleaned, scheduler="sync")


def assert_equal(cleaned, expected):
    for name, got, want in zip(("frames", "background", "level"), cleaned, expected, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=name)
        assert got.dtype == want.dtype


@pytest.mark.parametrize("ranking", ["fixed", "exact"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_frames_without_normalisation_lose_the_median_of_their_window(dtype, ranking):
    frames = (
        small_scan(dtype="uint16").clip(0, 255).astype(dtype) if dtype == "uint8" else small_scan(dtype=dtype)
    )
    got = computed(background.remove(frames, half_window=20, step=7, ranking=ranking))
    assert_equal(got, oracle.remove(frames, half_window=20, step=7, ranking=ranking))


@pytest.mark.parametrize("ranking", ["fixed", "exact"])
def test_frames_are_normalised_by_their_margin_after_the_dark(scan, ranking):
    dark = np.random.default_rng(1).integers(90, 110, (6, *scan.shape[1:])).astype(np.uint16)
    options = {"half_window": 25, "step": 10, "ranking": ranking}
    got = computed(background.remove(scan, dark=dark, margin=3, **options))
    assert_equal(got, oracle.remove(scan, dark=dark, margin=border(scan.shape[1:], 3), **options))


@pytest.mark.parametrize("ranking", ["fixed", "exact"])
@pytest.mark.parametrize("dtype", ["int8", "uint32", "int64", "float16", "float64", ">u2", ">f4"])
def test_every_type_of_frame_becomes_float32_after_the_dark(dtype, ranking):
    frames = (small_scan(dtype="int16") // (8 if dtype == "int8" else 1)).astype(dtype)
    if dtype in ("uint32", "int64"):
        frames += 2**24 + 1
    dark = np.full(frames.shape[1:], frames.min() - 40.5, np.float64)
    options = {"half_window": 12, "step": 6, "ranking": ranking}
    got = computed(background.remove(frames, dark=dark, **options))
    assert_equal(got, oracle.remove(frames.astype(frames.dtype.newbyteorder("=")), dark=dark, **options))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(3, 60), st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from([0, 1, 3, 5]), st.sampled_from(["float32", "int32", "int16"]), st.booleans(),
)  # fmt: skip
def test_every_shape_window_and_step_is_the_definition(
    n, rows, cols, half_window, step, smoothing, dtype, with_dark
):
    rng = np.random.default_rng(n * rows + cols)
    frames = rng.integers(0, 2000, (n, rows, cols)).astype(np.uint16)
    dark = np.full((rows, cols), 3.5) if with_dark else None
    options = {"half_window": half_window, "step": step, "smoothing": smoothing, "dtype": dtype}
    got = computed(background.remove(frames, dark=dark, **options))
    assert_equal(got, oracle.remove(frames, dark, **options))


CHUNKINGS = [(90, 20, 23), (1, 20, 23), (16, 5, 23), (7, 9, 4), (64, 20, 8), (11, 1, 23)]


@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize("block_bytes", [10**9, 17_250_000])
def test_result_does_not_depend_on_the_chunks(scan, tmp_path, chunks, block_bytes):
    dark = np.full(scan.shape[1:], 95, np.uint16)
    source = write_scan(tmp_path / "scan.zarr", scan, chunks, dark=dark)
    with blocks.planned_for(block_bytes, 3):
        cleaned = background.remove(source, margin=2, half_window=8, step=4)
    expected = oracle.remove(scan, dark, border(scan.shape[1:], 2), half_window=8, step=4)
    assert_equal(computed(cleaned), expected)


def test_a_small_memory_cuts_the_frames_and_reads_their_windows(scan):
    frames = np.tile(scan, (30, 1, 1))
    with blocks.planned_for(24_000_000, 1):
        scarce = background.remove(frames, half_window=8, step=4)
    assert scarce.frames.numblocks[0] > 1
    assert_equal(computed(scarce), oracle.remove(frames, half_window=8, step=4))


@pytest.mark.parametrize(("scheduler", "workers"), [(s, n) for s in ("threads", "local") for n in (1, 2, 4)])
def test_result_does_not_depend_on_the_workers(scan, tmp_path, scheduler, workers):
    source = write_scan(tmp_path / "scan.zarr", scan, (16, 4, 23), omega=np.linspace(0, 360, len(scan)))
    with cluster.connect(scheduler, workers=workers) as connection, blocks.planned_for(10**9, 8):
        result = background.remove(source, margin=2, half_window=10, step=5)
        out = run.write(result, tmp_path / "out.zarr", connection=connection, quiet=True)
    expected = oracle.remove(scan, None, border(scan.shape[1:], 2), half_window=10, step=5)
    stored = [store.open_volume(out / name).whole() for name in ("frames", "background", "level")]
    assert_equal(stored, expected)
    np.testing.assert_array_equal(store.open_volume(out / "omega").whole(), np.linspace(0, 360, len(scan)))


def test_nan_spreads_as_in_numpy(scan):
    frames = scan.astype(np.float32)
    frames[30, 5, 5] = np.nan
    got = computed(background.remove(frames, half_window=10, step=5, ranking="exact", smoothing=0))
    assert_equal(got, oracle.remove(frames, half_window=10, step=5, ranking="exact", smoothing=0))


def test_a_scan_whose_noise_is_flat_is_cleaned_to_zero():
    frames = np.full((40, 6, 6), 70, np.uint16)
    cleaned = computed(background.remove(frames, half_window=5, step=5))
    assert not cleaned[0].any()
    assert (cleaned[1] == 70).all()


def test_overlapping_margin_rectangles_count_a_pixel_once(scan):
    rects = (((0, 4), (0, 6)), ((2, 8), (3, 9)))
    margin = np.zeros(scan.shape[1:], bool)
    margin[0:4, 0:6] = margin[2:8, 3:9] = True
    got = background.remove(scan, margin_roi=rects).level.compute()
    np.testing.assert_array_equal(got, oracle.level_of(scan, None, margin))
    mask = background.remove(scan, margin_mask=margin.astype(np.uint8)).level.compute()
    np.testing.assert_array_equal(mask, got)


def test_margin_level_reads_only_the_chunks_that_the_margin_touches(scan, tmp_path):
    source = write_scan(tmp_path / "scan.zarr", scan, (16, 5, 6))
    cleaned = background.remove(source, margin_roi=(((0, 3), (0, 4)),))
    lost = [f for f in (source / "frames").rglob("*") if f.is_file() and f.parts[-2:] != ("0", "0")]
    for file in lost:
        if file.name != "zarr.json":
            file.write_bytes(b"damaged")
    expected = scan[:, 0:3, 0:4].reshape(len(scan), -1).mean(axis=1)
    np.testing.assert_array_equal(cleaned.level.compute(), expected)


def test_hot_pixels_are_replaced_by_their_neighbours_and_listed():
    frames = small_scan(rows=24, columns=24)
    quiet = computed(background.remove(frames, half_window=20, step=10))
    rng = np.random.default_rng(5)
    hot = frames.copy()
    hot[:, 12, 9] = rng.integers(3000, 9000, len(frames))
    got = background.remove(hot, half_window=20, step=10, hot_pixels=True)
    listed = np.asarray(got.hot.compute())
    assert listed[:, 12, 9].all()
    assert listed.sum() - listed[:, 12, 9].sum() <= 0.001 * listed.size
    assert np.abs(got.frames.compute()[:, 10:15, 7:12] - quiet[0][:, 10:15, 7:12]).max() < 60


def test_hot_pixels_do_not_depend_on_the_blocks(tmp_path):
    frames = small_scan(rows=24, columns=24)
    frames[:, 7, ::5] = 5000 + np.arange(len(frames))[:, None] % 7 * 400
    source = write_scan(tmp_path / "scan.zarr", frames, (8, 8, 24))
    whole = computed(background.remove(frames, half_window=8, step=4, hot_pixels=True))
    with blocks.planned_for(10**9, 8):
        parts = background.remove(source, half_window=8, step=4, hot_pixels=True)
    assert np.prod(parts.frames.numblocks) > 1
    for got, want in zip(computed(parts), whole, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_full_scan_is_a_few_tasks_per_block_in_less_than_two_gigabytes():
    class Scan(store.ArrayVolume):
        def read(self, window):
            raise AssertionError("planning reads nothing")

        def _sample(self):
            return "none"

    shape = (7200, 2048, 2048)
    frames = Scan(np.broadcast_to(np.uint16(1), shape))
    object.__setattr__(frames, "at", lambda window: blocks.Piece(frames, window))
    plan = run.plan(background.remove(frames, margin=20, dark="none"))
    assert plan.n_graph_tasks - 8 * 4 - 1 <= 3 * plan.n_blocks
    assert plan.worker_bytes(1) < 2 * 2**30
    assert plan.written >= np.prod(shape) * 4


@pytest.mark.parametrize("options", [{}, {"hot_pixels": True}])
def test_what_is_cut_to_fit_the_memory_does_fit_with_a_stack_of_darks(scan, options):
    frames, dark = np.tile(scan, (4, 2, 8)), np.zeros((200, 40, 184), np.uint16)
    whole = run.plan(background.remove(frames, dark=dark, half_window=20, step=10, **options)).block_bytes
    sizes = []
    for allowed in np.linspace(0.93 * whole, whole, 30).astype(int):
        with blocks.planned_for(int(allowed), 1):
            made = background.remove(frames, dark=dark, half_window=20, step=10, **options)
        sizes.append(run.plan(made).block_bytes)
        assert sizes[-1] <= allowed
    assert min(sizes) < whole


@pytest.mark.parametrize(
    "options", [{}, {"margin": 8}, {"margin": 8, "ranking": "exact", "hot_pixels": True}]
)
def test_workers_take_less_memory_than_the_plan_says(tmp_path, options):
    frames = np.tile(small_scan(100, 64, 1024), (12, 1, 1))
    source = write_scan(
        tmp_path / "scan.zarr", frames, (50, 16, 1024), dark=np.full((64, 1024), 90, np.uint16)
    )
    with cluster.connect("local", workers=1) as connection, blocks.planned_for(700_000_000, 1):
        result = background.remove(source, half_window=60, step=20, **options)
        out = run.write(result, tmp_path / "out.zarr", connection=connection, quiet=True)
    plan = run.plan(result)
    peak = store.open_volume(out).history()[-1]["peak_bytes"]
    assert 100_000_000 < plan.block_bytes < peak < plan.worker_bytes(1)
    # Were cleaned frames held as well as the raw ones, they alone would not be within the plan.
    assert plan.worker_bytes(1) < peak + result.frames.nbytes


def test_a_first_run_that_compiles_its_kernels_takes_less_memory_than_the_plan_says(scan, tmp_path):
    """On threads, where the process that has them compiled is the one that computes."""
    write_scan(tmp_path / "scan.zarr", scan, (30, 10, 23))
    done = subprocess.run(
        [sys.executable, "-m", "tomoscale", "background", "scan.zarr", "--scheduler", "threads"],
        cwd=tmp_path,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
        capture_output=True,
        text=True,
        check=True,
    )
    planned, taken = re.findall(r"(\d+) MB per worker", done.stderr)
    assert int(taken) < int(planned), done.stderr


def test_no_worker_is_asked_for_the_level_of_a_scan_that_is_not_normalised(scan, tmp_path, monkeypatch):
    monkeypatch.setattr(first.First, "_execute", lambda *_, **__: pytest.fail("a task of its own"))
    out = run.write(background.remove(scan), tmp_path / "out.zarr", quiet=True)
    np.testing.assert_array_equal(store.open_volume(out / "level").whole(), np.ones(len(scan)))


def test_columns_of_a_big_scan_are_read_twice_at_most():
    layout = columns.cut(
        (7200, 2048, 2048), blocks.scan_chunks((7200, 2048, 2048), 2), halo=(250, 1, 1), step=50,
        itemsize=(2, 4), held=0.1, scratch=(7000, 10**7), block_bytes=1_600_000_000, threads=16,
    )  # fmt: skip
    assert layout.decoded((64, 8, 2048)) <= 2 * np.prod(layout.shape)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"half_window": 0}, "half_window: input should be greater than or equal to 1, got 0"),
        ({"step": -3}, "step"),
        ({"smoothing": 4}, "smoothing: must be odd"),
        ({"ranking": "rough"}, "ranking"),
        ({"margin": 11}, "a margin of 11 pixels does not fit frames of 20 x 23"),
        ({"margin": 1, "margin_roi": (((0, 2), (0, 2)),)}, "give one of"),
        ({"margin_roi": (((0, 2), (20, 40)),)}, "20:40 lies outside frames of 20 x 23"),
        (
            {"dark": np.zeros((4, 4), np.uint16)},
            r"dark has shape \(4, 4\), frames have \(20, 23\); crop the dark",
        ),
        ({"dark": np.full((20, 23), 60000, np.uint16)}, "brighter than the frames"),
        ({"margin_mask": np.zeros((20, 23), np.uint8)}, "zero everywhere"),
        ({"half_windw": 3}, "half_windw"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(scan, options, words):
    with pytest.raises(TomoscaleError, match=words):
        background.remove(scan, **options)


def test_a_frame_without_light_in_its_margin_is_named(scan, tmp_path):
    scan[41] = 0
    with pytest.raises(TomoscaleError, match="margin of frame 41 has level 0"):
        run.write(background.remove(scan, margin=3), tmp_path / "out.zarr", quiet=True)


def test_a_frame_of_infinite_counts_in_its_margin_is_named(scan, tmp_path):
    scan = scan.astype("f4")
    scan[41, 0, 5] = np.inf
    with pytest.raises(TomoscaleError, match="margin of frame 41 has level inf"):
        run.write(background.remove(scan, margin=3), tmp_path / "out.zarr", quiet=True)


def test_two_frames_are_no_scan():
    with pytest.raises(TomoscaleError, match="at least 3"):
        background.remove(np.zeros((2, 4, 4), np.uint16))


def test_a_dark_beside_the_frames_is_used_unless_refused(scan, tmp_path):
    dark = np.full(scan.shape[1:], 90, np.uint16)
    source = write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23), dark=dark)
    with_dark = background.remove(source, half_window=9, step=9).background.compute()
    without = background.remove(source, half_window=9, step=9, dark="none").background.compute()
    np.testing.assert_array_equal(with_dark + 90, without)
