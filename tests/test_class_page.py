"""The report of classes and of depth maps shows what was classified, by what, and how much of it there is."""

from __future__ import annotations

import functools
import shutil

import numpy as np
import pytest
from conftest import write_array
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tomoscale import class_page, depth, kmeans, otsu, pictures, plots, report, run, shares, store
from tomoscale.kernels import reference
from tomoscale.shown import Shown


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Keep figures instead of drawing them, which takes most of the time."""
    figures = []
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(pictures, "png", lambda figure: figures.append(figure) or b"\x89PNG" + bytes(20))
    return figures


@pytest.fixture
def drawn():
    """Ask for real pictures."""


def phases(dtype: str = "uint8") -> np.ndarray:
    """Return a bright ball in a dark block, with noise."""
    z, y, x = np.ogrid[:12, :20, :24]
    ball = (z - 6) ** 2 + (y - 9) ** 2 + (x - 12) ** 2 < 30
    return (40 + 120 * ball + np.random.default_rng(0).normal(0, 8, ball.shape)).astype(dtype)


@pytest.fixture
def source(tmp_path):
    return write_array(tmp_path / "v.zarr", phases(), (12, 10, 24))


def written(lazy, path):
    return run.write(lazy, path, quiet=True)


def text_of(path):
    return report.make(path, quiet=True).read_text("utf-8")


# ---------------------------------------------------------------- one reading


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 400), st.sampled_from(["uint8", "int16", "float32", "float64"]), st.integers(1, 5))
def test_values_are_counted_by_class_as_numpy_counts_them(n, dtype, n_classes):
    rng = np.random.default_rng(n)
    values, classes = rng.integers(0, 60, n).astype(dtype), rng.integers(0, n_classes, n).astype(np.uint8)
    counts = np.zeros((n_classes, 64), np.int64)
    from tomoscale import kernels

    kernels.class_counts(values, classes, 0.0, 1.0, counts)
    np.testing.assert_array_equal(counts, reference.class_counts(values, classes, n_classes, np.arange(65)))


@pytest.mark.parametrize("chunks", [(12, 20, 24), (5, 7, 24)])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_shares_are_the_same_whatever_the_chunks(tmp_path, chunks, dtype):
    image, classes = phases(dtype), (phases() > 100).astype(np.uint8)
    if dtype == "float32":
        image[0, 0, :3] = np.nan
    volume = store.open_volume(write_array(tmp_path / "v.zarr", image, chunks))
    labels = store.open_volume(write_array(tmp_path / "l.zarr", classes, (4, 20, 9)))
    found = shares.of(volume, labels, 2)
    assert found.voxels.tolist() == [np.count_nonzero((classes == c) & np.isfinite(image)) for c in (0, 1)]
    means = [np.nanmean(image[classes == c], dtype=float) for c in (0, 1)]
    np.testing.assert_allclose(found.means, means, atol=found.width)
    edges, counts = found.within(*found.ends(0.0, 1.0), 20)
    assert counts.sum() == found.voxels.sum()
    assert len(edges) == counts.shape[1] + 1 <= 45


# ---------------------------------------------------------------- otsu and kmeans


def test_the_page_of_otsu_shows_slices_beside_classes_and_the_thresholds(source, tmp_path, undrawn):
    path = written(otsu.segment(source), tmp_path / "found.zarr")
    text = text_of(path)
    slices, histogram = undrawn
    image, labels = phases(), store.open_volume(path).whole()
    shown = [axes.images[0].get_array() for axes in slices.axes]
    for i, plane in enumerate((image[6], labels[6], image[:, 10], labels[:, 10], image[..., 12])):
        np.testing.assert_array_equal(shown[i], plane)
    threshold = store.open_volume(path / "thresholds").whole()[0]
    assert [line.get_xdata()[0] for line in histogram.axes[0].lines] == [threshold]
    assert f"{np.count_nonzero(labels):,}".replace(",", " ") in text
    assert {f.name for f in (tmp_path / "found-report").iterdir()} == {
        "index.html", "slices.png", "histogram.png",
    }  # fmt: skip


def test_values_are_shown_as_they_were_classified(source, tmp_path, undrawn):
    path = written(otsu.segment(source, sigma=(1.0,)), tmp_path / "found.zarr")
    assert "after the Gaussian" in text_of(path)
    smooth = gaussian_filter(phases().astype(np.float32), 1.0)
    np.testing.assert_array_equal(undrawn[0].axes[0].images[0].get_array(), smooth[6])


def test_the_page_of_kmeans_lists_centres_and_what_was_left_out(source, tmp_path):
    path = written(kmeans.segment(source, k=2, threshold=30), tmp_path / "found.zarr")
    text = text_of(path)
    centres = store.open_volume(path / "centres").whole()
    assert all(f"<td>{v:.5g}</td>" in text for v in centres.ravel())
    n_below = np.count_nonzero(phases() < 30)
    assert n_below > 0
    assert f"<tr><td>0</td><td>{n_below}</td>" in text


@pytest.mark.parametrize(
    ("options", "lowest"), [({}, 1), ({"threshold": 30}, 0), ({"threshold": 30, "below": "zero"}, 1)]
)
def test_clusters_have_the_colour_of_what_was_left_out_only_if_a_threshold_left_it_out(
    source, tmp_path, undrawn, options, lowest
):
    text_of(written(kmeans.segment(source, k=2, most_iterations=2, **options), tmp_path / "found.zarr"))
    labels = undrawn[0].axes[1].images[0]
    assert (labels.norm.vmin, labels.norm.vmax) == (lowest - 0.5, 2.5)
    assert len(labels.cmap.colors) == 3 - lowest
    assert labels.colorbar.get_ticks().tolist() == list(range(lowest, 3))


def test_the_page_of_a_mask_shows_both_sides(source, tmp_path, undrawn):
    path = written(otsu.initial_mask(source), tmp_path / "mask.zarr")
    assert "after local contrast" in text_of(path)
    assert not undrawn[1].axes[0].lines


def test_a_vanished_volume_is_named_and_classes_are_shown(source, tmp_path, undrawn):
    path = written(otsu.segment(source), tmp_path / "found.zarr")
    voxels = np.bincount(store.open_volume(path).whole().ravel())
    shutil.rmtree(source)
    text = text_of(path)
    assert "The input is gone" in text
    assert len(undrawn) == 1
    assert all(f"<td>{n:,}</td>".replace(",", " ") in text for n in voxels)


def test_a_sampled_page_says_so_and_pictures_are_drawn(source, tmp_path, drawn):
    path = written(otsu.segment(source, classes=3), tmp_path / "found.zarr")
    assert "Of a sample" in report.make(path, sampled=True, quiet=True).read_text("utf-8")
    for name in ("slices", "histogram"):
        assert (tmp_path / "found-report" / f"{name}.png").stat().st_size > 5000


def test_large_slices_of_classes_are_never_mixed(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 10)
    plane = np.tile(np.array([[0, 7], [7, 0]], np.uint8), (15, 20))
    panel = class_page.class_panel("", plane, ("y", "x"), ["#000000"] * 8)
    assert set(np.unique(panel.image)) <= {0, 7}
    assert max(panel.image.shape) <= 10
    assert panel.shape == plane.shape


@pytest.mark.parametrize("n", [2, 9, 30])
def test_every_class_has_a_colour_of_its_own(n):
    colours = class_page.colours_of(n + 1, is_first_left_out=True)
    assert len(set(colours)) == n + 1


# ---------------------------------------------------------------- depth


def test_the_page_of_a_depth_map_outlines_its_regions(source, tmp_path, undrawn):
    path = written(depth.segment(source), tmp_path / "found.zarr")
    text = text_of(path)
    figure, histogram = undrawn
    np.testing.assert_array_equal(
        figure.axes[0].images[0].get_array(), store.open_volume(path / "map").whole()
    )
    assert len(figure.axes[1].collections[0].get_segments()) > 4
    assert histogram.axes[0].lines[0].get_xdata()[0] == store.open_volume(path / "threshold").whole()[0]
    n = store.open_volume(path / "labels").whole().max()
    assert f"<b>{n}</b><span>regions</span>" in text


@pytest.mark.parametrize("operation", [depth.segment, depth.project])
def test_the_page_of_running_sums_shows_three_slices(operation, source, tmp_path, undrawn):
    make = functools.partial(operation, mode="cumulative")
    path = written(make(source), tmp_path / "found.zarr")
    text_of(path)
    whole = store.open_volume(path).whole()
    shown = [axes.images[0].get_array() for axes in undrawn[0].axes]
    step = 2 if operation is depth.segment else 1
    for axis, image in enumerate(shown[::step]):
        np.testing.assert_array_equal(image, whole.take(whole.shape[axis] // 2, axis))


def test_a_map_without_regions_is_shown(source, tmp_path, undrawn):
    path = written(depth.project(source), tmp_path / "found.zarr")
    assert "summed over all slices" in text_of(path)
    assert len(undrawn[0].axes) == 1


def test_of_a_stack_of_few_slices_only_the_middle_one_is_shown():
    stack = store.as_volume(np.zeros((2, 20, 51), np.uint8))
    assert [title for title, _, _ in plots.slices_of(stack)] == ["z = 1"]


def test_slices_of_a_volume_are_its_middle_ones():
    image = phases()
    shown = Shown(store.as_volume(image))
    for axis, (title, plane, _) in enumerate(plots.slices_of(shown.volume)):
        assert title == f"{'zyx'[axis]} = {image.shape[axis] // 2}"
        np.testing.assert_array_equal(plane, image.take(image.shape[axis] // 2, axis))
