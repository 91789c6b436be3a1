"""Levels are means of full resolution, whatever the blocks; the result that they join is complete all the time."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import small_scan, write_array, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import blocks, kernels, manifest, otsu, pyramid, record, run, simulate, store
from tomoscale.cli import main
from tomoscale.errors import DamagedError, InterruptedRunError, TomoscaleError
from tomoscale.kernels import reference
from tomoscale.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "scan.zarr"
    return run.write(simulate.dct(shape=(40, 45, 47), blobs=2, seed=1), path, quiet=True)


@pytest.fixture
def scan(made, tmp_path):
    shutil.copytree(made, tmp_path / "scan.zarr")
    shutil.copy(made.with_suffix(".parquet"), tmp_path)
    return tmp_path / "scan.zarr"


def voxels(path):
    return store.open_volume(path).whole()


def command(*words):
    return main([*map(str, words), "--scheduler", "threads", "--quiet"])


def objects(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


# ---------------------------------------------------------------- what a level is


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from(["uint8", "int16", "float16", "float32"]),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
def test_a_level_is_the_mean_of_all_that_is_there_rounded_once(shape, dtype, step, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 250, shape).astype(dtype)
    if values.dtype.kind == "f":
        values[rng.random(shape) < 0.5] = np.nan
    for level, found in enumerate(kernels.coarse_means(values, [(step, 2, 2)] * 3), 1):
        expected = reference.coarse_means(values, (step**level, 2**level, 2**level))
        np.testing.assert_array_equal(found, expected, strict=True)


def test_means_of_integers_are_exact_and_round_to_even():
    values = np.array([[[1, 2, 2, 3, -1, -2, 2**31 - 1, 2**31 - 1]]], np.int32)
    np.testing.assert_array_equal(kernels.coarse_means(values, [(2, 2, 2)])[0], [[[2, 2, -2, 2**31 - 1]]])


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.integers(0, 99))
def test_a_coarse_label_is_the_most_frequent_of_those_below(shape, seed):
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint16)
    first, second = kernels.coarse_labels(labels, [(2, 2, 2)] * 2)
    np.testing.assert_array_equal(first, reference.coarse_labels(labels, (2, 2, 2)), strict=True)
    np.testing.assert_array_equal(second, reference.coarse_labels(first, (2, 2, 2)), strict=True)


@pytest.mark.parametrize("kind", ["scan", "volume"])
@pytest.mark.parametrize("chunks", [(37, 41, 50), (5, 7, 50), (8, 8, 8)])
def test_levels_do_not_depend_on_chunks_blocks_or_memory(tmp_path, monkeypatch, chunks, kind):
    monkeypatch.setattr(pyramid, "UNIT", {"scan": (4, 32, 32), "volume": (16, 16, 16)})
    monkeypatch.setattr(pyramid, "STORED", {"scan": (4, 8, 8), "volume": (8, 8, 8)})
    monkeypatch.setattr(pyramid, "COARSEST", 2)
    values = np.random.default_rng(0).integers(0, 60000, (37, 41, 50)).astype(np.uint16)
    source = write_array(tmp_path / "a.zarr", values, chunks)
    with blocks.planned_for(10**8, 8):
        lazy = pyramid.levels(source, side=7, kind=kind)
    assert all(a.npartitions > 1 for a in lazy.values())
    out = run.write(lazy, tmp_path / "o.zarr", quiet=True)
    for name, factor in (("2", 2), ("4", 4), ("8", 8)):
        expected = reference.coarse_means(values, (1 if kind == "scan" else factor, factor, factor))
        np.testing.assert_array_equal(voxels(out / f"a.zarr-{name}"), expected, strict=True)


def test_a_plan_has_one_task_per_block_and_reads_every_voxel_once():
    plan = run.plan(pyramid.levels(store.ArrayVolume(np.broadcast_to(np.uint8(0), (1024, 1024, 1024)))))
    assert plan.read == 1024**3
    assert plan.n_blocks <= 4**3
    assert plan.n_graph_tasks == 3 * plan.n_blocks  # one, and one for each of two levels


# ---------------------------------------------------------------- as part of a result


def test_the_command_adds_levels_that_viewers_find_and_all_else_stays(scan, capsys):
    before = {p: p.read_bytes() for p in objects(scan)}
    assert command("pyramid", scan, "--side", 12) == 0
    assert capsys.readouterr().out == f"{scan}\n"
    same = {p for p, raw in before.items() if p.read_bytes() == raw}
    assert {p.relative_to(scan).as_posix() for p in {*before} - same} == {".manifest.jsonl", "zarr.json"}
    frames, group = voxels(scan / "frames"), zarr.open_group(scan, mode="r")
    (image,) = group.attrs["ome"]["multiscales"]
    assert [d["path"] for d in image["datasets"]] == ["frames", "frames-2", "frames-4"]
    assert image["type"] == "mean"
    first = image["datasets"][0]["coordinateTransformations"][0]["scale"]
    for dataset, factor in zip(image["datasets"], (1, 2, 4), strict=True):
        expected = reference.coarse_means(frames, (1, factor, factor))
        np.testing.assert_array_equal(group[dataset["path"]][:], expected, strict=True)
        assert group[dataset["path"]].metadata.dimension_names == ("omega", "y", "x")
        moves = {t["type"]: t[t["type"]] for t in dataset["coordinateTransformations"]}
        assert moves["scale"] == [first[0], factor, factor]
        assert moves.get("translation", [0, 0, 0]) == [0, (factor - 1) / 2, (factor - 1) / 2]
    assert "intact" in verify(scan)
    step = store.open_volume(scan / "frames-4").history()[-1]
    assert (step["operation"], step["arrays"]) == ("pyramid.levels", ["frames-2", "frames-4"])
    assert [s["operation"] for s in store.open_volume(scan).history()] == ["simulate.dct"]
    assert not [p for p in scan.parent.iterdir() if p.name not in ("scan.zarr", "scan.parquet")]


def test_labels_beside_an_image_become_an_image_with_labels(scan):
    assert command("pyramid", scan / "truth/labels", "--side", 24) == 0
    labels = voxels(scan / "truth/labels")
    assert labels.any()
    np.testing.assert_array_equal(
        voxels(scan / "truth/labels-2"), reference.coarse_labels(labels, (1, 2, 2)), strict=True
    )
    frames, image = record.images_of(scan)
    assert [len(i["datasets"]) for i in (frames, image)] == [1, 2]
    assert (image["axes"], image["type"]) == (frames["axes"], "mode")


def test_other_levels_replace_those_of_before_only_if_asked(scan, capsys):
    assert command("pyramid", scan, "--side", 5) == 0
    assert command("pyramid", scan, "--side", 24) == 2
    assert "has frames-2 already; give --overwrite" in capsys.readouterr().err
    assert command("pyramid", scan, "--side", 24, "--overwrite") == 0
    assert sorted(p.name for p in scan.glob("frames*")) == ["frames", "frames-2"]
    assert [len(i["datasets"]) for i in record.images_of(scan)] == [2]
    assert len(record.record_of(scan)["history"]) == 2
    assert "intact" in verify(scan)


def test_another_output_gets_the_levels_alone_where_they_lie_in_the_whole(scan, tmp_path):
    out = tmp_path / "small.zarr"
    assert command("pyramid", scan, "--side", 12, "-o", out, "--roi", "2:9,3:21,:") == 0
    assert not list(scan.glob("frames-*"))
    expected = reference.coarse_means(voxels(scan)[2:9, 3:21], (1, 2, 2))
    np.testing.assert_array_equal(voxels(out), expected, strict=True)
    datasets = record.images_of(out)[0]["datasets"]
    assert [d["path"] for d in datasets] == ["frames-2", "frames-4"]
    scale, shift = (t[t["type"]] for t in datasets[0]["coordinateTransformations"])
    assert shift == [2 * scale[0], 3.5, 0.5]
    assert [s["operation"] for s in store.open_volume(out).history()] == ["simulate.dct", "pyramid.levels"]


class KilledError(BaseException):
    """In the place of a kill."""


def steps_of_finishing(monkeypatch, stop_at):
    """Stop before the n-th change of a name or a folder; return how many there were."""
    count = 0

    def counted(function):
        def call(*args, **options):
            nonlocal count
            count += 1
            if count == stop_at:
                raise KilledError
            return function(*args, **options)

        return call

    monkeypatch.setattr(os, "rename", counted(os.rename))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    monkeypatch.setattr(manifest, "write", counted(manifest.write))
    monkeypatch.setattr(manifest, "write_object", counted(manifest.write_object))
    monkeypatch.setattr(manifest, "_settle", counted(manifest._settle))
    return lambda: count


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_step_the_result_is_complete_and_the_same_command_goes_on(
    scan, tmp_path, monkeypatch, overwrite
):
    def write(path, side=12):
        run.write(pyramid.levels(path, side=side), path, overwrite=overwrite, quiet=True)

    if overwrite:
        write(scan, side=4)
    with monkeypatch.context() as patched:
        copied = shutil.copytree(scan, tmp_path / "whole.zarr")
        shutil.copy(scan.with_suffix(".parquet"), tmp_path / "whole.parquet")
        steps = steps_of_finishing(patched, 0)
        write(copied)
        n_steps = steps()
    expected = {n: voxels(copied / n) for n in ("frames", "frames-2", "frames-4")}
    assert n_steps > 8
    for stop_at in range(1, n_steps + 1):
        path = shutil.copytree(scan, tmp_path / f"k{stop_at}.zarr")
        shutil.copy(scan.with_suffix(".parquet"), path.with_suffix(".parquet"))
        with monkeypatch.context() as patched:
            steps_of_finishing(patched, stop_at)
            with pytest.raises(KilledError):
                write(path)
        assert "intact" in verify(path, quiet=True)
        np.testing.assert_array_equal(voxels(path), expected["frames"])
        shown = [d["path"] for d in record.images_of(path)[0]["datasets"]]
        assert all(voxels(path / name).size for name in shown)
        if shown != ["frames", "frames-2", "frames-4"]:
            write(path)
        for name, array in expected.items():
            np.testing.assert_array_equal(voxels(path / name), array)
        assert "intact" in verify(path, quiet=True)
        assert sorted(p.name for p in path.glob("frames*")) == ["frames", "frames-2", "frames-4"]
        shutil.rmtree(path)


def killed(*_args, **_options):
    raise KilledError


def test_levels_that_a_killed_run_moved_are_taken_away_by_one_that_makes_others(scan, monkeypatch):
    made = pyramid.levels(scan, side=12)
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write_object", killed)
        with pytest.raises(KilledError):
            run.write(made, scan, quiet=True)
    assert (scan / "frames-4").exists()
    (scan / ".zarr.json.1.2.partial").write_text("{")
    run.write(pyramid.levels(scan, side=24), scan, overwrite=True, quiet=True)
    assert sorted(p.name for p in scan.glob("frames*")) == ["frames", "frames-2"]
    assert not list(scan.glob("*.partial"))
    assert "intact" in verify(scan, quiet=True)


def test_levels_can_be_replaced_after_a_run_was_killed_while_it_removed_its_record(scan, monkeypatch):
    removed = shutil.rmtree

    def killed_halfway(path, **options):
        if (Path(path) / ".tomoscale").exists():
            removed(Path(path) / ".tomoscale")
            raise KilledError
        removed(path, **options)

    made = pyramid.levels(scan, side=12)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed_halfway)
        with pytest.raises(KilledError):
            run.write(made, scan, quiet=True)
    run.write(made, scan, overwrite=True, quiet=True)
    assert "intact" in verify(scan, quiet=True)
    assert not [p for p in scan.parent.iterdir() if p.suffix in (".incomplete", ".replaced")]


def test_a_repair_that_is_not_possible_takes_no_levels_away(scan):
    out = run.write(otsu.scale(scan), scan.with_name("o.zarr"), quiet=True)
    run.write(pyramid.levels(out, side=12), out, quiet=True)
    name = record.record_of(out)["arrays"][0]
    (out / name / "c/0/0/0").write_bytes(b"x")
    shutil.rmtree(scan)
    before = objects(out)
    with pytest.raises(TomoscaleError):
        verify(out, repair=True, quiet=True)
    assert objects(out) == before


def test_damage_to_levels_is_found_and_repaired_also_with_damage_to_the_rest(scan):
    assert command("pyramid", scan, "--side", 12) == 0
    before = {n: voxels(scan / n) for n in record.record_of(scan)["arrays"]}
    for victims in (["frames-2/c/0/0/0"], ["frames-4/zarr.json", "frames/c/0/0/0"]):
        for victim in victims:
            (scan / victim).write_bytes(b"x")
        with pytest.raises(DamagedError) as error:
            verify(scan)
        assert all(victim in str(error.value) for victim in victims)
        assert "intact" in verify(scan, repair=True)
        for name, array in before.items():
            np.testing.assert_array_equal(voxels(scan / name), array)


def test_levels_that_join_while_a_result_is_verified_are_no_damage(scan, monkeypatch):
    verifying = sys.modules["tomoscale.verify"]
    compare = verifying._compare

    def joined_before(path, real, listed, **options):
        if listed[1].key == "zarr.json" and listed[0] == "" and not (scan / "frames-2").exists():
            assert command("pyramid", scan, "--side", 12) == 0
        return compare(path, real, listed, **options)

    monkeypatch.setattr(verifying, "_compare", joined_before)
    assert "intact" in verify(scan)
    assert (scan / "frames-2").exists()
    (scan / "zarr.json").write_bytes((scan / "zarr.json").read_bytes() + b" ")
    with pytest.raises(DamagedError, match=r"1 of .* objects are damaged: zarr.json"):
        verify(scan)


def test_a_repair_that_is_stopped_makes_the_levels_again_when_it_goes_on(scan, monkeypatch):
    assert command("pyramid", scan, "--side", 12) == 0
    before = {n: voxels(scan / n) for n in record.record_of(scan)["arrays"]}
    (scan / "frames/c/0/0/0").write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(run, "write", stopped)
        with pytest.raises(InterruptedRunError):
            verify(scan, repair=True)
    assert not scan.exists()
    assert "intact" in verify(scan, repair=True)
    assert record.record_of(scan)["arrays"] == list(before)
    for name, array in before.items():
        np.testing.assert_array_equal(voxels(scan / name), array)


def stopped(*_, **__):
    raise InterruptedRunError("stopped")


def test_damaged_metadata_are_not_taken_for_good_when_levels_are_added(scan):
    text = (scan / "zarr.json").read_text()
    (scan / "zarr.json").write_text(text.replace('"seed": 1', '"seed": 7'))
    with pytest.raises(DamagedError, match="metadata have changed"):
        run.write(pyramid.levels(scan, side=12), scan, quiet=True)
    (scan / "zarr.json").write_text(text)
    run.write(pyramid.levels(scan, side=12), scan, quiet=True)
    assert "intact" in verify(scan)


def test_what_a_result_is_made_of_is_not_its_levels(scan):
    assert command("pyramid", scan, "--side", 12) == 0
    out = run.write(otsu.scale(scan), scan.with_name("o.zarr"), quiet=True)
    assert [s["operation"] for s in store.open_volume(out).history()] == ["simulate.dct", "otsu.scale"]
    assert record.added_steps(record.record_of(out)["history"]) == []


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_added_is_refused_and_nothing_changes(scan, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "mine.zarr", small_scan(), (16, 4, 23))
    write_array(tmp_path / "wide.zarr", np.zeros((4, 4, 400), np.int64))
    (scan / "frames-4").mkdir()
    (scan / "frames-4/notes.txt").write_text("my own")
    before = objects(tmp_path)
    for line, expected in (
        ("scan.zarr", "no axis of space of (40, 45, 47) is longer than 256; give a smaller --side"),
        ("scan.zarr --side 0", "greater than or equal to 1"),
        ("scan.zarr --side 12", "frames-4: is in the way"),
        ("scan.zarr --side 12 --roi :,:,3:30", "a part of it"),
        ("scan.zarr --side 12 --rule median", "rule"),
        ("scan.zarr/truth/background --rule labels --side 9", "labels of float32; expected integers"),
        ("scan.zarr/dark --side 9 --kind slices", "kind"),
        ("scan.zarr/omega", "expected (z, y, x)"),
        ("mine.zarr --side 12", "not made by tomoscale"),
        ("mine.zarr --side 12 -o mine.zarr", "lies in, on or around the input"),
        ("wide.zarr -o o.zarr", "no means of int64"),
        ("nothing.zarr", "does not exist"),
    ):
        assert command("pyramid", *line.split()) == 2, line
        assert expected in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, _mode: Path(path) != scan)
        assert command("pyramid", "scan.zarr", "--side", 30) == 2
        assert "scan.zarr: is not writable" in capsys.readouterr().err
    assert objects(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "shape", "factors"),
    [
        ("scan", (9, 1, 9), (1, 1, 4)),
        ("scan", (9, 9, 1), (1, 4, 1)),
        ("volume", (1, 9, 9), (1, 4, 4)),
        ("volume", (9, 1, 9), (4, 1, 4)),
        ("volume", (9, 1, 1), (4, 1, 1)),
    ],
)
def test_an_axis_of_one_pixel_stays_one_pixel(kind, shape, factors):
    volume = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    coarsest = pyramid.levels(volume, side=4, kind=kind)["volume-4"]
    np.testing.assert_array_equal(coarsest.compute(), reference.coarse_means(volume, factors), strict=True)


def test_a_block_beyond_the_memory_is_refused_with_its_cost():
    with blocks.planned_for(1_000_000, 1), pytest.raises(TomoscaleError, match="the smallest block of a"):
        pyramid.levels(np.zeros((300, 300, 300), np.uint8), side=2)


def test_a_tampered_record_of_levels_is_no_traceback(scan, capsys):
    assert command("pyramid", scan, "--side", 12) == 0
    document = json.loads((scan / "zarr.json").read_text())
    document["attributes"]["tomoscale"]["history"][-1]["arrays"] = ["../scan.parquet"]
    (scan / "zarr.json").write_text(json.dumps(document))
    for word in ("info", "pyramid"):
        assert main([word, str(scan)]) == 2
        assert "record is damaged: the history" in capsys.readouterr().err
    with pytest.raises(TomoscaleError, match="record of how it was made"):
        verify(scan, repair=True)
    assert scan.with_suffix(".parquet").exists()
