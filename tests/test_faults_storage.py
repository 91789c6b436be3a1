"""Faults of disks and files: full, read-only, flaky, taken by another run, cut off."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from conftest import small_scan, write_scan
from drill import COMMANDS, Drill, end_all
from test_faults import OPERATIONS, assert_equal, assert_result, undisturbed

from tomoscale import (
    background,
    chunks,
    cli,
    cluster,
    columns,
    convert,
    journal,
    lock,
    objects,
    run,
    schedule,
    store,
    worker,
)
from tomoscale.chunks import ChunkFiles
from tomoscale.errors import BlocksFailedError, TomoscaleError
from tomoscale.result import Result


@pytest.fixture
def mounted(tmp_path):
    """Mount a small file system."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        if os.geteuid() != 0 or not shutil.which("mount"):
            pytest.skip("only root can mount a small file system")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.fixture
def drill(tmp_path, frames):
    """Make drills, and leave none of their processes behind."""
    made = []

    def make(*arguments, **orders):
        made.append(Drill(tmp_path, *arguments, **{"pause": 0, **orders}))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            end_all(one.process.pid)


def assert_refused(done, *words):
    """Status 2, one line, no traceback."""
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    for word in words:
        assert re.search(word, last), done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- full


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_cannot_hold_the_result_is_refused_beforehand(drill, mounted, operation):
    """Row 7: with bytes needed and free; nothing is computed, nothing written."""
    folder = mounted("size=200k")
    one = drill(operation, folder / "out.zarr")
    done = one.run(scheduler="threads")
    assert_refused(done, r"(2.3 MB|983 kB) are to be written and 20\d kB are free", "free some space")
    assert not one.logged("begun")
    assert not list(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "size", "scheduler"), [("background", "650k", "local"), ("convert", "400k", "threads")]
)
def test_a_run_on_a_disk_that_fills_up_goes_on_when_there_is_room(
    drill, mounted, frames, operation, size, scheduler
):
    """Row 7: a named error, nothing half-written that counts, and only what is missing is done again."""
    folder = mounted(f"size={size}")
    one = drill(operation, folder / "out.zarr")
    done = one.run(scheduler=scheduler)
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "No space left on device" in last
    assert "free some space" in last
    assert "same command" in last
    assert not one.target.exists()
    recorded = one.n_recorded()
    assert recorded > 0
    remount(folder, "size=20m")
    one.log.unlink()
    assert one.run(scheduler=scheduler).returncode == 0
    assert len(one.logged("begun")) == (24 if operation == "background" else 20) - recorded
    assert_result(one, frames)


@pytest.mark.slow
def test_a_full_spill_folder_of_dask_is_a_named_error(drill, mounted, frames):
    """Row 7: workers that cannot start say why."""
    folder = mounted("size=64k")
    (folder / "ballast").write_bytes(bytes(64 * 1024))
    one = drill("convert")
    done = one.run(DASK_TEMPORARY_DIRECTORY=str(folder))
    if done.returncode == 0:  # nothing is ever spilled
        assert_result(one, frames)
        return
    assert done.returncode == 3, done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert one.run().returncode == 0


