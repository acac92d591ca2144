"""Ids come back as they went in, and each is found under its newest row."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.rows.id_column import HashIds, IdColumn, IdIndex, decode_ids, encode_ids
from vectorshard.shard.rows.slots import xxh3_64
from vectorshard.shard.types import IdArray, IdType, Int64Array, UInt64Array

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
BOTH = pytest.mark.parametrize("id_type", list(IdType))


def id_array(id_type: IdType, ids: Sequence[int | str]) -> IdArray:
    if id_type is IdType.INT64:
        return np.array(ids, np.int64)
    array = np.empty(len(ids), np.object_)
    array[:] = ids
    return array


def some_ids(id_type: IdType, first: int, last: int) -> IdArray:
    numbers = range(first, last)
    return id_array(
        id_type, numbers if id_type is IdType.INT64 else [f"id-{each}" for each in numbers]
    )


def one_hash(ids: IdArray) -> UInt64Array:
    return np.zeros(len(ids), np.uint64)


def four_hashes(ids: IdArray) -> UInt64Array:
    return (xxh3_64(ids) % np.uint64(4)) << np.uint64(62)


def last_place(ids: IdArray) -> UInt64Array:
    return np.full(len(ids), 2**64 - 1, np.uint64)


HASHES: list[HashIds] = [xxh3_64, one_hash, four_hashes, last_place]


@st.composite
def batches_of_ids(draw: st.DrawFn) -> tuple[IdType, list[list[int | str]]]:
    id_type = draw(st.sampled_from(IdType))
    of_any: st.SearchStrategy[int | str] = INT64 if id_type is IdType.INT64 else TEXT
    pool = draw(st.lists(of_any, min_size=1, max_size=40, unique=True))
    batch = st.lists(st.sampled_from(pool), max_size=20, unique=True)
    return id_type, draw(st.lists(batch, max_size=8))


@settings(deadline=None)
@given(batches_of_ids())
def test_rows_give_back_the_ids_that_were_appended(
    case: tuple[IdType, list[list[int | str]]],
) -> None:
    id_type, batches = case
    column = IdColumn(id_type)
    expected: list[int | str] = []
    for batch in batches:
        column.append(id_array(id_type, batch))
        expected += batch
        rows = np.arange(len(expected))[::-1]
        assert len(column) == len(expected)
        assert column.take(rows).tolist() == expected[::-1]
        assert column.take_encoded(rows) == encode_ids(id_type, column.take(rows))


@settings(deadline=None)
@given(batches_of_ids())
def test_encoded_ids_decode_and_extend_to_the_same_ids(
    case: tuple[IdType, list[list[int | str]]],
) -> None:
    id_type, batches = case
    column = IdColumn(id_type)
    for batch in batches:
        blob = encode_ids(id_type, id_array(id_type, batch))
        decoded = decode_ids(id_type, blob, len(batch))
        assert decoded.dtype == id_array(id_type, []).dtype
        assert decoded.tolist() == batch
        column.extend_encoded(blob, len(batch))
    expected = [each for batch in batches for each in batch]
    assert column.take(np.arange(len(column))).tolist() == expected


def test_the_encoding_on_disk_never_changes() -> None:
    assert encode_ids(IdType.INT64, id_array(IdType.INT64, [1, -1])) == (
        b"\x01\0\0\0\0\0\0\0" + b"\xff" * 8
    )
    assert encode_ids(IdType.STRING, id_array(IdType.STRING, ["tea", "é"])) == (
        b"\x03\0\0\0\x02\0\0\0tea\xc3\xa9"
    )


@BOTH
@pytest.mark.parametrize("damage", ["cut", "longer", "fewer rows", "more rows"])
def test_bytes_that_are_not_so_many_ids_are_corrupt_and_append_nothing(
    id_type: IdType, damage: str
) -> None:
    blob = encode_ids(id_type, some_ids(id_type, 0, 3))
    blob = {"cut": blob[:-1], "longer": blob + b"x"}.get(damage, blob)
    rows = {"fewer rows": 0, "more rows": 4}.get(damage, 3)
    column = IdColumn(id_type)
    with pytest.raises(RowStoreCorrupt):
        decode_ids(id_type, blob, rows)
    with pytest.raises(RowStoreCorrupt):
        column.extend_encoded(blob, rows)
    assert len(column) == 0


def test_a_string_that_is_not_utf8_is_corrupt() -> None:
    with pytest.raises(RowStoreCorrupt):
        decode_ids(IdType.STRING, b"\x01\0\0\0\xff", 1)


@BOTH
def test_memory_grows_with_the_rows_and_holds_no_object_for_each(id_type: IdType) -> None:
    column = IdColumn(id_type)
    column.append(some_ids(id_type, 0, 10_000))
    assert 10_000 * 8 <= column.memory_bytes <= 10_000 * 40
    assert IdIndex(column).memory_bytes > 0


@BOTH
def test_rows_can_be_taken_while_another_thread_appends(id_type: IdType) -> None:
    column = IdColumn(id_type)
    expected = some_ids(id_type, 0, 20_000)
    done = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        rng = np.random.default_rng(7)
        while not done.is_set():
            rows = rng.integers(0, max(1, len(column)), 50) if len(column) else np.empty(0, int)
            if (column.take(rows) != expected[rows]).any():
                wrong.append(len(column))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for first in range(0, len(expected), 40):
        column.append(expected[first : first + 40])
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(column) == len(expected)


@settings(deadline=None)
@given(batches_of_ids(), st.sampled_from(HASHES))
def test_the_index_finds_what_a_dict_finds_even_when_hashes_collide(
    case: tuple[IdType, list[list[int | str]]], hash_ids: HashIds
) -> None:
    id_type, batches = case
    column = IdColumn(id_type)
    index = IdIndex(column, hash_ids)
    newest: dict[int | str, int] = {}
    everything = sorted({each for batch in batches for each in batch}, key=str)
    for batch in batches:
        rows = np.arange(len(column), len(column) + len(batch))
        column.append(id_array(id_type, batch))
        index.put(id_array(id_type, batch), rows)
        newest.update(zip(batch, rows.tolist(), strict=True))
        found = index.lookup(id_array(id_type, everything))
        assert found.tolist() == [newest.get(each, -1) for each in everything]
        assert len(index) == len(newest)


@BOTH
def test_the_index_keeps_every_id_as_it_grows(id_type: IdType) -> None:
    column = IdColumn(id_type)
    index = IdIndex(column)
    for first in range(0, 6_000, 700):
        ids = some_ids(id_type, first, first + 700)
        rows = np.arange(len(column), len(column) + len(ids))
        column.append(ids)
        index.put(ids, rows)
    assert index.lookup(some_ids(id_type, 0, len(column))).tolist() == list(range(len(column)))
    assert (index.lookup(some_ids(id_type, len(column), len(column) + 3_000)) == -1).all()


@BOTH
def test_the_newest_rows_are_found_after_a_put_of_old_and_new_ids_that_grows(
    id_type: IdType,
) -> None:
    column = IdColumn(id_type)
    index = IdIndex(column)
    for last in (400, 2_000, 10_000):
        ids = some_ids(id_type, 0, last)
        rows = np.arange(len(column), len(column) + last)
        column.append(ids)
        index.put(ids, rows)
        assert index.lookup(ids).tolist() == rows.tolist()
        assert len(index) == last


@BOTH
def test_an_id_that_was_put_is_found_while_others_are_put(id_type: IdType) -> None:
    column = IdColumn(id_type)
    index = IdIndex(column)
    known = some_ids(id_type, 0, 200)
    column.append(known)
    index.put(known, np.arange(200))
    done = threading.Event()
    missed: list[Int64Array] = []

    def read() -> None:
        while not done.is_set():
            found = index.lookup(known)
            if not np.array_equal(found, np.arange(200)):
                missed.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for first in range(200, 3_000, 100):
        ids = some_ids(id_type, first, first + 100)
        column.append(ids)
        index.put(ids, np.arange(first, first + 100))
    done.set()
    reader.join()
    assert not missed


@BOTH
def test_the_same_id_may_be_looked_up_twice_and_no_ids_find_nothing(id_type: IdType) -> None:
    column = IdColumn(id_type)
    index = IdIndex(column)
    assert index.lookup(some_ids(id_type, 0, 0)).shape == (0,)
    assert index.lookup(some_ids(id_type, 5, 6)).tolist() == [-1]
    index.put(some_ids(id_type, 0, 0), np.empty(0, np.int64))
    column.append(some_ids(id_type, 0, 2))
    index.put(some_ids(id_type, 0, 2), np.arange(2))
    twice = np.concatenate([some_ids(id_type, 1, 2), some_ids(id_type, 1, 2)])
    assert index.lookup(twice).tolist() == [1, 1]
    assert len(index) == 2


@BOTH
@pytest.mark.parametrize("hash_ids", HASHES)
def test_an_index_of_some_rows_is_made_from_another_without_hashing_anew(
    id_type: IdType, hash_ids: HashIds
) -> None:
    column = IdColumn(id_type)
    column.append(some_ids(id_type, 0, 60))
    index = IdIndex(column, hash_ids)
    index.put(some_ids(id_type, 0, 60), np.arange(60))
    kept = np.arange(0, 60, 3)
    fewer = IdColumn(id_type)
    fewer.extend_encoded(column.take_encoded(kept), len(kept))
    of_fewer = IdIndex(fewer, hash_ids, room=len(kept))
    for begin in (0, 7):
        positions = np.arange(begin, 7 if begin == 0 else len(kept))
        of_fewer.put_new(positions, index.hashes(kept[positions]))
    found = of_fewer.lookup(some_ids(id_type, 0, 60))
    expected = np.full(60, -1)
    expected[kept] = np.arange(len(kept))
    np.testing.assert_array_equal(found, expected)
    assert len(of_fewer) == len(kept)


@BOTH
def test_a_table_with_room_is_not_replaced_as_it_fills(
    id_type: IdType, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = IdColumn(id_type)
    ids = some_ids(id_type, 0, 5_000)
    column.append(ids)
    index = IdIndex(column, room=5_000)
    monkeypatch.setattr(
        "vectorshard.shard.rows.id_column._empty_table", lambda bits: pytest.fail(f"{bits} bits")
    )
    index.put(ids, np.arange(5_000))
    assert index.lookup(ids).tolist() == list(range(5_000))
