"""Upsert, insert and delete: what is acknowledged is there, and what is refused is not."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.conformance.backends import IN_ONE_PROCESS, Stage
from tests.conformance.reference import EVERY_LIST, assert_exact, ids_found, metadata_of
from tests.shard.samples import Corpus, config_of, corpus_of, ids_of, int64s, some_vectors
from vectorshard.shard.types import (
    Float32Array,
    IdType,
    Metric,
    RowErrorCode,
    SearchRequest,
    WriteMode,
)

BOTH_ID_TYPES = pytest.mark.parametrize("id_type", list(IdType))


@BOTH_ID_TYPES
async def test_written_rows_come_back_as_they_were_written(stage: Stage, id_type: IdType) -> None:
    await stage.create(config_of(id_type=id_type))
    corpus = corpus_of(100, id_type=id_type)
    metadata = [metadata_of(row % 3) for row in range(100)]
    result = await stage.upsert(corpus.ids, corpus.vectors, metadata=metadata)
    assert (result.accepted, result.errors) == (100, ())
    rows = await stage.get(corpus.ids)
    assert rows.ids.tolist() == corpus.ids.tolist()
    assert rows.vectors is not None
    assert rows.metadata is not None
    np.testing.assert_array_equal(rows.vectors, corpus.vectors)
    assert list(rows.metadata) == metadata


@BOTH_ID_TYPES
async def test_everything_is_there_after_a_restart(stage: Stage, id_type: IdType) -> None:
    await stage.create(config_of(id_type=id_type))
    corpus = corpus_of(200, id_type=id_type)
    await stage.upsert(corpus.ids, corpus.vectors, metadata=[metadata_of(1)] * 200)
    await stage.delete(corpus.ids[:20])
    before = await stage.describe()
    await stage.reopen()
    rows = await stage.get(corpus.ids)
    assert rows.ids.tolist() == corpus.ids[20:].tolist()
    assert rows.vectors is not None
    np.testing.assert_array_equal(rows.vectors, corpus.vectors[20:])
    assert list(rows.metadata or []) == [metadata_of(1)] * 180
    assert (await stage.describe()).ledger == before.ledger
    assert (await stage.describe()).incarnation == before.incarnation


async def test_extreme_int64_ids_are_ids_like_any_other(stage: Stage) -> None:
    await stage.create(config_of())
    ids = int64s(-(2**63), -1, 0, 1, 2**63 - 1)
    vectors = some_vectors(5)
    await stage.upsert(ids, vectors)
    assert ids_found(await stage.search(vectors, 1)) == [[id_] for id_ in ids.tolist()]
    assert await stage.delete(ids[:2]) == 2
    assert (await stage.get(ids)).ids.tolist() == ids[2:].tolist()


async def test_float16_vectors_are_kept_as_the_numbers_that_they_are(stage: Stage) -> None:
    await stage.create(config_of())
    vectors = some_vectors(50).astype(np.float16)
    ids = np.arange(50)
    await stage.upsert(ids, vectors)
    rows = await stage.get(ids)
    assert rows.vectors is not None
    np.testing.assert_array_equal(rows.vectors, vectors.astype(np.float32))
    corpus = Corpus(ids, vectors.astype(np.float32))
    assert_exact(await stage.search(vectors[:5]), Metric.L2, vectors[:5], corpus, 10)


async def test_an_upsert_replaces_vector_and_metadata_of_an_id(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(60)
    await stage.upsert(corpus.ids, corpus.vectors, metadata=[metadata_of(1)] * 60)
    moved = corpus.vectors + 5
    result = await stage.upsert(corpus.ids, moved)
    assert (result.accepted, result.errors) == (60, ())
    rows = await stage.get(corpus.ids)
    assert rows.vectors is not None
    np.testing.assert_array_equal(rows.vectors, moved)
    assert list(rows.metadata or []) == [b""] * 60
    found = await stage.search(corpus.vectors, exact=True)
    assert_exact(found, Metric.L2, corpus.vectors, Corpus(corpus.ids, moved), 10)


async def test_a_row_is_replaced_by_metadata_alone(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(10)
    await stage.put(corpus)
    await stage.upsert(corpus.ids, corpus.vectors, metadata=[metadata_of(1)] * 10)
    assert list((await stage.get(corpus.ids)).metadata or []) == [metadata_of(1)] * 10
    assert (await stage.describe()).ledger.replaced == 10


@pytest.mark.parametrize("metric", list(Metric))
async def test_identical_content_is_acknowledged_and_adds_nothing(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(config_of(metric=metric))
    corpus = corpus_of(40)
    metadata = [metadata_of(row % 2) for row in range(40)]
    await stage.upsert(corpus.ids, corpus.vectors, metadata=metadata)
    for mode in WriteMode:
        again = await stage.upsert(corpus.ids, corpus.vectors, metadata=metadata, mode=mode)
        assert (again.accepted, again.errors) == (40, ())
    ledger = (await stage.describe()).ledger
    assert (ledger.accepted, ledger.replaced, ledger.live) == (40, 0, 40)


async def test_an_insert_reports_the_rows_whose_id_exists_and_writes_the_others(
    stage: Stage,
) -> None:
    await stage.create(config_of())
    corpus = corpus_of(60)
    old, new = corpus.take(slice(0, 30)), corpus.take(slice(30, 60))
    await stage.put(old)
    changed = {3, 17, 29, 31, 58}
    rows = np.random.default_rng(1).permutation(60)
    vectors = corpus.vectors[rows].copy()
    for position, row in enumerate(rows.tolist()):
        if row in changed:
            vectors[position] += 1
    result = await stage.upsert(corpus.ids[rows], vectors, mode=WriteMode.INSERT)
    refused = [position for position, row in enumerate(rows.tolist()) if row in {3, 17, 29}]
    assert [error.row for error in result.errors] == refused
    assert {error.code for error in result.errors} == {RowErrorCode.ALREADY_EXISTS}
    assert result.accepted == 57
    kept = await stage.get(old.ids)
    assert kept.vectors is not None
    np.testing.assert_array_equal(kept.vectors, old.vectors)
    assert (await stage.get(new.ids)).ids.tolist() == new.ids.tolist()
    assert (await stage.describe()).ledger.accepted == 60


async def test_a_deleted_id_can_be_inserted_again(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(20)
    await stage.put(corpus)
    await stage.delete(corpus.ids)
    again = await stage.upsert(corpus.ids, corpus.vectors + 1, mode=WriteMode.INSERT)
    assert (again.accepted, again.errors) == (20, ())
    rows = await stage.get(corpus.ids)
    assert rows.vectors is not None
    np.testing.assert_array_equal(rows.vectors, corpus.vectors + 1)


async def test_an_empty_upsert_and_an_empty_delete_change_nothing(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(5))
    result = await stage.upsert(int64s(), some_vectors(0))
    assert (result.accepted, result.errors) == (0, ())
    assert await stage.delete(int64s()) == 0
    assert (await stage.describe()).ledger.accepted == 5


async def test_a_delete_counts_the_ids_that_were_there(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(50)
    await stage.put(corpus)
    absent = int64s(10**15, 10**15 + 1)
    assert await stage.delete(absent) == 0
    assert await stage.delete(np.concatenate([absent, corpus.ids[:10]])) == 10
    assert await stage.delete(corpus.ids[:12]) == 2
    assert (await stage.describe()).ledger.deleted == 12


@pytest.mark.parametrize("trained", [False, True], ids=["buffered", "indexed"])
async def test_a_deleted_row_is_found_by_nothing(stage: Stage, trained: bool) -> None:
    await stage.create(config_of())
    corpus = corpus_of(300)
    await stage.put(corpus)
    if trained:
        await stage.train()
    dead, live = corpus.take(slice(0, 100)), corpus.take(slice(100, 300))
    await stage.delete(dead.ids)
    queries = dead.vectors[:10]
    for found in (
        await stage.search(queries, exact=True),
        await stage.search(queries, nprobe=EVERY_LIST),
    ):
        assert_exact(found, Metric.L2, queries, live, 10)
    assert len((await stage.get(dead.ids)).ids) == 0


@pytest.mark.parametrize("trained", [False, True], ids=["buffered", "indexed"])
async def test_a_replaced_row_is_found_in_its_new_place_only(stage: Stage, trained: bool) -> None:
    await stage.create(config_of())
    corpus = corpus_of(300)
    await stage.put(corpus)
    if trained:
        await stage.train()
    vectors = corpus.vectors.copy()
    vectors[:100] = some_vectors(100, seed=9)
    await stage.upsert(corpus.ids[:100], vectors[:100])
    now = Corpus(corpus.ids, vectors)
    queries = np.concatenate([corpus.vectors[:5], vectors[:5]])
    for found in (
        await stage.search(queries, exact=True),
        await stage.search(queries, nprobe=EVERY_LIST),
    ):
        assert_exact(found, Metric.L2, queries, now, 10)


async def test_a_token_names_the_writes_and_a_search_takes_it(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(100)
    first = (await stage.put(corpus)).token
    second = (await stage.upsert(corpus.ids, corpus.vectors + 1)).token
    assert first.incarnation == (await stage.describe()).incarnation
    assert set(first.sequences) == set(range(stage.shards_total))
    assert all(second.sequences[shard] > first.sequences[shard] for shard in first.sequences)
    for token in (first, second):
        request = SearchRequest(
            collection="words", queries=corpus.vectors[:1] + 1, k=1, token=token
        )
        assert ids_found(await stage.shard.search(request)) == [[corpus.ids[0]]]


@BOTH_ID_TYPES
async def test_many_writers_at_once_each_find_what_they_wrote(
    stage: Stage, id_type: IdType
) -> None:
    await stage.create(config_of(id_type=id_type))

    async def write(writer: int) -> None:
        ids = ids_of(id_type, range(100 * writer, 100 * writer + 5))
        vectors = some_vectors(5, seed=writer)
        assert (await stage.upsert(ids, vectors)).accepted == 5
        rows = await stage.get(ids)
        assert rows.vectors is not None
        np.testing.assert_array_equal(rows.vectors, vectors)
        assert await stage.delete(ids[:1]) == 1
        assert (await stage.get(ids)).ids.tolist() == ids[1:].tolist()

    await asyncio.gather(*map(write, range(40)))
    ledger = (await stage.describe()).ledger
    assert (ledger.accepted, ledger.deleted, ledger.live) == (200, 40, 160)


async def written_at_once(stage: Stage, vectors: Float32Array) -> Float32Array:
    """Write each of the vectors (rows, dim) under one id, all at once; return the one it keeps."""
    results = await asyncio.gather(
        *(stage.upsert(int64s(7), vectors[turn : turn + 1]) for turn in range(len(vectors)))
    )
    assert [result.accepted for result in results] == [1] * len(vectors)
    rows = await stage.get(int64s(7))
    assert rows.vectors is not None
    kept: Float32Array = rows.vectors[0]
    return kept


async def test_many_writers_of_one_id_leave_one_row_and_replace_all_others(stage: Stage) -> None:
    await stage.create(config_of())
    vectors = some_vectors(30)
    kept = await written_at_once(stage, vectors)
    assert kept.tolist() in vectors.tolist()
    ledger = (await stage.describe()).ledger
    assert (ledger.accepted, ledger.replaced) == (30, 29)


# Between processes the order in which calls arrive is nobody's promise.
@pytest.mark.parametrize("stage", IN_ONE_PROCESS, indirect=True)
async def test_writers_of_one_id_are_served_in_the_order_of_their_arrival(stage: Stage) -> None:
    await stage.create(config_of())
    vectors = some_vectors(30)
    np.testing.assert_array_equal(await written_at_once(stage, vectors), vectors[29])


async def test_one_of_many_inserts_of_an_id_wins_and_the_others_are_told(stage: Stage) -> None:
    await stage.create(config_of())
    vectors = some_vectors(20)
    results = await asyncio.gather(
        *(
            stage.upsert(int64s(7), vectors[turn : turn + 1], mode=WriteMode.INSERT)
            for turn in range(20)
        )
    )
    assert sorted(result.accepted for result in results) == [0] * 19 + [1]
    winner = [result.accepted for result in results].index(1)
    rows = await stage.get(int64s(7))
    assert rows.vectors is not None
    np.testing.assert_array_equal(rows.vectors[0], vectors[winner])


async def test_a_bad_write_among_many_harms_no_other(stage: Stage) -> None:
    await stage.create(config_of())
    bad = some_vectors(1)
    bad[0, 3] = np.nan
    outcomes = await asyncio.gather(
        *(
            stage.upsert(int64s(number), bad if number % 7 == 3 else some_vectors(1, seed=number))
            for number in range(40)
        ),
        return_exceptions=True,
    )
    failed = [number for number, each in enumerate(outcomes) if isinstance(each, Exception)]
    assert failed == [number for number in range(40) if number % 7 == 3]
    written = (await stage.get(np.arange(40))).ids.tolist()
    assert written == [number for number in range(40) if number % 7 != 3]
