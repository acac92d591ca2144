"""Explanations hold: the rank is that of an exact search, and searches find what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.conformance.reference import EVERY_LIST, best_of, ids_found
from tests.shard.samples import Corpus, config_of, corpus_of, int64s, some_vectors, strings
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.descriptions import Explanation
from vectorshard.shard.errors import CollectionNotFound, DimensionMismatch, InvalidId, InvalidVector
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import IdArray, IdType, IndexKind, Metric, VectorArray


def owner_of(stage: Stage, id_: IdArray) -> int:
    """Return the leaf shard that owns an id (1,)."""
    (slot,) = slots_of(id_).tolist()
    [owner] = [
        shard
        for shard in range(stage.shards_total)
        for first, last in slots_of_shard(shard, stage.shards_total)
        if first <= slot <= last
    ]
    return owner


async def finds(stage: Stage, query: VectorArray, id_: IdArray, k: int, nprobe: int) -> bool:
    result = await stage.search(query, k, nprobe=nprobe)
    return id_[0] in ids_found(result)[0]


@pytest.mark.parametrize("id_type", list(IdType))
@pytest.mark.parametrize("metric", list(Metric))
async def test_the_rank_is_that_of_brute_force_ties_by_id(
    stage: Stage, metric: Metric, id_type: IdType
) -> None:
    await stage.create(config_of(metric=metric, id_type=id_type))
    corpus, query = corpus_of(90, id_type=id_type), some_vectors(1, seed=1)
    corpus.vectors[30:60] = corpus.vectors[:30]
    await stage.put(corpus)
    await stage.delete(corpus.ids[80:])
    live = corpus.take(slice(0, 80))
    [ranked] = best_of(metric, query, live, 80)
    for place in (0, 1, 2, 20, 41, 79):
        id_, score = ranked[place]
        told = await stage.explain(query, _one(id_))
        assert (told.exists, told.buffered, told.deleted) == (True, True, False)
        assert told.exact_rank == place + 1
        assert told.score == pytest.approx(score, rel=1e-6, abs=1e-6)
        assert told.shard == owner_of(stage, _one(id_))
        assert (told.nprobe_needed, told.candidates_needed) == (0, 0)


def _one(id_: int | str) -> IdArray:
    return strings(id_) if isinstance(id_, str) else int64s(id_)


@pytest.mark.parametrize("metric", list(Metric))
async def test_less_than_nprobe_needed_misses_and_as_much_finds_it(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(config_of(metric=metric))
    corpus, query = corpus_of(800), some_vectors(1, seed=1)
    await stage.put(corpus)
    await stage.train()
    missed = 0
    for id_, _ in best_of(metric, query, corpus, 800)[0][::40]:
        told = await stage.explain(query, _one(id_))
        assert (told.exists, told.buffered) == (True, False)
        assert 1 <= told.nprobe_needed == told.centroid_rank
        k = told.exact_rank
        assert await finds(stage, query, _one(id_), k, told.nprobe_needed)
        if told.nprobe_needed > 1:
            missed += 1
            assert not await finds(stage, query, _one(id_), k, told.nprobe_needed - 1)
    assert missed > 3


@pytest.mark.parametrize("kind", [IndexKind.IVF_SQ8, IndexKind.IVF_PQ])
async def test_of_the_ten_best_those_are_found_that_compressed_codes_are_said_to_find(
    stage: Stage, kind: IndexKind
) -> None:
    await stage.create(config_of(kind=kind))
    corpus, queries = corpus_of(800), some_vectors(3, seed=1)
    await stage.put(corpus)
    await stage.train()
    for query in (queries[:1], queries[1:2], queries[2:]):
        for id_, _ in best_of(Metric.L2, query, corpus, 10)[0]:
            told = await stage.explain(query, _one(id_))
            assert told.candidates >= 10
            assert bool(told.nprobe_needed) == (told.candidates_needed <= told.candidates)
            found = await finds(stage, query, _one(id_), 10, told.centroid_rank)
            assert found == bool(told.nprobe_needed)
            if told.centroid_rank > 1:
                assert not await finds(stage, query, _one(id_), 10, told.centroid_rank - 1)


async def test_what_is_written_after_a_training_is_buffered_and_found_by_any_search(
    stage: Stage,
) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(300))
    await stage.train()
    newest = Corpus(int64s(10**9), some_vectors(1, seed=8))
    await stage.put(newest)
    query = -newest.vectors
    told = await stage.explain(query, newest.ids)
    assert (told.exists, told.buffered, told.nprobe_needed) == (True, True, 0)
    assert await finds(stage, query, newest.ids, told.exact_rank, 1)


async def test_a_replaced_row_is_explained_by_its_newest_vector(stage: Stage) -> None:
    await stage.create(config_of())
    corpus, query = corpus_of(300), some_vectors(1, seed=1)
    await stage.put(corpus)
    await stage.train()
    before = await stage.explain(query, corpus.ids[:1])
    await stage.put(Corpus(corpus.ids[:1], query))
    after = await stage.explain(query, corpus.ids[:1])
    assert not before.buffered
    assert (after.buffered, after.exact_rank, after.score) == (True, 1, 0.0)


async def test_a_deleted_id_and_one_that_never_was_are_no_errors(stage: Stage) -> None:
    await stage.create(config_of())
    corpus, query = corpus_of(60), some_vectors(1, seed=1)
    await stage.put(corpus)
    await stage.delete(corpus.ids[:1])
    gone, absent = corpus.ids[:1], int64s(10**12)
    assert await stage.explain(query, gone) == Explanation(
        shard=owner_of(stage, gone), deleted=True
    )
    assert await stage.explain(query, absent) == Explanation(shard=owner_of(stage, absent))
    await stage.put(corpus.take(slice(0, 1)))
    assert (await stage.explain(query, gone)).exists
    await stage.delete(gone)
    await stage.reopen()
    assert await stage.explain(query, gone) == Explanation(shard=owner_of(stage, gone))


async def test_every_list_is_enough_for_whatever_ivf_flat_holds(stage: Stage) -> None:
    await stage.create(config_of())
    corpus, query = corpus_of(400), some_vectors(1, seed=1)
    await stage.put(corpus)
    await stage.train()
    await stage.reopen()
    told = await stage.explain(query, corpus.ids[7:8])
    assert await finds(stage, query, corpus.ids[7:8], told.exact_rank, EVERY_LIST)


async def test_what_cannot_be_explained_is_refused_by_its_field(stage: Stage) -> None:
    await stage.create(config_of(metric=Metric.COSINE))
    await stage.put(corpus_of(10))
    good = some_vectors(1)
    for query, kind in (
        (some_vectors(1, dim=7), DimensionMismatch),
        (good * np.float32(math.nan), InvalidVector),
        (good * np.float32(0), InvalidVector),
    ):
        with pytest.raises(kind) as caught:
            await stage.explain(query, int64s(1))
        assert caught.value.field == "query"
    with pytest.raises(InvalidId) as refused:
        await stage.explain(good, strings("a"))
    assert refused.value.field == "id"


async def test_a_collection_that_is_not_there_explains_nothing(stage: Stage) -> None:
    with pytest.raises(CollectionNotFound):
        await stage.explain(some_vectors(1), int64s(1))
