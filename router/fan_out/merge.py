"""Combine the answers of several shards into one.

Pure: numpy in, numpy out. The placement gives every id to one shard, so that no hits need to be
deduplicated. Equal scores rank by id: the answer must not depend on which shard replied first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from vectorshard.shard.descriptions import ShardDescription
from vectorshard.shard.index.exact import best_first, costs_of
from vectorshard.shard.types import (
    CollectionConfig,
    Float32Array,
    IdArray,
    IdType,
    Int64Array,
    Metric,
    Receipt,
    Rows,
    SearchResult,
    ShardReceipt,
    TopK,
)

Numbered = TypeVar("Numbered", ShardReceipt, ShardDescription)


def merge_top_k(blocks: Sequence[TopK], k: int, metric: Metric) -> tuple[TopK, Int64Array]:
    """Return the best `k` hits of each query over all blocks, and where each came from.

    Parameters
    ----------
    blocks
        At least one, one for each shard, all for the same queries.
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
    queries = len(blocks[0].counts)
    scores = np.concatenate([block.scores for block in blocks])
    ids = np.concatenate([block.ids for block in blocks])
    if ids.dtype != np.object_ and all((block.counts == k).all() for block in blocks):
        order = _order_of_equal_shapes(costs_of(metric, scores), ids, len(blocks), queries, k)
        return TopK(counts=blocks[0].counts, ids=ids[order], scores=scores[order]), order
    query_of = np.concatenate([np.repeat(np.arange(queries), block.counts) for block in blocks])
    order = best_first(query_of, costs_of(metric, scores), ids)
    counts = np.bincount(query_of, minlength=queries)
    first_of_query = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - np.repeat(first_of_query, counts)
    order = order[rank < k]
    kept = np.minimum(counts, k).astype(np.uint32)
    return TopK(counts=kept, ids=ids[order], scores=scores[order]), order


def _order_of_equal_shapes(
    costs: Float32Array, ids: IdArray, blocks: int, queries: int, k: int
) -> Int64Array:
    """Return `merge_top_k`'s positions, (queries * k,), if each block has k hits for each query."""
    by_block = np.arange(len(ids)).reshape(blocks, queries, k)
    places = by_block.transpose(1, 0, 2).reshape(queries, blocks * k)
    order = np.lexsort((ids[places], costs[places]), axis=-1)[:, :k]
    merged: Int64Array = places[np.arange(queries)[:, None], order].ravel()
    return merged


def merge_results(
    answers: Sequence[SearchResult], receipt: Receipt, k: int, config: CollectionConfig
) -> SearchResult:
    """Merge the hits of several shards, with the vectors and metadata that they include."""
    if len(answers) == 1:
        return replace(answers[0], receipt=receipt)
    hits, order = merge_top_k([answer.hits for answer in answers], k, config.metric)
    vectors = _joined_vectors([answer.vectors for answer in answers], config.dim)
    metadata = _joined_metadata([answer.metadata for answer in answers])
    return SearchResult(
        hits=hits,
        receipt=receipt,
        vectors=None if vectors is None else vectors[order],
        metadata=None if metadata is None else [metadata[at] for at in order.tolist()],
        metadata_json=any(answer.metadata_json for answer in answers),
    )


def joined_rows(pages: Sequence[Rows], config: CollectionConfig) -> Rows:
    """Concatenate pages, without a cursor."""
    no_ids: IdArray = np.zeros(0, dtype=object if config.id_type is IdType.STRING else np.int64)
    damaged = [page.damaged for page in pages if page.damaged is not None]
    return Rows(
        ids=np.concatenate([no_ids, *(page.ids for page in pages)]),
        vectors=_joined_vectors([page.vectors for page in pages], config.dim),
        metadata=_joined_metadata([page.metadata for page in pages]),
        damaged=np.concatenate([no_ids, *damaged]) if damaged else None,
        metadata_json=any(page.metadata_json for page in pages),
    )


def _joined_vectors(parts: Sequence[Float32Array | None], dim: int) -> Float32Array | None:
    included = [part for part in parts if part is not None]
    if len(included) < len(parts):
        return None
    return np.concatenate([np.zeros((0, dim), dtype=np.float32), *included])


def _joined_metadata(parts: Sequence[Sequence[bytes] | None]) -> Sequence[bytes] | None:
    included = [part for part in parts if part is not None]
    if len(included) < len(parts):
        return None
    return [metadata for part in included for metadata in part]


def reordered(rows: Rows, order: Int64Array) -> Rows:
    """Return the rows at the positions `order` (rows,), without a cursor."""
    return Rows(
        ids=rows.ids[order],
        vectors=None if rows.vectors is None else rows.vectors[order],
        metadata=None
        if rows.metadata is None
        else [rows.metadata[position] for position in order.tolist()],
        metadata_json=rows.metadata_json,
    )


def by_shard(parts: Iterable[Numbered]) -> tuple[Numbered, ...]:
    """Return receipts or descriptions in the order of their leaf shards."""
    return tuple(sorted(parts, key=lambda part: part.shard))
