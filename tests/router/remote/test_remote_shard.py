"""A remote shard and a real server of the test's own: what is sent, and what is made of it."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.samples import DEADLINE_S, config_of, int64s, some_vectors, strings
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.descriptions import ExplainRequest
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidId,
    InvalidRequest,
    LimitExceeded,
    Overloaded,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.server.status import DETAILS_KEY, STATUS_BY_ERROR, status_code, status_of
from vectorshard.shard.types import (
    Call,
    CountRequest,
    DeleteRequest,
    GetRequest,
    Include,
    ListRequest,
    SearchRequest,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
)
from vectorshard.shard.wire.call_metadata import call_of
from vectorshard.shard.wire.reads import encode_count_response
from vectorshard.shard.wire.rpcs import GET_SERVER_INFO, SERVICE_NAME

COUNT = CountRequest(collection="words")

Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass
class Answering:
    """A server whose every call is answered by `answer`; it takes note of who asked what."""

    answer: Callable[[Context], Awaitable[bytes]]
    calls: list[tuple[str, Call]] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    withdrawn: asyncio.Event = field(default_factory=asyncio.Event)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return the handler of a call."""
        metadata = details.invocation_metadata

        async def handle(payload: bytes, context: Context) -> bytes:
            remaining_s = context.time_remaining()
            deadline = None if remaining_s is None else time.monotonic() + remaining_s
            if not details.method.endswith(f"/{GET_SERVER_INFO}"):  # on a slow machine, a probe
                self.calls.append((details.method, call_of(metadata, deadline)))
            self.began.set()
            try:
                return await self.answer(context)
            except asyncio.CancelledError:
                self.withdrawn.set()
                raise

        return grpc.unary_unary_rpc_method_handler(handle)

    def fails_with(self, error: VectorShardError) -> None:
        """Answer every call with an error, as our servers do."""

        async def answer(context: Context) -> bytes:
            trailing = ((DETAILS_KEY, status_of(error).SerializeToString()),)
            await context.abort(status_code(error), str(error), trailing)
            return b""

        self.answer = answer

    def fails_as_a_stranger(self, code: grpc.StatusCode, text: str) -> None:
        """Answer every call with a bare status, as a server of something else does."""

        async def answer(context: Context) -> bytes:
            await context.abort(code, text)
            return b""

        self.answer = answer

    def says(self, payload: bytes) -> None:
        """Answer every call with these bytes."""

        async def answer(context: Context) -> bytes:
            return payload

        self.answer = answer

    def hangs(self) -> None:
        """Answer no call."""

        async def answer(context: Context) -> bytes:
            await asyncio.Event().wait()
            return b""

        self.answer = answer


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, service: Callable[[grpc.HandlerCallDetails], Any]) -> None:
        self._service = service

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._service(handler_call_details)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[Answering, str]]:
    """A server, and where it listens."""
    answering = Answering(answer=lambda context: asyncio.sleep(0, b""))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handler(answering.service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield answering, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def answering(server: tuple[Answering, str]) -> Answering:
    """The server."""
    return server[0]


@pytest_asyncio.fixture
async def remote(server: tuple[Answering, str]) -> AsyncIterator[RemoteShard]:
    """A remote shard on it."""
    remote = RemoteShard(server[1])
    yield remote
    await remote.close()


# ---- what is sent -------------------------------------------------------------------------------


async def test_whom_a_call_means_and_its_deadline_arrive(
    answering: Answering, remote: RemoteShard
) -> None:
    answering.says(encode_count_response(3))
    deadline = time.monotonic() + 50
    call = Call(deadline=deadline, incarnation="i1", placement="p1")
    assert await remote.count(COUNT, call=call) == 3
    assert await remote.count(COUNT) == 3
    (method, arrived), (_, bare) = answering.calls
    assert method == f"/{SERVICE_NAME}/Count"
    assert (arrived.incarnation, arrived.placement) == ("i1", "p1")
    assert arrived.deadline == pytest.approx(deadline, abs=1)
    assert bare == Call()


async def test_a_call_whose_deadline_has_passed_is_not_sent(
    answering: Answering, remote: RemoteShard
) -> None:
    answering.says(encode_count_response(3))
    with pytest.raises(DeadlineExceeded, match=f"{remote.target}: the deadline passed before"):
        await remote.count(COUNT, call=Call(deadline=time.monotonic() - 0.001))
    await remote.count(COUNT)
    assert len(answering.calls) == 1


async def test_who_is_no_longer_waited_for_is_told(
    answering: Answering, remote: RemoteShard
) -> None:
    answering.hangs()
    asking = asyncio.ensure_future(remote.count(COUNT))
    await asyncio.wait_for(answering.began.wait(), DEADLINE_S)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(answering.withdrawn.wait(), DEADLINE_S)


async def test_a_request_that_no_message_holds_is_the_callers_mistake(remote: RemoteShard) -> None:
    with pytest.raises(InvalidId):
        await remote.count(CountRequest(collection="words", ids=strings("\ud800")))


# ---- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STATUS_BY_ERROR)
async def test_every_error_of_the_server_is_raised_as_itself(
    answering: Answering, remote: RemoteShard, kind: type[VectorShardError]
) -> None:
    if issubclass(kind, InvalidRequest):
        error: VectorShardError = kind("it is so", field="vectors", row=3)
    else:
        error = kind("it is so")
        if error.is_servers_own or kind is InternalError:
            error.error_id = "abc"
        if error.retryable:
            error.retry_delay_s = 2.5
    answering.fails_with(error)
    with pytest.raises(kind, match="it is so") as caught:
        await remote.count(COUNT)
    assert type(caught.value) is kind
    assert vars(caught.value) == vars(error)


async def test_the_log_says_which_server_keeps_the_story_of_an_opaque_failure(
    answering: Answering, remote: RemoteShard
) -> None:
    error = InternalError("it is so")
    error.error_id = "abc"
    answering.fails_with(error)
    with structlog.testing.capture_logs() as logged, pytest.raises(InternalError):
        await remote.count(COUNT)
    [entry] = logged
    assert (entry["target"], entry["error_id"]) == (remote.target, "abc")


async def test_what_was_sent_is_let_go_of_without_the_collector(
    answering: Answering, remote: RemoteShard
) -> None:
    answering.says(b"")
    rows = some_vectors(50_000)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            await remote.upsert(
                UpsertRequest(collection="words", ids=np.arange(len(rows)), vectors=rows)
            )
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept_bytes < 3 * rows.nbytes  # of ten; the last may still be on its way


async def test_a_server_that_is_missing_is_unavailable_and_named(remote: RemoteShard) -> None:
    nobody = RemoteShard("127.0.0.1:1")
    with pytest.raises(ShardUnavailable, match=r"127\.0\.0\.1:1: .*refused"):
        await nobody.count(COUNT)
    await nobody.close()


async def test_a_deadline_that_passes_meanwhile_is_exceeded_and_names_the_server(
    answering: Answering, remote: RemoteShard
) -> None:
    answering.hangs()
    with pytest.raises(DeadlineExceeded, match=remote.target):
        await remote.count(COUNT, call=Call(deadline=time.monotonic() + 0.05))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, ShardUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.INTERNAL, InternalError),
        # Of a stranger these mean nothing: no collection is gone, and no request wrong.
        (grpc.StatusCode.NOT_FOUND, ShardUnavailable),
        (grpc.StatusCode.ALREADY_EXISTS, ShardUnavailable),
        (grpc.StatusCode.UNIMPLEMENTED, ShardUnavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, ShardUnavailable),
        (grpc.StatusCode.DATA_LOSS, ShardUnavailable),
    ],
)
async def test_a_status_that_no_server_of_ours_gave_names_who_gave_it(
    answering: Answering,
    remote: RemoteShard,
    code: grpc.StatusCode,
    kind: type[VectorShardError],
) -> None:
    answering.fails_as_a_stranger(code, "so there")
    with pytest.raises(VectorShardError, match=remote.target) as caught:
        await remote.count(COUNT)
    assert type(caught.value) is kind


