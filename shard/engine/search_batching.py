"""Searches that are alike wait together: those that arrive while one runs share the next.

One joined search costs little more than the largest of its parts: one hand-over to a thread, one
call of FAISS, one merge. There is no timer: with nothing in flight a search starts at once. What is
not alike does not wait for each other here. Each caller gets what it would have got alone, with a
receipt that all share; a caller that leaves disturbs nobody, a search that nobody waits for any
more is cancelled, and one whose deadline passes while it waits is not begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from vectorshard.shard.config import Limits
from vectorshard.shard.errors import DeadlineExceeded
from vectorshard.shard.index.calibration import calibrated_k
from vectorshard.shard.types import (
    Call,
    IdArray,
    Int64Array,
    SearchRequest,
    SearchResult,
    TopK,
    UInt32Array,
)

JOINED_QUERIES: Final = 64
"""Queries at which a joined search is full. Beyond, FAISS hardly gets faster a query, and who is
first waits for who is last."""

HOLD_UP_S: Final = 1.0
"""How long a search may keep others of its kind waiting: one that hangs must not."""

JOINED_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Bytes that the hits of a joined search may take at most: far from the limit of a message, which
each of them alone may come near to."""

_HIT_BYTES: Final = Limits().id_bytes + 16

Run = Callable[[SearchRequest, Call, Callable[[], None]], Awaitable[SearchResult]]


@dataclass(slots=True, eq=False)
class _Waiting:
    """A search that waits for the one in flight."""

    request: SearchRequest
    call: Call
    run: Run
    answer: asyncio.Future[SearchResult]


@dataclass(slots=True, eq=False)
class _Lane:
    """Searches that are alike, of which one is in flight."""

    waiting: list[_Waiting] = field(default_factory=list)


