"""
Whatever fails, a run goes on or ends with an error that says what to do, and the next one completes it.

The faults are real: signals, stopped and killed processes, memory that runs out, frozen workers. The rows are those
of the fault matrix; `test_faults_storage.py` has the faults of disks and files, `test_faults_cluster.py` those of
schedulers and networks.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from chaos import Chaos
from conftest import small_scan, write_scan
from drill import Drill, catches, end_all, gone, workers_of

from tomoscale import background, blocks, call, clean, cluster, convert, run, store, stream
from tomoscale.errors import BlocksFailedError

OPERATIONS = ["background", "convert"]
THIRD = {"background": "frames[0:160, 4:6", "convert": "frames[16:24,"}
"""How the name of a block begins."""


def undisturbed(operation, frames):
    if operation == "convert":
        return {"frames": frames}
    made = background.remove(frames, half_window=12, step=6)
    return {"frames": made.frames.compute(), "background": made.background.compute()}


def assert_result(drill, frames):
    assert_equal(drill.target, undisturbed(drill.operation, frames))


def assert_equal(result, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(store.open_volume(result / name).whole(), array)


@pytest.fixture
def drill(tmp_path, frames):
    """Make drills, and leave none of their processes behind."""
    made = []

    def make(*arguments, **orders):
        made.append(Drill(tmp_path, *arguments, **orders))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            end_all(one.process.pid)


# ---------------------------------------------------------------- killed and interrupted


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_run_whose_processes_are_killed_at_random_makes_the_same_result(tmp_path, operation):
    """Rows 1 and 2: blocks done again were in flight, processes end, the result is that of an undisturbed run."""
    chaos = Chaos(tmp_path, operation, seed=5)
    try:
        chaos.run(8)
    finally:
        if chaos.drill.process.poll() is None:
            end_all(chaos.drill.process.pid)
    print(chaos.summary())
    assert not chaos.violations
    assert sum(chaos.kills.values()) == 8
    assert chaos.completed >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "number", "scheduler"),
    [
        ("background", signal.SIGTERM, "local"),
        ("convert", signal.SIGUSR1, "local"),
        ("background", signal.SIGINT, "threads"),
        ("convert", signal.SIGTERM, "threads"),
    ],
)
def test_a_signal_ends_a_run_in_time_and_nothing_is_lost(drill, frames, operation, number, scheduler):
    """Row 3: status 75 in less than ten seconds while blocks are computed, with the number of blocks left."""
    one = drill(operation, pause=0.3)
    process = one.start(scheduler=scheduler)
    one.wait(lambda: one.n_recorded() >= 3)
    workers = workers_of(process.pid)
    begin = time.monotonic()
    process.send_signal(number)
    done = one.end(process)
    assert done.returncode == 75, done.stderr
    assert time.monotonic() - begin < 10
    n_blocks = 24 if operation == "background" else 20
    left = int(
        re.search(rf"{number.name}: (\d+) blocks are left; run the same command again", done.stderr)[1]
    )
    recorded = one.n_recorded()
    assert n_blocks - recorded <= left < n_blocks
    assert not gone(workers)
    assert one.run(scheduler="threads").returncode == 0
    assert len(one.logged("begun")) <= n_blocks + 2
    assert_result(one, frames)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_run_stops_it_as_one_to_the_command(drill, number):
    """Row 3: as Ctrl-C, a closed terminal, and Slurm without `B:` send it."""
    one = drill("convert", pause=0.3)
    process = one.start(prefix=["env", "--default-signal", "setsid"])
    one.wait(lambda: one.n_recorded() >= 2)
    os.killpg(process.pid, number)
    done = one.end(process)
    assert done.returncode == 75, done.stderr
    assert re.search(rf"{number.name}: \d+ blocks are left", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_signal_that_is_ignored_from_the_start_does_not_stop_a_run(drill):
    """As `nohup` asks for."""
    one = drill("convert", pause=0.1)
    process = one.start(prefix=["env", "--ignore-signal=HUP", "setsid"])
    one.wait(lambda: one.n_recorded() >= 2)
    os.killpg(process.pid, signal.SIGHUP)
    done = one.end(process)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_signal_does_not_wait_for_blocks_that_take_long(drill):
    """Row 3: a block of a minute is dropped."""
    one = drill("background", pause=60)
    process = one.start()
    one.wait(lambda: one.logged("begun"))
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    done = one.end(process)
    assert (done.returncode, time.monotonic() - begin < 10) == (75, True), done.stderr
    assert "24 blocks are left" in done.stderr


@pytest.mark.slow
def test_a_signal_at_any_moment_of_the_start_gives_status_75(tmp_path, frames):
    """Row 3: from the moment on that Python has loaded the first module of ours."""
    command = "background scan.zarr --half-window 12 --step 6 --workers 2 --memory 400MB"
    for delay in (0, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "tomoscale", *command.split()], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        while not catches(process.pid, signal.SIGTERM):
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 75, f"after {delay} s: {errors}"
        assert "SIGTERM: " in errors.splitlines()[-1]
        assert "Traceback" not in errors
        assert not (tmp_path / ".scan-background.zarr.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_block_that_kills_every_worker_is_named_and_all_others_are_done(drill, frames, operation):
    """Row 4: three tries, then status 3 with its name; without the cause the next run completes."""
    one = drill(operation, pause=0, kill=THIRD[operation])
    done = one.run()
    n_blocks = 24 if operation == "background" else 20
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "1 blocks failed" in last
    assert THIRD[operation] in last
    assert "its worker died each of the 3 times it was tried" in last
    assert f"{one.folder / 'scan.zarr'}" in last
    assert one.n_recorded() == n_blocks - 1
    tries = [label for label, _ in one.logged("begun") if label.startswith(THIRD[operation].replace(" ", ""))]
    assert len(tries) == 3
    one.orders["kill"] = "\n"
    assert one.run(scheduler="threads").returncode == 0
    assert_result(one, frames)


@pytest.mark.slow
def test_a_frozen_worker_is_replaced(drill, frames):
    """Row 10: the blocks of a worker that stands still go elsewhere."""
    one = drill("background", dask={"distributed.scheduler.worker-ttl": "4 s"})
    process = one.start()
    one.wait(lambda: one.n_recorded() >= 3)
    workers_of(process.pid)[0].suspend()
    done = one.end(process, 120)
    assert done.returncode == 0, done.stderr
    assert_result(one, frames)


# ---------------------------------------------------------------- blocks that fail


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_failed_block_is_named_with_its_input_and_frames(drill, frames, operation):
    """Row 5: the run stops there, or does all others first."""
    one = drill(operation, pause=0, fail=THIRD[operation])
    for option, n_left in (("stop", 1), ("continue", 0)):
        done = one.run("--on-error", option, scheduler="threads")
        assert done.returncode == 3
        last = done.stderr.splitlines()[-1]
        assert str(one.folder / "scan.zarr" / "frames") in last
        assert f"{THIRD[operation]}" in last
        assert "RuntimeError: the detector was on fire" in last
        assert int(re.search(r"(\d+) are left", last)[1]) >= n_left
        assert "Traceback" not in done.stderr
    assert one.n_recorded() == (23 if operation == "background" else 19)
    one.orders["fail"] = "\n"
    assert one.run(scheduler="threads").returncode == 0
    assert_result(one, frames)


@pytest.mark.slow
def test_a_worker_out_of_memory_names_the_size_of_the_block(drill):
    """Row 8: the system, or Dask for it, kills a worker that takes more than its share."""
    one = drill("convert", pause=0, hoard=THIRD["convert"])
    done = one.run()
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert THIRD["convert"] in last
    assert re.search(
        r"of too little memory perhaps \(\d.* [kM]B per block as planned, 400 MB per worker", last
    )
    assert one.n_recorded() == 19


class OutOfMemoryError(RuntimeError):
    """As PyTorch calls it."""


def small_memory(plain, most, error=MemoryError):
    """Return a block function for a memory that holds so many voxels of the input."""

    def function(raw, *arguments):
        if raw.size > most:
            raise error(f"cannot allocate {raw.nbytes} bytes")
        return plain(raw, *arguments)

    return function


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError])
@pytest.mark.parametrize(
    ("most_rows", "options"),
    [
        (16, {}),
        (24, {"smoothing": 7, "hot_pixels": True}),
        (9, {"margin": 2, "dark": None, "dtype": "int16"}),
    ],
    ids=["plain", "hot", "margin"],
)
def test_a_block_that_does_not_fit_a_device_is_computed_in_parts(
    tmp_path, monkeypatch, capsys, most_rows, options, error
):
    """Row 19: the same bits, with a message."""
    scan = small_scan(60, 40, 23)
    source = write_scan(tmp_path / "scan.zarr", scan, (20, 10, 23), dark=scan[:5] // 4)
    options = {"half_window": 7, "step": 5, "dark": "none", **options}
    with blocks.planned_for(10**9, 1):
        whole = background.remove(source, **options)
    expected = {name: np.asarray(array) for name, array in whole._asdict().items()}
    monkeypatch.setattr(
        background, "clean_columns", small_memory(clean.clean_columns, 60 * 23 * most_rows, error)
    )
    monkeypatch.delattr(stream.Stream, "__array__")  # frames are not made as a whole in parts either
    with cluster.connect("threads", threads=1) as workers, blocks.planned_for(10**9, 1):
        out = run.write(background.remove(source, **options), tmp_path / "out.zarr", connection=workers)
    assert re.search(r"out of memory: frames\[.*\] was computed in [248] parts", capsys.readouterr().err)
    for name, array in expected.items():
        np.testing.assert_array_equal(store.open_volume(out / name).whole(), array, err_msg=name)


def test_frames_that_do_not_fit_the_memory_are_converted_in_parts(tmp_path, monkeypatch, capsys):
    """Row 19, for `convert`."""
    scan = small_scan(60, 40, 23)
    source = write_scan(tmp_path / "scan.zarr", scan, (20, 10, 23))
    monkeypatch.setattr(convert, "_convert", small_memory(convert._convert, 11 * 40 * 23))
    with cluster.connect("threads", threads=1) as workers, blocks.planned_for(10**9, 1):
        out = run.write(convert.scan(source), tmp_path / "out.zarr", connection=workers)
    assert re.search(r"was computed in [48] parts", capsys.readouterr().err)
    np.testing.assert_array_equal(store.open_volume(out).whole(), scan)


def test_a_memory_that_holds_not_even_one_row_is_an_error_that_names_the_block(tmp_path, monkeypatch):
    """Row 19, then as row 4; and row 8, with the size of the block."""
    scan = small_scan(60, 20, 23)
    monkeypatch.setattr(background, "clean_columns", small_memory(clean.clean_columns, 10))
    with (
        cluster.connect("threads", threads=1) as workers,
        pytest.raises(
            BlocksFailedError, match=r"frames\[0:60, .*out of memory: cannot allocate .* per block as planned"
        ),
    ):
        run.write(background.remove(scan), tmp_path / "out.zarr", connection=workers, quiet=True)


def test_errors_of_another_kind_are_not_taken_for_too_little_memory():
    calls = []

    def function(x):
        calls.append(x)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        call.Call(function, (1,), lambda n, x: [((x,), (slice(0, 1),))] * n)()
    assert calls == [1]


def test_the_fixture_catches_signals():
    """What `catches` reads is what the kernel does."""
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    assert catches(os.getpid(), signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, before)
    assert not catches(os.getpid(), signal.SIGUSR2)
