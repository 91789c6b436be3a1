"""Frames are normalised, cleaned and smoothed as NumPy and SciPy would, bit for bit."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage
from skimage.filters import median as skimage_median

from tomoscale import kernels
from tomoscale.kernels import reference
from tomoscale.kernels._median_3 import STRIP

TYPES = ("uint8", "uint16", "int16", "int32", "float32")


def noise(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(100, 30, shape)
    return np.abs(values).astype(dtype) if dtype != "float32" else (values * 1.7 - 200).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(TYPES),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 70)),
    size=st.sampled_from([1, 3, 5, 7]),
)
def test_frame_median_is_the_median_filter_of_scipy(seed, dtype, shape, size):
    frames = noise(shape, dtype, seed)
    expected = [ndimage.median_filter(frame, size, mode="nearest") for frame in frames]
    assert_array_equal(kernels.frame_median(frames, size), expected)


@pytest.mark.parametrize("size", [3, 5])
def test_frame_median_is_that_of_scikit_image(size):
    frame = noise((40, 50), "uint16")
    expected = skimage_median(frame, np.ones((size, size)), mode="nearest", behavior="ndimage")
    assert_array_equal(kernels.frame_median(frame[None], size)[0], expected)


@pytest.mark.parametrize("size", [3, 5])
def test_networks_find_the_median_of_all_patterns_of_zeros_and_ones(size):
    """By the zero-one principle that proves them for all numbers; columns are sorted first, so their sums suffice."""
    sums = np.array(list(itertools.product(range(size + 1), repeat=size)))
    patterns = (np.arange(size)[None, :, None] < sums[:, None, :]).astype(np.uint8)
    middle = kernels.frame_median(patterns, size)[:, size // 2, size // 2]
    assert_array_equal(middle, sums.sum(1) > size * size // 2)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_frames_wider_than_a_strip_are_one_frame(dtype):
    frames = noise((1, 5, 2 * STRIP + 3), dtype)
    expected = reference.frame_median(frames, 3)
    assert_array_equal(kernels.frame_median(frames, 3), expected)
    cleaned, zero = np.empty(frames.shape, np.float32), np.zeros(frames.shape, np.float32)
    assert_array_equal(kernels.clean_frames(frames, None, None, zero, [0], 3, cleaned), expected)


def test_medians_do_not_depend_on_where_a_block_begins_not_even_in_the_sign_of_zero():
    frames = np.random.default_rng(0).choice(np.float32([-1, -0.0, 0, 1]), (1, 12, 40))
    medians = kernels.frame_median(frames, 3)
    assert not np.signbit(medians[medians == 0]).any()
    for first in (1, 2, 3):
        assert (
            kernels.frame_median(frames[:, first:], 3)[:, 1:].tobytes() == medians[:, first + 1 :].tobytes()
        )


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_nan_reaches_just_the_pixels_around_it(size):
    frames = noise((3, 20, 40))
    frames[1, 0, 39] = frames[1, 11, 8] = np.nan
    expected = reference.frame_median(frames, size)
    assert np.isnan(expected).sum() == (size // 2 + 1) ** 2 + size**2
    assert_array_equal(kernels.frame_median(frames, size), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dark_type", [None, "float32", "float64"])
@pytest.mark.parametrize("scaled", [False, True])
def test_normalised_frames_are_those_of_numpy(dtype, dark_type, scaled):
    frames = noise((5, 9, 40), dtype)
    dark = None if dark_type is None else np.random.default_rng(1).normal(10, 3, (9, 40)).astype(dark_type)
    scale = np.random.default_rng(2).uniform(0.9, 1.1, 5).astype(np.float32) if scaled else None
    expected = reference.normalise(frames, dark, scale)
    assert_array_equal(kernels.normalise(frames, dark, scale), expected)
    rounded, fits = kernels.normalise_rint(frames, dark, scale)
    assert fits
    assert_array_equal(rounded, np.rint(expected))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**31, -(2.0**31) - 256])
def test_values_that_no_integer_holds_are_reported(value):
    frames = np.float32([0, 2.0**31 - 128, -(2.0**31)]).reshape(1, 1, 3)
    assert kernels.normalise_rint(frames)[1]
    frames[0, 0, 0] = value
    assert not kernels.normalise_rint(frames)[1]


CLEANED = {
    "frames": noise((6, 21, 40), "uint16"),
    "dark": np.random.default_rng(1).normal(10, 3, (21, 40)),
    "scale": np.random.default_rng(2).uniform(0.9, 1.1, 6).astype(np.float32),
    "background": noise((3, 21, 40)),
    "window_of_frame": np.array([0, 0, 1, 1, 2, 2]),
}


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("dtype", ["float32", "int32", "int16"])
def test_cleaning_is_one_pass_of_the_reference(size, dtype):
    expected = reference.clean_frames(**CLEANED, size=size)
    out = kernels.clean_frames(**CLEANED, size=size, out=np.empty(expected.shape, dtype))
    assert_array_equal(out, expected if dtype == "float32" else np.rint(expected).astype(dtype))


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("crop", [(0, 0), (4, 3), (15, 29), (0, 29), (15, 0)])
def test_a_halo_is_used_and_cut_off(size, crop):
    top, left = crop
    expected = reference.clean_frames(**CLEANED, size=size)[:, top : top + 6, left : left + 11]
    out = kernels.clean_frames(**CLEANED, size=size, out=np.empty((6, 6, 11), np.float32), crop=crop)
    assert_array_equal(out, expected)


def test_without_dark_and_scale_the_background_is_subtracted_from_the_raw_frames():
    given = {**CLEANED, "dark": None, "scale": None}
    expected = CLEANED["frames"].astype(np.float32) - CLEANED["background"][CLEANED["window_of_frame"]]
    assert_array_equal(kernels.clean_frames(**given, size=1, out=np.empty((6, 21, 40), np.float32)), expected)


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["uint8", "uint16"]),
    to=st.sampled_from(["float32", "int32", "int16"]),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 80)),
    spread=st.sampled_from([3, 200, 16_383, 16_384, 65_535]),
    quarter=st.booleans(),
    strange=st.sampled_from([None, 0.25, -0.5, 65_536.0, 1e9]),
)
def test_counts_are_cleaned_as_floats_are(data, seed, dtype, to, shape, spread, quarter, strange):
    """In half counts where that is exact; whether it is, changes from frame to frame and from window to window."""
    rng = np.random.default_rng(seed)
    most = min(np.iinfo(dtype).max, spread)
    frames = rng.integers(0, most + 1, shape).astype(dtype)
    background = (rng.integers(0, 2 * most + 1, (3, *shape[1:])) / 2).astype(np.float32)
    if strange is not None:
        background[tuple(rng.integers(0, background.shape))] = strange
    dark = rng.integers(0, 9, shape[1:]) / np.float32(4 if quarter else 2)
    window = np.repeat(rng.integers(0, 3, shape[0]), rng.integers(1, 20, shape[0]))[: shape[0]]
    crop = tuple(data.draw(st.integers(0, n - 1)) for n in shape[1:])
    part = tuple(slice(c, data.draw(st.integers(c + 1, n))) for c, n in zip(crop, shape[1:], strict=True))
    expected = reference.clean_frames(frames, dark, None, background, window, 3)[:, *part]
    out = kernels.clean_frames(
        frames, dark, None, background, window, 3, np.empty(expected.shape, to), crop=crop
    )
    limits = (-np.inf, np.inf) if to == "float32" else (np.iinfo(to).min, np.iinfo(to).max)
    expected = (expected if to == "float32" else np.clip(np.rint(expected.astype("f8")), *limits)).astype(to)
    assert_array_equal(out, expected)
    assert not np.signbit(out[out == 0]).any()


@pytest.mark.parametrize("apart", [16_383, 16_384, 32_768, 65_535])
def test_a_pixel_far_from_its_background_is_not_cut_off(apart):
    frames = np.zeros((9, 8, 40), np.uint16)
    frames[1, 2:6, 5:30] = apart
    window = np.zeros(len(frames), int)
    for background in (0, apart):
        given = np.full((1, 8, 40), background, np.float32)
        out = kernels.clean_frames(frames, None, None, given, window, 3, np.empty(frames.shape, np.float32))
        assert_array_equal(out, reference.clean_frames(frames, None, None, given, window, 3))


@pytest.mark.parametrize(
    ("dark", "background", "pixels"),
    [
        (
            600.3,
            1000 - np.float32(600.3),
            (1000, 4700),
        ),  # their sum is a whole number, yet differences are rounded
        (1e9, 1000 - np.float32(1e9), (0, 10_000)),
        (100, 1e-20, (100, 101)),  # the sum is rounded
        (0, -0.5, (60_000, 60_100)),
    ],
)
def test_where_floats_are_rounded_so_are_counts(dark, background, pixels):
    frames = np.tile(np.arange(*pixels, dtype=np.uint16), (9, 1, 1))
    dark = np.full(frames.shape[1:], dark, np.float32)
    background = np.full((1, *dark.shape), background, np.float32)
    out = kernels.clean_frames(frames, dark, None, background, [0] * 9, 3, np.empty(frames.shape, np.float32))
    assert_array_equal(out, reference.clean_frames(frames, dark, None, background, [0] * 9, 3))


def test_multiplication_and_subtraction_are_rounded_one_by_one():
    """A fused multiply-add would leave the rounding error of 1.1 * 3 instead of zero."""
    frames, scale = np.full((1, 1, 64), 3, np.uint16), np.float32([1.1])
    background = np.full((1, 1, 64), np.float32(3) * scale[0])
    out = kernels.clean_frames(frames, None, scale, background, [0], 1, np.empty((1, 1, 64), np.float32))
    assert not out.any()


def test_integers_saturate_and_round_to_even():
    frames = np.float32([-9e9, 9e9, 0.5, 1.5, -0.5, 3e4, 4e4]).reshape(1, 1, 7)
    for dtype in ("int32", "int16"):
        out = kernels.clean_frames(
            frames, None, None, np.zeros_like(frames), [0], 1, np.empty((1, 1, 7), dtype)
        )
        limits = np.iinfo(dtype)
        assert out[0, 0].tolist() == [limits.min, limits.max, 0, 2, 0, 30_000, min(limits.max, 40_000)]


def test_a_nan_is_kept_in_floats_and_refused_in_integers_with_its_frame():
    frames = noise((6, 21, 40))
    frames[4, 20, 0] = np.nan
    given = {**CLEANED, "frames": frames, "size": 3}
    out = kernels.clean_frames(**given, out=np.empty((6, 21, 40), np.float32))
    assert_array_equal(out, reference.clean_frames(**given))
    with pytest.raises(ValueError, match="frame 4 holds NaN, which int32 cannot"):
        kernels.clean_frames(**given, out=np.empty((6, 21, 40), np.int32))


def test_layout_byte_order_and_write_protection_do_not_matter():
    frames = noise((4, 9, 20), "uint16")
    strided = np.repeat(frames, 2, axis=2)[:, :, ::2]
    strided.flags.writeable = False
    for other in (frames.astype(">u2"), np.asfortranarray(frames), strided):
        assert_array_equal(kernels.frame_median(other, 3), kernels.frame_median(frames, 3))
        assert_array_equal(kernels.normalise(other), frames)


def test_an_image_without_pixels_stays_one():
    assert kernels.frame_median(np.zeros((2, 0, 5), np.uint16), 3).shape == (2, 0, 5)
    assert kernels.normalise(np.zeros((0, 4, 5), np.uint16)).shape == (0, 4, 5)


def test_two_threads_find_what_one_finds():
    frames = noise((40, 30, 50))
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda half: kernels.frame_median(half, 3), (frames[:20], frames[20:])))
    assert_array_equal(np.concatenate(halves), kernels.frame_median(frames, 3))


def test_what_does_not_fit_together_is_refused():
    given = {**CLEANED, "size": 3, "out": np.empty((6, 21, 40), np.float32)}
    for change, error, words in [
        ({"size": 4}, ValueError, "need an odd edge"),
        ({"frames": np.zeros((6, 21, 40))}, TypeError, "frames are float64; need one of uint8"),
        ({"dark": np.zeros((20, 40))}, ValueError, r"dark has shape \(20, 40\), frames have \(21, 40\)"),
        ({"scale": np.ones(5)}, ValueError, r"scale has shape \(5,\); need \(6,\)"),
        ({"background": np.zeros((3, 21, 40))}, TypeError, "background is float64; need float32"),
        ({"background": np.zeros((3, 20, 40), "f4")}, ValueError, "background has shape"),
        ({"window_of_frame": [0, 0, 0, 0, 0, 3]}, ValueError, "leaves the 3 backgrounds"),
        ({"window_of_frame": [0]}, ValueError, "window_of_frame has shape"),
        ({"crop": (1, 0)}, ValueError, "leaves the frames"),
        ({"out": np.empty((6, 21, 40))}, ValueError, "need contiguous float32 or int32 or int16"),
    ]:
        with pytest.raises(error, match=words):
            kernels.clean_frames(**{**given, **change})
