"""Thresholds, scaling and masks are those of scikit-image on the whole volume, whatever the chunks."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from conftest import write_array
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_multiotsu, threshold_otsu

from tomoscale import blocks, cli, cluster, histogram, kmeans, otsu, run, store, thresholds
from tomoscale.errors import TomoscaleError
from tomoscale.kernels import otsu_indices

CHUNKINGS = [(24, 37, 41), (8, 16, 16), (5, 37, 8), (24, 3, 41), (1, 37, 41)]


def phases(dtype: str = "uint16", shape=(24, 37, 41), seed: int = 0) -> np.ndarray:
    """Return a volume of four grey values in boxes, with noise."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.5, shape)
    z, y, x = (n // 2 for n in shape)
    values[:z] += 4
    values[:, y:] += 9
    values[:, :, x:] += 1.5
    unit = (values - values.min()) / np.ptp(values)
    if np.dtype(dtype).kind == "f":
        return (unit * 3 - 1).astype(dtype)
    info = np.iinfo(dtype)
    return (info.min + unit * (int(info.max) - int(info.min))).astype(dtype)


def computed(lazy):
    return np.asarray(lazy.compute(scheduler="sync"))


def skimage_thresholds(image, classes):
    return np.atleast_1d(threshold_otsu(image) if classes == 2 else threshold_multiotsu(image, classes))


@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize(
    ("dtype", "classes"),
    [("uint8", 2), ("uint8", 3), ("uint8", 4), ("uint16", 2), ("int16", 2), ("float32", 2), ("float32", 3),
     ("float64", 2), ("float32", 4)],
)  # fmt: skip
def test_thresholds_are_those_of_the_whole_volume(tmp_path, chunks, dtype, classes):
    image = phases(dtype)
    with blocks.planned_for(2**29, 2):
        found = otsu.segment(write_array(tmp_path / "v.zarr", image, chunks), classes=classes)
    thresholds, labels = dask.compute(found.thresholds, found.labels, scheduler="sync")
    expected = skimage_thresholds(image, classes)
    np.testing.assert_array_equal(thresholds, expected)
    np.testing.assert_array_equal(labels, np.digitize(image, expected, right=True))


@pytest.mark.slow
def test_five_classes_are_those_of_a_search_through_all_combinations():
    image = phases("uint8")
    np.testing.assert_array_equal(
        computed(otsu.segment(image, classes=5).thresholds), threshold_multiotsu(image, 5)
    )


def test_three_classes_of_twelve_bits_are_those_of_a_search_through_all_combinations():
    image = phases("uint16") >> 4
    np.testing.assert_array_equal(
        computed(otsu.segment(image, classes=3).thresholds), threshold_multiotsu(image, 3)
    )


def between(probability, ends):
    """Return the sum that Otsu's thresholds make largest."""
    bins = np.arange(len(probability))
    parts = np.split(np.stack([probability, probability * bins]), np.asarray(ends) + 1, axis=1)
    return sum(p[1].sum() ** 2 / p[0].sum() for p in parts)


def test_no_step_aside_improves_five_classes_of_sixteen_bits():
    counts = np.bincount(phases("uint16", (60, 50, 50)).ravel(), minlength=65536)
    probability = counts / counts.sum()
    found = otsu_indices(probability.astype(np.float32), 5)
    best = between(probability, found)
    for k in range(4):
        for step in (-2000, -300, 300, 2000):
            moved = found.copy()
            moved[k] += step
            assert between(probability, moved) < best * (1 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=6, max_size=40), st.integers(3, 4))
def test_small_histograms_with_gaps_and_ties_are_cut_as_scikit_image_does(counts, classes):
    counts = np.array([1, *counts, 1])
    if np.count_nonzero(counts) <= classes:
        return
    image = np.repeat(np.arange(len(counts)), counts).astype(np.uint8).reshape(1, 1, -1)
    found = thresholds.otsu_thresholds(
        "test",
        classes,
        np.dtype("u1"),
        np.bincount(image.ravel(), minlength=256),
        np.array([0.0, len(counts) - 1]),
    )
    np.testing.assert_array_equal(found, threshold_multiotsu(image.ravel(), classes))


@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float32"])
def test_percentiles_are_exact(tmp_path, chunks, dtype):
    image = phases(dtype)
    volume = store.as_volume(write_array(tmp_path / "v.zarr", image, chunks))
    percents = (0.0, 0.1, 33.3, 50.0, 75.0, 99.99, 100.0)
    found = computed(histogram.percentiles("test", volume, percents))
    np.testing.assert_array_equal(found, np.percentile(image, percents))


