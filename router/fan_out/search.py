"""Searches of a router: ask all downstream shards, merge their hits, and state the coverage.

Searches that are alike share one fan-out: while one is in flight, those that arrive wait together
and go as one. Searches with very different deadlines are not alike.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from vectorshard.router.fan_out.absence import refusal_of
from vectorshard.router.fan_out.children import Child, Children
from vectorshard.router.fan_out.examination import Examination
from vectorshard.router.fan_out.merge import by_shard, merge_results
from vectorshard.router.fan_out.placement import Placement
from vectorshard.router.fan_out.search_batcher import SearchBatcher
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.engine.search_batching import JOINED_QUERIES
from vectorshard.shard.engine.validation import check_filter, check_vectors
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionUnreadable,
    CorruptData,
    DeadlineExceeded,
    ReadFailed,
    RowFileCorrupt,
    RowStoreCorrupt,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.types import (
    Call,
    CollectionEntry,
    Receipt,
    SearchRequest,
    SearchResult,
    ShardReceipt,
)

MERGED_ON_LOOP: Final = 10_000
"""Hits that are merged on the event loop, in about a millisecond; more are merged in a thread."""

DEADLINE_STEP: Final = 1.1
"""Ratio of remaining times within which searches are joined. A joined search ends at the first of
their deadlines, to name the shards that did not answer before that caller stops waiting. So it cuts
the others short by a tenth at most. Smaller: fewer searches are joined."""

HOLD_UP_PART: Final = 0.5
"""Part of a search's time for which it may delay others, if it gets no answers. Those then have
a third of theirs left (see DEADLINE_STEP): enough for the other shards to answer, or for the
missing ones to be named."""


_LASTING: Final[Mapping[str, type[VectorShardError]]] = {
    **{
        kind.__name__: CollectionDamaged
        for kind in (CollectionDamaged, CorruptData, RowFileCorrupt, RowStoreCorrupt)
    },
    "ShardMissing": ShardMissing,
    "CollectionUnreadable": CollectionUnreadable,
    "ReadFailed": ReadFailed,
}
"""What the reason of a missing shard begins with, if waiting does not help, and the error.

