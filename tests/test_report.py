"""A report shows what is stored, says what it cannot show, and never needs the whole array at once."""

from __future__ import annotations

import base64
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from conftest import small_scan, write_array, write_scan

from tomoscale import background, cli, page, pictures, report, run, simulate, store, survey
from tomoscale.blocks import shape_of
from tomoscale.errors import TomoscaleError
from tomoscale.shown import Shown

STEP = 10


DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


@pytest.fixture
def drawn():
    """Ask for real pictures."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Take a dot for every picture where pictures are not what is tested: drawing takes most of the time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(pictures, "png", lambda figure: DOT)


@pytest.fixture
def scan_path(tmp_path):
    frames = small_scan()
    omega = np.arange(len(frames)) * 0.5
    return write_scan(
        tmp_path / "scan.zarr",
        frames,
        (30, 5, 23),
        dark=np.full(frames.shape[1:], 90, np.uint16),
        omega=omega,
    )


@pytest.fixture
def cleaned(scan_path):
    result = background.remove(store.open_volume(scan_path), margin=2, half_window=20, step=STEP)
    return run.write(result, scan_path.with_name("cleaned.zarr"), quiet=True)


def make(path, **options):
    """Return the text of a report's page."""
    return report.make(path, quiet=True, **options).read_text("utf-8")


def panels_of(monkeypatch, path):
    """Return the panels that a report draws, by the picture they are in."""
    drawn = []
    images = pictures.images
    monkeypatch.setattr(
        pictures, "images", lambda panels, *n: (drawn.append(list(panels)), images(panels, *n))[1]
    )
    make(path)
    return drawn


# ---------------------------------------------------------------- the page


def test_page_lies_beside_the_result_with_its_pictures(cleaned):
    target = report.make(cleaned, quiet=True)
    assert target == cleaned.with_name("cleaned-report") / "index.html"
    names = {f.name for f in target.parent.iterdir()}
    assert names == {"index.html", "frame.png", "level.png", "projection.png", "histogram.png"}


def test_page_holds_its_pictures_and_refers_to_nothing_outside(cleaned, drawn):
    text = make(cleaned)
    assert "http" not in text
    assert "<script" not in text
    assert not re.search(r"url\(|@import|<link", text)
    sources = re.findall(r'<img src="([^"]*)"', text)
    files = [(cleaned.with_name("cleaned-report") / f"{n}.png").read_bytes() for n in
             ("frame", "level", "projection", "histogram")]  # fmt: skip
    assert [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources] == files
    assert text.count('alt="') == len(files)


def test_page_names_every_step_of_the_history_with_its_parameters(tmp_path):
    made = simulate.dct(shape=(40, 48, 48), blobs=5, seed=7)
    scan = run.write(made, tmp_path / "scan.zarr", quiet=True)
    path = run.write(background.remove(scan, half_window=13), tmp_path / "cleaned.zarr", quiet=True)
    text = make(path)
    assert "1. simulate.dct" in text
    assert "2. background.remove" in text
    assert "<dt>seed</dt><dd>7</dd>" in text
    assert "<dt>half_window</dt><dd>13</dd>" in text
    assert str(scan / "frames") in text
    assert "numpy " + np.__version__ in text


def test_names_of_users_do_not_become_markup(scan_path):
    odd = scan_path.rename(scan_path.with_name("<b>&scan.zarr"))
    text = make(odd)
    assert "<b>&scan" not in text
    assert "&lt;b&gt;&amp;scan.zarr" in text


