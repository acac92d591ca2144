"""Get, count and list."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.conformance.reference import metadata_of
from tests.shard.samples import config_of, corpus_of, ids_of, int64s, some_vectors
from vectorshard.shard.types import (
    CountRequest,
    GetRequest,
    IdArray,
    IdType,
    Include,
    Metric,
)
from vectorshard.shard.wire.metadata import json_from_metadata, mapping_from_metadata

BOTH_ID_TYPES = pytest.mark.parametrize("id_type", list(IdType))


@BOTH_ID_TYPES
async def test_get_answers_in_the_order_asked_and_leaves_absent_ids_out(
    stage: Stage, id_type: IdType
) -> None:
    await stage.create(config_of(id_type=id_type))
    corpus = corpus_of(80, id_type=id_type)
    metadata = [metadata_of(row) for row in range(80)]
    await stage.upsert(corpus.ids, corpus.vectors, metadata=metadata)
    wanted = np.random.default_rng(2).permutation(80)[:50]
    asked = np.concatenate([ids_of(id_type, [10**12]), corpus.ids[wanted]])
    rows = await stage.get(asked)
    assert rows.ids.tolist() == corpus.ids[wanted].tolist()
    assert rows.vectors is not None
    np.testing.assert_array_equal(rows.vectors, corpus.vectors[wanted])
    assert list(rows.metadata or []) == [metadata[row] for row in wanted]
    assert rows.cursor is None


async def test_get_brings_only_what_is_asked_for(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(5)
    await stage.put(corpus)
    bare = await stage.get(corpus.ids, vectors=False, metadata=False)
    assert (bare.vectors, bare.metadata) == (None, None)
    assert bare.ids.tolist() == corpus.ids.tolist()
    assert (await stage.get(corpus.ids, metadata=False)).metadata is None
    assert (await stage.get(corpus.ids, vectors=False)).vectors is None


async def test_get_of_nothing_is_empty_in_every_part(stage: Stage) -> None:
    await stage.create(config_of())
    for ids in (int64s(), int64s(1, 2)):
        rows = await stage.get(ids)
        assert rows.ids.shape == (0,)
        assert rows.vectors is not None
        assert rows.vectors.shape == (0, 8)
        assert list(rows.metadata or []) == []


async def test_a_cosine_collection_returns_unit_vectors(stage: Stage) -> None:
    await stage.create(config_of(metric=Metric.COSINE))
    corpus = corpus_of(30)
    await stage.put(corpus)
    rows = await stage.get(corpus.ids)
    assert rows.vectors is not None
    norms = np.linalg.norm(corpus.vectors.astype(np.float64), axis=1)
    np.testing.assert_allclose(rows.vectors, corpus.vectors / norms[:, None], rtol=1e-6)


@BOTH_ID_TYPES
async def test_count_counts_live_rows_or_the_live_among_some_ids(
    stage: Stage, id_type: IdType
) -> None:
    await stage.create(config_of(id_type=id_type))
    corpus = corpus_of(60, id_type=id_type)
    await stage.put(corpus)
    await stage.delete(corpus.ids[:10])

    async def count(ids: IdArray | None) -> int:
        return await stage.shard.count(CountRequest(collection="words", ids=ids))

    assert await count(None) == 50
    assert await count(corpus.ids[5:20]) == 10
    assert await count(ids_of(id_type, [10**12])) == 0
    assert await count(corpus.ids[:0]) == 0


async def test_pages_hold_every_row_once_and_no_page_is_larger_than_asked(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(60)
    await stage.put(corpus)
    await stage.delete(corpus.ids[::4])
    live = sorted(set(corpus.ids.tolist()) - set(corpus.ids[::4].tolist()))
    for page_size in (1, 7, 20, 45, 1_000):
        pages = await stage.list_all(page_size)
        sizes = [len(page.ids) for page in pages]
        assert max(sizes) <= page_size
        assert min(sizes) > 0
        assert sorted(np.concatenate([page.ids for page in pages]).tolist()) == live
        assert len(pages) == -(-45 // page_size)


async def test_a_page_of_unstated_size_is_full_of_rows_with_what_is_included(
    stage: Stage,
) -> None:
    await stage.create(config_of())
    corpus = corpus_of(90)
    await stage.upsert(corpus.ids, corpus.vectors, metadata=[metadata_of(1)] * 90)
    page = await stage.list_page(0, include=Include(vectors=True, metadata=True))
    assert (len(page.ids), page.cursor) == (90, None)
    row_of = {id_: row for row, id_ in enumerate(corpus.ids.tolist())}
    assert page.vectors is not None
    np.testing.assert_array_equal(
        page.vectors, corpus.vectors[[row_of[id_] for id_ in page.ids.tolist()]]
    )
    assert list(page.metadata or []) == [metadata_of(1)] * 90
    assert (await stage.list_page(0)).vectors is None


async def test_metadata_is_json_where_json_is_asked_for(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(40)
    structs = [metadata_of(row) if row % 2 else b"" for row in range(40)]
    await stage.upsert(corpus.ids, corpus.vectors, metadata=structs)
    texts = json_from_metadata(structs)
    text_of = dict(zip(corpus.ids.tolist(), texts, strict=True))
    assert json.loads(texts[1]) == mapping_from_metadata(structs[1])
    include = Include(metadata=True, metadata_json=True)
    page = await stage.list_page(0, include=include)
    assert list(page.metadata or []) == [text_of[id_] for id_ in page.ids.tolist()]
    some = corpus.ids[5:30]
    request = GetRequest(collection=stage.collection.name, ids=some, include=include)
    assert list((await stage.shard.get(request)).metadata or []) == texts[5:30]
    for result in await asyncio.gather(
        *(stage.search(corpus.vectors[:4], k, include=include) for k in (3, 7))
    ):
        found = [text_of[id_] for id_ in result.hits.ids.tolist()]
        assert list(result.metadata or []) == found


async def test_sound_rows_are_listed_whether_damaged_ones_are_skipped_or_not(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(30)
    await stage.put(corpus)
    page = await stage.list_page(100, include=Include(metadata=True), skip_damaged=True)
    assert sorted(page.ids.tolist()) == sorted(corpus.ids.tolist())
    assert page.damaged is None
    described = await stage.shard.describe(stage.collection.name)
    assert [(shard.rows_damaged, shard.damaged_ids) for shard in described.shards] == [
        (0, ())
    ] * len(described.shards)


async def test_an_empty_collection_has_one_empty_page(stage: Stage) -> None:
    await stage.create(config_of(id_type=IdType.STRING))
    (page,) = await stage.list_all(10)
    assert page.ids.shape == (0,)
    assert page.ids.dtype == np.object_


async def test_every_row_that_lives_throughout_is_listed_once_whatever_is_written_meanwhile(
    stage: Stage,
) -> None:
    await stage.create(config_of())
    corpus = corpus_of(200)
    await stage.put(corpus)
    throughout = set(corpus.ids[100:].tolist())
    listed: list[int] = []
    page = await stage.list_page(9)
    for turn in range(1_000):
        listed += page.ids.tolist()
        if page.cursor is None:
            break
        await stage.delete(corpus.ids[2 * turn : 2 * turn + 1])
        await stage.upsert(corpus.ids[2 * turn + 1 : 2 * turn + 2], some_vectors(1, seed=turn))
        await stage.upsert(int64s(10**12 + turn), some_vectors(1, seed=turn))
        if turn == 5:
            await stage.train()
        if turn == 8:
            await stage.reopen()
        page = await stage.list_page(9, after=page)
    assert page.cursor is None
    assert throughout <= set(listed)
    assert sum(id_ in throughout for id_ in listed) == len(throughout)
