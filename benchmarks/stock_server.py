"""A server of stock grpcio: asyncio, no options, and a handler that answers with no bytes.

A separate process, with the grpcio that benchmarks.stock put in its path; it imports nothing of
ours. Its arguments are the expected version of grpcio, and the service that it serves.
"""

from __future__ import annotations

import asyncio
import sys

import grpc


async def answer(payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Answer a call with no bytes."""
    return b""


class EveryMethod(grpc.GenericRpcHandler):
    """Answers every method of a service."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"
        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            answer
        )

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Return the handler of a call; None for a call of another service."""
        return self._handler if handler_call_details.method.startswith(self._prefix) else None


async def serve(service: str) -> None:
    """Serve until the process is killed; print the address on stdout."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((EveryMethod(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    version, service = sys.argv[1:]
    if grpc.__version__ != version:
        sys.exit(f"this is grpcio {grpc.__version__}, not {version}")
    asyncio.run(serve(service))
