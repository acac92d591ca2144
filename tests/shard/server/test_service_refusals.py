"""The service in this process, over its bare bytes: what it refuses when it has too much to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has stubs, but no py.typed

from tests.shard.samples import DEADLINE_S, int64s
from tests.shard.server.served import (
    LIMITS,
    SEARCH,
    Served,
    next_answer,
    search_message,
    serving,
    upsert_of,
)
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import MalformedMessage, Overloaded, PlacementMismatch
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.server.search_limiter import ALWAYS_ACCEPTED, Place, SearchLimiter
from vectorshard.shard.server.status import DETAILS_KEY, RETRY_DELAY_S, error_from_rpc, read_status
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    SearchRequest,
    SearchResult,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire.rpcs import SERVICE_NAME
from vectorshard.shard.wire.searches import encode_search_request
from vectorshard.shard.wire.writes import decode_upsert_response, encode_delete_request

# ---- the budget of all writes -------------------------------------------------------------------


async def test_a_write_without_room_is_refused_at_once_but_a_routers_waits(tmp_path: Path) -> None:
    payload = upsert_of(0)
    deletion = encode_delete_request(DeleteRequest(collection="words", ids=int64s(0)))
    async with serving(tmp_path, replace(LIMITS, write_bytes=len(payload))) as served:
        begun, may_go_on = asyncio.Event(), asyncio.Event()
        written = served.shard.upsert

        async def upsert(request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
            begun.set()
            await may_go_on.wait()
            return await written(request, call=call)

        served.shard.upsert = upsert  # type: ignore[method-assign]
        first = asyncio.ensure_future(served.call("Upsert", payload))
        await begun.wait()
        for method, refused in (("Upsert", upsert_of(5)), ("Delete", deletion)):
            code, error = await served.refusal(method, refused)
            assert (code, type(error)) == ("RESOURCE_EXHAUSTED", Overloaded)
        router = Call(placement=fingerprint_of(await served.shard.topology()))
        waiting = asyncio.ensure_future(served.call("Upsert", upsert_of(5), router))
        stream = served.stream("UpsertStream")
        await stream.write(upsert_of(10))
        await served.call("GetServerInfo", b"")
        assert not waiting.done()
        may_go_on.set()
        await first
        await waiting
        acknowledged = decode_upsert_response(await stream.read())  # type: ignore[arg-type]
        assert acknowledged[0].accepted == 5
        await stream.done_writing()
        assert await served.shard.count(CountRequest(collection="words")) == 15
        await served.call("Upsert", upsert_of(15))


async def test_a_routers_write_that_waited_is_refused_if_the_server_has_become_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = upsert_of(0)
    async with serving(tmp_path, replace(LIMITS, write_bytes=len(payload))) as served:
        begun, may_go_on = asyncio.Event(), asyncio.Event()
        written = served.shard.upsert

        async def upsert(request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
            begun.set()
            await may_go_on.wait()
            return await written(request, call=call)

        monkeypatch.setattr(served.shard, "upsert", upsert)
        first = asyncio.ensure_future(served.call("Upsert", payload))
        await begun.wait()
        before = await served.shard.topology()
        router = Call(placement=fingerprint_of(before))
        waiting = asyncio.ensure_future(served.refusal("Upsert", upsert_of(5), router))
        await served.call("GetServerInfo", b"", router)

        async def topology(*, call: Call = NO_LIMIT) -> Topology:
            return replace(before, cluster="other")

        monkeypatch.setattr(served.shard, "topology", topology)
        assert not waiting.done()
        may_go_on.set()
        await first
        _, error = await waiting
        assert isinstance(error, PlacementMismatch)
        assert await served.shard.count(CountRequest(collection="words")) == 5


# ---- what is refused on arrival -----------------------------------------------------------------


@dataclass
class Held:
    """A service whose searches are begun and held, until they may go on."""

    served: Served
    begun: asyncio.Semaphore
    may_go_on: asyncio.Event

    async def begin(self) -> asyncio.Task[bytes]:
        """Begin a search, and return when it runs."""
        running = asyncio.ensure_future(self.served.call("Search", SEARCH_BYTES))
        await asyncio.wait_for(self.begun.acquire(), DEADLINE_S)
        return running


SEARCH_BYTES = encode_search_request(SEARCH)


@asynccontextmanager
async def holding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> AsyncIterator[Held]:
    async with serving(tmp_path, limits) as served:
        held = Held(served, asyncio.Semaphore(0), asyncio.Event())
        search = served.shard.search

        async def held_search(request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
            held.begun.release()
            await held.may_go_on.wait()
            return await search(request, call=call)

        monkeypatch.setattr(served.shard, "search", held_search)
        yield held


def retry_delay_s(error: grpc.aio.AioRpcError) -> float:
    """Return what RetryInfo says."""
    (details,) = [value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY]
    assert isinstance(details, bytes)
    retry = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(retry)
    return float(retry.retry_delay.ToTimedelta().total_seconds())


async def test_a_search_too_many_is_refused_unread_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with holding(tmp_path, monkeypatch, replace(LIMITS, searches=2)) as held:
        running = [await held.begin(), await held.begin()]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await held.served.call("Search", b"no bytes of a message")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "too many searches in progress: the limit is 2"
        assert retry_delay_s(caught.value) == RETRY_DELAY_S
        assert isinstance(error_from_rpc(caught.value), Overloaded)
        assert await held.served.counted("Search", "RESOURCE_EXHAUSTED") == 1
        stream = held.served.stream("SearchStream")
        await stream.write(search_message(1))
        assert isinstance(read_status((await next_answer(stream)).error)[1], Overloaded)
        held.may_go_on.set()
        await asyncio.gather(*running)
        await held.served.call("Search", SEARCH_BYTES)


async def test_a_search_whose_bytes_are_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with holding(tmp_path, monkeypatch, replace(LIMITS, search_bytes=1)) as held:
        running = await held.begin()  # alone, it may have more
        code, error = await held.served.refusal("Search", SEARCH_BYTES)
        assert (code, type(error)) == ("RESOURCE_EXHAUSTED", Overloaded)
        held.may_go_on.set()
        await running
        await held.served.call("Search", SEARCH_BYTES)


async def test_a_call_or_stream_too_many_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(LIMITS, calls=3, streams=2)
    async with holding(tmp_path, monkeypatch, limits) as held:
        streams = [held.served.stream("UpsertStream"), held.served.stream("SearchStream")]
        await streams[0].write(upsert_of(0))
        await streams[0].read()
        await streams[1].write(b"no bytes of a message")
        await streams[1].read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await held.served.stream("SearchStream").read()
        assert caught.value.details() == "too many open streams: the limit is 2"
        assert retry_delay_s(caught.value) == RETRY_DELAY_S
        running = await held.begin()
        for method, payload in (("Count", b""), ("GetServerInfo", b""), ("Upsert", upsert_of(0))):
            code, error = await held.served.refusal(method, payload)
            assert (code, str(error)) == (
                "RESOURCE_EXHAUSTED",
                "too many calls in progress: the limit is 3",
            )
        held.may_go_on.set()
        await running
        for stream in streams:
            await stream.done_writing()
            await stream.read()


async def test_a_search_that_has_no_time_to_wait_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = SearchLimiter(LIMITS.searches)
    monkeypatch.setattr("vectorshard.shard.server.service.SearchLimiter", lambda _: gate)
    async with serving(tmp_path) as served:
        monkeypatch.setattr(SearchLimiter, "expected_wait_s", 1e6)
        places = [gate.enter(None) for _ in range(ALWAYS_ACCEPTED)]
        unread: Any = served.channel.stream_unary(f"/{SERVICE_NAME}/Search")(timeout=DEADLINE_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unread  # it has not even been sent
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the deadline is in" in (caught.value.details() or "")
        assert retry_delay_s(caught.value) == RETRY_DELAY_S
        assert await served.counted("Search", "RESOURCE_EXHAUSTED") == 1
        with places[0]:
            pass
        await served.call("Search", SEARCH_BYTES)


async def test_searches_are_weighed_by_what_their_receipts_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = SearchLimiter(LIMITS.searches)
    monkeypatch.setattr("vectorshard.shard.server.service.SearchLimiter", lambda _: gate)
    async with serving(tmp_path) as served:
        weighed: list[SearchRequest] = []
        weigh = Place.weigh

        def weigh_and_note(place: Place, request: SearchRequest) -> None:
            weighed.append(request)
            weigh(place, request)

        monkeypatch.setattr(Place, "weigh", weigh_and_note)
        before = gate._expected.of(SEARCH)
        await served.call("Upsert", upsert_of(0))
        await served.call("Search", SEARCH_BYTES)
        after_unary = gate._expected.of(SEARCH)
        await served.call("Upsert", upsert_of(100))
        stream = served.stream("SearchStream")
        await stream.write(search_message(1))
        assert (await next_answer(stream)).response is not None
        await stream.done_writing()
        assert before < after_unary < gate._expected.of(SEARCH)  # it scans more rows
        assert [len(each.queries) for each in weighed] == 2 * [len(SEARCH.queries)]


async def test_a_search_without_a_request_is_refused(served: Served) -> None:
    nothing: Any = served.channel.stream_unary(f"/{SERVICE_NAME}/Search")(timeout=DEADLINE_S)
    await nothing.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await nothing
    assert isinstance(error_from_rpc(caught.value), MalformedMessage)


class _Departed:
    """The context of a call whose caller has left: gRPC accepts no status for it any more."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> float:
        return 0.001

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def read(self) -> bytes:
        return b"\xff"

    async def abort(self, *_: object) -> None:
        raise grpc.aio.InternalError('Failed "execute_batch"')


@dataclass
class _Search:
    method: str = f"/{SERVICE_NAME}/Search"
    invocation_metadata: tuple[()] = ()


async def test_an_error_for_a_caller_that_has_left_is_no_fault_of_the_server(
    served: Served,
) -> None:
    handler: Any = served.service.handler().service(_Search())  # type: ignore[arg-type]  # what gRPC gives it
    with pytest.raises(asyncio.CancelledError):
        await handler.stream_unary(None, _Departed())
