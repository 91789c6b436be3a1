"""Samples are put together from their bit planes as Blosc does, wherever they belong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from numpy.testing import assert_array_equal

from tomoscale import kernels
from tomoscale.kernels import reference

BEHIND = 32


def random_bytes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["uint8", "uint16", "int32", "float32"]),
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    per_block=st.integers(1, 100).map(lambda n: 8 * n),
)
def test_any_window_of_a_chunk_comes_to_its_place(data, seed, dtype, shape, per_block):
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape = tuple(n * 8 if i == axis else n for i, n in enumerate(shape))
    planes = random_bytes(math.prod(shape) * np.dtype(dtype).itemsize + BEHIND, seed)
    chunk = reference.from_bit_planes(planes[:-BEHIND], shape, per_block, dtype)
    window = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in shape)
    corner = tuple(data.draw(st.integers(0, 3)) for _ in shape)
    place = tuple(slice(c, c + w.stop - w.start) for c, w in zip(corner, window, strict=True))
    out = np.zeros([p.stop + data.draw(st.integers(0, 3)) for p in place], dtype)
    expected = out.copy()
    expected[place] = chunk[window]
    kernels.from_bit_planes(planes, shape, per_block, window, out, corner)
    assert_array_equal(out.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("size", [1024, 4096, 200_008])
def test_they_are_the_samples_that_blosc_shuffled(dtype, size):
    samples = (random_bytes(size, 0) // 50).astype(dtype)
    packed = bytearray(blosc.compress(samples, b"lz4", 5, blosc.BITSHUFFLE, 0))
    assert packed[2] & 0b111 == 0b100  # bits shuffled, compressed
    per_block = int.from_bytes(packed[8:12], "little") // samples.itemsize
    packed[2] ^= 0b100
    planes = np.frombuffer(blosc.decompress(bytes(packed)) + bytes(BEHIND), np.uint8)
    out = np.empty(size, dtype)
    kernels.from_bit_planes(planes, (size,), per_block, (slice(0, size),), out, (0,))
    assert_array_equal(out, samples)


def test_nothing_beside_the_chunk_and_the_array_is_touched():
    given = {
        "planes": np.zeros(16 + BEHIND, np.uint8), "shape": (2, 4), "per_block": 8,
        "window": np.s_[0:2, 0:4], "out": np.zeros((2, 4), np.uint16), "corner": (0, 0),
    }  # fmt: skip
    kernels.from_bit_planes(**given)
    for change, words in [
        ({"window": np.s_[0:3, 0:4]}, "leaves a chunk"),
        ({"window": np.s_[-1:2, 0:4]}, "leaves a chunk"),
        ({"corner": (0, 1)}, "leaves a chunk"),
        ({"corner": (-1, 0)}, "leaves a chunk"),
        ({"planes": np.zeros(15 + BEHIND, np.uint8)}, "47 bytes, blocks of 8, do not make"),
        ({"per_block": 12}, "blocks of 12"),
        ({"per_block": 0}, "blocks of 0"),
        ({"shape": (3, 5)}, r"do not make \(3, 5\)"),
        ({"out": np.zeros((4, 2), np.uint16).T}, "need 1, 2 or 4 bytes in C order"),
        ({"out": np.zeros((2, 4))}, "out is float64"),
    ]:
        with pytest.raises(ValueError, match=words):
            kernels.from_bit_planes(**{**given, **change})
