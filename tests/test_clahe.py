"""Local contrast is that of scikit-image, of slices and of volumes, whatever the chunks and blocks."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_array
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.exposure import _adapthist, equalize_adapthist
from skimage.filters import threshold_otsu

from tomoscale import blocks, cli, cluster, kernels, otsu, run, store
from tomoscale.errors import TomoscaleError

SLICES = [(3, 64, 64), (2, 57, 91), (3, 100, 33), (2, 200, 131), (2, 8, 9), (2, 17, 7)]
VOLUMES = [(20, 64, 64), (17, 41, 53), (33, 32, 30), (9, 9, 9), (64, 17, 25)]


def waves(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return stripes that grow brighter, with noise."""
    z, y, x = np.indices(shape)
    values = np.sin(y / 9 + z) + np.cos(x / 7) * x / shape[2]
    values += np.random.default_rng(0).normal(0, 0.3, shape)
    unit = (values - values.min()) / np.ptp(values)
    return (
        unit.astype(dtype)
        if np.dtype(dtype).kind == "f"
        else (unit * 0.8 * np.iinfo(dtype).max).astype(dtype)
    )


def slices(image, **options):
    return np.stack([equalize_adapthist(one, **options) for one in image])


def computed(lazy):
    return np.asarray(lazy.compute(scheduler="sync"))


@pytest.fixture
def small_chunks(monkeypatch):
    """Store results in small chunks, so that small volumes have many blocks."""
    monkeypatch.setattr(blocks, "volume_chunks", lambda shape, edge: tuple(min(16, n) for n in shape))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", SLICES)
def test_slices_are_those_of_scikit_image_bit_for_bit(shape, dtype):
    image = waves(shape, dtype)
    expected = slices(image)
    found = computed(otsu.equalize(image, dtype="float64").volume)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(computed(otsu.equalize(image).volume), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", VOLUMES)
def test_volumes_are_those_of_scikit_image_bit_for_bit(shape, dtype):
    image = waves(shape, dtype)
    found = computed(otsu.equalize(image, dimensions=3, dtype="float64").volume)
    np.testing.assert_array_equal(found, equalize_adapthist(image))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("chunks", [(36, 50, 61), (5, 16, 16), (1, 50, 61), (36, 7, 61), (16, 32, 9)])
def test_result_does_not_depend_on_the_chunks(tmp_path, chunks, dimensions, small_chunks):
    image = waves((36, 50, 61), "uint16")
    source = write_array(tmp_path / "v.zarr", image, chunks)
    with blocks.planned_for(2**27, 3):
        lazy = otsu.equalize(source, dimensions=dimensions, dtype="float64").volume
    assert lazy.npartitions > 1
    expected = slices(image) if dimensions == 2 else equalize_adapthist(image)
    np.testing.assert_array_equal(computed(lazy), expected)
    with cluster.connect("threads", threads=2) as workers:
        out = run.write(
            otsu.equalize(source, dimensions=dimensions, dtype="float64"),
            tmp_path / "o.zarr", quiet=True, connection=workers,
        )  # fmt: skip
    np.testing.assert_array_equal(store.open_volume(out).whole(), expected)


@pytest.mark.parametrize(
    ("tile", "clip_limit", "bins"),
    [((11,), 0.01, 256), ((50, 61), 0.03, 128), ((7, 13), 0.0, 64), ((5, 9), 0.9, 256), ((1, 1), 0.5, 16)],
)
def test_tiles_limits_and_bins_are_those_of_scikit_image(tile, clip_limit, bins):
    image = waves((3, 50, 61), "uint16")
    kernel = tile if len(tile) == 2 else tile[0]
    expected = slices(image, kernel_size=kernel, clip_limit=clip_limit, nbins=bins)
    found = otsu.equalize(image, tile=tile, clip_limit=clip_limit, bins=bins, dtype="float64")
    np.testing.assert_array_equal(computed(found.volume), expected)


def test_two_sharp_phases_are_spread_as_scikit_image_does():
    rng = np.random.default_rng(0)
    image = rng.normal(0.3, 0.05, (2, 256, 256))
    image[:, 128:] += 0.35
    image = (image.clip(0, 1) * 65535).astype(np.uint16)
    np.testing.assert_array_equal(computed(otsu.equalize(image, dtype="float64").volume), slices(image))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=8, max_size=64), st.integers(1, 200))
