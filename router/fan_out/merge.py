"""Merge the top-k of several shards into one.

Pure: numpy in, numpy out. The placement gives every id to one shard, so nothing is deduplicated
here. Equal scores rank by id: the answer must not depend on who replied first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vectorshard.shard.index.exact import best_first, costs_of
from vectorshard.shard.types import Int64Array, Metric, TopK


def merge_top_k(blocks: Sequence[TopK], k: int, metric: Metric) -> tuple[TopK, Int64Array]:
    """Return the best `k` hits of each query over all blocks, and where each came from.

    Parameters
    ----------
    blocks
        At least one, one a shard, all for the same queries.
    k
        Hits to keep for each query, at least 1.
    metric
        Says whether small (L2) or large (INNER_PRODUCT, COSINE) scores rank first.

    Returns
    -------
    TopK
        The merged hits.
    Int64Array
        (hits,): the position of each in the concatenation of the blocks' hits.
    """
    if len(blocks) == 1:
        return blocks[0], np.arange(len(blocks[0].scores))
    queries = len(blocks[0].counts)
    query_of = np.concatenate([np.repeat(np.arange(queries), block.counts) for block in blocks])
    scores = np.concatenate([block.scores for block in blocks])
    ids = np.concatenate([block.ids for block in blocks])
    order = best_first(query_of, costs_of(metric, scores), ids)
    counts = np.bincount(query_of, minlength=queries)
    first_of_query = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - np.repeat(first_of_query, counts)
    order = order[rank < k]
    kept = np.minimum(counts, k).astype(np.uint32)
    return TopK(counts=kept, ids=ids[order], scores=scores[order]), order
