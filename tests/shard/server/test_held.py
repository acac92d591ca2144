"""A server that refuses to start and stays up says why to everybody who asks."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from tests.shard.samples import DEADLINE_S
from vectorshard.shard.errors import (
    CannotListen,
    DataDirectoryError,
    DataDirectoryForeign,
    DataDirectoryFull,
    DataDirectoryLocked,
    DataDirectoryTooNew,
    DataDirectoryUnusable,
    LimitsTooLow,
    RowStoreCorrupt,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.server.health import Heartbeat
from vectorshard.shard.server.held import hold, needs_an_operator
from vectorshard.shard.server.status import error_from_rpc


async def test_every_call_to_a_held_server_fails_with_the_reason() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    heartbeat, stopping = Heartbeat(), asyncio.Event()
    refusal = DataDirectoryForeign("/data has shard 1, not 0")
    holding = asyncio.ensure_future(hold(server, refusal, heartbeat, None, stopping.wait))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        unary: Any = channel.unary_unary("/vectorshard.v1.VectorService/Search")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"", timeout=DEADLINE_S)
        stream: Any = channel.stream_stream("/vectorshard.v1.VectorService/SearchStream")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream(iter([b""]), timeout=DEADLINE_S).read()
    for raised in (failed, ended):
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        error = error_from_rpc(raised.value)
        assert type(error) is ShardUnavailable
        assert str(error) == "the server refused to start: /data has shard 1, not 0"
    assert heartbeat.is_alive
    assert not heartbeat.is_ready
    stopping.set()
    await asyncio.wait_for(holding, DEADLINE_S)


@pytest.mark.parametrize(
    ("error", "is_held"),
    [
        (DataDirectoryTooNew("x"), True),
        (DataDirectoryForeign("x"), True),
        (DataDirectoryUnusable("x"), True),
        (DataDirectoryError("an identity that does not parse"), True),
        (RowStoreCorrupt("x"), True),
        (DataDirectoryLocked("x"), False),
        (DataDirectoryFull("x"), False),
        (CannotListen("x", field="listen"), False),
        (LimitsTooLow("x"), False),
    ],
)
def test_what_a_restart_may_mend_is_not_held(error: VectorShardError, is_held: bool) -> None:
    assert needs_an_operator(error) == is_held
