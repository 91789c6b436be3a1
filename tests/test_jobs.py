"""Jobs of a batch system that a file describes: read, submitted, waited for, cancelled; the same result."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import small_scan, write_scan

pytest.importorskip("dask_jobqueue", reason="jobs need the extra `jobqueue`")

from tomoscale import cluster, jobfile, jobs, store
from tomoscale.cli import main
from tomoscale.errors import BlocksFailedError, InterruptedRunError, TomoscaleError

LOCAL = "cores: 1, memory: 2GB, interface: lo"
LISTS = "[&a0 [x], " + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)) + "]"
"""Lists of the same lists, of 10^11 values in all."""
DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder whose programs are found first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def described(system="local", options=LOCAL, ours="jobs: 2"):
    Path("jobs.yaml").write_text(f"jobqueue: {{{system}: {{{options}}}}}\ntomoscale: {{{ours}}}\n")
    return "jobs.yaml"


def program(name, *lines):
    Path(name).write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    Path(name).chmod(0o755)


def slurm_that_takes_jobs():
    """Put programs in the place of Slurm's: jobs get numbers and never run."""
    # Jobs are submitted side by side, and only one of them makes a folder.
    program("sbatch", "n=1; while ! mkdir job.$n 2>&-; do n=$((n + 1)); done", "echo Submitted batch job $n")
    program("scancel", 'echo "$@" >> cancelled')


def cancelled():
    return set(Path("cancelled").read_text().split())


# ---------------------------------------------------------------- the file


def test_a_file_says_how_many_workers_there_will_be_and_what_each_may_use():
    options = "cores: 8, processes: 4, memory: 64GB, interface: lo, name: mine"
    found = jobfile.read(described(options=options, ours="jobs: 3, patience: 2 h"))
    assert (found.workers, found.threads, found.memory, found.patience_s) == (12, 2, 16 * 10**9, 7200)
    assert found.where == "3 jobs of local with 12 workers of 2 threads"
    assert found.options["job_name"] == "mine"


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.yaml")), ids=lambda f: f.name)
def test_files_that_we_hand_out_are_understood(file, tmp_path):
    slurm_that_takes_jobs()
    text = file.read_text().replace("interface: ib0", "interface: lo")
    (tmp_path / "own.yaml").write_text(text)
    assert jobfile.read("own.yaml").workers == 128


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("- 1", "the file is a list"),
        ("a: {", "is no YAML file"),
        ("a: !!python/object/apply:os.system [touch here]", "is no YAML file"),
        ("dask: {}", "dask is not a section; expected jobqueue, tomoscale"),
        ("jobqueue: {}\ntomoscale: {jobs: 1}", "0 batch systems; expected one of htcondor"),
        ("jobqueue: {slum: {}}\ntomoscale: {jobs: 1}", "slum is not a batch system; did you mean slurm"),
        ("jobqueue: {local: {cors: 1}}\ntomoscale: {jobs: 1}", "cors is not an option of local; did you mean cores"),
        ("jobqueue: {local: {memory: 1GB}}\ntomoscale: {jobs: 1}", "cores is missing; expected a number"),
        ("jobqueue: {local: {cores: yes}}\ntomoscale: {jobs: 1}", "cores 'True'; expected a number"),
        ("jobqueue: {local: {cores: 3, processes: 2}}\ntomoscale: {jobs: 1}", "3 cores for 2 processes"),
        ("jobqueue: {local: {cores: 1}}\ntomoscale: {jobs: 1}", "memory of one job is missing"),
        (f"jobqueue: {{local: {{{LOCAL}}}}}", "tomoscale is empty"),
        (f"jobqueue: {{local: {{{LOCAL}}}}}\ntomoscale: {{jobs: 0}}", "jobs '0'; expected a number from 1"),
        (f"jobqueue: {{local: {{{LOCAL}}}}}\ntomoscale: {{job: 1}}", "did you mean jobs"),
        (f"jobqueue: {{local: {{{LOCAL}}}}}\ntomoscale: {{jobs: 1, patience: long}}", "patience 'long'"),
        ("jobqueue: {local: {cores: 1, memory: lots}}\ntomoscale: {jobs: 1}", "interface is missing"),
        ("jobqueue: {local: {cores: 1, memory: lots, interface: lo}}\ntomoscale: {jobs: 1}", "memory 'lots'"),
        ("jobqueue: {local: {cores: 1, memory: 1GB, interface: x0}}\ntomoscale: {jobs: 1}", "interface 'x0'; expected"),
        (f"jobqueue:\n  local: {{{LOCAL}}}\n  local: {{{LOCAL}}}", "local in line 3 is given a second time"),
        (f"jobqueue: {{local: {{{LOCAL}, worker-extra-args: a}}}}\ntomoscale: {{jobs: 1}}", "expected a list"),
        (f"jobqueue: {{local: {{{LOCAL}, worker-extra-args: [[a]]}}}}\ntomoscale: {{jobs: 1}}", "no lists in it"),
        ("jobqueue: {slurm: {walltime: 12:00:00}}\ntomoscale: {jobs: 1}", 'in quotes, "12:00:00"'),
        (f"jobqueue: {{local: {{{LOCAL}, scheduler-options: {{security: 0}}}}}}\ntomoscale: {{jobs: 1}}", "security"),
        ("jobqueue: {local: {cores: 1, memory: 1GB, interface: [lo]}}\ntomoscale: {jobs: 1}", "interface of type list"),
        (f"jobqueue: {{local: {{{LOCAL}}}}}\ntomoscale: {{jobs: 0x{'f' * 5000}}}", "jobs of type int; expected"),
        (f"jobqueue: {{local: {{{LOCAL}}}}}\ntomoscale: {{jobs: {LISTS}}}", "jobs of type list; expected a number"),
        (f"jobqueue: {{local: {{{LOCAL}}}}}\ntomoscale: {{jobs: 1}}\n#{'x' * 2**16}", "more than 65536 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_in_words(text, expected):
    Path("jobs.yaml").write_text(text)
    with pytest.raises(TomoscaleError, match=expected):
        jobfile.read("jobs.yaml")
    assert not Path("here").exists()


def test_what_is_not_there_is_said_by_the_command(capsys, monkeypatch):
    write_scan(Path("scan.zarr"), small_scan(), (30, 5, 23))
    monkeypatch.setenv("PATH", "")
    file = described("slurm")
    for options, expected in (
        ("--scheduler none.yaml", "No such file or directory; expected a file that describes jobs"),
        (f"--scheduler {file}", "sbatch is not there"),
        (f"--scheduler {file} --workers 2", "the file says what its jobs are; leave out --workers"),
    ):
        assert main(["background", "scan.zarr", *options.split()]) == 2
        assert expected in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "dask_jobqueue.slurm", None)
    assert main(["background", "scan.zarr", "--scheduler", file]) == 2
    assert "pip install 'tomoscale[jobqueue]'" in capsys.readouterr().err
    assert not list(Path().glob("scan-*"))


