"""The demo is a trial: it fails if the result is not what NumPy gives, and it touches nothing that is not its own."""

from __future__ import annotations

import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
from conftest import small_scan, write_scan

from tomoscale import background, cluster, demo, run, simulate, store
from tomoscale.errors import DamagedError, TomoscaleError

SHAPE = (60, 64, 64)
pytestmark = pytest.mark.filterwarnings("ignore:simulate.dct. placed")


@pytest.fixture(autouse=True, scope="module")
def without_processes():
    """Take threads for local workers: their start is tested elsewhere."""
    connect = cluster.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "connect", lambda scheduler, **options: connect("threads", **options))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A simulated scan and what was made of it."""
    folder = tmp_path_factory.mktemp("demo")
    scan = run.write(simulate.dct(shape=SHAPE, blobs=12), folder / "scan.zarr", quiet=True)
    result = background.remove(scan, margin=3, half_window=12, step=5)
    return scan, run.write(result, folder / "cleaned.zarr", quiet=True)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The folder of a demo, the page that it names, and what it prints."""
    folder = tmp_path_factory.mktemp("tried") / "trial"
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        page = demo.trial(folder, shape=SHAPE, quiet=True)
    return folder, page, out.getvalue(), err.getvalue()


def test_demo_goes_from_simulation_to_report_and_says_how_good_it_is(tried):
    folder, page, out, err = tried
    assert page == folder / "blobs-report" / "index.html"
    assert (folder / "cleaned-report" / "index.html").is_file()
    assert "1. simulate.dct" in page.read_text("utf-8")
    assert out == ""
    assert "bit for bit" in err
    assert "of the truth" in err
    assert f"mkdir -p {folder}\n  tomoscale simulate dct {folder}/scan.zarr" in err
    assert "true blobs with a peak above 120 counts were found" in err
    for name in ("scan.zarr", "cleaned.zarr", "blobs.zarr"):
        store.open_volume(folder / name)


def test_demo_runs_twice_and_leaves_other_files_alone(tried, tmp_path):
    shutil.copytree(tried[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes.txt").write_text("mine")
    demo.trial(tmp_path, shape=SHAPE, seed=1, quiet=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert store.open_volume(tmp_path / "scan.zarr").history()[0]["parameters"]["seed"] == 1


def test_scan_of_a_user_is_not_replaced(tmp_path):
    write_scan(tmp_path / "scan.zarr", small_scan(), (30, 5, 23))
    with pytest.raises(TomoscaleError, match="not made by a demo"):
        demo.trial(tmp_path, shape=SHAPE, quiet=True)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "scan.zarr").whole(), small_scan())


def test_scan_that_a_user_put_into_the_folder_of_a_demo_is_not_replaced(tried, tmp_path):
    shutil.copytree(tried[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "scan.zarr")
    write_scan(tmp_path / "scan.zarr", small_scan(), (30, 5, 23))
    with pytest.raises(TomoscaleError, match="not made by a demo"):
        demo.trial(tmp_path, shape=SHAPE, quiet=True)


def test_check_finds_one_wrong_bit_in_a_background_or_a_frame(made, tmp_path):
    scan, cleaned = made
    assert "frame 30" in demo.check(scan, cleaned)
    for name, place in (("background", (0, 0, 0)), ("frames", (30, 40, 41))):
        broken = tmp_path / f"{name}.zarr"
        shutil.copytree(cleaned, broken)
        values = store.open_volume(broken / name).whole()
        values[place] = np.nextafter(values[place], np.float32(1e9))
        store.create_array(broken / name, values.shape, values.dtype, values.shape).write((0, 0, 0), values)
        with pytest.raises(DamagedError, match="is not what NumPy gives: 1 of"):
            demo.check(scan, broken)


def test_error_of_the_true_background_is_nothing(made, tmp_path):
    scan, cleaned = made
    raw, result = store.open_volume(scan), store.open_volume(cleaned)
    truth, level = raw.sibling("truth/background").whole(), result.sibling("level").whole()
    dark = np.median(raw.sibling("dark").whole(), axis=0)
    centres = np.minimum(np.arange(12) * 5 + 2, SHAPE[0] - 1)
    exact = (truth[centres] - dark) * (level.mean() / level[centres])[:, None, None]
    perfect = tmp_path / "perfect.zarr"
    shutil.copytree(cleaned, perfect)
    for shift, expected in ((0, 0), (3, 3)):
        values = (exact + shift).astype(np.float32)
        store.create_array(perfect / "background", values.shape, values.dtype, values.shape).write(
            (0, 0, 0), values
        )
        error = demo.background_error(scan, perfect)
        assert error.median == pytest.approx(expected, abs=1e-3)
        assert error.p95 == pytest.approx(expected, abs=1e-3)


def test_error_of_the_median_is_a_few_percent(made):
    error = demo.background_error(*made)
    assert 0 < error.median < error.p95
    assert error.median_percent < 5
