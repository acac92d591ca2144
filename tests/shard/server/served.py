"""A shard behind a service on a port of this machine, for tests that call it with bytes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.shard.samples import DEADLINE_S, config_of, open_shard, some_vectors
from vectorshard.shard.config import Limits
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.status import error_from_rpc
from vectorshard.shard.server.telemetry import RpcMetrics
from vectorshard.shard.types import NO_LIMIT, Call, SearchRequest, UpsertRequest
from vectorshard.shard.wire.call_metadata import metadata_of
from vectorshard.shard.wire.rpcs import SERVICE_NAME
from vectorshard.shard.wire.search_stream import (
    StreamAnswer,
    StreamRequest,
    decode_search_stream_response,
    encode_search_stream_request,
)
from vectorshard.shard.wire.searches import encode_search_request
from vectorshard.shard.wire.writes import encode_upsert_request

LIMITS = Limits()

Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
Streaming: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"


@dataclass
class Served:
    """A shard behind a service on a port of this machine, and ways to call it with bytes."""

    shard: LocalShard
    service: VectorService
    channel: grpc.aio.Channel
    registry: CollectorRegistry

    async def call(self, method: str, payload: bytes, call: Call = NO_LIMIT) -> bytes:
        rpc: Unary = self.channel.unary_unary(f"/{SERVICE_NAME}/{method}")
        answer: bytes = await rpc(payload, timeout=DEADLINE_S, metadata=metadata_of(call))
        return answer

    def stream(self, method: str) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        return self.channel.stream_stream(f"/{SERVICE_NAME}/{method}")(timeout=DEADLINE_S)

    async def refusal(
        self, method: str, payload: bytes = b"", call: Call = NO_LIMIT
    ) -> tuple[str, VectorShardError]:
        """Call what must fail; return the code and the error that it stands for."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, payload, call)
        return caught.value.code().name, error_from_rpc(caught.value)

    async def counted(self, method: str, code: str) -> float:
        """Return how many calls were counted, which happens after they are answered."""
        labels = {"method": method, "code": code}
        deadline = time.monotonic() + DEADLINE_S
        while True:
            count = self.registry.get_sample_value("vectorshard_calls_total", labels)
            if count is not None:
                return count
            assert time.monotonic() < deadline, "never counted"
            await self.call("GetServerInfo", b"")


@asynccontextmanager
async def serving(tmp_path: Path, limits: Limits = LIMITS) -> AsyncIterator[Served]:
    """Serve a shard with an empty collection."""
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    registry = CollectorRegistry()
    service = VectorService(shard, limits, "1.2.3", RpcMetrics(registry))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(shard, service, channel, registry)
    await server.stop(None)
    await shard.close()


def upsert_of(first: int, rows: int = 5, request_id: int = 0) -> bytes:
    ids = np.arange(first, first + rows)
    vectors = some_vectors(rows, seed=first)
    request = UpsertRequest(collection="words", ids=ids, vectors=vectors)
    return encode_upsert_request(request, request_id)


SEARCH = SearchRequest(collection="words", queries=some_vectors(2), k=3)


def search_message(
    request_id: int, request: SearchRequest = SEARCH, incarnation: str = ""
) -> bytes:
    return encode_search_stream_request(
        StreamRequest(
            request_id=request_id,
            search=encode_search_request(request),
            incarnation=incarnation,
        )
    )


async def next_answer(
    stream: grpc.aio.StreamStreamCall[bytes, bytes],
) -> StreamAnswer:
    payload = await stream.read()
    assert isinstance(payload, bytes)
    return decode_search_stream_response(payload)
