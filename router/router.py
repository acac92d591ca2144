"""The router: a shard whose rows live elsewhere.

It places rows, fans every call out to the children that it concerns, and combines the answers. It
keeps no state that its children do not have: what it remembers of a collection is checked by them
against the incarnation that travels with every call.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from router.merge import merge_top_k
from router.placement import Placement
from shard.admission import check_ids, check_vectors
from shard.config import PAGE_SIZE_DEFAULT
from shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    IncarnationMismatch,
    InvalidParameter,
    InvalidRequest,
    ShardUnavailable,
    VectorShardError,
)
from shard.protocol import Shard
from shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionDescription,
    CollectionEntry,
    CountRequest,
    Cursor,
    DeleteRequest,
    DeleteResult,
    Float32Array,
    GetRequest,
    IdArray,
    IdType,
    Int64Array,
    ListRequest,
    Receipt,
    Role,
    RowError,
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

T = TypeVar("T")
Request = TypeVar("Request")
Numbered = TypeVar("Numbered", ShardReceipt, ShardDescription)


class Router:
    """Collections whose rows live in several children. Use `connect`.

    Parameters
    ----------
    role
        ROUTER, or EMBEDDED when the children live in this process.
    """

    def __init__(self, children: Sequence[Shard], placement: Placement, role: Role) -> None:
        self._children = tuple(children)
        self._placement = placement
        self._role = role
        self._entries: dict[str, CollectionEntry] = {}

    @classmethod
    async def connect(cls, children: Sequence[Shard], role: Role = Role.ROUTER) -> Router:
        """Learn from the children which slots they own.

        Raises
        ------
        PlacementMismatch
            If they contradict each other.
        """
        topologies = await asyncio.gather(*(child.topology() for child in children))
        return cls(children, Placement(topologies), role)

    async def topology(self) -> Topology:
        """Say which leaf shards are reached through here."""
        return Topology(
            role=self._role,
            cluster=self._placement.cluster,
            placement_epoch=self._placement.epoch,
            shards=self._placement.shards,
        )

    # ---- collections ----------------------------------------------------------------------------

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection on every child, or complete one that reached only some.

        The first child decides when two callers create the same name at once; who was slower looks
        again.
        """
        try:
            return await self._create(config, call)
        except IncarnationMismatch:
            if call.incarnation:
                raise
            return await self._create(config, call)

    async def _create(self, config: CollectionConfig, call: Call) -> tuple[CollectionEntry, bool]:
        known = await self._known_incarnations(config.name, call)
        for entry in known:
            if entry.config != config:
                raise CollectionExists(
                    f"collection {config.name} exists with another configuration: {entry.config}"
                )
        incarnations = {entry.incarnation for entry in known}
        if call.incarnation:
            incarnations.add(call.incarnation)
        if len(incarnations) > 1:
            raise IncarnationMismatch(
                f"collection {config.name} was dropped on some shards only; drop it once more"
            )
        wanted = incarnations.pop() if incarnations else uuid.uuid4().hex
        call = replace(call, incarnation=wanted)
        first_entry, first_new = await self._children[0].create_collection(config, call=call)
        others = await self._gather(
            child.create_collection(config, call=call) for child in self._children[1:]
        )
        self._entries[config.name] = first_entry
        return first_entry, first_new or any(new for _, new in others)

    async def _known_incarnations(self, name: str, call: Call) -> list[CollectionEntry]:
        listings = await self._gather(
            child.list_collections(call=replace(call, incarnation="")) for child in self._children
        )
        return [entry for listing in listings for entry in listing if entry.config.name == name]

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection on every child that has it."""
        self._entries.pop(name, None)
        outcomes = await asyncio.gather(
            *(child.drop_collection(name, call=call) for child in self._children),
            return_exceptions=True,
        )
        absent = [outcome for outcome in outcomes if isinstance(outcome, CollectionNotFound)]
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, CollectionNotFound):
                raise outcome
        if len(absent) == len(outcomes):
            raise absent[0]

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections that any child knows, by name."""
        listings = await self._gather(child.list_collections(call=call) for child in self._children)
        entries = {entry.config.name: entry for listing in listings for entry in listing}
        return [entries[name] for name in sorted(entries)]

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection over all leaf shards."""
        descriptions = await self._gather(
            child.describe(name, call=call) for child in self._children
        )
        return replace(
            descriptions[0],
            shards=_by_shard(shard for each in descriptions for shard in each.shards),
        )

    # ---- writes ---------------------------------------------------------------------------------

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Check the whole batch, then write each child's part.

        When a child fails, the others may have written theirs; the same batch again is harmless.
        """
        return await self._with_entry(request.collection, call, self._upsert, request)

    async def _upsert(
        self, request: UpsertRequest, entry: CollectionEntry, call: Call
    ) -> UpsertResult:
        check_ids(entry.config, request.ids)
        check_vectors(entry.config, request.vectors, "vectors")
        parts = list(self._placement.split(request.ids))
        if len(parts) <= 1:
            child = self._children[parts[0][0] if parts else 0]
            return await child.upsert(request, call=call)
        results = await self._gather(
            self._children[child].upsert(_rows_of(request, indices), call=call)
            for child, indices in parts
        )
        errors = [
            RowError(int(indices[error.row]), error.code, error.message)
            for (_, indices), result in zip(parts, results, strict=True)
            for error in result.errors
        ]
        return UpsertResult(
            accepted=sum(result.accepted for result in results),
            errors=tuple(sorted(errors, key=lambda error: error.row)),
            token=_joined_token([result.token for result in results]),
        )

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete each child's part of the ids."""
        return await self._with_entry(request.collection, call, self._delete, request)

    async def _delete(
        self, request: DeleteRequest, entry: CollectionEntry, call: Call
    ) -> DeleteResult:
        check_ids(entry.config, request.ids)
        results = await self._gather(
            self._children[child].delete(replace(request, ids=request.ids[indices]), call=call)
            for child, indices in self._placement.split(request.ids)
        )
        if not results:
            return DeleteResult(deleted=0, token=Token(incarnation=entry.incarnation))
        return DeleteResult(
            deleted=sum(result.deleted for result in results),
            token=_joined_token([result.token for result in results]),
        )

    # ---- reads ----------------------------------------------------------------------------------

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of the ids that exist, in the order asked."""
        return await self._with_entry(request.collection, call, self._get, request)

    async def _get(self, request: GetRequest, entry: CollectionEntry, call: Call) -> Rows:
        check_ids(entry.config, request.ids)
        pages = await self._gather(
            self._children[child].get(replace(request, ids=request.ids[indices]), call=call)
            for child, indices in self._placement.split(request.ids)
        )
        place = {id_: index for index, id_ in enumerate(request.ids.tolist())}
        rows = _joined_rows(pages, entry.config)
        order = np.argsort([place[id_] for id_ in rows.ids.tolist()], kind="stable")
        return _reordered(rows, order)

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        return await self._with_entry(request.collection, call, self._count, request)

    async def _count(self, request: CountRequest, entry: CollectionEntry, call: Call) -> int:
        if request.ids is None:
            counts = await self._gather(child.count(request, call=call) for child in self._children)
        else:
            ids = request.ids
            check_ids(entry.config, ids)
            counts = await self._gather(
                self._children[child].count(replace(request, ids=ids[indices]), call=call)
                for child, indices in self._placement.split(ids)
            )
        return sum(counts)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page: the children one after the other, each in its own order."""
        return await self._with_entry(request.collection, call, self._list_rows, request)

    async def _list_rows(self, request: ListRequest, entry: CollectionEntry, call: Call) -> Rows:
        child = self._child_of_cursor(request.cursor, entry)
        wanted = request.page_size or PAGE_SIZE_DEFAULT
        cursor = request.cursor if child is not None else None
        pages: list[Rows] = []
        for position in range(child or 0, len(self._children)):
            part = replace(request, cursor=cursor, page_size=wanted)
            page = await self._children[position].list_rows(part, call=call)
            pages.append(page)
            wanted -= len(page.ids)
            cursor = page.cursor
            if cursor is not None:
                break
            if wanted == 0 and position + 1 < len(self._children):
                cursor = self._first_cursor(position + 1, entry)
                break
        return replace(_joined_rows(pages, entry.config), cursor=cursor)

    def _child_of_cursor(self, cursor: Cursor | None, entry: CollectionEntry) -> int | None:
        if cursor is None:
            return None
        child = self._placement.child_of_shard(cursor.shard)
        if child is None or cursor.incarnation != entry.incarnation:
            raise InvalidParameter("belongs to another collection", field="cursor")
        return child

    def _first_cursor(self, child: int, entry: CollectionEntry) -> Cursor:
        shards = (s.shard for s in self._placement.shards)
        first = next(s for s in shards if self._placement.child_of_shard(s) == child)
        return Cursor(incarnation=entry.incarnation, shard=first, row=0)

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
        outcomes = await asyncio.gather(
            *(child.search(request, call=call) for child in self._children),
            return_exceptions=True,
        )
        expired = [outcome for outcome in outcomes if isinstance(outcome, DeadlineExceeded)]
        if len(expired) == len(outcomes):
            raise expired[0]  # nobody is missing: the caller's time is over
        answers: list[SearchResult] = []
        receipts: list[ShardReceipt] = []
        answered_slots = 0.0
        for child, outcome in enumerate(outcomes):
            if isinstance(outcome, SearchResult):
                answers.append(outcome)
                receipts.extend(outcome.receipt.shards)
                answered_slots += outcome.receipt.coverage * self._placement.slots_of_child[child]
            elif isinstance(outcome, ShardUnavailable | DeadlineExceeded):
                receipts.extend(self._missing(child, outcome))
            else:
                raise outcome
        receipt = Receipt(
            shards=_by_shard(receipts),
            coverage=float(answered_slots / self._placement.slots_of_child.sum()),
        )
        _require_coverage(receipt, request.min_coverage)
        if sum(len(answer.hits.scores) for answer in answers) < MERGED_AT_ONCE:
            return _merged(answers, receipt, request.k, entry.config)
        return await asyncio.to_thread(_merged, answers, receipt, request.k, entry.config)

    def _missing(self, child: int, reason: VectorShardError) -> list[ShardReceipt]:
        return [
            ShardReceipt(shard=shard.shard, missing_reason=f"{type(reason).__name__}: {reason}")
            for shard in self._placement.shards
            if self._placement.child_of_shard(shard.shard) == child
        ]

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train on every child."""
        results = await self._gather(child.train(request, call=call) for child in self._children)
        return _by_shard(shard for result in results for shard in result)

    async def close(self) -> None:
        """Close the children."""
        await asyncio.gather(*(child.close() for child in self._children))

    # ---- common ---------------------------------------------------------------------------------

    async def _with_entry(
        self,
        name: str,
        call: Call,
        ask: Callable[[Request, CollectionEntry, Call], Coroutine[Any, Any, T]],
        request: Request,
    ) -> T:
        """Ask with what is remembered of the collection; look again once if that is outdated."""
        remembered = self._entries.get(name)
        if remembered is not None and call.incarnation not in ("", remembered.incarnation):
            remembered = None
        entry = remembered or await self._look_up(name, call)
        try:
            return await ask(request, entry, replace(call, incarnation=entry.incarnation))
        except (CollectionNotFound, IncarnationMismatch, InvalidRequest) as error:
            self._entries.pop(name, None)
            if remembered is None or call.incarnation:
                raise
            refused = error
        entry = await self._look_up(name, call)
        if entry == remembered and isinstance(refused, InvalidRequest):
            raise refused
        return await ask(request, entry, replace(call, incarnation=entry.incarnation))

    async def _look_up(self, name: str, call: Call) -> CollectionEntry:
        for entry in await self._known_incarnations(name, call):
            if call.incarnation and call.incarnation != entry.incarnation:
                raise IncarnationMismatch(f"collection {name} was dropped and created anew")
            self._entries[name] = entry
            return entry
        raise CollectionNotFound(f"no collection {name}; create it first")

    @staticmethod
    async def _gather(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        return list(await asyncio.gather(*calls))


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


def _joined_token(tokens: Sequence[Token]) -> Token:
    sequences = {shard: at for token in tokens for shard, at in token.sequences.items()}
    return Token(incarnation=tokens[0].incarnation, sequences=sequences)


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


def _reordered(rows: Rows, order: Int64Array) -> Rows:
    return Rows(
        ids=rows.ids[order],
        vectors=None if rows.vectors is None else rows.vectors[order],
        metadata=None
        if rows.metadata is None
        else [rows.metadata[position] for position in order.tolist()],
    )


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
