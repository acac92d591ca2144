"""The router: a shard whose rows live in downstream shards.

It forwards every call to the shards that it concerns, and combines their answers. It has no state
that they do not have: what it remembers of a collection and of the placement travels with every
call as incarnation and fingerprint, and they check both.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from vectorshard.router.fan_out.absence import (
    joined_description,
    refusal_of,
    refused_parts,
    without,
)
from vectorshard.router.fan_out.catalogue import Catalogue
from vectorshard.router.fan_out.children import Child, Children, all_answers
from vectorshard.router.fan_out.copy_calls import CopyCalls
from vectorshard.router.fan_out.examination import (
    EXCHANGE_TIMEOUT_S,
    WITNESS_INTERVAL_S,
    Examination,
)
from vectorshard.router.fan_out.merge import by_shard, joined_rows, reordered
from vectorshard.router.fan_out.partial_write import Written, joined, joined_token, reached_some
from vectorshard.router.fan_out.search import SearchFanOut
from vectorshard.shard.config import PAGE_SIZE_DEFAULT
from vectorshard.shard.descriptions import (
    CollectionDescription,
    ExplainRequest,
    Explanation,
    ShardDescription,
    Topology,
)
from vectorshard.shard.engine.validation import check_filter, check_ids, check_vectors
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    InvalidParameter,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    Cursor,
    DeleteRequest,
    DeleteResult,
    GetRequest,
    IdArray,
    Int64Array,
    ListRequest,
    Role,
    Rows,
    SearchRequest,
    SearchResult,
    Token,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
)

NOTHING_DONE: Final = (CollectionNotFound, IncarnationMismatch, Overloaded, PlacementMismatch)
"""Errors that prove that a shard has written nothing. After any other it may have."""

T = TypeVar("T")
PartT = TypeVar("PartT")
SelectionT = TypeVar("SelectionT", DeleteRequest, GetRequest, CountRequest)


def new_incarnation() -> str:
    """Return a name that no collection has had."""
    return uuid.uuid4().hex


class Router(CopyCalls):
    """Collections whose rows live in several downstream shards. Use `connect`."""

    def __init__(
        self,
        children: Children,
        *,
        new_incarnation: Callable[[], str] = new_incarnation,
        examination: Examination | None = None,
    ) -> None:
        super().__init__(children, examination or Examination(children))
        self._catalogue = Catalogue(children, self._examination, new_incarnation)
        self._searches = SearchFanOut(children, self._examination)

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
        witness_interval_s: float = WITNESS_INTERVAL_S,
    ) -> Router:
        """Learn which slots the downstream shards own, and cross-examine them. Some may be missing.

        Raises PlacementMismatch if a shard that answers contradicts another one, or the placement.

        Parameters
        ----------
        shards
            Leaf shards in the order of their numbers, or routers in any order.
        role
            ROUTER, or EMBEDDED when the shards live in this process.
        names
            Each of them in errors and in the log, such as its address; or empty.
        partial
            Whether they may be only a part of the placement, as below another router.
        sleep, clock
            Wait some seconds before a missing shard is asked again; seconds, as in a deadline.
        new_incarnation
            Names the incarnation of a new collection.
        witness_interval_s
            Time between two examinations of the shards.
        """
        children = Children(shards, role, names=names, partial=partial, sleep=sleep, clock=clock)
        await children.connect()
        examination = Examination(children, interval_s=witness_interval_s, sleep=sleep)
        await examination.examined(Call(deadline=clock() + EXCHANGE_TIMEOUT_S))
        return cls(children, new_incarnation=new_incarnation, examination=examination)

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Return the leaf shards that are reached through this router."""
        return self._children.topology

    async def close(self) -> None:
        """Close the downstream shards."""
        await self._examination.close()
        await self._children.close()

    # ---- collections ----------------------------------------------------------------------------

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection on every shard, or complete one that only some have."""
        return await self._catalogue.create_collection(config, call)

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop the present collection of that name on every shard that has it."""
        await self._catalogue.drop_collection(name, call)

    async def update_collection(
        self, request: UpdateRequest, *, call: Call = NO_LIMIT
    ) -> CollectionEntry:
        """Change a collection's target recall on every shard.

        Every shard resolves it for searches that state no effort, so another router may remember
        the old target without effect.
        """
        return await self._catalogue.update_collection(request, call)

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections of all shards, by name."""
        return await self._catalogue.list_collections(call)

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection over all leaf shards.

        Raises IncarnationMismatch if they have different collections of that name: two ledgers have
        no sum.
        """
        return await self._catalogue.ask(name, call, self._describe, name)

    async def _describe(
        self, name: str, entry: CollectionEntry, call: Call
    ) -> CollectionDescription:
        absent = self._examination.absent(entry.incarnation)
        asked = [
            child for child in self._children.all() if not self._children.is_absent(child, absent)
        ]
        outcomes = await asyncio.gather(
            *(child.shard.describe(name, call=child.to(call)) for child in asked),
            return_exceptions=True,
        )
        shards_of = self._children.placement.shards_of_child
        leaves = [shards_of(child.number) for child in asked]
        return joined_description(list(zip(leaves, outcomes, strict=True)), absent)

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train on every shard."""
        return await self._catalogue.ask(request.collection, call, self._train, request)

    async def _train(
        self, request: TrainRequest, entry: CollectionEntry, call: Call
    ) -> Sequence[ShardDescription]:
        self._catalogue.require_whole(entry)
        results = await all_answers(
            child.shard.train(request, call=child.to(call)) for child in self._children.all()
        )
        return by_shard(shard for result in results for shard in result)

    # ---- writes ---------------------------------------------------------------------------------

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Validate the whole batch, then write each shard's part.

        Rows of missing shards are errors of the result. If no shard has written its part, the call
        fails. Repeating the same batch is harmless.
        """
        result = await self._catalogue.ask(request.collection, call, self._upsert, request)
        self._examination.acknowledged(result.token)
        return result

    async def _upsert(
        self, request: UpsertRequest, entry: CollectionEntry, call: Call
    ) -> UpsertResult:
        check_ids(entry.config, request.ids)
        check_vectors(entry.config, request.vectors, "vectors")
        if request.metadata is not None and entry.config.filter_fields:
            # It reads every row: too long for the event loop.
            await asyncio.to_thread(declared_fields, entry.config, request.metadata)
        await self._catalogue.require_settled(entry, call)
        absent = self._examination.absent(entry.incarnation)
        refused = list(refused_parts(self._children.placement, request.ids, absent))
        parts = list(self._children.split(request.ids))
        if refused:
            parts = without(parts, refused)
        placement = self._children.placement  # a child may become unknown during its call
        if len(parts) <= 1 and not refused:
            child = parts[0][0] if parts else self._children.all()[0]
            return await child.shard.upsert(request, call=child.to(call))

        async def write(child: Child, indices: Int64Array) -> UpsertResult:
            return await child.shard.upsert(_rows_of(request, indices), call=child.to(call))

        outcomes = await self._outcomes(entry, call, write, parts)
        written = [
            Written(indices, partial(placement.shards_of_child, child.number), each)
            for (child, indices), each in zip(parts, outcomes, strict=True)
        ] + refused
        if not reached_some(written):
            await self._all_done(call, [part.outcome for part in written])
        return joined(written)

    async def _outcomes(
        self,
        entry: CollectionEntry,
        call: Call,
        write: Callable[[Child, PartT], Coroutine[Any, Any, T]],
        parts: Sequence[tuple[Child, PartT]],
    ) -> list[T | BaseException]:
        """Return the outcomes of the parts of a write.

        Those that a shard refuses because it was started again are repeated once: they are not
        written, and the same shards own their rows.
        """
        before = self._children.placement
        outcomes = await asyncio.gather(*(write(*part) for part in parts), return_exceptions=True)
        refused = [isinstance(outcome, PlacementMismatch) for outcome in outcomes]
        if not any(refused) or all(refused):
            return outcomes
        await self._children.learn(call)
        await self._examination.examined(call)
        if not self._children.placement.has_owners_of(before):
            return outcomes
        absent = self._examination.absent(entry.incarnation)

        async def write_again(child: Child, part: PartT) -> T:
            self._children.require_present(child, absent)
            return await write(child, part)

        again = [part for part, is_refused in zip(parts, refused, strict=True) if is_refused]
        repeated = iter(
            await asyncio.gather(*(write_again(*part) for part in again), return_exceptions=True)
        )
        return [
            next(repeated) if is_refused else outcome
            for outcome, is_refused in zip(outcomes, refused, strict=True)
        ]

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete by ids, or the rows that pass a filter.

        Each shard applies a filter in one step, to the rows that pass when it commits. The shards
        do not commit at the same moment.
        """
        result = await self._catalogue.ask(request.collection, call, self._delete, request)
        self._examination.acknowledged(result.token)
        return result

    async def _delete(
        self, request: DeleteRequest, entry: CollectionEntry, call: Call
    ) -> DeleteResult:
        check_filter(entry.config, request.filter)
        parts = self._parts_of(request, entry)

        async def delete(child: Child, part: DeleteRequest) -> DeleteResult:
            return await child.shard.delete(part, call=child.to(call))

        outcomes = await self._outcomes(entry, call, delete, parts)
        results = await self._all_done(call, outcomes)
        if not results:
            return DeleteResult(deleted=0, token=Token(incarnation=entry.incarnation))
        return DeleteResult(
            deleted=sum(result.deleted for result in results),
            token=joined_token([result.token for result in results]),
        )

    async def _all_done(self, call: Call, outcomes: Sequence[T | BaseException]) -> list[T]:
        """Return the answers of a write's parts, or raise the first error.

        A write that some shards may have done is not repeated here: it would overwrite what other
        callers have written since, and would not count the rows that it deleted the first time.
        Only the caller can decide whether that matters.
        """
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        full = [error for error in errors if isinstance(error, Overloaded)]
        if full and len(full) == len(errors) < len(outcomes):
            overloaded = Overloaded(f"the write may be incomplete, repeat it: {full[0]}")
            overloaded.retry_delay_s = full[0].retry_delay_s
            raise overloaded from full[0]
        refusals = [error for error in errors if isinstance(error, NOTHING_DONE)]
        if refusals and len(refusals) < len(outcomes):
            await self._children.learn(call)
            reason = next((error for error in errors if error not in refusals), refusals[0])
            raise ShardUnavailable(f"the write may be incomplete, repeat it: {reason}") from reason
        for error in errors:
            raise error
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    # ---- reads ----------------------------------------------------------------------------------

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of existing ids in the order of the request, or those of a filter."""
        return await self._catalogue.ask(request.collection, call, self._get, request)

    async def _get(self, request: GetRequest, entry: CollectionEntry, call: Call) -> Rows:
        check_filter(entry.config, request.filter)
        pages = await all_answers(
            child.shard.get(part, call=child.to(call))
            for child, part in self._parts_of(request, entry)
        )
        rows = joined_rows(pages, entry.config)
        if request.ids is None:
            return rows
        return reordered(rows, np.argsort(_places_of(rows.ids, request.ids)))

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        return await self._catalogue.ask(request.collection, call, self._count, request)

    async def _count(self, request: CountRequest, entry: CollectionEntry, call: Call) -> int:
        check_filter(entry.config, request.filter)
        counts = await all_answers(
            child.shard.count(part, call=child.to(call))
            for child, part in self._parts_of(request, entry)
        )
        return sum(counts)

    def _parts_of(
        self, request: SelectionT, entry: CollectionEntry
    ) -> list[tuple[Child, SelectionT]]:
        """Return each child with its part of the ids; without ids, all with the whole request.

        Raises what is missing of the collection, if it is needed.
        """
        ids = request.ids
        if ids is None:
            self._catalogue.require_whole(entry)
            return [(child, request) for child in self._children.all()]
        check_ids(entry.config, ids)
        if absent := self._examination.absent(entry.incarnation):
            needed = np.unique(self._children.placement.shards_of(ids)).tolist()
            if missing := {shard: absent[shard] for shard in needed if shard in absent}:
                raise refusal_of(missing)
        return [
            (child, replace(request, ids=ids[indices]))
            for child, indices in self._children.split(ids)
        ]

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page: one shard after the other, each in its own order."""
        return await self._catalogue.ask(request.collection, call, self._list_rows, request)

    async def _list_rows(self, request: ListRequest, entry: CollectionEntry, call: Call) -> Rows:
        check_filter(entry.config, request.filter)
        children = self._children.in_order()
        first = self._place_of_cursor(request.cursor, children, entry)
        wanted = request.page_size or PAGE_SIZE_DEFAULT
        cursor = request.cursor
        pages: list[Rows] = []
        absent = self._examination.absent(entry.incarnation)
        for child in children[first:]:
            self._children.require_present(child, absent)
            part = replace(request, cursor=cursor, page_size=wanted)
            page = await child.shard.list_rows(part, call=child.to(call))
            pages.append(page)
            wanted -= len(page.ids) + (0 if page.damaged is None else len(page.damaged))
            cursor = page.cursor
            if cursor is not None:
                break
            if wanted == 0 and child is not children[-1]:
                after = children[children.index(child) + 1]
                cursor = Cursor(incarnation=entry.incarnation, shard=after.first_shard, row=0)
                break
        return replace(joined_rows(pages, entry.config), cursor=cursor)

    def _place_of_cursor(
        self, cursor: Cursor | None, children: Sequence[Child], entry: CollectionEntry
    ) -> int:
        if cursor is None:
            return 0
        number = self._children.placement.child_of_shard(cursor.shard)
        if number is None or cursor.incarnation != entry.incarnation:
            raise InvalidParameter("the cursor is from another collection", field="cursor")
        return children.index(self._children[number])

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Search on every shard, merge the answers, and report their coverage.

        Raises ShardUnavailable, with the missing shards, if less than `min_coverage` of the slots
        answered; ShardMissing, if waiting does not help; and DeadlineExceeded if the deadline
        passed on every shard.
        """
        return await self._catalogue.ask(
            request.collection,
            call,
            self._searches.search,
            request,
            strict=request.min_coverage == 1.0,
        )

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Ask the owner of the id, then all other shards how many of their rows rank before it.

        A row that is written at the same time may be counted or not. A missing shard is an error,
        ShardUnavailable: without it the rank would be wrong.
        """
        return await self._catalogue.ask(request.collection, call, self._explain, request)

    async def _explain(
        self, request: ExplainRequest, entry: CollectionEntry, call: Call
    ) -> Explanation:
        check_ids(entry.config, request.id, "id")
        check_vectors(entry.config, request.query, "query")
        check_filter(entry.config, request.filter)
        self._catalogue.require_whole(entry)
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
        answers = await all_answers(
            child.shard.explain(ranked, call=child.to(call)) for child in others
        )
        before = sum(answer.exact_rank - 1 for answer in answers)
        return replace(found, exact_rank=found.exact_rank + before)


def _rows_of(request: UpsertRequest, indices: Int64Array) -> UpsertRequest:
    metadata = request.metadata
    return replace(
        request,
        ids=request.ids[indices],
        vectors=request.vectors[indices],
        metadata=None if metadata is None else [metadata[row] for row in indices.tolist()],
    )


def _places_of(found: IdArray, ids: IdArray) -> Int64Array:
    """Return the index in `ids` of each id of `found`, (found,)."""
    if ids.dtype == np.object_:
        place = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        return np.fromiter(map(place.__getitem__, found.tolist()), np.int64, len(found))
    ascending = np.argsort(ids)
    places: Int64Array = ascending[np.searchsorted(ids, found, sorter=ascending)]
    return places