@pytest.mark.parametrize("options", ["interface: lo", "host: 0.0.0.0", "contact_address: 10.0.0.1:8786"])
def test_workers_are_taken_to_be_here_only_if_nobody_else_reaches_the_scheduler(options):
    found = jobfile.read(described(options=f"{LOCAL}, scheduler-options: {{{options}}}"))
    assert found.are_here == (options == "interface: lo")


# ---------------------------------------------------------------- the jobs


def test_a_result_of_jobs_is_that_of_threads(capsys):
    write_scan(Path("scan.zarr"), small_scan(), (30, 5, 23))
    options = ["--half-window", "9", "--step", "4", "--quiet"]
    file = described(options=f"{LOCAL}, worker-extra-args: [--no-nanny]", ours="jobs: 1")
    assert main(["background", "scan.zarr", *options, "-o", "a.zarr", "--scheduler", "threads"]) == 0
    assert main(["background", "scan.zarr", *options, "-o", "b.zarr", "--scheduler", file]) == 0
    assert capsys.readouterr() == ("a.zarr\nb.zarr\n", "")
    for name in ("frames", "background"):
        a, b = (store.open_volume(f"{g}.zarr/{name}").whole() for g in "ab")
        np.testing.assert_array_equal(a, b)
    assert jobs._running == []


def test_a_dry_run_submits_nothing(capsys):
    slurm_that_takes_jobs()
    write_scan(Path("scan.zarr"), small_scan(), (30, 5, 23))
    assert main(["background", "scan.zarr", "--dry-run", "--scheduler", described("slurm")]) == 0
    assert not Path("job.1").exists()


def test_jobs_that_are_not_taken_are_an_error_with_the_words_of_the_batch_system():
    program("sbatch", "echo sbatch: error: Invalid partition >&2", "exit 1")
    program("scancel")
    with (
        cluster.connect(described("slurm")) as workers,
        pytest.raises(TomoscaleError, match="error: Invalid partition"),
    ):
        workers.executor.submit(int)


def test_jobs_that_never_run_are_cancelled_when_the_patience_ends(capsys, monkeypatch):
    monkeypatch.setattr(jobs, "LOG_EVERY_S", 0.3)
    slurm_that_takes_jobs()
    file = described("slurm", ours="jobs: 2, patience: 2 s")
    with (
        cluster.connect(file) as workers,
        pytest.raises(BlocksFailedError, match="no worker of 2 jobs of slurm"),
    ):
        workers.executor.submit(int)
    assert "Ctrl-C cancels them" in capsys.readouterr().err
    assert cancelled() == {"1", "2"}


@pytest.mark.parametrize("leaves", [False, True])
def test_a_signal_while_jobs_are_waited_for_cancels_them(leaves):
    program("sbatch", "echo Submitted batch job 5", "(sleep 0.3; kill -TERM $PPID) >&- 2>&- &")
    program("scancel", 'echo "$@" >> cancelled')
    with cluster.connect(described("slurm", ours="jobs: 1"), quiet=True) as workers:
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            workers.executor.submit(int)
        if leaves:  # as a command does, which has no time for more
            jobs.cancel()
            assert cancelled() == {"5"}
    assert cancelled() == {"5"}


def test_keys_of_a_run_are_for_its_owner_alone_and_go_with_it(tmp_path):
    from contextlib import ExitStack

    slurm_that_takes_jobs()
    (tmp_path / "shared").mkdir()
    found = jobfile.read(described("slurm", f"{LOCAL}, shared-temp-directory: shared"))
    with ExitStack() as stack:
        keys = jobs._security(found, jobs.Access(), stack)
        assert keys.require_encryption
        (made,) = Path("shared").iterdir()
        assert made.stat().st_mode & 0o777 == 0o700
        assert {Path(keys.tls_worker_key), Path(keys.tls_scheduler_key)} == {made / "key.pem"}
    assert not list(Path("shared").iterdir())
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        assert jobs._security(found, jobs.Access(insecure=True), stack) is None
