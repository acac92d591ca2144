"""Exact search finds what brute force finds, score for score and tie for tie."""

from __future__ import annotations

import contextlib
import tracemalloc
from dataclasses import dataclass
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorshard.shard.index import exact
from vectorshard.shard.index.exact import (
    SQUARED_NORM_MAX,
    Candidates,
    RankedRows,
    concatenate,
    exact_candidates,
    exact_scores,
    rank,
)
from vectorshard.shard.types import BoolArray, Float32Array, IdArray, Int64Array, Metric

METRICS = pytest.mark.parametrize("metric", list(Metric))
NORM_MAX = SQUARED_NORM_MAX**0.5 * (1 - 1e-6)
KINDS = [
    "plain",
    "few values",
    "identical",
    "huge",
    "tiny",
    "underflowing",
    "of all sizes",
    "an outlier",
    "sorted",
]


def vectors(rng: np.random.Generator, kind: str, rows: int, dim: int) -> Float32Array:
    """float32 (rows, dim), of a kind that is hard in its own way."""
    made = rng.standard_normal((rows, dim))
    lengths = np.linalg.norm(made, axis=1, keepdims=True)
    match kind:
        case "few values":
            made = rng.integers(-1, 2, (rows, dim)).astype(np.float64)  # zero vectors too
        case "identical":
            made[:] = made[:1]
        case "huge":
            made *= NORM_MAX / lengths
        case "tiny":
            made *= 10.0 ** rng.uniform(-45, -18) / lengths
        case "underflowing":
            made *= 10.0 ** rng.uniform(-23, -21) / lengths
        case "of all sizes":
            made *= 10.0 ** rng.uniform(-25, 18, (rows, 1)) / lengths
        case "an outlier":
            made[rng.integers(0, max(rows, 1), min(rows, 1))] *= 1e6
        case "sorted":
            made *= np.linspace(3, 1, rows)[:, None]
    return made.astype(np.float32)


def squared_norms(rows: Float32Array) -> Float32Array:
    norms: Float32Array = np.vecdot(rows, rows)
    return norms


def unit(rows: Float32Array) -> Float32Array:
    exact_rows = rows.astype(np.float64)
    norms = np.linalg.norm(exact_rows, axis=1, keepdims=True)
    scaled = np.divide(exact_rows, norms, out=np.zeros_like(exact_rows), where=norms > 0)
    scaled[norms[:, 0] == 0, 0] = 1
    rounded: Float32Array = scaled.astype(np.float32)
    return rounded


def every_pair(queries: int, rows: Int64Array) -> Candidates:
    return Candidates(np.repeat(np.arange(queries), len(rows)), np.tile(rows, queries))


def pairs_of(candidates: Candidates) -> list[tuple[int, int]]:
    return list(zip(candidates.query_of.tolist(), candidates.row_of.tolist(), strict=True))


@dataclass
class Search:
    """One search, and its answer by brute force over exact scores."""

    metric: Metric
    queries: Float32Array
    rows: Float32Array
    live: BoolArray | None
    first: int
    last: int
    k: int

    def candidates(self) -> Candidates:
        norms = squared_norms(self.rows)
        return exact_candidates(
            self.metric, self.queries, self.rows, norms, self.live, self.first, self.last, self.k
        )

    def live_rows(self) -> Int64Array:
        rows = np.arange(self.first, self.last)
        return rows if self.live is None else rows[self.live]

    def must_be_among_them(self) -> set[tuple[int, int]]:
        """The k best of each query, and all that ties with the k-th."""
        rows = self.live_rows()
        if not len(rows):
            return set()
        everything = every_pair(len(self.queries), rows)
        scores = exact_scores(self.metric, self.queries, self.rows, everything)
        costs = scores if self.metric is Metric.L2 else -scores
        costs = costs.reshape(len(self.queries), len(rows))
        kth = np.sort(costs, axis=1)[:, min(self.k, len(rows)) - 1]
        query_of, at = np.nonzero(costs <= kth[:, None])
        return set(zip(query_of.tolist(), rows[at].tolist(), strict=True))


@st.composite
def searches(draw: st.DrawFn) -> Search:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    metric = draw(st.sampled_from(Metric))
    dim = draw(st.sampled_from([1, 2, 3, 8, 33]))
    count = draw(st.integers(0, 200))
    rows = vectors(rng, draw(st.sampled_from(KINDS)), count, dim)
    queries = vectors(rng, draw(st.sampled_from(KINDS)), draw(st.integers(0, 9)), dim)
    if len(rows) and len(queries) and draw(st.booleans()):
        queries[0] = rows[-1]
    if metric is Metric.COSINE:
        rows, queries = unit(rows), unit(queries)
    first = draw(st.integers(0, count))
    last = draw(st.integers(first, count))
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.9]))
    live = None if share is None else rng.random(last - first) < share
    return Search(metric, queries, rows, live, first, last, draw(st.integers(1, 30)))


