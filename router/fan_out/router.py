"""The router: a shard whose rows live elsewhere.

It places rows, fans every call out to the children that it concerns, and combines the answers. It
keeps no state that its children do not have: what it remembers of a collection and of the placement
is checked by them against the incarnation and the fingerprint that travel with every call.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from vectorshard.router.fan_out.children import Child, Children
from vectorshard.router.fan_out.merge import merge_top_k
from vectorshard.router.fan_out.partial_write import Written, joined, joined_token, reached_some
from vectorshard.shard.config import PAGE_SIZE_DEFAULT, SLOTS_TOTAL
from vectorshard.shard.engine.search_batching import JOINED_QUERIES, SearchBatcher
from vectorshard.shard.engine.validation import (
    check_filter,
    check_ids,
    check_vectors,
)
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    IncarnationMismatch,
    InvalidParameter,
    InvalidRequest,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionDescription,
    CollectionEntry,
    CountRequest,
    Cursor,
    DeleteRequest,
    DeleteResult,
    ExplainRequest,
    Explanation,
    Float32Array,
    GetRequest,
    IdArray,
    IdType,
    Int64Array,
    ListRequest,
    Receipt,
    Role,
    Rows,
    SearchRequest,
    SearchResult,
    ShardDescription,
    ShardReceipt,
    Token,
    Topology,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)

MERGED_AT_ONCE = 10_000
"""Hits that are merged on the event loop, in about a millisecond; more go to a thread."""

_NOTHING_DONE = (CollectionNotFound, IncarnationMismatch, Overloaded, PlacementMismatch)
"""Errors by which a child says that it has done nothing. After any other it may have."""

PATIENCE_STEP = 1.25
"""Searches whose remaining times differ by more are not joined: who is in a hurry would cut the
others short."""

HOLD_UP_PART = 0.5
"""Whoever waits for a search that nobody answers still has a third of their time after so much of
its own (see PATIENCE_STEP), in which the shards that are there can answer, or be named."""

T = TypeVar("T")
Request = TypeVar("Request")
SelectionT = TypeVar("SelectionT", DeleteRequest, GetRequest, CountRequest)
Numbered = TypeVar("Numbered", ShardReceipt, ShardDescription)


def new_incarnation() -> str:
    """Return a name that no collection has had."""
    return uuid.uuid4().hex


class Router:
    """Collections whose rows live in several children. Use `connect`.

    Parameters
    ----------
    children
        Who has the rows. Their clock is the router's.
    new_incarnation
        Names a collection that is new.
    """

    def __init__(
        self, children: Children, *, new_incarnation: Callable[[], str] = new_incarnation
    ) -> None:
        self._children = children
        self._new_incarnation = new_incarnation
        self._entries: dict[str, CollectionEntry] = {}
        self._searches = SearchBatcher(children.clock, hold_up_part=HOLD_UP_PART)

    @classmethod
    async def connect(
        cls,
        shards: Sequence[Shard],
        role: Role = Role.ROUTER,
        *,
        names: Sequence[str] = (),
        partial: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        new_incarnation: Callable[[], str] = new_incarnation,
    ) -> Router:
        """Learn from the children which slots they own; go on while some are missing.

        Parameters
        ----------
        shards
            The children: leaf shards in the order of their numbers, or routers in any order.
        role
            ROUTER, or EMBEDDED when the children live in this process.
        names
            What errors and the log call each child, such as its address; or none.
        partial
            Whether they may be a part of the placement only, as below another router.
        sleep
            Waits some seconds before a missing child is asked again.
        clock
            Seconds, as in a call's deadline.
        new_incarnation
            Names a collection that is new.

        Raises
        ------
        PlacementMismatch
            If one that answers contradicts another, or the placement.
        """
        children = Children(shards, role, names=names, partial=partial, sleep=sleep, clock=clock)
        await children.connect()
        return cls(children, new_incarnation=new_incarnation)

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Say which leaf shards are reached through here."""
        return self._children.topology

    # ---- collections ----------------------------------------------------------------------------

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection on every child, or complete one that reached only some.

        The child with the first shard decides when two callers create the same name at once; who
        was slower looks again.

        Raises
        ------
        CollectionExists
            If the name is taken by another configuration.
        IncarnationMismatch
            If a drop has reached only some shards; it must be repeated first.
        """
        try:
            return await self._with_placement(call, lambda: self._create(config, call))
        except IncarnationMismatch:
            if call.incarnation:
                raise
            return await self._create(config, call)

    async def _create(self, config: CollectionConfig, call: Call) -> tuple[CollectionEntry, bool]:
        holders = await self._holders(config.name, call)
        decider, *others = self._children.in_order()
        known = [entry for _, entry in holders]
        for entry in known:
            if entry.config != config:
                raise CollectionExists(
                    f"collection {config.name} exists with another configuration: {entry.config}"
                )
        incarnations = {entry.incarnation for entry in known}
        if call.incarnation:
            incarnations.add(call.incarnation)
        # It is created there first and dropped there first: without it, the others' are left over.
        left_over = bool(holders) and holders[0][0] is not decider
        if len(incarnations) > 1 or left_over:
            raise IncarnationMismatch(
                f"collection {config.name} was dropped on some shards only; drop it once more"
            )
        wanted = incarnations.pop() if incarnations else self._new_incarnation()
        call = replace(call, incarnation=wanted)
        # All before the first is asked: one that has become unknown meanwhile stops all of it.
        calls = [child.to(call) for child in (decider, *others)]
        first_entry, first_new = await decider.shard.create_collection(config, call=calls[0])
        also = await self._gather(
            child.shard.create_collection(config, call=child_call)
            for child, child_call in zip(others, calls[1:], strict=True)
        )
        self._entries[config.name] = first_entry
        return first_entry, first_new or any(new for _, new in also)

    async def _holders(self, name: str, call: Call) -> list[tuple[Child, CollectionEntry]]:
        """Return the children that have a collection, in the order of their shards."""
        call = replace(call, incarnation="")
        children = self._children.in_order()
        listings = await self._gather(
            child.shard.list_collections(call=child.to(call)) for child in children
        )
        return [
            (child, entry)
            for child, listing in zip(children, listings, strict=True)
            for entry in listing
            if entry.config.name == name
        ]

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection on every child that has it, the one that decides about names first.

        What is meant is what is there now: a drop that arrives late harms no later collection.
        """
        await self._with_placement(call, lambda: self._drop(name, call))

    async def _drop(self, name: str, call: Call) -> None:
        self._entries.pop(name, None)
        holders = await self._holders(name, call)
        if not holders:
            raise CollectionNotFound(f"no collection {name}; create it first")
        if call.incarnation:
            holders = [held for held in holders if held[1].incarnation == call.incarnation]
            if not holders:
                raise IncarnationMismatch(f"collection {name} was dropped and created anew")

        async def drop(child: Child, entry: CollectionEntry) -> None:
            meant = replace(call, incarnation=entry.incarnation)
            # Somebody else's drop may have been faster.
            with suppress(CollectionNotFound, IncarnationMismatch):
                await child.shard.drop_collection(name, call=child.to(meant))

        await drop(*holders[0])
        await self._gather(drop(*held) for held in holders[1:])

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections that any child knows, by name."""
        listings = await self._with_placement(call, lambda: self._listings(call))
        entries = {entry.config.name: entry for listing in listings for entry in listing}
        return [entries[name] for name in sorted(entries)]

    async def _listings(self, call: Call) -> list[Sequence[CollectionEntry]]:
        return await self._gather(
            child.shard.list_collections(call=child.to(call)) for child in self._children.all()
        )

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection over all leaf shards.

        Raises
        ------
        IncarnationMismatch
            If they do not have the same collection under the name: there is no sum of two ledgers.
        """
        return await self._with_entry(name, call, self._describe, name)

    async def _describe(
        self, name: str, entry: CollectionEntry, call: Call
    ) -> CollectionDescription:
        descriptions = await self._gather(
            child.shard.describe(name, call=child.to(call)) for child in self._children.all()
        )
        return replace(
            descriptions[0],
            shards=_by_shard(shard for each in descriptions for shard in each.shards),
        )

    # ---- writes ---------------------------------------------------------------------------------

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Check the whole batch, then write each child's part.

        The rows of children that are missing are errors of the result, unless no child has written
        its part: then the call fails. The same batch again is harmless.
        """
        return await self._with_entry(request.collection, call, self._upsert, request)

    async def _upsert(
        self, request: UpsertRequest, entry: CollectionEntry, call: Call
    ) -> UpsertResult:
        check_ids(entry.config, request.ids)
        check_vectors(entry.config, request.vectors, "vectors")
        if request.metadata is not None and entry.config.filter_fields:
            # It looks into every row: not on the event loop.
            await asyncio.to_thread(declared_fields, entry.config, request.metadata)
        parts = list(self._children.split(request.ids))
        placement = self._children.placement  # a child that is asked may be unknown afterwards
        if len(parts) <= 1:
            child = parts[0][0] if parts else self._children.all()[0]
            return await child.shard.upsert(request, call=child.to(call))
        outcomes = await asyncio.gather(
            *(
                child.shard.upsert(_rows_of(request, indices), call=child.to(call))
                for child, indices in parts
            ),
            return_exceptions=True,
        )
        written = [
            Written(indices, partial(placement.shards_of_child, child.number), each)
            for (child, indices), each in zip(parts, outcomes, strict=True)
        ]
        if not reached_some(written):
            await self._all_done(call, outcomes)
        return joined(written)

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete each child's part of the ids, or what passes a filter on each child.

        A filter's rows are those that pass when a child commits: each child in one step, not all
        of them in the same.
        """
        return await self._with_entry(request.collection, call, self._delete, request)

    async def _delete(
        self, request: DeleteRequest, entry: CollectionEntry, call: Call
    ) -> DeleteResult:
        check_filter(entry.config, request.filter)
        results = await self._all_done(
            call,
            await asyncio.gather(
                *(
                    child.shard.delete(part, call=child.to(call))
                    for child, part in self._parts_of(request, entry.config)
                ),
                return_exceptions=True,
            ),
        )
        if not results:
            return DeleteResult(deleted=0, token=Token(incarnation=entry.incarnation))
        return DeleteResult(
            deleted=sum(result.deleted for result in results),
            token=joined_token([result.token for result in results]),
        )

    # ---- reads ----------------------------------------------------------------------------------

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of the ids that exist, in the order asked, or what passes a filter."""
        return await self._with_entry(request.collection, call, self._get, request)

    async def _get(self, request: GetRequest, entry: CollectionEntry, call: Call) -> Rows:
        check_filter(entry.config, request.filter)
        pages = await self._gather(
            child.shard.get(part, call=child.to(call))
            for child, part in self._parts_of(request, entry.config)
        )
        if request.ids is None:
            return _joined_rows(pages, entry.config)
        rows = _joined_rows(pages, entry.config)
        return _reordered(rows, np.argsort(_places_of(rows.ids, request.ids)))

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        return await self._with_entry(request.collection, call, self._count, request)

    async def _count(self, request: CountRequest, entry: CollectionEntry, call: Call) -> int:
        check_filter(entry.config, request.filter)
        counts = await self._gather(
            child.shard.count(part, call=child.to(call))
            for child, part in self._parts_of(request, entry.config)
        )
        return sum(counts)

    def _parts_of(
        self, request: SelectionT, config: CollectionConfig
    ) -> list[tuple[Child, SelectionT]]:
        """Return whom to ask for which part of the ids; without ids, everybody for the whole."""
        ids = request.ids
        if ids is None:
            return [(child, request) for child in self._children.all()]
        check_ids(config, ids)
        return [
            (child, replace(request, ids=ids[indices]))
            for child, indices in self._children.split(ids)
        ]

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page: the children one after the other, each in its own order."""
        return await self._with_entry(request.collection, call, self._list_rows, request)

    async def _list_rows(self, request: ListRequest, entry: CollectionEntry, call: Call) -> Rows:
        check_filter(entry.config, request.filter)
        children = self._children.in_order()
        first = self._place_of_cursor(request.cursor, children, entry)
        wanted = request.page_size or PAGE_SIZE_DEFAULT
        cursor = request.cursor
        pages: list[Rows] = []
        for child in children[first:]:
            part = replace(request, cursor=cursor, page_size=wanted)
            page = await child.shard.list_rows(part, call=child.to(call))
            pages.append(page)
            wanted -= len(page.ids)
            cursor = page.cursor
            if cursor is not None:
                break
            if wanted == 0 and child is not children[-1]:
                after = children[children.index(child) + 1]
                cursor = Cursor(incarnation=entry.incarnation, shard=after.first_shard, row=0)
                break
        return replace(_joined_rows(pages, entry.config), cursor=cursor)

    def _place_of_cursor(
        self, cursor: Cursor | None, children: Sequence[Child], entry: CollectionEntry
    ) -> int:
        if cursor is None:
            return 0
        number = self._children.placement.child_of_shard(cursor.shard)
        if number is None or cursor.incarnation != entry.incarnation:
            raise InvalidParameter("belongs to another collection", field="cursor")
        return children.index(self._children[number])

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Ask every child, merge what they answer, and say what the answer covers.

        Raises
        ------
        ShardUnavailable
            If less than `min_coverage` of the slots answered; it names the missing shards.
        DeadlineExceeded
            If the deadline passed on every child.
        """
        return await self._with_entry(request.collection, call, self._search, request)

    async def _search(
        self, request: SearchRequest, entry: CollectionEntry, call: Call
    ) -> SearchResult:
        check_vectors(entry.config, request.queries, "queries")
        check_filter(entry.config, request.filter)
        kind = (call.incarnation, call.placement, _patience(call, self._children.clock()))
        run = partial(self._fan_out, entry.config)
        return await self._searches.search(request, call, run, kind)

    async def _fan_out(
        self,
        config: CollectionConfig,
        request: SearchRequest,
        call: Call,
        next_one: Callable[[], None],
    ) -> SearchResult:
        """Ask every child; `_Turn` says when the next search of this kind may start."""
        children, placement = self._children.known(), self._children.placement
        unknown = self._children.missing()
        if unknown is not None and (request.min_coverage == 1.0 or not children):
            raise unknown
        part = request
        if request.min_coverage < 1.0:
            # The whole of the answer is held to it, not each child's part.
            part = replace(request, min_coverage=0.0)

        # Nobody joins one that is full: a child that has answered has nothing to wait for.
        full = len(request.queries) >= JOINED_QUERIES
        turn = _Turn(1 if full else len(children), next_one)

        async def ask(child: Child) -> SearchResult:
            answer = await child.shard.search(part, call=child.to(call))
            # Not when it fails: who is missing fails at once, and nobody would be waited for.
            turn.answered()
            return answer

        outcomes = await asyncio.gather(*map(ask, children), return_exceptions=True)
        expired = [outcome for outcome in outcomes if isinstance(outcome, DeadlineExceeded)]
        if expired and len(expired) == len(outcomes):
            raise expired[0]  # nobody is missing: the caller's time is over
        answers: list[SearchResult] = []
        receipts: dict[int, ShardReceipt] = {}
        answered_slots = 0.0
        for child, outcome in zip(children, outcomes, strict=True):
            if isinstance(outcome, SearchResult):
                answers.append(outcome)
                for shard in outcome.receipt.shards:
                    # A router below may name shards as missing that others lead to.
                    if placement.child_of_shard(shard.shard) in (child.number, None):
                        receipts[shard.shard] = shard
                answered_slots += outcome.receipt.coverage * placement.slots_of_child[child.number]
            elif isinstance(outcome, ShardUnavailable | DeadlineExceeded):
                receipts |= _missing(placement.shards_of_child(child.number), outcome)
            else:
                raise outcome
        if unknown is not None or not placement.partial:
            reason = unknown or ShardUnavailable("no child leads to it")
            receipts = _missing(placement.missing_shards, reason) | receipts
        # Asked by a router above, it answers for what that knows to be here; else for all that is.
        all_known = unknown is None or call.placement
        slots = placement.slots_total if all_known else SLOTS_TOTAL
        coverage = float(answered_slots / slots)
        receipt = Receipt(shards=_by_shard(receipts.values()), coverage=coverage)
        _require_coverage(receipt, request.min_coverage)
        if sum(len(answer.hits.scores) for answer in answers) < MERGED_AT_ONCE:
            return _merged(answers, receipt, request.k, config)
        return await asyncio.to_thread(_merged, answers, receipt, request.k, config)

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Ask the child that owns the id, then all others how many of their rows rank before it.

        A row that is written meanwhile may be counted or not. There is no explanation without all
        children: its rank would be wrong.

        Raises
        ------
        ShardUnavailable
            If a child is missing; it is named.
        """
        return await self._with_entry(request.collection, call, self._explain, request)

    async def _explain(
        self, request: ExplainRequest, entry: CollectionEntry, call: Call
    ) -> Explanation:
        check_ids(entry.config, request.id, "id")
        check_vectors(entry.config, request.query, "query")
        check_filter(entry.config, request.filter)
        others = self._children.all()
        if request.score is not None:
            found = Explanation(score=request.score, exact_rank=1)
        else:
            [(owner, _)] = self._children.split(request.id)
            found = await owner.shard.explain(request, call=owner.to(call))
            if not found.exists:
                return found
            others = [child for child in others if child is not owner]
        ranked = replace(request, filter=None, score=found.score)
        answers = await self._gather(
            child.shard.explain(ranked, call=child.to(call)) for child in others
        )
        before = sum(answer.exact_rank - 1 for answer in answers)
        return replace(found, exact_rank=found.exact_rank + before)

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train on every child."""
        return await self._with_entry(request.collection, call, self._train, request)

    async def _train(
        self, request: TrainRequest, entry: CollectionEntry, call: Call
    ) -> Sequence[ShardDescription]:
        results = await self._gather(
            child.shard.train(request, call=child.to(call)) for child in self._children.all()
        )
        return _by_shard(shard for result in results for shard in result)

    async def close(self) -> None:
        """Close the children."""
        await self._children.close()

    # ---- common ---------------------------------------------------------------------------------

    async def _with_entry(
        self,
        name: str,
        call: Call,
        ask: Callable[[Request, CollectionEntry, Call], Coroutine[Any, Any, T]],
        request: Request,
    ) -> T:
        """Ask with what is remembered of the collection; look again once if that is outdated."""

        async def ask_with(entry: CollectionEntry) -> T:
            entry_call = replace(call, incarnation=entry.incarnation)
            return await self._with_placement(call, lambda: ask(request, entry, entry_call))

        remembered = self._entries.get(name)
        if remembered is not None and call.incarnation not in ("", remembered.incarnation):
            remembered = None
        entry = remembered or await self._look_up(name, call)
        try:
            return await ask_with(entry)
        except (CollectionNotFound, IncarnationMismatch, InvalidRequest) as error:
            self._entries.pop(name, None)
            if remembered is None or call.incarnation:
                raise
            refused = error
        entry = await self._look_up(name, call)
        if entry == remembered and isinstance(refused, InvalidRequest):
            raise refused
        return await ask_with(entry)

    async def _look_up(self, name: str, call: Call) -> CollectionEntry:
        entry = await self._with_placement(call, lambda: self._first_entry(name, call))
        self._entries[name] = entry
        return entry

    async def _first_entry(self, name: str, call: Call) -> CollectionEntry:
        """Ask all children at once, and take the word of the first that knows the collection.

        The others will say if it is another incarnation. One that is missing may be the only one
        that knows it, so that without it nobody can say that there is none.
        """
        any_incarnation = replace(call, incarnation="")
        asked = [
            asyncio.ensure_future(child.shard.list_collections(call=child.to(any_incarnation)))
            for child in self._children.known()
        ]
        failure: VectorShardError | None = self._children.missing()
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    entries = await answer
                except (ShardUnavailable, DeadlineExceeded) as error:
                    failure = failure or error
                    continue
                for entry in entries:
                    if entry.config.name != name:
                        continue
                    if call.incarnation in ("", entry.incarnation):
                        return entry
                    failure = IncarnationMismatch(f"collection {name} was dropped and created anew")
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise failure or CollectionNotFound(f"no collection {name}; create it first")

    async def _with_placement(self, call: Call, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask; when a child is not who it is taken for, learn who they are and ask once more.

        Also when nothing new is learned then: another call may have learned it meanwhile.
        """
        try:
            return await ask()
        except PlacementMismatch:
            await self._children.learn(call)
        try:
            return await ask()
        except PlacementMismatch as error:
            if isinstance(self._children.missing(), PlacementMismatch):
                raise
            raise ShardUnavailable(f"the placement is changing: {error}") from error

    @staticmethod
    async def _gather(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Return all answers; raise the first error once nothing runs any more.

        A part that went on alone after the call has failed could undo what is written next.
        """
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    async def _all_done(self, call: Call, outcomes: Sequence[T | BaseException]) -> list[T]:
        """Return the answers of a write's parts; repeat nothing when some may be done.

        Repeated here, what others have written meanwhile would be overwritten, and what is deleted
        would not be counted. Whoever wrote knows whether that matters.
        """
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        refusals = [error for error in errors if isinstance(error, _NOTHING_DONE)]
        if refusals and len(refusals) < len(outcomes):
            await self._children.learn(call)
            reason = next((error for error in errors if error not in refusals), refusals[0])
            raise ShardUnavailable(f"perhaps written in part, write again: {reason}") from reason
        for error in errors:
            raise error
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


class _Turn:
    """Lets the next search start once so many children have answered this one, or those that lag
    have had as long again as the first needed.

    When all have answered, more callers wait, and go as one; but nobody waits for a child that is
    slower than the others by more than that.
    """

    def __init__(self, children: int, next_one: Callable[[], None]) -> None:
        self._unanswered = children
        self._next_one = next_one
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._lagging: asyncio.TimerHandle | None = None

    def answered(self) -> None:
        """Note that a child has answered."""
        self._unanswered -= 1
        if self._unanswered <= 0:
            if self._lagging is not None:
                self._lagging.cancel()
            self._next_one()
        elif self._lagging is None:
            self._lagging = self._loop.call_later(self._loop.time() - self._begun, self._next_one)


def _rows_of(request: UpsertRequest, indices: Int64Array) -> UpsertRequest:
    metadata = request.metadata
    return replace(
        request,
        ids=request.ids[indices],
        vectors=request.vectors[indices],
        metadata=None if metadata is None else [metadata[row] for row in indices.tolist()],
    )


def _by_shard(parts: Iterable[Numbered]) -> tuple[Numbered, ...]:
    return tuple(sorted(parts, key=lambda part: part.shard))


def _no_ids(config: CollectionConfig) -> IdArray:
    return np.zeros(0, dtype=object if config.id_type is IdType.STRING else np.int64)


def _joined_rows(pages: Sequence[Rows], config: CollectionConfig) -> Rows:
    """Put pages one after the other, without a cursor."""
    return Rows(
        ids=np.concatenate([_no_ids(config), *(page.ids for page in pages)]),
        vectors=_joined_vectors([page.vectors for page in pages], config.dim),
        metadata=_joined_metadata([page.metadata for page in pages]),
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


def _places_of(found: IdArray, ids: IdArray) -> Int64Array:
    """Return at which index (found,) of `ids` each id is that was found."""
    if ids.dtype == np.object_:
        place = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        return np.fromiter(map(place.__getitem__, found.tolist()), np.int64, len(found))
    ascending = np.argsort(ids)
    places: Int64Array = ascending[np.searchsorted(ids, found, sorter=ascending)]
    return places


def _reordered(rows: Rows, order: Int64Array) -> Rows:
    return Rows(
        ids=rows.ids[order],
        vectors=None if rows.vectors is None else rows.vectors[order],
        metadata=None
        if rows.metadata is None
        else [rows.metadata[position] for position in order.tolist()],
    )


def _missing(shards: Iterable[int], reason: VectorShardError) -> dict[int, ShardReceipt]:
    why = f"{type(reason).__name__}: {reason}"
    return {shard: ShardReceipt(shard=shard, missing_reason=why) for shard in shards}


def _patience(call: Call, now: float) -> int | None:
    """Return a number that is alike for calls that have about as much time left.

    Joined, they go by the first deadline of all, which is at most a fifth less than each one's own.
    """
    if call.deadline is None:
        return None
    return math.floor(math.log(max(call.deadline - now, 1e-3), PATIENCE_STEP))


def _require_coverage(receipt: Receipt, min_coverage: float) -> None:
    if receipt.coverage >= min_coverage - 1e-6 and receipt.shards_answered:
        return
    missing = "; ".join(
        f"shard {shard.shard}: {shard.missing_reason}"
        for shard in receipt.shards
        if shard.missing_reason
    )
    raise ShardUnavailable(
        f"coverage is {receipt.coverage:.3f}, {min_coverage:.3f} is asked for; missing: {missing}"
    )


def _merged(
    answers: Sequence[SearchResult], receipt: Receipt, k: int, config: CollectionConfig
) -> SearchResult:
    """Merge the children's hits and what they included of them."""
    if len(answers) == 1:
        return replace(answers[0], receipt=receipt)
    hits, order = merge_top_k([answer.hits for answer in answers], k, config.metric)
    included = Rows(
        ids=np.concatenate([answer.hits.ids for answer in answers]),
        vectors=_joined_vectors([answer.vectors for answer in answers], config.dim),
        metadata=_joined_metadata([answer.metadata for answer in answers]),
    )
    chosen = _reordered(included, order)
    return SearchResult(
        hits=hits, receipt=receipt, vectors=chosen.vectors, metadata=chosen.metadata
    )
