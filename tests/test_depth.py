"""Depth maps are NumPy's and SciPy's of the whole volume, whatever the chunks."""

from __future__ import annotations

import functools

import dask
import numpy as np
import pyarrow.parquet
import pytest
from conftest import write_array
from scipy.ndimage import center_of_mass, find_objects, gaussian_filter, label

from tomoscale import blocks, cli, depth, run, store
from tomoscale.errors import TomoscaleError

CHUNKINGS = [(30, 40, 50), (7, 9, 16), (1, 40, 50), (30, 3, 50)]


def lumps(dtype: str = "uint16") -> np.ndarray:
    """Return a volume of soft lumps."""
    values = gaussian_filter(np.random.default_rng(0).normal(size=(30, 40, 50)), 3)
    unit = (values - values.min()) / np.ptp(values)
    return unit.astype(dtype) if np.dtype(dtype).kind == "f" else (unit * np.iinfo(dtype).max).astype(dtype)


def gradients(image):
    return np.abs(np.gradient(image.astype(np.float64), axis=0))


def total(image, sigma=0.8):
    return gaussian_filter(gradients(image).sum(axis=0).astype(np.float32), sigma)


def computed(lazy):
    return np.asarray(lazy.compute(scheduler="sync"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32"])
@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_both_maps_are_those_of_the_whole_volume(tmp_path, chunks, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "volume_chunks", lambda shape, edge: tuple(min(16, n) for n in shape))
    monkeypatch.setattr("tomoscale.depth.AT_ONCE", 10_000)
    image = lumps("uint8").astype(dtype) if dtype == "int32" else lumps(dtype)
    source = write_array(tmp_path / "v.zarr", image, chunks)
    with blocks.planned_for(3_000_000, 4):
        summed = depth.project(source).map
        running = depth.project(source, mode="cumulative").map
    assert running.npartitions > 1
    np.testing.assert_array_equal(computed(summed), total(image))
    expected = gaussian_filter(np.cumsum(gradients(image), axis=0).astype(np.float32), 0.8)
    np.testing.assert_array_equal(computed(running), expected)


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_regions_are_those_of_scipy_with_its_numbers(tmp_path, chunks):
    image = lumps()
    found = depth.segment(write_array(tmp_path / "v.zarr", image, chunks))
    whole = total(image)
    (level,) = np.percentile(whole, [75])
    assert computed(found.threshold)[0] == level
    expected, count = label(whole > level)
    assert count > 3
    np.testing.assert_array_equal(computed(found.labels), expected)
    table = found.table.compute()
    assert table["label"].to_pylist() == list(range(1, count + 1))
    assert table["pixels"].to_pylist() == np.bincount(expected.ravel())[1:].tolist()
    centres = center_of_mass(np.ones_like(whole), expected, range(1, count + 1))
    np.testing.assert_allclose(np.column_stack([table["row"], table["column"]]), centres)


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_regions_of_the_running_sum_are_those_of_scipy_across_blocks(tmp_path, chunks, monkeypatch):
    monkeypatch.setattr(blocks, "volume_chunks", lambda shape, edge: tuple(min(16, n) for n in shape))
    image = lumps()
    whole = gaussian_filter(np.cumsum(gradients(image), axis=0).astype(np.float32), 0.8)
    (level,) = np.percentile(whole, [92])
    expected, count = label(whole > level)
    with blocks.planned_for(3_000_000, 16):
        found = depth.segment(
            write_array(tmp_path / "v.zarr", image, chunks), mode="cumulative", percentile=92
        )
    assert min(found.labels.numblocks[1:]) > 1
    assert count > 5
    drawn, threshold, labels, table = dask.compute(
        found.map, found.threshold, found.labels, found.table, scheduler="sync"
    )
    np.testing.assert_array_equal(drawn, whole)
    assert threshold[0] == level
    np.testing.assert_array_equal(labels, expected)
    assert table["label"].to_pylist() == list(range(1, count + 1))
    assert table["voxels"].to_pylist() == np.bincount(expected.ravel())[1:].tolist()
    centres = center_of_mass(np.ones_like(whole), expected, range(1, count + 1))
    np.testing.assert_allclose(np.column_stack([table[a] for a in ("z", "row", "column")]), centres)
    boxes = [[e for s in box for e in (s.start, s.stop)] for box in find_objects(expected)]
    names = [f"{a}_{e}" for a in ("z", "row", "column") for e in ("min", "max")]
    assert np.column_stack([table[n] for n in names]).tolist() == boxes


@pytest.mark.parametrize("mode", ["total", "cumulative"])
def test_small_regions_are_left_out_and_the_others_numbered_anew(mode):
    image = lumps()
    segment = functools.partial(depth.segment, image, mode=mode, percentile=92)
    labels = computed(segment().labels)
    sizes = np.bincount(labels.ravel())[1:]
    least = int(np.median(sizes))
    kept = computed(segment(min_pixels=least).labels)
    assert 0 < kept.max() == (sizes >= least).sum() < len(sizes)
    np.testing.assert_array_equal(kept > 0, np.isin(labels, 1 + np.flatnonzero(sizes >= least)))


def test_command_writes_the_map_the_regions_and_their_table(tmp_path, capsys):
    image = lumps()
    source = write_array(tmp_path / "v.zarr", image, (8, 16, 16))
    assert cli.main(["depth", str(source), "--threshold", "90000", "--scheduler", "threads"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "v-depth.zarr")
    whole = total(image)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "v-depth.zarr/map").whole(), whole)
    expected, count = label(whole > 90000)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "v-depth.zarr/labels").whole(), expected)
    table = pyarrow.parquet.read_table(tmp_path / "v-depth.parquet")
    assert table.num_rows == count > 0


def test_command_writes_the_regions_of_the_running_sum(tmp_path):
    source = write_array(tmp_path / "v.zarr", lumps(), (30, 16, 16))
    command = ["depth", str(source), "--mode", "cumulative", "--scheduler", "threads", "--quiet"]
    assert cli.main(command) == 0
    found = depth.segment(source, mode="cumulative")
    path = tmp_path / "v-depth.zarr"
    np.testing.assert_array_equal(store.open_volume(path / "labels").whole(), computed(found.labels))
    np.testing.assert_array_equal(store.open_volume(path).whole(), computed(found.map))
    assert pyarrow.parquet.read_table(path.with_suffix(".parquet")).equals(found.table.compute())


@pytest.mark.parametrize("mode", ["total", "cumulative"])
def test_a_threshold_that_nothing_exceeds_is_refused(mode):
    with pytest.raises(TomoscaleError, match=r"exceeds 1e\+09.*lower the threshold"):
        computed(depth.segment(lumps(), mode=mode, threshold=1e9).labels)


def test_the_volume_is_read_once():
    plan = run.plan(depth.segment(np.zeros((64, 64, 64), np.uint8)))
    assert len(plan.before) == 1
    assert plan.read <= 1.1 * 64**3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((1, 5, 5), np.uint8), "one slice only"),
        (np.full((4, 5, 5), 3, np.uint8), "the map is 0 everywhere"),
        (np.full((4, 5, 5), np.nan, np.float32), "NaN"),
        (np.zeros((5, 5), np.uint8), r"expected \(z, y, x\)"),
    ],
)
def test_what_has_no_depth_is_refused_in_one_line(image, message):
    with pytest.raises(TomoscaleError, match=message) as error:
        computed(depth.segment(image).labels)
    assert "\n" not in str(error.value)
