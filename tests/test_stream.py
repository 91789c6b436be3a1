"""What is made while it is written is what would have been made before, and never more of it than a chunk."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from conftest import small_scan, write_scan

from tomoscale import background, cluster, run, store, stream
from tomoscale.errors import TomoscaleError


def test_a_block_that_is_made_chunk_by_chunk_is_stored_as_the_whole_one(tmp_path):
    whole, asked = small_scan(21, 10, 13), []

    def fill(window, out):
        asked.append(out.shape)
        out[...] = whole[window]

    with stream.allowed():
        block = stream.array(whole.shape, whole.dtype, fill)
    files = store.create_array(tmp_path / "a.zarr", whole.shape, whole.dtype, (8, 4, 13))
    files.write((0, 0, 0), block)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "a.zarr").whole(), whole)
    assert sorted(asked) == sorted((n, rows, 13) for n in (8, 8, 5) for rows in (4, 4, 2))
    np.testing.assert_array_equal(stream.array(whole.shape, whole.dtype, fill), whole)


@pytest.mark.parametrize("options", [{}, {"hot_pixels": True}, {"smoothing": 5, "hot_pixels": True}])
def test_a_run_writes_what_the_lazy_arrays_hold(tmp_path, monkeypatch, options):
    scan = small_scan(60, 24, 23)
    scan[:, 7, ::5] = 5000 + np.arange(60)[:, None] % 7 * 400
    source = write_scan(tmp_path / "scan.zarr", scan, (20, 4, 23))
    cleaned = background.remove(source, half_window=8, step=4, **options)
    expected = {name: getattr(cleaned, name).compute() for name in ("frames", "background")}
    monkeypatch.delattr(stream.Stream, "__array__")  # nothing is made as a whole
    out = run.write(cleaned, tmp_path / "out.zarr", quiet=True)
    for name, array in expected.items():
        np.testing.assert_array_equal(store.open_volume(out / name).whole(), array)


@pytest.mark.parametrize("scheduler", ["threads", "local"])
def test_what_is_computed_from_frames_is_written_with_them(tmp_path, scheduler):
    source = write_scan(tmp_path / "scan.zarr", small_scan(20, 8, 9), (10, 4, 9))
    frames = background.remove(source, half_window=4, step=5).frames
    fields = {"frames": frames, "more": frames + 1, "part": frames[3:7, ::2], "whole": frames.astype("int32")}
    with cluster.connect(scheduler, workers=1) as workers:
        out = run.write(fields, tmp_path / "out.zarr", quiet=True, connection=workers)
    for name, field in fields.items():
        np.testing.assert_array_equal(store.open_volume(out / name).whole(), field.compute(), err_msg=name)


def test_a_nan_that_integers_cannot_hold_is_named_by_its_frame(tmp_path):
    scan = small_scan(160, 10, 12, dtype="float32")
    scan[130, 4, 4] = np.nan
    options = {"half_window": 6, "step": 4, "ranking": "exact", "smoothing": 0}
    first = np.flatnonzero(np.isnan(oracle.remove(scan, **options)[0]).any((1, 2)))[0]
    assert first > 100
    message = f"^background.remove: frame {first} holds NaN, which int16 cannot; use float32$"
    with pytest.raises(TomoscaleError, match=message):  # bad input: the same command would not help
        run.write(background.remove(scan, dtype="int16", **options), tmp_path / "out.zarr", quiet=True)
    assert not list(tmp_path.iterdir())
