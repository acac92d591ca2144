"""The router over a placement of one shard in its own process: calls for rows go straight to it.

There is nothing to split, to merge, or to compare. The answers are those of the router, without
the cost of its work. What concerns collections and membership takes the router's way, and so does
every call that the shard cannot answer: the router knows what may be missing, and says it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from vectorshard.router.fan_out.children import Children
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.errors import (
    CollectionNotFound,
    CorruptData,
    IncarnationMismatch,
    RowsDamaged,
    ShardUnavailable,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    DeleteResult,
    GetRequest,
    ListRequest,
    Rows,
    SearchRequest,
    SearchResult,
    UpsertRequest,
    UpsertResult,
)

T = TypeVar("T")

_NOT_SERVED: Final = (CollectionNotFound, CorruptData, IncarnationMismatch, ShardUnavailable)
"""With these a shard refuses a call before it has done anything."""


class SoleShard(Router):
    """A router whose one downstream shard has all slots, and is local. Use `connect`."""

    def __init__(self, children: Children, **options: Any) -> None:
        super().__init__(children, **options)
        (child,) = children.all()
        self._shard: Shard = child.shard

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Write rows."""
        return await _straight(self._shard.upsert, super().upsert, request, call)

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete by ids, or the rows that pass a filter."""
        return await _straight(self._shard.delete, super().delete, request, call)

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of existing ids in the order of the request, or those of a filter."""
        return await _straight(self._shard.get, super().get, request, call)

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        return await _straight(self._shard.count, super().count, request, call)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page."""
        return await _straight(self._shard.list_rows, super().list_rows, request, call)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Return the k best rows for each query."""
        return await _straight(self._shard.search, super().search, request, call)


async def _straight(
    ask: Callable[..., Awaitable[T]],
    ask_router: Callable[..., Awaitable[T]],
    request: Any,
    call: Call,
) -> T:
    """Ask the shard; where it does not serve the collection, ask the router."""
    try:
        return await ask(request, call=call)
    except RowsDamaged:
        raise
    except _NOT_SERVED:
        pass
    return await ask_router(request, call=call)