def test_histograms_are_clipped_as_scikit_image_clips_them(counts, limit):
    counts = np.array(counts)
    n = max(1, int(counts.sum()))
    clipped = _adapthist.clip_histogram(counts.copy(), limit)
    expected = _adapthist.map_histogram(clipped, 0, 2**14 - 1, n)
    np.testing.assert_array_equal(kernels.clipped_tables(counts[None], limit, n)[0], expected)


def test_a_constant_slice_among_others_is_that_of_scikit_image():
    image = waves((3, 40, 40), "uint8")
    image[1] = 77
    np.testing.assert_array_equal(computed(otsu.equalize(image, dtype="float64").volume), slices(image))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_first_mask_is_the_rarer_side_of_otsus_threshold(dtype, dimensions):
    image = waves((20, 48, 52), dtype)
    even = slices(image) if dimensions == 2 else equalize_adapthist(image)
    bright = even > threshold_otsu(even)
    assert 0.01 < bright.mean() < 0.99
    expected = ~bright if bright.mean() > 0.5 else bright
    found = computed(otsu.initial_mask(image, dimensions=dimensions).labels)
    np.testing.assert_array_equal(found, expected)
    found = computed(otsu.initial_mask(image, dimensions=dimensions, invert="yes").labels)
    np.testing.assert_array_equal(found, ~bright)


def test_a_flat_background_in_the_bin_of_the_threshold_is_not_the_rarer_side():
    image = np.zeros((2, 32, 32), np.uint8)
    image[:, 8:16, 8:16] = 200
    np.testing.assert_array_equal(computed(otsu.initial_mask(image).labels), image > 0)


def test_the_rarer_side_can_be_found_slice_by_slice():
    image = waves((2, 64, 64), "uint8") // 8
    image[0, :40] += 120
    image[1, :20] += 120
    found = computed(otsu.initial_mask(image, invert="slice").labels)
    even = slices(image)
    bright = even > threshold_otsu(even)
    assert bright[0].mean() > 0.5 > bright[1].mean()
    np.testing.assert_array_equal(found, [~bright[0], bright[1]])


def test_command_writes_the_mask(tmp_path, capsys):
    source = write_array(tmp_path / "v.zarr", waves((9, 40, 50), "uint16"), (4, 16, 16))
    assert cli.main(["otsu", "mask", str(source), "--scheduler", "threads"]) == 0
    out, err = capsys.readouterr()
    assert out.strip().endswith("v-otsu-mask.zarr")
    assert "passes             3 before the blocks, 1 with them" in err
    expected = computed(otsu.initial_mask(source).labels)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "v-otsu-mask.zarr").whole(), expected)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (
            waves((2, 30, 20), "uint8"),
            {"tile": (31, 5)},
            r"a tile of 31 x 5 is larger than the slice of 30 x 20",
        ),
        (waves((2, 30, 20), "uint8"), {"tile": (5, 5, 5)}, "tile has 3 edges; expected 1, or 2"),
        (waves((2, 30, 20), "float32") * 3, {}, "scale them first"),
        (np.full((2, 30, 20), np.nan, np.float32), {}, "NaN"),
        (waves((2, 30, 20), "uint8").astype(np.int32), {}, "values of type int32"),
    ],
)
def test_what_cannot_be_equalised_is_refused_in_one_line(image, options, message):
    with pytest.raises(TomoscaleError, match=message) as error:
        computed(otsu.equalize(image, **options).volume)
    assert "\n" not in str(error.value)


def test_a_mask_of_one_value_is_refused():
    with pytest.raises(TomoscaleError, match="one value only"):
        computed(otsu.initial_mask(np.full((2, 30, 20), 9, np.uint8)).labels)
