"""A score counts what was found, missed and invented, whatever the order of the rows."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import cli, evaluate, run, simulate, store
from tomoscale.errors import TomoscaleError
from tomoscale.evaluate.blobs import compared
from tomoscale.evaluate.matching import AXES, candidates, pairs, read_table


def table(*blobs, size=(4, 6, 6)):
    """Return columns of blobs given as (frame, row, column) of their middle, or that and their size."""
    rows = []
    for label, blob in enumerate(blobs, 1):
        middle, extent = (blob[:3], blob[3:]) if len(blob) == 6 else (blob, size)
        row = {"label": label, "peak": 100.0 / label, "voxels": 50, "intensity": 5000.0, "absorbed_into": 0}
        for axis, at, n in zip(AXES, middle, extent, strict=True):
            row |= {axis: float(at), f"peak_{axis}": round(at)}
            row |= {f"{axis}_min": round(at) - n // 2, f"{axis}_max": round(at) - n // 2 + n}
        rows.append(row)
    names = rows[0] if rows else [*table((0, 0, 0))]
    return {n: np.array([r[n] for r in rows]) for n in names}


def score(found, true, peak_above=0.0):
    return compared(found, true, peak_above, ("found", "true"))


def taken(columns, rows):
    return {n: v[rows] for n, v in columns.items()}


MANY = table((10, 20, 20), (10, 40, 20), (30, 20, 20), (50, 60, 61), (51, 80, 10), (70, 5, 90))

places = st.tuples(*[st.integers(0, 9)] * 3, *[st.integers(1, 7)] * 3)
small = st.lists(places, max_size=5, unique_by=lambda b: b[:3])


# ---------------------------------------------------------------- pairs


@given(found=small, true=small)
@settings(max_examples=80, deadline=None)
def test_pairs_are_the_most_that_there_can_be_and_of_those_the_nearest(found, true):
    found, true = table(*found), table(*true)
    f, t = pairs(found, true)
    allowed = set(zip(*candidates(found, true), strict=True))
    allowed &= {(a, b) for b, a in zip(*candidates(true, found), strict=True)}
    assert set(zip(f, t, strict=True)) <= allowed
    assert len(set(f)) == len(set(t)) == len(f)
    n, m = len(found["label"]), len(true["label"])
    ways = [
        list(zip(order, range(m), strict=False))
        for order in itertools.permutations([*range(n), *[-1] * m], m)
    ]
    costs = [
        (-len(way), sum(np.linalg.norm([found[x][a] - true[x][b] for x in AXES]) for a, b in way))
        for way in ([p for p in w if p in allowed] for w in set(map(tuple, ways)))
    ]
    least = min(costs)
    assert len(f) == -least[0]
    total = sum(np.linalg.norm([found[x][a] - true[x][b] for x in AXES]) for a, b in zip(f, t, strict=True))
    assert total == pytest.approx(least[1])


@given(found=small, true=small)
@settings(max_examples=100, deadline=None)
def test_a_peak_lies_in_a_half_open_box(found, true):
    peaks, boxes = table(*found), table(*true)
    expected = {
        (p, b)
        for p in range(len(peaks["label"]))
        for b in range(len(boxes["label"]))
        if all(boxes[f"{a}_min"][b] <= peaks[f"peak_{a}"][p] < boxes[f"{a}_max"][b] for a in AXES)
    }
    assert set(zip(*candidates(peaks, boxes), strict=True)) == expected


# ---------------------------------------------------------------- score


@given(order=st.permutations(range(6)), other=st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_rows_does_not_matter(order, other):
    moved = {n: v + (0.25 if n == "row" else 0) for n, v in MANY.items()}
    assert score(taken(moved, list(order)), taken(MANY, list(other))) == score(moved, MANY)


@given(kept=st.sets(st.integers(0, 5)), invented=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_what_is_left_out_is_missed_and_what_is_invented_is_false(kept, invented):
    far = table(*[(200 + 20 * i, 300, 300) for i in range(invented)])
    chosen = taken(MANY, sorted(kept))
    found = {n: np.concatenate([chosen[n], far[n]]) for n in MANY}
    got = score(found, MANY)
    assert (got.matched, got.missed, got.false) == (len(kept), 6 - len(kept), invented)
    assert (got.merged, got.split, got.true, got.found) == (0, 0, 6, len(kept) + invented)
    assert got.recall == len(kept) / 6


def test_two_blobs_found_as_one_are_one_pair_and_one_merged():
    both = table((10, 20, 20), (10, 28, 20))
    got = score(table((10, 21, 20, 4, 30, 10)), both)
    assert (got.matched, got.merged, got.missed, got.false, got.split) == (1, 1, 0, 0, 0)


def test_a_blob_found_in_two_pieces_is_one_pair_and_one_split():
    pieces = table((10, 18, 20, 4, 8, 6), (10, 25, 20, 4, 6, 6))
    got = score(pieces, table((10, 19, 20, 4, 20, 8)))
    assert (got.matched, got.merged, got.missed, got.false, got.split) == (1, 0, 0, 0, 1)


def test_errors_are_those_of_the_centroids():
    found = {n: v.astype(float) if n in AXES else v for n, v in MANY.items()}
    found = found | {
        "frame": found["frame"] + 0.3,
        "row": found["row"] - 0.4,
        "intensity": 0.5 * MANY["intensity"],
    }
    got = score(found, MANY)
    assert got.centroid_error["frame"].highest == pytest.approx(0.3)
    assert got.centroid_error["row"].median == pytest.approx(0.4)
    assert got.centroid_error["column"].highest == 0
    assert got.centroid_error["distance"].p95 == pytest.approx(0.5)
    assert (got.intensity_ratio, got.voxels_ratio) == (0.5, 1.0)


def test_an_error_of_omega_is_the_short_way_round():
    found, true = table((10, 20, 20)), table((10, 20, 20))
    got = score(found | {"omega": np.array([359.9])}, true | {"omega": np.array([0.2])})
    assert got.centroid_error["omega"].highest == pytest.approx(0.3)


def test_faint_blobs_that_are_not_asked_for_are_neither_missed_nor_false():
    got = score(MANY, MANY, peak_above=30.0)
    assert (got.true, got.matched, got.found, got.false, got.split) == (3, 3, 6, 0, 0)
    got = score(taken(MANY, [0]), MANY, peak_above=30.0)
    assert (got.missed, got.recall) == (2, 1 / 3)
    assert [(c.low, c.true, c.matched) for c in got.by_peak] == [(32, 2, 0), (64, 1, 1)]


@pytest.mark.parametrize(("found", "true"), [((), ()), ((), ((1, 2, 3),)), (((1, 2, 3),), ())])
def test_nothing_found_or_nothing_there_has_a_score_without_errors(found, true):
    got = score(table(*found), table(*true))
    assert (got.matched, got.false, got.missed) == (0, len(found), len(true))
    assert got.recall == (0.0 if true else None)
    assert got.centroid_error["frame"].median is None
    assert "recall" in str(got)


# ---------------------------------------------------------------- tables and the command


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A simulated scan without its truth of every voxel."""
    path = tmp_path_factory.mktemp("evaluate") / "scan.zarr"
    return run.write(simulate.dct(shape=(60, 64, 64), blobs=12, truth=False), path, quiet=True)


