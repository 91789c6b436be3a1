"""Sources: every format gives back the pixels that were stored, and says in one line what is wrong."""

from __future__ import annotations

import contextlib
import pickle
import struct
import time
import zipfile

import h5py
import numpy as np
import pytest
import tifffile

from tomoscale import TomoscaleError, convert
from tomoscale.sources import Cropped, Gridded, Selected, open_source
from tomoscale.sources.names import in_order
from tomoscale.sources.tiff_header import read_pages

TYPES = ["uint8", "int16", "uint16", "uint32", "float16", "float32", "float64"]


def stack(n=7, rows=9, columns=11, dtype="uint16", seed=0):
    values = np.random.default_rng(seed).integers(0, 200, (n, rows, columns))
    return values.astype(dtype)


def write_tiffs(folder, frames, name="f_{}.tif", start=0, **options):
    folder.mkdir(exist_ok=True)
    for k, frame in enumerate(frames):
        tifffile.imwrite(
            folder / name.format(k + start), frame, photometric="minisblack", metadata=None, **options
        )
    return folder


def assert_reads(source, expected):
    """The whole, and windows that start and end anywhere, read directly and as pieces that travel."""
    assert source.shape == expected.shape
    assert source.dtype == expected.dtype.newbyteorder("=")
    n, rows, columns = expected.shape
    windows = [
        (slice(0, n), slice(0, rows), slice(0, columns)),
        (slice(n // 2, n // 2 + 1), slice(0, rows), slice(0, columns)),
        (slice(1 % n, n), slice(1, rows - 1), slice(0, columns)),
        (slice(0, max(1, n - 1)), slice(0, rows), slice(2, columns - 1)),
    ]
    for window in windows:
        np.testing.assert_array_equal(source.read(window), expected[window], strict=expected.dtype.isnative)
        piece = pickle.loads(pickle.dumps(source.at(window)))  # noqa: S301 (ours)
        np.testing.assert_array_equal(piece.load(), expected[window])


# ---------------------------------------------------------------- every format gives back what was stored


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_tiff_files_keep_their_pixels(tmp_path, dtype, byteorder):
    frames = stack(dtype=dtype)
    source = open_source(write_tiffs(tmp_path / "t", frames, byteorder=byteorder)).frames
    assert source.direct
    assert_reads(source, frames)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "lzw", "predictor": True},
        {"compression": "zstd"},
        {"compression": "packbits"},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "zlib"},
        {"rowsperstrip": 2},
        {"rowsperstrip": 4, "compression": "zlib", "predictor": True},
        {"bigtiff": True},
    ],
    ids=str,
)
def test_tiff_of_any_lossless_kind(tmp_path, options):
    frames = stack(3, 40, 33)
    assert_reads(open_source(write_tiffs(tmp_path / "t", frames, **options)).frames, frames)


def test_one_row_and_one_column(tmp_path):
    for k, frames in enumerate([stack(3, 1, 12), stack(3, 12, 1)]):
        for options in ({}, {"compression": "zlib"}):
            folder = write_tiffs(tmp_path / f"t{k}{len(options)}", frames, **options)
            np.testing.assert_array_equal(open_source(folder).frames.whole(), frames)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True}], ids=str)
def test_pages_of_several_files_are_frames_in_a_row(tmp_path, options):
    frames = stack(12)
    for k in range(3):
        with tifffile.TiffWriter(tmp_path / f"part{k}.tif", bigtiff=options.get("bigtiff", False)) as tiff:
            for frame in frames[4 * k : 4 * k + 4]:
                tiff.write(
                    frame, photometric="minisblack", compression=options.get("compression"), contiguous=False
                )
    assert_reads(open_source(tmp_path).frames, frames)


def test_imagej_stacks_behind_one_directory(tmp_path):
    frames = stack(6)
    tifffile.imwrite(tmp_path / "s.tif", frames, imagej=True)
    assert len(read_pages(tmp_path / "s.tif")) == 6
    tifffile.imwrite(tmp_path / "big.tif", frames, photometric="minisblack")
    assert_reads(open_source(tmp_path / "s.tif").frames, frames)
    assert_reads(open_source(tmp_path / "big.tif").frames, frames)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<i4", ">f4", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_numpy_files_keep_their_pixels(tmp_path, dtype, order, save):
    frames = np.asarray(stack().astype(dtype), order=order)
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, frames) if save is np.save else save(path, data=frames)
    assert_reads(open_source(path).frames, frames)


