"""Histograms, classes, clusters and gradients of a block are what the reference says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import kernels
from tomoscale.kernels import reference


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 1001])
def test_every_value_is_counted(dtype, size):
    info = np.iinfo(dtype)
    values = np.random.default_rng(size).integers(info.min, info.max + 1, size).astype(dtype)
    counts = np.ones(2**info.bits, np.int64)
    kernels.value_counts(values, counts)
    np.testing.assert_array_equal(counts - 1, reference.value_counts(values))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_counters_that_are_emptied_and_values_off_the_words_are_counted(dtype, monkeypatch):
    monkeypatch.setattr("tomoscale.kernels._histograms.MOST_COUNTED", 24)
    values = np.random.default_rng(0).integers(0, 9, 102).astype(dtype)[1:]
    counts = np.zeros(256**values.itemsize, np.int64)
    kernels.value_counts(values, counts)
    np.testing.assert_array_equal(counts, reference.value_counts(values))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 300), st.sampled_from([np.float32, np.float64]))
def test_bins_are_those_of_numpy_also_at_their_edges(n, bins, dtype):
    values = np.random.default_rng(n).normal(3, 5, n).astype(dtype)
    edges = np.linspace(dtype(values.min()), dtype(values.max() + 1), bins + 1, dtype=dtype)
    values = np.concatenate([values, edges])
    counts = np.zeros(bins, np.int64)
    kernels.bin_counts(values, edges, counts)
    np.testing.assert_array_equal(counts, reference.bin_counts(values, edges))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_a_value_at_a_threshold_belongs_below(dtype):
    values = np.arange(5000).reshape(5, 10, 100).astype(dtype)
    thresholds = np.array([3, 40, 41, 100], dtype)
    found = kernels.classes_of(values, thresholds)
    np.testing.assert_array_equal(found, reference.classes_of(values, thresholds))


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 6), st.tuples(*[st.integers(0, 50)] * 3))
def test_clusters_of_a_window_have_the_sums_of_its_voxels(shape, k, origin):
    rng = np.random.default_rng(sum(shape) + k)
    values = rng.integers(0, 60000, shape).astype(np.uint16)
    weights = rng.normal(size=(k, 5)) * [50, 1e-3, 1, 1, 1]
    found = kernels.cluster_sums(values, origin, weights, 1.0, -np.inf, False)
    np.testing.assert_array_equal(found, reference.cluster_sums(values, origin, weights))


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float32"])
def test_clusters_of_rows_longer_than_a_piece_have_the_sums_of_their_voxels(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 250, (2, 3, 5000)).astype(dtype)
    weights = rng.normal(size=(4, 5)) * [50, 0.1, 1, 1, 0.01]
    found = kernels.cluster_sums(values, (5, 0, 9), weights, 1.0, -np.inf, False)
    np.testing.assert_array_equal(found, reference.cluster_sums(values, (5, 0, 9), weights))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize("depth", [2, 3, 7])
def test_gradients_are_numpys(dtype, depth):
    slices = np.random.default_rng(0).integers(0, 60000, (depth, 5, 6)).astype(dtype)
    total = np.zeros((5, 6))
    kernels.add_gradients(slices, 0, (0, depth), depth, total)
    np.testing.assert_array_equal(total, reference.add_gradients(slices))


def test_the_largest_steps_of_many_slices_are_added_without_overflow():
    slices = np.zeros((40_000, 1, 2), np.uint16)
    slices[::4] = slices[1::4] = 65535
    total = np.zeros((1, 2))
    kernels.add_gradients(slices, 0, (0, len(slices)), len(slices), total)
    np.testing.assert_array_equal(total, reference.add_gradients(slices))
