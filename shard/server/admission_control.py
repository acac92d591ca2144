"""Admission control: refuse calls beyond the server's limits, before their requests are read.

A refusal must cost far less than the call it refuses; else an overloaded server does nothing but
refuse. So its status is prepared in advance, and its handler is a stream's, whatever the method:
grpc then neither waits for the request nor delivers it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, Final, TypeAlias

import grpc
import structlog

from vectorshard.shard.errors import Overloaded
from vectorshard.shard.server.status import DETAILS_KEY, status_code, status_of
from vectorshard.shard.wire.rpcs import path_of

LOG_EVERY_S: Final = 10.0
"""The shortest time between two log events of refusals: a busy server must not be busy logging."""

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_log = structlog.get_logger(__name__)


class RefusalLog:
    """Logs that calls are refused, at most every `LOG_EVERY_S`. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at = -inf
        self._refused = 0

    def note(self, reason: str) -> None:
        """Note that a call was refused, and why."""
        self._refused += 1
        now = self._clock()
        if now - self._logged_at >= LOG_EVERY_S:
            _log.warning("calls refused", refused=self._refused, reason=reason)
            self._logged_at, self._refused = now, 0


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on what a server does at a time."""

    methods: Iterable[str]  # whose calls it bounds
    is_reached: Callable[[], bool]  # whether the next call exceeds the bound
    refusal: Overloaded  # the error of a call that exceeds it


class AdmissionControl(grpc.GenericRpcHandler):
    """Passes a call to the handler of its method, or to one that refuses it.

    Parameters
    ----------
    handlers
        The handlers of the service's methods, by name.
    bounds
        The first bound that is reached refuses the call.
    refused
        Called with the method and the error of each call that is refused.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        bounds: Iterable[Bound],
        refused: Callable[[str, Overloaded], None],
    ) -> None:
        self._handlers = {path_of(name): handler for name, handler in handlers.items()}
        self._bounds: dict[str, list[tuple[Callable[[], bool], Handler]]] = {
            path: [] for path in self._handlers
        }
        for bound in bounds:
            for name in bound.methods:
                refuses = _refusing(bound.refusal, name, refused)
                self._bounds[path_of(name)].append((bound.is_reached, refuses))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a call that has arrived; None for a method that is not served."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is not None:
            for is_reached, refuses in self._bounds[path]:
                if is_reached():
                    return refuses
        return handler


@lru_cache(maxsize=256)
def refuser(message: str) -> Callable[[Context], None]:
    """Return a function that sets the status of a refused call, whose handler then returns.

    Cached: consecutive refusals have the same text, and the status is the costly part of them.
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
) -> Handler:
    refuse = refuser(str(refusal))

    async def refuse_call(_: object, context: Context) -> None:
        refused(method, refusal)
        refuse(context)

    return grpc.stream_stream_rpc_method_handler(refuse_call)
