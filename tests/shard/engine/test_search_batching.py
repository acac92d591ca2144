"""What joined searches have in common, and that each caller's part is the answer to it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.engine.search_batching import joined, parted
from vectorshard.shard.types import (
    Include,
    Receipt,
    SearchRequest,
    SearchResult,
    ShardReceipt,
    TopK,
)

RECEIPT = Receipt(shards=(ShardReceipt(shard=0),), coverage=1.0)


def asking(*numbers: int, k: int = 3, **how: object) -> SearchRequest:
    """Ask queries that are told apart by a number."""
    queries = np.array(numbers, dtype=np.float32).reshape(-1, 1)
    return replace(SearchRequest(collection="words", queries=queries, k=k), **how)  # type: ignore[arg-type]


def answer_to(request: SearchRequest, hits: int = 1_000) -> SearchResult:
    """Answer query n with ids 100 n, 100 n + 1 ...: as many as k, or as n has."""
    numbers = request.queries[:, 0].astype(int).tolist()
    ids = [100 * n + place for n in numbers for place in range(min(request.k, hits, n))]
    counts = [min(request.k, hits, n) for n in numbers]
    found = np.array(ids, dtype=np.int64)
    return SearchResult(
        hits=TopK(
            counts=np.array(counts, dtype=np.uint32), ids=found, scores=found.astype(np.float32)
        ),
        receipt=RECEIPT,
        vectors=found[:, None].astype(np.float32) if request.include.vectors else None,
        metadata=[str(id_).encode() for id_ in ids] if request.include.metadata else None,
    )


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 12), max_size=4), st.integers(1, 10)),
        min_size=1,
        max_size=5,
    )
)
def test_parts_of_a_joined_answer_are_the_answers_to_each(
    parts: list[tuple[list[int], int]],
) -> None:
    requests = [asking(*numbers, k=k, include=Include(metadata=True)) for numbers, k in parts]
    for request, part in zip(requests, parted(answer_to(joined(requests)), requests), strict=True):
        alone = answer_to(request)
        assert part.hits.counts.tolist() == alone.hits.counts.tolist()
        assert part.hits.ids.tolist() == alone.hits.ids.tolist()
        assert part.metadata == alone.metadata


def test_no_part_is_told_of_more_queries_than_it_has() -> None:
    requests = [asking(1), asking(2, 3, 4)]
    shard = ShardReceipt(shard=0, queries_widened=2, queries_exact=4)
    result = replace(answer_to(joined(requests)), receipt=Receipt(shards=(shard,), coverage=1.0))
    of_each = [part.receipt.shards[0] for part in parted(result, requests)]
    assert [each.queries_exact for each in of_each] == [1, 3]
    assert [each.queries_widened for each in of_each] == [1, 2]
