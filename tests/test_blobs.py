"""Blobs are what the definition says, whatever the chunks, the workers and the interruptions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import dask
import numpy as np
import oracle_blobs
import pyarrow.parquet
import pytest
from conftest import write_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tomoscale import (
    background,
    blobs,
    blocks,
    bricks,
    cluster,
    evaluate,
    growth,
    noise,
    pictures,
    report,
    run,
    simulate,
    store,
    verify,
)
from tomoscale import labels as labels_module
from tomoscale import table as blob_table
from tomoscale.errors import DamagedError, InterruptedRunError, TomoscaleError
from tomoscale.parts import StoredParts
from tomoscale.volume import ArrayVolume, StoredVolume

EXACT = (
    "label", "peak", "peak_frame", "peak_row", "peak_column", "voxels", "frame_min", "frame_max", "row_min", "row_max",
    "column_min", "column_max", "intensity", "seed_voxels", "absorbed_into",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Cut(ArrayVolume):
    """An array that is read in chunks of this shape."""

    edges: tuple[int, int, int] = (1, 1, 1)

    @property
    def chunks(self):
        return self.edges


@pytest.fixture(autouse=True)
def one_chunk_per_block(monkeypatch):
    monkeypatch.setattr(bricks, "MOST_VOXELS", 0)


def computed(frames, **options):
    found = blobs.segment(frames, **options)
    return dask.compute(found.labels, found.table, scheduler="sync")


def crowd(shape=(24, 26, 30), seed=0, dtype="float32"):
    """Return frames full of touching blobs in whole counts, with ties and blobs at faces, edges and corners."""
    rng = np.random.default_rng(seed)
    sources = np.zeros(shape)
    sources[tuple(rng.integers(0, n, 60) for n in shape)] = rng.integers(50, 400, 60)
    frames = 20 * ndimage.gaussian_filter(sources, (1.6, 1.2, 1.2), mode="constant")
    frames += rng.normal(0, 1, shape)
    frames[tuple(rng.integers(0, n, 12) for n in shape)] = 90  # single voxels, all of one value
    frames[-1, -1, -1] = frames[0, 0, 0] = frames[0, -1, 0] = 150
    frames[10, 5, :] = np.maximum(frames[10, 5, :], 31)  # a thread through all blocks of a row
    return np.rint(frames).astype(dtype)


OPTIONS = {"seed_threshold": 30, "c_min": 4, "tau": 0.15, "min_size": (1, 2, 1)}
CHUNKS = [(24, 26, 30), (5, 7, 8), (8, 8, 8), (1, 26, 30), (24, 3, 11), (7, 26, 4), (2, 5, 3), (23, 25, 29)]


def assert_defined(labels, table, frames, **options):
    """Hold labels and table against every blob grown in the whole volume."""
    expected, rows, rejected = oracle_blobs.segment(frames, **options)
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint32
    got = table.to_pylist()
    assert [{n: r[n] for n in EXACT} for r in got] == [{n: r[n] for n in EXACT} for r in rows]
    for name in rows[0] if rows else ():
        np.testing.assert_allclose(table[name].to_numpy(), [r[name] for r in rows], rtol=1e-9, atol=1e-9)
    assert list(found_of(table)["rejected"].values()) == list(rejected.values())


def found_of(table):
    return json.loads(table.schema.metadata[b"tomoscale"])["blobs"]


# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("overlaps", ["keep", "claim"])
@pytest.mark.parametrize("range", ["literal", "clip"])
def test_blobs_are_those_of_the_definition(range, overlaps, connectivity, wrap):
    frames = crowd(seed=connectivity)
    options = {**OPTIONS, "range": range, "overlaps": overlaps, "connectivity": connectivity, "wrap": wrap}
    labels, table = computed(Cut(frames, (5, 7, 8)), **options)
    assert len(table) > 10
    assert_defined(labels, table, frames, **options)


@st.composite
def volumes(draw):
    """Small volumes of few values: everything touches, ties everywhere, in blocks of any shape."""
    shape = draw(st.tuples(*[st.integers(1, 8)] * 3))
    levels = draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(["float32", "float64", "uint16"]))  # others: test_kernels_blobs
    frames = rng.integers(0, levels + 1, shape).astype(dtype)
    if frames.dtype.kind == "f":
        frames[rng.random(shape) < draw(st.sampled_from([0, 0.1]))] = np.nan
    edges = draw(st.tuples(*[st.integers(1, n) for n in shape]))
    c_min = draw(st.integers(1, levels))
    seed = draw(st.integers(c_min, levels + 1))
    range = draw(st.sampled_from(["literal", "clip"]))
    options = {
        "seed_threshold": seed,
        "c_min": c_min,
        "c_max": draw(st.sampled_from([np.inf, float(seed), float(levels)])),
        "tau": draw(st.sampled_from([0.1, 0.5, 0.8, 1.0])),
        "range": range,
        "min_seed_voxels": draw(st.integers(1, 3)),
        "connectivity": draw(st.sampled_from([6, 26])),
        "overlaps": draw(st.sampled_from(["keep", "claim"])),
        "wrap": draw(st.booleans()),
        "min_size": draw(st.tuples(*[st.integers(1, 2)] * 3)),
        "max_size": draw(st.none() | st.tuples(*[st.integers(2, 8)] * 3)),
        "exclude": draw(st.just(()) | st.just((((0, 1), (0, shape[2])),))),
    }
    options["c_max"] = max(options["c_max"], float(seed))
    return frames, edges, options


@settings(max_examples=120, deadline=None)
@given(volumes())
def test_blobs_of_any_volume_in_any_blocks_are_those_of_the_definition(case):
    frames, edges, options = case
    bricks.MOST_VOXELS = 0
    labels, table = computed(Cut(frames, edges), **options)
    assert_defined(labels, table, frames, **options)


def test_one_blob_over_all_blocks_keeps_one_label():
    frames = np.full((9, 10, 11), 5.0, np.float32)
    frames[4, 5, 6] = 80
    labels, table = computed(Cut(frames, (2, 3, 4)), seed_threshold=50, c_min=5, tau=0.01)
    assert (labels == 1).all()
    (row,) = table.to_pylist()
    assert (row["voxels"], row["intensity"], row["touches_border"]) == (990, 989 * 5 + 80, True)


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize(
    "corner", [(4, 4, 4), (4, 4, 0), (4, 0, 4), (0, 4, 4), (4, 0, 0), (0, 4, 0), (0, 0, 4)]
)
def test_voxels_that_meet_at_a_face_edge_or_corner_of_blocks_are_joined_as_neighbours_are(
    corner, connectivity
):
    frames = np.zeros((8, 8, 8), np.float32)
    frames[tuple(max(0, c - 1) for c in corner)] = 60
    frames[corner] = 50
    _, table = computed(Cut(frames, (4, 4, 4)), seed_threshold=40, c_min=10, connectivity=connectivity)
    steps = sum(c > 0 for c in corner)
    assert len(table) == (1 if steps == 1 or connectivity == 26 else 2)


def test_a_blob_across_the_seam_ends_beyond_the_last_frame_and_its_angle_goes_on(tmp_path):
    frames = np.zeros((10, 8, 8), np.float32)
    frames[[8, 9, 0], 3:6, 3:6] = [[[20]], [[100]], [[60]]]
    source = write_scan(tmp_path / "scan.zarr", frames, (3, 8, 8), omega=np.arange(10) * 36.0)
    _, table = computed(source, seed_threshold=50, c_min=5, wrap=True)
    (row,) = table.to_pylist()
    assert (row["frame_min"], row["frame_max"], row["touches_border"]) == (8, 11, False)
    centroid = (8 * 20 + 9 * 100 + 10 * 60) / 180
    assert row["frame"] == pytest.approx(centroid)
    assert row["omega"] == pytest.approx(36 * centroid)
    _, apart = computed(source, seed_threshold=50, c_min=5)
    assert sorted(zip(apart["frame_min"].to_pylist(), apart["frame_max"].to_pylist(), strict=True)) == [
        (0, 1),
        (8, 10),
    ]


def test_nan_are_below_every_threshold():
    frames = np.full((4, 6, 6), np.nan, np.float32)
    frames[1:3, 2:4, 2:4] = 40
    frames[1, 2, 2] = np.nan
    _, table = computed(frames, seed_threshold=30, c_min=5)
    assert table["voxels"].to_pylist() == [7]


def test_the_direct_beam_is_left_out():
    frames = crowd()
    beam = ((8, 18), (9, 20))
    frames[:, 8:18, 9:20] = 1000
    labels, table = computed(Cut(frames, (5, 7, 8)), **OPTIONS, exclude=(beam,))
    assert not labels[:, 8:18, 9:20].any()
    assert_defined(labels, table, frames, **OPTIONS, exclude=(beam,))


def test_excluded_pixels_are_counted_in_whole_frames_also_for_a_part():
    frames = crowd()
    frames[:, 8:18, 9:20] = 1000
    part = store.crop(Cut(frames, (5, 7, 8)), [(2, 24), (10, 26), (3, 30)])
    part = store.crop(part, [(0, 22), (1, 16), (1, 27)])
    options = {**OPTIONS, "exclude": (((8, 18), (9, 20)), ((0, 5), (0, 30)))}
    assert_defined(*computed(part, **options), frames[2:, 11:, 4:], **OPTIONS, exclude=(((0, 7), (5, 16)),))
    with pytest.raises(TomoscaleError, match="exclude 5:27 lies outside frames of 26 x 30"):
        blobs.segment(part, **OPTIONS, exclude=(((5, 27), (0, 9)),))


# ---------------------------------------------------------------- the same for every chunking


@pytest.mark.parametrize("overlaps", ["keep", "claim"])
def test_labels_and_table_do_not_depend_on_the_chunks(overlaps):
    rng = np.random.default_rng(5)
    frames = crowd() + rng.random((24, 26, 30), np.float32)  # sums of fractions depend on their order
    first = None
    for edges in CHUNKS:
        labels, table = computed(Cut(frames, edges), **OPTIONS, overlaps=overlaps, wrap=True, connectivity=26)
        first = first or (labels, table)
        np.testing.assert_array_equal(labels, first[0])
        assert table.equals(first[1], check_metadata=True)


@pytest.mark.parametrize(
    "workers", [("threads", 1), ("threads", 2), ("threads", 4), ("local", 2), ("local", 4)]
)
def test_labels_and_table_do_not_depend_on_the_workers(tmp_path, workers):
    frames = crowd(seed=2)
    source = write_scan(tmp_path / "scan.zarr", frames, (5, 7, 8), omega=np.linspace(0, 180, 24))
    scheduler, count = workers
    with cluster.connect(scheduler, workers=count, memory=2_000_000_000) as connection:
        out = run.write(
            blobs.segment(source, **OPTIONS), tmp_path / "out.zarr", connection=connection, quiet=True
        )
    labels, table = computed(frames, **OPTIONS)
    np.testing.assert_array_equal(store.open_volume(out / "labels").whole(), labels)
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert written.drop_columns("omega").equals(table.drop_columns("omega"))
    np.testing.assert_allclose(written["omega"].to_numpy(), 180 / 23 * table["frame"].to_numpy())
    np.testing.assert_array_equal(store.open_volume(out / "omega").whole(), np.linspace(0, 180, 24))
    attributes = json.loads((out / "zarr.json").read_text())["attributes"]["tomoscale"]
    assert attributes["found"]["blobs"] == found_of(table)
    assert not list(out.rglob("*.part"))


# ---------------------------------------------------------------- more blobs than uint32 counts


@pytest.fixture
def few_numbers(monkeypatch):
    """As if labels of 32 bits counted to 9: more seeds than that fit the scan."""
    monkeypatch.setattr(labels_module, "LARGEST_UINT32", 9)


@pytest.mark.parametrize("edges", CHUNKS[:4])
def test_labels_have_64_bits_where_more_blobs_fit_than_32_bits_count(few_numbers, edges):
    frames = crowd()
    labels, table = computed(Cut(frames, edges), **OPTIONS, overlaps="claim")
    expected, rows, _ = oracle_blobs.segment(frames, **OPTIONS, overlaps="claim")
    assert len(rows) > 9
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint64
    assert table["label"].to_pylist() == list(range(1, len(rows) + 1))
    assert {str(table.schema.field(n).type) for n in ("label", "absorbed_into")} == {"uint64"}


def test_a_plan_counts_eight_bytes_for_a_label_of_64_bits(monkeypatch):
    frames = np.zeros((64, 64, 64), np.float32)
    narrow = run.plan(blobs.segment(frames, seed_threshold=50, c_min=5))
    monkeypatch.setattr(labels_module, "LARGEST_UINT32", 9)
    wide = run.plan(blobs.segment(frames, seed_threshold=50, c_min=5))
    assert (narrow.written, wide.written) == (4 * 64**3, 8 * 64**3)
    (painted,), (as_before,) = wide.passes, narrow.passes
    assert painted.cost.block == 2 * as_before.cost.block
    small = blobs.segment(frames[:2, :2, :4], seed_threshold=50, c_min=5)
    assert small.labels.dtype == np.uint32  # 16 voxels hold no more than nine seeds


def test_labels_of_64_bits_go_on_after_a_stop_and_are_verified_repaired_and_shown(
    few_numbers, tmp_path, monkeypatch
):
    source = write_scan(tmp_path / "scan.zarr", crowd(), (12, 13, 15))
    out = tmp_path / "out.zarr"
    plain, calls = growth.paint_labels, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise InterruptedRunError("SIGTERM: stopped")
        return plain(*arguments)

    stopped.__name__ = plain.__name__
    with cluster.connect("threads", threads=1) as one:
        monkeypatch.setattr(growth, "paint_labels", stopped)
        with pytest.raises((InterruptedRunError, TomoscaleError)):
            run.write(blobs.segment(source, **OPTIONS), out, connection=one, quiet=True)
        monkeypatch.setattr(growth, "paint_labels", plain)
        run.write(blobs.segment(source, **OPTIONS), out, connection=one, quiet=True)
    labels, table = computed(crowd(), **OPTIONS)
    chunks = sorted(p for p in (out / "labels/c").rglob("*") if p.is_file())
    chunks[3].write_bytes(b"not a chunk")
    with pytest.raises(DamagedError, match=r"1 of .* objects are damaged"):
        verify.verify(out)
    assert "1 of them made again" in verify.verify(out, repair=True)
    stored = store.open_volume(out / "labels")
    assert stored.dtype == np.uint64
    np.testing.assert_array_equal(stored.whole(), labels)
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").equals(table)
    score = evaluate.blobs(out, out)
    assert (score.false, score.matched) == (0, score.found)
    monkeypatch.setattr(pictures, "png", lambda *_, **__: b"")
    assert f"{score.found}</" in report.make(out, quiet=True).read_text("utf-8")


# ---------------------------------------------------------------- interrupted


PASSES = ["find_components", "join_components", "grow_blobs", "number_blobs", "paint_labels"]


@pytest.mark.parametrize("name", PASSES)
def test_a_run_stopped_in_any_pass_goes_on_without_repeating_what_is_finished(tmp_path, monkeypatch, name):
    source = write_scan(tmp_path / "scan.zarr", crowd(), (12, 13, 15))
    calls = dict.fromkeys(PASSES, 0)
    stop_at = {"at": 1 if name.startswith(("join", "number")) else 4}

    def counted(n, plain):
        def call(*arguments):
            calls[n] += 1
            if n == name and calls[n] == stop_at["at"]:
                raise InterruptedRunError("SIGTERM: stopped")
            return plain(*arguments)

        call.__name__ = n
        return call

    for n in PASSES:
        home = blob_table if n == "number_blobs" else growth
        monkeypatch.setattr(home, n, counted(n, getattr(home, n)))
    monkeypatch.setattr(blobs, "prepare", lambda *_: None)
    with cluster.connect("threads", threads=1) as one:
        with pytest.raises((InterruptedRunError, TomoscaleError)):
            run.write(blobs.segment(source, **OPTIONS), tmp_path / "out.zarr", connection=one, quiet=True)
        stop_at["at"] = -1
        out = run.write(blobs.segment(source, **OPTIONS), tmp_path / "out.zarr", connection=one, quiet=True)
    expected = {"join_components": 1, "number_blobs": 1}
    assert {n: c for n, c in calls.items() if n != name} == {
        n: expected.get(n, 8) for n in PASSES if n != name
    }
    assert calls[name] <= expected.get(name, 8) + 1
    labels, table = computed(crowd(), **OPTIONS)
    np.testing.assert_array_equal(store.open_volume(out / "labels").whole(), labels)
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").equals(table)


SLOW = """
import sys, time
from tomoscale import bricks, cli, growth, blobs, table
bricks.MOST_VOXELS = 0
def slow(plain):
    def call(*arguments):
        time.sleep(0.1)
        return plain(*arguments)
    call.__name__ = plain.__name__
    return call
