"""The command is the function: same result, clear words, exit status, nothing on standard output but the result."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_array, write_scan

from tomoscale import background, cli, store, values
from tomoscale.errors import TomoscaleError


@pytest.fixture
def folder(tmp_path, monkeypatch, scan):
    write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23), dark=np.full(scan.shape[1:], 90, np.uint16))
    write_array(tmp_path / "image.zarr", scan[0])
    write_array(tmp_path / "flat.zarr", np.full(scan.shape[1:], 60000, np.uint16))
    (tmp_path / "text").write_text("hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> int:
    return cli.main(line.split())


def test_command_writes_what_the_function_returns(folder, capsys):
    options = "--margin 2 --half-window 9 --step 4 --ranking exact --smoothing 5 --dtype int32"
    assert run(f"background scan.zarr {options} --scheduler threads") == 0
    printed = capsys.readouterr()
    assert printed.out == "scan-background.zarr\n"
    assert "background.remove" in printed.err
    assert "memory" in printed.err
    expected = background.remove(
        "scan.zarr", margin=2, half_window=9, step=4, ranking="exact", smoothing=5, dtype="int32"
    )
    for name, field in expected._asdict().items():
        np.testing.assert_array_equal(
            store.open_volume(folder / "scan-background.zarr" / name).whole(), field.compute()
        )


def test_a_part_of_the_input_is_cut_before_the_work(folder, scan):
    assert (
        run("background scan.zarr -o part.zarr --roi 10:60,2:12,3:20 --step 5 --scheduler threads --quiet")
        == 0
    )
    expected = background.remove(scan[10:60, 2:12, 3:20], dark=np.full((10, 17), 90, np.uint16), step=5)
    np.testing.assert_array_equal(store.open_volume("part.zarr").whole(), expected.frames.compute())


def test_a_range_without_ends_is_the_whole_axis(folder, scan):
    assert run("otsu scale scan.zarr -o part.zarr --roi 80:,:,:7 --scheduler threads --quiet") == 0
    assert store.open_volume("part.zarr").shape == (10, scan.shape[1], 7)


def test_a_subcommand_may_be_an_option(folder):
    assert run("otsu scan.zarr --mask -o a.zarr --scheduler threads --quiet") == 0
    assert run("otsu mask scan.zarr -o b.zarr --scheduler threads --quiet") == 0
    same = [store.open_volume(folder / name).whole() for name in ("a.zarr", "b.zarr")]
    np.testing.assert_array_equal(*same)
    assert store.open_volume("a.zarr").history()[-1]["operation"] == "otsu.initial_mask"


def test_help_of_convert_says_that_the_output_comes_last(capsys):
    assert run("convert --help") == 0
    assert capsys.readouterr().out.startswith("Usage: tomoscale convert [OPTIONS] SOURCE... OUT\n\nConvert")


def test_quiet_prints_the_path_alone(folder, capsys):
    assert run("background scan.zarr -o a.zarr --step 9 --scheduler threads --quiet") == 0
    assert capsys.readouterr() == ("a.zarr\n", "")
    assert run("verify a.zarr --quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_dry_run_writes_nothing(folder, capsys):
    before = sorted(folder.iterdir())
    assert run("background scan.zarr --dry-run") == 0
    assert "per worker" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


BAD = {
    "absent": ("background absent.zarr", "absent.zarr: does not exist"),
    "a file": ("background text", "is a file; expected a Zarr directory"),
    "a folder": ("background .", "neither a Zarr array nor a Zarr group"),
    "two axes": ("background image.zarr", "expected (frame, row, column)"),
    "half window": (
        "background scan.zarr --half-window 0",
        "half_window: input should be greater than or equal to 1",
    ),
    "step": ("background scan.zarr --step -5", "step"),
    "even edge": ("background scan.zarr --smoothing 4", "must be odd"),
    "margin": ("background scan.zarr --margin 200", "does not fit frames of 20 x 23; give 10 at most"),
    "rectangle": ("background scan.zarr --margin-roi 0:3", "rectangle '0:3'; expected r0:r1,c0:c1"),
    "outside": ("background scan.zarr --margin-roi 0:3,20:30", "20:30 lies outside frames of 20 x 23"),
    "ranking": ("background scan.zarr --ranking rough", "rough"),
    "no option": ("background scan.zarr --half-windw 5", "half-window"),
    "too much": (
        "background scan.zarr out.zarr",
        "nothing takes out.zarr; an output is given as --output NAME",
    ),
    "too much to show": ("info scan.zarr out.zarr", "nothing takes out.zarr; see tomoscale info --help"),
    "no command": ("backgruond scan.zarr", "background"),
    "workers": ("background scan.zarr --workers 0", "workers"),
    "memory": ("background scan.zarr --memory bananas", "'bananas'; expected an amount such as 8GB"),
    "no memory": ("background scan.zarr --memory -3GB", "--memory"),
    "little memory": ("background scan.zarr --memory 160MB", "give --memory 500MB at least"),
    "roi": ("background scan.zarr --roi 0:500,0:3,0:3", "roi 0:500 lies outside an axis of 90"),
    "roi axes": ("background scan.zarr --roi 0:5", "roi has 1 ranges, the volume has 3 axes"),
    "roi words": ("background scan.zarr --roi a:b,0:3,0:3", "range 'a:b'; expected start:stop"),
    "scheduler": ("background scan.zarr --scheduler cloud", "scheduler 'cloud'; expected local, threads"),
    "plain tcp": ("background scan.zarr --scheduler tcp://10.1.2.3:8786", "not encrypted; use tls://"),
    "flat as dark": ("background scan.zarr --dark flat.zarr", "brighter than the frames"),
    "output": ("background scan.zarr -o missing/out.zarr", "does not exist; create it first"),
    "onto input": ("background scan.zarr -o scan.zarr", "in, on or around the input"),
    "verify": ("verify scan.zarr", "not a result of tomoscale"),
    "simulate": ("simulate dct out.zarr --shape 5", "shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_status_2_and_writes_nothing(folder, capsys, case):
    line, words = BAD[case]
    before = sorted(p for p in folder.rglob("*"))
    assert run(line) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1, printed.err
    assert sorted(p for p in folder.rglob("*")) == before


def test_a_reader_that_stops_early_is_no_error(folder):
    info = subprocess.Popen(
        [sys.executable, "-m", "tomoscale.cli", "info", "scan.zarr"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert info.stdout is not None
    info.stdout.close()
    assert info.stderr is not None
    assert info.stderr.read() == b""
    assert info.wait() == 0


def test_a_result_that_cannot_be_printed_is_an_error(folder):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tomoscale.cli", "info", "scan.zarr"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (3, "tomoscale: standard output: No space left on device\n")


def test_memory_is_read_in_the_units_that_people_write():
    assert values.memory_bytes("1.5 GB") == 1_500_000_000
    assert values.memory_bytes("2gib") == 2**31
    with pytest.raises(TomoscaleError):
        values.memory_bytes("GB")


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
def test_what_is_meant_for_a_closed_stream_goes_nowhere_else(tmp_path, closed):
    program = (
        "import os, sys; from tomoscale.__main__ import keep_standard_streams; keep_standard_streams();"
        "chunk = open('chunk', 'w'); print('out', flush=True); print('e', file=sys.stderr, flush=True);"
        "os.write(2, b'error'); sys.exit(len(sys.stdin.read()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: [os.close(number) for number in closed],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "" if 1 in closed else "out\n")
    assert (tmp_path / "chunk").read_text() == ""
