"""Every damage to a result is found, and made good from the record of how it was made."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import small_scan, write_scan

from tomoscale import background, run, store
from tomoscale.errors import DamagedError, TomoscaleError
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


def test_two_swapped_objects_are_found(result):
    one, other = [f for f in objects(result) if "frames" in f.parts][:2]
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    found = verify(result, as_json=True)
    assert {d["key"] for d in found["damaged"]} == {
        str(f.relative_to(result / "frames")) for f in (one, other)
    }


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
