"""What the kernels give for blocks on a GPU, in operations on whole arrays, is what their loops give."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import kernels
from tomoscale.kernels import _on_arrays

DTYPES = ("uint8", "uint16", "int16", "float32", "float64")
FEW = settings(max_examples=15, deadline=None)
shapes = st.tuples(*[st.integers(1, 11)] * 3)
places = st.tuples(*[st.integers(0, 40)] * 3)
seeds = st.integers(0, 2**32)


@pytest.fixture(autouse=True, scope="module")
def small_parts():
    """Take blocks in parts of a few rows or slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_on_arrays, "AT_ONCE", 100)
        yield


def noise(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return values from all over a type, or between -1 and 1."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.uniform(-1, 1, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def same(name: str, *arguments: object, into: np.ndarray | None = None) -> None:
    """Compare what a kernel returns, and what it adds to an array, with its loops."""
    results = []
    for function in (getattr(kernels, name), getattr(_on_arrays, name)):
        added = None if into is None else into.copy()
        results.append((function(*arguments, *([] if added is None else [added])), added))
    for ours, other in zip(*results, strict=True):
        np.testing.assert_array_equal(other, ours)
        assert getattr(other, "dtype", None) == getattr(ours, "dtype", None)


def test_every_one_has_loops_that_lead_to_it():
    names = {
        n for n, f in vars(_on_arrays).items()
        if inspect.isfunction(f) and f.__module__ == _on_arrays.__name__ and not n.startswith("_")
    }  # fmt: skip
    both = {n for n in kernels.__all__ if hasattr(getattr(kernels, n), "__wrapped__")}
    assert names & both == names


@FEW
@given(seeds, shapes, st.sampled_from(["uint8", "int8", "uint16", "int16"]))
def test_values_are_counted(seed, shape, dtype):
    same("value_counts", noise(seed, shape, dtype), into=np.ones(256 ** np.dtype(dtype).itemsize, np.int64))


@FEW
@given(seeds, shapes, st.sampled_from(DTYPES), st.integers(1, 40))
def test_bins_are_counted_also_at_their_edges(seed, shape, dtype, bins):
    values = noise(seed, shape, dtype)
    kind = np.float32 if dtype == "float32" else np.float64
    edges = np.linspace(kind(values.min()), kind(values.max()) + kind(1), bins + 1, dtype=kind)
    values.reshape(-1)[: bins + 1] = edges[: values.size].astype(dtype)
    same(
        "bin_counts", np.clip(values, edges[0], edges[-1]).astype(dtype), edges, into=np.ones(bins, np.int64)
    )


@FEW
@given(seeds, shapes, st.sampled_from(DTYPES), st.integers(1, 5))
def test_classes_of_voxels_also_at_the_thresholds(seed, shape, dtype, n):
    values = noise(seed, shape, dtype)
    same("classes_of", values, np.sort(np.resize(values.reshape(-1), n)))


@FEW
@given(seeds, shapes, st.integers(1, 7), st.booleans())
def test_pairs_of_classes_are_counted_where_a_mask_says_so(seed, shape, n, is_masked):
    rng = np.random.default_rng(seed)
    true, found = rng.integers(0, n, (2, *shape)).astype(np.uint8)
    counted = rng.integers(0, 2, shape if is_masked else (1, 1, 1)).astype(np.uint8)
    same("confusion", true, found, counted, into=np.ones((len(true), n, n), np.int64))


@FEW
@given(seeds, shapes, st.sampled_from(["uint8", "uint16", "float32"]), st.data())
def test_gradients_are_added_and_run(seed, shape, dtype, data):
    values = noise(seed, (shape[0] + 1, *shape[1:]), dtype)
    start = data.draw(st.integers(0, len(values) - 1))
    stop = data.draw(st.integers(start + 1, len(values)))
    low, high = max(start - 1, 0), min(stop + 1, len(values))
    total = np.random.default_rng(seed).integers(0, 99, shape[1:]) / 2  # as sums of integers are
    same("add_gradients", values[low:high], low, (start, stop), len(values), into=total)
    same("running_gradients", values)


@FEW
@given(seeds, shapes, st.tuples(*[st.integers(1, 6)] * 3), st.booleans(), st.data())
def test_tiles_are_counted_and_their_tables_interpolated(seed, whole, tile, is_slice, data):
    rng = np.random.default_rng(seed)
    if is_slice:
        whole, tile = (1, *whole[1:]), (1, *tile[1:])
    tile = tuple(min(k, n) for k, n in zip(tile, whole, strict=True))
    origin = tuple(data.draw(st.integers(0, n - 1)) for n in whole)
    shape = tuple(data.draw(st.integers(1, n - o)) for n, o in zip(whole, origin, strict=True))
    values = rng.integers(10, 200, shape).astype(np.uint8)
    same("grey_bins", values, rng.integers(0, 16, 190).astype(np.uint8), 10)
    bins = (values % 16).astype(np.uint8)
    grid = tuple(-(-n // k) for n, k in zip(whole, tile, strict=True))
    same("tile_counts", bins, origin, whole, tile, into=np.ones((*grid, 16), np.int64))
    padded = tuple(n + 2 for n in grid)[1 if is_slice else 0 :]
    tables = rng.integers(0, 2**14, (*padded, 16)).astype(np.uint16)
    same("interpolated", bins, origin, tile, tables)


@FEW
@given(
    seeds,
    shapes,
    places,
    st.sampled_from(["uint16", "float32"]),  # of the others the loops are tested with scikit-learn
    st.integers(1, 6),
    st.sampled_from([-np.inf, 0.3, 5.0]),
    st.booleans(),
)
def test_clusters_and_moments_and_samples(seed, shape, origin, dtype, k, limit, as_zero):
    values = noise(seed, shape, dtype)
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(k, 5)) * [50, 50 / (1 + np.abs(values.astype(float)).max()), 1, 1, 1]
    unit = 1.0 if values.dtype.kind in "iu" else 2.0**29
    same("cluster_sums", values, origin, weights, unit, limit, as_zero)
    same("cluster_labels", values, origin, weights, limit, as_zero)
    same("moments", values, origin, unit, limit, as_zero)
    kept = np.full((17, 3), np.iinfo(np.int64).max)
    kept = kernels.sample(noise(seed, (2, 2, 2), dtype), (50, 60, 70), (60, 70, 80), 3, limit, as_zero, kept)
    same("sample", values, origin, (60, 70, 80), 3, limit, as_zero, kept)