def test_percentiles_of_signed_and_equal_floats_are_exact():
    image = np.array([-0.0, 0.0, -1e-40, 3e38, -3e38, 1, 1, 1, 2], np.float32).reshape(1, 3, 3)
    percents = (0.0, 10.0, 25.0, 50.0, 62.5, 100.0)
    found = computed(histogram.percentiles("test", store.as_volume(image), percents))
    np.testing.assert_array_equal(found, np.percentile(image, percents))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_scaling_sends_the_extremes_to_zero_and_one(dtype):
    image = phases(dtype)
    wide = image.astype(np.float64)
    expected = ((wide - wide.min()) / (wide.max() - wide.min())).astype(np.float32)
    np.testing.assert_array_equal(computed(otsu.scale(image).volume), expected)


def test_scaling_by_percentiles_cuts_what_lies_beyond():
    image = phases("uint16")
    low, high = np.percentile(image, (2, 98))
    expected = np.clip((image - low) / (high - low), 0, 1).astype(np.float32)
    np.testing.assert_array_equal(computed(otsu.scale(image, percentiles=(2, 98)).volume), expected)


def test_a_gaussian_before_the_threshold_is_that_of_the_whole_volume(tmp_path):
    from scipy.ndimage import gaussian_filter

    image = phases("uint16")
    source = write_array(tmp_path / "v.zarr", image, (7, 9, 16))
    smooth = gaussian_filter(image.astype(np.float32), 1.3)
    found = otsu.segment(source, sigma=(1.3,))
    np.testing.assert_array_equal(computed(found.thresholds), threshold_otsu(smooth))
    np.testing.assert_array_equal(computed(found.labels), smooth > threshold_otsu(smooth))


def test_command_writes_what_the_function_returns(tmp_path, capsys):
    image = phases("uint8", (40, 50, 60))
    source = write_array(tmp_path / "v.zarr", image, (16, 16, 16))
    assert cli.main(["otsu", str(source), "--classes", "3", "--scheduler", "threads"]) == 0
    out, err = capsys.readouterr()
    assert out.strip().endswith("v-otsu.zarr")
    assert "passes             1 before the blocks, 1 with them" in err
    expected = threshold_multiotsu(image, 3)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "v-otsu.zarr/thresholds").whole(), expected)
    labels = store.open_volume(tmp_path / "v-otsu.zarr")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels.whole(), np.digitize(image, expected, right=True))


def test_a_damaged_block_is_made_again(tmp_path):
    source = write_array(tmp_path / "v.zarr", phases("uint8"), (8, 16, 16))
    out = run.write(otsu.segment(source), tmp_path / "o.zarr", quiet=True)
    before = store.open_volume(out).whole()
    chunk = next(p for p in (out / "labels" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert cli.main(["verify", str(out), "--repair"]) == 0
    np.testing.assert_array_equal(store.open_volume(out).whole(), before)


def test_a_volume_is_one_task_for_each_block_and_a_few_for_its_histogram(tmp_path):
    source = write_array(tmp_path / "v.zarr", np.zeros((128, 256, 512), np.uint8), (32, 64, 64))
    with blocks.planned_for(22_000_000, 4):
        plan = run.plan(otsu.segment(source))
    assert plan.n_blocks <= 8
    assert plan.n_graph_tasks <= 2 * plan.n_blocks + 6 * 4 + 8
    assert plan.read == 2 * 128 * 256 * 512


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.full((3, 4, 5), 7, np.uint16), {}, "one value only"),
        (np.full((3, 4, 5), 7, np.float32), {}, "one value only"),
        (np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3, {"classes": 4}, "3 different values"),
        (np.full((3, 4, 5), np.nan, np.float32), {}, "NaN or infinite values"),
        (np.ones((4, 5), np.uint8), {}, "expected \\(z, y, x\\)"),
        (np.ones((3, 4, 5), np.int64), {}, "values of type int64"),
        (np.ones((3, 4, 5), np.uint8), {"classes": 6}, "less than or equal to 5"),
        (np.ones((3, 4, 5), np.uint8), {"sigma": (1.0, 2.0)}, "sigma has 2 numbers"),
    ],
)
def test_volumes_that_cannot_be_cut_are_refused_in_one_line(image, options, message, tmp_path):
    with pytest.raises(TomoscaleError, match=message) as error, cluster.connect("threads", threads=1) as one:
        run.write(otsu.segment(image, **options), tmp_path / "out.zarr", quiet=True, connection=one)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.zarr").exists()


def test_scaling_a_constant_volume_is_refused(tmp_path):
    with pytest.raises(TomoscaleError, match="nothing to tell apart"):
        run.write(otsu.scale(np.full((3, 4, 5), 7, np.uint16)), tmp_path / "out.zarr", quiet=True)


@pytest.mark.parametrize(
    "operation", [otsu.segment, lambda image: kmeans.segment(image, features="intensity")]
)
def test_a_histogram_of_32_bits_is_refused_before_anything_runs(operation):
    with pytest.raises(
        TomoscaleError, match="values of type int32; expected integers of 8 or 16 bits, or floats"
    ):
        operation(np.arange(8, dtype=np.int32).reshape(2, 2, 2))