blobs.prepare = lambda *_: None
for name in ('find_components', 'join_components', 'grow_blobs', 'number_blobs', 'paint_labels'):
    home = table if name == 'number_blobs' else growth
    setattr(home, name, slow(getattr(home, name)))
if __name__ == '__main__':
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_killed_again_and_again_equals_an_undisturbed_one(tmp_path):
    write_scan(tmp_path / "scan.zarr", crowd(), (12, 13, 15))
    (tmp_path / "slow.py").write_text(SLOW)
    options = "blobs scan.zarr -o out.zarr --seed-threshold 30 --c-min 4 --tau 0.15 --min-size 1,2,1"
    command = [
        sys.executable,
        "slow.py",
        *options.split(),
        "--scheduler",
        "threads",
        "--threads",
        "1",
        "--quiet",
    ]
    incomplete = tmp_path / "out.zarr.incomplete"

    def progress():
        try:
            return sorted(
                (p.name, p.stat().st_size) for p in incomplete.glob(".tomoscale/*") if "partial" not in p.name
            )
        except FileNotFoundError:  # removed since it was listed
            return progress()

    n_kills = 0
    while not (tmp_path / "out.zarr").exists() and n_kills < 12:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        before, deadline = progress(), time.monotonic() + 60
        while len(progress()) < len(before) + 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        n_kills += 1
    assert n_kills > 3
    last = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert last.returncode == 0 or "exists" in last.stderr, last.stderr
    labels, table = computed(crowd(), **OPTIONS)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "out.zarr" / "labels").whole(), labels)
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").equals(table)


