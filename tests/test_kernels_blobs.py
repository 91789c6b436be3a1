"""The kernels of blobs mean what `reference` says: components of a block, sets joined by voxels, growth, paint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tomoscale import kernels
from tomoscale.kernels import reference
from tomoscale.kernels._growth import ABOVE_C_MAX, FEW_VOXELS, KEPT, LARGE, SMALL, Growth, Sparse
from tomoscale.kernels._levels import OVER, SEED, TOP, Levels, at_most, below
from tomoscale.kernels._runs import most_runs, rows_of

DTYPES = ["uint8", "int16", "uint16", "int32", "float32", "float64"]
COMPILED = ["int16", "uint16", "float32", "float64"]
"""Types differ in their thresholds alone, which are tried for all of them; each takes seconds to compile."""
CLOSED = np.zeros((3, 2), bool)


def volume_of(found, shape):
    """Paint the components of a block, numbered from 1, and check the voxels beside them."""
    out = np.zeros(shape, np.uint32)
    number = np.arange(1, len(found.voxels) + 1, dtype=np.uint32)
    kernels.paint(
        out, found.line.astype(np.int64), found.start, found.stop, found.component, number, 0, 0, 0, shape[1]
    )
    return out


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 140)),
    dtype=st.sampled_from(COMPILED),
    faces=st.lists(st.booleans(), min_size=6, max_size=6),
    connectivity=st.sampled_from([6, 26]),
    share=st.sampled_from([0.02, 0.3, 0.7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_components_are_those_that_hold_a_seed_or_touch_an_open_face(
    shape, dtype, faces, connectivity, share, seed
):
    rng = np.random.default_rng(seed)
    frames = (rng.integers(1, 9, shape) * (rng.random(shape) < share)).astype(dtype)
    faces = np.reshape(faces, (3, 2))
    found = kernels.find_components(frames, Levels(3.5, 7.0), faces, connectivity)
    expected = reference.find_components(frames, 3.5, 7.0, faces, connectivity)
    got = volume_of(found, shape)
    np.testing.assert_array_equal(got > 0, expected > 0)
    pairs = {*zip(got.flat, expected.flat, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert found.foreground == (frames >= 3.5).sum()
    np.testing.assert_array_equal(found.voxels, np.bincount(got.flat)[1:])
    np.testing.assert_array_equal(
        found.seeded, [(frames[got == n] >= 7).any() for n in range(1, got.max() + 1)]
    )
    order = np.concatenate([np.flatnonzero(got == n) for n in range(1, got.max() + 1)] or [np.empty(0, int)])
    np.testing.assert_array_equal(found.values, frames.flat[order])
    shell = np.zeros(shape, bool)
    for axis in range(3):
        for end in (0, 1):
            if faces[axis, end]:
                np.moveaxis(shell, axis, 0)[-end] = True
    np.testing.assert_array_equal(np.sort(found.shell), np.flatnonzero(shell & (got > 0)))
    np.testing.assert_array_equal(got.flat[found.shell], found.shell_component + 1)


def test_every_pixel_may_have_thresholds_of_its_own():
    rng = np.random.default_rng(3)
    frames = rng.integers(1, 9, (5, 6, 140)).astype(np.uint16)
    c_min, above = rng.uniform(4, 7, (2, 6, 140))
    levels = Levels(c_min, c_min + above / 4, np.rint(c_min + 2))
    found = kernels.find_components(frames, levels, np.ones((3, 2), bool), 6)
    expected = reference.find_components(frames, *levels[:2], np.ones((3, 2), bool), 6)
    np.testing.assert_array_equal(volume_of(found, frames.shape) > 0, expected > 0)
    flags = np.zeros(frames.shape, np.uint8)
    at = [(n, x) for n, a, b in zip(found.line, found.start, found.stop, strict=True) for x in range(a, b)]
    flags.reshape(-1, 140)[tuple(np.transpose(at))] = found.flags
    kept = expected > 0
    for flag, reached in (
        (SEED, frames >= levels.seed),
        (TOP, frames >= levels.c_max),
        (OVER, frames > levels.c_max),
    ):
        np.testing.assert_array_equal(flags[kept] & flag > 0, reached[kept])
        assert 0 < reached[kept].sum() < kept.sum()


def test_windows_of_a_larger_array_need_no_copy_and_give_the_same():
    frames = np.random.default_rng(0).normal(0, 2, (30, 30, 200)).astype(np.float32)
    window = frames[3:20, 5:28, 17:180]
    flat, steps = rows_of(window)
    assert np.shares_memory(flat, frames)
    assert steps == (6000, 200)
    for cut in (window, window[:, :, ::2], window[::-1], window.astype(">f4")):
        got, expected = (
            kernels.find_components(f, Levels(3.0, 4.0), CLOSED, 6) for f in (cut, np.array(cut, np.float32))
        )
        np.testing.assert_array_equal(got.values, expected.values)
        np.testing.assert_array_equal(got.line, expected.line)


def test_too_many_runs_are_reported_and_not_held():
    shape = (4, 512, 2048)
    frames = np.zeros(shape, np.uint8)
    frames[..., ::2] = 9
    assert most_runs(shape) < frames.sum() // 9
    assert kernels.find_components(frames, Levels(1.0, 5.0), CLOSED, 6) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.1, 2.0, 2.5, 7.3, 16.1])
def test_a_threshold_in_the_type_of_the_frames_splits_its_values_as_the_exact_one_does(dtype, threshold):
    values = np.array([0, 1, 2, 3, 7, 8, 16, 17], dtype)
    if np.dtype(dtype).kind == "f":
        near = np.dtype(dtype).type(threshold)
        values = np.append(
            values, [near, np.nextafter(near, 0), np.nextafter(near, np.dtype(dtype).type(99))]
        )
    exact = values.astype(np.float64)
    np.testing.assert_array_equal(values > below(threshold, values.dtype), exact >= threshold)
    np.testing.assert_array_equal(values > at_most(threshold, values.dtype), exact > threshold)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    connectivity=st.sampled_from([6, 26]),
    share=st.sampled_from([0.2, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_voxels_joined_one_by_one_are_the_components(shape, connectivity, share, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    index = np.flatnonzero(mask)
    root = kernels.join_voxels(index, np.arange(len(index)), len(index), shape, connectivity, False)
    labels, n = ndimage.label(mask, ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3))
    own = labels.flat[index]
    assert len(np.unique(root)) == n
    np.testing.assert_array_equal(own[root], own)


def sparse_of(frames, c_min, seed=60.0, c_max=np.inf):
    found = kernels.find_components(frames, Levels(c_min, seed, c_max), CLOSED, 6)
    return Sparse(
        found.component.astype(np.int64), found.line.astype(np.int64), found.start, found.stop, found.values,
        found.flags,
    )  # fmt: skip


def how(**changed):
    plain = Growth(0.1, True, 1, np.array([[1] * 3, [99] * 3], np.int64), 6, False, False)
    return plain._replace(**changed)


def test_a_seed_grows_into_the_component_around_its_maximum():
    rng = np.random.default_rng(1)
    frames = 60 * ndimage.gaussian_filter(rng.normal(0, 1, (20, 20, 90)), 1.5).astype(np.float32) / 0.1
    grown = kernels.grow(sparse_of(frames, 5.0), frames.shape, how())
    assert (grown.fate == KEPT).all()
    assert len(grown.peak) > 5
    for peak, place, integers, sums in zip(grown.peak, grown.place, grown.integers, grown.sums, strict=True):
        top = np.unravel_index(place, frames.shape)
        assert frames[top] == peak
        blob = reference.grow(frames, max(5.0, 0.1 * peak), peak, top, 6)
        assert integers[1] == blob.sum()
        assert sums[0] == pytest.approx(frames[blob].astype(float).sum(), rel=1e-12)
        where = np.argwhere(blob)
        np.testing.assert_array_equal(integers[2::2], where.min(0))
        np.testing.assert_array_equal(integers[3::2], where.max(0) + 1)


@pytest.mark.parametrize(
    ("changed", "fate"),
    [
        ({}, KEPT),
        ({"min_seed_voxels": 2}, FEW_VOXELS),
        ({"c_max": 90.0}, ABOVE_C_MAX),
        ({"c_max": 90.0, "literal": False}, KEPT),
        ({"sizes": np.array([[1, 4, 1], [99] * 3])}, SMALL),
        ({"sizes": np.array([[1] * 3, [99, 99, 2]])}, LARGE),
    ],
)
def test_what_becomes_of_a_seed_is_said(changed, fate):
    frames = np.zeros((5, 6, 7), np.float32)
    frames[1:4, 1:4, 1:4] = 20
    frames[2, 2, 2] = 100
    c_max = changed.pop("c_max", np.inf)
    grown = kernels.grow(sparse_of(frames, 5.0, c_max=c_max), frames.shape, how(**changed))
    assert grown.fate.tolist() == [fate]
    assert bool(len(grown.of)) == (fate == KEPT)
