"""What is stored is read back bit for bit, by us and by zarr; what is damaged or strange is named."""

from __future__ import annotations

import io
import json
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from conftest import small_scan, write_array, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import blosc, kernels, metadata, objects, store
from tomoscale.chunks import ChunkFiles
from tomoscale.errors import DamagedError, TomoscaleError

DTYPES = ["uint8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_reads_what_we_write(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 200, (9, 7, 5)).astype(dtype)
    write_array(tmp_path / "a.zarr", array, (4, 3, 5))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr", mode="r")[:], array)


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("codecs", ["blosc", "blosc+crc", "none", "crc", "zstd", "sharded", "big-endian"])
def test_we_read_what_zarr_writes(tmp_path, codecs, separator):
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

    array = np.random.default_rng(0).integers(0, 60000, (9, 7, 5)).astype(np.uint16)
    blosc = BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=2)
    compressors = {
        "blosc": [blosc],
        "blosc+crc": [blosc, Crc32cCodec()],
        "crc": [Crc32cCodec()],
        "zstd": [ZstdCodec()],
    }
    options = {"chunks": (4, 3, 5), "compressors": compressors.get(codecs)}
    if codecs == "sharded":
        options["shards"] = (8, 6, 5)
    if codecs == "big-endian":
        options["serializer"] = BytesCodec(endian="big")
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=array.shape, dtype=array.dtype, config={"write_empty_chunks": True},
        chunk_key_encoding={"name": "default", "separator": separator}, **options,
    )  # fmt: skip
    stored[:] = array
    volume = store.open_volume(tmp_path / "a.zarr")
    assert (volume.files is None) == (codecs in ("zstd", "sharded"))
    np.testing.assert_array_equal(volume.read((slice(2, 9), slice(0, 7), slice(1, 4))), array[2:9, :, 1:4])
    assert volume.whole().dtype == np.uint16


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [0, 1000, 4096])
@pytest.mark.parametrize("by", ["a kernel", "Blosc"])
def test_chunks_of_many_blosc_blocks_are_read(tmp_path, monkeypatch, by, blocksize, dtype, endian):
    """Bits are shuffled in blocks; those of 1000 bytes hold no multiple of eight samples of every type."""
    monkeypatch.setattr(blosc, "_kernel_pays", lambda _: by == "a kernel")
    from zarr.codecs import BloscCodec, BytesCodec

    array = np.random.default_rng(0).integers(0, 200, (24, 30, 40)).astype(dtype)
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=array.shape, dtype=array.dtype, chunks=(12, 16, 40),
        serializer=BytesCodec(endian=endian),
        compressors=BloscCodec(
            cname="lz4", shuffle="bitshuffle", typesize=array.itemsize, blocksize=blocksize
        ),
    )  # fmt: skip
    stored[:] = array
    volume = store.open_volume(tmp_path / "a.zarr")
    assert volume.files is not None
    np.testing.assert_array_equal(volume.whole(), array)
    np.testing.assert_array_equal(
        volume.read((slice(3, 20), slice(5, 29), slice(7, 8))), array[3:20, 5:29, 7:8]
    )


@pytest.mark.parametrize("together", [16, 17, 33, 48])
def test_blocks_that_end_within_a_sample_are_read_as_blosc_reads_them(monkeypatch, together):
    """Blosc itself writes none, but takes them: bits are shuffled of the whole samples in a block."""
    raw = np.random.default_rng(0).bytes(192)
    blocks = [struct.pack("<I", len(b)) + b for b in (raw[i : i + together] for i in range(0, 192, together))]
    sizes = [16 + 4 * len(blocks), *map(len, blocks)]
    starts = np.cumsum(sizes).astype("<u4")
    bit_shuffled_and_not_split = 0x34
    header = struct.pack("<4B3I", 2, 1, bit_shuffled_and_not_split, 2, 192, together, starts[-1])
    body = header + starts[:-1].tobytes() + b"".join(blocks)
    monkeypatch.setattr(blosc, "_kernel_pays", lambda _: True)
    out, room = np.empty(96, np.uint16), np.empty(192 + blosc.SLACK, np.uint8)
    blosc.decode(np.frombuffer(bytearray(body), np.uint8), (96,), (slice(0, 96),), out, (0,), room)
    assert out.tobytes() == blosc.codec().decompress(body)