The error of several is the first, as in `refusal_of`."""

_NOT_TOLD: Final = "its router has yet to learn that another shard is missing"


class SearchFanOut:
    """Searches over all children of a router."""

    def __init__(self, children: Children, examination: Examination) -> None:
        self._children = children
        self._examination = examination
        self._joined = SearchBatcher(children.clock, hold_up_part=HOLD_UP_PART)
        self._last_receipt = Receipt(shards=(), coverage=0.0)

    async def search(
        self, request: SearchRequest, entry: CollectionEntry, call: Call
    ) -> SearchResult:
        """Run a search alone, or together with those that are alike.

        The shards validate it. Only a joined search is validated here, once.
        """
        kind = (
            call.incarnation,
            call.placement,
            deadline_class(call, self._children.clock()),
            request.queries.shape[1],
        )
        run = partial(self._fan_out, entry)
        return await self._joined.search(request, call, run, kind, partial(_check, entry))

    async def _fan_out(
        self,
        entry: CollectionEntry,
        request: SearchRequest,
        call: Call,
        start_next: Callable[[], None],
    ) -> SearchResult:
        """Ask every known child whose shards are not absent, and merge the answers.

        `_Pacing` calls `start_next`.
        """
        children = self._children
        known, placement, unknown = children.known(), children.placement, children.missing()
        if unknown is not None and (request.min_coverage == 1.0 or not known):
            raise unknown
        absent = self._examination.absent(entry.incarnation)
        if absent:
            known = [child for child in known if not children.is_absent(child, absent)]
            if request.min_coverage == 1.0 or not known:
                raise refusal_of(absent)
        part = request
        if request.min_coverage < 1.0:
            # It applies to the whole answer, not to the part of each child.
            part = replace(request, min_coverage=0.0)
        # No search joins a full one: a child that has answered may start on the next.
        pacing = _Pacing(1 if len(request.queries) >= JOINED_QUERIES else len(known), start_next)
        outcomes = await _Outcomes(known, part, call, pacing).all()
        answers, receipts, answered_slots = _sorted_outcomes(
            known, placement, outcomes, absent, strict=request.min_coverage == 1.0
        )
        if unknown is not None or not placement.partial:
            reason = unknown or ShardUnavailable("no downstream shard reaches it")
            receipts = missing_receipts(placement.missing_shards, reason) | receipts
        # A router above asks for the leaf shards that it knows here; other callers for all slots.
        all_known = unknown is None or call.placement
        slots = placement.slots_total if all_known else SLOTS_TOTAL
        receipt = Receipt(
            shards=by_shard(receipts.values()), coverage=float(answered_slots / slots)
        )
        if receipt == self._last_receipt:  # which keeps its bytes once it is written
            receipt = self._last_receipt
        self._last_receipt = receipt
        require_coverage(receipt, request.min_coverage)
        if sum(len(answer.hits.scores) for answer in answers) < MERGED_ON_LOOP:
            return merge_results(answers, receipt, request.k, entry.config)
        return await asyncio.to_thread(merge_results, answers, receipt, request.k, entry.config)


def _check(entry: CollectionEntry, request: SearchRequest) -> None:
    check_vectors(entry.config, request.queries, "queries")
    check_filter(entry.config, request.filter)


def deadline_class(call: Call, now: float) -> int | None:
    """Return a number that calls with about the same time left have in common.

    The time until their first deadline is at most a tenth shorter than that of any of them.
    """
    if call.deadline is None:
        return None
    return math.floor(math.log(max(call.deadline - now, 1e-3), DEADLINE_STEP))


def _sorted_outcomes(
    known: Sequence[Child],
    placement: Placement,
    outcomes: Sequence[SearchResult | BaseException],
    absent: Mapping[int, VectorShardError],
    *,
    strict: bool,
) -> tuple[list[SearchResult], dict[int, ShardReceipt], float]:
    """Return the answers, the receipts by leaf shard, and how many slots answered.

    Raises DeadlineExceeded if it passed on every child, and any error that is not an absence. The
    answer of a router below that contains rows of an `absent` leaf shard is left out.
    """
    expired = [outcome for outcome in outcomes if isinstance(outcome, DeadlineExceeded)]
    if expired and len(expired) == len(outcomes):
        raise expired[0]  # no shard is missing: the caller's time is over
    answers: list[SearchResult] = []
    receipts: dict[int, ShardReceipt] = {}
    answered_slots = 0.0
    for child, outcome in zip(known, outcomes, strict=True):
        if isinstance(outcome, SearchResult):
            if absent and _contains(outcome, absent):
                reason = ShardUnavailable(_NOT_TOLD)
                shards = placement.shards_of_child(child.number)
                receipts = missing_receipts(shards, reason) | receipts
                continue
            answers.append(outcome)
            for shard in outcome.receipt.shards:
                # A router below may report shards as missing that other children reach.
                if placement.child_of_shard(shard.shard) in (child.number, None):
                    receipts[shard.shard] = shard
            answered_slots += outcome.receipt.coverage * placement.slots_of_child[child.number]
        elif isinstance(outcome, ShardUnavailable | DeadlineExceeded) or (
            isinstance(outcome, CorruptData) and not strict
        ):
            receipts |= missing_receipts(placement.shards_of_child(child.number), outcome)
        else:
            raise outcome
    for leaf, error in absent.items():
        receipts |= missing_receipts((leaf,), error)
    return answers, receipts, answered_slots


def _contains(answer: SearchResult, absent: Collection[int]) -> bool:
    return any(
        shard.shard in absent and not shard.missing_reason for shard in answer.receipt.shards
    )


class _Outcomes:
    """The outcomes of a search on each child. Those of remote shards need no task."""

    def __init__(
        self, children: Sequence[Child], request: SearchRequest, call: Call, pacing: _Pacing
    ) -> None:
        self._pacing = pacing
        self._missing = len(children)
        self._all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._searches = [
            asyncio.ensure_future(child.shard.search(request, call=child.to(call)))
            for child in children
        ]
        for search in self._searches:
            search.add_done_callback(self._take)

    def _take(self, search: asyncio.Future[SearchResult]) -> None:
        # Not after an error: a missing child fails immediately, and the others have not answered.
        if not search.cancelled() and search.exception() is None:
            self._pacing.answered()
        self._missing -= 1
        if not self._missing and not self._all.done():
            self._all.set_result(None)

    async def all(self) -> list[SearchResult | BaseException]:
        """Return all outcomes, in the order of the children. To cancel it cancels all searches."""
        try:
            await self._all
        except asyncio.CancelledError:
            for search in self._searches:
                search.cancel()
            raise
        return [
            asyncio.CancelledError() if each.cancelled() else each.exception() or each.result()
            for each in self._searches
        ]


class _Pacing:
    """Starts the next search when all children have answered this one, or too many lag behind.

    With all answers in, more callers wait, and go as one. The others get as long again as the first
    answer took: a child that is slower by more does not delay the next search.
    """

    def __init__(self, children: int, start_next: Callable[[], None]) -> None:
        self._unanswered = children
        self._start_next = start_next
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def answered(self) -> None:
        """Note the answer of a child."""
        self._unanswered -= 1
        if self._unanswered <= 0:
            if self._timer is not None:
                self._timer.cancel()
            self._start_next()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._loop.time() - self._begun, self._start_next)


def missing_receipts(shards: Iterable[int], reason: VectorShardError) -> dict[int, ShardReceipt]:
    """Return receipts of leaf shards that are missing, by number."""
    text = reason if not reason.is_servers_own or reason.error_id else type(reason).__doc__
    why = f"{type(reason).__name__}: {text}"
    return {shard: ShardReceipt(shard=shard, missing_reason=why) for shard in shards}


def require_coverage(receipt: Receipt, min_coverage: float) -> None:
    """Raise ShardUnavailable, with the missing shards, if the coverage is too small.

    Another error that waiting does not resolve, if that is why all of them are missing.
    """
    if receipt.coverage >= min_coverage - 1e-6 and receipt.shards_answered:
        return
    missing = "; ".join(
        f"shard {shard.shard}: {shard.missing_reason}"
        for shard in receipt.shards
        if shard.missing_reason
    )
    kinds = {shard.missing_reason.partition(":")[0] for shard in receipt.shards} - {""}
    lasting = [kind for name, kind in _LASTING.items() if name in kinds]
    kind = lasting[0] if lasting and kinds <= _LASTING.keys() else ShardUnavailable
    raise kind(
        f"coverage {receipt.coverage:.3f} is below min_coverage {min_coverage:.3f}; "
        f"missing: {missing}"
    )
