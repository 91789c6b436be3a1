"""Kernels are compiled once, by processes of their own; whatever becomes of these or their files, they are right."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from numba.core.errors import NumbaError

from tomoscale import kernels
from tomoscale.kernels import _clean_frames

SMALL = """
import numpy as np
from tomoscale import kernels
if kernels.normalise(np.ones((1, 2, 2), np.uint16))[0, 0, 0] != 1:
    raise SystemExit("wrong")
"""
COMPILES_NOTHING = f"""
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
{textwrap.indent(SMALL, "    ")}
if compiled.buffer:
    raise SystemExit("compiled here")
"""
RECORDED = """
from tomoscale.kernels import _apart
started, plain = [], _apart.subprocess.Popen

def popen(*arguments, **more):
    started.append(plain(*arguments, **more))
    return started[-1]

_apart.subprocess.Popen = popen
"""
HERE = "UserWarning: kernels are compiled in this process"
UNCACHED = "UserWarning: kernels are compiled in every process, as nothing can be cached"


def run_small(
    home: Path, script: str = SMALL, *options: str, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a script that finds no kernels but those below a folder, after a command of the shell."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "XDG"))}
    command = [sys.executable, *options, "-c", script]
    if before:
        command = ["bash", "-c", f'{before}; exec "$@"', "bash", *command]
    return subprocess.run(
        command, env={**kept, "HOME": str(home)}, capture_output=True, text=True, check=False
    )


def wait_until_gone(pid: int) -> None:
    """Wait for a process to end."""
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "an orphan"
        time.sleep(0.01)


@pytest.mark.parametrize("options", [(), ("-OO",), ("-I",)])
def test_what_the_compiler_takes_stays_with_no_process_that_computes(tmp_path, options):
    # With -I no package is found but that of an environment, which may be another one.
    found = f"import sys; sys.path.insert(0, {str(Path(kernels.__file__).parents[2])!r})"
    done = run_small(tmp_path, f"{found}\n{COMPILES_NOTHING}", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize("interpreter", ["/nowhere/python", "/bin/false", "", None])
def test_a_process_that_must_compile_itself_says_so(tmp_path, interpreter):
    done = run_small(tmp_path, f"import sys; sys.executable = {interpreter!r}\n{SMALL}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(HERE) == 1
    assert run_small(tmp_path).stderr == ""


def test_a_program_that_does_not_answer_is_given_up(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    script = f"""
import sys
from tomoscale.kernels import _apart
_apart.START_S = 0.2
sys.executable = {str(program)!r}
{SMALL}"""
    done = run_small(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert "it does not answer" in done.stderr


def test_kernels_run_where_nothing_can_be_cached_and_say_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run_small(tmp_path / "file")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(UNCACHED) == 1


def test_kernels_run_where_the_disk_is_full_and_say_so(tmp_path):
    done = run_small(tmp_path, before="ulimit -f 8")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(UNCACHED) == 1
    assert HERE not in done.stderr


def test_a_damaged_cache_is_compiled_again(tmp_path):
    assert run_small(tmp_path).returncode == 0
    files = list(tmp_path.rglob("*.nb[ic]"))
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-40])
    done = run_small(tmp_path, COMPILES_NOTHING)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_kernel_is_its_own_error():
    with pytest.raises(NumbaError):
        _clean_frames._normalise(1, 2, 3, 4, 5)


def test_different_kernels_are_compiled_side_by_side_and_the_same_one_once(tmp_path):
    script = """
import threading
import numpy as np
from tomoscale import kernels
from tomoscale.kernels import _compile

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
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


def test_of_several_calls_the_error_of_the_first_is_raised():
    def fail(name: str) -> None:
        time.sleep(0.1 if name == "one" else 0)
        raise ValueError(name)

    with pytest.raises(ValueError, match="one"):
        kernels.together(lambda: None, lambda: fail("one"), lambda: fail("two"))


# ---------------------------------------------------------------- whose end comes first

linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes as Linux shows them")


