"""The report of blobs shows every blob where it is, and counts what became of all of them."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from tomoscale import blob_page, blocks, overview, pictures, plots, report, run, store
from tomoscale.blocks import Field
from tomoscale.operation import operation
from tomoscale.parameters import Shape3, Volume

AXES = ("frame", "row", "column")


@pytest.fixture
def undrawn(monkeypatch):
    """Keep figures instead of drawing them, which takes most of the time."""
    figures = []
    monkeypatch.setattr(pictures, "png", lambda figure: figures.append(figure) or b"\x89PNG" + bytes(20))
    return figures


def same(labels: np.ndarray) -> np.ndarray:
    return labels


@operation("regions")
def regions(frames: Volume, *, seed_threshold: float, max_size: Shape3 = (9, 40, 40)) -> dict[str, object]:
    """Label what is above a threshold, and measure it by SciPy."""
    values = frames.whole()
    found, _ = ndimage.label(values >= seed_threshold)
    numbers = np.zeros(found.max() + 1, np.uint32)
    rows = []
    for number, box in enumerate(ndimage.find_objects(found), 1):
        inside = found[box] == number
        bright = np.where(inside, values[box], 0)
        top = [
            int(p) + s.start
            for p, s in zip(np.unravel_index(bright.argmax(), bright.shape), box, strict=True)
        ]
        is_kept = all(s.stop - s.start <= n for s, n in zip(box, max_size, strict=True))
        numbers[number] = numbers.max() + 1 if is_kept else 0
        row = {
            "label": numbers[number],
            "peak": bright.max(),
            "voxels": inside.sum(),
            "intensity": float(bright.sum()),
        }
        row |= {"absorbed_into": 0, "touches_border": box[0].start == 0}
        for axis, span, at in zip(AXES, box, top, strict=True):
            row |= {f"peak_{axis}": at, f"{axis}_min": span.start, f"{axis}_max": span.stop, axis: float(at)}
        rows.append(row)
    labels = store.as_volume(numbers[found])
    window = tuple(slice(0, n) for n in frames.shape)
    lengths = tuple((n,) for n in frames.shape)
    made = blocks.map_blocks(
        same,
        lambda _: (labels.at(window),),
        {"labels": Field(np.dtype("u4"), lengths, (8, 16, 16))},
        scratch=0,
    )
    blocks.state(made["labels"], image="scan", carried={"omega": blocks.copied(frames.sibling("omega"))})
    types = {"label": "uint32", "voxels": "int64", "absorbed_into": "uint32", "touches_border": "bool"}
    types |= {f"{a}_{e}": "int64" for a in AXES for e in ("min", "max")} | {
        f"peak_{a}": "int64" for a in AXES
    }
    types |= dict.fromkeys(("peak", "intensity", *AXES), "float64")
    kept = [r for r in rows if r["label"]]
    table = pa.table({n: pa.array([r[n] for r in kept], pa.type_for_alias(t)) for n, t in types.items()})
    lost = [
        {
            "reason": "too large", "peak": float(r["peak"]), "voxels": int(r["voxels"]),
            "position": [r[f"peak_{a}"] for a in AXES], "box": [[r[f"{a}_min"], r[f"{a}_max"]] for a in AXES],
        }
        for r in rows if not r["label"]
    ]  # fmt: skip
    found = {
        "rejected": {"absorbed": 0, "too large": len(lost)},
        "brightest_rejected": lost,
        "thresholds": {},
    }
    return {**made, "table": table.replace_schema_metadata({"tomoscale": json.dumps({"blobs": found})})}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two blobs, one of them in the corner, and one that lasts too long."""
    frames = np.random.default_rng(0).normal(0, 3, (24, 40, 50)).astype(np.float32)
    frames[3:6, 10:15, 20:27] += 200
    frames[0:2, 37:40, 46:50] += 100
    frames[4:20, 25:28, 5:9] += 150
    folder = tmp_path_factory.mktemp("blobs")
    path = write_scan(folder / "cleaned.zarr", frames, (8, 16, 16), omega=np.arange(24) * 0.5)
    return frames, run.write(regions(path, seed_threshold=50.0), folder / "found.zarr", quiet=True)


# ---------------------------------------------------------------- one reading


volumes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


@given(data=st.data(), shape=volumes, chunks=volumes)
@settings(max_examples=80, deadline=None)
def test_an_overview_shows_the_brightest_label_from_both_sides_whatever_the_chunks(
    data, shape, chunks, tmp_path_factory
):
    values = data.draw(arrays.arrays(np.float32, shape, elements=st.integers(-3, 3)))
    labels = data.draw(arrays.arrays(np.uint32, shape, elements=st.integers(0, 4)))
    path = tmp_path_factory.getbasetemp() / "labels.zarr"
    shutil.rmtree(path, ignore_errors=True)
    files = store.create_array(path, shape, labels.dtype, tuple(map(min, chunks, shape)))
    files.write((0, 0, 0), labels)
    seen = overview.of(store.as_volume(values), store.open_volume(path), quiet=True)
    for axis, view in enumerate((seen.front, seen.side)):
        np.testing.assert_array_equal(view.highest, values.max(axis))
        bright = np.where(labels > 0, values, -np.inf)
        is_best = (labels > 0) & (bright == bright.max(axis, keepdims=True))
        expected = np.where(is_best, labels, 99).min(axis)
        np.testing.assert_array_equal(view.labels, np.where(expected == 99, 0, expected))
    np.testing.assert_array_equal(seen.labelled, np.count_nonzero(labels, axis=(1, 2)))


