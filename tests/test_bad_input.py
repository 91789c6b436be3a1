"""
Bad input: one line on standard error, exit status 2, no traceback, nothing written, little memory and time.

One line per case: what is made, the command, and the words that its message must contain. Every case runs
the command in a process of its own whose memory is limited.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import bad_files as make
import h5py
import numpy as np
import pytest
from bad_files import (
    PICKLE,
    PIXELS,
    array,
    chunked,
    codecs,
    dataset,
    document,
    file,
    group,
    gzipped,
    hdf5,
    link,
    manifest,
    nothing,
    npy,
    packed,
    pipe,
    result,
    several,
    sharded,
    tags,
    text,
    tiffs,
    unreadable,
    version_2,
    zeros,
)  # fmt: skip
from command_server import MIB, CommandServer
from conftest import small_scan

BACKGROUND = "background a.zarr"
CONVERT = "convert a.tif o.zarr"
FRAMES = small_scan(9, 20, 23)
NAN = FRAMES.astype("f4")
NAN[4] = np.nan
U2 = {"data_type": "uint16"}

ZARR = {
    "absent": (nothing, BACKGROUND, "a.zarr: does not exist"),
    "a file": (file("a.zarr"), BACKGROUND, "is a file; expected a Zarr directory"),
    "a pipe": (pipe("a.zarr"), BACKGROUND, "a.zarr: holds neither"),
    "a folder": (file("a.zarr/x"), BACKGROUND, "neither a Zarr array nor a Zarr group"),
    "group": (
        several(group({}), lambda d: (d / "scan.zarr/frames").rename(d / "scan.zarr/thing")),
        "background scan.zarr", "address one of its arrays (thing)",
    ),
    "json empty": (text(""), BACKGROUND, "not readable as JSON"),
    "json truncated": (text(json.dumps(document())[:99]), BACKGROUND, "not readable as JSON"),
    "json no object": (text("[1, 2]"), BACKGROUND, "JSON list; expected an object"),
    "json number": (text("7" * 5000), BACKGROUND, "not readable as JSON"),
    "json very deep": (text("[" * 200_000), BACKGROUND, "not readable as JSON"),
    "json very deep objects": (text('{"a":' * 200_000), BACKGROUND, "not readable as JSON"),
    "json long": (text(b" " * 2**25 + b"{}"), BACKGROUND, "bytes of metadata"),
    "json no text": (text(b"\xff\xfe\0"), BACKGROUND, "not readable as JSON"),
    "json a pipe": (pipe("a.zarr/zarr.json"), BACKGROUND, "neither a Zarr array"),
    "json zero device": (link("a.zarr/zarr.json", "/dev/zero"), BACKGROUND, "neither a Zarr array"),
    "format": (array(zarr_format=7), BACKGROUND, "zarr_format 7; expected 2 or 3"),
    "node": (array(node_type="tree"), BACKGROUND, "neither a Zarr array nor a Zarr group"),
    "no chunk grid": (text('{"zarr_format": 3, "node_type": "array"}'), BACKGROUND, "incomplete"),
    "grid": (array(chunk_grid={"name": "rectangular"}), BACKGROUND, "chunk grid 'rectangular'"),
    "grid a word": (array(chunk_grid="regular"), BACKGROUND, "not understood"),
    "codec": (array(codecs=codecs("numcodecs.pickle")), BACKGROUND, "codec 'numcodecs.pickle' is not read"),
    "codec a number": (array(codecs=[3]), BACKGROUND, "codec 3 is not read"),
    "no codecs": (array(codecs=[]), BACKGROUND, "no codecs"),
    "blosc settings": (array(codecs=codecs("blosc", cname=7, shuffle=[])), BACKGROUND, "a.zarr/c/0/0/0"),
    "object": (array(data_type="object"), BACKGROUND, "dtype 'object'"),
    "bool": (array(data_type="bool"), BACKGROUND, "dtype 'bool'"),
    "complex": (array(data_type="complex64"), BACKGROUND, "dtype 'complex64'"),
    "structured": (array(data_type={"name": "structured"}), BACKGROUND, "dtype"),
    "long double": (array(data_type="float128"), BACKGROUND, "dtype 'float128'"),
    "text": (array(data_type="U9"), BACKGROUND, "dtype 'U9'"),
    "shape negative": (array(shape=[-9, 20, 23]), BACKGROUND, "at least one element"),
    "shape zero": (array(shape=[0, 20, 23]), BACKGROUND, "at least one element"),
    "shape float": (array(shape=[9.5, 20, 23]), BACKGROUND, "not a list of integers"),
    "shape true": (array(shape=[True, 20, 23]), BACKGROUND, "not a list of integers"),
    "shape none": (array(shape=None), BACKGROUND, "not a list of integers"),
    "shape scalar": (array(shape=[], chunk_grid=chunked()), BACKGROUND, "at least one element"),
    "shape absurd": (array(shape=[10**6] * 3), BACKGROUND, "claims 2.00e+18 bytes"),
    "shape beyond integers": (array(shape=[10**40, 9, 9]), BACKGROUND, "claims"),
    "shape of many axes": (array(shape=[1] * 999, chunk_grid=chunked(*[1] * 999)), BACKGROUND, "999 axes"),
    "many chunks": (array(shape=[10**4] * 3, chunk_grid=chunked(1, 1, 1)), BACKGROUND, "1.00e+12 chunks"),
    "empty but for a chunk": (
        array(chunk=bytes(9_200_000), shape=[10**6, 20, 23_000], chunk_grid=chunked(10, 20, 23_000)), BACKGROUND,
        "even compressed fourfold they do not fit",
    ),
    "many frames": (array(shape=[10**8, 20, 23]), BACKGROUND, "claims 100000000 frames"),
    "chunk huge": (array(shape=[10**5] * 3, chunk_grid=chunked(10**5, 10**5, 10**5)), BACKGROUND, "a chunk"),
    "chunk large": (array(shape=[4, 20000, 20000], chunk_grid=chunked(4, 20000, 20000)), BACKGROUND, "smallest block"),
    "chunk zero": (array(chunk_grid=chunked(0, 20, 23)), BACKGROUND, "at least 1"),
    "chunk rank": (array(chunk_grid=chunked(9)), BACKGROUND, "rank"),
    "separator": (
        array(chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}),
        BACKGROUND, "not understood",
    ),
    "fill too large": (array(fill_value=70000), BACKGROUND, "fill value 70000 of uint16"),
    "fill no number": (array(fill_value={"x": 1}), BACKGROUND, "fill value"),
    "two axes": (lambda d: make.write_array(d / "a.zarr", FRAMES[0]), BACKGROUND, "expected (frame, row, column)"),
    "never written": (array(chunk=None), BACKGROUND, "holds no chunk at all"),
    "chunk truncated": (array(chunk=PIXELS[:-7]), BACKGROUND, "8273 bytes; expected 8280"),
    "chunk empty": (array(chunk=b""), BACKGROUND, "0 bytes; expected 8280"),
    "chunk long": (array(chunk=bytes(3 * MIB)), BACKGROUND, "takes at most"),
    "chunk a pipe": (several(array(chunk=None), pipe("a.zarr/c/0/0/0")), BACKGROUND, "is no regular file"),
    "chunk a link": (
        several(array(), link("a.zarr/c/0/0/0", "/etc/passwd")), BACKGROUND, "a link that leads out of its array",
    ),
    "chunk a device": (
        several(array(), link("a.zarr/c/0/0/0", "/dev/zero")), BACKGROUND, "a link that leads out of its array",
    ),
    "chunk unreadable": (
        several(array(), unreadable("a.zarr/c/0/0/0")), BACKGROUND, "a.zarr/c/0/0/0: Permission denied",
    ),
    "folder of chunks unreadable": (
        several(array(), unreadable("a.zarr/c/0")), BACKGROUND, "a.zarr/c/0: cannot be read: Permission denied",
    ),
    "unreadable": (several(array(), unreadable("a.zarr")), BACKGROUND, "a.zarr/zarr.json: Permission denied"),
    "json unreadable": (
        several(array(), unreadable("a.zarr/zarr.json")), BACKGROUND, "zarr.json: cannot be read: Permission",
    ),
    "name not utf-8": (array("a\udcff.zarr", data_type="bool"), "background a\udcff.zarr", "'bool'"),
    "folder of chunks a link": (
        several(array(chunk=None), file("other/0"), lambda d: (d / "a.zarr/c/0/0").rmdir(),
                link("a.zarr/c/0/0", "../../../other")), BACKGROUND, "a link, which is not followed",
    ),
    "bomb of gzip": (array(chunk=gzipped, codecs=codecs("gzip")), BACKGROUND, "inflates to more"),
    "bomb of zstd": (
        array(chunk=packed("zstd"), codecs=codecs("zstd")), BACKGROUND, "inflates to",
    ),
    "bomb of blosc": (
        array(chunk=packed("blosc", 2**29), codecs=codecs("blosc")),
        BACKGROUND, "declares 536870912 bytes",
    ),
    "bomb in a shard": (
        array(chunk=sharded(gzipped), codecs=[{
            "name": "sharding_indexed", "configuration": {
                "chunk_shape": [9, 20, 23], "codecs": codecs("gzip"), "index_codecs": codecs()}}]),
        BACKGROUND, "inflates to more",
    ),
    "shard beyond its end": (
        array(chunk=struct.pack("<2Q", 2**63, 9), codecs=[{"name": "sharding_indexed", "configuration": {
                "chunk_shape": [9, 20, 23], "codecs": codecs(), "index_codecs": codecs()}}]),
        BACKGROUND, "ends at byte",
    ),
    "v2 pickle filter": (version_2(filters=[{"id": "pickle"}], chunk=PICKLE), BACKGROUND, "'pickle' is not read"),
    "v2 pickle compressor": (version_2(compressor={"id": "pickle"}, chunk=PICKLE), BACKGROUND, "is not read"),
    "v2 object": (version_2(dtype="|O", chunk=PICKLE), BACKGROUND, "dtype '|O'"),
    "v2 dates": (version_2(dtype="<M8[s]"), BACKGROUND, "dtype '<M8[s]'"),
    "v2 records": (version_2(dtype=[["a", "<u2"]]), BACKGROUND, "dtype"),
    "v2 separator": (version_2(dimension_separator="/../"), BACKGROUND, "not understood"),
    "v2 bomb": (version_2(compressor={"id": "zlib"}, chunk=zeros), BACKGROUND, "inflates to more"),
    "v2 bomb of bz2": (
        version_2(compressor={"id": "bz2"}, chunk=packed("bz2", 2**28)), BACKGROUND, "inflates",
    ),
    "v2 bomb behind a filter": (
        version_2(filters=[{"id": "delta", "dtype": "<u2"}], compressor={"id": "zlib"}, chunk=zeros),
        BACKGROUND, "inflates to more",
    ),
    "image elsewhere": (
        several(array("b.zarr"), group({"ome": {"multiscales": [{"datasets": [{"path": "../b.zarr"}]}]}}),
                lambda d: (d / "scan.zarr/frames").rename(d / "scan.zarr/x")),
        "background scan.zarr", "address one of its arrays (x)",
    ),
    "attributes strange": (
        several(group({"ome": [1], "tomoscale": "yes"})), "background scan.zarr", "record is damaged",
    ),
    "unfinished": (group({"tomoscale": {"complete": False}}), "background scan.zarr", "is not finished"),
    "dark of another shape": (make.beside(dark=np.ones((5, 5), "u2")), "background scan.zarr", "crop the dark"),
    "dark brighter": (
        make.beside(dark=np.full((20, 23), 60000, "u2")), "background scan.zarr", "brighter than the frames",
    ),
    "dark a TIFF": (several(make.scan, tags()), "background scan.zarr --dark a.tif", "expected a Zarr directory"),
    "angles not of the frames": (
        make.beside(omega=np.zeros((3, 3))), "background scan.zarr", "omega has shape (3, 3)",
    ),
    "angles not a number": (
        make.beside(omega=np.full(9, np.nan)), "background scan.zarr", "omega of frame 0 is nan",
    ),
    "two frames": (array(shape=[2, 20, 23]), BACKGROUND, "2 frames; a moving median needs at least 3"),
}  # fmt: skip

PARAMETERS = {
    "half window": ("--half-window 0", "half_window: input should be greater than or equal to 1"),
    "step": ("--step -5", "step"),
    "step a word": ("--step many", "many"),
    "step huge": (f"--step {10**30}", "step"),
    "even edge": ("--smoothing 4", "must be odd"),
    "margin": ("--margin 200", "a margin of 200 pixels does not fit frames of 20 x 23"),
    "margin two ways": ("--margin 2 --margin-roi 0:3,0:3", "give one of margin"),
    "rectangle": ("--margin-roi 0:3", "rectangle '0:3'; expected r0:r1,c0:c1"),
    "rectangle outside": ("--margin-roi 0:3,20:30", "20:30 lies outside frames of 20 x 23"),
    "mask empty": ("--margin-mask empty.zarr", "margin_mask is zero everywhere"),
    "mask of another shape": ("--margin-mask small.zarr", "margin_mask has shape (5, 5)"),
    "ranking": ("--ranking rough", "rough"),
    "dtype": ("--dtype object", "object"),
    "unknown option": ("--half-windw 5", "half-window"),
    "workers": ("--workers 0", "--workers 0; expected at least 1"),
    "threads": ("--threads -1", "--threads -1; expected at least 1"),
    "memory": ("--memory bananas", "'bananas'; expected an amount such as 8GB"),
    "memory two words": ("--memory '5 bananas'", "'5 bananas'; expected an amount"),
    "memory negative": ("--memory -3GB", "--memory"),
    "memory not a number": ("--memory nan", "--memory 'nan'"),
    "memory little": ("--memory 160MB", "give --memory 500MB at least"),
    "roi outside": ("--roi 0:500,0:3,0:3", "roi 0:500 lies outside an axis of 9"),
    "roi backwards": ("--roi 5:1,0:3,0:3", "roi 5:1 lies outside"),
    "roi axes": ("--roi 0:5", "roi has 1 ranges, the volume has 3 axes"),
    "roi words": ("--roi a:b,0:3,0:3", "range 'a:b'; expected start:stop"),
    "roi digits": ("--roi ²:3,0:3,0:3", "expected start:stop"),
    "scheduler": ("--scheduler cloud", "scheduler 'cloud'; expected local, threads"),
    "plain tcp": ("--scheduler tcp://10.1.2.3:8786", "not encrypted"),
    "plain tcp by name": ("--scheduler tcp://127.0.0.1.evil.org:8786", "not encrypted"),
    "protocol": ("--scheduler ws://10.1.2.3:8786", "not encrypted"),
    "output in nothing": ("-o missing/o.zarr", "does not exist; create it first"),
    "output is the input": ("-o scan.zarr", "in, on or around the input"),
    "output in the input": ("-o scan.zarr/o.zarr", "in, on or around the input"),
    "output around the input": ("-o .", "in, on or around the input"),
    "output is a device": ("-o /dev/null", "/dev/null"),
    "output without a name": ("-o /", "in, on or around the input"),
    "output too long": (f"-o {'o' * 300}.zarr", "too long"),
}  # fmt: skip

SOURCES = {
    "unreadable tiff": (
        several(file("a.tif"), unreadable("a.tif")), CONVERT, "a.tif: cannot be read: Permission denied",
    ),
    "unreadable hdf5": (
        several(file("a.h5"), unreadable("a.h5")), "convert a.h5 o.zarr", "a.h5: cannot be read: Permission denied",
    ),
    "unreadable folder": (
        several(file("in/a_1.tif"), unreadable("in")), "convert in/*.tif o.zarr", "Permission denied",
    ),
    "no file": (nothing, CONVERT, "a.tif: does not exist"),
    "no match": (nothing, "convert t/f_*.tif o.zarr", "no file matches this pattern"),
    "no output": (tags(), "convert a.tif", "give one or more sources, then the output"),
    "empty folder": (lambda d: (d / "t").mkdir(), "convert t o.zarr", "holds no frames"),
    "format": (file("a.raw"), "convert a.raw o.zarr", ".raw is not read; known are TIFF"),
    "formats": (several(tiffs(), file("t/x.npy")), "convert t o.zarr", "several formats"),
    "pipe": (pipe("a.tif"), CONVERT, "is no regular file"),
    "socket": (make.listening("a.tif"), CONVERT, "a.tif: cannot be read"),
    "device": (link("a.tif", "/dev/zero"), CONVERT, "is no regular file"),
    "link to nothing": (link("a.tif", "b.tif"), CONVERT, "does not exist"),
    "link to itself": (link("a.tif", "a.tif"), CONVERT, "a.tif"),
    "folder called a.tif": (lambda d: (d / "a.tif").mkdir(), CONVERT, "holds no frames (no files)"),
    "tiff empty": (file("a.tif", b""), CONVERT, "empty file; expected a TIFF"),
    "tiff text": (file("a.tif"), CONVERT, "not a TIFF (starts with b'hell')"),
    "tiff a pickle": (file("a.tif", PICKLE), CONVERT, "not a TIFF"),
    "tiff header": (file("a.tif", b"II*\0\x08\0\0\0"), CONVERT, "truncated"),
    "tiff no page": (file("a.tif", b"II*\0\0\0\0\0"), CONVERT, "without any image"),
    "tiff truncated": (several(tiffs(1), make.cut("t/f_0.tif", 20)), "convert t o.zarr", "truncated"),
    "tiff strip beyond": (tags(offsets=10**6), CONVERT, "truncated: pixels up to byte 1000920"),
    "tiff absurd": (tags(width=4 * 10**9), CONVERT, "declares 160000000000 bytes of pixels and holds 920"),
    "tiff no rows": (tags(length=0), CONVERT, "0 x 23 pixels"),
    "tiff 12 bits": (tags(bits=12), CONVERT, "12 bits per pixel"),
    "tiff complex": (tags(format=6), CONVERT, "complex pixels"),
    "tiff half strips": (tags(rows=7), CONVERT, "1 strips or tiles; expected 3"),
    "tiff colours": (tags(samples=3), CONVERT, "3 samples per pixel"),
    "tiff compression": (tags(compression=7), CONVERT, "compression 7 (JPEG)"),
    "tiff loop": (make.loop_of_directories, CONVERT, "form a loop"),
    "tiff shared tables": (make.chained_directories(3000), CONVERT, "the same tables over and over"),
    "big tiff far": (make.big_tiff(2**63), CONVERT, "lies beyond the end of the file"),
    "big tiff farther": (make.big_tiff(2**64 - 1), CONVERT, "lies beyond the end of the file"),
    "big tiff entries": (file("a.tif", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60)), CONVERT, "entries"),
    "tiff bomb": (tags(pixels=zeros, compression=8), CONVERT, "a.tif: a page"),
    "tiff bomb of zstd": (
        tags(pixels=packed("zstd"), compression=50000), CONVERT, "a.tif: a page",
    ),
    "tiff large and compressed": (
        tags(pixels=zeros, compression=8, width=2**18, length=2**18, rows=2**18), CONVERT, "takes",
    ),
    "tiff other shape": (
        several(tiffs(3), tiffs(1, start=3, frames=np.ones((1, 5, 6), "u2"))), "convert t o.zarr",
        "f_3.tif: 5 x 6 uint16; expected 20 x 23",
    ),
    "tiff other type": (
        several(tiffs(3), tiffs(1, start=3, frames=NAN[:1])), "convert t o.zarr", "float32; expected",
    ),
    "tiff gap": (several(tiffs(12), make.without("t/f_5.tif")), "convert t o.zarr", "1 frame is missing"),
    "tiff twice": (several(tiffs(3), tiffs(1, "t/f_0{}.tif", 2)), "convert t o.zarr", "two files with the number 2"),
    "tiff two series": (several(tiffs(3), tiffs(3, "t/dark_{}.tif")), "convert t o.zarr", "more than a number"),
    "dark of another shape": (
        several(tiffs(), tags("d.tif", width=20, counts=800)), "convert t o.zarr --dark d.tif", "crop the dark",
    ),
    "dark that links away": (
        several(tiffs(), hdf5(lambda f: f.update({"data": h5py.ExternalLink("/etc/passwd", "/d")}), "d.h5")),
        "convert t o.zarr --dark d.h5", "not followed",
    ),
    "grid": (tiffs(), "convert t o.zarr --grid 3x3", "cannot be cut into 3 x 3"),
    "grid words": (tiffs(), "convert t o.zarr --grid many", "or by x as in 2x2"),
    "grid zero": (tiffs(), "convert t o.zarr --grid 0x2", "greater than or equal to 1"),
    "chunks": (tiffs(), "convert t o.zarr --chunks 0,4,4", "greater than or equal to 1"),
    "chunks axes": (tiffs(), "convert t o.zarr --chunks 4,4", "chunks"),
    "output is the source": (tiffs(), "convert t t --overwrite", "in, on or around the input"),
    "output is a source": (tags(), "convert a.tif a.tif --overwrite", "is an input"),
    "output around the source": (tiffs(), "convert t/f_0.tif . --overwrite", "in, on or around the input"),
    "output of another kind": (several(tags(), file("o/x")), "convert a.tif o --overwrite", "is no Zarr"),
    "h5 empty": (file("a.h5", b""), "convert a.h5 o.zarr", "empty file"),
    "h5 text": (file("a.h5", b"hello" * 99), "convert a.h5 o.zarr", "not an HDF5 file"),
    "h5 signature only": (file("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(99)), "convert a.h5 o.zarr", "a.h5"),
    "h5 truncated": (
        several(hdf5(dataset(FRAMES)), make.cut("a.h5", 2000)), "convert a.h5 o.zarr", "truncated",
    ),
    "h5 nothing": (hdf5(lambda f: f.create_group("g")), "convert a.h5 o.zarr", "no dataset with three axes"),
    "h5 several": (
        hdf5(lambda f: f.update({"a": FRAMES, "b": FRAMES})), "convert a.h5 o.zarr", "/a (9 x 20 x 23 uint16), /b",
    ),
    "h5 external link": (
        hdf5(lambda f: f.update({"d": h5py.ExternalLink("/etc/passwd", "/d")})), "convert a.h5 o.zarr",
        "/d -> /etc/passwd",
    ),
    "h5 external storage": (
        hdf5(lambda f: f.create_dataset("d", (2, 8, 8), "u1", external=[("/etc/passwd", 0, 128)])),
        "convert a.h5 o.zarr", "lie in another file (/etc/passwd), which is not read",
    ),
    "h5 link loop": (hdf5(make.deep_links), "convert a.h5::a o.zarr", "form a loop"),
    "h5 virtual outside": (make.virtual("../b.h5"), "convert in/v.h5 o.zarr", "outside its folder"),
    "h5 virtual absolute": (make.virtual("/etc/passwd"), "convert in/v.h5 o.zarr", "outside its folder"),
    "h5 virtual a link": (
        several(make.virtual("b.h5"), link("in/b.h5", "/etc/passwd")), "convert in/v.h5 o.zarr", "outside its",
    ),
    "h5 virtual itself": (
        several(make.virtual("v.h5")), "convert in/v.h5 o.zarr", "no dataset data",
    ),
    "h5 virtual holes": (
        several(make.virtual("b.h5", holes=True), hdf5(dataset(FRAMES[:2]), "in/b.h5")),
        "convert in/v.h5 o.zarr", "with holes",
    ),
    "h5 virtual bomb": (
        several(make.virtual("b.h5"), make.inflating([(1, (4,))], zeros, (4, 20, 23)),
                lambda d: (d / "a.h5").rename(d / "in/b.h5")), "convert in/v.h5 o.zarr", "cannot be read",
    ),
    "h5 claims petabytes": (
        hdf5(lambda f: f.create_dataset("d", (10**9, 10**3, 10**3), "u2", chunks=(1, 1000, 1000))),
        "convert a.h5 o.zarr", "claims to have",
    ),
    "h5 claims many frames": (
        hdf5(lambda f: f.create_dataset("d", (10**6, 10**5, 10**4), "u2", chunks=(1, 1000, 1000))),
        "convert a.h5 o.zarr", "never written",
    ),
    "h5 claims plain": (
        hdf5(lambda f: f.create_dataset("d", (10**5,) * 3, "u2")), "convert a.h5 o.zarr", "1.8 PiB",
    ),
    "h5 filter": (make.inflating([(32845, ())], b"x"), "convert a.h5 o.zarr", "filter 32845 (unnamed), which is not"),
    "h5 filters in a row": (make.inflating([(1, (4,)), (32004, (0,))], b"x"), "convert a.h5 o.zarr", "again by lz4"),
    "h5 bomb": (make.inflating([(1, (4,))], zeros), "convert a.h5 o.zarr", "cannot be read"),
    "h5 bomb shuffled": (make.inflating([(2, (2,)), (1, (4,))], zeros), "convert a.h5 o.zarr", "cannot be read"),
    "h5 bomb of lz4": (
        make.inflating([(32004, (0,))], struct.pack(">QI", 2**40, 2**30) + b"x" * 99), "convert a.h5 o.zarr",
        "declares 1099511627776 bytes",
    ),
    "h5 bomb of bitshuffle": (
        make.inflating([(32008, (0, 2, 2, 0, 2))], struct.pack(">QI", 2**40, 8192) + b"x" * 99),
        "convert a.h5 o.zarr", "declares 1099511627776 bytes",
    ),
    "h5 bomb of blosc": (
        make.inflating([(32001, (2, 2, 2, 4096))], packed("blosc", 2**29)),
        "convert a.h5 o.zarr", "declares 536870912 bytes",
    ),
    "h5 bomb of zstd": (
        make.inflating([(32015, (3,))], packed("zstd")), "convert a.h5 o.zarr",
        "inflates to more",
    ),
    "h5 angles not a number": (
        make.angles([0, 1, np.nan, 3, 4, 5, 6, 7, 8]), "convert a.h5 o.zarr", "angle of frame 2 is nan",
    ),
    "h5 angles in miles": (make.angles(range(9), units="miles"), "convert a.h5 o.zarr", "angles in 'miles'"),
    "h5 endless": (make.endless, "convert a.h5 o.zarr", "the HDF5 library comes to no end with it"),
    "h5 words": (hdf5(dataset([b"a"])), "convert a.h5::data o.zarr", "expected (frame"),
    "h5 group": (hdf5(dataset(FRAMES, "g/d")), "convert a.h5 o.zarr --dataset g", "g is a group"),
    "npy objects": (npy(np.array([make.Executed()], object)), "convert a.npy o.zarr", "never unpickled"),
    "npy pickle": (file("a.npy", PICKLE), "convert a.npy o.zarr", "not a readable NumPy array"),
    "npy complex": (npy(np.zeros((2, 3, 4), complex)), "convert a.npy o.zarr", "complex128"),
    "npy claims": (npy(header=make.header_of("(9000, 9000, 9000)")), "convert a.npy o.zarr", "truncated"),
    "npy claims more": (npy(header=make.header_of(f"({10**30}, 2, 2)")), "convert a.npy o.zarr", "truncated"),
    "npy negative": (npy(header=make.header_of("(-2, 2, 2)")), "convert a.npy o.zarr", "at least one pixel"),
    "npy shape of code": (
        npy(header=make.header_of("__import__('os').system('touch executed')")), "convert a.npy o.zarr",
        "not a readable NumPy array",
    ),
    "npy dtype of code": (npy(header=make.header_of("(2, 2)", "'O8' if 1 else 2")), "convert a.npy o.zarr", "a.npy"),
    "npy deep": (npy(header=make.header_of("(" * 3000 + ")" * 3000)), "convert a.npy o.zarr", "a.npy: not a"),
    "npy long header": (
        file("a.npy", b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1) + bytes(9)), "convert a.npy o.zarr",
        "a header of 4294967295 bytes",
    ),
    "npz pickle": (make.archive(data=PICKLE), "convert a.npz o.zarr", "a.npz"),
    "npz long header": (
        make.archive(data=b"\x93NUMPY\x02\0" + struct.pack("<I", 2**30) + bytes(2**28)), "convert a.npz o.zarr",
        "a header of 1073741824 bytes",
    ),
    "npz bomb": (
        make.archive(data=make.header_of("(2, 20, 23)") + bytes(2**28)), "convert a.npz o.zarr", "declares",
    ),
    "npz many angles": (
        make.archive(data=make.header_of("(40000000, 1, 1)", "'|u1'") + bytes(40000000),
                     omega=make.header_of("(40000000,)", "'<f8'") + bytes(320000000)),
        "convert a.npz o.zarr", "claims to have 40000000 x 1 x 1",
    ),
    "npz text": (file("a.npz"), "convert a.npz o.zarr", "not a readable .npz"),
    "edf empty": (file("a.edf", b""), "convert a.edf o.zarr", "empty file"),
    "edf text": (file("a.edf"), "convert a.edf o.zarr", "not an EDF"),
    "edf header": (file("a.edf", b"{ Dim_1 = 3 ;"), "convert a.edf o.zarr", "header cannot be read"),
    "edf claims": (
        make.edf("Dim_1 = 100000000 ; Dim_2 = 100000000 ; DataType = UnsignedShort ; "), "convert a.edf o.zarr",
        "a.edf",
    ),
    "edf negative": (make.edf("Dim_1 = -3 ; Dim_2 = 3 ; DataType = UnsignedShort ; "), "convert a.edf o.zarr", "a.edf"),
    "edf endless": (
        make.edf("Dim_9007199254740992 = 23 ; Dim_1 = 3 ; Dim_2 = 3 ; DataType = UnsignedShort ; "),
        "convert a.edf o.zarr", "the fabio library comes to no end with it",
    ),
    "edf other file": (
        make.edf("Dim_1 = 3 ; Dim_2 = 3 ; DataType = UnsignedShort ; EDF_BinaryFileName = /etc/passwd ; "),
        "convert a.edf o.zarr", "a.edf",
    ),
    "zarr absent": (nothing, "convert a.zarr o.zarr", "does not exist"),
    "zarr of objects": (version_2(dtype="|O", chunk=PICKLE), "convert a.zarr o.zarr", "dtype '|O'"),
}  # fmt: skip

OTHERS = {
    "verify a scan": (make.scan, "verify scan.zarr", "not a result of tomoscale"),
    "verify nothing": (nothing, "verify a.zarr", "does not exist"),
    "verify a pipe": (pipe("a.zarr"), "verify a.zarr", "no Zarr directory"),
    "verify elsewhere": (result(arrays=["../../etc"]), "verify scan.zarr", "record is damaged"),
    "repair by another command": (
        several(manifest(["c/0/0/0", 1, 2]), lambda d: store_history(d, "demo.trial", {"folder": "executed"})),
        "verify scan.zarr --repair", "made by demo.trial, which cannot be repeated",
    ),
    "repair by a module": (
        several(manifest(["c/0/0/0", 1, 2]), lambda d: store_history(d, "cli.main", {})),
        "verify scan.zarr --repair", "made by cli.main, which cannot be repeated",
    ),
    "repair with strange parameters": (
        several(manifest(["c/0/0/0", 1, 2]), lambda d: store_history(d, "simulate.dct", {"evil": 1})),
        "verify scan.zarr --repair", "evil",
    ),
    "repair without history": (several(manifest(["c/0/0/0", 1, 2]), result_without_history := (
        lambda d: store_history(d, None, {}))), "verify scan.zarr --repair", "does not say how it was made"),
    "info nothing": (nothing, "info a.zarr", "does not exist"),
    "info a file": (file("a.zarr"), "info a.zarr", "is a file"),
    "info damaged": (text("{"), "info a.zarr", "not readable as JSON"),
    "info settings": (
        array(codecs=[{"name": "bytes"}, {"name": "zstd", "configuration": False}]), "info a.zarr",
        "settings that are no object",
    ),
    "info record": (result(complete="yes"), "info scan.zarr", "record is damaged"),
    "info history": (result(history=[{"operation": 3}]), "info scan.zarr", "record is damaged"),
    "info inputs": (
        result(history=[{"operation": "x", "inputs": {"frames": {"shape": 3}}}]), "info scan.zarr", "is damaged",
    ),
    "info unreadable": (several(array(), unreadable("a.zarr")), "info a.zarr", "a.zarr/zarr.json: Permission denied"),
    "info table": (
        several(result(), file("scan.parquet", b"PAR1" + bytes(99) + b"PAR1")), "info scan.zarr",
        "not a readable table",
    ),
    "info job": (
        several(group({"tomoscale": {"complete": False}}, "scan.zarr.incomplete"),
                file("scan.zarr.incomplete/.tomoscale/job.json", b'{"arrays": [1]}')),
        "info scan.zarr", "job.json: damaged",
    ),
    "report nothing": (nothing, "report a.zarr", "does not exist"),
    "report of an image": (
        several(lambda d: make.write_array(d / "a.zarr", FRAMES[0])), "report a.zarr", "three axes",
    ),
    "report into a file": (several(make.scan, file("r")), "report scan.zarr --output r --quiet", "r"),
    "report damaged": (array(chunk=b""), "report a.zarr --quiet", "0 bytes; expected 8280"),
    "report of a bomb": (
        array(chunk=gzipped, codecs=codecs("gzip")), "report a.zarr --quiet", "inflates to more",
    ),
    "export nothing": (nothing, "export a.zarr out", "does not exist"),
    "export a bomb": (
        array(chunk=gzipped, codecs=codecs("gzip")), "export a.zarr out", "inflates to more",
    ),
    "export onto files": (several(make.scan, file("out/x")), "export scan.zarr out", "files that are no export"),
    "export into nothing": (make.scan, "export scan.zarr missing/out", "does not exist; create it first"),
    "export as": (make.scan, "export scan.zarr out --compression bz2", "bz2"),
    "demo in a file": (file("d"), "demo d", "is a file; give a folder"),
    "demo small": (nothing, "demo d --shape 2,2,2", "is too small"),
    "demo over others": (file("d/scan.zarr/x"), "demo d", "was not made by a demo"),
    "simulate small": (nothing, "simulate dct o.zarr --shape 2,32,32", "is too small"),
    "simulate axes": (nothing, "simulate dct o.zarr --shape 5", "shape"),
    "simulate words": (nothing, "simulate dct o.zarr --shape a,b,c", "expected numbers separated by commas"),
    "simulate huge": (nothing, "simulate dct o.zarr --shape 100000,100000,100000", "a block of one frame"),
    "simulate many": (nothing, "simulate dct o.zarr --blobs 1000000000", "blobs"),
    "simulate many frames": (nothing, "simulate dct o.zarr --dark-frames 1000000000", "dark_frames"),
    "simulate nan": (nothing, "simulate dct o.zarr --degrees nan", "degrees"),
    "simulate infinite": (nothing, "simulate dct o.zarr --glow inf", "glow"),
    "simulate backwards": (nothing, "simulate dct o.zarr --peak-counts 9,3", "give the smaller one first"),
    "simulate seed": (nothing, "simulate dct o.zarr --seed -1", "seed"),
    "simulate spheres huge": (nothing, "simulate spheres o.zarr --shape 100000,100000,100000", "spheres"),
    "simulate spheres tiny": (nothing, "simulate spheres o.zarr --diameter-um 0.1,0.2", "below 3 voxels"),
    "simulate spheres vast": (nothing, "simulate spheres o.zarr --voxel-um 1e-320", "above 1,000,000 voxels"),
    "depth nan": (make.scan, "depth scan.zarr -o o.zarr --threshold nan", "must be finite"),
    "simulate into nothing": (nothing, "simulate dct missing/o.zarr", "does not exist; create it first"),
    "simulate onto": (make.scan, "simulate dct scan.zarr", "exists; give --overwrite"),
    "no such command": (nothing, "backgruond a.zarr", "background"),
}  # fmt: skip


def store_history(folder: Path, operation: str | None, parameters: dict) -> None:
    """Claim another last step for a result."""
    path = folder / "scan.zarr/zarr.json"
    whole = json.loads(path.read_text())
    step = {"operation": operation, "parameters": parameters, "inputs": {}}
    whole["attributes"]["tomoscale"]["history"] = [step] if operation else []
    path.write_text(json.dumps(whole))


CASES = {
    **{f"zarr: {name}": case for name, case in ZARR.items()},
    **{
        f"option: {name}": (several(make.masked), f"background scan.zarr {line}", words)
        for name, (line, words) in PARAMETERS.items()
    },
    **{f"source: {name}": case for name, case in SOURCES.items()},
    **OTHERS,
}


@pytest.fixture(scope="module")
def server() -> Iterator[CommandServer]:
    with CommandServer(memory=384 * MIB) as running:
        yield running


def words_of(line: str) -> list[str]:
    """Cut a line into words as a shell does; runs stay in the process that is measured."""
    import shlex

    words = shlex.split(line)
    if words[0] in ("background", "convert", "export") and "--scheduler" not in words:
        words += ["--scheduler", "threads"] + ([] if "--threads" in words else ["--threads", "2"])
    return words + (["--quiet"] if words[0] in ("background", "convert", "export", "simulate") else [])


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(tmp_path, server, case):
    maker, line, expected = CASES[case]
    maker(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = server.run(words_of(line), tmp_path)
    assert not done.hung
    assert (done.status, done.out) == (2, ""), done
    *progress, message = done.err.splitlines()
    assert all(p.startswith(("verify scan.zarr: ", "tomoscale: warning: ")) for p in progress), done.err
    assert message.startswith("tomoscale: ")
    assert expected in message
    assert sorted(tmp_path.rglob("*")) == before
    assert done.peak < 512 * MIB
    assert done.seconds < 5