class SearchCoalescer:
    """Runs searches, those that are alike together. It lives on an event loop.

    Parameters
    ----------
    clock
        Seconds, as in `call.deadline`.
    hold_up_part
        The part of its own time for which a search may keep others waiting. Where those that wait
        have about as much time as it, less than all leaves them some when it is over.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, hold_up_part: float = 1.0
    ) -> None:
        self._clock = clock
        self._hold_up_part = hold_up_part
        self._lanes: dict[Hashable, _Lane] = {}
        self._joined: set[asyncio.Task[None]] = set()

    def _next_of(self, key: Hashable, lane: _Lane, call: Call) -> _Once:
        """Return what lets the next search of a lane start: when it is called, or in a while."""
        at_last_s = HOLD_UP_S
        if call.deadline is not None:
            at_last_s = min(at_last_s, self._hold_up_part * (call.deadline - self._clock()))
        return _Once(lambda: self._start_next(key, lane), at_last_s)

    async def search(
        self, request: SearchRequest, call: Call, run: Run, kind: Hashable = None
    ) -> SearchResult:
        """Search, alone or with others.

        Parameters
        ----------
        request
            Checked: nothing that is wrong with it may spoil the search of others.
        run
            Searches; called with the request, the call that it belongs to, and a function. Once
            that is called the next of its kind may start, at the latest when the search ends. Of
            searches that are joined, one's `run` is called for all.
        kind
            Says besides `alike` what searches must have in common to run together: the collection,
            and all of the `call` that matters. Of several deadlines the first holds.
        """
        key = (kind, alike(request))
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = lane = _Lane()
            next_one = self._next_of(key, lane, call)
            try:
                return await run(request, call, next_one)
            finally:
                next_one()
        answer: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        lane.waiting.append(_Waiting(request, call, run, answer))
        return await answer

    def _start_next(self, key: Hashable, lane: _Lane) -> None:
        """Let those who wait go, as many as belong together; with nobody there, forget the kind."""
        chosen: list[_Waiting] = []
        now = self._clock()
        queries = answer_bytes = 0
        while lane.waiting:
            each = lane.waiting[0]
            answer_bytes += _answer_bytes_max(each.request)
            full = queries >= JOINED_QUERIES or answer_bytes > JOINED_ANSWER_BYTES
            if chosen and full:
                break
            del lane.waiting[0]
            if each.answer.done():  # its caller has left
                continue
            if each.call.deadline is not None and each.call.deadline <= now:
                each.answer.set_exception(DeadlineExceeded("the deadline passed in the queue"))
            else:
                chosen.append(each)
                queries += len(each.request.queries)
        if not chosen:
            del self._lanes[key]
            return
        task = asyncio.ensure_future(self._run_joined(key, lane, chosen))
        self._joined.add(task)
        task.add_done_callback(self._joined.discard)

        waiting = len(chosen)

        def one_less(_: object) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                task.cancel()  # does nothing to one that has ended

        for each in chosen:
            each.answer.add_done_callback(one_less)

    async def _run_joined(self, key: Hashable, lane: _Lane, chosen: Sequence[_Waiting]) -> None:
        call = _first_deadline(chosen)
        next_one = self._next_of(key, lane, call)
        requests = [each.request for each in chosen]
        try:
            result = await chosen[0].run(joined(requests), call, next_one)
            for each, part in zip(chosen, parted(result, requests), strict=True):
                if not each.answer.done():
                    each.answer.set_result(part)
        except Exception as error:
            for each in chosen:
                if not each.answer.done():
                    each.answer.set_exception(error)
        finally:
            next_one()


class _Once:
    """Does something the first time that it is called, or after some seconds."""

    __slots__ = ("_do", "_timer")

    def __init__(self, do: Callable[[], None], at_last_s: float) -> None:
        self._do: Callable[[], None] | None = do
        self._timer = asyncio.get_running_loop().call_later(at_last_s, self)

    def __call__(self) -> None:
        do, self._do = self._do, None
        if do is not None:
            self._timer.cancel()
            do()


def alike(request: SearchRequest) -> Hashable:
    """Return what searches that can be joined have in common: all but the queries and, within what
    is calibrated alike, k."""
    return (
        request.collection,
        request.effort,
        request.filter,
        request.include,
        request.score_threshold,
        request.min_coverage,
        request.queries.dtype,
        calibrated_k(request.k),
        None if request.token is None else id(request.token),  # seldom, and then alone
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


def _answer_bytes_max(request: SearchRequest) -> int:
    hit_bytes = _HIT_BYTES
    if request.include.vectors:
        hit_bytes += 4 * request.queries.shape[1]
    if request.include.metadata:
        hit_bytes += Limits().metadata_bytes
    return len(request.queries) * calibrated_k(request.k) * hit_bytes


def _first_deadline(chosen: Sequence[_Waiting]) -> Call:
    """Return the call with the first deadline of all."""
    deadlines = [each.call.deadline for each in chosen if each.call.deadline is not None]
    return replace(chosen[0].call, deadline=min(deadlines, default=None))


def parted(result: SearchResult, requests: Sequence[SearchRequest]) -> list[SearchResult]:
    """Return each request's part of the answer to all of them joined."""
    if len(requests) == 1:
        return [result]
    counts = result.hits.counts
    ends = np.cumsum(counts, dtype=np.int64)
    parts = []
    query = hit = 0
    k_max = max(request.k for request in requests)
    for request in requests:
        last_query = query + len(request.queries)
        last_hit = int(ends[last_query - 1]) if last_query else 0
        of_request = counts[query:last_query]
        places: slice | Int64Array = slice(hit, last_hit)
        if request.k < k_max:
            starts = np.cumsum(of_request, dtype=np.int64) - of_request
            nth = np.arange(last_hit - hit) - np.repeat(starts, of_request)
            places = hit + np.flatnonzero(nth < request.k)
            of_request = np.minimum(of_request, request.k)
        parts.append(_part(result, of_request, places))
        query, hit = last_query, last_hit
    return parts


def _part(result: SearchResult, counts: UInt32Array, places: slice | Int64Array) -> SearchResult:
    hits = result.hits
    ids: IdArray = hits.ids[places]
    metadata = result.metadata
    if metadata is not None:
        if isinstance(places, slice):
            metadata = metadata[places]
        else:
            metadata = [metadata[at] for at in places.tolist()]
    return SearchResult(
        hits=TopK(counts=counts, ids=ids, scores=hits.scores[places]),
        receipt=result.receipt,
        vectors=None if result.vectors is None else result.vectors[places],
        metadata=metadata,
    )
