"""What gRPC's core does before a call reaches the service: its options, and that they work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from tests.http2 import ACK, GOAWAY, PREFACE, SETTINGS, Load, frame, run
from tests.shard.samples import DEADLINE_S
from vectorshard.shard.config import Limits
from vectorshard.shard.server import grpc_options
from vectorshard.shard.server.grpc_options import server_options

Echo = Callable[[bytes, Any], Awaitable[bytes]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(payload: bytes, _: object) -> bytes:
    """Answer with the request."""
    return payload


@asynccontextmanager
async def serving(limits: Limits | None = None, answer: Echo = echo) -> AsyncIterator[int]:
    """Serve `/any/Echo` with the options of these limits; yield the port."""
    server = grpc.aio.server(options=server_options(limits or Limits()))
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


async def is_closed(connection: Connection) -> bool:
    """Read until the server closes a connection, and close this end, too."""
    async with asyncio.timeout(DEADLINE_S):
        with suppress(ConnectionResetError):
            while await connection[0].read(4096):
                pass
        connection[1].close()
        with suppress(ConnectionResetError):
            await connection[1].wait_closed()
    return True


def test_a_stream_sends_a_fixed_number_of_bytes_before_they_are_read_however_fast_it_is() -> None:
    options = dict(server_options(Limits()))
    assert options["grpc.http2.bdp_probe"] == 0
    assert options["grpc.http2.lookahead_bytes"] == grpc_options.READ_AHEAD_BYTES <= 2**18


def test_the_core_cancels_calls_late_and_refuses_no_stream() -> None:
    options = dict(server_options(Limits()))
    waiting = options["grpc.server.max_pending_requests"]
    assert waiting == options["grpc.server.max_pending_requests_hard_limit"]
    assert Limits().connection_calls < waiting <= 1_024, "or it fills with calls that came too late"
    assert options["grpc.http.overload_protection"] == 0


async def test_a_client_with_more_calls_than_a_connection_may_have_is_not_refused() -> None:
    async with serving(Limits(connection_calls=8)) as port:
        load = Load(host="127.0.0.1", port=port, path="/any/Echo", payloads=[""], seconds=0.3)
        load.callers, load.connections = 32, 1
        told = await run(load)
    assert set(told.counts) == {"OK"}
    assert told.counts["OK"] > load.callers


def test_connections_and_the_calls_on_each_are_bounded() -> None:
    options = dict(server_options(Limits(connections=7, connection_calls=5)))
    assert options["grpc.max_allowed_incoming_connections"] == 7
    assert options["grpc.max_concurrent_streams"] == 5


async def test_a_connection_too_many_is_closed_when_it_is_made() -> None:
    async with serving(Limits(connections=2)) as port:
        made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        heads = [await asyncio.wait_for(reader.read(1), DEADLINE_S) for reader, _ in made[:2]]
        assert all(heads), "HTTP/2 begins with the server's settings"
        assert await is_closed(made[2])
        for _, writer in made[:2]:
            writer.close()


async def test_a_compressed_message_is_refused() -> None:
    async with serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        rpc: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/Echo")
        assert await rpc(b"x" * 1_000, timeout=DEADLINE_S) == b"x" * 1_000
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rpc(b"x" * 1_000, compression=grpc.Compression.Gzip, timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_how_long_a_connection_that_does_nothing_keeps_its_place() -> None:
    options = dict(server_options(Limits()))
    assert options["grpc.server_handshake_timeout_ms"] == 5_000
    assert options["grpc.max_connection_idle_ms"] == 300_000


@pytest.mark.parametrize("first", [b"", PREFACE], ids=["nothing", "only the preface"])
async def test_silent_connections_lock_a_client_out_for_the_handshake_limit_only(
    monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(grpc_options, "HANDSHAKE_S", 0.3)
    async with serving(Limits(connections=4)) as port:
        began = time.monotonic()
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        for _, writer in silent:
            writer.write(first)
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
        ]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            rpc: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/Echo")
            assert await rpc(b"x", wait_for_ready=True, timeout=DEADLINE_S) == b"x"
        assert time.monotonic() - began >= 0.3, "all places were taken"
        assert all([await is_closed(each) for each in silent])


async def test_a_connection_without_a_call_is_told_to_go_after_the_idle_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_options, "HANDSHAKE_S", 0.3)
    monkeypatch.setattr(grpc_options, "IDLE_S", 0.5)
    async with serving() as port:
        idle = await asyncio.open_connection("127.0.0.1", port)
        idle[1].write(PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK))
        began = time.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            while (head := await idle[0].readexactly(9))[3] != GOAWAY:
                await idle[0].readexactly(int.from_bytes(head[:3], "big"))
        assert time.monotonic() - began >= 0.4
        idle[1].close()