def test_images_in_npy_files_are_a_scan(tmp_path):
    frames = stack(12)
    for k, frame in enumerate(frames):
        np.save(tmp_path / f"{k}.npy", frame)
    source = open_source(tmp_path / "*.npy").frames
    assert type(source).__name__ == "Raw"
    assert_reads(source, frames)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (1, 9, 11)},
        {"chunks": (3, 4, 5), "compression": "gzip", "shuffle": True},
        {"chunks": (7, 2, 2), "compression": "lzf", "fletcher32": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["uint16", ">i4", "float32"])
def test_hdf5_keeps_its_pixels(tmp_path, dtype, options):
    frames = stack().astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("entry/data", data=frames, **options)
    assert_reads(open_source(tmp_path / "a.h5").frames, frames)


def test_bitshuffle_lz4(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    frames = stack(8, 64, 64)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("d", data=frames, chunks=(1, 64, 64), **hdf5plugin.Bitshuffle(cname="lz4"))
    assert_reads(open_source(tmp_path / "a.h5").frames, frames)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", ">u2"])
def test_edf_keeps_its_pixels(tmp_path, dtype):
    edf = pytest.importorskip("fabio.edfimage")
    frames = stack(11)
    for k, frame in enumerate(frames):
        path = tmp_path / f"scan{k}.edf"
        edf.EdfImage(data=frame.astype(np.dtype(dtype).newbyteorder("=")), header={"title": "x"}).write(
            str(path)
        )
        if dtype.startswith(">"):
            raw = path.read_bytes()
            head, body = raw[: -frame.nbytes], raw[-frame.nbytes :]
            head = head.replace(b"LowByteFirst ", b"HighByteFirst")
            path.write_bytes(head + np.frombuffer(body, "<u2").byteswap().tobytes())
    assert_reads(open_source(tmp_path).frames, frames.astype(dtype))
    several = edf.EdfImage(data=frames[0])
    for frame in frames[1:]:
        several.append_frame(data=frame)
    several.write(str(tmp_path / "all.edf"))
    assert_reads(open_source(tmp_path / "all.edf").frames, frames)


def test_zarr_brings_dark_flat_and_angles(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    frames, dark, omega = stack(), stack(2), np.arange(7) / 2
    for name, values in {"frames": frames, "dark": dark[0], "omega": omega}.items():
        group.create_array(name, data=values)
    scan = open_source(tmp_path / "s.zarr")
    np.testing.assert_array_equal(scan.frames.whole(), frames)
    np.testing.assert_array_equal(scan.dark.whole(), dark[:1])
    np.testing.assert_array_equal(scan.omega, omega)
    assert scan.flat is None


# ---------------------------------------------------------------- which frames, in which order


def test_frame_2_comes_before_frame_10(tmp_path):
    frames = stack(12)
    folder = write_tiffs(tmp_path / "t", frames, start=1)
    given = sorted(folder.glob("*.tif"))
    assert given[1].name == "f_10.tif"
    for source in (folder, str(folder / "f_*.tif"), given, given[::-1]):
        np.testing.assert_array_equal(open_source(source).frames.whole(), frames)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["scan2_008.tif", "scan2_009.tif", "scan2_010.tif"], "scan2_008.tif"),
        (["b_0003_1699.tif", "b_0001_1655.tif", "b_0002_1671.tif"], "b_0001_1655.tif"),
        (["10-1.tif", "10-0.tif"], "10-0.tif"),
    ],
)
def test_the_number_is_the_one_that_counts(tmp_path, names, first):
    assert in_order([tmp_path / n for n in names])[0].name == first


def test_several_folders_follow_each_other(tmp_path):
    frames = stack(10)
    parts = [write_tiffs(tmp_path / n, part) for n, part in (("b", frames[:6]), ("a", frames[6:]))]
    assert_reads(open_source(parts).frames, frames)


def nexus(path, frames, key, angle, unit="deg"):
    with h5py.File(path, "w") as file:
        detector = file.create_group("entry/instrument/detector")
        detector["data"] = frames
        detector["image_key"] = key
        file["entry/sample/rotation_angle"] = angle
        file["entry/sample/rotation_angle"].attrs["units"] = unit
        file["entry/data/data"] = h5py.SoftLink("/entry/instrument/detector/data")
        file["entry/data/again"] = detector["data"]


