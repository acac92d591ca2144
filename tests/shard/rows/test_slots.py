"""Slots agree with the xxhash library, for ever."""

from __future__ import annotations

import struct

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.rows.slots import slots_of, xxh3_64

INT64 = st.integers(-(2**63), 2**63 - 1)
EDGES = [0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, -(2**31), 2**63 - 1, -(2**63)]


def strings(*ids: str) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    array = np.empty(len(ids), np.object_)
    array[:] = ids
    return array


@settings(deadline=None)
@given(st.lists(INT64, max_size=50))
def test_an_int64_hashes_as_its_8_little_endian_bytes(ids: list[int]) -> None:
    ids = EDGES + ids
    expected = [xxhash.xxh3_64_intdigest(struct.pack("<q", each)) for each in ids]
    assert xxh3_64(np.array(ids, np.int64)).tolist() == expected
    assert slots_of(np.array(ids, np.int64)).tolist() == [each % SLOTS_TOTAL for each in expected]


def test_many_random_int64s_hash_as_the_library_says() -> None:
    ids = np.random.default_rng(7).integers(-(2**63), 2**63 - 1, 20_000, np.int64)
    expected = [xxhash.xxh3_64_intdigest(word) for word in map(struct.Struct("<q").pack, ids)]
    assert xxh3_64(ids).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), max_size=20))
def test_a_string_hashes_as_its_utf8_bytes(ids: list[str]) -> None:
    expected = [xxhash.xxh3_64_intdigest(each.encode()) for each in ids]
    assert xxh3_64(strings(*ids)).tolist() == expected
    assert slots_of(strings(*ids)).tolist() == [each % SLOTS_TOTAL for each in expected]


def test_slots_never_change() -> None:
    assert slots_of(np.array([0, 1, 42, -7], np.int64)).tolist() == [3289, 2350, 1992, 4020]
    assert slots_of(strings("coffee", "tea", "naïve", "日本")).tolist() == [2718, 1152, 2056, 3008]


def test_hashing_leaves_the_ids_as_they_are_and_takes_read_only_ones() -> None:
    ids = np.array([1, 2, 3], np.int64)
    ids.flags.writeable = False
    slots_of(ids)
    assert ids.tolist() == [1, 2, 3]


def test_no_ids_have_no_slots() -> None:
    assert slots_of(np.empty(0, np.int64)).shape == (0,)
    assert slots_of(strings()).dtype == np.int64


def test_sequential_ids_spread_evenly_over_the_slots() -> None:
    counts = np.bincount(slots_of(np.arange(SLOTS_TOTAL * 100)), minlength=SLOTS_TOTAL)
    assert counts.min() > 50
    assert counts.max() < 150
