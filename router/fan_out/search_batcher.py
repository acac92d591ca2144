"""A router's searches: those that arrive while one of their kind runs are joined.

A joined search ends at the first deadline of its callers, so that the answer can name the shards
that did not answer in time. Only callers whose deadlines are close should share a kind.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vectorshard.shard.engine.batcher import Batcher, Batching
from vectorshard.shard.engine.search_batching import (
    JOINED_ANSWER_BYTES,
    JOINED_QUERIES,
    alike,
    answer_bytes_max,
    joined,
    parted,
)
from vectorshard.shard.errors import InvalidRequest
from vectorshard.shard.types import Call, SearchRequest, SearchResult

HOLD_UP_S: Final = 1.0
"""How long a search may delay others of its kind, in case it hangs."""

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


def _first_deadline(searches: Sequence[_Search]) -> float | None:
    deadlines = [each.call.deadline for each in searches if each.call.deadline is not None]
    return min(deadlines, default=None)
