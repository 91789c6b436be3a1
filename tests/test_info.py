"""What a result is, is said from its metadata and its record alone: also while it is being written."""

from __future__ import annotations

import json
import os
import socket

import dask.array as da
import numpy as np
import pytest
from conftest import small_scan, write_array, write_scan

from tomoscale import background, cli, cluster, convert, info, lock, run, store
from tomoscale.errors import TomoscaleError


@pytest.fixture
def cleaned(tmp_path):
    scan = write_scan(tmp_path / "scan.zarr", small_scan(), (30, 5, 23))
    result = background.remove(scan, margin=2, half_window=20, step=10)
    return run.write(result, tmp_path / "cleaned.zarr", quiet=True)


def failing(block):
    if block[0, 0, 0] == 4:
        raise RuntimeError("no light")
    return block


@pytest.fixture
def unfinished(tmp_path):
    frames = da.from_array(
        np.arange(8, dtype=np.uint16)[:, None, None] * np.ones((1, 3, 3), np.uint16), (1, 3, 3)
    )
    with cluster.connect("threads", threads=1) as workers, pytest.raises(TomoscaleError):
        run.write({"frames": frames.map_blocks(failing)}, tmp_path / "x.zarr", quiet=True, connection=workers)
    return tmp_path / "x.zarr"


def test_arrays_are_described_with_shape_type_chunks_and_stored_bytes(cleaned):
    found = info.describe(cleaned)
    volume = store.open_volume(cleaned)
    frames = found["arrays"]["frames"]
    files = [f for f in (cleaned / "frames" / "c").rglob("*") if f.is_file()]
    assert frames["shape"] == list(volume.shape)
    assert frames["chunks"] == list(volume.chunks)
    assert frames["dtype"] == "float32"
    assert frames["codecs"] == "blosc-lz4-bitshuffle, crc32c"
    assert frames["bytes"] == volume.nbytes
    assert frames["stored_bytes"] == sum(f.stat().st_size for f in files)
    assert frames["n_chunks"] == len(files)
    assert found["complete"] is True
    json.dumps(found)


def test_words_name_arrays_parameters_and_inputs(cleaned):
    text = info.show(cleaned)
    for part in (
        "complete",
        "background",
        "levels"[:5],
        "half_window  20",
        "scan.zarr/frames (90 × 20 × 23 uint16)",
    ):
        assert part in text


def test_missing_chunk_is_counted(cleaned):
    next(f for f in (cleaned / "frames" / "c").rglob("*") if f.is_file()).unlink()
    assert info.describe(cleaned)["arrays"]["frames"]["missing"] == 1
    assert "it lacks 1 chunk of frames;" in info.show(cleaned)


def test_unfinished_run_tells_how_far_it_is_and_that_nobody_writes(unfinished):
    for path in (unfinished, unfinished.with_name("x.zarr.incomplete")):
        found = info.describe(path)
        assert found["complete"] is False
        assert found["run"]["written"]["frames"]["of"] == 8
        assert 4 <= found["run"]["written"]["frames"]["chunks"] < 8
        assert found["run"]["writer"] is None
        assert "nobody writes it now: run the same command again" in info.show(path)


@pytest.mark.parametrize("alive", [True, False])
def test_writer_of_an_unfinished_run_is_named(unfinished, alive):
    owner = {**lock.myself(), "since": "2026-11-21 06:00:00"}
    unfinished.with_name(".x.zarr.lock").write_text(json.dumps(owner if alive else {**owner, "started": 1.0}))
    text = info.show(unfinished)
    assert f"process {os.getpid()} on {socket.gethostname()} writes it since 2026-11-21 06:00:00" in text
    assert ("is gone" in text) is not alive


def test_zarr_of_another_making_is_described(tmp_path):
    import zarr

    write_array(tmp_path / "array.zarr", small_scan(), (30, 5, 23))
    found = info.describe(tmp_path / "array.zarr")
    assert found["complete"] is None
    assert found["arrays"]["array.zarr"]["shape"] == [90, 20, 23]
    zarr.create_array(tmp_path / "v2.zarr", shape=(4, 5, 6), chunks=(2, 5, 6), dtype="u2", zarr_format=2)[
        :
    ] = 1
    assert info.describe(tmp_path / "v2.zarr")["arrays"]["v2.zarr"]["codecs"] == "zstd"
    zarr.create_array(tmp_path / "s.zarr", shape=(4, 4, 4), chunks=(2, 2, 2), shards=(4, 4, 4), dtype="u2")[
        :
    ] = 1
    shards = info.describe(tmp_path / "s.zarr")["arrays"]["s.zarr"]
    assert shards["chunks"] == [2, 2, 2]
    assert shards["n_chunks"] == 1


def test_command_prints_words_or_json(cleaned, capsys):
    assert cli.main(["info", str(cleaned)]) == 0
    assert "1. background.remove" in capsys.readouterr().out
    assert cli.main(["info", str(cleaned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["history"][0]["operation"] == "background.remove"


@pytest.mark.parametrize(
    ("name", "words"), [("nothing", "does not exist"), ("text", "is a file"), ("", "holds neither")]
)
def test_what_is_no_zarr_is_refused(tmp_path, name, words):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(TomoscaleError, match=words):
        info.describe(tmp_path / name)


def test_table_beside_a_result_is_named(tmp_path):
    from tomoscale import simulate

    path = run.write(simulate.dct(shape=(24, 64, 64), blobs=4), tmp_path / "scan.zarr", quiet=True)
    table = info.describe(path)["tables"]["scan.parquet"]
    assert table["rows"] >= 1
    assert "peak" in table["columns"]


def test_files_that_were_converted_are_not_called_an_array_in_memory(tmp_path):
    for k in (8, 9, 10):
        np.save(tmp_path / f"f_{k}.npy", np.full((4, 5), k, np.uint16))
    np.save(tmp_path / "dark.npy", np.zeros((4, 5), np.uint16))
    made = convert.scan(tmp_path / "f_*.npy", dark=tmp_path / "dark.npy")
    text = info.show(run.write(made, tmp_path / "scan.zarr", quiet=True))
    assert "f_8.npy to f_10.npy (3 × 4 × 5 uint16)" in text
    assert "dark.npy (1 × 4 × 5 uint16)" in text
    assert "in memory" not in text


def test_a_dark_that_lay_beside_the_frames_is_not_called_a_default(tmp_path):
    scan = write_scan(
        tmp_path / "scan.zarr", small_scan(), (30, 5, 23), dark=np.full(small_scan().shape[1:], 90, np.uint16)
    )
    with_dark = run.write(background.remove(scan, half_window=20, step=10), tmp_path / "a.zarr", quiet=True)
    without = background.remove(scan, dark="none", half_window=20, step=10)
    rows = [dict(info.parameters(step)) for step in info.describe(with_dark)["history"]]
    assert (rows[0]["dark"], rows[0]["margin_mask"]) == ("found with the input", "default")
    run.write(without, tmp_path / "b.zarr", quiet=True)
    assert dict(info.parameters(info.describe(tmp_path / "b.zarr")["history"][0]))["dark"] == "none"
