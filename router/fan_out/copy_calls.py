"""The calls about copies, as a router passes them to the shard that is meant."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from vectorshard.router.fan_out.catalogue import Catalogue
from vectorshard.router.fan_out.children import Child
from vectorshard.router.fan_out.membership_calls import MembershipCalls
from vectorshard.shard.copies import (
    CloseCopyRequest,
    CopiedRows,
    Copy,
    OpenCopyRequest,
    ReadCopyRequest,
)
from vectorshard.shard.types import NO_LIMIT, Call, CollectionEntry

RequestT = TypeVar("RequestT", OpenCopyRequest, ReadCopyRequest, CloseCopyRequest)
T = TypeVar("T")


class CopyCalls(MembershipCalls):
    """The part of a router that reaches the copies of its leaf shards."""

    _catalogue: Catalogue

    async def open_copy(self, request: OpenCopyRequest, *, call: Call = NO_LIMIT) -> Copy:
        """Open a copy on a leaf shard, unless it is missing or not examined."""
        return await self._on_its_shard(request, call, lambda shard: shard.shard.open_copy)

    async def read_copy(self, request: ReadCopyRequest, *, call: Call = NO_LIMIT) -> CopiedRows:
        """Read from a copy on a leaf shard."""
        return await self._on_its_shard(request, call, lambda shard: shard.shard.read_copy)

    async def close_copy(self, request: CloseCopyRequest, *, call: Call = NO_LIMIT) -> None:
        """Close a copy on a leaf shard."""
        await self._on_its_shard(request, call, lambda shard: shard.shard.close_copy)

    async def _on_its_shard(
        self,
        request: RequestT,
        call: Call,
        method_of: Callable[[Child], Callable[..., Coroutine[Any, Any, T]]],
    ) -> T:
        async def ask(request: RequestT, entry: CollectionEntry, call: Call) -> T:
            absent = self._examination.absent(entry.incarnation)
            if request.shard in absent:
                raise absent[request.shard]
            child = self._children.of_shard(request.shard)
            return await method_of(child)(request, call=child.to(call))

        return await self._catalogue.ask(request.collection, call, ask, request)