def test_second_report_replaces_the_first_and_leaves_other_files_alone(scan_path, tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    first = make(scan_path, output=folder)
    assert make(scan_path, output=folder) == first
    assert (folder / "notes.txt").read_text() == "mine"


def test_page_of_another_making_is_not_overwritten(scan_path, tmp_path):
    (tmp_path / "index.html").write_text("my home page")
    with pytest.raises(TomoscaleError, match="is no report"):
        make(scan_path, output=tmp_path)
    assert (tmp_path / "index.html").read_text() == "my home page"


def test_command_prints_the_page_and_nothing_else(scan_path, capsys):
    assert cli.main(["report", str(scan_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{scan_path.with_name('scan-report') / 'index.html'}\n"
    assert "report: reading" in printed.err


# ---------------------------------------------------------------- before and after


def test_before_and_after_share_one_scale(cleaned, monkeypatch):
    frame = panels_of(monkeypatch, cleaned)[0]
    assert [p.title for p in frame] == ["Before", "Background", "After, same scale", "After, own scale"]
    assert len({(p.low, p.high, p.colours, p.asinh) for p in frame[:3]}) == 1
    assert frame[3].low == -frame[3].high


def test_own_scale_ends_where_the_values_do_or_at_eight_widths_of_the_noise():
    noise = np.random.default_rng(0).normal(0, 10, (64, 64))
    blob = noise.copy()
    blob[5, 5] = 5000
    assert report._own_scale(noise) == np.abs(noise).max()
    assert 70 < report._own_scale(blob) < 90


def test_before_less_background_is_what_was_smoothed(cleaned, scan_path, monkeypatch):
    from scipy.ndimage import median_filter

    before, behind, after, _ = (p.image for p in panels_of(monkeypatch, cleaned)[0])
    np.testing.assert_array_equal(median_filter(before - behind, 3, mode="nearest"), after)


def test_shown_frame_is_the_one_with_the_strongest_signal(cleaned):
    volume = store.open_volume(cleaned)
    found = survey.of(volume, quiet=True)
    frames = volume.whole()
    signal = np.where(frames > found.threshold, frames, 0).sum((1, 2), dtype="f8")
    assert found.strongest == signal.argmax()
    assert f"frame {found.strongest} (omega {found.strongest / 2:.2f}°)" in make(cleaned)


def test_vanished_input_is_named_and_the_rest_is_shown(cleaned, scan_path):
    shutil.rmtree(scan_path)
    text = make(cleaned)
    assert "input is gone" in text
    assert "scan.zarr/frames: does not exist" in text
    assert "Maximum projection" in text


def test_input_that_changed_is_not_shown_as_what_was_before(cleaned, scan_path):
    shutil.rmtree(scan_path / "frames")
    write_array(scan_path / "frames", small_scan(seed=1), (30, 5, 23))
    text = make(cleaned)
    assert "has changed since" in text
    assert "After, same scale" not in text


def test_input_that_moved_with_the_result_is_found(cleaned, scan_path, tmp_path):
    (tmp_path / "archive").mkdir()
    for path in (scan_path, cleaned):
        path.rename(tmp_path / "archive" / path.name)
    text = make(tmp_path / "archive" / "cleaned.zarr")
    assert "After, same scale" in text


def test_part_of_a_scan_is_compared_with_the_same_part(scan_path, tmp_path, monkeypatch):
    part = store.crop(store.open_volume(scan_path), [(10, 80), (3, 18), (2, 20)])
    path = run.write(background.remove(part, half_window=9, smoothing=0), tmp_path / "part.zarr", quiet=True)
    before, behind, after, _ = (p.image for p in panels_of(monkeypatch, path)[0])
    np.testing.assert_array_equal(before - behind, after)


def test_scan_without_margin_says_that_nothing_was_normalised(scan_path, tmp_path):
    path = run.write(background.remove(scan_path, half_window=9), tmp_path / "plain.zarr", quiet=True)
    assert "not normalised" in make(path)


# ---------------------------------------------------------------- one reading


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("chunks", [(7, 3, 4), (1, 14, 15), (45, 1, 1)])
def test_maximum_projection_is_that_of_numpy(dtype, chunks, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "WINDOW_BYTES", 1000)
    frames = small_scan(45, 14, 15, dtype=dtype)
    found = survey.of(store.open_volume(write_array(tmp_path / "a.zarr", frames, chunks)), quiet=True)
    np.testing.assert_array_equal(found.projection, frames.max(0))
    assert found.projection.dtype == frames.dtype
    assert (found.lowest, found.highest) == (frames.min(), frames.max())
    assert found.counts.sum() == frames.size
    np.testing.assert_allclose(found.means, frames.mean((1, 2), dtype="f8"))


def test_histogram_of_counts_is_exact(tmp_path):
    frames = small_scan(dtype="uint16")
    found = survey.of(store.open_volume(write_array(tmp_path / "a.zarr", frames, (30, 5, 23))), quiet=True)
    np.testing.assert_array_equal(found.counts, np.bincount(frames.ravel(), minlength=2**16))
    for percent in (1, 50, 99.9):
        assert found.percentile(percent) == np.percentile(frames, percent, method="inverted_cdf")


def test_percentiles_of_floats_are_right_to_a_bin(tmp_path):
    frames = small_scan(dtype="float32") - 400
    found = survey.of(store.open_volume(write_array(tmp_path / "a.zarr", frames, (30, 5, 23))), quiet=True)
    assert found.width < 0.2
    for percent in (0, 1, 50, 99.9, 100):
        expected = np.percentile(frames, percent, method="inverted_cdf")
        assert abs(found.percentile(percent) - expected) <= found.width


def test_nan_are_counted_and_left_out(tmp_path):
    frames = small_scan(dtype="float32")
    frames[3, 4, 5] = np.nan
    frames[:, 0, 0] = np.nan
    path = write_array(tmp_path / "a.zarr", frames, (30, 5, 23))
    found = survey.of(store.open_volume(path), quiet=True)
    np.testing.assert_array_equal(found.projection[1:], np.nanmax(frames[:, 1:], axis=0))
    assert np.isnan(found.projection[0, 0])
    assert found.n_nan == 1 + len(frames)
    assert f"{found.n_nan} voxels are NaN" in make(path)


def test_array_of_one_value_is_drawn(tmp_path, drawn):
    path = write_array(tmp_path / "a.zarr", np.zeros((4, 8, 8), np.float32))
    assert "Histogram" in make(path)


def test_samples_are_spread_over_all_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "SAMPLED_CHUNKS", 12)
    frames = small_scan()
    path = write_array(tmp_path / "scan.zarr", frames, (10, 5, 23))
    found = survey.of(store.open_volume(path), sampled=True, quiet=True)
    assert (found.n_voxels > 0).all()
    assert found.n_voxels.sum() < frames.size
    assert found.projection is None


def test_sampled_report_says_so(cleaned):
    text = make(cleaned, sampled=True)
    assert "sample of the voxels" in text
    assert "Maximum projection" not in text


class Endless(store.Volume):
    """A scan of half a gigabyte that is made as it is read."""

    shape, dtype, chunks = (1024, 512, 512), np.dtype("u2"), (64, 32, 512)

    def read(self, window):
        return np.full(shape_of(window), 7, np.uint16)


def test_reading_takes_the_memory_of_a_few_windows():
    survey.of(store.ArrayVolume(np.zeros((2, 2, 2), np.uint16)), quiet=True)  # compiles
    tracemalloc.start()
    found = survey.of(Endless(), quiet=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.counts[7] == 1024 * 512 * 512
    assert peak < (survey.MOST_THREADS + 2) * survey.WINDOW_BYTES < Endless().nbytes / 4


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("shape", [(7, 9), (8, 9), (2048, 2000), (1, 1)])
@pytest.mark.parametrize("most", [4, 1024])
def test_reduced_image_is_maximum_or_mean_of_its_pixels(shape, most):
    image = np.random.default_rng(0).integers(0, 100, shape).astype(np.float32)
    highest, n = pictures.reduced(image, "maximum", most)
    mean, _ = pictures.reduced(image, "mean", most)
    assert max(highest.shape) <= most
    assert highest.shape == tuple(-(-s // n) for s in shape)
    part = np.s_[-(shape[0] % n or n) :, -(shape[1] % n or n) :]
    assert highest[-1, -1] == image[part].max()
    assert mean[-1, -1] == pytest.approx(image[part].mean())


def test_picture_is_large_enough_to_read_and_small_enough_to_send(scan_path, drawn):
    folder = report.make(scan_path, quiet=True).parent
    for file in folder.glob("*.png"):
        png = file.read_bytes()
        width, height = (int.from_bytes(png[a : a + 4], "big") for a in (16, 20))
        assert 700 <= width <= 1600
        assert height <= 3000
        assert len(png) < 2_000_000


def test_drawing_leaves_matplotlib_as_it_was(scan_path, drawn):
    import matplotlib

    before = dict(matplotlib.rcParams)
    make(scan_path)
    assert dict(matplotlib.rcParams) == before


# ---------------------------------------------------------------- other arrays


def test_volume_is_shown_by_its_middle_slices(tmp_path, monkeypatch):
    made = simulate.spheres(shape=(24, 96, 80))
    path = run.write(made, tmp_path / "spheres.zarr", quiet=True)
    (slices,) = panels_of(monkeypatch, path)
    volume = store.open_volume(path).whole()
    for panel, plane in zip(slices, (volume[12], volume[:, 48], volume[:, :, 40]), strict=True):
        np.testing.assert_array_equal(panel.image, plane)
    assert [p.title for p in slices] == ["z = 12", "y = 48", "x = 40"]
    assert len({(p.low, p.high) for p in slices}) == 1


def test_raw_scan_is_shown_less_its_dark(scan_path, monkeypatch):
    linear, logarithmic = panels_of(monkeypatch, scan_path)[0]
    assert linear.title.startswith("Less the dark")
    k = survey.of(store.open_volume(scan_path), quiet=True).strongest
    np.testing.assert_array_equal(linear.image, small_scan()[k] - np.float32(90))
    assert logarithmic.asinh > 0


def test_array_without_a_group_is_shown(tmp_path):
    path = write_array(tmp_path / "alone.zarr", small_scan(), (30, 5, 23))
    text = make(path)
    assert "tomoscale did not write this" in text
    assert (tmp_path / "alone-report" / "index.html").exists()


def test_stack_of_darks_becomes_its_median_some_rows_at_a_time(monkeypatch):
    from tomoscale import shown

    stack = small_scan(n_frames=6)
    monkeypatch.setattr(shown, "DARK_BYTES", 1000)
    np.testing.assert_array_equal(shown.image_of(store.ArrayVolume(stack)), np.median(stack, axis=0))


def test_unfinished_result_is_refused_in_the_words_of_the_store(cleaned):
    unfinished = cleaned.rename(cleaned.with_name("cleaned.zarr.incomplete"))
    with pytest.raises(TomoscaleError, match="run is not finished"):
        make(cleaned)
    assert unfinished.exists()


def test_array_that_is_no_stack_of_images_is_refused(cleaned):
    with pytest.raises(TomoscaleError, match="three axes"):
        make(cleaned / "level")


def test_name_of_the_page_follows_the_array(cleaned):
    volume = store.open_volume(cleaned / "background")
    assert Shown(volume).name_beside("-report").name == "cleaned-background-report"


def test_page_writes_tables_with_a_head_or_with_names_in_the_first_column():
    table = page.Table([("a", "1")], ("name", "value"))
    named = page.Table([("a", "1")])
    text = page.html("t", "l", [], [page.Section("s", tables=[table, named])], "f")
    assert '<th scope="col">name</th>' in text
    assert '<th scope="row">a</th><td>1</td>' in text
