"""Nobody gets in: workers listen on this machine only, and elsewhere they want a certificate."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import small_scan, write_scan

from tomoscale import TomoscaleError, background, cli, store
from tomoscale.access import Access, is_loopback

TOMOSCALE = [sys.executable, "-m", "tomoscale.cli"]


def listening(root: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses on which a process and its children can be reached, UDP included."""
    found = set()
    for process in [root, *root.children(recursive=True)]:
        try:
            for c in process.net_connections("inet"):
                if c.status == psutil.CONN_LISTEN or (c.type == socket.SOCK_DGRAM and not c.raddr):
                    found.add((c.laddr.ip, c.laddr.port))
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dashboard", [True, False])
def test_a_local_run_can_be_reached_from_this_machine_only(tmp_path, dashboard):
    write_scan(tmp_path / "scan.zarr", small_scan(200, 64, 64), (50, 8, 64))
    options = ["--workers", "2", "--half-window", "60", "--step", "5"]
    options += [] if dashboard else ["--no-dashboard"]
    run = psutil.Popen(
        [*TOMOSCALE, "background", "scan.zarr", *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    seen: set[tuple[str, int]] = set()
    processes = 0
    while run.poll() is None:
        try:
            seen |= listening(run)
            processes = max(processes, len(run.children(recursive=True)))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    said = run.stderr.read()
    assert run.wait() == 0, said
    assert processes >= 2
    assert len(seen) >= 5 + dashboard  # the scheduler, two nannies, two workers
    assert {address for address, _ in seen} <= {"127.0.0.1", "::1"}
    assert ("dashboard" in said) == dashboard


@pytest.mark.parametrize(
    "address",
    [
        "tcp://10.1.2.3:8786", "tcp://localhost.evil.org:8786", "tcp://127.0.0.1.evil.org", "tcp://[fe80::1]:8786",
        "tcp://0.0.0.0:8786", "ws://10.1.2.3:8786", "tcp://127.0.0.1@evil.org:8786", "inproc://10.1.2.3/1/1",
    ],
)  # fmt: skip
def test_a_scheduler_elsewhere_without_encryption_is_refused(address):
    assert not is_loopback(address)
    with pytest.raises(TomoscaleError, match="not encrypted; use tls://"):
        Access().security(address)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "tcp://localhost:1", "tcp://[::1]:1", "tcp://127.3.2.1"]
)
def test_a_scheduler_of_this_machine_needs_no_encryption(address):
    assert Access().security(address) is None


def test_whoever_wants_no_encryption_must_say_so_and_is_warned():
    with pytest.warns(UserWarning, match="can run code as you"):
        assert Access(insecure=True).security("tcp://10.1.2.3:8786") is None
    with pytest.raises(TomoscaleError, match="not encrypted"):
        Access(insecure=True).security("ws://10.1.2.3:8786")


def test_the_help_says_what_insecure_means(capsys):
    assert cli.main(["background", "--help"]) in (0, None)
    assert "--insecure" in (out := capsys.readouterr().out)
    assert "run code as you" in " ".join(out.replace("│", " ").split())


def test_encryption_without_certificates_is_refused_in_one_line(capsys, tmp_path):
    write_scan(tmp_path / "scan.zarr", small_scan(9), (9, 20, 23))
    line = ["background", str(tmp_path / "scan.zarr"), "--scheduler", "tls://127.0.0.1:9"]
    for more, words in (
        ([], "give --certificates FOLDER with ca.pem, cert.pem, key.pem"),
        (["--certificates", str(tmp_path)], "ca.pem: does not exist"),
    ):
        assert cli.main([*line, *more]) == 2
        printed = capsys.readouterr().err.splitlines()
        assert len(printed) == 1
        assert words in printed[0]


# ---------------------------------------------------------------- certificates


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certificates(folder: Path) -> Path:
    """Make an authority and one certificate, as the administrator of a cluster does."""
    folder.mkdir(mode=0o700)
    new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj"]
    openssl(
        *new, "/CN=authority", "-x509", "-days", "2", "-keyout", "ca-key.pem", "-out", "ca.pem", folder=folder
    )
    openssl(*new, "/CN=job", "-keyout", "key.pem", "-out", "request.pem", folder=folder)
    openssl(
        "x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2",
        "-out", "cert.pem", folder=folder,
    )  # fmt: skip
    return folder


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start a scheduler and a worker that want certificates."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tls://127.0.0.1:{s.getsockname()[1]}"
    tls = ["--tls-ca-file", "ca.pem", "--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    environment = {**os.environ, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
    dask = [sys.executable, "-m", "dask"]
    commands = [
        [*dask, "scheduler", *tls, "--host", address.rpartition(":")[0], "--port", address.rpartition(":")[2],
         "--no-dashboard"],
        [*dask, "worker", address, *tls, "--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--host",
         "tls://127.0.0.1"],
    ]  # fmt: skip
    running = [
        subprocess.Popen(c, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for c in commands
    ]
    try:
        yield address
    finally:
        for process in running[::-1]:
            process.terminate()
        for process in running:
            process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="certificates are made with openssl")
def test_a_scheduler_elsewhere_takes_those_only_who_have_a_certificate_of_the_job(tmp_path):
    from distributed import Client

    scan = small_scan(20)
    write_scan(tmp_path / "scan.zarr", scan, (20, 20, 23))
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    with cluster(ours) as address:
        security = Access(ours).security(address)
        with Client(address, security=security, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)

        def run(folder: Path) -> subprocess.CompletedProcess[str]:
            line = [
                "background",
                "scan.zarr",
                "--quiet",
                "--scheduler",
                address,
                "--certificates",
                str(folder),
            ]
            return subprocess.run([*TOMOSCALE, *line], cwd=tmp_path, capture_output=True, text=True)

        refused = run(others)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert len(refused.stderr.splitlines()) == 1
        assert f"scheduler {address}: no answer" in refused.stderr
        with pytest.raises((OSError, TimeoutError)):
            Client(address.replace("tls", "tcp"), timeout=5, set_as_default=False)

        done = run(ours)
        assert done.returncode == 0, done.stderr
        written = store.open_volume(tmp_path / "scan-background.zarr").whole()
        np.testing.assert_array_equal(written, background.remove(scan).frames.compute())

        (ours / "key.pem").chmod(0o644)
        ours.chmod(0o755)
        open_to_all = run(ours)
        assert open_to_all.returncode == 2
        assert "others may read it" in open_to_all.stderr
