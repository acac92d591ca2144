"""Searches that are alike are joined: what they have in common, the joined search, and its parts.

One joined search costs little more than the largest of its parts. Each caller gets the answer that
it would have got alone, with a receipt that all of them share. A shard joins the searches that wait
for its search thread, a router those that arrive while a search of their kind runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from vectorshard.shard.config import Limits
from vectorshard.shard.index.calibration import calibrated_k
from vectorshard.shard.types import (
    IdArray,
    Int64Array,
    Receipt,
    SearchRequest,
    SearchResult,
    TopK,
)
from vectorshard.shard.wire.searches import part_encoder

JOINED_QUERIES: Final = 64
"""Queries at which a joined search is full. Beyond, FAISS hardly gets faster per query, and the
first caller waits for the work of the last."""

JOINED_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Bytes that the hits of a joined search may take: far below the limit of a message, which each
search alone may come near to."""

_HIT_BYTES: Final = Limits().id_bytes + 16


def alike(request: SearchRequest) -> tuple[Hashable, ...]:
    """Return what searches that can be joined have in common.

    That is everything but the queries and k; values of k that share a calibration may differ.
    """
    effort, include = request.effort, request.include
    return (  # flat: hashes of the parts would take longer than that of the whole
        request.collection,
        effort.nprobe,
        effort.target_recall,
        effort.exact,
        request.filter,
        include.vectors,
        include.metadata,
        include.metadata_json,
        request.score_threshold,
        request.min_coverage,
        request.queries.dtype,
        calibrated_k(request.k),
        None if request.token is None else id(request.token),  # rare, and then alone
    )


def joined(requests: Sequence[SearchRequest]) -> SearchRequest:
    """Return one search for all queries, of the largest k. All are alike."""
    if len(requests) == 1:
        return requests[0]
    return replace(
        requests[0],
        queries=np.concatenate([request.queries for request in requests]),
        k=max(request.k for request in requests),
    )


def answer_bytes_max(request: SearchRequest) -> int:
    """Return the most bytes that the hits of a search may take."""
    hit_bytes = _HIT_BYTES
    if request.include.vectors:
        hit_bytes += 4 * request.queries.shape[1]
    if request.include.metadata:
        hit_bytes += Limits().metadata_bytes
    return len(request.queries) * calibrated_k(request.k) * hit_bytes


def parted(result: SearchResult, requests: Sequence[SearchRequest]) -> list[SearchResult]:
    """Return each request's part of the answer to all of them joined.

    Encoded too, if the request came encoded and the answer is of the usual form.
    """
    if len(requests) == 1 and requests[0].encoded is None:
        return [result]
    counts = result.hits.counts.tolist()
    k_max = max(request.k for request in requests)
    encode = part_encoder(result) if any(each.encoded for each in requests) else None
    parts = []
    query = hit = 0
    for request in requests:
        last_query = query + len(request.queries)
        of_request = counts[query:last_query]
        last_hit = hit + sum(of_request)
        receipt = _receipt_for(result.receipt, len(of_request))
        if request.k == k_max or max(of_request, default=0) <= request.k:
            part = result
            if len(requests) > 1:
                part = _part(result, slice(query, last_query), slice(hit, last_hit), receipt)
            if encode is not None and request.encoded is not None:
                part = part.written(encode(of_request, hit, last_hit, receipt))
            parts.append(part)
        else:
            of_each = result.hits.counts[query:last_query]
            starts = np.cumsum(of_each, dtype=np.int64) - of_each
            nth = np.arange(last_hit - hit) - np.repeat(starts, of_each)
            places = hit + np.flatnonzero(nth < request.k)
            part = _part(result, slice(query, last_query), places, receipt)
            fewer = replace(part.hits, counts=np.minimum(of_each, request.k))
            parts.append(replace(part, hits=fewer))
        query, hit = last_query, last_hit
    return parts


def _part(
    result: SearchResult,
    queries: slice,
    places: slice | Int64Array,
    receipt: Receipt,
) -> SearchResult:
    hits = result.hits
    ids: IdArray = hits.ids[places]
    metadata = result.metadata
    if metadata is not None:
        if isinstance(places, slice):
            metadata = metadata[places]
        else:
            metadata = [metadata[at] for at in places.tolist()]
    return SearchResult(
        hits=TopK(counts=hits.counts[queries], ids=ids, scores=hits.scores[places]),
        receipt=receipt,
        vectors=None if result.vectors is None else result.vectors[places],
        metadata=metadata,
        metadata_json=result.metadata_json,
    )


def _receipt_for(receipt: Receipt, queries: int) -> Receipt:
    """Return the receipt of a joined search for a part of so many queries.

    The receipt only counts the queries that were widened or scored exactly. So the part gets these
    counts as upper bounds: each at most the number of its queries.
    """
    counts = (shard.queries_exact + shard.queries_widened for shard in receipt.shards)
    if max(counts, default=0) <= queries:
        return receipt
    shards = tuple(
        replace(
            shard,
            queries_exact=min(shard.queries_exact, queries),
            queries_widened=min(shard.queries_widened, queries),
        )
        for shard in receipt.shards
    )
    return replace(receipt, shards=shards)
