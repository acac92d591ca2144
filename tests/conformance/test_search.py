"""Searches: right to the last bit where they are exact, and honest about what they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.conformance.conftest import Until
from tests.conformance.reference import (
    EVERY_LIST,
    assert_exact,
    assert_scores_are_exact,
    best_of,
    hits_of,
    ids_found,
    metadata_of,
    recall_of,
    scores_of,
)
from tests.shard.samples import Corpus, config_of, corpus_of, some_vectors
from vectorshard.shard.index.exact import SQUARED_NORM_MAX
from vectorshard.shard.types import (
    IdType,
    Include,
    IndexKind,
    Metric,
    SearchResult,
    ShardState,
    TrainRequest,
)

ALL_METRICS = pytest.mark.parametrize("metric", list(Metric))


@ALL_METRICS
async def test_an_exact_search_is_brute_force_before_during_and_after_training(
    stage: Stage, until: Until, metric: Metric
) -> None:
    await stage.create(config_of(metric=metric))
    corpus, queries = corpus_of(400), some_vectors(16, seed=1)
    await stage.put(corpus.take(slice(0, 300)))
    await stage.put(corpus.take(slice(300, 400)))

    async def is_brute_force(state: ShardState) -> None:
        assert {shard.state for shard in (await stage.describe()).shards} == {state}
        for k in (1, 10, 37):
            result = await stage.search(queries, k, exact=True)
            assert_exact(result, metric, queries, corpus, k)

    await is_brute_force(ShardState.BUFFERING)
    stage.gate.start.clear()
    stage.gate.end.clear()
    await stage.shard.train(TrainRequest(collection="words"))
    await until(lambda seen: all(shard.training for shard in seen.shards))
    await is_brute_force(ShardState.TRAINING)
    stage.gate.start.set()
    await is_brute_force(ShardState.TRAINING)
    stage.gate.end.set()
    await until(lambda seen: not any(shard.training for shard in seen.shards))
    await is_brute_force(ShardState.TRAINED)
    await stage.reopen()
    await is_brute_force(ShardState.TRAINED)


@ALL_METRICS
async def test_any_search_is_brute_force_before_training(stage: Stage, metric: Metric) -> None:
    await stage.create(config_of(metric=metric))
    corpus, queries = corpus_of(200), some_vectors(5, seed=1)
    await stage.put(corpus)
    for nprobe, target_recall in ((0, 0.0), (1, 0.0), (0, 0.8)):
        result = await stage.search(queries, nprobe=nprobe, target_recall=target_recall)
        assert_exact(result, metric, queries, corpus, 10)


@ALL_METRICS
async def test_probing_every_list_of_ivf_flat_is_brute_force(stage: Stage, metric: Metric) -> None:
    await stage.create(config_of(metric=metric))
    corpus, queries = corpus_of(600), some_vectors(16, seed=1)
    await stage.put(corpus.take(slice(0, 500)))
    await stage.train()
    await stage.put(corpus.take(slice(500, 540)))
    for k in (1, 10, 100):
        result = await stage.search(queries, k, nprobe=EVERY_LIST)
        assert_exact(result, metric, queries, corpus.take(slice(0, 540)), k)
    await stage.put(corpus.take(slice(540, 600)))
    await stage.delete(corpus.ids[::3])
    now = corpus.take(np.flatnonzero(np.arange(600) % 3))
    assert_exact(await stage.search(queries, nprobe=EVERY_LIST), metric, queries, now, 10)


@pytest.mark.parametrize("id_type", list(IdType))
@ALL_METRICS
async def test_equal_scores_rank_by_id_and_k_cuts_them_there(
    stage: Stage, metric: Metric, id_type: IdType
) -> None:
    await stage.create(config_of(metric=metric, id_type=id_type))
    distinct = some_vectors(12, seed=2)
    chosen = np.random.default_rng(3).integers(0, 12, 400)
    corpus = Corpus(corpus_of(400, id_type=id_type).ids, distinct[chosen])
    await stage.put(corpus)
    queries = distinct[:4]

    async def rank_by_id() -> None:
        for k in (1, 10, 45):
            for result in (
                await stage.search(queries, k, exact=True),
                await stage.search(queries, k, nprobe=EVERY_LIST),
            ):
                assert_exact(result, metric, queries, corpus, k)

    await rank_by_id()
    await stage.train()
    await rank_by_id()


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
async def test_rows_on_a_grid_rank_by_score_and_then_by_id(stage: Stage, metric: Metric) -> None:
    await stage.create(config_of(dim=4, metric=metric))
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 4), axis=-1).reshape(-1, 4).astype(np.float32)
    corpus = Corpus(corpus_of(256).ids, grid)
    await stage.put(corpus)
    await stage.train()
    queries = grid[[0, 85, 170, 255]]
    for k in (1, 7, 50):
        for result in (
            await stage.search(queries, k, exact=True),
            await stage.search(queries, k, nprobe=EVERY_LIST),
        ):
            assert_exact(result, metric, queries, corpus, k)


@ALL_METRICS
@pytest.mark.parametrize("kind", [IndexKind.IVF_SQ8, IndexKind.IVF_PQ])
async def test_compressed_codes_find_most_neighbours_and_score_them_exactly(
    stage: Stage, metric: Metric, kind: IndexKind
) -> None:
    await stage.create(config_of(dim=16, metric=metric, kind=kind))
    corpus, queries = corpus_of(1_000, dim=16), some_vectors(32, dim=16, seed=1)
    await stage.put(corpus)
    await stage.train()
    result = await stage.search(queries, nprobe=EVERY_LIST)
    assert_scores_are_exact(result, metric, queries, corpus)
    assert recall_of(result, best_of(metric, queries, corpus, 10)) >= 0.95
    assert_exact(await stage.search(queries, exact=True), metric, queries, corpus, 10)


@pytest.mark.parametrize("kind", list(IndexKind))
async def test_the_target_recall_is_met_by_queries_like_the_rows(
    stage: Stage, kind: IndexKind
) -> None:
    await stage.create(config_of(kind=kind))
    everything = corpus_of(1_200)
    corpus, queries = everything.take(slice(0, 1_000)), everything.vectors[1_000:]
    await stage.put(corpus)
    await stage.train()
    expected = best_of(Metric.L2, queries, corpus, 10)
    settings = []
    for target_recall in (0.8, 0.95, 0.99):
        result = await stage.search(queries, target_recall=target_recall)
        assert recall_of(result, expected) >= target_recall - 0.1  # of 32 rows a shard
        settings.append([(shard.nprobe, shard.candidates) for shard in result.receipt.shards])
    default = await stage.search(queries)
    assert [(shard.nprobe, shard.candidates) for shard in default.receipt.shards] == settings[1]


async def test_a_recall_that_no_setting_is_sure_of_scores_every_row(stage: Stage) -> None:
    await stage.create(config_of(kind=IndexKind.IVF_PQ))
    corpus, queries = corpus_of(1_000), some_vectors(8, seed=1)
    await stage.put(corpus)
    await stage.train()
    result = await stage.search(queries, target_recall=1.0)
    assert_exact(result, Metric.L2, queries, corpus, 10)
    for shard in result.receipt.shards:
        assert shard.rows_exact == shard.rows_visible
        assert (shard.nlist, shard.nprobe, shard.candidates, shard.generation) == (0, 0, 0, 0)


async def test_k_beyond_the_collection_returns_every_row_and_no_padding(stage: Stage) -> None:
    await stage.create(config_of())
    corpus, queries = corpus_of(90), some_vectors(3, seed=1)
    await stage.put(corpus)
    for _ in range(2):
        for k in (90, 91, 1_000):
            result = await stage.search(queries, k, nprobe=EVERY_LIST)
            assert result.hits.counts.tolist() == [90, 90, 90]
            assert_exact(result, Metric.L2, queries, corpus, k)
        await stage.train()


async def test_an_empty_collection_has_no_hits_but_a_receipt(stage: Stage) -> None:
    await stage.create(config_of(id_type=IdType.STRING))
    include = Include(vectors=True, metadata=True)
    result = await stage.search(some_vectors(3), include=include)
    assert result.hits.counts.tolist() == [0, 0, 0]
    assert len(result.hits.ids) == len(result.hits.scores) == 0
    assert result.vectors is not None
    assert result.vectors.shape == (0, 8)
    assert list(result.metadata or []) == []
    assert result.receipt.coverage == 1.0


async def test_an_empty_batch_is_answered_emptily(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(200))
    for _ in range(2):
        for exact in (False, True):
            result = await stage.search(some_vectors(0), exact=exact)
            assert result.hits.counts.shape == (0,)
            assert len(result.hits.ids) == len(result.hits.scores) == 0
            assert result.receipt.shards_answered == stage.shards_total
        await stage.train()


async def test_a_row_is_its_own_nearest_hit_at_distance_zero(stage: Stage) -> None:
    await stage.create(config_of(id_type=IdType.STRING))
    corpus = corpus_of(300, id_type=IdType.STRING)
    await stage.put(corpus)
    await stage.train()
    for row in (0, 150, 299):
        result = await stage.search(corpus.vectors[row : row + 1], 1)
        assert ids_found(result) == [[corpus.ids[row]]]
        assert result.hits.scores.tolist() == [0.0]


def same_bits(batch: SearchResult, singles: list[SearchResult]) -> bool:
    """Whether a batch answers bit by bit what its queries were answered one by one."""
    alone = [hits_of(single)[0] for single in singles]
    return len(alone) == len(batch.hits.counts) and all(
        ids.tolist() == own_ids.tolist() and scores.tobytes() == own_scores.tobytes()
        for (ids, scores), (own_ids, own_scores) in zip(hits_of(batch), alone, strict=True)
    )


@ALL_METRICS
async def test_a_batch_answers_bit_by_bit_as_its_queries_do_one_by_one(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(config_of(dim=24, metric=metric))
    corpus, queries = corpus_of(500, dim=24), some_vectors(40, dim=24, seed=1)
    await stage.put(corpus.take(slice(0, 470)))
    await stage.train()
    await stage.put(corpus.take(slice(470, 500)))
    for exact, nprobe in ((True, 0), (False, 0), (False, 2)):
        batch = await stage.search(queries, exact=exact, nprobe=nprobe)
        singles = [
            await stage.search(queries[query : query + 1], exact=exact, nprobe=nprobe)
            for query in range(len(queries))
        ]
        assert same_bits(batch, singles)


@ALL_METRICS
async def test_a_score_threshold_keeps_what_is_as_good_and_nothing_else(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(config_of(metric=metric))
    corpus, queries = corpus_of(300), some_vectors(6, seed=1)
    await stage.put(corpus)
    await stage.train()
    everything = await stage.search(queries, 300, exact=True)
    threshold = float(np.median(everything.hits.scores))
    for nprobe in (0, EVERY_LIST):
        found = await stage.search(
            queries, 300, exact=nprobe == 0, nprobe=nprobe, score_threshold=threshold
        )
        for (ids, scores), (all_ids, all_scores) in zip(
            hits_of(found), hits_of(everything), strict=True
        ):
            good = all_scores <= threshold if metric is Metric.L2 else all_scores >= threshold
            assert ids.tolist() == all_ids[good].tolist()
            np.testing.assert_array_equal(scores, all_scores[good])
    beyond = -1.0 if metric is Metric.L2 else 1e9
    nothing = await stage.search(queries, exact=True, score_threshold=beyond)
    assert nothing.hits.counts.tolist() == [0] * 6


async def test_hits_bring_their_vectors_and_metadata_when_asked(stage: Stage) -> None:
    await stage.create(config_of())
    corpus, queries = corpus_of(300), some_vectors(6, seed=1)
    metadata = [metadata_of(row % 50) for row in range(300)]
    await stage.upsert(corpus.ids, corpus.vectors, metadata=metadata)
    await stage.train()
    row_of = {id_: row for row, id_ in enumerate(corpus.ids.tolist())}
    for exact in (False, True):
        include = Include(vectors=True, metadata=True)
        result = await stage.search(queries, exact=exact, include=include)
        rows = [row_of[id_] for id_ in result.hits.ids.tolist()]
        assert result.vectors is not None
        np.testing.assert_array_equal(result.vectors, corpus.vectors[rows])
        assert list(result.metadata or []) == [metadata[row] for row in rows]
    bare = await stage.search(queries)
    assert (bare.vectors, bare.metadata) == (None, None)


async def test_a_receipt_says_what_each_leaf_shard_searched(stage: Stage) -> None:
    await stage.create(config_of())
    corpus, queries = corpus_of(500), some_vectors(2, seed=1)
    await stage.put(corpus)
    await stage.delete(corpus.ids[:50])
    receipt = (await stage.search(queries)).receipt
    assert [shard.shard for shard in receipt.shards] == list(range(stage.shards_total))
    assert (receipt.shards_total, receipt.shards_answered) == (stage.shards_total,) * 2
    assert receipt.coverage == 1.0
    assert sum(shard.rows_visible for shard in receipt.shards) == 450
    for shard in receipt.shards:
        assert shard.missing_reason == ""
        assert shard.rows_exact == shard.rows_visible
        assert (shard.nlist, shard.nprobe, shard.generation) == (0, 0, 0)
    await stage.train()
    await stage.put(corpus.take(slice(0, 20)))
    described = (await stage.describe()).shards
    receipt = (await stage.search(queries)).receipt
    assert sum(shard.rows_visible for shard in receipt.shards) == 470
    assert sum(shard.rows_exact for shard in receipt.shards) == 20
    for shard, description in zip(receipt.shards, described, strict=True):
        assert (shard.nlist, shard.nprobe) == (description.nlist, description.nprobe)
        assert shard.generation == description.generation == 1
    exact = (await stage.search(queries, exact=True)).receipt
    assert sum(shard.rows_exact for shard in exact.shards) == 470


async def test_an_explicit_nprobe_is_used_up_to_the_number_of_lists(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(600))
    await stage.train()
    nlists = [shard.nlist for shard in (await stage.describe()).shards]
    assert min(nlists) >= 2
    for nprobe in (1, 2, EVERY_LIST):
        receipt = (await stage.search(some_vectors(1), nprobe=nprobe)).receipt
        assert [shard.nprobe for shard in receipt.shards] == [min(nprobe, n) for n in nlists]


@ALL_METRICS
async def test_float16_queries_are_the_numbers_that_they_are(stage: Stage, metric: Metric) -> None:
    await stage.create(config_of(metric=metric))
    corpus = corpus_of(200)
    await stage.put(corpus)
    queries = some_vectors(5, seed=1).astype(np.float16)
    assert_exact(await stage.search(queries), metric, queries, corpus, 10)


async def test_queries_may_be_read_only_and_are_left_as_they_are(stage: Stage) -> None:
    await stage.create(config_of(metric=Metric.COSINE))
    corpus = corpus_of(200)
    corpus.vectors.flags.writeable = False
    corpus.ids.flags.writeable = False
    await stage.put(corpus)
    await stage.train()
    queries = some_vectors(5, seed=1)
    before = queries.copy()
    queries.flags.writeable = False
    for exact in (False, True):
        await stage.search(queries, exact=exact)
    np.testing.assert_array_equal(queries, before)


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
async def test_the_largest_magnitudes_allowed_have_finite_exact_scores(
    stage: Stage, metric: Metric
) -> None:
    await stage.create(config_of(metric=metric))
    largest = math.sqrt(SQUARED_NORM_MAX) * (1 - 1e-6)
    directions = some_vectors(200)
    norms = np.linalg.norm(directions, axis=1)
    corpus = Corpus(corpus_of(200).ids, (directions / norms[:, None] * largest).astype(np.float32))
    await stage.put(corpus)
    queries = np.concatenate([corpus.vectors[:3], -corpus.vectors[:3]])
    for train in (False, True):
        if train:
            await stage.train()
        result = await stage.search(queries, 200, exact=True)
        assert np.isfinite(result.hits.scores).all()
        truth = np.sort(scores_of(metric, queries, corpus.vectors), axis=1).ravel()
        found = np.sort(result.hits.scores.reshape(6, 200), axis=1).ravel()
        np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-7 * largest**2)
        assert ids_found(await stage.search(corpus.vectors[:3], 1, nprobe=EVERY_LIST)) == (
            [[id_] for id_ in corpus.ids[:3].tolist()]
        )
