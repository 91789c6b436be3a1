"""Kernels are compiled once, in a process of their own; whatever becomes of it or of what it keeps, they are right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tomoscale import kernels

SMALL = """
import numpy as np
from tomoscale import kernels
assert kernels.normalise(np.ones((1, 2, 2), np.uint16))[0, 0, 0] == 1
"""


RECORDED = """
from tomoscale.kernels import _apart
started, plain = [], _apart.subprocess.Popen

def popen(*arguments, **more):
    started.append(plain(*arguments, **more))
    return started[-1]

_apart.subprocess.Popen = popen
"""


def run_small(home: Path, script: str = SMALL, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script that finds no kernels but those below a folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "XDG"))}
    environment = {**kept, "HOME": str(home), **more}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_the_compiler_takes_stays_with_no_process_that_computes(tmp_path):
    script = f"""
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
    {SMALL.strip().replace(chr(10), chr(10) + "    ")}
assert not compiled.buffer
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize("interpreter", ["/nowhere/python", "/bin/false"])
def test_a_process_that_must_compile_itself_says_so(tmp_path, interpreter):
    done = run_small(tmp_path, f"import sys; sys.executable = {interpreter!r}\n{SMALL}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("UserWarning: kernels are compiled in this process") == 1
    assert run_small(tmp_path).stderr == ""


def test_kernels_run_where_nothing_can_be_cached_and_say_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run_small(tmp_path / "file")
    assert done.returncode == 0, done.stderr
    assert "nothing can be cached" in done.stderr


def test_a_damaged_cache_is_compiled_again(tmp_path):
    assert run_small(tmp_path).returncode == 0
    files = list(tmp_path.rglob("*.nb[ic]"))
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-40])
    done = run_small(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupted_compilation_leaves_no_process_and_is_done_again(tmp_path):
    script = f"""
import os, signal, threading, time
{RECORDED}
def interrupt():
    while not started:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    {SMALL.strip().replace(chr(10), chr(10) + "    ")}
    raise SystemExit("was not interrupted")
except KeyboardInterrupt:
    (process,) = started
    assert process.returncode is not None
{SMALL}
assert len(started) == 2
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


def test_different_kernels_are_compiled_side_by_side_and_the_same_one_once(tmp_path):
    script = """
import threading
import numpy as np
from tomoscale import kernels
from tomoscale.kernels import _apart, _compile

asked, waiting = [], threading.Barrier(2, timeout=60)
plain = _compile.compile_apart

def compile_apart(folder, function, types):
    waiting.wait()  # for that of the other kernel
    asked.append(function.__name__)
    plain(folder, function, types)

_compile.compile_apart = compile_apart
frames = np.ones((1, 3, 3), np.uint16)
calls = [lambda: kernels.normalise(frames), lambda: kernels.frame_median(frames, 3)]
kernels.together(*calls, *calls)
assert len(set(asked)) == len(asked) == 2, asked
assert len(_apart._idle) == 2
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_of_one_of_several_calls_is_raised():
    def fail() -> None:
        raise ValueError("of one")

    with pytest.raises(ValueError, match="of one"):
        kernels.together(lambda: None, fail)


def test_the_compiler_leaves_when_nobody_needs_it(tmp_path):
    script = f"""
import time
{RECORDED}
_apart.IDLE_S = 0.2
{SMALL}
while started[0].returncode is None:
    time.sleep(0.01)
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_the_compiler_leaves_with_a_process_that_is_killed(tmp_path):
    script = f"""
import time
from tomoscale.kernels import _apart
_apart.IDLE_S = 600
{SMALL}
print(_apart._idle[0].process.pid, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < end, "an orphan"
        time.sleep(0.01)