def test_a_pixel_that_is_not_a_number_hides_no_other(tmp_path):
    values = np.ones((3, 4, 5), np.float32)
    values[1, 2, 3] = np.nan
    seen = overview.of(store.as_volume(values), store.as_volume(np.zeros((3, 4, 5), np.uint32)), quiet=True)
    np.testing.assert_array_equal(seen.front.highest, 1)


# ---------------------------------------------------------------- the page


def test_the_page_shows_blobs_from_all_sides_and_counts_them(made, tmp_path):
    _, path = made
    text = report.make(path, output=tmp_path / "page", quiet=True).read_text("utf-8")
    names = {p.name for p in (tmp_path / "page").iterdir()}
    assert names == {"index.html"} | {
        f"{n}.png" for n in ("blobs", "rotation", "per-frame", "sizes", "brightest", "rejected")
    }
    assert "<b>2</b><span>blobs</span>" in text
    assert "<b>1</b><span>seeds rejected</span>" in text
    assert re.search(r"<td>kept</td><td>2</td>", text)
    assert re.search(r"<td>too large</td><td>1</td>", text)
    assert "1 of the kept ones touch the border" in text
    assert "omega 0.00° to 11.50°" in text


def test_the_outlines_of_the_page_are_those_of_the_labels(made, undrawn, tmp_path):
    frames, path = made
    report.make(path, output=tmp_path / "page", quiet=True)
    labels = store.open_volume(path).whole()
    lines = undrawn[0].axes[1].collections[0].get_segments()
    x, y = np.concatenate(lines).T
    rows, columns = np.nonzero(labels.max(0))
    assert (x.min(), x.max()) == (columns.min() - 0.5, columns.max() + 0.5)
    assert (y.min(), y.max()) == (rows.min() - 0.5, rows.max() + 0.5)
    k = int(np.count_nonzero(labels, axis=(1, 2)).argmax())
    assert undrawn[0].axes[2].get_title(loc="left") == f"Frame {k} (omega {k / 2:.2f}°)"
    (first,) = (a for a in undrawn[4].axes if f"peak {frames[3:6].max():.4g}" in a.get_title(loc="left"))
    lines = np.concatenate(first.collections[0].get_segments())
    assert (lines.min(0).tolist(), lines.max(0).tolist()) == ([19.5, 9.5], [26.5, 14.5])


def test_without_its_frames_the_page_shows_the_table_and_says_why(made, undrawn, tmp_path):
    _, path = made
    alone = tmp_path / "alone.zarr"
    shutil.copytree(path, alone)
    shutil.copy(path.with_suffix(".parquet"), alone.with_suffix(".parquet"))
    cleaned = path.with_name("cleaned.zarr")
    cleaned.rename(cleaned.with_name("elsewhere"))
    try:
        text = report.make(alone, quiet=True).read_text("utf-8")
    finally:
        cleaned.with_name("elsewhere").rename(cleaned)
    assert "The input is gone" in text
    assert {p.name for p in (tmp_path / "alone-report").iterdir()} == {"index.html", "sizes.png"}


def test_a_sampled_page_reads_no_whole_array(made, undrawn, tmp_path, monkeypatch):
    monkeypatch.setattr(overview, "of", lambda *_, **__: pytest.fail("read the whole array"))
    report.make(made[1], output=tmp_path / "page", sampled=True, quiet=True)
    assert (tmp_path / "page" / "brightest.png").is_file()


def test_a_page_of_no_blobs_says_so(made, undrawn, tmp_path):
    path = run.write(
        regions(made[1].with_name("cleaned.zarr"), seed_threshold=1e6), tmp_path / "none.zarr", quiet=True
    )
    text = report.make(path, quiet=True).read_text("utf-8")
    assert "<b>0</b><span>blobs</span>" in text
    assert "Nothing was found." in text


# ---------------------------------------------------------------- figures


def test_a_blob_over_the_end_of_the_rotation_counts_at_both_ends():
    table = {"frame_min": np.array([1, 8]), "frame_max": np.array([3, 12])}
    assert blob_page.per_frame(table, 10).tolist() == [1, 2, 1, 0, 0, 0, 0, 0, 1, 1]


@given(
    values=arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e9))
    | arrays.arrays(np.int64, st.integers(1, 40), elements=st.integers(-50, 10**7))
)
@settings(max_examples=200, deadline=None)
def test_every_value_falls_into_a_bin(values):
    edges, is_logarithmic = plots.bins_of(values)
    assert (np.diff(edges) > 0).all()
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert len(edges) <= plots.N_BINS + 2
    assert not is_logarithmic or edges[0] > 0
