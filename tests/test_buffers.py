"""Memory that goes from one block to the next: never shared by two arrays, never more than was in use at one time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import buffers

MIB = 2**20


@pytest.fixture(autouse=True)
def _nothing_kept():
    buffers.clear()
    yield
    buffers.clear()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_the_next_block_lies_where_the_last_one_lay():
    with buffers.reused():
        first = address(buffers.empty((3, 4, MIB), np.float32))
        assert address(buffers.empty((12, MIB), np.float32)) == first
        assert address(buffers.empty((11, MIB), np.int32)) == first


def test_a_block_with_a_halo_on_both_sides_lies_where_the_first_one_lay_that_has_it_on_one_side():
    with buffers.reused():
        first = address(buffers.empty((129, 100, 1024), np.uint16))
        assert address(buffers.empty((130, 100, 1024), np.uint16)) == first


def test_memory_is_not_lent_again_while_a_view_of_it_lives():
    with buffers.reused():
        view = buffers.empty((16, MIB), np.uint8)[5, ::4].reshape(2, -1).T
        view[...] = 7
        other = buffers.empty((16, MIB), np.uint8)
        other[...] = 9
        assert not np.shares_memory(view, other)
        assert (view == 7).all()


def test_nothing_is_kept_outside_a_run_and_small_arrays_are_never_kept():
    buffers.empty((16, MIB), np.uint8)[0] = 1
    with buffers.reused():
        buffers.empty((100,), np.uint8)
    assert not buffers._free


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(8, 40), st.integers(0, 3)), max_size=25))
def test_live_arrays_keep_their_values_and_no_more_is_held_than_was_in_use_at_one_time(steps):
    held: dict[int, np.ndarray] = {}
    stamps: dict[int, int] = {}
    most = 0
    buffers.clear()
    with buffers.reused():
        for number, (mib, place) in enumerate(steps):
            held.pop(place, None)
            held[place] = buffers.empty((mib, MIB), np.uint8)
            held[place][:, ::4096] = stamps[place] = number
            in_use = sum(a.nbytes for a in held.values())
            most = max(most, in_use)
            assert in_use + sum(map(len, buffers._free)) <= buffers.SPARE * most
            assert all((a[:, ::4096] == stamps[p]).all() for p, a in held.items())
            assert len({address(a) for a in held.values()}) == len(held)


def test_threads_never_get_the_same_memory():
    def work(number: int) -> bool:
        with buffers.reused():
            for _ in range(20):
                array = buffers.empty((9, MIB), np.uint8)
                array[:, ::512] = number
                if not (array[:, ::512] == number).all():
                    return False
                del array
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
