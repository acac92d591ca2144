"""What is refused, by which error, naming what; and that nothing of it was written."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.shard.samples import config_of, corpus_of, int64s, some_vectors, strings
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    DimensionMismatch,
    InvalidId,
    InvalidParameter,
    InvalidVector,
    ShardUnavailable,
)
from vectorshard.shard.index.exact import SQUARED_NORM_MAX
from vectorshard.shard.types import (
    Call,
    CountRequest,
    IdType,
    ListRequest,
    Metric,
    SearchRequest,
    Token,
    TrainRequest,
)

ALL_METRICS = pytest.mark.parametrize("metric", list(Metric))
BAD_NUMBERS = (math.nan, math.inf, -math.inf)


async def assert_untouched(stage: Stage, rows: int = 0) -> None:
    """Assert that nothing was written."""
    assert (await stage.describe()).ledger.accepted == rows


@ALL_METRICS
async def test_a_row_that_is_not_finite_is_refused_by_its_index(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(config_of(metric=metric))
    corpus = corpus_of(20)
    for number in BAD_NUMBERS:
        corpus.vectors[13, 5] = corpus.vectors[17, 0] = number
        with pytest.raises(InvalidVector) as caught:
            await stage.upsert(corpus.ids, corpus.vectors)
        assert (caught.value.field, caught.value.row) == ("vectors", 13)
    await assert_untouched(stage)


async def test_a_query_that_is_not_finite_is_refused_by_its_index(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(10))
    queries = some_vectors(4)
    for number in BAD_NUMBERS:
        queries[2, 7] = number
        for exact in (False, True):
            with pytest.raises(InvalidVector) as caught:
                await stage.search(queries, exact=exact)
            assert (caught.value.field, caught.value.row) == ("queries", 2)


@ALL_METRICS
async def test_magnitudes_whose_scores_would_overflow_are_refused(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(config_of(metric=metric))
    corpus = corpus_of(6)
    corpus.vectors[4] = 0
    corpus.vectors[4, 1] = math.sqrt(SQUARED_NORM_MAX) * 1.001
    with pytest.raises(InvalidVector, match="overflow") as caught:
        await stage.upsert(corpus.ids, corpus.vectors)
    assert (caught.value.field, caught.value.row) == ("vectors", 4)
    await assert_untouched(stage)
    with pytest.raises(InvalidVector, match="overflow"):
        await stage.search(corpus.vectors)


async def test_a_vector_without_direction_is_refused_under_cosine_only(stage: Stage) -> None:
    corpus = corpus_of(6)
    corpus.vectors[3] = 0
    await stage.create(config_of("angles", metric=Metric.COSINE))
    with pytest.raises(InvalidVector, match="a zero vector has no direction") as caught:
        await stage.upsert(corpus.ids, corpus.vectors)
    assert (caught.value.field, caught.value.row) == ("vectors", 3)
    await assert_untouched(stage)
    with pytest.raises(InvalidVector, match="a zero vector has no direction") as caught:
        await stage.search(corpus.vectors)
    assert (caught.value.field, caught.value.row) == ("queries", 3)
    for metric in (Metric.L2, Metric.INNER_PRODUCT):
        await stage.create(config_of(metric.value, metric=metric))
        await stage.put(corpus)
        await stage.search(corpus.vectors)


async def test_vectors_of_another_dim_are_refused(stage: Stage) -> None:
    await stage.create(config_of(dim=8))
    for dim in (1, 7, 9, 16):
        with pytest.raises(DimensionMismatch) as caught:
            await stage.upsert(np.arange(5), some_vectors(5, dim=dim))
        assert caught.value.field == "vectors"
        with pytest.raises(DimensionMismatch) as caught:
            await stage.search(some_vectors(5, dim=dim))
        assert caught.value.field == "queries"
    await assert_untouched(stage)


@pytest.mark.parametrize("id_type", list(IdType))
async def test_ids_of_the_other_kind_are_refused_by_everything(
    stage: Stage, id_type: IdType
) -> None:
    await stage.create(config_of(id_type=id_type))
    ids = strings("a", "b") if id_type is IdType.INT64 else int64s(1, 2)
    for call in (
        stage.upsert(ids, some_vectors(2)),
        stage.delete(ids),
        stage.get(ids),
        stage.shard.count(CountRequest(collection="words", ids=ids)),
    ):
        with pytest.raises(InvalidId) as caught:
            await call
        assert caught.value.field == "ids"
    await assert_untouched(stage)


async def test_a_batch_with_one_bad_row_writes_none_of_its_rows_on_any_shard(
    stage: Stage,
) -> None:
    await stage.create(config_of())
    corpus = corpus_of(200)
    bad = corpus.vectors.copy()
    bad[199, 0] = math.nan
    with pytest.raises(InvalidVector):
        await stage.upsert(corpus.ids, bad)
    await assert_untouched(stage)
    await stage.put(corpus)


async def test_a_collection_that_nobody_created_is_not_found(stage: Stage) -> None:
    with pytest.raises(CollectionNotFound, match="absent"):
        await stage.shard.describe("absent")
    with pytest.raises(CollectionNotFound, match="absent"):
        await stage.shard.train(TrainRequest(collection="absent"))
    with pytest.raises(CollectionNotFound, match="absent"):
        await stage.shard.search(SearchRequest(collection="absent", queries=some_vectors(1), k=1))


async def test_a_cursor_of_another_collection_is_refused(stage: Stage) -> None:
    await stage.create(config_of("first"))
    await stage.put(corpus_of(30))
    cursor = (await stage.list_page(5)).cursor
    assert cursor is not None
    await stage.create(config_of("second"))
    await stage.put(corpus_of(30))
    with pytest.raises(InvalidParameter) as caught:
        await stage.shard.list_rows(ListRequest(collection="second", cursor=cursor))
    assert caught.value.field == "cursor"
    await stage.shard.drop_collection("first")
    await stage.create(config_of("first"))
    with pytest.raises(InvalidParameter):
        await stage.shard.list_rows(ListRequest(collection="first", cursor=cursor))


async def test_a_token_of_another_collection_or_of_the_future_is_refused(stage: Stage) -> None:
    await stage.create(config_of("other"))
    foreign = (await stage.put(corpus_of(30))).token
    await stage.create(config_of())
    token = (await stage.put(corpus_of(30))).token
    early = Token(
        incarnation=token.incarnation,
        sequences={shard: number + 1 for shard, number in token.sequences.items()},
    )
    request = SearchRequest(collection="words", queries=some_vectors(1), k=1, token=token)
    await stage.shard.search(request)
    for refused in (foreign, early):
        with pytest.raises(InvalidParameter) as caught:
            await stage.shard.search(replace(request, token=refused))
        assert caught.value.field == "token"


async def test_a_search_after_its_deadline_is_not_answered(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(30))
    request = SearchRequest(collection="words", queries=some_vectors(1), k=1)
    with pytest.raises((DeadlineExceeded, ShardUnavailable), match="deadline"):
        await stage.shard.search(request, call=Call(deadline=time.monotonic() - 1))
    await stage.shard.search(request, call=Call(deadline=time.monotonic() + 60))
