"""Merging is sorting everything: hypothesis compares the two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.samples import ids_of
from vectorshard.router.fan_out.merge import merge_top_k
from vectorshard.shard.types import IdArray, IdType, Metric, TopK

Hits = list[tuple[int | str, float]]

SCORES = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.5, 0.5000001, 3.0, 1e38])


def best_first(hits: Hits, metric: Metric) -> Hits:
    sign = 1 if metric.smaller_is_better else -1
    return sorted(hits, key=lambda hit: (sign * hit[1], hit[0]))


def block_of(queries: list[Hits], id_type: IdType) -> TopK:
    """Return a shard's answer, already in its order."""
    hits = [hit for query in queries for hit in query]
    ids: IdArray = np.zeros(0, dtype=np.int64)
    if id_type is IdType.STRING:
        ids = np.empty(len(hits), dtype=np.object_)
        ids[:] = [id_ for id_, _ in hits]
    elif hits:
        ids = np.array([id_ for id_, _ in hits], dtype=np.int64)
    return TopK(
        counts=np.array([len(query) for query in queries], dtype=np.uint32),
        ids=ids,
        scores=np.array([score for _, score in hits], dtype=np.float32),
    )


def queries_of(block: TopK) -> list[Hits]:
    bounds = np.cumsum(block.counts)[:-1]
    return [
        list(zip(ids.tolist(), scores.tolist(), strict=True))
        for ids, scores in zip(
            np.split(block.ids, bounds), np.split(block.scores, bounds), strict=True
        )
    ]


@st.composite
def answers(draw: st.DrawFn) -> tuple[IdType, Metric, int, list[list[Hits]]]:
    """Draw what some shards answer to the same queries: [shard][query], ids disjoint."""
    id_type, metric = draw(st.sampled_from(IdType)), draw(st.sampled_from(Metric))
    k, shards, queries = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ids = ids_of(id_type, range(40)).tolist()
    blocks: list[list[Hits]] = [[] for _ in range(shards)]
    for _ in range(queries):
        shard_of = draw(st.lists(st.integers(-1, shards - 1), min_size=40, max_size=40))
        for shard, block in enumerate(blocks):
            own = [id_ for id_, owner in zip(ids, shard_of, strict=True) if owner == shard]
            hits = [(id_, float(np.float32(draw(SCORES)))) for id_ in own[:8]]
            block.append(best_first(hits, metric)[:k])
    return id_type, metric, k, blocks


@given(answers())
def test_merging_is_sorting_everything_in_whatever_order_the_shards_answer(
    case: tuple[IdType, Metric, int, list[list[Hits]]],
) -> None:
    id_type, metric, k, blocks = case
    expected = [
        best_first([hit for block in blocks for hit in block[query]], metric)[:k]
        for query in range(len(blocks[0]))
    ]
    for order in (blocks, blocks[::-1]):
        merged, came_from = merge_top_k([block_of(block, id_type) for block in order], k, metric)
        assert queries_of(merged) == expected
        assert merged.counts.dtype == np.uint32
        assert merged.scores.dtype == np.float32
        everything = [hit for block in order for query in block for hit in query]
        hits = [hit for query in expected for hit in query]
        assert [everything[position] for position in came_from.tolist()] == hits


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("id_type", list(IdType))
def test_hits_of_several_shards_that_tie_rank_by_id(id_type: IdType, metric: Metric) -> None:
    sign = 1.0 if metric.smaller_is_better else -1.0
    ids = ids_of(id_type, range(9)).tolist()
    costs = [0.0, 1.0, 1.0, 1.0, -0.0, 1.0, 2.0, 1.0, 2.0]
    hits = [(id_, sign * cost) for id_, cost in zip(ids, costs, strict=True)]
    blocks = [best_first(hits[shard::3], metric) for shard in range(3)]
    for order in (blocks, blocks[::-1]):
        merged, _ = merge_top_k([block_of([block] * 2, id_type) for block in order], 6, metric)
        assert merged.ids.tolist() == [ids[number] for number in (0, 4, 1, 2, 3, 5)] * 2


@pytest.mark.parametrize("id_type", list(IdType))
def test_shards_without_hits_add_nothing(id_type: IdType) -> None:
    hits: list[Hits] = [[(id_, 1.0)] for id_ in ids_of(id_type, [3, 4]).tolist()]
    empty = block_of([[], []], id_type)
    for blocks in ([empty, block_of(hits, id_type)], [block_of(hits, id_type), empty]):
        assert queries_of(merge_top_k(blocks, 5, Metric.L2)[0]) == hits
    merged, came_from = merge_top_k([empty, empty], 5, Metric.L2)
    assert merged.counts.tolist() == [0, 0]
    assert len(came_from) == 0


def test_no_queries_have_no_hits() -> None:
    nothing = block_of([], IdType.INT64)
    merged, _ = merge_top_k([nothing, nothing], 3, Metric.COSINE)
    assert merged.counts.shape == (0,)
