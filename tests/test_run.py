"""A run finishes what it began: nothing lost, nothing half-done that looks done, nothing done twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import psutil
import pyarrow
import pytest
from conftest import small_scan, write_array, write_scan

from tomoscale import background, blobs, blocks, cluster, journal, manifest, run, store, worker
from tomoscale import lock as locks
from tomoscale.blocks import Field
from tomoscale.chunks import ChunkFiles
from tomoscale.errors import BlocksFailedError, DamagedError, TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Volume
from tomoscale.result import Result


def fail_at(block, row, bad):
    if row == bad:
        raise RuntimeError("the detector was on fire")
    return block


@operation("copy")
def copy(frames: Volume, *, bad: int = -1):
    """Copy a volume row by row."""
    n, rows, columns = frames.shape
    field = Field(frames.dtype, ((n,), (1,) * rows, (columns,)), (n, 1, columns))
    return blocks.map_blocks(
        fail_at, lambda i: (frames.at((slice(0, n), slice(i[1], i[1] + 1), slice(0, columns))), i[1], bad),
        {"volume": field},
    )  # fmt: skip


@pytest.fixture
def one_thread():
    with cluster.connect("threads", threads=1) as connection:
        yield connection


def test_a_result_is_what_the_blocks_return_with_its_history(scan, tmp_path, one_thread):
    source = write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23))
    out = run.write(copy(source), tmp_path / "out.zarr", connection=one_thread, quiet=True)
    volume = store.open_volume(out)
    np.testing.assert_array_equal(volume.whole(), scan)
    (step,) = volume.history()
    assert step["operation"] == "test_run.copy"
    assert step["inputs"]["frames"]["path"] == str(source / "frames")


def test_any_dask_array_of_whole_chunks_can_be_written(tmp_path):
    array = da.from_array(np.arange(60).reshape(3, 4, 5), chunks=(2, 4, 5))
    out = run.write(array, tmp_path / "out.zarr", quiet=True)
    np.testing.assert_array_equal(store.open_volume(out).whole(), array.compute())


def test_blocks_that_are_not_whole_chunks_are_refused(tmp_path):
    array = da.ones((10, 4), chunks=((3, 5, 2), 4))
    with pytest.raises(TomoscaleError, match="not whole chunks"):
        run.write(array, tmp_path / "out.zarr", quiet=True)


def test_a_failed_block_is_named_and_the_others_are_kept(scan, tmp_path, one_thread):
    out = tmp_path / "out.zarr"
    with pytest.raises(
        BlocksFailedError, match=r"volume\[0:90, 7:8, 0:23\]: RuntimeError: the detector was on fire"
    ):
        run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True, keep_going=True)
    assert not out.exists()
    assert len(journal.Job(out).finished()["volume"]) == scan.shape[1] - 1


def test_other_parameters_do_not_go_on_with_an_unfinished_run(scan, tmp_path, one_thread):
    out = tmp_path / "out.zarr"
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True)
    with pytest.raises(TomoscaleError, match=r"parameters.bad was 7 and is now -1"):
        run.write(copy(scan), out, connection=one_thread, quiet=True)
    run.write(copy(scan), out, connection=one_thread, quiet=True, overwrite=True)
    np.testing.assert_array_equal(store.open_volume(out).whole(), scan)


def test_another_input_does_not_go_on_with_an_unfinished_run(scan, tmp_path, one_thread):
    out = tmp_path / "out.zarr"
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True)
    with pytest.raises(TomoscaleError, match=r"inputs.frames.sample was"):
        run.write(copy(scan + 1, bad=7), out, connection=one_thread, quiet=True)


def test_a_resumed_run_computes_only_what_is_missing_or_damaged(scan, tmp_path, one_thread, monkeypatch):
    out = tmp_path / "out.zarr"
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True, keep_going=True)
    (out.with_name("out.zarr.incomplete") / "volume/c/0/3/0").write_bytes(b"half")
    computed = []

    def compute(graph, keys):
        row = keys[0][2]
        computed.append(row)
        return [scan[:, row : row + 1]]

    monkeypatch.setattr(worker, "compute", compute)
    run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True)
    assert sorted(computed) == [3, 7]
    np.testing.assert_array_equal(store.open_volume(out).whole(), scan)


def test_a_second_run_on_the_same_output_is_refused_by_name(scan, tmp_path, one_thread):
    out = tmp_path / "out.zarr"
    lock = journal.Job(out).lock
    parent = os.getppid()
    owner = {**locks.myself(), "pid": parent, "started": locks.started(parent)}
    lock.write_text(json.dumps(owner))
    result = copy(scan)
    with pytest.raises(TomoscaleError, match=f"another run is writing it: process {parent} on"):
        run.write(result, out, connection=one_thread, quiet=True)
    assert lock.exists()
    lock.write_text(json.dumps({**owner, "started": 1.0}))
    run.write(result, out, connection=one_thread, quiet=True)
    assert not lock.exists()


def test_of_many_runs_that_begin_at_once_one_gets_the_output(tmp_path):
    job = journal.Job(tmp_path / "out.zarr")
    job.lock.write_text(json.dumps({**locks.myself(), "started": 1.0}))

    def begin(_):
        try:
            return job.begin({"operation": "x"}) is not None
        except TomoscaleError:
            return False

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(begin, range(16))) == 1


def test_a_result_that_lacks_an_object_is_not_called_complete(scan, tmp_path, one_thread, monkeypatch):
    plain = journal.Job.finished

    def forgetful(job):
        found = plain(job)
        found.get("volume", {}).pop("c/0/3/0", None)
        return found

    monkeypatch.setattr(journal.Job, "finished", forgetful)
    with pytest.raises(DamagedError, match="1 objects of volume were never recorded"):
        run.write(copy(scan), tmp_path / "out.zarr", connection=one_thread, quiet=True)
    assert not (tmp_path / "out.zarr").exists()


def test_another_dark_beside_the_frames_does_not_go_on_with_an_unfinished_run(scan, tmp_path, monkeypatch):
    dark = np.full(scan.shape[1:], 90, np.uint16)
    source = write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23), dark=dark)
    with monkeypatch.context() as broken:
        broken.setattr(worker, "compute", lambda graph, keys: 1 / 0)
        with pytest.raises(BlocksFailedError):
            run.write(background.remove(source, step=9), tmp_path / "out.zarr", quiet=True)
    write_array(source / "dark", dark + 5)
    with pytest.raises(TomoscaleError, match=r"inputs.dark.sample was"):
        run.write(background.remove(source, step=9), tmp_path / "out.zarr", quiet=True)


def test_an_existing_result_stays_until_the_new_one_is_complete(scan, tmp_path, one_thread):
    out = run.write(copy(scan), tmp_path / "out.zarr", connection=one_thread, quiet=True)
    with pytest.raises(TomoscaleError, match="--overwrite"):
        run.write(copy(scan), out, connection=one_thread, quiet=True)
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan + 1, bad=3), out, connection=one_thread, quiet=True, overwrite=True)
    np.testing.assert_array_equal(store.open_volume(out).whole(), scan)
    run.write(copy(scan + 1), out, connection=one_thread, quiet=True, overwrite=True)
    np.testing.assert_array_equal(store.open_volume(out).whole(), scan + 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("call", range(3))
def test_a_run_killed_while_it_finishes_goes_on(scan, tmp_path, one_thread, monkeypatch, call, overwrite):
    out = tmp_path / "out.zarr"
    if overwrite:
        run.write(copy(scan + 1), out, connection=one_thread, quiet=True)
    plain, calls = os.rename, []

    def rename(*names):
        calls.append(names)
        if len(calls) > call:
            raise KeyboardInterrupt
        plain(*names)

    monkeypatch.setattr(os, "rename", rename)
    with contextlib.suppress(KeyboardInterrupt):
        run.write(copy(scan), out, connection=one_thread, quiet=True, overwrite=overwrite)
    monkeypatch.setattr(os, "rename", plain)
    run.write(copy(scan), out, connection=one_thread, quiet=True, overwrite=True)
    np.testing.assert_array_equal(store.open_volume(out).whole(), scan)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr"]


def test_a_plan_that_does_not_fit_is_refused_with_the_figure(scan, tmp_path):
    big = da.zeros((400, 200, 200), chunks=-1, dtype=np.uint16)
    with cluster.connect("threads", threads=2, memory=200_000_000) as small:
        words = "96 MB need 471 MB per worker, of its 200 MB 70% may be used; try"
        with pytest.raises(TomoscaleError, match=words):
            run.write(big, tmp_path / "out.zarr", connection=small, quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("missing/out.zarr", "does not exist"),
        ("scan.zarr", "input"),
        ("scan.zarr/out.zarr", "in, on or around"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(scan, tmp_path, target, words, one_thread):
    source = write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23))
    with pytest.raises(TomoscaleError, match=words):
        run.write(copy(source), tmp_path / target, connection=one_thread, quiet=True)


def test_a_dry_run_prints_the_plan_and_writes_nothing(scan, tmp_path, one_thread, capsys):
    run.write(copy(scan), tmp_path / "out.zarr", connection=one_thread, dry_run=True)
    printed = capsys.readouterr().err
    for words in ("20 blocks of 90 x 1 x 23", "memory", "20 submitted", "before compression", "free"):
        assert words in printed
    assert not list(tmp_path.iterdir())


def test_an_unfinished_result_is_not_opened_by_mistake(scan, tmp_path, one_thread):
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan, bad=7), tmp_path / "out.zarr", connection=one_thread, quiet=True)
    with pytest.raises(TomoscaleError, match="not finished"):
        store.open_volume(tmp_path / "out.zarr")
    with pytest.raises(TomoscaleError, match="not finished"):
        store.open_volume(tmp_path / "out.zarr.incomplete")
    store.open_volume(tmp_path / "out.zarr.incomplete", allow_incomplete=True)


def test_a_small_result_that_was_damaged_meanwhile_is_computed_again(tmp_path, monkeypatch):
    scan = write_scan(tmp_path / "scan.zarr", small_scan(), (16, 4, 23))
    cleaned = background.remove(scan, margin=2, half_window=8, step=4)
    undisturbed = store.open_volume(run.write(cleaned, tmp_path / "a.zarr", quiet=True)).whole()
    with monkeypatch.context() as patched:
        patched.setattr(ChunkFiles, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
        patched.setattr("time.sleep", lambda s: None)
        with pytest.raises(BlocksFailedError):
            run.write(cleaned, tmp_path / "b.zarr", quiet=True)
    (kept,) = (tmp_path / "b.zarr.incomplete/.tomoscale").glob("once-*.npy")
    raw = bytearray(kept.read_bytes())
    raw[-20] ^= 4
    kept.write_bytes(raw)
    again = store.open_volume(run.write(cleaned, tmp_path / "b.zarr", quiet=True)).whole()
    np.testing.assert_array_equal(again, undisturbed)


@pytest.mark.parametrize(
    "rubbish",
    [
        "5", "[]", '"x"', '{"host": 1, "pid": "abc"}', "\udcff", '{"host": "x", "pid": Infinity, "started": 1}',
        json.dumps({**locks.myself(), "pid": -1}),
    ],
)  # fmt: skip
def test_rubbish_in_a_lock_is_nobody(tmp_path, rubbish):
    (tmp_path / ".out.zarr.lock").write_text(rubbish, errors="surrogateescape")
    run.write({"a": np.arange(3)}, tmp_path / "out.zarr", quiet=True)


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("victim"), os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_refused_and_nothing_is_written_through_it(tmp_path, make):
    (tmp_path / "victim").write_text("raw data")
    make(tmp_path / ".out.zarr.lock")
    with pytest.raises(TomoscaleError, match="no regular file"):
        run.write({"a": np.arange(3)}, tmp_path / "out.zarr", quiet=True)
    assert (tmp_path / "victim").read_text() == "raw data"


def test_a_clock_that_is_set_does_not_make_a_run_look_dead(monkeypatch):
    owner = locks.myself()
    boot_time = psutil.boot_time()
    for name in ("psutil", f"psutil._ps{'linux' if psutil.LINUX else 'osx'}"):
        monkeypatch.setattr(f"{name}.boot_time", lambda: boot_time + 3600)
    assert locks.is_alive(owner)
    assert not locks.is_alive({**owner, "boot": "another start of the machine"})


def test_what_got_the_name_of_the_output_meanwhile_is_not_replaced(scan, tmp_path, one_thread, monkeypatch):
    out = tmp_path / "out.zarr"
    plain = worker.compute

    def compute(graph, keys):
        out.mkdir(exist_ok=True)
        (out / "raw.tif").write_bytes(b"raw")
        return plain(graph, keys)

    monkeypatch.setattr(worker, "compute", compute)
    for overwrite, words in ((False, "exists; give --overwrite"), (True, "is no Zarr, and is not replaced")):
        with pytest.raises(TomoscaleError, match=words):
            run.write(copy(scan), out, connection=one_thread, quiet=True, overwrite=overwrite)
        assert (out / "raw.tif").read_bytes() == b"raw"
    shutil.rmtree(out)
    monkeypatch.setattr(worker, "compute", lambda graph, keys: 1 / 0)  # nothing is computed again
    run.write(copy(scan), out, connection=one_thread, quiet=True)
    np.testing.assert_array_equal(store.open_volume(out).whole(), scan)


def test_the_record_of_an_infinite_parameter_is_json_for_strict_readers(scan, tmp_path):
    def refuse(word):
        raise ValueError(word)

    frames = scan.astype(np.float32)
    out = run.write(
        blobs.segment(frames, seed_threshold=1e6, c_min=1.0, c_max=np.inf), tmp_path / "out.zarr", quiet=True
    )
    document = json.loads((out / "zarr.json").read_text(), parse_constant=refuse)
    (step,) = document["attributes"]["tomoscale"]["history"]
    assert step["parameters"]["c_max"] == "inf"
    again = blobs.segment(frames, **step["parameters"])  # as a repair does
    assert Result.of(again).made_by()["parameters"] == step["parameters"]


def test_a_result_with_a_table_has_a_name_for_it(tmp_path):
    table = pyarrow.table({"label": [1]})
    for name in ("out.parquet", "out"):
        with pytest.raises(TomoscaleError, match="give an output that ends in"):
            run.write({"a": np.arange(3), "table": table}, tmp_path / name, quiet=True)
    with pytest.raises(TomoscaleError, match="unfinished results are called so"):
        run.write({"a": np.arange(3)}, tmp_path / "out.zarr.incomplete", quiet=True)
    assert not list(tmp_path.iterdir())


def test_what_is_stored_already_counts_when_a_run_goes_on(tmp_path, scan, one_thread, monkeypatch):
    out = tmp_path / "out.zarr"
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True, keep_going=True)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, scan.nbytes // 8)
    )
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True)
    with pytest.raises(TomoscaleError, match="even compressed"):
        run.write(copy(scan), tmp_path / "new.zarr", connection=one_thread, quiet=True)


def test_a_damaged_line_that_names_another_object_does_not_get_into_the_manifest(
    tmp_path, scan, one_thread, monkeypatch
):
    out = tmp_path / "out.zarr"
    with pytest.raises(BlocksFailedError):
        run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True, keep_going=True)
    (lines,) = journal.Job(out).folder.glob("blocks-*.jsonl")
    lines.write_text(lines.read_text().replace("c/0/3/0", "c/0/3/8"))
    monkeypatch.setattr(worker, "compute", lambda graph, keys: [scan[:, keys[0][2] : keys[0][2] + 1]])
    run.write(copy(scan, bad=7), out, connection=one_thread, quiet=True)
    assert len(manifest.read(out / "volume")) == scan.shape[1] + 1


def test_only_results_of_tomoscale_are_replaced(tmp_path):
    foreign = write_array(tmp_path / "raw.zarr", np.ones((4, 5, 6), np.uint16), (2, 5, 6))
    link = tmp_path / "link.zarr"
    link.symlink_to(run.write({"a": np.arange(3)}, tmp_path / "out.zarr", quiet=True))
    (tmp_path / "other.zarr.incomplete").mkdir()
    (tmp_path / "other.zarr.incomplete/a.tif").write_bytes(b"raw")
    refused = {
        foreign: "not made by tomoscale",
        link: "is a link",
        tmp_path / "other.zarr": "not an unfinished run",
    }
    for target, words in refused.items():
        with pytest.raises(TomoscaleError, match=words):
            run.write({"a": np.arange(3)}, target, overwrite=True, quiet=True)
    assert (store.open_volume(foreign).whole() == 1).all()
    assert (tmp_path / "other.zarr.incomplete/a.tif").exists()


SCRIPT = """
from tomoscale import cluster, run, simulate
with cluster.connect("local", workers=1) as workers:
    run.write(simulate.spheres(shape=(8, 8, 8)), "out.zarr", connection=workers, quiet=True)
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("script.py", "write what starts them under `if __name__"), ("-", "keep it in a file")],
)
def test_a_script_that_local_workers_cannot_import_is_refused_and_leaves_nothing(tmp_path, name, expected):
    (tmp_path / "script.py").write_text(SCRIPT)
    with open(tmp_path / "script.py") as text:
        done = subprocess.run(
            [sys.executable, name], stdin=text, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert done.returncode != 0
    assert expected in done.stderr.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["script.py"]
