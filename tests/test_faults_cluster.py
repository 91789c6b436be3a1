"""Faults of schedulers, of workers on other machines, and of the network between them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from drill import DISTURBED, Drill, end_all, family, gone
from test_faults import assert_result
from test_faults_storage import assert_refused, everything

from tomoscale import cluster, remote, verify
from tomoscale.errors import TomoscaleError

pytestmark = pytest.mark.slow
TTL = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s"}


class Cluster:
    """A scheduler and worker processes that a test starts and disturbs."""

    def __init__(self, drill: Drill) -> None:
        self.drill = drill
        self.processes: list[subprocess.Popen[str]] = []

    def program(
        self, name: str, *more: str, prefix: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen:
        command = [*prefix, sys.executable, str(DISTURBED), "--as", f"distributed.cli.dask_{name}", *more]
        with open(self.drill.folder / f"{name}.txt", "a") as log:
            process = subprocess.Popen(
                command,
                cwd=self.drill.folder,
                stdout=log,
                stderr=log,
                env=self.drill.environment(**environment),
            )
        self.processes.append(process)
        return process

    def scheduler(self, *more: str, **how) -> subprocess.Popen:
        file = self.drill.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        more = more or ("--host", "127.0.0.1")
        process = self.program(
            "scheduler", *more, "--port", "0", "--no-dashboard", "--scheduler-file", str(file), **how
        )
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]
        return process

    def worker(self, *more: str, **how) -> subprocess.Popen:
        options = ["--nworkers", "1", "--nthreads", "1", "--memory-limit", "400MB", "--no-dashboard"]
        return self.program("worker", self.address, *options, *more, **how)

    def wait_for(self, n_workers: int) -> None:
        """Wait until the scheduler has so many workers."""
        from distributed import Client

        with Client(self.address, set_as_default=False, timeout=30) as client:
            client.wait_for_workers(n_workers, timeout=60)

    def end(self) -> None:
        for process in self.processes:
            with_all = family(process.pid)
            end_all(process.pid)
            gone(with_all)
            process.wait(30)
        self.processes.clear()


@pytest.fixture
def drill(tmp_path, frames):
    return Drill(tmp_path, "background")


@pytest.fixture
def dask(drill):
    one = Cluster(drill)
    yield one
    if drill.process is not None and drill.process.poll() is None:
        end_all(drill.process.pid)
    one.end()


def test_a_run_whose_scheduler_dies_ends_within_half_a_minute_and_goes_on_elsewhere(drill, frames, dask):
    """Row 9: a named error, workers that exit, and a resumed run with another cluster."""
    scheduler = dask.scheduler()
    workers = [dask.worker("--death-timeout", "10"), dask.worker("--death-timeout", "10")]
    dask.wait_for(2)
    process = drill.start(scheduler=dask.address)
    drill.wait(lambda: drill.n_recorded() >= 3)
    everyone = [p for w in workers for p in family(w.pid)]
    begin = time.monotonic()
    scheduler.kill()
    done = drill.end(process)
    assert time.monotonic() - begin < 30
    assert done.returncode == 3, done.stderr
    assert re.search(r"scheduler was lost; \d+ blocks are left; run the same command again", done.stderr)
    assert "Traceback" not in done.stderr
    assert not gone(everyone, 60)
    assert drill.run(scheduler="threads").returncode == 0
    assert_result(drill, frames)


def test_a_run_without_workers_gives_up_and_goes_on_when_there_are_some(drill, frames, dask):
    """Row 11."""
    drill.orders["set"] = {"tomoscale.remote.ALONE_S": 4.0}
    dask.scheduler()
    worker = dask.worker()
    dask.wait_for(1)
    process = drill.start(scheduler=dask.address)
    drill.wait(lambda: drill.n_recorded() >= 3)
    end_all(worker.pid)
    done = drill.end(process, 60)
    assert done.returncode == 3, done.stderr
    assert re.search(r"no workers were left for 4 s; \d+ blocks are left; run the same command", done.stderr)
    dask.worker()
    dask.wait_for(1)
    done = drill.run(scheduler=dask.address)
    assert done.returncode == 0, done.stderr
    assert_result(drill, frames)


@pytest.mark.parametrize("patient", [False, True], ids=["scheduler", "patient scheduler"])
def test_a_worker_that_is_stopped_for_the_whole_run_does_no_harm_when_it_wakes_up(
    drill, frames, dask, patient
):
    """Row 10: its blocks go elsewhere, also if the scheduler would wait; what it writes late changes nothing."""
    if patient:
        drill.orders["set"] = {"tomoscale.remote.UNHEARD_S": 4.0}
    dask.scheduler(**({} if patient else TTL))
    frozen = psutil.Process(dask.worker("--no-nanny").pid)
    dask.worker("--no-nanny")
    dask.wait_for(2)
    process = drill.start(scheduler=dask.address)
    drill.wait(lambda: any(pid == str(frozen.pid) for _, pid in drill.logged("begun")))
    frozen.suspend()
    done = drill.end(process, 120)
    assert done.returncode == 0, done.stderr
    assert_result(drill, frames)
    before = everything(drill.target)
    frozen.resume()
    gone([frozen], 5)
    assert everything(drill.target) == before
    assert "intact" in verify.verify(drill.target)
    assert not drill.root.exists()


@pytest.mark.parametrize("package", ["zarr", "tomoscale"])
def test_workers_of_other_versions_are_refused_at_the_start(drill, dask, package):
    """Row 17: worker, package and both versions are named; nothing is computed."""
    fake = drill.folder / "site" / f"{package}-0.0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
    dask.scheduler()
    path = os.pathsep.join([str(fake.parent), os.environ.get("PYTHONPATH", "")])
    dask.worker(PYTHONPATH=path)
    dask.wait_for(1)
    done = drill.run(scheduler=dask.address)
    assert_refused(done, rf"worker tcp://.* has {package} 0.0.1 and this process has \d", "install the same")
    assert not drill.logged("begun")


def test_another_python_is_refused():
    """Row 17: the minor version counts."""

    class Client:
        def run(self, function, *arguments, on_error):
            answer = "3.9.1" if function is remote.platform.python_version else function(*arguments)
            return {"tcp://there:1": answer}

    with pytest.raises(
        TomoscaleError, match=r"worker tcp://there:1 has python 3.9 and this process has 3\.\d+"
    ):
        remote.check_versions(Client())


def test_options_of_local_workers_are_refused_with_those_of_somebody_else():
    with (
        pytest.raises(TomoscaleError, match="its workers are there already; leave out --workers, --memory"),
        cluster.connect("tcp://127.0.0.1:1", workers=2, memory=10**9),
    ):
        pass


# ---------------------------------------------------------------- network


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def two_hosts():
    """Make two network namespaces, joined by a wire, that reach nothing else."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("only root with iproute2 can make network namespaces")
    names = [f"tomoscale-{os.getpid()}-{side}" for side in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip(
                "-n",
                names[0],
                "link",
                "add",
                "wire",
                "type",
                "veth",
                "peer",
                "name",
                "wire",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for n, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"192.0.2.{n}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            if Path(f"/run/netns/{name}").exists():
                ip("netns", "del", name)


def test_a_worker_behind_a_broken_network_does_no_harm(drill, frames, dask, two_hosts):
    """Row 10: scheduler, client and one worker on one host, the other worker on another whose wire breaks."""
    here, there = (("ip", "netns", "exec", name) for name in two_hosts)
    dask.scheduler("--host", "tcp://0.0.0.0", prefix=here, **TTL)
    port = dask.address.rpartition(":")[2]
    dask.address = f"tcp://192.0.2.1:{port}"
    dask.worker("--no-nanny", prefix=here)
    far = dask.worker("--no-nanny", prefix=there)
    drill.wait(lambda: (drill.folder / "worker.txt").read_text().count("Registered to") == 2)
    process = drill.start(scheduler=f"tcp://127.0.0.1:{port}", prefix=here)
    pids = {str(p.pid) for p in family(far.pid)}
    drill.wait(lambda: any(pid in pids for _, pid in drill.logged("begun")))
    ip("-n", two_hosts[1], "link", "set", "wire", "down")
    done = drill.end(process, 200)
    assert done.returncode == 0, done.stderr
    assert_result(drill, frames)
    before = everything(drill.target)
    ip("-n", two_hosts[1], "link", "set", "wire", "up")
    gone(family(far.pid), 10)
    assert everything(drill.target) == before
    assert not drill.root.exists()
