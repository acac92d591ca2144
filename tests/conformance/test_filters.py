"""Filters: the same rows pass everywhere, at every moment of a collection's life."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.conformance.reference import (
    EVERY_LIST,
    assert_exact,
    assert_scores_are_exact,
    best_of,
    ids_found,
    recall_of,
)
from tests.shard.filter_samples import FIELDS, holds, packed, some_mappings
from tests.shard.samples import Corpus, config_of, corpus_of, int64s, some_vectors
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.filters import Equals, Exists, Filter, In, Range
from vectorshard.shard.types import (
    CollectionConfig,
    CountRequest,
    FilterPlan,
    GetRequest,
    IdType,
    Include,
    IndexKind,
    Metric,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

FILTERS: tuple[Filter, ...] = (
    Equals("lang", "de"),
    In("lang", ("fr", "it")) & Equals("public", True),
    Range("year", gte=1950) | ~Exists("lang"),
    ~(Range("rating", lt=0.9) | Equals("lang", "en")),
    Equals("year", 1_000_000.0),
)


def filtered_config(**parts: Any) -> CollectionConfig:
    """Return a collection with declared fields."""
    return replace(config_of(**parts), filter_fields=FIELDS)


class Table:
    """A corpus with metadata, as a test changes it."""

    def __init__(self, corpus: Corpus, mappings: list[dict[str, Any]]) -> None:
        self.corpus = corpus
        self.mappings = mappings
        self.live = np.ones(len(corpus), dtype=np.bool_)

    async def put(self, stage: Stage, rows: slice) -> None:
        """Write some rows."""
        part = self.corpus.take(rows)
        await stage.upsert(part.ids, part.vectors, metadata=packed(self.mappings[rows]))

    def passing(self, filter_: Filter) -> Corpus:
        """Return the live rows that pass."""
        holding = np.array([holds(filter_, mapping) for mapping in self.mappings])
        return self.corpus.take(np.flatnonzero(holding & self.live))


def some_table(rows: int, id_type: IdType = IdType.INT64) -> Table:
    """Return a table of so many rows."""
    return Table(corpus_of(rows, id_type=id_type), some_mappings(rows))


async def count(stage: Stage, filter_: Filter) -> int:
    """Count what passes."""
    return await stage.shard.count(CountRequest(collection="words", filter=filter_))


async def assert_filters_hold(stage: Stage, table: Table, *, exact: bool) -> None:
    """Assert that searches, counts and listings see exactly what passes."""
    queries = some_vectors(6, seed=1)
    for filter_ in FILTERS:
        passing = table.passing(filter_)
        assert await count(stage, filter_) == len(passing)
        pages = await stage.list_all(7, filter_=filter_)
        listed = [id_ for page in pages for id_ in page.ids.tolist()]
        assert sorted(listed) == sorted(passing.ids.tolist())
        for k in (1, 10):
            result = await stage.search(
                queries, k, exact=exact, nprobe=0 if exact else EVERY_LIST, filter_=filter_
            )
            assert_exact(result, stage.collection.metric, queries, passing, k)
            assert sum(s.rows_passing for s in result.receipt.shards) == len(passing)
            assert all(s.filter_plan is not None for s in result.receipt.shards)
            assert sum(s.rows_visible for s in result.receipt.shards) == table.live.sum()


@pytest.mark.parametrize("metric", list(Metric))
async def test_only_what_passes_is_seen_before_and_after_training_and_a_restart(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(filtered_config(metric=metric))
    table = some_table(500)
    await table.put(stage, slice(0, 400))
    table.live[400:] = False
    await assert_filters_hold(stage, table, exact=False)
    await stage.train()
    await assert_filters_hold(stage, table, exact=False)
    await table.put(stage, slice(400, 500))
    table.live[400:] = True
    await assert_filters_hold(stage, table, exact=False)
    await stage.reopen()
    await assert_filters_hold(stage, table, exact=False)
    await stage.delete(table.corpus.ids[::3])
    table.live[::3] = False
    await assert_filters_hold(stage, table, exact=True)


@pytest.mark.parametrize("kind", list(IndexKind))
async def test_the_index_finds_most_of_what_passes_and_scores_it_exactly(
    stage: Stage, kind: IndexKind
) -> None:
    await stage.create(filtered_config(dim=16, kind=kind))
    corpus = corpus_of(4_000, dim=16)
    corpus.vectors[:] += 4 * some_vectors(50, dim=16)[np.arange(4_000) % 50]  # few lists suffice
    mappings = [{"public": row % 10 != 0} for row in range(len(corpus))]
    table = Table(corpus, mappings)
    await table.put(stage, slice(0, 3_960))
    await stage.train()
    await table.put(stage, slice(3_960, 4_000))  # in the buffer
    await stage.delete(corpus.ids[1:3_000:7])
    table.live[1:3_000:7] = False
    filter_ = Equals("public", True)
    passing = table.passing(filter_)
    queries = np.concatenate([passing.vectors[:2] + np.float32(0.1), passing.vectors[-2:]])
    result = await stage.search(queries, filter_=filter_)
    assert_scores_are_exact(result, Metric.L2, queries, passing)
    assert recall_of(result, best_of(Metric.L2, queries, passing, 10)) >= 0.8
    assert [ids[0] for ids in ids_found(result)[2:]] == passing.ids[-2:].tolist()
    plans = {shard.filter_plan for shard in result.receipt.shards}
    # Fewer rows, or codes that need many candidates: to score all that pass is cheaper.
    assert stage.shards_total > 1 or kind is IndexKind.IVF_PQ or plans == {FilterPlan.INDEX}
    for shard in result.receipt.shards:
        assert shard.rows_exact <= shard.rows_passing <= shard.rows_visible
        assert (shard.filter_plan is FilterPlan.INDEX) == (shard.nprobe > 0)
        if shard.filter_plan is FilterPlan.EXACT:
            assert shard.rows_exact == shard.rows_passing


async def test_few_rows_that_pass_are_all_scored(stage: Stage) -> None:
    await stage.create(filtered_config())
    table = some_table(1_000)
    for mapping in table.mappings:
        mapping["rating"] = 1.0
    for mapping in table.mappings[::100]:
        mapping["rating"] = 0.0
    await table.put(stage, slice(0, 1_000))
    await stage.train()
    queries, filter_ = some_vectors(3, seed=1), Equals("rating", 0.0)
    result = await stage.search(queries, filter_=filter_)
    assert_exact(result, Metric.L2, queries, table.passing(filter_), 10)
    for shard in result.receipt.shards:
        assert shard.filter_plan is FilterPlan.EXACT
        assert (shard.nprobe, shard.nlist, shard.generation) == (0, 0, 0)
        assert shard.rows_exact == shard.rows_passing


async def test_a_search_without_a_filter_says_nothing_of_one(stage: Stage) -> None:
    await stage.create(filtered_config())
    table = some_table(50)
    await table.put(stage, slice(0, 50))
    receipt = (await stage.search(some_vectors(1))).receipt
    assert {(shard.filter_plan, shard.rows_passing) for shard in receipt.shards} == {(None, 0)}


@pytest.mark.parametrize("id_type", list(IdType))
async def test_a_delete_by_filter_deletes_what_passes_and_nothing_else(
    stage: Stage, id_type: IdType
) -> None:
    await stage.create(filtered_config(id_type=id_type))
    table = some_table(300, id_type)
    await table.put(stage, slice(0, 300))
    await stage.train()
    filter_ = Equals("lang", "de")
    passing = table.passing(filter_)
    assert await stage.delete_where(filter_) == len(passing)
    assert await stage.delete_where(filter_) == 0
    table.live &= ~np.isin(table.corpus.ids, passing.ids)
    await assert_filters_hold(stage, table, exact=True)
    ledger = (await stage.describe()).ledger
    assert (ledger.deleted, ledger.live) == (len(passing), 300 - len(passing))
    await stage.reopen()
    await assert_filters_hold(stage, table, exact=True)


async def test_a_delete_by_filter_sees_the_writes_before_it_and_none_behind(stage: Stage) -> None:
    await stage.create(filtered_config())
    corpus = corpus_of(40)
    german, english = packed([{"lang": "de"}] * 40), packed([{"lang": "en"}] * 40)
    deleted = 0
    for _ in range(5):
        await stage.upsert(corpus.ids, corpus.vectors, metadata=german)
        counts = await asyncio.gather(
            stage.delete_where(Equals("lang", "de")),
            stage.upsert(corpus.ids, corpus.vectors, metadata=english),
            stage.delete_where(Equals("lang", "de")),
        )
        assert counts[0] + counts[2] <= 40
        deleted += counts[0] + counts[2]
        assert await count(stage, Equals("lang", "de")) == 0
        assert await count(stage, Equals("lang", "en")) == 40
    ledger = (await stage.describe()).ledger
    assert (ledger.deleted, ledger.live) == (deleted, 40)


async def test_an_upsert_moves_a_row_from_one_filter_to_the_other(stage: Stage) -> None:
    await stage.create(filtered_config())
    corpus = corpus_of(20)
    await stage.upsert(corpus.ids, corpus.vectors, metadata=packed([{"year": 1}] * 20))
    await stage.upsert(corpus.ids[:5], corpus.vectors[:5], metadata=packed([{"year": 2}] * 5))
    assert await count(stage, Equals("year", 1.0)) == 15
    assert await count(stage, Equals("year", 2.0)) == 5
    await stage.upsert(corpus.ids[:2], corpus.vectors[:2])
    assert await count(stage, Exists("year")) == 18


async def test_get_returns_what_passes_with_its_content(stage: Stage) -> None:
    await stage.create(filtered_config())
    table = some_table(60)
    await table.put(stage, slice(0, 60))
    filter_ = Equals("lang", "it")
    rows = await stage.shard.get(GetRequest(collection="words", filter=filter_))
    passing = table.passing(filter_)
    assert sorted(rows.ids.tolist()) == sorted(passing.ids.tolist())
    place = {id_: row for row, id_ in enumerate(table.corpus.ids.tolist())}
    assert rows.vectors is not None
    assert rows.metadata is not None
    for id_, vector, metadata in zip(rows.ids.tolist(), rows.vectors, rows.metadata, strict=True):
        assert vector.tobytes() == table.corpus.vectors[place[id_]].tobytes()
        assert metadata == metadata_from_mapping(table.mappings[place[id_]])
    none = await stage.shard.get(GetRequest(collection="words", filter=Equals("lang", "xx")))
    assert len(none.ids) == 0


async def test_a_count_of_ids_and_a_filter_is_of_both(stage: Stage) -> None:
    await stage.create(filtered_config())
    table = some_table(60)
    await table.put(stage, slice(0, 60))
    filter_ = Equals("public", True)
    ids = table.corpus.ids[:20]
    request = CountRequest(collection="words", ids=ids, filter=filter_)
    expected = np.isin(table.passing(filter_).ids, ids).sum()
    assert await stage.shard.count(request) == expected


async def test_a_listing_goes_on_through_writes_and_trainings(stage: Stage) -> None:
    await stage.create(filtered_config())
    table = some_table(300)
    await table.put(stage, slice(0, 300))
    filter_ = Equals("public", True)
    passing = table.passing(filter_)
    pages = [await stage.list_page(10, filter_=filter_, include=Include(metadata=True))]
    await stage.train()
    gone = passing.ids[-5:]
    await stage.delete(gone)
    while pages[-1].cursor is not None:
        pages.append(await stage.list_page(10, after=pages[-1], filter_=filter_))
    listed = [id_ for page in pages for id_ in page.ids.tolist()]
    assert sorted(listed) == sorted(set(passing.ids.tolist()) - set(gone.tolist()))
    assert len(pages[0].ids) == 10


async def test_a_score_threshold_holds_beside_a_filter(stage: Stage) -> None:
    await stage.create(filtered_config())
    table = some_table(200)
    await table.put(stage, slice(0, 200))
    filter_, queries = Equals("public", True), some_vectors(1, seed=1)
    best = await stage.search(queries, 10, filter_=filter_)
    threshold = float(best.hits.scores[4])
    found = await stage.search(queries, 10, filter_=filter_, score_threshold=threshold)
    assert ids_found(found) == [ids_found(best)[0][:5]]


@pytest.mark.parametrize(
    ("filter_", "path"),
    [
        (Equals("undeclared", 1.0), "filter.equals.field"),
        (
            Exists("lang") & (Exists("year") | Exists("x")),
            "filter.and.filters[1].or.filters[1].exists.field",
        ),
        (~Equals("year", "1990"), "filter.not.equals.value"),
        (Equals("year", 1.5), "filter.equals.value"),
        (Equals("year", True), "filter.equals.value"),
        (Equals("year", 2.0**53 + 2), "filter.equals.value"),
        (In("year", (1.0, -(2.0**54))), "filter.in.values[1]"),
        (Equals("public", 1.0), "filter.equals.value"),
        (Equals("lang", 1.0), "filter.equals.value"),
        (In("rating", (1.0, "a")), "filter.in.values[1]"),
        (Range("lang", gte=1.0), "filter.range.field"),
        (Range("public", lt=1.0), "filter.range.field"),
    ],
)
async def test_a_filter_that_the_collection_cannot_take_is_refused_by_everything(
    stage: Stage, filter_: Filter, path: str
) -> None:
    await stage.create(filtered_config())
    table = some_table(30)
    await table.put(stage, slice(0, 30))
    for call in (
        stage.search(some_vectors(1), filter_=filter_),
        stage.delete_where(filter_),
        stage.shard.get(GetRequest(collection="words", filter=filter_)),
        count(stage, filter_),
        stage.list_page(5, filter_=filter_),
    ):
        with pytest.raises(InvalidParameter) as caught:
            await call
        assert caught.value.field == path
    assert (await stage.describe()).ledger.live == 30


@pytest.mark.parametrize(
    ("mapping", "field"),
    [
        ({"lang": 1}, "lang"),
        ({"lang": ["en", None]}, "lang"),
        ({"lang": {"en": True}}, "lang"),
        ({"year": 1.5}, "year"),
        ({"year": "1990"}, "year"),
        ({"year": 2.0**63}, "year"),
        ({"year": True}, "year"),
        ({"rating": "good"}, "rating"),
        ({"rating": [1.0]}, "rating"),
        ({"public": 1}, "public"),
    ],
)
async def test_a_row_whose_field_is_of_another_type_refuses_its_batch(
    stage: Stage, mapping: dict[str, Any], field: str
) -> None:
    await stage.create(filtered_config())
    corpus = corpus_of(20)
    mappings = [{"lang": "en", "free": [1, "a"]}] * 20
    mappings[13] = mapping
    with pytest.raises(InvalidParameter) as caught:
        await stage.upsert(corpus.ids, corpus.vectors, metadata=packed(mappings))
    assert (caught.value.field, caught.value.row) == (f"metadata.{field}", 13)
    assert (await stage.describe()).ledger.accepted == 0


async def test_an_explanation_says_whether_the_filter_hides_the_row_and_else_ignores_it(
    stage: Stage,
) -> None:
    await stage.create(filtered_config())
    table, query = some_table(60), some_vectors(1, seed=1)
    await table.put(stage, slice(0, 60))
    for filter_ in FILTERS:
        passing = set(table.passing(filter_).ids.tolist())
        for row in range(0, 60, 9):
            id_ = table.corpus.ids[row : row + 1]
            told = await stage.explain(query, id_, filter_=filter_)
            assert told.hidden_by_filter == (id_[0] not in passing)
            assert replace(told, hidden_by_filter=False) == await stage.explain(query, id_)
    absent = int64s(10**12)
    assert not (await stage.explain(query, absent, filter_=FILTERS[0])).hidden_by_filter
    with pytest.raises(InvalidParameter) as caught:
        await stage.explain(query, absent, filter_=Exists("undeclared"))
    assert caught.value.field == "filter.exists.field"