def write(path, columns):
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_the_truth_is_found_in_itself_by_its_scan_or_its_table(scan):
    got = evaluate.blobs(scan, scan.with_suffix(".parquet"))
    assert (got.recall, got.false, got.split) == (1.0, 0, 0)
    assert got.centroid_error["omega"].highest == 0


def test_rows_whose_peak_belongs_to_a_brighter_blob_are_no_blobs_of_their_own():
    part = table((10, 20, 22), (60, 90, 90))
    found = {n: np.concatenate([MANY[n], part[n]]) for n in MANY}
    got = score(found | {"absorbed_into": np.array([0] * 6 + [1, 1])}, MANY)
    assert (got.found, got.absorbed, got.matched, got.split, got.false) == (6, 2, 6, 0, 0)


def test_a_blob_over_the_end_of_a_full_turn_is_found_in_its_first_frames():
    found = table((60, 20, 20, 8, 6, 6)) | {"peak_frame": np.array([1]), "frame": np.array([61.25])}
    true = table((1, 20, 20)) | {"frame_min": np.array([0])}
    assert score(found, true).matched == 0
    got = compared(found, true, 0.0, ("found", "true"), period=60)
    assert (got.matched, got.false) == (1, 0)
    assert got.centroid_error["frame"].highest == pytest.approx(0.25)


def test_a_part_is_held_against_the_truth_of_the_part(scan, tmp_path):
    true = read_table(scan)
    start, stop = (10, 20, 5), (50, 60, 64)
    roi = [[a, b] for a, b in zip(start, stop, strict=True)]
    inside = np.logical_and.reduce(
        [(true[f"peak_{n}"] >= a) & (true[f"peak_{n}"] < b) for n, (a, b) in zip(AXES, roi, strict=True)]
    )
    assert 0 < inside.sum() < len(inside)
    # Cut in two steps, as by `background --roi` and then `blobs --roi`.
    steps = [
        {"operation": "background.remove", "inputs": {"frames": {"roi": [[10, 60], [10, 60], [5, 64]]}}},
        {"operation": "blobs.segment", "inputs": {"frames": {"roi": [[0, 40], [10, 50], [0, 59]]}}},
    ]
    store.create_group(tmp_path / "part.zarr", {"tomoscale": {"complete": True, "history": steps}})
    part = {n: v[inside] for n, v in true.items()}
    for axis, a in zip(AXES, start, strict=True):
        for column in (f"peak_{axis}", f"{axis}_min", f"{axis}_max", axis):
            part[column] = part[column] - a
    write(tmp_path / "part.parquet", part)
    for result in ("part.zarr", "part.parquet"):
        got = evaluate.blobs(tmp_path / result, scan)
        assert (got.true, got.recall, got.false) == (inside.sum(), 1.0, 0)
        assert got.centroid_error["distance"].highest < 1e-9


def test_command_prints_what_the_function_returns(scan, capsys):
    assert cli.main(["evaluate", "blobs", str(scan), str(scan)]) == 0
    assert capsys.readouterr().out == f"{evaluate.blobs(scan, scan)}\n"
    assert cli.main(["evaluate", "blobs", str(scan), str(scan), "--json", "--peak-above", "100"]) == 0
    assert json.loads(capsys.readouterr().out) == evaluate.blobs(scan, scan, peak_above=100, as_json=True)


def test_a_table_that_is_none_of_blobs_is_refused(tmp_path, scan):
    with pytest.raises(TomoscaleError, match="expected the table of the blobs"):
        evaluate.blobs(tmp_path / "absent.zarr", scan)
    with pytest.raises(TomoscaleError, match="has no column peak, "):
        evaluate.blobs(write(tmp_path / "s.parquet", {"label": np.arange(3)}), scan)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(TomoscaleError, match="is no Parquet file"):
        evaluate.blobs(tmp_path / "text.parquet", scan)
    with pytest.raises(TomoscaleError, match="peak_above: input should be greater"):
        evaluate.blobs(scan, scan, peak_above=-1)