def test_a_chunk_that_the_system_gives_in_pieces_is_read_whole(tmp_path, monkeypatch):
    """Linux gives at most 2 GiB at a time; a file that was cut off since its size was asked for ends sooner."""

    class Pieces(io.FileIO):
        def readinto(self, target):
            return super().readinto(memoryview(target)[:5])

    path = tmp_path / "chunk"
    path.write_bytes(bytes(range(12)))
    monkeypatch.setattr(objects, "open_object", lambda path, _: Pieces(path))
    assert (
        objects.read_object(str(path), str(tmp_path), np.empty(20, np.uint8)).tobytes() == path.read_bytes()
    )
    monkeypatch.setattr(objects.os, "fstat", lambda _: SimpleNamespace(st_size=15))
    assert (
        objects.read_object(str(path), str(tmp_path), np.empty(20, np.uint8)).tobytes() == path.read_bytes()
    )


def test_a_process_without_kernels_loads_none_to_decode(monkeypatch):
    """It would take memory that its plan does not count."""
    monkeypatch.setitem(sys.modules, "tomoscale.kernels._compile", kernels)
    assert blosc._kernel_pays(2**40)
    monkeypatch.delitem(sys.modules, "tomoscale.kernels._compile")
    assert not blosc._kernel_pays(2**40)


def test_zarr_version_2_is_read(tmp_path):
    array = small_scan(10, 6, 7)
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=array.shape, dtype=array.dtype, chunks=(4, 6, 7), zarr_format=2
    )
    stored[:] = array
    np.testing.assert_array_equal(store.open_volume(tmp_path / "a.zarr").whole(), array)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_window_of_any_chunking_is_read(tmp_path_factory, data):
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    chunks = data.draw(st.tuples(*[st.integers(1, 13)] * 3))
    dtype = data.draw(st.sampled_from(DTYPES))
    array = np.random.default_rng(0).integers(0, 60000, shape).astype(dtype)
    folder = write_array(tmp_path_factory.mktemp("any") / "a.zarr", array, chunks)
    window = tuple(
        slice(a, data.draw(st.integers(a + 1, n)))
        for n in shape
        for a in [data.draw(st.integers(0, n - 1))]
    )  # fmt: skip
    np.testing.assert_array_equal(store.open_volume(folder).read(window), array[window])


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    array = small_scan(4, 6, 7)
    write_array(tmp_path / "a.zarr", array)
    file = tmp_path / "a.zarr/c/0/0/0"
    sound = file.read_bytes()
    volume = store.open_volume(tmp_path / "a.zarr")
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(DamagedError, match="c/0/0/0"):
            volume.whole()
    for length in (0, 3, 15, 16, len(sound) - 1):
        file.write_bytes(sound[:length])
        with pytest.raises(DamagedError):
            volume.whole()


def test_a_chunk_that_declares_a_gigabyte_is_not_inflated(tmp_path):
    array = np.zeros((4, 4), np.uint16)
    folder = write_array(tmp_path / "a.zarr", array)
    bomb = ChunkFiles.of(folder, metadata.array_info(folder))
    big = write_array(tmp_path / "b.zarr", np.zeros((4096, 4096), np.uint16))
    (folder / "c/0/0").write_bytes((big / "c/0/0").read_bytes())
    with pytest.raises(DamagedError, match="declares 33554432 bytes"):
        bomb.read((slice(0, 4), slice(0, 4)))


def test_the_array_of_a_group_is_found(tmp_path, scan):
    group = write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23), dark=scan[0], other=scan[:3])
    assert store.open_volume(group).path.name == "frames"
    assert store.open_volume(group / "other").shape == (3, 20, 23)
    assert store.open_volume(group).sibling("dark").shape == (20, 23)
    store.create_group(group, store.ome_image("other", "scan"))
    assert store.open_volume(group).path.name == "other"