def test_a_line_that_does_not_fit_the_disk_does_not_tear_the_next(tmp_path, monkeypatch):
    """Row 7: of a record that was cut short nothing stays."""
    job = journal.Job(tmp_path / "out.zarr")
    job.begin({"operation": "x"})
    stored = {"frames": [objects.Stored("c/0", 1, 2)]}
    job.append("first", stored)
    plain = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: plain(descriptor, line[: len(line) // 2]))
    with pytest.raises(OSError, match="No space left"):
        job.append("second", stored)
    monkeypatch.setattr(os, "write", plain)
    job.append("third", {"frames": [objects.Stored("c/1", 1, 2)]})
    assert set(job.finished()["frames"]) == {"c/0", "c/1"}
    (file,) = job.folder.glob("blocks-*.jsonl")
    assert [json.loads(line)["block"] for line in file.read_text().splitlines()] == ["first", "third"]


# ---------------------------------------------------------------- flaky


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(schedule.time, "sleep", lambda s: found.append(s) if s else None)  # others yield
    return found


def flaky(plain, n_failures):
    """Fail so many times for every object, as storage that comes and goes."""
    failures = {}

    def function(*arguments, **named):
        key = str(arguments[:2])
        failures[key] = failures.get(key, 0) + 1
        if failures[key] <= n_failures:
            raise OSError(errno.EIO, "Input/output error", "scan.zarr/frames")
        return plain(*arguments, **named)

    return function


@pytest.mark.parametrize("which", ["read", "write"])
def test_storage_that_fails_for_a_moment_is_tried_again(tmp_path, frames, monkeypatch, pauses, which):
    """Row 6: after half a second, then after a second."""
    result = background.remove(tmp_path / "scan.zarr", half_window=12, step=6)
    expected = result.frames.compute()
    with monkeypatch.context() as patched, cluster.connect("threads", threads=1) as workers:
        patched.setattr(chunks.ChunkFiles, which, flaky(getattr(chunks.ChunkFiles, which), 2))
        out = run.write(result, tmp_path / "out.zarr", connection=workers, quiet=True)
    assert pauses[:2] == [0.5, 1.0]
    np.testing.assert_array_equal(store.open_volume(out / "frames").whole(), expected)


def test_storage_that_fails_for_longer_is_an_error_that_names_the_block(
    tmp_path, frames, monkeypatch, pauses
):
    """Row 6, then as row 5."""
    result = background.remove(tmp_path / "scan.zarr", half_window=12, step=6)
    monkeypatch.setattr(chunks.ChunkFiles, "read", flaky(chunks.ChunkFiles.read, 10**6))
    with (
        cluster.connect("threads", threads=1) as workers,
        pytest.raises(
            BlocksFailedError, match=r"of .*scan.zarr/frames: .*frames\[0:160, .*Input/output error"
        ),
    ):
        run.write(result, tmp_path / "out.zarr", connection=workers, quiet=True)
    assert pauses[:2] == [0.5, 1.0]


# ---------------------------------------------------------------- not writable, damaged


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(drill, mounted, operation):
    """Row 16."""
    one = drill(operation, mounted("size=8m") / "out.zarr")
    remount(one.target.parent, "ro")
    assert_refused(one.run(scheduler="threads"), f"the folder {one.target.parent} is not writable")
    one = drill(operation, one.folder / "missing" / "out.zarr")
    assert_refused(one.run(scheduler="threads"), "missing does not exist; create it first")
    assert not one.logged("begun")


@pytest.mark.parametrize("damage", ["truncated", "gone"])
@pytest.mark.parametrize("file", ["zarr.json", "frames/zarr.json"])
def test_damaged_metadata_of_a_result_are_named(tmp_path, frames, capsys, damage, file):
    """Row 13."""
    arguments = ["background", str(tmp_path / "scan.zarr"), "--scheduler", "threads", "--quiet"]
    assert cli.main([*arguments, "--step", "40"]) == 0
    out = tmp_path / "scan-background.zarr"
    if damage == "gone":
        (out / file).unlink()
    else:
        os.truncate(out / file, 20)
    capsys.readouterr()
    for command in (
        ["verify", str(out)],
        ["background", str(out), "--scheduler", "threads"],
        ["info", str(out)],
    ):
        status = cli.main(command)
        printed = capsys.readouterr()
        if (command[0], damage, file) == ("info", "gone", "frames/zarr.json"):  # shows what else is there
            assert "complete, but it lacks frames;" in printed.out
            continue
        assert status in (2, 3), (command, printed)
        (error,) = [line for line in printed.err.splitlines() if line.startswith("tomoscale: ")]
        assert str(out) in error


@pytest.fixture
def unfinished(tmp_path, frames, monkeypatch):
    """Leave an unfinished result, in this process, and return its command."""

    def make(operation):
        def fail(graph, keys):
            if sum(keys[0][1:]) == 2:
                raise RuntimeError("the detector was on fire")
            return compute(graph, keys)

        compute = worker.compute
        command = [*COMMANDS[operation].format(out=tmp_path / "out.zarr").split(), "--scheduler", "threads"]
        command[1] = str(tmp_path / "scan.zarr")
        with monkeypatch.context() as patched:
            patched.setattr(columns, "_multiples", lambda size, edge: [edge])
            patched.setattr(convert, "BAND_BYTES", 1)
            patched.setattr(worker, "compute", fail)
            assert cli.main(command) == 3
        return command

    return make


@pytest.mark.parametrize("damage", ["truncated", "gone"])
@pytest.mark.parametrize("file", ["zarr.json", "frames/zarr.json", ".tomoscale/job.json"])
def test_an_unfinished_result_with_damaged_metadata_goes_on_or_says_why_not(
    unfinished, tmp_path, frames, capsys, damage, file
):
    """Row 13: what the run knows it writes again; without its record it does not guess."""
    command = unfinished("background")
    path = tmp_path / "out.zarr.incomplete" / file
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, 20)
    if file.endswith("job.json"):
        assert cli.main(command) == 2
        assert re.search(f"{path}.*--overwrite", capsys.readouterr().err.splitlines()[-1])
        command.append("--overwrite")
    assert cli.main(command) == 0
    assert_equal(tmp_path / "out.zarr", undisturbed("background", frames))


# ---------------------------------------------------------------- two runs, other parameters


@pytest.mark.slow
def test_of_two_runs_at_the_same_time_the_second_is_refused(drill, frames):
    """Row 14: it names host and process of the first, which goes on."""
    first = drill("background", pause=0.2)
    process = first.start()
    first.wait(lambda: first.n_recorded() >= 1)
    done = drill("background").run(scheduler="threads")
    assert_refused(done, f"another run is writing it: process {process.pid} on {socket.gethostname()}")
    assert first.end(process).returncode == 0
    assert_result(first, frames)


def test_the_lock_of_another_host_is_taken_over_when_it_is_stale(tmp_path):
    """Row 14."""
    job = journal.Job(tmp_path / "out.zarr")
    owner = {**lock.myself(), "host": "elsewhere", "pid": 1}
    job.lock.write_text(json.dumps(owner))
    with pytest.raises(TomoscaleError, match="process 1 on elsewhere"):
        job.begin({"operation": "x"})
    os.utime(job.lock, times=(time.time() - lock.STALE_AFTER_S - 5,) * 2)
    job.begin({"operation": "x"})
    assert json.loads(job.lock.read_text())["pid"] == os.getpid()


def test_a_run_shows_that_it_is_alive_whatever_it_does(tmp_path, monkeypatch):
    """Row 14: while kernels are compiled, blocks computed, the result finished."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    job = journal.Job(tmp_path / "out.zarr")
    job.begin({"operation": "x"})
    os.utime(job.lock, times=(1, 1))
    with lock.beating(job.lock):
        deadline = time.monotonic() + 10
        while job.lock.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert job.lock.stat().st_mtime > 2
    job.release()
    assert not job.lock.exists()


def test_a_run_whose_output_was_taken_over_stops(tmp_path, frames):
    """Row 14: one that stood still for long, on another host."""
    out = tmp_path / "out.zarr"
    result = background.remove(tmp_path / "scan.zarr", half_window=12, step=6)
    stolen = {**lock.myself(), "host": "elsewhere"}

    def steal(*arguments):
        journal.Job(out).lock.write_text(json.dumps(stolen))
        raise_at.append(arguments)
        return plain(*arguments)

    raise_at, plain = [], worker.compute
    with pytest.MonkeyPatch.context() as patched, cluster.connect("threads", threads=1) as workers:
        patched.setattr(worker, "compute", steal)
        with pytest.raises(TomoscaleError, match=r"process \d+ on elsewhere writes the output now"):
            run.write(result, out, connection=workers, quiet=True)
    assert raise_at
    assert json.loads(journal.Job(out).lock.read_text())["host"] == "elsewhere"


@pytest.mark.parametrize(
    ("operation", "more", "words"),
    [
        ("background", ["--ranking", "exact"], "parameters.ranking was 'fixed' and is now 'exact'"),
        ("convert", ["--roi", "0:80,0:48,0:64"], r"(roi|inputs|arrays).* was .* and is now"),
    ],
)
def test_other_parameters_or_another_input_do_not_go_on(unfinished, tmp_path, capsys, operation, more, words):
    """Row 15: the difference is shown; `--overwrite` begins again."""
    command = unfinished(operation)
    changed = small_scan(160, rows=48, columns=64, seed=1)
    for last, expected in ((command + more, words), (command, r"inputs\..* was .* and is now")):
        capsys.readouterr()
        assert cli.main(last) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tomoscale: ")]
        assert re.search(f"started differently: .*{expected}.*--overwrite", error)
        write_scan(tmp_path / "scan.zarr", changed, (8, 48, 64))
    assert cli.main([*command, "--overwrite"]) == 0
    assert_equal(tmp_path / "out.zarr", undisturbed(operation, changed))


# ---------------------------------------------------------------- late, and in order


def late_block(tmp_path):
    """Return the call of a block that a worker has just begun, and of which run it is."""
    calls = []
    plain = worker.write_block

    def keep(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    result = background.remove(tmp_path / "scan.zarr", half_window=12, step=6)
    with pytest.MonkeyPatch.context() as patched, cluster.connect("threads", threads=1) as workers:
        patched.setattr(worker, "write_block", keep)
        run.write(result, tmp_path / "out.zarr", connection=workers, quiet=True)
    return calls[0]


def everything(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_worker_that_wakes_up_after_the_run_does_no_harm(tmp_path, frames):
    """Row 10: neither to the complete result, nor by bringing back the unfinished one."""
    late = late_block(tmp_path)
    before = everything(tmp_path / "out.zarr")
    with pytest.raises(TomoscaleError, match="run of this block is over"):
        worker.write_block(*late)
    assert everything(tmp_path / "out.zarr") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr", "scan.zarr"]


def test_a_worker_that_wakes_up_in_a_run_of_other_parameters_does_no_harm(tmp_path, frames, monkeypatch):
    """Row 10: its block is not written into the other result."""
    late = late_block(tmp_path)
    other = background.remove(tmp_path / "scan.zarr", half_window=5, step=6)
    monkeypatch.setattr(worker, "compute", lambda graph, keys: 1 / 0)
    with cluster.connect("threads", threads=1) as workers, pytest.raises(BlocksFailedError):
        run.write(other, tmp_path / "out.zarr", connection=workers, quiet=True, overwrite=True)
    monkeypatch.undo()
    before = everything(tmp_path / "out.zarr.incomplete")
    with pytest.raises(TomoscaleError, match="another run has begun here"):
        worker.write_block(*late)
    assert everything(tmp_path / "out.zarr.incomplete") == before


def test_a_worker_that_stood_still_while_it_wrote_does_no_harm_either(tmp_path, frames, monkeypatch):
    """Row 10: its temporary file went with its run; it must not try again in the other."""
    late = late_block(tmp_path)
    other = background.remove(tmp_path / "scan.zarr", half_window=5, step=6)
    plain, calls = ChunkFiles.write, []

    def write(self, *arguments):
        calls.append(arguments)
        if len(calls) > 1:
            return plain(self, *arguments)
        monkeypatch.setattr(worker, "compute", lambda graph, keys: 1 / 0)
        with cluster.connect("threads", threads=1) as workers, pytest.raises(BlocksFailedError):
            run.write(other, tmp_path / "out.zarr", connection=workers, quiet=True, overwrite=True)
        raise FileNotFoundError(2, "No such file")

    begun = background.remove(tmp_path / "scan.zarr", half_window=12, step=6)
    job = late[3]
    job.begin(Result.of(begun).header(), overwrite=True)
    job.release()
    monkeypatch.setattr(ChunkFiles, "write", write)
    monkeypatch.setattr("time.sleep", lambda s: None)
    with pytest.raises(TomoscaleError, match="another run has begun here"):
        worker.write_block(*late)
    assert not job.finished()


@pytest.mark.slow
def test_a_block_is_on_the_disk_before_its_record_is(drill):
    """Row 20: object, folder, record; as the system calls of a run show."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    one = drill("convert")
    trace = one.folder / "trace.txt"
    calls = "trace=openat,close,write,fsync,rename,renameat,renameat2,mkdir,mkdirat"
    command = ["strace", "-f", "-y", "-s", "0", "-e", calls, "-o", str(trace)]
    done = one.run(scheduler="threads", prefix=command)
    if done.returncode != 0 and "ptrace" in done.stderr:
        pytest.skip("no process may be traced here")
    assert done.returncode == 0, done.stderr
    seen = events(trace.read_text(), str(one.root))
    objects = [name for kind, name in seen if kind == "rename" and re.search(r"/frames/c/\d+/", name)]
    assert len(objects) == 20
    for name in objects:
        renamed = seen.index(("rename", name))
        assert ("fsync partial", parent(name)) in seen[:renamed], "the bytes before the name"
        after = seen[renamed:]
        folder = after.index(("fsync", parent(name)))
        record = next(i for i, (kind, n) in enumerate(after) if kind == "write" and "blocks-" in n)
        assert folder < record, "the name before the record"
        made_durable = next(i for i, (kind, n) in enumerate(after) if kind == "fsync" and "blocks-" in n)
        assert record < made_durable
    final = seen.index(("rename", str(one.root)))
    complete = max(i for i, event in enumerate(seen[:final]) if event == ("rename", f"{one.root}/zarr.json"))
    assert max(i for i, (_, name) in enumerate(seen[:final]) if "/c/" in name) < complete, (
        "all blocks, then complete"
    )
    assert ("fsync", str(one.root)) in seen[complete:final], "complete, and then the name"
    made = [n for k, n in seen if k == "mkdir" and "/frames" in n]
    assert {f"{one.root}/frames", f"{one.root}/frames/c"} < set(made)
    for folder in made:
        after = seen[seen.index(("mkdir", folder)) :]
        record = next(i for i, (kind, n) in enumerate(after) if kind == "write" and "blocks-" in n)
        assert ("fsync", parent(folder)) in after[:record], "the names of its folders before the record"


def parent(name):
    return name.rpartition("/")[0]


def events(text, root):
    """Return what happened below a folder: writes, syncs, new names and folders, in order."""
    found = []
    for line in text.splitlines():
        if root not in line or "= -1" in line:
            continue
        match = re.search(r"\b(write|fsync)\(\d+<([^>]+)>", line)
        if match:
            kind, name = match.groups()
            if name.endswith(".partial"):
                kind, name = f"{kind} partial", parent(name)
            found.append((kind, name))
        elif re.search(r"\brename", line):
            names = re.findall(r'"([^"]+)"', line)
            found.append(("rename", names[0] if names[0] == root else names[-1]))
        elif re.search(r"\bmkdir", line):
            found.append(("mkdir", re.findall(r'"([^"]+)"', line)[0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_run_of_threads_that_is_killed_goes_on(drill, frames, operation):
    """Row 2: client, scheduler and workers are one process here."""
    one = drill(operation, pause=0.1)
    for n in (2, 5):
        process = one.start(scheduler="threads")
        one.wait(lambda n=n: one.n_recorded() >= n)
        process.send_signal(signal.SIGKILL)
        assert one.end(process).returncode == -signal.SIGKILL
    assert one.run(scheduler="threads").returncode == 0
    n_blocks = 24 if operation == "background" else 20
    assert len(one.logged("begun")) <= n_blocks + 2  # one was in flight at each kill
    assert_result(one, frames)
