"""Convert: files in, the same pixels out, whatever the blocks; and back."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pytest
import tifffile

from tomoscale import TomoscaleError, blocks, convert, run, store
from tomoscale.blocks import planned_for
from tomoscale.export import write_tiffs


def stack(n=70, rows=12, columns=16, dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, 60000, (n, rows, columns)).astype(dtype)


def write_tiffs_of(folder, frames, **options):
    folder.mkdir()
    for k, frame in enumerate(frames):
        tifffile.imwrite(folder / f"f_{k}.tif", frame, photometric="minisblack", **options)
    return folder


def converted(path, source, **options):
    run.write(convert.scan(source, **options), path, quiet=True)
    return store.open_volume(path)


# ---------------------------------------------------------------- the same pixels


@pytest.mark.parametrize("block_bytes", [30_000, 100_000, 10**9])
def test_result_does_not_depend_on_the_block_size(tmp_path, block_bytes):
    frames = stack()
    folder = write_tiffs_of(tmp_path / "t", frames, compression="zlib")
    with planned_for(block_bytes, threads=2):
        volume = converted(tmp_path / "out.zarr", folder)
    np.testing.assert_array_equal(volume.whole(), frames, strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "uint32", "float16", "float32", "float64"])
def test_every_type_is_kept(tmp_path, dtype):
    frames = stack(9).astype(dtype)
    np.save(tmp_path / "a.npy", frames)
    volume = converted(tmp_path / "out.zarr", tmp_path / "a.npy")
    assert volume.dtype == frames.dtype.newbyteorder("=")
    np.testing.assert_array_equal(volume.whole(), frames)


def test_darks_flats_and_angles_come_along(tmp_path):
    frames, key = stack(30), np.r_[[2] * 3, [1] * 2, [0] * 20, [1] * 2, [2] * 3]
    np.savez_compressed(tmp_path / "a.npz", data=frames, image_key=key, rotation_angle=np.arange(30) / 4)
    volume = converted(tmp_path / "out.zarr", tmp_path / "a.npz")
    np.testing.assert_array_equal(volume.whole(), frames[key == 0])
    np.testing.assert_array_equal(volume.sibling("dark").whole(), frames[key == 2])
    np.testing.assert_array_equal(volume.sibling("flat").whole(), frames[key == 1])
    np.testing.assert_array_equal(volume.sibling("omega").whole(), np.arange(5, 25) / 4)
    assert volume.path.name == "frames"


def test_dark_of_another_file_replaces_the_one_found_and_none_leaves_it_out(tmp_path):
    frames, other = stack(6), stack(2, seed=1)
    np.savez(tmp_path / "a.npz", data=frames, dark=frames[:3])
    np.save(tmp_path / "d.npy", other[0])
    write_tiffs_of(tmp_path / "darks", other)
    assert convert.scan(tmp_path / "a.npz")["dark"].shape == (3, 12, 16)
    assert "dark" not in convert.scan(tmp_path / "a.npz", dark="none")
    np.testing.assert_array_equal(
        convert.scan(tmp_path / "a.npz", dark=tmp_path / "d.npy")["dark"], other[:1]
    )
    np.testing.assert_array_equal(convert.scan(tmp_path / "a.npz", flat=tmp_path / "darks")["flat"], other)


def test_an_image_that_is_a_grid_becomes_its_frames_in_reading_order(tmp_path):
    frames, dark = stack(24, 6, 8), stack(8, 6, 8, seed=1)

    def tiled(parts):
        return parts.reshape(-1, 2, 2, 6, 8).swapaxes(2, 3).reshape(-1, 12, 16)

    np.savez(tmp_path / "a.npz", data=tiled(frames), dark=tiled(dark), omega=np.arange(6) * 2.0)
    volume = converted(tmp_path / "out.zarr", tmp_path / "a.npz", grid=(2, 2), chunks=(5, 4, 8))
    np.testing.assert_array_equal(volume.whole(), frames)
    np.testing.assert_array_equal(volume.sibling("dark").whole(), dark)
    np.testing.assert_array_equal(volume.sibling("omega").whole(), np.arange(24) / 2)
    np.save(tmp_path / "d.npy", dark[0])
    one = convert.scan(tmp_path / "a.npz", grid=(2, 2), dark=tmp_path / "d.npy")["dark"]
    np.testing.assert_array_equal(one, dark[:1])


def test_a_part_of_a_scan_keeps_dark_and_angles_beside_it(tmp_path):
    frames, dark = stack(20), stack(2, seed=1)
    np.savez(tmp_path / "a.npz", data=frames, dark=dark, theta=np.arange(20.0))
    result = convert.scan(tmp_path / "a.npz", roi=((5, 11), (2, 12), (3, 9)))
    np.testing.assert_array_equal(result["frames"], frames[5:11, 2:12, 3:9])
    np.testing.assert_array_equal(result["dark"], dark[:, 2:12, 3:9])
    np.testing.assert_array_equal(result["omega"], np.arange(5.0, 11))


def test_a_reconstruction_becomes_a_volume_of_cubes(tmp_path):
    slices = stack(20, 40, 44, "float32")
    volume = converted(
        tmp_path / "v.zarr", write_tiffs_of(tmp_path / "t", slices), kind="volume", chunks=(8, 16, 16)
    )
    assert volume.path.name == "volume"
    assert volume.chunks == (8, 16, 16)
    np.testing.assert_array_equal(volume.whole(), slices)
    assert convert.scan(tmp_path / "t", kind="volume")["volume"].shape == (20, 40, 44)


def test_frames_of_a_stopped_acquisition_are_not_made_up(tmp_path):
    frames = stack(20)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (20, 12, 16), "u2", chunks=(4, 12, 16))
        data[:10] = frames[:10]
    with pytest.raises(TomoscaleError, match=r"8 of 20 frames were never written, first 12.*--roi"):
        convert.scan(tmp_path / "a.h5")
    result = convert.scan(tmp_path / "a.h5", roi=((0, 10), (0, 12), (0, 16)))["frames"]
    np.testing.assert_array_equal(result, frames[:10])


def test_zarr_is_laid_out_anew(tmp_path):
    frames = stack()
    first = converted(tmp_path / "a.zarr", store.as_volume(frames), chunks=(70, 4, 4))
    second = converted(tmp_path / "b.zarr", tmp_path / "a.zarr")
    assert (first.chunks, second.chunks) == ((70, 4, 4), (64, 12, 16))
    np.testing.assert_array_equal(second.whole(), frames)


# ---------------------------------------------------------------- the plan


def test_one_task_per_band_and_every_byte_read_once(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=stack(500), chunks=(10, 12, 16), compression="gzip")
    with planned_for(200_000, threads=1):
        result = convert.scan(tmp_path / "a.h5")
    plan = run.plan(result)
    assert plan.n_blocks == math.ceil(500 / result["frames"].chunksize[0])
    assert plan.n_graph_tasks == plan.n_blocks
    assert plan.read == plan.written == 500 * 12 * 16 * 2
    assert plan.block_bytes <= 200_000


def test_stored_chunks_hold_fewer_frames_where_memory_is_short(tmp_path):
    np.save(tmp_path / "a.npy", stack(200, 64, 64))
    shapes = []
    for allowed in (10**9, 300_000, 40_000):
        with planned_for(allowed, threads=1):
            frames = convert.scan(tmp_path / "a.npy")["frames"]
        shapes.append(blocks.facts(frames)["stored"][0])
        assert frames.chunksize[0] % shapes[-1] == 0
        assert run.plan({"frames": frames}).block_bytes <= allowed
    assert shapes == [64, 16, 2]


def test_identity_of_the_files_is_stated_and_so_is_the_image(tmp_path):
    folder = write_tiffs_of(tmp_path / "t", stack(3))
    np.save(tmp_path / "d.npy", stack(1))
    facts = blocks.facts(convert.scan(folder, dark=tmp_path / "d.npy")["frames"])
    assert facts["image"] == "scan"
    assert facts["inputs"]["source"]["files"] == 3
    assert facts["inputs"]["dark"]["names"] == ["d.npy"]
    tifffile.imwrite(folder / "f_1.tif", stack(1, seed=5)[0], photometric="minisblack")
    changed = blocks.facts(convert.scan(folder)["frames"])["inputs"]
    assert changed["source"] != facts["inputs"]["source"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": (5, 2)}, "12 x 16 cannot be cut into 5 x 2"),
        ({"dark": "d.npy"}, "dark has 4 x 4 pixels, frames have 12 x 16; crop the dark"),
        ({"roi": ((0, 99), (0, 12), (0, 16))}, "roi 0:99 lies outside an axis of 8"),
        ({"roi": ((0, 3),)}, "roi has 1 ranges"),
        ({"chunks": (0, 1, 1)}, "chunks"),
        ({"kind": "movie"}, "kind"),
        ({"grid": (0, 2)}, "grid"),
        ({"kind": "volume", "dark": "d.npy"}, "a volume has neither dark"),
        ({"dark": "gone.npy"}, "does not exist"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_read(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", stack(8))
    np.save("d.npy", np.zeros((4, 4), "u2"))
    with pytest.raises(TomoscaleError, match=words) as caught:
        convert.scan("a.npy", **options)
    assert "\n" not in str(caught.value)


def test_a_block_that_does_not_fit_names_bytes_and_option(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", data=stack(40, 100, 100))
    np.save(tmp_path / "a.npy", stack(40, 100, 100))
    with planned_for(500_000, threads=1):
        assert convert.scan(tmp_path / "a.npy")["frames"].shape == (40, 100, 100)
        with pytest.raises(TomoscaleError, match=r"may take 500 kB; save the array with numpy.save"):
            convert.scan(tmp_path / "a.npz")
        with pytest.raises(TomoscaleError, match=r"fewer frames than 30"):
            convert.scan(tmp_path / "a.npy", chunks=(30, 10, 100))
    with (
        planned_for(10_000, threads=1),
        pytest.raises(TomoscaleError, match=r"a block of 1 frames of 100 x 100"),
    ):
        convert.scan(tmp_path / "a.npy")


# ---------------------------------------------------------------- and back


@pytest.mark.parametrize("compression", ["none", "zlib"])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "uint8"])
def test_tiff_files_and_back_are_the_same_pixels(tmp_path, dtype, compression):
    frames = stack(dtype=dtype)
    converted(tmp_path / "a.zarr", store.as_volume(frames))
    folder = convert.to_tiff(tmp_path / "a.zarr", tmp_path / "frames", compression=compression)
    assert len(list(folder.glob("*.tif"))) == len(frames)
    np.testing.assert_array_equal(tifffile.imread(folder / "frame_0007.tif"), frames[7])
    back = converted(tmp_path / "b.zarr", folder)
    np.testing.assert_array_equal(back.whole(), frames, strict=True)


def test_an_export_goes_on_and_keeps_what_is_complete(tmp_path):
    frames = stack(20)
    volume = converted(tmp_path / "a.zarr", store.as_volume(frames), chunks=(5, 12, 16))
    folder = convert.to_tiff(volume, tmp_path / "f")
    files = sorted(folder.glob("*.tif"))
    kept = files[0].stat().st_mtime_ns
    files[3].unlink()
    files[9].write_bytes(files[9].read_bytes()[:-5])
    assert write_tiffs(volume, folder, 0, 5) == 1
    convert.to_tiff(volume, folder)
    assert files[0].stat().st_mtime_ns == kept
    np.testing.assert_array_equal([tifffile.imread(f) for f in files], frames)
    assert not list(folder.glob("*.partial"))


def test_an_export_does_not_mix_with_other_files(tmp_path):
    volume, other = (
        converted(tmp_path / "a.zarr", store.as_volume(stack(9))),
        converted(tmp_path / "b.zarr", store.as_volume(stack(4, seed=1))),
    )
    folder = convert.to_tiff(volume, tmp_path / "f")
    with pytest.raises(TomoscaleError, match="holds another export; give an empty folder, or --overwrite"):
        convert.to_tiff(other, folder)
    convert.to_tiff(other, folder, overwrite=True)
    assert len(list(folder.glob("*.tif"))) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(TomoscaleError, match="no export"):
            convert.to_tiff(other, tmp_path / "mine", overwrite=overwrite)


def test_an_export_replaces_no_raw_frames_and_lies_outside_its_volume(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    tifffile.imwrite(raw / "frame_0001.tif", np.ones((4, 5), np.uint16))
    volume = converted(tmp_path / "a.zarr", store.as_volume(stack(4)))
    with pytest.raises(TomoscaleError, match="no export"):
        convert.to_tiff(volume, raw, overwrite=True)
    assert (tifffile.imread(raw / "frame_0001.tif") == 1).all()
    with pytest.raises(TomoscaleError, match="in, on or around the input"):
        convert.to_tiff(volume, tmp_path / "a.zarr/tiffs")


def test_an_array_in_memory_is_exported(tmp_path):
    folder = convert.to_tiff(stack(3), tmp_path / "f")
    np.testing.assert_array_equal(tifffile.imread(sorted(folder.glob("*.tif"))), stack(3))


def test_a_dry_run_of_an_export_writes_nothing(tmp_path, capsys):
    class How:
        dry_run, roi = True, None

    volume = converted(tmp_path / "a.zarr", store.as_volume(stack(9)))
    convert.to_tiff(volume, tmp_path / "f", how=How())
    assert "9 TIFF files of 12 x 16 uint16, uncompressed" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_convert_to_a_folder_means_export():
    assert convert.is_export(["a.zarr", "frames"])
    assert convert.is_export(["a.zarr/dark", "darks/"])
    assert not convert.is_export(["f_1.tif", "f_2.tif", "out.zarr"])
    assert not convert.is_export(["a.h5", "out.zarr"])
    assert not convert.is_export(["a.h5", "b.h5"])
