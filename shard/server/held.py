"""A server that refuses to start, and stays up to say so.

What only an operator can change, such as a damaged file, no restart changes: an orchestrator would
start the server again and again, and its reason would be lost among the restarts. With
`ServerConfig.hold` the server stays: it is alive and not ready, and every call fails with the
reason. The data directory is closed meanwhile, so that an operator can work on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog

from vectorshard.shard.errors import (
    CorruptData,
    DataDirectoryError,
    DataDirectoryFull,
    DataDirectoryLocked,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.server.health import LOOK_S, HealthPort, Heartbeat
from vectorshard.shard.server.status import DETAILS_KEY, status_of

_log = structlog.get_logger(__name__)


def needs_an_operator(error: BaseException) -> bool:
    """Whether a restart meets the same refusal until an operator acts."""
    if isinstance(error, DataDirectoryLocked | DataDirectoryFull):  # these may pass
        return False
    return isinstance(error, DataDirectoryError | CorruptData)


class RefusingHandler(grpc.GenericRpcHandler):
    """Fails every call, of any method, with the reason why the server did not start.

    UNAVAILABLE: a router goes on without this shard, and reports the reason.
    """

    def __init__(self, refusal: VectorShardError) -> None:
        self._text = f"the server refused to start: {refusal}"
        status = status_of(ShardUnavailable(self._text))
        self._trailing = ((DETAILS_KEY, status.SerializeToString()),)

    def service(self, handler_call_details: Any) -> Any:
        """Return what fails the call; on the wire, a unary call is a stream of one message."""
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, self._text, self._trailing)


async def hold(
    server: grpc.aio.Server,
    refusal: VectorShardError,
    heartbeat: Heartbeat,
    health_port: HealthPort | None,
    stopped: Callable[[], Awaitable[object]],
) -> None:
    """Refuse all calls to a server that has not started, until `stopped` returns."""
    _log.error("start refused", reason=str(refusal), held=True)
    server.add_generic_rpc_handlers((RefusingHandler(refusal),))
    await server.start()
    if health_port is not None:
        health_port.start()
    stopping = asyncio.ensure_future(stopped())
    while not stopping.done():
        heartbeat.beat(is_ready=False)
        await asyncio.wait([stopping], timeout=LOOK_S)
    await server.stop(None)