@settings(deadline=None, max_examples=300)
@given(searches(), st.booleans())
def test_candidates_include_the_k_best_and_all_ties_and_nothing_dead(
    search: Search, small_blocks: bool
) -> None:
    with contextlib.ExitStack() as smaller:
        if small_blocks:
            smaller.enter_context(
                mock.patch.multiple(exact, _BLOCK_ELEMENTS=64, _QUERIES_AT_ONCE=4, _POOL_PER_HIT=2)
            )
        found = pairs_of(search.candidates())
    assert len(set(found)) == len(found)
    assert search.must_be_among_them() <= set(found)
    assert set(found) <= set(pairs_of(every_pair(len(search.queries), search.live_rows())))


@settings(deadline=None)
@given(searches(), st.booleans())
def test_exact_search_ranks_as_sorting_everything_by_score_and_id_does(
    search: Search, string_ids: bool
) -> None:
    numbers = np.random.default_rng(7).permutation(len(search.rows)) - 50
    ids: IdArray = np.array([f"id{each}" for each in numbers], np.object_)
    ids = ids if string_ids else numbers
    candidates = search.candidates()
    scores = exact_scores(search.metric, search.queries, search.rows, candidates)
    ranked = rank(search.metric, candidates, scores, ids.__getitem__, len(search.queries), search.k)
    live = search.live_rows()
    sign = 1 if search.metric is Metric.L2 else -1
    expected: list[tuple[float, int | str, int]] = []
    for query in range(len(search.queries)):
        everything = Candidates(np.full(len(live), query), live)
        all_scores = exact_scores(search.metric, search.queries, search.rows, everything)
        keyed = zip((sign * all_scores).tolist(), ids[live].tolist(), live.tolist(), strict=True)
        expected += sorted(keyed)[: search.k]
    assert ranked.counts.tolist() == [min(search.k, len(live))] * len(search.queries)
    assert ranked.rows.tolist() == [row for _, _, row in expected]
    assert ranked.ids.tolist() == [each for _, each, _ in expected]
    assert (sign * ranked.scores).tolist() == [cost for cost, _, _ in expected]


@settings(deadline=None)
@given(searches())
def test_a_score_is_the_true_one_rounded_once(search: Search) -> None:
    candidates = every_pair(len(search.queries), np.arange(min(len(search.rows), 5)))
    scores = exact_scores(search.metric, search.queries, search.rows, candidates)
    for (query, row), score in zip(pairs_of(candidates), scores.tolist(), strict=True):
        left = [Fraction(each) for each in search.queries[query].tolist()]
        right = [Fraction(each) for each in search.rows[row].tolist()]
        if search.metric is Metric.L2:
            terms = [(a - b) ** 2 for a, b in zip(left, right, strict=True)]
        else:
            terms = [a * b for a, b in zip(left, right, strict=True)]
        rounding = Fraction(float(np.spacing(np.float32(score)))) / 2
        accumulated = Fraction(1, 2**46) * sum(abs(term) for term in terms)
        assert abs(Fraction(score) - sum(terms)) <= abs(rounding) + accumulated


