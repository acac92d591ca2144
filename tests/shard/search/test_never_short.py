"""Without an nprobe, every query has as many hits as there are, and the recall that was asked for.

The data are small copies of what made answers short: holes, few rows left, codes that fast scan
drops, lists that are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.shard.samples import SMALL_ENGINE, Corpus, config_of, delete, open_collection, write
from vectorshard.shard.config import EngineConfig, TrainingConfig
from vectorshard.shard.descriptions import ExplainRequest
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.errors import DeadlineExceeded
from vectorshard.shard.filters import Range
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    Effort,
    ExactReason,
    FieldType,
    FilterField,
    Float32Array,
    IndexKind,
    Int64Array,
    Metric,
    SearchRequest,
    SearchResult,
    UpsertRequest,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

EVERY_METRIC = pytest.mark.parametrize("metric", list(Metric))
EVERY_KIND = pytest.mark.parametrize("kind", list(IndexKind))
DEFAULTS = EngineConfig(training=TrainingConfig(calibration_queries=64))
BY_INDEX = replace(SMALL_ENGINE, training=DEFAULTS.training)


def stored(metric: Metric, vectors: Float32Array) -> Float32Array:
    """Return vectors in the form that a collection of this metric stores."""
    vectors = np.asarray(vectors, np.float32)
    if metric is not Metric.COSINE:
        return vectors
    unit: Float32Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def trained(
    path: Path,
    vectors: Float32Array,
    metric: Metric,
    *,
    kind: IndexKind = IndexKind.IVF_PQ,
    engine: EngineConfig = BY_INDEX,
) -> Collection:
    """Return a collection of these rows, with ids from 0, in an index."""
    config = config_of(dim=vectors.shape[1], metric=metric, kind=kind)
    collection = open_collection(path, config, engine=engine)
    write(collection, Corpus(np.arange(len(vectors)), stored(metric, vectors)))
    build_index(collection, lambda: 0.0)
    return collection


def asked(
    collection: Collection, queries: Float32Array, k: int = 10, effort: Effort | None = None
) -> SearchResult:
    metric = collection.entry.config.metric
    return collection.reads.search(
        SearchRequest(
            collection=collection.entry.config.name,
            queries=stored(metric, queries),
            k=k,
            effort=effort or Effort(),
        )
    )


def recall_of(collection: Collection, queries: Float32Array, k: int = 10) -> float:
    """Return the recall of a search without effort, which must be as long as an exact one."""
    found, best = asked(collection, queries, k), asked(collection, queries, k, Effort(exact=True))
    np.testing.assert_array_equal(found.hits.counts, best.hits.counts)
    sign = 1 if collection.entry.config.metric is Metric.L2 else -1
    ends = np.cumsum(best.hits.counts)[:-1]
    parts = zip(
        np.split(sign * found.hits.scores, ends),
        np.split(sign * best.hits.scores, ends),
        strict=True,
    )
    return float(np.mean([np.mean(got <= limit[-1]) for got, limit in parts]))


def receipt_of(result: SearchResult) -> tuple[ExactReason | None, int, int]:
    (shard,) = result.receipt.shards
    return shard.exact_reason, shard.queries_exact, shard.queries_widened


def blobs(rows: int, seed: int = 0) -> tuple[Float32Array, Float32Array]:
    """Return rows around two opposite points, half around each, and queries at the first."""
    random = np.random.default_rng(seed)
    centre = np.zeros(8)
    centre[:2] = 6.0
    half = rows // 2
    first = centre + random.standard_normal((half, 8))
    second = -centre + random.standard_normal((half, 8))
    queries = centre + random.standard_normal((200, 8))
    return np.concatenate([first, second]).astype(np.float32), queries.astype(np.float32)


@EVERY_METRIC
@EVERY_KIND
@pytest.mark.parametrize("engine", [BY_INDEX, DEFAULTS])
def test_a_region_that_was_deleted_leaves_full_answers(
    tmp_path: Path, metric: Metric, kind: IndexKind, engine: EngineConfig
) -> None:
    vectors, queries = blobs(3_000)
    collection = trained(tmp_path, vectors, metric, kind=kind, engine=engine)
    delete(collection, np.arange(1_500))
    # The codes of 1,500 rows far away tell little, which is why so few rows are all scored.
    assert recall_of(collection, queries) >= (0.5 if engine is BY_INDEX else 1.0)
    assert recall_of(collection, -queries) >= 0.9  # like the rows that live
    reason, exact, widened = receipt_of(asked(collection, queries))
    assert exact + widened == len(queries)
    assert (reason is None) == (exact == 0)
    collection.close()


def test_a_restart_remembers_what_lists_lost(tmp_path: Path) -> None:
    vectors, region, queries = regions(4_000, 40, 12)
    collection = trained(tmp_path, vectors, Metric.L2)
    collection.maintenance.checkpoint()
    delete(collection, np.flatnonzero(region[:4_000] < 17))
    before = asked(collection, queries)
    collection.close()
    reopened = Collection.open(Disk(), tmp_path, 0, BY_INDEX)
    assert reopened.snapshot.index is not None
    after = asked(reopened, queries)
    np.testing.assert_array_equal(after.hits.ids, before.hits.ids)
    assert receipt_of(after) == receipt_of(before)
    reopened.close()


def regions(rows: int, number: int, dim: int) -> tuple[Float32Array, Int64Array, Float32Array]:
    random = np.random.default_rng(5)
    centres = random.standard_normal((number, dim)) * 3
    region = random.integers(number, size=rows + 600)
    vectors = (centres[region] + random.standard_normal((rows + 600, dim))).astype(np.float32)
    return vectors[:rows], region, vectors[rows:]


@pytest.mark.parametrize("metric", [Metric.L2, Metric.COSINE])
def test_holes_keep_the_recall_of_queries_in_them_and_of_others(
    tmp_path: Path, metric: Metric
) -> None:
    vectors, region, queries = regions(8_000, 40, 12)
    collection = trained(tmp_path, vectors, metric)
    delete(collection, np.flatnonzero(region[:8_000] < 17))
    in_hole = region[8_000:] < 17
    assert recall_of(collection, queries[in_hole]) >= 0.9
    assert recall_of(collection, queries[~in_hole]) >= 0.93


@pytest.mark.parametrize("engine", [BY_INDEX, DEFAULTS])
def test_random_deletes_keep_the_recall_down_to_the_last_rows(
    tmp_path: Path, engine: EngineConfig
) -> None:
    vectors, _, queries = regions(6_000, 60, 24)
    collection = trained(tmp_path, vectors, Metric.COSINE, engine=engine)
    order, left = np.random.default_rng(2).permutation(6_000), 6_000
    for remain in (3_000, 800, 100, 7):
        delete(collection, order[remain:left])
        left = remain
        assert recall_of(collection, queries[:200]) >= 0.93
    counts = asked(collection, queries[:3]).hits.counts
    assert counts.tolist() == [7] * 3


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.INNER_PRODUCT])
def test_rows_whose_codes_score_worst_are_found_by_the_exact_last_step(
    tmp_path: Path, metric: Metric
) -> None:
    random = np.random.default_rng(1)
    words = np.zeros((3_000, 128), np.float32)
    for row in words:
        row[random.choice(128, 2, replace=False)] = 1
    collection = trained(tmp_path, words, metric)
    assert recall_of(collection, words[:20], 100) == 1.0
    every_list = asked(collection, words[:20], 100, Effort(nprobe=65_536))
    assert every_list.hits.counts.min() < 100, "these data would not need an exact step"
    assert receipt_of(every_list) == (None, 0, 0)
    assert receipt_of(asked(collection, words[:20], 100))[0] is not None


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.INNER_PRODUCT])
def test_a_query_that_shares_nothing_with_the_rows_has_full_answers(
    tmp_path: Path, metric: Metric
) -> None:
    rows = np.random.default_rng(2).standard_normal((3_000, 64)).astype(np.float32)
    rows[:, 32:] = 0
    stranger = np.zeros((1, 64), np.float32)
    stranger[:, 32:] = 1  # every row scores 0, and every code the worst
    collection = trained(tmp_path, rows, metric)
    queries = np.concatenate([rows[:7], stranger])
    by_list = asked(collection, queries, effort=Effort(nprobe=65_536))
    assert by_list.hits.counts.tolist() == [10] * 7 + [0], "these data would need no exact step"
    found = asked(collection, queries)
    assert found.hits.counts.tolist() == [10] * 8
    assert receipt_of(found) == (ExactReason.SHORT, 1, 0)
    assert receipt_of(asked(collection, stranger)) == (ExactReason.SHORT, 1, 0)


@EVERY_METRIC
@pytest.mark.parametrize("distinct", [1, 2, 16, 64])
def test_copies_of_few_vectors_are_found_whatever_lists_are_empty(
    tmp_path: Path, metric: Metric, distinct: int
) -> None:
    few = np.random.default_rng(distinct).standard_normal((distinct, 32)).astype(np.float32)
    collection = trained(tmp_path, np.tile(few, (2_048 // distinct, 1)), metric)
    assert recall_of(collection, few) == 1.0


@EVERY_METRIC
@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_in_an_index_are_found_and_explained(
    tmp_path: Path, metric: Metric, rows: int
) -> None:
    vectors = np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)
    collection = trained(tmp_path, vectors, metric)
    assert recall_of(collection, vectors) == 1.0
    for row in range(rows):
        explanation = collection.reads.explain(
            ExplainRequest(
                collection="words", query=stored(metric, vectors[row : row + 1]), id=np.array([row])
            )
        )
        assert explanation.exists
        assert (explanation.exact_reason is None) <= (explanation.nprobe_needed > 0)
        short = explanation.candidates_needed > explanation.candidates
        assert (explanation.nprobe_needed == 0) == short


def test_an_nprobe_that_is_asked_for_wins_even_if_it_finds_nothing(tmp_path: Path) -> None:
    vectors, queries = blobs(3_000)
    collection = trained(tmp_path, vectors, Metric.L2)
    delete(collection, np.arange(1_500))
    found = asked(collection, queries, effort=Effort(nprobe=1))
    assert found.hits.counts.max() == 0
    assert receipt_of(found) == (None, 0, 0)


@pytest.mark.parametrize("share", [2, 10])
def test_filters_are_never_short_and_answer_alone_as_in_a_batch(tmp_path: Path, share: int) -> None:
    random = np.random.default_rng(1)
    words = np.zeros((6_000, 96), np.float32)
    for row in words:
        row[random.choice(96, 2, replace=False)] = 1
    config = config_of(dim=96, metric=Metric.COSINE, kind=IndexKind.IVF_PQ)
    config = replace(config, filter_fields=(FilterField("part", FieldType.INT64),))
    collection = open_collection(tmp_path, config, engine=BY_INDEX)
    collection.writes.apply(
        [
            UpsertRequest(
                collection="words",
                ids=np.arange(6_000),
                vectors=stored(Metric.COSINE, words),
                metadata=[metadata_from_mapping({"part": row % 10}) for row in range(6_000)],
            )
        ]
    )
    build_index(collection, lambda: 0.0)
    delete(collection, np.arange(0, 6_000, 3))
    passing = Range("part", lt=float(share))

    def search(queries: Float32Array, effort: Effort | None = None) -> SearchResult:
        return collection.reads.search(
            SearchRequest(
                collection="words",
                queries=stored(Metric.COSINE, queries),
                k=100,
                filter=passing,
                effort=effort or Effort(),
            )
        )

    together = search(words[:20])
    assert together.hits.counts.tolist() == [100] * 20
    alone = [search(query[None]) for query in words[:20]]
    ids = np.concatenate([each.hits.ids for each in alone])
    np.testing.assert_array_equal(together.hits.ids, ids)
    (receipt,) = together.receipt.shards
    probed = [each.receipt.shards[0].nprobe for each in alone]
    assert receipt.nprobe == max(probed)
    assert receipt.nprobe_mean * (20 - receipt.queries_exact) == pytest.approx(sum(probed), abs=0.2)
    best = search(words[:20], Effort(exact=True))
    assert np.mean(together.hits.scores >= best.hits.scores - 1e-6) >= 0.9


def one_by_one(collection: Collection, queries: Float32Array, k: int) -> Sequence[SearchResult]:
    return [asked(collection, query[None], k) for query in queries]


@pytest.mark.parametrize("rows", [1_500, 4_000, 9_000])
@pytest.mark.parametrize("dead", [0, 100, 5])
def test_a_batch_answers_bit_by_bit_as_its_queries_do(tmp_path: Path, rows: int, dead: int) -> None:
    vectors, region, queries = regions(rows, 40, 24)
    collection = trained(tmp_path, vectors, Metric.L2, engine=DEFAULTS)
    if dead:
        delete(collection, np.flatnonzero((region[:rows] < 10) | (np.arange(rows) % dead == 0)))
    for k in (10, 7):
        together = asked(collection, queries[:100], k)
        alone = one_by_one(collection, queries[:100], k)
        for part in ("counts", "ids", "scores"):
            np.testing.assert_array_equal(
                getattr(together.hits, part),
                np.concatenate([getattr(each.hits, part) for each in alone]),
            )


def test_an_exact_scan_ends_when_it_is_told_to(tmp_path: Path) -> None:
    vectors, queries = blobs(1_000)
    collection = trained(tmp_path, vectors, Metric.L2)
    request = SearchRequest(collection="words", queries=queries, k=10, effort=Effort(exact=True))

    def too_late() -> None:
        raise DeadlineExceeded("the deadline passed")

    with pytest.raises(DeadlineExceeded):
        collection.reads.search(request, too_late)


def test_the_receipt_says_why_all_rows_were_scored(tmp_path: Path) -> None:
    vectors, queries = blobs(3_000)
    for name in ("empty", "few", "index"):
        (tmp_path / name).mkdir()
    empty = open_collection(tmp_path / "empty", config_of(dim=8), engine=DEFAULTS)
    write(empty, Corpus(np.arange(10), vectors[:10]))
    assert receipt_of(asked(empty, queries)) == (ExactReason.NO_INDEX, 200, 0)
    few = trained(tmp_path / "few", vectors, Metric.L2, engine=DEFAULTS)
    assert receipt_of(asked(few, queries))[0] is ExactReason.FEW_ROWS
    index = trained(tmp_path / "index", vectors, Metric.L2)
    assert receipt_of(asked(index, queries)) == (None, 0, 0)
    wanted = asked(index, queries, effort=Effort(exact=True))
    assert receipt_of(wanted) == (ExactReason.REQUESTED, 200, 0)
    assert receipt_of(asked(index, queries, 300))[0] is ExactReason.UNCALIBRATED
    assert receipt_of(asked(index, queries, 1_001))[0] is ExactReason.NO_PARAMETERS
    unreached = asked(index, queries, effort=Effort(target_recall=1.0))
    assert receipt_of(unreached)[0] is ExactReason.NO_PARAMETERS


@pytest.mark.parametrize("dead", [0.08, 0.17])
def test_clusters_that_fall_below_k_by_few_deletes_are_found(tmp_path: Path, dead: float) -> None:
    random = np.random.default_rng(1)
    centres = random.standard_normal((40, 16))
    cluster = np.repeat(np.arange(40), 101)
    rows = (centres[cluster] + 0.1 * random.standard_normal((4_040, 16))).astype(np.float32)
    order = random.permutation(4_040)
    collection = trained(tmp_path, rows[order], Metric.L2)
    count = int(dead * 101)  # of every cluster: no list loses much more than others
    gone = np.flatnonzero(np.arange(4_040) % 101 < count)
    delete(collection, np.argsort(order)[gone])
    queries = centres[random.integers(0, 40, 200)] + 0.1 * random.standard_normal((200, 16))
    assert recall_of(collection, queries.astype(np.float32), 100) >= 0.95
