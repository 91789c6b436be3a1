"""Codecs: what zarr writes is decoded to the same voxels, and never to more than the metadata declare."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from tomoscale import TomoscaleError, store
from tomoscale.errors import DamagedError

ARRAY = np.random.default_rng(0).integers(0, 60, (9, 7, 5))
WINDOW = (slice(2, 9), slice(0, 7), slice(1, 4))
V3 = {
    "gzip": [BytesCodec(), GzipCodec()],
    "zstd": [BytesCodec(), ZstdCodec()],
    "zstd, checksums": [BytesCodec(), ZstdCodec(checksum=True), Crc32cCodec()],
    "checked, then zstd": [BytesCodec(), Crc32cCodec(), ZstdCodec()],
    "blosc of blosc": [BytesCodec(), BloscCodec(typesize=2), BloscCodec(typesize=1)],
    "big-endian gzip": [BytesCodec(endian="big"), GzipCodec()],
    "transposed": [TransposeCodec(order=(2, 0, 1)), BytesCodec(), ZstdCodec()],
    "transposed twice": [TransposeCodec(order=(2, 0, 1)), TransposeCodec(order=(1, 0, 2)), BytesCodec()],
    "shards": [ShardingCodec(chunk_shape=(2, 3, 5), codecs=[BytesCodec(), BloscCodec(typesize=2)])],
    "shards, index first": [ShardingCodec(chunk_shape=(4, 6, 5), index_location="start")],
    "shards, transposed": [
        ShardingCodec(chunk_shape=(2, 3, 5), codecs=[TransposeCodec(order=(1, 2, 0)), BytesCodec(), GzipCodec()])
    ],
}  # fmt: skip
V2 = {
    "nothing": ([], None),
    "blosc": ([], numcodecs.Blosc("zstd", shuffle=2)),
    "bz2": ([], numcodecs.BZ2()),
    "gzip": ([], numcodecs.GZip()),
    "lz4": ([], numcodecs.LZ4()),
    "lzma": ([], numcodecs.LZMA()),
    "zlib": ([], numcodecs.Zlib()),
    "zstd": ([], numcodecs.Zstd()),
    "delta": ([numcodecs.Delta("<u2", "<i8")], numcodecs.Zlib()),
    "shuffle": ([numcodecs.Shuffle(2)], numcodecs.Zlib()),
    "offset": ([numcodecs.FixedScaleOffset(10, 1, "<u2", "<u8")], numcodecs.Zstd()),
    "checksums": (
        [numcodecs.CRC32(), numcodecs.Adler32(), numcodecs.Fletcher32(), numcodecs.CRC32C()],
        numcodecs.LZ4(),
    ),
}


def stored(folder: Path, codecs: list, array: np.ndarray, chunks: tuple[int, ...]) -> Path:
    """Write an array with a chain of Zarr v3 codecs."""
    empty = zarr.create_array(
        folder, shape=array.shape, dtype=array.dtype, chunks=chunks, compressors=None,
        config={"write_empty_chunks": True},
    )  # fmt: skip
    document = json.loads((folder / "zarr.json").read_text())
    document["codecs"] = [c.to_dict() for c in codecs]
    (folder / "zarr.json").write_text(json.dumps(document, default=str))
    del empty
    zarr.open_array(folder, mode="r+", config={"write_empty_chunks": True})[:] = array
    return folder


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("kind", V3)
def test_voxels_of_any_chain_of_codecs_are_those_of_zarr(tmp_path, kind, dtype):
    array = ARRAY.astype(dtype)
    codecs = [c for c in V3[kind] if dtype == "uint16" or not isinstance(c, BloscCodec)]
    volume = store.open_volume(stored(tmp_path / "a.zarr", codecs, array, (4, 6, 5)))
    np.testing.assert_array_equal(volume.whole(), array, strict=True)
    np.testing.assert_array_equal(volume.read(WINDOW), array[WINDOW], strict=True)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", V2)
def test_voxels_of_zarr_2_are_those_of_zarr(tmp_path, kind, order):
    filters, compressor = V2[kind]
    array = ARRAY.astype("<u2" if kind != "nothing" else ">i4")
    zarr.create_array(
        tmp_path / "a.zarr", shape=array.shape, dtype=array.dtype, chunks=(4, 3, 5), filters=filters or None,
        compressors=compressor, order=order, zarr_format=2, config={"write_empty_chunks": True},
    )[:] = array  # fmt: skip
    volume = store.open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(volume.whole(), array)
    np.testing.assert_array_equal(volume.read(WINDOW), array[WINDOW])
    assert volume.dtype.isnative


def test_chunks_that_a_shard_does_not_hold_are_the_fill_value(tmp_path):
    made = zarr.create_array(
        tmp_path / "a.zarr", shape=(8, 8), shards=(8, 8), chunks=(4, 4), dtype="f4", fill_value=np.nan
    )
    made[:4, 4:] = 7
    np.testing.assert_array_equal(store.open_volume(tmp_path / "a.zarr").whole(), made[:])


@pytest.mark.parametrize("value", [2**63 - 25, -(2**63)])
def test_a_fill_value_is_exact(tmp_path, value):
    zarr.create_array(tmp_path / "a.zarr", shape=(4,), chunks=(2,), dtype="i8", fill_value=value)[:2] = 1
    with pytest.warns(UserWarning, match="not stored"):
        assert store.open_volume(tmp_path / "a.zarr").whole().tolist() == [1, 1, value, value]


# ---------------------------------------------------------------- no more than declared


def inflating(codec: str, n_bytes: int = 2**26) -> bytes:
    """Return few bytes that become many."""
    zeros = bytes(2**24)
    if codec in ("zlib", "gzip"):
        stream = zlib.compressobj(9, zlib.DEFLATED, 31 if codec == "gzip" else 15)
        return b"".join(stream.compress(zeros) for _ in range(n_bytes // len(zeros))) + stream.flush()
    if codec == "lz4":
        return numcodecs.LZ4().encode(bytes(n_bytes))
    encoder = {"zstd": numcodecs.Zstd(), "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA()}.get(codec)
    encoder = encoder or numcodecs.Blosc("lz4", shuffle=0)
    return bytes(encoder.encode(bytes(n_bytes)))


BOMBS = [(3, c) for c in ("blosc", "gzip", "zstd", "shard")] + [
    (2, c) for c in ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
]


@pytest.mark.parametrize(("version", "codec"), BOMBS)
def test_a_small_chunk_never_becomes_a_large_one(tmp_path, version, codec):
    folder = tmp_path / "a.zarr"
    configuration = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}
    inner = "zstd" if codec == "shard" else codec
    bomb = inflating(inner)
    assert len(bomb) < 2**26 // 100
    if version == 2:
        zarr.create_array(folder, shape=(1024,), chunks=(1024,), dtype="u1", zarr_format=2, compressors=None)
        document = json.loads((folder / ".zarray").read_text())
        document["compressor"] = {"id": codec}
        (folder / ".zarray").write_text(json.dumps(document))
        (folder / "0").write_bytes(bomb)
    else:
        chain = [
            {"name": "bytes"},
            {"name": inner, "configuration": configuration if inner == "blosc" else {}},
        ]
        if codec == "shard":
            index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
            settings = {"chunk_shape": [1024], "codecs": chain, "index_codecs": index}
            chain = [{"name": "sharding_indexed", "configuration": settings}]
            table = struct.pack("<2Q", 0, len(bomb))
            bomb = bomb + table + struct.pack("<I", numcodecs.CRC32C().encode(table)[-4:].view("<u4")[0])
        zarr.create_array(folder, shape=(1024,), chunks=(1024,), dtype="u1", compressors=None)
        document = json.loads((folder / "zarr.json").read_text())
        document["codecs"] = chain
        (folder / "zarr.json").write_text(json.dumps(document))
        (folder / "c").mkdir()
        (folder / "c/0").write_bytes(bomb)
    volume = store.open_volume(folder)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match=r"1024|expected at most|takes at most"):
            volume.whole()
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_chunk_that_inflates_twice_is_stopped_at_the_first(tmp_path):
    folder = stored(tmp_path / "a.zarr", [BytesCodec(), GzipCodec(), GzipCodec()], np.ones(64, "u1"), (64,))
    (folder / "c/0").write_bytes(zlib.compress(inflating("gzip"), 9, 31))
    with pytest.raises(DamagedError, match="inflates to more than"):
        store.open_volume(folder).whole()


# ---------------------------------------------------------------- nothing that runs code


class Executed:
    """What a pickle makes when it is loaded: a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