def document(**changes):
    plain = {
        "zarr_format": 3, "node_type": "array", "shape": [4, 4], "data_type": "uint16", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {},
    }  # fmt: skip
    return json.dumps({**plain, **changes})


def grid(*chunks):
    return {"name": "regular", "configuration": {"chunk_shape": list(chunks)}}


BAD = {
    "empty": ("", "not readable as JSON"),
    "truncated": (document()[:60], "not readable as JSON"),
    "no object": ("[1, 2]", "JSON list; expected an object"),
    "very deep": ("[" * 100_000, "not readable as JSON"),
    "format": (document(zarr_format=7), "zarr_format 7; expected 2 or 3"),
    "codec": (document(codecs=[{"name": "pickle"}]), "codec 'pickle' is not read"),
    "dtype": (document(data_type="complex64"), "dtype 'complex64'"),
    "bool": (document(data_type="bool"), "dtype 'bool'"),
    "object": (document(data_type="object"), "dtype 'object'"),
    "structured": (document(data_type={"name": "structured"}), "dtype"),
    "negative": (document(shape=[-4, 4]), "at least one element"),
    "zero": (document(shape=[0, 4]), "at least one element"),
    "float": (document(shape=[4.5, 4]), "not a list of integers"),
    "absurd": (document(shape=[10**9, 10**9]), "claims 2.00e.18 bytes"),
    "huge chunk": (document(shape=[10**5, 10**5], chunk_grid=grid(10**8, 10**7)), "a chunk .* claims"),
    "zero chunk": (document(chunk_grid=grid(0, 4)), "at least 1"),
    "rank": (document(chunk_grid=grid(4)), "rank"),
    "grid": (document(chunk_grid={"name": "rectangular"}), "chunk grid 'rectangular'"),
    "missing": ('{"zarr_format": 3, "node_type": "array"}', "incomplete"),
}


@pytest.mark.parametrize("case", BAD)
def test_strange_metadata_are_refused_in_one_line(tmp_path, case):
    text, words = BAD[case]
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    (folder / "zarr.json").write_text(text)
    with pytest.raises(TomoscaleError, match=words) as caught:
        store.open_volume(folder)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_zarr_is_named(tmp_path):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "folder").mkdir()
    store.create_group(tmp_path / "group.zarr", {})
    write_array(tmp_path / "group.zarr/thing", np.ones((2, 2)))
    for name, words in {
        "absent.zarr": "does not exist", "file": "is a file", "folder": "neither a Zarr array nor a Zarr group",
        "group.zarr": r"address one of its arrays \(thing\)",
    }.items():  # fmt: skip
        with pytest.raises(TomoscaleError, match=words):
            store.open_volume(tmp_path / name)


def test_chunks_that_a_user_never_wrote_are_the_fill_value_and_said_so(tmp_path):
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=(4, 4), chunks=(2, 4), dtype="float32", fill_value=np.nan, compressors=None
    )
    with pytest.raises(TomoscaleError, match="holds no chunk at all"):
        store.open_volume(tmp_path / "a.zarr")
    stored[:2] = 1
    with pytest.warns(UserWarning, match="1 of 2 chunks are not stored and read as nan"):
        volume = store.open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(volume.whole(), stored[:])


def test_a_cropped_volume_crops_what_lies_beside_it(tmp_path, scan):
    angles = np.linspace(0, 360, len(scan))
    group = write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23), dark=scan[:4], omega=angles)
    part = store.crop(store.open_volume(group), [(10, 40), (3, 9), (5, 20)])
    np.testing.assert_array_equal(part.whole(), scan[10:40, 3:9, 5:20])
    np.testing.assert_array_equal(part.sibling("dark").whole(), scan[:4, 3:9, 5:20])
    np.testing.assert_array_equal(part.sibling("omega").whole(), angles[10:40])
    with pytest.raises(TomoscaleError, match="outside"):
        store.crop(store.open_volume(group), [(0, 91), (0, 1), (0, 1)])
