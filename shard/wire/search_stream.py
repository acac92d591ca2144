"""SearchStream's messages: an envelope around the bytes of a search, a response or an error.

The bytes within an envelope are not read here. `shard.wire.searches` reads and writes the
searches, `shard.server.status` the statuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import Message

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.wire.bulk import content_bytes, field_bytes, number_bytes, packed
from vectorshard.shard.wire.primitives import parse
from vectorshard.v1 import vectorshard_pb2 as v1

TIMEOUT_MS_MAX: Final = 2**32 - 1
"""The largest value of the field: 49 days."""

ENVELOPE_BYTES: Final = 32
"""An upper bound on the bytes that an envelope adds to a response."""

_TwinT = TypeVar("_TwinT", twins.SearchStreamRequestTwin, twins.SearchStreamResponseTwin)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """A message of a search stream.

    `search` holds the bytes of a SearchRequest, or None if the message is a Cancel (`cancels`) or
    neither. A `timeout_ms` of 0 sets no timeout; an `answer_bytes_max` of 0 sets no bound but that
    of a message.
    """

    request_id: int
    search: bytes | None = None
    cancels: bool = False
    timeout_ms: int = 0
    incarnation: str = ""
    answer_bytes_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamAnswer:
    """An answer of a search stream: the bytes of a SearchResponse, or those of a google.rpc.Status.

    A failed search has no `response`; otherwise `error` is empty.
    """

    request_id: int
    response: bytes | None = None
    error: bytes = b""


def encode_search_stream_request(request: StreamRequest) -> bytes:
    """Write a message: a Cancel, or a search."""
    twin = twins.SearchStreamRequestTwin(
        request_id=request.request_id,
        timeout_ms=request.timeout_ms,
        incarnation=request.incarnation,
        answer_bytes_max=request.answer_bytes_max,
    )
    if request.cancels:
        twin.cancel = b""
    elif request.search is not None:
        twin.search = request.search
    return twin.SerializeToString()


def decode_search_stream_request(payload: bytes) -> StreamRequest:
    """Read a message.

    Raises MalformedMessage for bytes that do not parse; the request_id is then unknown.
    """
    twin = _read(
        twins.SearchStreamRequestTwin, v1.SearchStreamRequest, payload, _stream_request_bytes
    )
    kind = twin.WhichOneof("kind")
    return StreamRequest(
        request_id=twin.request_id,
        search=twin.search if kind == "search" else None,
        cancels=kind == "cancel",
        timeout_ms=twin.timeout_ms,
        incarnation=twin.incarnation,
        answer_bytes_max=twin.answer_bytes_max,
    )


def _stream_request_bytes(twin: twins.SearchStreamRequestTwin) -> int:
    kind = twin.WhichOneof("kind")
    carried = 0 if kind is None else field_bytes(len(getattr(twin, kind)))
    return (
        number_bytes(twin.request_id)
        + number_bytes(twin.timeout_ms)
        + carried
        + content_bytes(len(twin.incarnation.encode()))
        + number_bytes(twin.answer_bytes_max)
    )


def encode_search_stream_response(answer: StreamAnswer) -> bytes:
    """Write an answer."""
    twin = twins.SearchStreamResponseTwin(request_id=answer.request_id)
    if answer.response is not None:
        twin.response = answer.response
    else:
        twin.error = answer.error
    return twin.SerializeToString()


def decode_search_stream_response(payload: bytes) -> StreamAnswer:
    """Read an answer. Raises MalformedMessage for bytes that do not parse."""
    twin = _read(
        twins.SearchStreamResponseTwin, v1.SearchStreamResponse, payload, _stream_response_bytes
    )
    succeeded = twin.WhichOneof("kind") == "response"
    return StreamAnswer(
        request_id=twin.request_id, response=twin.response if succeeded else None, error=twin.error
    )


def _stream_response_bytes(twin: twins.SearchStreamResponseTwin) -> int:
    kind = twin.WhichOneof("kind")
    carried = 0 if kind is None else field_bytes(len(getattr(twin, kind)))
    return number_bytes(twin.request_id) + carried


def _read(
    kind: type[_TwinT], original: type[Message], payload: bytes, account: Callable[[_TwinT], int]
) -> _TwinT:
    """Read an envelope through its twin, as in `shard.wire.bulk`."""
    twin = parse(kind, payload, original)
    if account(twin) != len(payload):
        twin = kind.FromString(packed(original, payload))
    return twin