REFUSED_V2 = [
    {"id": "pickle", "protocol": 5},
    {"id": "json2"},
    {"id": "msgpack2"},
    {"id": "categorize", "labels": [], "dtype": "U1"},
    {"id": "vlen-utf8"},
    {"id": "delta", "dtype": "|O"},
    {"id": "fixedscaleoffset", "dtype": "V1000000", "offset": 0, "scale": 1},
    {"id": ["pickle"]},
    {"id": None},
    "pickle",
    7,
]


@pytest.mark.parametrize("codec", REFUSED_V2, ids=str)
@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_a_codec_that_is_not_in_the_list_is_never_made(tmp_path, codec, place):
    folder, proof = tmp_path / "a.zarr", tmp_path / "executed"
    zarr.create_array(folder, shape=(4,), chunks=(4,), dtype="u1", zarr_format=2, compressors=None)
    document = json.loads((folder / ".zarray").read_text())
    document[place] = [codec] if place == "filters" else codec
    (folder / ".zarray").write_text(json.dumps(document))
    (folder / "0").write_bytes(pickle.dumps(Executed(proof)))
    with pytest.raises(TomoscaleError, match="codec"):
        store.open_volume(folder)
    assert not proof.exists()


REFUSED_V3 = {
    "unknown": [{"name": "bytes"}, {"name": "numcodecs.pickle"}],
    "none": [],
    "no list": {"name": "bytes"},
    "no object": ["bytes"],
    "not serialised": [{"name": "gzip"}],
    "twice": [{"name": "bytes"}, {"name": "bytes"}],
    "settings": [{"name": "bytes", "configuration": [1]}],
    "transposed after": [{"name": "bytes"}, {"name": "transpose", "configuration": {"order": [0]}}],
    "transposed beyond": [{"name": "transpose", "configuration": {"order": [3]}}, {"name": "bytes"}],
    "shard in a chain": [{"name": "bytes"}, {"name": "sharding_indexed", "configuration": {}}],
    "shard without index": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [2]}}],
}


@pytest.mark.parametrize("kind", REFUSED_V3)
def test_a_chain_of_codecs_that_makes_no_sense_is_refused(tmp_path, kind):
    folder = tmp_path / "a.zarr"
    zarr.create_array(folder, shape=(4,), chunks=(4,), dtype="u1", compressors=None)[:] = 1
    document = json.loads((folder / "zarr.json").read_text())
    document["codecs"] = REFUSED_V3[kind]
    (folder / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(TomoscaleError):
        store.open_volume(folder)


def test_the_pickle_of_these_tests_would_run(tmp_path):
    raw = pickle.dumps(Executed(tmp_path / "executed"))
    pickle.loads(raw)  # noqa: S301 (ours)
    assert (tmp_path / "executed").exists()
    assert sys.version_info >= (3, 11)
