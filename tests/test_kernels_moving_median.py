"""Every moving median equals `numpy.median` of its window, bit for bit, whichever way it was found."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from tomoscale import kernels
from tomoscale.kernels import _moving_median, reference
from tomoscale.kernels._lanes import LANES

INTEGERS = ("uint8", "uint16", "int16", "int32")
TYPES = (*INTEGERS, "float32")


def frames_of(kind: str, dtype: str, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Make frames of one kind, in the whole range of the type where that applies."""
    rng = np.random.default_rng(seed)
    low, high = (-(10.0**6), 10.0**6) if dtype == "float32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    ramp = np.arange(shape[0])[:, None, None] + np.arange(shape[2])
    values = {
        "full range": lambda: rng.uniform(low, high, shape),
        "extremes": lambda: rng.choice([low, high], shape),
        "largest": lambda: np.full(shape, high),
        "smallest": lambda: np.full(shape, low),
        "ramp": lambda: np.clip(low + 7.0 * np.broadcast_to(ramp, shape), low, high),
        "ties": lambda: rng.integers(0, 3, shape),
        "noise": lambda: np.clip(rng.normal(100, 9, shape), low, high),
        "jump": lambda: np.where(ramp % 40 < 20, 3.0, min(high, 3000.0)) + np.zeros(shape),
    }
    return values[kind]().astype(dtype)


KINDS = ("full range", "extremes", "largest", "smallest", "ramp", "ties", "noise", "jump")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("half_window", "step"), [(0, 1), (3, 1), (10, 7), (5, 30), (200, 10)])
def test_median_is_that_of_numpy(kind, dtype, half_window, step):
    frames = frames_of(kind, dtype, (90, 3, 100))
    assert_array_equal(
        kernels.moving_median(frames, half_window, step), reference.moving_median(frames, half_window, step)
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(TYPES),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 150)),
    half_window=st.integers(0, 50),
    step=st.integers(1, 50),
)
def test_any_scan_of_any_size_has_the_medians_of_numpy(seed, kind, dtype, shape, half_window, step):
    frames = frames_of(kind, dtype, shape, seed)
    assert_array_equal(
        kernels.moving_median(frames, half_window, step), reference.moving_median(frames, half_window, step)
    )


@pytest.mark.parametrize("n_frames", [1, 2, 3])
def test_a_scan_may_have_very_few_frames(n_frames):
    frames = frames_of("full range", "uint16", (n_frames, 2, 3))
    assert_array_equal(kernels.moving_median(frames, 250, 50), reference.moving_median(frames, 250, 50))


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("n_frames", range(1, 10))
def test_the_median_may_be_any_frame_of_a_window(n_frames, dtype):
    # Pixel p holds the same samples as the others, far from each other, p frames later.
    samples = np.linspace(0, 60_000, n_frames).astype(dtype)
    frames = np.stack([np.roll(samples, p) for p in range(n_frames)], axis=1)[:, None]
    assert_array_equal(
        kernels.moving_median(frames, n_frames, 1), reference.moving_median(frames, n_frames, 1)
    )


def test_an_image_without_pixels_has_no_medians():
    assert kernels.moving_median(np.zeros((9, 0, 5), np.uint16), 2, 3).shape == (3, 0, 5)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(
        st.sampled_from(
            np.float32(
                [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1, -1, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan]
            ).tolist()
        ),
        min_size=1,
        max_size=12,
    ),
    half_window=st.integers(0, 6),
)
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_special_floats_rank_as_in_numpy_and_zeros_are_positive(samples, half_window):
    frames = np.float32(samples)[:, None, None] * np.ones((1, 2, 2), np.float32)
    ours, theirs = (
        kernels.moving_median(frames, half_window, 1),
        reference.moving_median(frames, half_window, 1),
    )
    assert_array_equal(ours, theirs)
    assert_array_equal(np.signbit(ours[ours == 0]), np.signbit(theirs[theirs == 0]))


def test_nan_reaches_just_the_windows_that_hold_it():
    frames = np.ones((60, 1, 300), np.float32)
    frames[20, 0, 280] = np.nan
    where = np.argwhere(np.isnan(kernels.moving_median(frames, 5, 1)))
    assert_array_equal(where, [(k, 0, 280) for k in range(15, 26)])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_far_from_the_ends_every_pixel_is_the_median_filter_of_scipy_on_its_row(dtype):
    frames = frames_of("full range", dtype, (80, 2, 5))
    ours = kernels.moving_median(frames, 10, 1)
    for r, c in np.ndindex(2, 5):  # one-dimensional: SciPy has code of its own for that
        theirs = ndimage.median_filter(np.ascontiguousarray(frames[:, r, c]), 21)
        assert_array_equal(ours[10:-10, r, c], theirs[10:-10])


def test_windows_may_be_any_that_do_not_go_back():
    frames = frames_of("noise", "uint16", (400, 2, 140))
    starts, stops = [0, 0, 3, 3, 200, 390], [1, 2, 30, 150, 201, 400]
    assert_array_equal(
        kernels.moving_median_windows(frames, starts, stops),
        reference.moving_median_windows(frames, starts, stops),
    )


