"""
Kill a run again and again, let it go on, and compare what it makes with what an undisturbed run makes.

    python -m tests.chaos --kills 100
    python -m tests.chaos --kills 100 --operation convert --seed 7

Six kills in ten are SIGKILL, four SIGTERM; the victim is any process of the run: the client, which holds scheduler
and nannies, a worker, or a helper of Python. Whenever the run completes, its decoded result is compared, and the
blocks that were computed more than once are counted: never more than were in flight when something was killed. Then
it begins again, until all kills are spent. The exit status is 1 if anything was not as promised.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

if __package__:  # python -m tests.chaos
    from .conftest import small_scan, write_scan
    from .drill import COMMANDS, Drill, catches, end_all, family, gone, workers_of
else:
    from conftest import small_scan, write_scan
    from drill import COMMANDS, Drill, catches, end_all, family, gone, workers_of

SLOTS = 2
LONGEST_S = 300
"""A run that neither ends nor is killed for so long hangs."""


class Chaos:
    """
    A drill, and what came of it.

    Parameters
    ----------
    folder : Path
        An empty folder for input and output.
    operation : str
        `background` or `convert`.
    seed : int
        Of when and whom to kill.
    """

    def __init__(self, folder: Path, operation: str, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.drill = Drill(folder, operation)
        write_scan(folder / "scan.zarr", small_scan(160, rows=48, columns=64), (8, 2, 64))
        done = self.drill.run(scheduler="threads")
        assert done.returncode == 0, done.stderr
        self.expected = self.drill.content()
        self.n_blocks = len({label for label, _ in self.drill.logged("begun")})
        self.kills: collections.Counter[str] = collections.Counter()
        self.ends: collections.Counter[int] = collections.Counter()
        self.violations: list[str] = []
        self.killed: set[str] = set()
        """Processes whose blocks in flight are counted."""
        self.completed = self.redone = self.in_flight = self.allowed = 0
        self.slowest_exit = 0.0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Remove the result, so that the next run begins with nothing."""
        shutil.rmtree(self.drill.target, ignore_errors=True)
        self.drill.log.unlink(missing_ok=True)
        self.allowed = 0

    def run(self, n_kills: int, show: bool = False) -> None:
        """Spend the kills, then let the last run complete."""
        n_hard = round(0.6 * n_kills)
        numbers = [signal.SIGKILL] * n_hard + [signal.SIGTERM] * (n_kills - n_hard)
        for n, i in enumerate(self.random.permutation(n_kills), 1):
            self.kill(numbers[i])
            if show:
                print(
                    f"\r{n} of {n_kills} kills, {self.completed} results compared, {self.redone} blocks redone, "
                    f"{len(self.violations)} violations ",
                    end="", file=sys.stderr, flush=True,
                )  # fmt: skip
        completed = self.completed
        while self.completed == completed and len(self.violations) < n_kills:
            self.look(self.running(), LONGEST_S)
        if show:
            print(file=sys.stderr)

    def running(self) -> subprocess.Popen:
        """Return the run, started if there is none."""
        process = self.drill.process
        if process is None or process.returncode is not None:
            process = self.drill.start()
        return process

    def kill(self, number: signal.Signals) -> None:
        """Let a run go on for a random while, mostly while blocks are computed, then kill one of its processes."""
        process = self.running()
        if self.random.random() < 0.7:
            n_begun = len(self.drill.logged("begun"))
            while len(self.drill.logged("begun")) == n_begun:
                if self.look(process, 0.05):
                    process, n_begun = self.running(), 0
        while self.look(process, self.random.uniform(0.0, 1.0)):
            process = self.running()
        workers = workers_of(process.pid)
        helpers = [p for p in family(process.pid)[1:] if p not in workers]
        kind = self.random.choice(["client", "worker", "helper"], p=[0.35, 0.6, 0.05])
        others = {"client": [], "worker": workers, "helper": helpers}[kind]
        if others:
            self.kill_other(others[self.random.integers(len(others))], number, kind)
        else:
            self.kill_client(process, number, family(process.pid))

    def kill_other(self, victim: psutil.Process, number: signal.Signals, kind: str) -> None:
        got = {label for (label,) in self.drill.logged("got")}
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
        gone([victim], 10)
        lost = {label for label, pid in self.drill.logged("begun") if pid == str(victim.pid)} - got
        self.killed.add(str(victim.pid))
        self.kills[f"{number.name} of a {kind}"] += 1
        self.allow(len(lost), 1 + 1, kind)  # one that is computed, one whose result is on its way

    def kill_client(
        self, process: subprocess.Popen, number: signal.Signals, victims: list[psutil.Process]
    ) -> None:
        while number == signal.SIGTERM and process.poll() is None and not catches(process.pid, number):
            time.sleep(0.002)  # Python itself is starting
        begin = time.monotonic()
        process.send_signal(number)
        done = self.drill.end(process, LONGEST_S)
        seconds = time.monotonic() - begin
        self.kills[f"{number.name} of the client"] += 1
        self.ends[done.returncode] += 1
        if done.returncode not in ({-signal.SIGKILL, 0} if number == signal.SIGKILL else {75, 0}):
            self.violations.append(f"{number.name}: status {done.returncode}: {done.stderr[-800:]}")
        if number == signal.SIGTERM:
            self.slowest_exit = max(self.slowest_exit, seconds)
            if seconds > 10:
                self.violations.append(f"SIGTERM: {seconds:.1f} s until the end: {done.stderr[-800:]}")
        if left := gone(victims, 30):
            self.violations.append(f"processes stayed behind: {left}")
        if self.drill.target.exists():
            self.compare()
            return
        self.allow_unrecorded()

    def allow_unrecorded(self) -> None:
        """Count what was in flight when a run ended without its result."""
        last = dict(self.drill.logged("begun"))  # where each block was begun last
        begun = {label for label, pid in last.items() if pid not in self.killed}
        self.killed |= set(last.values())
        self.allow(len(begun - self.recorded()), SLOTS, "client")

    def allow(self, n_lost: int, most: int, kind: str) -> None:
        self.allowed += n_lost
        self.in_flight += n_lost
        if n_lost > most:
            self.violations.append(f"{n_lost} blocks were in flight at the kill of a {kind}")

    def recorded(self) -> set[str]:
        """Return the blocks that are recorded."""
        found = set()
        for file in self.drill.root.glob(".tomoscale/blocks-*.jsonl"):
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):  # torn
                    found.add(json.loads(line)["block"].replace(" ", ""))
        return found

    def look(self, process: subprocess.Popen, seconds: float) -> bool:
        """Wait; if the run ended meanwhile, see how. Return whether it did."""
        begin = time.monotonic()
        while process.poll() is None and time.monotonic() - begin < seconds:
            time.sleep(0.02)
        if process.poll() is None:
            if seconds >= LONGEST_S:
                end_all(process.pid)
                self.violations.append(f"hangs: {self.drill.end(process).stderr[-800:]}")
                return True
            return False
        done = self.drill.end(process)
        self.ends[done.returncode] += 1
        if done.returncode == 0:
            self.compare()
            return True
        self.allow_unrecorded()
        if done.returncode != 3 or "same command" not in done.stderr:
            self.violations.append(f"status {done.returncode}: {done.stderr[-800:]}")
        return True

    def compare(self) -> None:
        """Hold the result against that of the undisturbed run."""
        self.completed += 1
        for name, array in self.drill.content().items():
            if not np.array_equal(array, self.expected[name]):
                self.violations.append(f"{name} differs from that of the undisturbed run")
        begun = [label for label, _ in self.drill.logged("begun")]
        redone = len(begun) - len(set(begun))
        if redone > self.allowed:
            self.violations.append(f"{redone} blocks were redone and {self.allowed} were in flight")
        self.redone += redone
        rest = {p.name for p in self.drill.folder.iterdir()} - {"scan.zarr", "out.zarr", "log.txt"}
        if rest:
            self.violations.append(f"left behind: {rest}")
        self.begin_anew()

    def summary(self) -> str:
        """Return what happened, for people."""
        kills = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kills.items()))
        ends = ", ".join(f"{n} with status {status}" for status, n in sorted(self.ends.items()))
        return "\n".join(
            [
                f"{self.drill.operation}: {sum(self.kills.values())} kills: {kills}",
                f"{sum(self.ends.values())} runs ended: {ends}; slowest exit at SIGTERM {self.slowest_exit:.1f} s",
                f"{self.completed} results of {self.n_blocks} blocks compared with that of an undisturbed run",
                f"{self.redone} blocks redone; {self.in_flight} were in flight",
                *(f"VIOLATION: {v}" for v in self.violations),
                f"{len(self.violations)} violations",
            ]
        )


def main() -> int:
    """Run the drill as a command."""
    parser = argparse.ArgumentParser(
        "python -m tests.chaos", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--operation", choices=[*COMMANDS], default="background")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tomoscale-chaos-") as folder:
        chaos = Chaos(Path(folder), chosen.operation, chosen.seed)
        try:
            chaos.run(chosen.kills, show=True)
        finally:
            if chaos.drill.process is not None and chaos.drill.process.poll() is None:
                end_all(chaos.drill.process.pid)
    print(f"{chaos.summary()}\n{time.monotonic() - begin:.0f} s, seed {chosen.seed}")
    return 1 if chaos.violations else 0


if __name__ == "__main__":
    sys.exit(main())
