"""Writes of a router: each downstream shard gets its part, and no part is repeated.

A repeated part would overwrite what other callers have written since, and would not count rows that
it deleted the first time. Only the caller can decide whether that matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from vectorshard.router.fan_out.children import Children, all_answers
from vectorshard.router.fan_out.merge import by_shard
from vectorshard.router.fan_out.partial_write import Written, joined, joined_token, reached_some
from vectorshard.shard.engine.validation import check_filter, check_ids, check_vectors
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
)
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.types import (
    Call,
    CollectionEntry,
    DeleteRequest,
    DeleteResult,
    Int64Array,
    ShardDescription,
    Token,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)

NOTHING_DONE: Final = (CollectionNotFound, IncarnationMismatch, Overloaded, PlacementMismatch)
"""Errors that prove that a child has written nothing. After any other it may have."""

T = TypeVar("T")


async def upsert(
    children: Children, request: UpsertRequest, entry: CollectionEntry, call: Call
) -> UpsertResult:
    """Validate the whole batch, then write each child's part."""
    check_ids(entry.config, request.ids)
    check_vectors(entry.config, request.vectors, "vectors")
    if request.metadata is not None and entry.config.filter_fields:
        # It reads every row: too long for the event loop.
        await asyncio.to_thread(declared_fields, entry.config, request.metadata)
    parts = list(children.split(request.ids))
    placement = children.placement  # a child may become unknown during its call
    if len(parts) <= 1:
        child = parts[0][0] if parts else children.all()[0]
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
        await all_done(children, call, outcomes)
    return joined(written)


def _rows_of(request: UpsertRequest, indices: Int64Array) -> UpsertRequest:
    metadata = request.metadata
    return replace(
        request,
        ids=request.ids[indices],
        vectors=request.vectors[indices],
        metadata=None if metadata is None else [metadata[row] for row in indices.tolist()],
    )


async def delete(
    children: Children, request: DeleteRequest, entry: CollectionEntry, call: Call
) -> DeleteResult:
    """Delete each child's part of the ids, or the rows of each child that pass a filter."""
    check_filter(entry.config, request.filter)
    outcomes = await asyncio.gather(
        *(
            child.shard.delete(part, call=child.to(call))
            for child, part in children.parts_of(request, entry.config)
        ),
        return_exceptions=True,
    )
    results = await all_done(children, call, outcomes)
    if not results:
        return DeleteResult(deleted=0, token=Token(incarnation=entry.incarnation))
    return DeleteResult(
        deleted=sum(result.deleted for result in results),
        token=joined_token([result.token for result in results]),
    )


async def train(
    children: Children, request: TrainRequest, entry: CollectionEntry, call: Call
) -> Sequence[ShardDescription]:
    """Train on every child."""
    results = await all_answers(
        child.shard.train(request, call=child.to(call)) for child in children.all()
    )
    return by_shard(shard for result in results for shard in result)


async def all_done(
    children: Children, call: Call, outcomes: Sequence[T | BaseException]
) -> list[T]:
    """Return the answers of a write's parts, or raise the first error.

    When some parts may be written and others are rejected, the error is ShardUnavailable: the
    rejection alone would have the call repeated with what the router learns next.
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    refusals = [error for error in errors if isinstance(error, NOTHING_DONE)]
    if refusals and len(refusals) < len(outcomes):
        await children.learn(call)
        reason = next((error for error in errors if error not in refusals), refusals[0])
        raise ShardUnavailable(f"the write may be incomplete, repeat it: {reason}") from reason
    for error in errors:
        raise error
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