async def test_a_write_that_the_server_cancels_may_have_been_done(
    answering: Answering, remote: RemoteShard
) -> None:
    answering.fails_as_a_stranger(grpc.StatusCode.CANCELLED, "so there")
    with pytest.raises(ShardUnavailable, match=remote.target) as caught:
        await remote.delete(DeleteRequest(collection="words", ids=IDS))
    assert caught.value.unanswered
    assert len(answering.calls) == 1


async def test_a_message_too_large_for_grpc_is_the_callers_mistake(
    answering: Answering, remote: RemoteShard
) -> None:
    text = "SERVER: Received message larger than max (70000000 vs. 67108864)"
    answering.fails_as_a_stranger(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    with pytest.raises(LimitExceeded):
        await remote.count(COUNT)


INCLUDE = Include(vectors=True, metadata=True)
IDS, VECTORS = int64s(1), some_vectors(1)

EVERY_CALL: dict[str, Callable[[RemoteShard], Awaitable[object]]] = {
    "topology": lambda remote: remote.topology(),
    "create": lambda remote: remote.create_collection(config_of()),
    "drop": lambda remote: remote.drop_collection("words"),
    "update": lambda remote: remote.update_collection(
        UpdateRequest(collection="words", target_recall=0.9)
    ),
    "list collections": lambda remote: remote.list_collections(),
    "describe": lambda remote: remote.describe("words"),
    "upsert": lambda remote: remote.upsert(
        UpsertRequest(collection="words", ids=IDS, vectors=VECTORS)
    ),
    "delete": lambda remote: remote.delete(DeleteRequest(collection="words", ids=IDS)),
    "get": lambda remote: remote.get(GetRequest(collection="words", ids=IDS, include=INCLUDE)),
    "count": lambda remote: remote.count(COUNT),
    "list": lambda remote: remote.list_rows(ListRequest(collection="words", include=INCLUDE)),
    "search": lambda remote: remote.search(
        SearchRequest(collection="words", queries=VECTORS, k=1, include=INCLUDE)
    ),
    "explain": lambda remote: remote.explain(
        ExplainRequest(collection="words", query=VECTORS, id=IDS)
    ),
    "train": lambda remote: remote.train(TrainRequest(collection="words")),
}


@pytest.mark.parametrize("ask", EVERY_CALL.values(), ids=EVERY_CALL)
async def test_an_answer_that_does_not_parse_is_the_servers_fault(
    answering: Answering, remote: RemoteShard, ask: Callable[[RemoteShard], Awaitable[object]]
) -> None:
    answering.says(b"\xff\xff\xff")
    with pytest.raises(InternalError, match=remote.target):
        await ask(remote)


@pytest.mark.parametrize("ask", EVERY_CALL.values(), ids=EVERY_CALL)
@given(payload=st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_the_servers_fault(
    ask: Callable[[RemoteShard], Awaitable[object]], payload: bytes
) -> None:
    async def asked() -> None:
        remote = RemoteShardThatHears(payload)
        try:
            await ask(remote)
        except InternalError:
            pass
        finally:
            await remote.close()

    asyncio.run(asked())


class RemoteShardThatHears(RemoteShard):
    """A remote shard whose every call is answered by the same bytes, without a server."""

    def __init__(self, payload: bytes) -> None:
        super().__init__("127.0.0.1:1")
        self._payload = payload

    async def _response(self, rpc: str, payload: bytes, call: Call) -> bytes:
        return self._payload


# ---- a link that is closed ----------------------------------------------------------------------


async def test_a_closed_link_is_unavailable(answering: Answering, remote: RemoteShard) -> None:
    answering.says(encode_count_response(3))
    await remote.count(COUNT)
    await remote.close()
    for ask in (remote.count(COUNT), remote.topology()):
        with pytest.raises(ShardUnavailable, match=f"{remote.target}: the connection is closed"):
            await ask
    await remote.close()


async def test_a_call_in_flight_when_the_link_closes_is_unavailable_and_not_cancelled(
    answering: Answering, remote: RemoteShard
) -> None:
    answering.hangs()
    asking = asyncio.ensure_future(remote.count(COUNT))
    await asyncio.wait_for(answering.began.wait(), DEADLINE_S)
    await remote.close()
    with pytest.raises(ShardUnavailable, match="closed"):
        await asyncio.wait_for(asking, DEADLINE_S)


async def test_a_server_that_comes_later_is_found(answering: Answering) -> None:
    answering.says(encode_count_response(3))
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(None)
    remote = RemoteShard(f"127.0.0.1:{port}")
    with pytest.raises(ShardUnavailable):
        await remote.count(COUNT)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Handler(answering.service),))
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    await server.start()
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            assert await remote.count(COUNT) == 3
            break
        except ShardUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0)  # an open breaker refuses without a turn of the event loop
    await remote.close()
    await server.stop(None)
