"""Searches that are alike are joined: what they have in common, the joined search, and its parts.

One joined search costs little more than the largest of its parts. Each caller gets the answer that
it would have got alone, with a receipt that all of them share. A shard joins the searches that wait
for its search thread. A router joins those that arrive while a search of their kind runs, if their
deadlines are close: it ends at the first of them, to name the shards that did not answer in time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from vectorshard.shard.config import Limits
from vectorshard.shard.engine.batcher import Batcher, Batching
from vectorshard.shard.errors import InvalidRequest
from vectorshard.shard.index.calibration import calibrated_k
from vectorshard.shard.types import (
    Call,
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

HOLD_UP_S: Final = 1.0
"""How long a search may delay others of its kind, in case it hangs."""

JOINED_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Bytes that the hits of a joined search may take: far below the limit of a message, which each
search alone may come near to."""

_HIT_BYTES: Final = Limits().id_bytes + 16

Run = Callable[[SearchRequest, Call, Callable[[], None]], Awaitable[SearchResult]]
Check = Callable[[SearchRequest], None]


@dataclass(slots=True, eq=False)
class _Search:
    """One caller's search, and the functions that run and validate it."""

    request: SearchRequest
    call: Call
    run: Run
    check: Check


class SearchBatcher:
    """Runs searches, those that are alike together. It lives on an event loop.

    Parameters
    ----------
    clock
        Seconds, as in `call.deadline`.
    hold_up_part, hold_up_s
        See `Batching`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        hold_up_part: float = 1.0,
        hold_up_s: float = HOLD_UP_S,
    ) -> None:
        batching = Batching(
            cancellable=True,
            hold_up_s=hold_up_s,
            hold_up_part=hold_up_part,
            count_full=JOINED_QUERIES,
            size_max=JOINED_ANSWER_BYTES,
        )
        self._batcher: Batcher[_Search, SearchResult] = Batcher(
            self._run_joined,
            batching,
            weigh=lambda search: (len(search.request.queries), answer_bytes_max(search.request)),
            deadline_of=lambda search: search.call.deadline,
            clock=clock,
        )

    def search(
        self,
        request: SearchRequest,
        call: Call,
        run: Run,
        kind: Hashable = None,
        check: Check = lambda _: None,
    ) -> Coroutine[Any, Any, SearchResult]:
        """Search, alone or with others.

        Parameters
        ----------
        run
            Searches; called with the request, its call, and a function. Once that function is
            called, the next search of its kind may start, at the latest when this search ends. A
            joined search calls the `run` of one of its parts.
        kind
            What searches must have in common to run together, besides `alike`: the collection and
            all of the `call` that matters, except the deadline.
        check
            Raises the error of an invalid search. It is called for a joined search, whose invalid
            parts then fail without the others.
        """
        return self._batcher.submit(_Search(request, call, run, check), (kind, *alike(request)))

    async def _run_joined(
        self, searches: Sequence[_Search], release: Callable[[], None]
    ) -> Sequence[SearchResult | Exception]:
        first, call = searches[0], searches[0].call
        requests = [search.request for search in searches]
        request = joined(requests)
        if len(searches) > 1:
            try:
                first.check(request)
            except InvalidRequest:
                refused = [_refusal_of(search) for search in searches]
                valid = [each for each, error in zip(searches, refused, strict=True) if not error]
                results = iter(await self._run_joined(valid, release) if valid else ())
                return [error or next(results) for error in refused]
            call = replace(call, deadline=_first_deadline(searches))
        return parted(await first.run(request, call, release), requests)


def _refusal_of(search: _Search) -> InvalidRequest | None:
    try:
        search.check(search.request)
    except InvalidRequest as error:
        return error
    return None


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


def _first_deadline(searches: Sequence[_Search]) -> float | None:
    deadlines = [each.call.deadline for each in searches if each.call.deadline is not None]
    return min(deadlines, default=None)


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
