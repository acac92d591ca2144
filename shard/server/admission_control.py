"""What a server refuses as it arrives: calls beyond its bounds, before anything of them is read.

A refusal must cost far less than what it refuses, or refusing is all that a server under too much
load does. Its status is made beforehand, and its handler is that of a stream, whatever the method:
so grpc neither waits for the request nor hands it over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, Final

import grpc
import structlog

from vectorshard.shard.errors import Overloaded
from vectorshard.shard.server.status import DETAILS_KEY, status_code, status_of

TOLD_EVERY_S: Final = 10.0
"""How often the log tells of refusals at most: it must not be what a server is busy with."""

Context = grpc.aio.ServicerContext[bytes, bytes]

_log = structlog.get_logger(__name__)


class RefusalLog:
    """Tells the log that calls are refused, now and then.

    Parameters
    ----------
    clock
        Seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at = -inf
        self._refused = 0

    def note(self, reason: str) -> None:
        """Note that a call was refused, and why."""
        self._refused += 1
        now = self._clock()
        if now - self._told_at >= TOLD_EVERY_S:
            _log.warning("refusing calls", refused=self._refused, reason=reason)
            self._told_at, self._refused = now, 0


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on what a server does at a time.

    Attributes
    ----------
    methods
        Whose calls it bounds.
    is_reached
        Whether one more would be too many.
    refusal
        What a call that is one too many is told.
    """

    methods: Iterable[str]
    is_reached: Callable[[], bool]
    refusal: Overloaded


class Arrivals(grpc.GenericRpcHandler):
    """Hands a call to its handler, or to one that refuses it.

    Parameters
    ----------
    service
        The name of the service.
    handlers
        Those of its methods, by name.
    bounds
        The first that is reached is told.
    refused
        Called with the method of each call that is refused, and what it is told.
    when_busy
        Other handlers of some methods, by name, and when a call gets them.
    """

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
        bounds: Iterable[Bound],
        refused: Callable[[str, Overloaded], None],
        when_busy: Mapping[str, tuple[Callable[[], bool], grpc.RpcMethodHandler[Any, Any]]],
    ) -> None:
        self._handlers = {f"/{service}/{name}": handler for name, handler in handlers.items()}
        self._when_busy = {f"/{service}/{name}": busy for name, busy in when_busy.items()}
        self._bounds: dict[
            str, list[tuple[Callable[[], bool], grpc.RpcMethodHandler[Any, Any]]]
        ] = {path: [] for path in self._handlers}
        for bound in bounds:
            for name in bound.methods:
                refuses = _refusing(bound.refusal, name, refused)
                self._bounds[f"/{service}/{name}"].append((bound.is_reached, refuses))

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call that has arrived; None for a method that is not served."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is not None:
            for is_reached, refuses in self._bounds[path]:
                if is_reached():
                    return refuses
            busy = self._when_busy.get(path)
            if busy is not None and busy[0]():
                return busy[1]
        return handler


@lru_cache(maxsize=256)
def refuser(message: str) -> Callable[[Context], None]:
    """Return what sets a call's status to a refusal; its handler has only to return.

    Many refusals in a row say the same, and a status takes longer to make than all else of them.
    """
    refusal = Overloaded(message)
    code = status_code(refusal)
    trailing = ((DETAILS_KEY, status_of(refusal).SerializeToString()),)

    def refuse(context: Context) -> None:
        context.set_code(code)  # `abort` raises, which costs more
        context.set_details(message)
        context.set_trailing_metadata(trailing)

    return refuse


def _refusing(
    refusal: Overloaded, method: str, refused: Callable[[str, Overloaded], None]
) -> grpc.RpcMethodHandler[Any, Any]:
    refuse = refuser(str(refusal))

    async def refuse_call(_: object, context: Context) -> None:
        refused(method, refusal)
        refuse(context)

    return grpc.stream_stream_rpc_method_handler(refuse_call)