def test_any_changed_byte_of_a_part_is_noticed(tmp_path):
    parts = StoredParts(tmp_path, "find", 1)
    arrays = {
        "values": np.arange(50.0),
        "none": np.empty((0, 3), np.int32),
        "one": np.array(7),
        "is": np.array([True]),
    }
    assert not parts[0].is_intact()
    parts.write(0, arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(parts[0][name], array, strict=True)
    with pytest.raises(KeyError):
        parts[0]["other"]
    sound = parts.path(0).read_bytes()
    for damaged in (
        *(sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :] for i in range(0, len(sound), 9)),
        sound[:-1],
        b"",
    ):
        parts.path(0).write_bytes(damaged)
        assert not parts[0].is_intact()
    with pytest.raises(DamagedError, match=r"find-0.part: .* run the same command again"):
        parts[0]["values"]


def test_a_part_that_was_damaged_while_the_run_stood_still_is_made_again(tmp_path, monkeypatch):
    source = write_scan(tmp_path / "scan.zarr", crowd(), (12, 13, 15))
    plain = growth.paint_labels

    def stopped(*_):
        raise InterruptedRunError("SIGTERM: stopped")

    stopped.__name__ = plain.__name__
    with cluster.connect("threads", threads=1) as one:
        monkeypatch.setattr(growth, "paint_labels", stopped)
        monkeypatch.setattr(blobs, "prepare", lambda *_: None)
        with pytest.raises((InterruptedRunError, TomoscaleError)):
            run.write(blobs.segment(source, **OPTIONS), tmp_path / "out.zarr", connection=one, quiet=True)
        monkeypatch.setattr(growth, "paint_labels", plain)
        parts = sorted(tmp_path.glob("out.zarr.incomplete/.tomoscale/*.part"))
        assert len(parts) == 2 * 8 + 2
        for part in parts[::3]:
            raw = bytearray(part.read_bytes())
            raw[len(raw) // 3] ^= 4
            part.write_bytes(raw)
        out = run.write(blobs.segment(source, **OPTIONS), tmp_path / "out.zarr", connection=one, quiet=True)
    labels, table = computed(crowd(), **OPTIONS)
    np.testing.assert_array_equal(store.open_volume(out / "labels").whole(), labels)
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").equals(table)


def test_damaged_labels_and_tables_are_found_and_made_again(tmp_path):
    source = write_scan(tmp_path / "scan.zarr", crowd(), (12, 13, 15))
    out = run.write(blobs.segment(source, **OPTIONS), tmp_path / "out.zarr", quiet=True)
    chunks = sorted(p for p in (out / "labels/c").rglob("*") if p.is_file())
    table = tmp_path / "out.parquet"
    sound = {p: p.read_bytes() for p in (*chunks, table)}
    for hit in ([chunks[0], chunks[-1]], [table], [chunks[3], table]):
        for path in hit:
            raw = bytearray(sound[path])
            raw[len(raw) // 2] ^= 16
            path.write_bytes(raw)
        with pytest.raises(DamagedError, match=f"{len(hit)} of .* objects are damaged: .*{hit[0].name}"):
            verify.verify(out)
        assert f"{len(hit)} of them made again" in verify.verify(out, repair=True)
        assert {p: p.read_bytes() for p in sound} == sound


# ---------------------------------------------------------------- plan


def test_tasks_are_linear_in_blocks_and_memory_is_that_of_the_plan(monkeypatch):
    monkeypatch.undo()

    @dataclass(frozen=True, repr=False)
    class Scan(ArrayVolume):
        """A scan that nobody reads."""

        @property
        def shape(self):
            return (7200, 2048, 2048)

        @property
        def chunks(self):
            return (64, 8, 2048)

        def at(self, window):
            return blocks.Piece(self, window)

        def identity(self):
            return {}

    scan = Scan(np.zeros((1, 1, 1), np.float32))
    with blocks.planned_for(1_600_000_000, 16):
        plan = run.plan(blobs.segment(scan, seed_threshold=50, c_min=7))
    n = next(iter(plan.passes)).n_blocks
    assert 100 < n < 1000
    assert plan.n_blocks == 3 * n + 2
    assert plan.n_graph_tasks == 3 * n + 6
    assert plan.block_bytes < 1_600_000_000
    with blocks.planned_for(1_600_000_000, 16):
        relative = run.plan(blobs.segment(scan, seed_threshold="8 sigma", c_min="4 sigma"))
    assert relative.n_blocks == plan.n_blocks
    assert relative.n_graph_tasks <= plan.n_graph_tasks + 2048 // noise.EDGE + 5
    assert relative.block_bytes < 1_600_000_000
    edges = [c[0] for c in plan.passes[0].arrays["labels"].chunks]
    assert max(edges[:2]) >= 64
    with blocks.planned_for(20_000_000, 16), pytest.raises(TomoscaleError, match=r"smallest block .* costs"):
        blobs.segment(scan, seed_threshold=50, c_min=7)


# ---------------------------------------------------------------- noise


def uneven(shape=(70, 40, 50), seed=0):
    """Return noise of 2 counts on the left, rising to 20 on the right, and what it is at every pixel."""
    sigma = np.broadcast_to(np.linspace(2, 20, shape[2]), shape[1:])
    return (np.random.default_rng(seed).normal(0, 1, shape) * sigma).astype(np.float32), sigma


def test_the_noise_is_that_around_a_pixel_and_does_not_depend_on_the_chunks():
    frames, sigma = uneven()
    frames[:, 5, 6], frames[20:40, 30:33, 10:13] = 1e4, np.nan
    found = noise.local(ArrayVolume(frames), (((0, 8), (40, 50)),)).compute()
    for edges in CHUNKS:
        np.testing.assert_array_equal(noise.local(Cut(frames, edges), (((0, 8), (40, 50)),)).compute(), found)
    frames[:, :8, 40:] = 1e6
    np.testing.assert_array_equal(noise.local(ArrayVolume(frames), (((0, 8), (40, 50)),)).compute(), found)
    pixels = noise.of_pixels(found, (slice(0, 70), slice(8, 40), slice(0, 50)))
    assert (pixels > 0.9 * sigma[8:]).all()
    assert (pixels < 1.1 * (sigma[8:] + 16 * 18 / 50)).all()


def test_thresholds_in_sigma_are_multiples_of_the_noise_around_each_pixel():
    frames, _ = uneven()
    frames[30:34, 10:14, 3:7] += 60  # far above the noise there ...
    frames[30:34, 10:14, 42:46] += 60  # ... and within that here
    noisy = noise.of_pixels(
        noise.local(ArrayVolume(frames)).compute(), (slice(0, 70), slice(0, 40), slice(0, 50))
    )
    for c_min, c_max, range in (
        ("4 sigma", "inf", "literal"),
        ("15", "30 sigma", "clip"),
        ("3 sigma", "12 sigma", "clip"),
    ):
        low, high = (noise.threshold("", level).at(noisy) for level in (c_min, c_max))
        options = {"tau": 0.3, "range": range}
        labels, table = computed(
            Cut(frames, (16, 7, 11)), seed_threshold="8 sigma", c_min=c_min, c_max=c_max, **options
        )
        assert [(r["peak_column"] // 8, r["row_min"]) for r in table.to_pylist()] == [(0, 10)]
        expected, rows, _ = oracle_blobs.segment(frames, 8 * noisy, low, c_max=high, **options)
        np.testing.assert_array_equal(labels, expected)
        assert table["voxels"].to_pylist() == [r["voxels"] for r in rows]
    thresholds = found_of(table)["thresholds"]
    assert thresholds["seed_threshold"] == 8 * thresholds["sigma"] == 8 * np.median(noisy[::8, ::8])
    assert thresholds["sigma_range"] == [noisy.min(), noisy.max()]


def test_a_scan_without_noise_has_no_multiples_of_it():
    with pytest.raises(TomoscaleError, match=r"the noise is 0 everywhere.*give counts"):
        computed(np.zeros((5, 20, 20), np.float32), seed_threshold="8 sigma", c_min="4 sigma")


# ---------------------------------------------------------------- against the truth


@pytest.mark.slow
@pytest.mark.parametrize("centre", ["direct", "blocked"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_blob_above_twice_the_seed_threshold_is_found_and_no_other(tmp_path, monkeypatch, centre, seed):
    """At 8 times the noise, also in the glow and, where it is not blocked, in the beam itself."""
    monkeypatch.undo()
    scan = tmp_path / "scan.zarr"
    run.write(simulate.dct(shape=(240, 144, 144), seed=seed, centre=centre, blobs=150), scan, quiet=True)
    cleaned = background.remove(scan, margin=8, half_window=60, step=20)
    run.write(cleaned, tmp_path / "cleaned.zarr", quiet=True)
    found = blobs.segment(tmp_path / "cleaned.zarr", seed_threshold="8 sigma", c_min="4 sigma")
    labels, table = dask.compute(found.labels, found.table)
    tiles = noise.local(store.open_volume(tmp_path / "cleaned.zarr")).compute()
    sigma = noise.of_pixels(tiles, tuple(slice(0, n) for n in labels.shape))
    truth, signal = (store.open_volume(scan / f"truth/{n}").whole() for n in ("labels", "signal"))
    peaks = ndimage.maximum_position(signal, truth, np.arange(1, truth.max() + 1))
    bright = [top for top in peaks if signal[top] > 16 * sigma[top[1:]]]
    assert len(bright) > 50
    assert [top for top in bright if not labels[top]] == []
    near = ndimage.maximum_filter(signal, 3)
    assert [r for r in table.to_pylist() if near[r["peak_frame"], r["peak_row"], r["peak_column"]] < 1] == []


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"c_min": 60}, "c_min=60 exceeds seed_threshold=50"),
        ({"c_min": 8, "c_max": 5}, "c_min=8 exceeds c_max=5"),
        ({"c_min": 0}, "c_min=0; it must be positive"),
        ({"c_min": -3}, "c_min=-3; it must be positive"),
        ({"c_max": 40}, r"c_max=40 is below seed_threshold=50: with range='literal'"),
        ({"tau": 0}, "tau: input should be greater than 0"),
        ({"tau": 1.5}, "tau: input should be less than or equal to 1"),
        ({"min_size": (1, 9, 1), "max_size": (9, 3, 9)}, "min_size 9 exceeds max_size 3 along the rows"),
        ({"connectivity": 18}, "connectivity: input should be 6 or 26"),
        ({"seed_threshold": "bright"}, "seed_threshold='bright'; expected counts"),
        ({"seed_threshold": "3 sigma", "c_min": "4 sigma"}, "c_min=4 sigma exceeds seed_threshold=3 sigma"),
        ({"seed_threshold": "-8 sigma"}, "exceeds seed_threshold=-8 sigma"),
        ({"seed_threshold": float("nan")}, "expected counts"),
        ({"exclude": (((0, 30), (0, 5)),)}, "exclude 0:30 lies outside frames of 20 x 20"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_are_refused_at_once(options, words):
    with pytest.raises(TomoscaleError, match=words):
        blobs.segment(np.zeros((5, 20, 20), np.float32), **{"seed_threshold": 50, "c_min": 5, **options})


def test_images_and_complex_or_wide_frames_are_refused():
    for frames, words in (
        (np.zeros((5, 5)), "expected .frame, row, column"),
        (np.zeros((5, 5, 5), np.int64), "integers of up to 32 bits"),
    ):
        with pytest.raises(TomoscaleError, match=words):
            blobs.segment(frames, seed_threshold=50, c_min=5)


def test_large_blobs_that_begin_in_one_block_of_a_small_scan_are_gathered(monkeypatch):
    monkeypatch.undo()
    frames = np.zeros((216, 240, 240), np.float32)
    for column in (10, 30, 50):
        frames[:, :, column : column + 4] = column
    with blocks.planned_for(2**30, 2):
        found = blobs.segment(frames, seed_threshold=8, c_min=2)
    assert found.labels.npartitions > 1
    labels, table = dask.compute(found.labels, found.table, scheduler="sync")
    assert table["voxels"].to_pylist() == [216 * 240 * 4] * 3
    np.testing.assert_array_equal(labels, np.select([frames == c for c in (50, 30, 10)], (1, 2, 3)))


@pytest.mark.parametrize("edges", [(64, 64, 64), (32, 32, 64)])
def test_a_c_min_that_percolates_is_an_error_that_says_what_to_raise(edges):
    frames = np.random.default_rng(0).normal(0, 1, (64, 64, 64)).astype(np.float32)
    frames = np.concatenate([frames, frames + 0.001], axis=2)
    with pytest.raises(TomoscaleError, match="raise c_min"):
        computed(Cut(frames, edges), seed_threshold=4, c_min=0.2)


def test_nothing_found_is_a_result_with_an_empty_table(tmp_path):
    frames = np.zeros((5, 20, 20), np.float32)
    out = run.write(blobs.segment(frames, seed_threshold=50, c_min=5), tmp_path / "out.zarr", quiet=True)
    assert not store.open_volume(out / "labels").whole().any()
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert len(table) == 0
    assert {"label", "omega", "absorbed_into"} <= set(table.column_names)


def test_rejected_seeds_are_counted_and_the_brightest_listed():
    frames = np.zeros((30, 20, 20), np.float32)
    frames[:, 3, 4] = 500  # a hot pixel through all frames
    frames[10:13, 10:13, 10:13] = 80
    frames[20, 15, 15] = 60
    _, table = computed(
        Cut(frames, (7, 9, 9)), seed_threshold=50, c_min=5, min_size=(1, 3, 3), min_seed_voxels=2
    )
    found = found_of(table)
    assert found["count"] == len(table) == 1
    assert {k: v for k, v in found["rejected"].items() if v} == {"too few seed voxels": 1, "too small": 1}
    hot = next(r for r in found["brightest_rejected"] if r["reason"] == "too small")
    assert (hot["position"], hot["box"]) == ([0, 3, 4], [[0, 30], [3, 4], [4, 5]])


# ---------------------------------------------------------------- the command


def test_the_command_writes_what_the_function_returns(tmp_path):
    from tomoscale import cli

    source = write_scan(tmp_path / "scan.zarr", crowd(), (5, 7, 8))
    options = [
        "--seed-threshold",
        "30",
        "--c-min",
        "4",
        "--tau",
        "0.15",
        "--min-size",
        "1,2,1",
        "--scheduler",
        "threads",
    ]
    assert cli.main(["blobs", str(source), *options, "--quiet"]) == 0
    labels, table = computed(crowd(), **OPTIONS)
    np.testing.assert_array_equal(store.open_volume(tmp_path / "scan-blobs.zarr/labels").whole(), labels)
    assert pyarrow.parquet.read_table(tmp_path / "scan-blobs.parquet").equals(table)


def test_the_command_takes_multiples_of_the_noise_and_rectangles(tmp_path, capsys):
    from tomoscale import cli

    frames = np.random.default_rng(1).normal(0, 3, (20, 40, 40)).astype(np.float32)
    frames[8:11, 30:34, 30:34] += 100
    source = write_scan(tmp_path / "scan.zarr", frames, (10, 20, 40))
    options = [
        "--seed-threshold",
        "8 sigma",
        "--c-min",
        "4sigma",
        "--exclude",
        "0:10,0:10",
        "--scheduler",
        "threads",
    ]
    assert cli.main(["blobs", str(source), *options, "--quiet"]) == 0
    assert len(pyarrow.parquet.read_table(tmp_path / "scan-blobs.parquet")) == 1
    assert cli.main(["blobs", str(source), "--seed-threshold", "30", "--c-min", "50"]) == 2
    assert "c_min=50 exceeds seed_threshold=30" in capsys.readouterr().err


def test_only_what_was_asked_for_is_read(tmp_path, monkeypatch):
    """Making the plan reads samples of the input, never all of it."""
    monkeypatch.undo()
    source = write_scan(tmp_path / "scan.zarr", crowd((24, 26, 30)), (4, 26, 30))
    read = []
    plain = StoredVolume.read
    monkeypatch.setattr(StoredVolume, "read", lambda v, w: read.append(w) or plain(v, w))
    blobs.segment(store.open_volume(source), **OPTIONS)
    assert len(read) <= 8
