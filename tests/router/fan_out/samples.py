"""Requests, and routers to send them to."""

from __future__ import annotations

from dataclasses import replace

from tests.router.model_shard import FaultyShard
from tests.shard.samples import some_vectors
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.types import (
    CountRequest,
    Int64Array,
    SearchRequest,
    SearchResult,
    UpsertRequest,
)


def search(**changes: object) -> SearchRequest:
    request = SearchRequest(collection="words", queries=some_vectors(1), k=10)
    return replace(request, **changes)  # type: ignore[arg-type]  # by name


def upsert(ids: Int64Array) -> UpsertRequest:
    return UpsertRequest(collection="words", ids=ids, vectors=some_vectors(len(ids)))


async def found(router: Router, **changes: object) -> SearchResult:
    return await router.search(search(**changes))


async def remembering(children: list[FaultyShard]) -> Router:
    """Return a router that knows the collection already."""
    router = await Router.connect(children)
    await router.count(CountRequest(collection="words"))
    return router