@pytest.mark.parametrize("kind", ["nexus", "npz"])
def test_image_key_tells_darks_and_flats_from_projections(tmp_path, kind):
    frames = stack(10)
    key = np.array([2, 1, 0, 0, 3, 0, 1, 0, 0, 2], np.uint8)
    angle = np.deg2rad(np.arange(10.0))
    if kind == "nexus":
        path = tmp_path / "a.nxs"
        nexus(path, frames, key, angle, "radians")
    else:
        path = tmp_path / "a.npz"
        np.savez(path, data=frames, image_key=key, rotation_angle=np.rad2deg(angle))
    scan = open_source(path)
    assert_reads(scan.frames, frames[key == 0])
    assert_reads(scan.dark, frames[key == 2])
    assert_reads(scan.flat, frames[key == 1])
    np.testing.assert_allclose(scan.omega, np.flatnonzero(key == 0))
    assert open_source(path, role="dark").frames.shape[0] == 2


def test_data_exchange_names_are_known(tmp_path):
    frames, white, theta = stack(), stack(3, seed=1), np.linspace(0, 180, 7)
    with h5py.File(tmp_path / "tooth.h5", "w") as file:
        file["exchange/data"], file["exchange/data_white"], file["exchange/theta"] = frames, white, theta
        file["exchange/data_dark"] = stack(2, seed=2)
    scan = open_source(tmp_path / "tooth.h5")
    assert_reads(scan.frames, frames)
    assert_reads(scan.flat, white)
    assert scan.dark.shape == (2, 9, 11)
    np.testing.assert_array_equal(scan.omega, theta)