@METRICS
@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), dim=st.integers(1, 300), pairs=st.integers(1, 300))
def test_a_pair_scores_the_same_alone_and_in_any_batch(
    metric: Metric, seed: int, dim: int, pairs: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((50, dim), dtype=np.float32)
    queries = rng.standard_normal((4, dim), dtype=np.float32)
    batch = Candidates(rng.integers(0, 4, pairs), rng.integers(0, 50, pairs))
    together = exact_scores(metric, queries, rows, batch)
    for at in rng.integers(0, pairs, 5):
        query, row = batch.query_of[at : at + 1], batch.row_of[at : at + 1]
        alone = exact_scores(
            metric, queries[query].copy(), rows, Candidates(np.zeros(1, np.int64), row)
        )
        assert alone.tobytes() == together[at : at + 1].tobytes()


@METRICS
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("whole", [False, True])
def test_as_many_pairs_of_each_query_score_and_rank_as_any_pairs(
    metric: Metric, k: int, whole: bool
) -> None:
    rng = np.random.default_rng(3)
    rows, queries = rng.standard_normal((200, 90)), rng.standard_normal((37, 90))
    if whole:  # many scores tie
        rows, queries = rows.round(), queries.round().repeat(2, axis=0)[:37] * 0 + 1
    chosen = np.stack([rng.permutation(200)[:30] for _ in range(37)])
    each = Candidates.of_each(chosen)
    pairs = Candidates(each.query_of, each.row_of)
    arrays = queries.astype(np.float32), rows.astype(np.float32)
    found = [exact_scores(metric, *arrays, candidates) for candidates in (each, pairs)]
    assert found[0].tobytes() == found[1].tobytes()
    ids = rng.permutation(200)
    best, expected = (
        rank(metric, candidates, found[0], lambda rows: ids[rows], 37, k)
        for candidates in (each, pairs)
    )
    for name in ("counts", "rows", "ids", "scores"):
        assert getattr(best, name).tobytes() == getattr(expected, name).tobytes(), name


def test_scores_of_a_read_only_memory_map_are_those_of_the_array(tmp_path: object) -> None:
    rows = np.random.default_rng(7).standard_normal((20, 5), dtype=np.float32)
    rows.tofile(f"{tmp_path}/rows.f32")
    mapped = np.memmap(f"{tmp_path}/rows.f32", np.float32, "r", shape=(20, 5))
    everything = every_pair(2, np.arange(20))
    assert (
        exact_scores(Metric.L2, rows[:2], mapped, everything).tolist()
        == exact_scores(Metric.L2, rows[:2], rows, everything).tolist()
    )
    search = Search(Metric.L2, rows[:2], mapped, None, 3, 20, 4)
    assert search.must_be_among_them() <= set(pairs_of(search.candidates()))


def test_a_row_that_is_not_there_cannot_be_scored() -> None:
    rows = np.zeros((2, 3), np.float32)
    with pytest.raises(IndexError):
        exact_scores(Metric.L2, rows, rows, Candidates(np.array([0]), np.array([2])))


@METRICS
def test_the_largest_legal_vectors_neither_overflow_nor_lose_a_hit(metric: Metric) -> None:
    rng = np.random.default_rng(7)
    rows = vectors(rng, "huge", 500, 16)
    rows[::2] *= np.float32(1e-3)
    search = Search(metric, rows[:20] * np.float32(-1), rows, None, 0, 500, 3)
    everything = every_pair(20, np.arange(500))
    assert np.isfinite(exact_scores(metric, search.queries, rows, everything)).all()
    assert search.must_be_among_them() <= set(pairs_of(search.candidates()))


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
@pytest.mark.parametrize("row_size", [1e-24, 1e-23, 3e-23, 1e-22, 1.0])
@pytest.mark.parametrize("query_size", [1e-44, 1e-23, 3e-23, 1e-22])
def test_underflow_loses_no_hit(metric: Metric, row_size: float, query_size: float) -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((400, 20)) * row_size
    queries = rng.standard_normal((16, 20)) * query_size
    search = Search(metric, queries.astype(np.float32), rows.astype(np.float32), None, 0, 400, 5)
    assert search.must_be_among_them() <= set(pairs_of(search.candidates()))


@METRICS
def test_of_identical_rows_all_are_candidates(metric: Metric) -> None:
    rows = np.full((9_000, 4), 0.5, np.float32)
    found = Search(metric, rows[:65], rows, None, 10, 9_000, 3).candidates()
    assert np.bincount(found.query_of).tolist() == [8_990] * 65


@METRICS
def test_few_candidates_come_along_in_any_order_of_the_rows(metric: Metric) -> None:
    rng = np.random.default_rng(7)
    rows = unit(rng.standard_normal((20_000, 8), dtype=np.float32))
    queries = unit(rows[:1] + np.float32(0.001) * rng.standard_normal((64, 8), np.float32))
    near_last: Float32Array = rows[np.argsort(rows @ queries[0])]
    near_first: Float32Array = near_last[::-1].copy()
    for ordered in (rows, near_last, near_first):
        found = Search(metric, queries, ordered, None, 0, 20_000, 10).candidates()
        assert len(found) < 64 * 10 * 3


def peak_bytes(search: Search) -> int:
    norms = squared_norms(search.rows)
    tracemalloc.start()
    try:
        exact_candidates(
            search.metric, search.queries, search.rows, norms, None, 0, search.last, search.k
        )
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_rows() -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((200_000, 4), dtype=np.float32)
    queries = rng.standard_normal((64, 4), dtype=np.float32)
    costs_bytes = len(rows) * len(queries) * 4
    assert peak_bytes(Search(Metric.L2, queries, rows, None, 0, 200_000, 10)) < costs_bytes / 8


def test_memory_does_not_grow_where_rounding_errors_hide_every_difference() -> None:
    rng = np.random.default_rng(7)
    rows = np.full((300_000, 2), 1e12, np.float32)
    rows[:, 1] = rng.permutation(300_000)
    queries = np.tile(np.array([[0, 1]], np.float32), (8, 1))
    search = Search(Metric.INNER_PRODUCT, queries, rows, None, 0, 300_000, 10)
    assert peak_bytes(search) < 48_000_000  # a block in which every pair is a candidate
    assert search.must_be_among_them() <= set(pairs_of(search.candidates()))
    assert len(search.candidates()) < 8 * 10 * 100


def ranked(
    scores: list[float],
    ids: list[int] | list[str],
    *,
    metric: Metric = Metric.L2,
    queries: int = 1,
    query_of: list[int] | None = None,
    k: int = 10,
    score_threshold: float | None = None,
    asked: list[int] | None = None,
) -> RankedRows:
    """Rank rows 0, 1, ... of these scores and ids; note in `asked` for how many ids were wanted."""
    id_array: IdArray = np.array(ids, np.object_)
    if isinstance(ids[0], int):
        id_array = id_array.astype(np.int64)

    def ids_of(rows: Int64Array) -> IdArray:
        if asked is not None:
            asked.append(len(rows))
        return id_array[rows]

    candidates = Candidates(np.array(query_of or [0] * len(scores)), np.arange(len(scores)))
    score_array = np.array(scores, np.float32)
    return rank(metric, candidates, score_array, ids_of, queries, k, score_threshold)


@METRICS
def test_the_best_score_comes_first(metric: Metric) -> None:
    best_first = [1.0, 2.0, 3.0] if metric is Metric.L2 else [3.0, 2.0, 1.0]
    assert ranked([2.0, 3.0, 1.0], [7, 8, 9], metric=metric).scores.tolist() == best_first


@METRICS
def test_equal_scores_rank_by_id_and_the_cut_falls_among_them_by_id(metric: Metric) -> None:
    hits = ranked([5.0, 5.0, 5.0, 5.0], [3, -1, 2, 2**62], metric=metric, k=3)
    assert hits.ids.tolist() == [-1, 2, 3]
    assert hits.rows.tolist() == [1, 2, 0]


def test_string_ids_rank_by_their_utf8_bytes() -> None:
    ids = ["b", "a", "\U00010000", "\uffff", "aa", "Z", "é"]
    hits = ranked([0.0] * len(ids), ids)
    assert hits.ids.tolist() == sorted(ids, key=str.encode)


def test_minus_zero_ties_with_zero() -> None:
    hits = ranked([0.0, -0.0, 0.0], [3, 2, 1], metric=Metric.INNER_PRODUCT, k=2)
    assert hits.ids.tolist() == [1, 2]


def test_hits_are_flat_in_query_order_and_a_query_without_candidates_has_none() -> None:
    hits = ranked([4.0, 1.0, 2.0, 3.0], [10, 11, 12, 13], queries=4, query_of=[3, 1, 3, 1], k=9)
    assert hits.counts.tolist() == [0, 2, 0, 2]
    assert hits.counts.dtype == np.uint32
    assert hits.ids.tolist() == [11, 13, 12, 10]


def test_a_threshold_keeps_scores_at_least_as_good() -> None:
    assert ranked([1.0, 2.0, 3.0], [1, 2, 3], score_threshold=2.0).ids.tolist() == [1, 2]
    better = ranked([1.0, 2.0, 3.0], [1, 2, 3], metric=Metric.COSINE, score_threshold=2.0)
    assert better.ids.tolist() == [3, 2]
    none = ranked([1.0, 2.0], [1, 2], queries=2, query_of=[0, 1], score_threshold=-1e300)
    assert none.counts.tolist() == [0, 0]


def test_ids_are_fetched_for_hits_and_ties_at_the_cut_only() -> None:
    asked: list[int] = []
    ranked([float(each // 2) for each in range(1_000)], list(range(1_000)), k=5, asked=asked)
    assert asked == [6]


def test_many_queries_rank_each_for_itself() -> None:
    rng = np.random.default_rng(7)
    query_of = rng.permutation(np.repeat(np.arange(700), 4))
    scores = rng.integers(0, 3, 2_800).astype(np.float32)
    hits = ranked(scores.tolist(), list(range(2_800)), queries=700, query_of=query_of.tolist(), k=3)
    assert hits.counts.tolist() == [3] * 700
    for query in range(700):
        mine = np.flatnonzero(query_of == query)
        expected = sorted((scores[row], row) for row in mine)[:3]
        assert hits.rows[3 * query : 3 * query + 3].tolist() == [row for _, row in expected]


def test_nothing_ranks_as_nothing() -> None:
    nothing = concatenate([])
    no_scores = np.empty(0, np.float32)
    hits = rank(Metric.L2, nothing, no_scores, lambda rows: rows, 2, 3)
    assert hits.counts.tolist() == [0, 0]
    assert (len(hits.rows), len(hits.ids), len(hits.scores)) == (0, 0, 0)
    assert len(rank(Metric.L2, nothing, no_scores, lambda rows: rows, 0, 3).counts) == 0


def test_parts_are_concatenated_in_their_order() -> None:
    left = Candidates(np.array([0, 1]), np.array([5, 6]))
    right = Candidates(np.array([0]), np.array([7]))
    assert pairs_of(concatenate([left, right])) == [(0, 5), (1, 6), (0, 7)]
