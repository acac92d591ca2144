"""A service in this process, called with messages of the contract as any client writes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import struct_pb2

from tests.bare_wire import Refusal, int64s, matrix, refusal_of, strings
from tests.shard.server.served import serving
from vectorshard.v1 import vectorshard_pb2 as v1
from vectorshard.v1.vectorshard_pb2_grpc import VectorServiceStub

DIM = 4
NAN, INF = float("nan"), float("inf")
GOOD = np.eye(3, DIM, dtype=np.float32)
FIELDS = [
    v1.FilterField(name="year", type=v1.FIELD_TYPE_INT64),
    v1.FilterField(name="lang", type=v1.FIELD_TYPE_KEYWORD),
    v1.FilterField(name="public", type=v1.FIELD_TYPE_BOOL),
]

Stub = Any
"""A VectorServiceStub of grpc.aio; the generated code has no types."""

_stub_of: Callable[[grpc.aio.Channel], Stub] = VectorServiceStub

COLLECTIONS = ("l2", "inner_product", "cosine", "filtered")
"""Of three rows each. Ids are strings in "cosine"; fields are declared in "filtered"."""


@dataclass(frozen=True, slots=True)
class Bare:
    """A stub, and what its collections hold."""

    stub: Stub

    async def state(self) -> list[object]:
        """Return the ledger and the rows of all collections."""
        listed = await self.stub.ListCollections(v1.ListCollectionsRequest())
        found: list[object] = [listed.SerializeToString(deterministic=True)]
        for name in COLLECTIONS:
            description = v1.DescribeCollectionRequest(collection=name)
            ledger = (await self.stub.DescribeCollection(description)).ledger
            page = v1.ListRequest(collection=name, include=v1.Include(vectors=True, metadata=True))
            rows = await self.stub.List(page)
            found += [ledger.SerializeToString(), rows.SerializeToString(deterministic=True)]
        return found


@asynccontextmanager
async def bare(path: Path) -> AsyncIterator[Bare]:
    """Serve a shard with COLLECTIONS."""
    async with serving(path) as served:
        stub = _stub_of(served.channel)
        metadata = [struct_pb2.Struct() for _ in GOOD]
        for row, struct in enumerate(metadata):
            struct.update({"year": 1990 + row, "lang": ["en", "de"], "public": True})
        configurations: dict[str, dict[str, Any]] = {
            "l2": {},
            "inner_product": {"metric": v1.METRIC_INNER_PRODUCT},
            "cosine": {"metric": v1.METRIC_COSINE, "id_type": v1.ID_TYPE_STRING},
            "filtered": {"filter_fields": FIELDS},
        }
        for name, changes in configurations.items():
            await stub.CreateCollection(create_request(name=name, **changes))
            ids = strings("a", "b", "c") if name == "cosine" else int64s(1, 2, 3)
            rows = metadata if name == "filtered" else []
            await stub.Upsert(
                v1.UpsertRequest(collection=name, ids=ids, vectors=matrix(GOOD), metadata=rows)
            )
        yield Bare(stub)


def create_request(**changes: Any) -> v1.CreateCollectionRequest:
    """Return a request for a valid collection, but for `changes`."""
    config: dict[str, Any] = {
        "name": "never-created",
        "dim": DIM,
        "metric": v1.METRIC_L2,
        "id_type": v1.ID_TYPE_INT64,
    }
    return v1.CreateCollectionRequest(config=v1.CollectionConfig(**(config | changes)))


async def upsert(stub: Stub, request: v1.UpsertRequest, stream: bool) -> None:
    """Write rows with Upsert, or as the only message of an UpsertStream."""
    if stream:
        async for _ in stub.UpsertStream(iter([request])):
            pass
    else:
        await stub.Upsert(request)


async def refused(call: Awaitable[object]) -> Refusal:
    """Wait for a call that must fail, and return its status."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return refusal_of(caught.value)
