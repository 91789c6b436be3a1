"""Every damage to a result is found, and made good from the record of how it was made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr
from conftest import small_scan, write_scan

from tomoscale import background, columns, lock, manifest, run, simulate, store
from tomoscale.chunks import ChunkFiles
from tomoscale.cli import main
from tomoscale.errors import BlocksFailedError, DamagedError, InterruptedRunError, TomoscaleError
from tomoscale.journal import Job
from tomoscale.objects import measure
from tomoscale.verify import verify


@pytest.fixture
def result(tmp_path):
    source = write_scan(tmp_path / "scan.zarr", small_scan(), (16, 4, 23), omega=np.linspace(0, 180, 90))
    cleaned = background.remove(source, margin=2, half_window=8, step=4, smoothing=5)
    return run.write(cleaned, tmp_path / "out.zarr", quiet=True)


def objects(result):
    return sorted(p for p in result.rglob("*") if p.is_file() and "c" in p.relative_to(result).parts)


def content(result):
    return {
        name: store.open_volume(result / name).whole() for name in ("frames", "background", "level", "omega")
    }


def flip(file, rng):
    raw = bytearray(file.read_bytes())
    raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    file.write_bytes(raw)


DAMAGES = {
    "flip": flip,
    "truncate": lambda file, rng: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file, rng: file.write_bytes(b""),
    "delete": lambda file, rng: file.unlink(),
}


def test_a_sound_result_is_intact(result):
    assert "intact" in verify(result)


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_object_is_found_by_name(result, damage):
    rng = np.random.default_rng(0)
    for file in objects(result):
        sound = file.read_bytes()
        DAMAGES[damage](file, rng)
        with pytest.raises(DamagedError, match=str(file.relative_to(result))):
            verify(result)
        file.write_bytes(sound)
    assert "intact" in verify(result)


def test_a_thousand_damages_in_one_result_are_all_found_and_nothing_else(tmp_path):
    voxels = da.random.default_rng(1).integers(0, 200, (1100, 8, 8), np.uint8, chunks=(1, 8, 8))
    result = run.write(voxels, tmp_path / "out.zarr", quiet=True)
    rng = np.random.default_rng(3)
    files = objects(result)
    victims = [files[i] for i in rng.permutation(len(files))[:1000]]
    kinds = [*DAMAGES.values(), None]
    for number, (file, other) in enumerate(zip(victims[::2], victims[1::2], strict=True)):
        kind = kinds[number % len(kinds)]
        if kind:
            kind(file, rng)
            kind(other, rng)
        else:
            swap(file, other)
    with pytest.raises(DamagedError, match="1000 of") as error:
        verify(result, as_json=True)
    found = {f"{d['array']}/{d['key']}" for d in error.value.found["damaged"]}
    assert found == {str(f.relative_to(result)) for f in victims}


def swap(one, other):
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


def test_damage_to_metadata_and_manifests_is_found_too(result):
    rng = np.random.default_rng(4)
    for file in sorted(p for p in result.rglob("*.json*") if p.is_file()):
        sound = file.read_bytes()
        for _ in range(25):
            DAMAGES["flip"](file, rng)
            with pytest.raises(TomoscaleError):
                verify(result)
            file.write_bytes(sound)
    assert "intact" in verify(result)


def test_an_inner_chunk_that_is_gone_from_a_shard_is_found(result):
    """Results are not sharded; one that was made so by other means and listed is held to its manifest alike."""
    voxels = store.open_volume(result / "background").whole()
    shutil.rmtree(result / "background" / "c")
    chunks, shards = (5, 4, 23), (10, 8, 23)
    array = zarr.create_array(
        result / "background", shape=voxels.shape, chunks=chunks, shards=shards, dtype="f4", overwrite=True
    )
    array[...] = voxels + 1
    listed = [p for p in (result / "background").rglob("*") if p.is_file()]
    keys = [str(p.relative_to(result / "background")) for p in listed]
    manifest.write(result / "background", [measure(result / "background" / k, k) for k in keys])
    key = "background/.manifest.jsonl"
    manifest.write(result, {**manifest.read(result), key: measure(result / key, key)}.values())
    assert "intact" in verify(result)
    array[:5, :4] = array.fill_value  # an inner chunk of fill values is not stored
    with pytest.raises(DamagedError, match="background/c/0/0/0"):
        verify(result)


def test_two_swapped_objects_are_found(result):
    one, other = [f for f in objects(result) if "frames" in f.parts][:2]
    swap(one, other)
    with pytest.raises(DamagedError) as error:
        verify(result, as_json=True)
    found = error.value.found["damaged"]
    assert {d["key"] for d in found} == {str(f.relative_to(result / "frames")) for f in (one, other)}


def test_the_command_lists_damage_as_json_and_leaves_with_3(result, capsys):
    objects(result)[0].unlink()
    assert main(["verify", str(result), "--json", "--quick"]) == 3
    out, err = capsys.readouterr()
    assert [d["reason"] for d in json.loads(out)["damaged"]] == ["missing"]
    assert "1 of" in err.splitlines()[-1]


def test_quick_looks_at_presence_and_length_only(result):
    first, second = objects(result)[:2]
    flip(first, np.random.default_rng(1))
    assert "intact" in verify(result, quick=True)
    second.unlink()
    with pytest.raises(DamagedError, match="missing"):
        verify(result, quick=True)


def test_repair_makes_the_result_identical_again(result):
    before = content(result)
    rng = np.random.default_rng(2)
    for i, file in enumerate(objects(result)):
        list(DAMAGES.values())[i % 4](file, rng)
    assert "intact" in verify(result, repair=True)
    for name, array in content(result).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_repair_that_is_stopped_goes_on_with_the_same_command(result, monkeypatch):
    before = content(result)
    for file in objects(result)[::2]:
        file.unlink()
    writes = ChunkFiles.write
    monkeypatch.setattr(ChunkFiles, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    monkeypatch.setattr("time.sleep", lambda s: None)
    with pytest.raises(BlocksFailedError):
        verify(result, repair=True)
    with pytest.raises(TomoscaleError, match="run is not finished"):
        verify(result)
    monkeypatch.setattr(ChunkFiles, "write", writes)
    scan = result.with_name("scan.zarr")
    run.write(background.remove(scan, margin=2, half_window=8, step=4, smoothing=5), result, quiet=True)
    assert "intact" in verify(result)
    for name, array in content(result).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_repair_that_is_stopped_goes_on_when_asked_again(result, monkeypatch):
    before = content(result)
    objects(result)[0].unlink()
    with monkeypatch.context() as patched:
        patched.setattr(ChunkFiles, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
        patched.setattr("time.sleep", lambda s: None)
        with pytest.raises(BlocksFailedError):
            verify(result, repair=True)
    assert "intact" in verify(result, repair=True)
    for name, array in content(result).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_result_is_verified_and_repaired_from_within_and_through_a_link(result, monkeypatch, tmp_path):
    before = content(result)
    (tmp_path / "link.zarr").symlink_to(result)
    for path in (".", "../link.zarr"):
        monkeypatch.chdir(result)
        objects(result)[0].unlink()
        assert "intact" in verify(Path(path), repair=True)
        for name, array in content(result).items():
            np.testing.assert_array_equal(array, before[name])


def test_a_second_repair_is_refused_by_name(result):
    objects(result)[0].unlink()
    job = Job(result)
    job.root.mkdir()  # of the first
    parent = os.getppid()
    job.lock.write_text(json.dumps({**lock.myself(), "pid": parent, "started": lock.started(parent)}))
    with pytest.raises(TomoscaleError, match=f"another run is writing it: process {parent}"):
        verify(result, repair=True)
    assert job.lock.exists()


def test_a_repair_that_does_not_begin_leaves_nothing_that_looks_complete(result, monkeypatch):
    objects(result)[0].unlink()
    with monkeypatch.context() as patched:
        patched.setattr(run, "write", lambda *a, **k: (_ for _ in ()).throw(InterruptedRunError("SIGTERM")))
        with pytest.raises(InterruptedRunError):
            verify(result, repair=True)
    with pytest.raises(TomoscaleError, match="not finished"):
        store.open_volume(result.with_name("out.zarr.incomplete"))
    assert "intact" in verify(result, repair=True)


def test_repair_does_not_keep_chunks_of_another_layout(result, monkeypatch):
    before = content(result)
    stored = columns._stored
    monkeypatch.setattr(columns, "_stored", lambda *a: (stored(*a)[0], 2, stored(*a)[2]))
    objects(result)[0].unlink()
    assert "intact" in verify(result, repair=True)
    for name, array in content(result).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_table_beside_a_result_is_held_to_its_record_and_never_replaces_another(tmp_path, monkeypatch):
    table = tmp_path / "scan.parquet"
    table.write_text("my own table")
    scan = simulate.dct(shape=(40, 32, 32), blobs=1, seed=1)
    with pytest.raises(TomoscaleError, match="would be replaced by the table"):
        run.write(scan, tmp_path / "scan.zarr", quiet=True)
    run.write(background.remove(small_scan()), tmp_path / "scan.zarr", quiet=True)
    with pytest.raises(TomoscaleError, match="would be replaced by the table"):
        run.write(scan, tmp_path / "scan.zarr", overwrite=True, quiet=True)
    shutil.rmtree(tmp_path / "scan.zarr")
    table.unlink()
    path = run.write(scan, tmp_path / "scan.zarr", quiet=True)
    assert "intact" in verify(path)
    table.write_bytes(table.read_bytes()[:-1])
    monkeypatch.chdir(path)
    for result in (path, Path()):
        with pytest.raises(DamagedError, match=r"scan.parquet: \d+ bytes"):
            verify(result)


def test_chunks_in_a_folder_that_is_a_link_are_damage_which_is_not_written_through(result, tmp_path):
    (result / "frames/c").rename(tmp_path / "elsewhere")
    (result / "frames/c").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    for how in ({}, {"quick": True}):
        with pytest.raises(DamagedError, match="frames/c/0/0/0: in a folder that is a link"):
            verify(result, **how)
    with pytest.raises(TomoscaleError, match="move the folder there"):
        verify(result, repair=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b""), lambda f: f.unlink(), os.mkfifo])
def test_lost_metadata_and_manifests_that_are_no_files_are_damage(result, damage):
    for name in ("zarr.json", "frames/.manifest.jsonl"):
        file = result / name
        sound = file.read_bytes()
        if damage is os.mkfifo:
            file.unlink()
        damage(file)
        with pytest.raises(DamagedError, match=name):
            verify(result)
        file.unlink(missing_ok=True)
        file.write_bytes(sound)
    assert "intact" in verify(result)


def test_repair_of_a_damaged_manifest_makes_its_array_again(result):
    before = content(result)
    flip(result / "frames" / ".manifest.jsonl", np.random.default_rng(5))
    assert "intact" in verify(result, repair=True)
    for name, array in content(result).items():
        np.testing.assert_array_equal(array, before[name])


def test_repair_refuses_a_record_that_is_damaged_itself(result):
    file = result / "zarr.json"
    file.write_text(file.read_text().replace('"half_window": 8', '"half_window": 9'))
    with pytest.raises(TomoscaleError, match="record of how it was made"):
        verify(result, repair=True)


def test_repair_says_when_versions_are_not_the_same(result, monkeypatch):
    objects(result)[0].unlink()
    monkeypatch.setattr("tomoscale.result.versions", lambda: {"numpy": "9.9"})
    with pytest.warns(UserWarning, match="other versions than the rest: numpy 9.9"):
        verify(result, repair=True)


def test_repair_refuses_an_input_that_has_changed(result):
    objects(result)[0].unlink()
    write_scan(result.with_name("scan.zarr"), small_scan(seed=1), (16, 4, 23))
    with pytest.raises(TomoscaleError, match="input frames has changed since"):
        verify(result, repair=True)


def test_a_result_with_lost_chunks_is_not_opened(result):
    next(f for f in objects(result) if "frames" in f.parts).unlink()
    with pytest.raises(TomoscaleError, match=r"1 of \d+ chunks are missing"):
        store.open_volume(result)


def test_only_results_can_be_verified(result):
    with pytest.raises(TomoscaleError, match="not a result of tomoscale"):
        verify(result.with_name("scan.zarr"))