@pytest.mark.parametrize(("half_window", "step"), [(60, 20), (60, 33), (150, 50), (300, 270)])
@pytest.mark.parametrize("kind", ["noise", "ramp", "jump"])
def test_pieces_leave_with_the_counts_they_entered_with_also_where_ladders_move(kind, half_window, step):
    frames = frames_of(kind, "uint16", (1000, 1, LANES + 9)) // (8 if kind == "ramp" else 1)
    assert_array_equal(
        kernels.moving_median(frames, half_window, step), reference.moving_median(frames, half_window, step)
    )


def test_a_first_guess_may_be_far_off():
    frames = frames_of("noise", "uint16", (201, 1, 40))
    frames[::25, :, 3] = 9000  # the very frames that the guess for the first window is made of
    assert_array_equal(kernels.moving_median(frames, 200, 50), reference.moving_median(frames, 200, 50))


def test_a_window_may_hold_more_frames_than_sixteen_bits_count():
    frames = np.arange(70_000, dtype=np.int32)[:, None, None] + np.zeros((1, 1, 2), np.int32)
    medians = kernels.moving_median_windows(frames, [0, 2], [69_999, 70_000])
    assert medians[:, 0, 0].tolist() == [34_999.0, 35_000.5]


def test_layout_byte_order_and_write_protection_do_not_matter():
    frames = frames_of("noise", "uint16", (50, 6, 20))
    expected = kernels.moving_median(frames, 9, 5)
    swapped = frames.astype(">u2")
    fortran = np.asfortranarray(frames)
    strided = np.repeat(frames, 2, axis=2)[:, :, ::2]
    strided.flags.writeable = False
    for other in (swapped, fortran, strided):
        assert_array_equal(kernels.moving_median(other, 9, 5), expected)


def test_the_result_can_be_written_to_an_array_that_exists():
    frames, out = frames_of("noise", "uint16", (50, 6, 20)), np.empty((10, 6, 20), np.float32)
    assert kernels.moving_median(frames, 9, 5, out=out) is out
    assert_array_equal(out, reference.moving_median(frames, 9, 5))


def by_counts(frames: np.ndarray, half_window: int) -> float:
    """Return the share of windows that running counts solved."""
    starts = np.maximum(np.arange(len(frames)) - half_window, 0)
    stops = np.minimum(np.arange(len(frames)) + half_window + 1, len(frames))
    medians, n = _moving_median._solve(frames, starts, stops, None)
    assert_array_equal(medians, reference.moving_median_windows(frames, starts, stops))
    return n / len(frames) / -(-frames[0].size // LANES)


@pytest.mark.parametrize("dtype", TYPES[:-1])
def test_quiet_frames_are_solved_by_running_counts(dtype):
    assert by_counts(frames_of("noise", dtype, (100, 2, 128)), 20) > 0.9


@pytest.mark.parametrize("kind", ["full range", "extremes"])
def test_wild_frames_fall_back_to_brackets(kind):
    assert by_counts(frames_of(kind, "uint16", (100, 2, 128)), 20) < 0.1


def test_counts_that_give_up_once_are_taken_up_again():
    frames = frames_of("noise", "uint16", (100, 2, 128))
    frames[50:] += 5000
    assert 0.8 < by_counts(frames, 20) < 0.99


def test_a_tile_that_falls_back_does_not_disturb_the_others():
    frames = frames_of("noise", "uint16", (100, 2, LANES))
    frames[:, 1] = frames_of("extremes", "uint16", (100, 1, LANES))[:, 0]
    assert 0.4 < by_counts(frames, 20) < 0.6


def test_two_threads_find_what_one_finds():
    frames = frames_of("noise", "uint16", (300, 8, 200))
    expected = kernels.moving_median(frames, 40, 10)
    with ThreadPoolExecutor(2) as pool:
        halves = list(
            pool.map(lambda half: kernels.moving_median(half, 40, 10), (frames[:, :4], frames[:, 4:]))
        )
    assert_array_equal(np.concatenate(halves, axis=1), expected)


def test_importing_the_kernels_does_not_import_numba():
    code = (
        "import sys; from tomoscale import kernels; assert 'numba' not in sys.modules; kernels.moving_median"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", ["bool", "float64", "uint32", "int64", "complex64"])
def test_other_types_are_refused_and_the_known_ones_named(dtype):
    with pytest.raises(TypeError, match=f"frames are {dtype}; need one of uint8, uint16"):
        kernels.moving_median(np.zeros((3, 2, 2), dtype), 1, 1)


def test_bad_windows_are_refused():
    frames = np.zeros((9, 2, 2), np.uint16)
    for starts, stops, words in [
        ([0], [0], "empty"),
        ([0], [10], "within the 9 frames"),
        ([-1], [3], "within"),
        ([3, 2], [5, 6], "go back"),
        ([0, 1], [5], "as many"),
    ]:
        with pytest.raises(ValueError, match=words):
            kernels.moving_median_windows(frames, starts, stops)
    for half_window, step in [(-1, 1), (1, 0)]:
        with pytest.raises(ValueError, match="need at least 0 and 1"):
            kernels.moving_median(frames, half_window, step)
    with pytest.raises(ValueError, match="need contiguous float32"):
        kernels.moving_median(frames, 1, 1, out=np.empty((9, 2, 2)))