def test_angles_of_another_entry_are_not_taken(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry0/data"] = stack()
        file["entry1/rotation_angle"] = np.arange(7.0)
    assert open_source(tmp_path / "a.h5").omega is None


def test_a_virtual_dataset_of_files_beside_it(tmp_path):
    frames = stack(8)
    layout = h5py.VirtualLayout(frames.shape, "uint16")
    (tmp_path / "parts").mkdir()
    for k in range(2):
        with h5py.File(tmp_path / f"parts/{k}.h5", "w") as file:
            file["d"] = frames[4 * k : 4 * k + 4]
        layout[4 * k : 4 * k + 4] = h5py.VirtualSource(f"parts/{k}.h5", "d", (4, 9, 11))
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    source = open_source(tmp_path / "master.h5").frames
    assert_reads(source, frames)
    assert len(source.files) == 3


def test_a_dataset_may_be_named_with_its_file(tmp_path):
    a, b = stack(seed=1), stack(seed=2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"], file["b"] = a, b
    np.testing.assert_array_equal(open_source(f"{tmp_path}/a.h5::b").frames.whole(), b)
    np.testing.assert_array_equal(open_source(tmp_path / "a.h5", "/a").frames.whole(), a)


# ---------------------------------------------------------------- views


def test_views_of_views_read_the_right_pixels(tmp_path):
    frames = stack(12, 8, 12)
    source = open_source(write_tiffs(tmp_path / "t", frames)).frames
    index = np.array([0, 1, 2, 5, 7, 8, 11])
    assert_reads(Selected(source, index), frames[index])
    assert_reads(Selected(Selected(source, index), np.array([1, 2, 4])), frames[index][[1, 2, 4]])
    crop = (slice(3, 9), slice(1, 7), slice(2, 12))
    assert_reads(Cropped(source, crop), frames[crop])
    grid = frames.reshape(12, 2, 4, 3, 4).swapaxes(2, 3).reshape(-1, 4, 4)
    assert_reads(Gridded(source, 2, 3), grid)
    assert_reads(Cropped(Gridded(Selected(source, index), 2, 3), (slice(5, 40), slice(0, 4), slice(0, 4))),
                 grid.reshape(12, 6, 4, 4)[index].reshape(-1, 4, 4)[5:40])  # fmt: skip


def test_a_piece_takes_along_only_its_own_files(tmp_path):
    source = open_source(write_tiffs(tmp_path / "t", stack(60))).frames
    piece = source.at((slice(20, 24), slice(0, 9), slice(0, 11)))
    assert len(piece.source.files) == 4
    assert len(pickle.dumps(piece)) < len(pickle.dumps(source)) / 3


def test_identity_changes_with_the_files(tmp_path):
    folder = write_tiffs(tmp_path / "t", stack())
    before = open_source(folder).frames.identity()
    assert before == open_source(folder).frames.identity()
    changed = folder / "f_3.tif"
    raw = bytearray(changed.read_bytes())
    raw[-1] ^= 1
    changed.write_bytes(raw)
    assert open_source(folder).frames.identity() != before


def test_ten_thousand_headers_take_seconds(tmp_path):
    folder = write_tiffs(tmp_path / "t", stack(2000, 4, 4))
    begin = time.perf_counter()
    open_source(folder)
    assert time.perf_counter() - begin < 2


# ---------------------------------------------------------------- what is wrong, in one line


def make(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_bytes(content)
    return tmp_path


def damaged_tiff(tmp_path, change):
    path = write_tiffs(tmp_path / "t", stack(1)) / "f_0.tif"
    change(path)
    return path


def cut(path, n):
    path.write_bytes(path.read_bytes()[:-n])


def patch(path, tag, value):
    """Put another value into a tag of the first directory."""
    raw = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<I", raw, 4)
    for i in range(struct.unpack_from("<H", raw, offset)[0]):
        entry = offset + 2 + 12 * i
        if struct.unpack_from("<H", raw, entry)[0] == tag:
            struct.pack_into("<H", raw, entry + 2, 4)
            struct.pack_into("<I", raw, entry + 8, value)
    path.write_bytes(raw)


def loop(path):
    raw = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<I", raw, 4)
    (count,) = struct.unpack_from("<H", raw, offset)
    struct.pack_into("<I", raw, offset + 2 + 12 * count, offset)
    path.write_bytes(raw)


def mixed(tmp_path, other, **options):
    folder = write_tiffs(tmp_path / "t", stack(3))
    tifffile.imwrite(folder / "f_3.tif", other, photometric="minisblack", **options)
    return folder


def mixed_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "m.tif") as tiff:
        tiff.write(stack(1)[0])
        tiff.write(stack(1)[0])
        tiff.write(stack(1, 5, 5)[0])
    return tmp_path / "m.tif"


def without(tmp_path, *numbers):
    folder = write_tiffs(tmp_path / "t", stack(12))
    for k in numbers:
        (folder / f"f_{k}.tif").unlink()
    return folder


def colour(tmp_path):
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((5, 5, 3), np.uint8), photometric="rgb")
    return tmp_path / "c.tif"


def four_frames(tmp_path):
    tifffile.imwrite(
        tmp_path / "f.tif", np.zeros((4, 9, 11), np.uint16), photometric="rgb", planarconfig="separate"
    )
    return tmp_path / "f.tif"


def jpeg(tmp_path):
    tifffile.imwrite(tmp_path / "j.tif", np.zeros((16, 16), np.uint8), compression="jpeg")
    return tmp_path / "j.tif"


def double(tmp_path):
    write_tiffs(tmp_path / "t", stack(2))
    return write_tiffs(tmp_path / "t", stack(1), name="f_0{}.tif", start=1)


def two_series(tmp_path):
    write_tiffs(tmp_path / "t", stack(2))
    return write_tiffs(tmp_path / "t", stack(2), name="dark_{}.tif")


def npy(tmp_path, array, shorten=0):
    path = tmp_path / "a.npy"
    np.save(path, array, allow_pickle=True)
    if shorten:
        cut(path, shorten)
    return path


def npz(tmp_path, **arrays):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


def h5(tmp_path, fill):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file)
    return tmp_path / "a.h5"


def h5_cut(tmp_path):
    path = h5(tmp_path, lambda f: f.create_dataset("d", data=stack(50)))
    cut(path, 2000)
    return path


def h5_linked(tmp_path):
    def fill(file):
        file["d"] = h5py.ExternalLink("/etc/passwd", "/d")

    return h5(tmp_path, fill)


def h5_external(tmp_path):
    return h5(tmp_path, lambda f: f.create_dataset("d", (2, 8, 8), "u1", external=[("/etc/passwd", 0, 128)]))


def h5_virtual(tmp_path, name, create=False):
    layout = h5py.VirtualLayout((4, 9, 11), "uint16")
    layout[:] = h5py.VirtualSource(name, "d", (4, 9, 11))
    if create:
        with h5py.File(tmp_path / name, "w") as file:
            file["d"] = stack(4)
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/a.h5", "w") as file:
        file.create_virtual_dataset("v", layout)
    return tmp_path / "in/a.h5"