@linux
def test_an_interrupt_is_heeded_at_once_and_the_next_call_is_right(tmp_path):
    script = f"""
import os, signal, threading
{RECORDED}
asked = threading.Event()
heeded = threading.Event()
plain_ask = _apart._Compilers.ask

def ask(self, question):
    asked.set()
    heeded.wait()  # for ever, if the interrupt waits for the answer
    return plain_ask(self, question)

def interrupt():
    asked.wait()
    os.kill(os.getpid(), signal.SIGINT)

_apart._Compilers.ask = ask
threading.Thread(target=interrupt).start()
try:
{textwrap.indent(SMALL, "    ")}
    raise SystemExit("was not interrupted")
except KeyboardInterrupt:
    heeded.set()
{SMALL}
print(*(p.pid for p in started))
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")
    for pid in done.stdout.split():
        wait_until_gone(int(pid))


@linux
@pytest.mark.parametrize("is_busy", [False, True])
def test_no_compiler_outlives_a_process_that_is_killed(tmp_path, is_busy):
    script = f"""
import os, threading, time
{RECORDED}
_apart.IDLE_S = 600
busy = threading.Thread(target=lambda: exec({SMALL!r}, {{}}), daemon=True)
busy.start()
busy.join(None if not {is_busy} else 0)
while not started:
    time.sleep(0.01)
print(started[0].pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = run_small(tmp_path, script)
    assert done.returncode == -9, done.stderr
    wait_until_gone(int(done.stdout))


@linux
def test_the_compiler_leaves_when_nobody_needs_it_and_another_one_takes_its_place(tmp_path):
    script = f"""
import time
{RECORDED}
_apart.IDLE_S = 0.1
{SMALL}
end = time.monotonic() + 60
while started[0].returncode is None:
    assert time.monotonic() < end
    time.sleep(0.01)
assert kernels.normalise(np.ones((1, 2, 2), np.int16))[0, 0, 0] == 1
assert len(started) == 2
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_neither_a_fork_in_the_midst_of_a_compilation_nor_its_parent_waits_for_a_compiler(tmp_path):
    script = f"""
import os, threading, time, warnings
{RECORDED}
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
_apart.IDLE_S = 0.1
starting, forked = threading.Event(), threading.Event()
popen_of_all = _apart.subprocess.Popen

def popen(*arguments, **more):  # the fork gets both ends of the connection
    starting.set()
    forked.wait()
    return popen_of_all(*arguments, **more)

_apart.subprocess.Popen = popen
asking = threading.Thread(target=lambda: exec({SMALL!r}, {{}}), daemon=True)
asking.start()
starting.wait()
stay, go = os.pipe()
child = os.fork()
forked.set()
if not child:
    {textwrap.indent(SMALL, "    ").strip()}
    os.close(go)
    os.read(stay, 1)  # until the parent is done
    os._exit(0)
os.close(stay)
asking.join()
while started[0].returncode is None:
    time.sleep(0.01)
from tomoscale import kernels
import numpy as np
for dtype in ("i2", "i4"):
    kernels.normalise(np.ones((1, 2, 2), dtype))
    time.sleep(0.5)
os.close(go)
assert os.waitpid(child, 0)[1] == 0
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("seconds", [0, 0.8])
def test_a_process_that_ends_while_it_waits_for_a_kernel_does_not_begin_to_compile_it(tmp_path, seconds):
    script = f"""
import atexit, sys, threading, time
atexit.register(lambda: time.sleep(1))  # called after the compilers are ended
{RECORDED}
from tomoscale.kernels import _compile
_compile.compile_below = lambda *_: print("begun", file=sys.stderr, flush=True)
threading.Thread(target=lambda: exec({SMALL!r}, {{}}), daemon=True).start()
while not started:
    time.sleep(0.01)
time.sleep({seconds})
"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_somebody_clears_away_meanwhile_is_made_again(tmp_path):
    script = f"""
from tomoscale.kernels import _compile
plain, cleared = _compile.compile_apart, []

def compile_apart(folder, *arguments):
    if not cleared:
        cleared.append(folder)
        raise FileNotFoundError(folder)
    plain(folder, *arguments)

_compile.compile_apart = compile_apart
{COMPILES_NOTHING}"""
    done = run_small(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_kernel_that_cannot_be_loaded_is_compiled_here_which_is_said(tmp_path):
    script = f"""
from pathlib import Path
from tomoscale.kernels import _compile
plain = _compile.compile_apart

def compile_apart(folder, *arguments):
    plain(folder, *arguments)
    for file in folder.rglob("*.nbc"):
        file.write_bytes(b"")

_compile.compile_apart = compile_apart
{SMALL}"""
    done = run_small(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("UserWarning: a kernel is compiled in this process, as it cannot be loaded") == 1
