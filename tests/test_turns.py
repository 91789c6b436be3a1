"""While a block is computed the next one is read and the last one written, and nothing else changes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tomoscale import blocks, cluster, journal, run, store
from tomoscale.blocks import Field, Piece
from tomoscale.errors import BlocksFailedError

N_BLOCKS = 5


class Rows:
    """A source of rows that says in a folder which of them it was asked for."""

    shape, dtype, chunks = (N_BLOCKS, 4), np.dtype("u1"), (1, 4)

    def __init__(self, folder):
        self.folder = folder

    def read(self, window):
        (self.folder / f"read.{window[0].start}").touch()
        return np.full((1, 4), window[0].start, "u1")

    def decoded(self, window):
        return 4

    def at(self, window):
        return Piece(self, window)


def holds(condition, wait_s):
    """Tell whether something is so, or becomes so while we wait."""
    end = time.monotonic() + wait_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def watch(row, folder, output, wait_s, bad):
    """Return for a row whether, while it is computed, one more is read and all before it get written; how many are."""
    number = int(row[0, 0])
    alone = os.open(folder / "computing", os.O_CREAT | os.O_EXCL)  # fails if another is computed as well
    try:
        if number == bad:
            raise RuntimeError("the detector was on fire")
        before = [p.suffix[1:] for p in folder.glob("computed.*")]
        wanted = min(len(before) + 2, N_BLOCKS)
        read = holds(lambda: len(list(folder.glob("read.*"))) >= wanted, wait_s)
        written = holds(lambda: all((output / "row" / "c" / n / "0").exists() for n in before), wait_s)
        (folder / f"computed.{number}").touch()
        return np.array([[read, written, number, len(list(folder.glob("read.*")))]], "u1")
    finally:
        os.close(alone)
        (folder / "computing").unlink()


def rows(folder, output, *, overlaps, wait_s, bad=-1):
    """Plan one block for each row."""
    field = Field(np.dtype("u1"), ((1,) * N_BLOCKS, (4,)), (1, 4))
    unfinished = Path(f"{output}.incomplete")
    return blocks.map_blocks(
        watch,
        lambda i: (Rows(folder).at((slice(i[0], i[0] + 1), slice(0, 4))), folder, unfinished, wait_s, bad),
        {"row": field},
        overlaps=overlaps,
        scratch=1000,
    )


@pytest.mark.parametrize("scheduler", ["threads", "local"])
def test_the_next_block_is_read_and_the_last_one_written_while_one_is_computed(scheduler, tmp_path):
    out = tmp_path / "out.zarr"
    lazy = rows(tmp_path, out, overlaps=True, wait_s=20)
    with cluster.connect(scheduler, workers=1, threads=1) as connection:
        run.write(lazy, out, connection=connection, quiet=True)
    found = store.open_volume(out / "row").whole()
    np.testing.assert_array_equal(found[:, :2], 1)
    np.testing.assert_array_equal(found[:, 2], np.arange(N_BLOCKS))


def test_blocks_that_take_much_memory_come_one_after_the_other(tmp_path):
    """Also on workers that have the threads for more, from a run before."""
    with cluster.connect("threads", threads=1) as connection:
        first = rows(tmp_path, tmp_path / "first.zarr", overlaps=True, wait_s=0)
        run.write(first, tmp_path / "first.zarr", connection=connection, quiet=True)
        for marker in (*tmp_path.glob("read.*"), *tmp_path.glob("computed.*")):
            marker.unlink()
        out = tmp_path / "out.zarr"
        run.write(rows(tmp_path, out, overlaps=False, wait_s=0.1), out, connection=connection, quiet=True)
    found = store.open_volume(out / "row").whole()
    np.testing.assert_array_equal(np.sort(found[:, 3]), np.arange(N_BLOCKS) + 1)


def test_the_plan_counts_the_block_that_is_read_or_written_meanwhile(tmp_path):
    alone, both = (run.plan(rows(tmp_path, tmp_path / "o.zarr", overlaps=o, wait_s=0)) for o in (False, True))
    assert (alone.overlaps, both.overlaps) == (False, True)
    # In and out are a row of 4 bytes, and so is a chunk: eight bytes to be read, or to be written.
    assert alone.block_bytes == 4 + 4 + 1000 + 4 + 4
    assert both.block_bytes == alone.block_bytes + 8


def test_a_block_that_fails_gives_its_turn_back(tmp_path):
    out = tmp_path / "out.zarr"
    lazy = rows(tmp_path, out, overlaps=True, wait_s=20, bad=1)
    with (
        cluster.connect("threads", threads=1) as connection,
        pytest.raises(BlocksFailedError, match=r"row\[1:2, 0:4\]: RuntimeError: the detector was on fire"),
    ):
        run.write(lazy, out, connection=connection, quiet=True, keep_going=True)
    assert len(journal.Job(out).finished()["row"]) == N_BLOCKS - 1