def h5_holes(tmp_path):
    layout = h5py.VirtualLayout((4, 9, 11), "uint16")
    layout[:2] = h5py.VirtualSource("b.h5", "d", (2, 9, 11))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["d"] = stack(2)
    return h5(tmp_path, lambda f: f.create_virtual_dataset("v", layout))


def h5_loop(tmp_path):
    def fill(file):
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")

    return h5(tmp_path, fill), "a"


def h5_unknown_filter(tmp_path):
    def fill(file):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, 9, 11))
        properties.set_filter(32768 + 77, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((2, 9, 11))
        h5py.h5d.create(file.id, b"d", h5py.h5t.NATIVE_UINT16, space, properties)

    return h5(tmp_path, fill)


def edf(tmp_path, shorten=0, **header):
    module = pytest.importorskip("fabio.edfimage")
    path = tmp_path / "a.edf"
    module.EdfImage(data=stack(1)[0], header=header).write(str(path))
    if shorten:
        cut(path, shorten)
    return path


def bad_zip(tmp_path):
    path = npz(tmp_path, data=stack())
    cut(path, 40)
    return path


def lying_zip(tmp_path):
    """A member whose header declares more than the archive holds."""
    raw = npy(tmp_path, stack(2)).read_bytes().replace(b"(2, 9, 11)", b"(9, 9, 11)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("data.npy", raw)
    return tmp_path / "a.npz"


WRONG = {
    "absent": (lambda d: d / "no.tif", ["does not exist"]),
    "no match": (lambda d: f"{d}/f_*.tif", ["no file matches"]),
    "empty folder": (lambda d: d, ["holds no frames", "TIFF"]),
    "unknown format": (lambda d: make(d, a__raw=b"1") / "a.raw", [".raw", "known are TIFF"]),
    "several formats": (lambda d: make(d, a__npy=b"1", a__tif=b"1"), ["several formats", "pattern"]),
    "gap": (lambda d: without(d, 3, 7, 8), ["3 frames are missing", "3, 7 to 8"]),
    "one missing": (lambda d: without(d, 5), ["1 frame is missing", "f_0.tif and f_11.tif: 5"]),
    "double": (double, ["two files with the number 1"]),
    "two series": (two_series, ["dark_0.tif", "differ by more than a number", "--dark"]),
    "tiff empty": (lambda d: make(d, a__tif=b"") / "a.tif", ["empty file"]),
    "tiff is text": (lambda d: make(d, a__tif=b"hello world") / "a.tif", ["not a TIFF", "hell"]),
    "tiff header only": (lambda d: make(d, a__tif=b"II*\0\x08\0\0\0") / "a.tif", ["truncated", "directory"]),
    "tiff truncated": (lambda d: damaged_tiff(d, lambda p: cut(p, 20)), ["f_0.tif", "truncated"]),
    "tiff strip beyond": (
        lambda d: damaged_tiff(d, lambda p: patch(p, 273, 10**6)),
        ["truncated", "the file has"],
    ),
    "tiff absurd": (
        lambda d: damaged_tiff(d, lambda p: patch(p, 257, 4 * 10**9)),
        ["f_0.tif", "damaged: 1 strips"],
    ),
    "tiff no rows": (lambda d: damaged_tiff(d, lambda p: patch(p, 257, 0)), ["0 x 11 pixels"]),
    "tiff 12 bits": (lambda d: damaged_tiff(d, lambda p: patch(p, 258, 12)), ["12 bits per pixel"]),
    "tiff loop": (lambda d: damaged_tiff(d, loop), ["form a loop"]),
    "tiff colour": (colour, ["3 samples per pixel", "convert to grey"]),
    "tiff stack taken for colour": (four_frames, ["4 samples per pixel", "a stack", "minisblack"]),
    "tiff jpeg": (jpeg, ["compression 7 (JPEG)", "known are"]),
    "tiff other shape": (lambda d: mixed(d, stack(1, 5, 6)[0]), ["f_3.tif", "5 x 6 uint16", "9 x 11 uint16"]),
    "tiff other type": (lambda d: mixed(d, stack(1, dtype="f4")[0]), ["f_3.tif", "float32"]),
    "tiff mixed pages": (mixed_pages, ["page 3", "5 x 5 uint16", "9 x 11"]),
    "tiff and dataset": (lambda d: (write_tiffs(d / "t", stack(1)), "x"), ["--dataset x", "HDF5"]),
    "npy objects": (lambda d: npy(d, np.array([{}], object)), ["never unpickled"]),
    "npy complex": (lambda d: npy(d, np.zeros((2, 3, 4), complex)), ["complex128"]),
    "npy bool": (lambda d: npy(d, np.zeros((2, 3, 4), bool)), ["bool"]),
    "npy records": (lambda d: npy(d, np.zeros((2, 3, 4), "i4,f4")), ["structured"]),
    "npy one axis": (lambda d: npy(d, np.zeros(4)), ["shape (4,)", "row, column"]),
    "npy no frame": (lambda d: npy(d, np.zeros((0, 3, 4))), ["at least one pixel"]),
    "npy truncated": (lambda d: npy(d, stack(), 10), ["truncated", "the file has"]),
    "npy is text": (lambda d: make(d, a__npy=b"hello") / "a.npy", ["not a readable NumPy array"]),
    "npz empty": (lambda d: make(d, a__npz=b"") / "a.npz", ["empty file"]),
    "npz truncated": (bad_zip, ["not a readable .npz"]),
    "npz lies": (lying_zip, ["declares", "damaged"]),
    "npz several": (lambda d: npz(d, a=stack(), b=stack()), ["a (7 x 9 x 11 uint16), b", "--dataset"]),
    "npz table": (
        lambda d: npz(d, a=np.zeros((9, 2)), b=np.arange(3)),
        ["no array with three axes", "a (9 x 2"],
    ),
    "h5 table": (
        lambda d: h5(
            d, lambda f: (f.create_dataset("a", data=np.zeros((9, 2))), f.create_dataset("b", data=[1, 2]))
        ),
        ["no dataset with three axes", "/a (9 x 2 float64)"],
    ),
    "npz no member": (lambda d: (npz(d, a=stack()), "c"), ["no member 'c'", "it holds a"]),
    "npz key": (lambda d: npz(d, data=stack(2), image_key=np.array([0, 9])), ["image_key holds 9"]),
    "npz no projection": (lambda d: npz(d, data=stack(2), image_key=np.array([1, 2])), ["no projection"]),
    "h5 empty": (lambda d: make(d, a__h5=b"") / "a.h5", ["empty file"]),
    "h5 is text": (lambda d: make(d, a__h5=b"hello" * 99) / "a.h5", ["not an HDF5 file", "hell"]),
    "h5 truncated": (h5_cut, ["truncated", "copy it again"]),
    "h5 nothing": (lambda d: h5(d, lambda f: f.create_group("g")), ["no dataset with three axes", "none"]),
    "h5 several": (
        lambda d: h5(
            d, lambda f: (f.create_dataset("a", data=stack()), f.create_dataset("b/c", data=stack()))
        ),
        ["/a (7 x 9 x 11 uint16), /b/c", "--dataset"],
    ),
    "h5 no dataset": (
        lambda d: (h5(d, lambda f: f.create_dataset("a", data=stack())), "b"),
        ["no dataset b", "/a"],
    ),
    "h5 group": (lambda d: (h5(d, lambda f: f.create_dataset("g/a", data=stack())), "g"), ["g is a group"]),
    "h5 external link": (h5_linked, ["/d -> /etc/passwd", "not followed"]),
    "h5 external link by name": (lambda d: (h5_linked(d), "d"), ["/etc/passwd", "not followed"]),
    "h5 external storage": (h5_external, ["/etc/passwd", "not read"]),
    "h5 virtual outside": (lambda d: h5_virtual(d, "../b.h5"), ["outside its folder"]),
    "h5 virtual absolute": (lambda d: h5_virtual(d, "/etc/passwd"), ["outside its folder"]),
    "h5 virtual missing": (lambda d: h5_virtual(d, "b.h5"), ["is missing: b.h5"]),
    "h5 virtual holes": (h5_holes, ["with holes", "198 of 396"]),
    "h5 link loop": (h5_loop, ["form a loop"]),
    "h5 claims": (
        lambda d: h5(d, lambda f: f.create_dataset("d", (10**6, 10**5, 10**4), "u2", chunks=(1, 1000, 1000))),
        ["never written"],
    ),
    "h5 claims a lot": (
        lambda d: h5(d, lambda f: f.create_dataset("d", (10**9, 10**3, 10**3), "u2", chunks=(1, 1000, 1000))),
        ["claims to have 1000000000 x 1000 x 1000", "at most 10000000"],
    ),
    "h5 claims plain": (
        lambda d: h5(d, lambda f: f.create_dataset("d", (10**5,) * 3, "u2")),
        ["1.8 PiB", "ever written"],
    ),
    "h5 filter": (h5_unknown_filter, ["filter 32845", "which is not read; known are gzip"]),
    "h5 strings": (lambda d: (h5(d, lambda f: f.create_dataset("d", data=[b"a"])), "d"), ["expected (frame"]),
    "h5 bool": (lambda d: (h5(d, lambda f: f.create_dataset("d", data=stack() > 9)), "d"), ["bool"]),
    "edf truncated": (lambda d: edf(d, 20), ["truncated", "the file has 690"]),
    "edf empty": (lambda d: make(d, a__edf=b"") / "a.edf", ["empty file"]),
    "edf is text": (lambda d: make(d, a__edf=b"hello") / "a.edf", ["not an EDF"]),
    "edf header only": (lambda d: make(d, a__edf=b"{ Dim_1 = 3 ;") / "a.edf", ["header cannot be read"]),
    "edf other file": (
        lambda d: edf(d, EDF_BinaryFileName="/etc/passwd"),
        ["another file (passwd)", "not read"],
    ),
    "zarr absent": (lambda d: d / "no.zarr", ["does not exist"]),
    "shapes of sources": (
        lambda d: [write_tiffs(d / "a", stack(2)), write_tiffs(d / "b", stack(2, 4, 4))],
        ["4 x 4 uint16", "9 x 11 uint16"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_named_in_one_line(tmp_path, case):
    maker, words = WRONG[case]
    made = maker(tmp_path)
    paths, dataset = made if isinstance(made, tuple) else (made, None)
    begin = time.perf_counter()
    with pytest.raises(TomoscaleError) as caught:
        convert.scan(paths, dataset=dataset)
    message = str(caught.value)
    assert time.perf_counter() - begin < 5
    assert "\n" not in message
    assert [w for w in words if w not in message] == [], message


def test_without_the_optional_packages_the_error_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fabio", None)
    monkeypatch.setitem(sys.modules, "fabio.edfimage", None)
    with pytest.raises(TomoscaleError, match=r"fabio; pip install 'tomoscale\[formats\]'"):
        open_source(make(tmp_path, a__edf=b"{ }") / "a.edf")


def test_a_file_that_shrinks_after_the_plan_is_named(tmp_path):
    folder = write_tiffs(tmp_path / "t", stack())
    source = open_source(folder).frames
    cut(folder / "f_4.tif", 30)
    with pytest.raises(TomoscaleError, match=r"f_4\.tif: ends 30 bytes too early"):
        source.whole()


def test_damaged_compression_is_named(tmp_path):
    folder = write_tiffs(tmp_path / "t", stack(2, 64, 64), compression="zlib")
    path = folder / "f_1.tif"
    raw = bytearray(path.read_bytes())
    raw[-300:-200] = bytes(100)
    path.write_bytes(raw)
    with pytest.raises(TomoscaleError, match=r"f_1\.tif: a page cannot be decoded"):
        open_source(folder).frames.whole()


@pytest.mark.parametrize("kind", ["plain", "zlib", "npy", "npz"])
def test_flipped_bytes_never_end_in_a_traceback(tmp_path, kind):
    frames, rng = stack(3), np.random.default_rng(0)
    if kind == "npy":
        path = npy(tmp_path, frames)
    elif kind == "npz":
        path = npz(tmp_path, data=frames, image_key=np.array([0, 1, 2]))
    else:
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path, frames, photometric="minisblack", compression=None if kind == "plain" else kind
        )
    whole = path.read_bytes()
    for _ in range(150):
        raw = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        for place in rng.integers(0, min(len(raw), 600), 2):
            raw[place] = rng.integers(0, 256)
        path.write_bytes(raw)
        with contextlib.suppress(TomoscaleError):
            source = open_source(path).frames
            if source.nbytes < 10**8:
                source.whole()
