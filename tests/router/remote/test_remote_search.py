"""Searches of a remote shard, over its link and beside it, of a real server in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from tests.shard.samples import DEADLINE_S, config_of, corpus_of, open_shard, some_vectors
from vectorshard.client.link import WINDOW_REQUESTS
from vectorshard.router.fan_out.children import Named
from vectorshard.router.fan_out.router import Router
from vectorshard.router.remote.connection import RENEWAL_S, Connection, open_channel
from vectorshard.router.remote.remote_shard import LINK_BYTES_MAX, RemoteShard
from vectorshard.router.remote.search_links import LINK_AGE_S
from vectorshard.shard.config import Limits
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    DimensionMismatch,
    IncarnationMismatch,
    InternalError,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
    VectorShardError,
    WritesStopped,
)
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.telemetry import RpcMetrics
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    Include,
    SearchRequest,
    SearchResult,
    UpsertRequest,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping
from vectorshard.shard.wire.rpcs import GET_SERVER_INFO, SERVICE_NAME
from vectorshard.shard.wire.searches import (
    decode_search_request,
    decode_search_response,
    encode_search_request,
)

ROWS = 50
SEARCH = SearchRequest(collection="words", queries=some_vectors(2), k=3)
COUNT = CountRequest(collection="words")


class Served:
    """A shard behind a server that takes note of the calls that begin."""

    def __init__(self, shard: LocalShard) -> None:
        self.shard = shard
        self.began: list[str] = []
        self.lacks: set[str] = set()
        """Methods that it does not know."""
        self.address = "127.0.0.1:0"
        self.options: list[tuple[str, int]] = []
        self.peers: set[str] = set()
        """Who has made unary calls: one for each connection."""
        self.open_streams = 0
        self.stream_ended = asyncio.Event()

    async def start(self) -> None:
        """Start the server, where it was before if it was."""
        self.service = VectorService(self.shard, Limits(), "1.2.3", RpcMetrics(CollectorRegistry()))
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *self.options])
        self._server.add_generic_rpc_handlers((_Noting(self, self.service.handler()),))
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Stop the server as it is."""
        await self._server.stop(None)


class _Noting(grpc.GenericRpcHandler):
    def __init__(self, served: Served, handler: grpc.GenericRpcHandler) -> None:
        self._served = served
        self._handler = handler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = str(handler_call_details.method).removeprefix(f"/{SERVICE_NAME}/")
        if method != GET_SERVER_INFO:  # on a slow machine, a probe
            self._served.began.append(method)
        if method in self._served.lacks:
            return None
        handler: Any = self._handler.service(handler_call_details)
        if handler.unary_unary is not None:
            return handler._replace(unary_unary=self._noting_peers(handler.unary_unary))
        return handler._replace(stream_stream=self._counting(handler.stream_stream))

    def _noting_peers(self, answer: Any) -> Any:
        async def noting(payload: bytes, context: Any) -> bytes:
            self._served.peers.add(context.peer())
            response: bytes = await answer(payload, context)
            return response

        return noting

    def _counting(self, answers: Any) -> Any:
        async def counting(payloads: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self._served.open_streams += 1
            try:
                async for answer in answers(payloads, context):
                    yield answer
            finally:
                self._served.open_streams -= 1
                self._served.stream_ended.set()

        return counting


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    corpus = corpus_of(ROWS)
    await shard.upsert(UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors))
    served = Served(shard)
    await served.start()
    yield served
    await served.stop()
    await shard.close()


@pytest_asyncio.fixture
async def remote(served: Served) -> AsyncIterator[RemoteShard]:
    remote = RemoteShard(served.address)
    yield remote
    await remote.close()


class Hanging:
    """Searches of a shard that last until they are let go."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = asyncio.Event()
        self.withdrawn = asyncio.Event()
        self.let_go = asyncio.Event()
        self._search = served.shard.search
        monkeypatch.setattr(served.shard, "search", self.search)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Search once it may."""
        self.began.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.withdrawn.set()
            raise
        return await self._search(request, call=call)


async def within(waiting: Any) -> Any:
    """Wait for what must happen."""
    return await asyncio.wait_for(waiting, DEADLINE_S)


def same(one: SearchResult, other: SearchResult) -> bool:
    """Whether two answers are the same, bit by bit."""
    return (
        one.hits.ids.tolist() == other.hits.ids.tolist()
        and one.hits.counts.tolist() == other.hits.counts.tolist()
        and one.hits.scores.tobytes() == other.hits.scores.tobytes()
        and one.receipt == other.receipt
    )


# ---- over the link, and beside it ---------------------------------------------------------------


async def test_searches_share_one_stream_and_answer_as_the_shard_does(
    served: Served, remote: RemoteShard
) -> None:
    direct = await served.shard.search(SEARCH)
    answers = await asyncio.gather(*(remote.search(SEARCH) for _ in range(40)))
    assert all(same(answer, direct) for answer in answers)
    assert served.began == ["SearchStream"]


async def test_a_search_that_came_as_a_message_is_sent_on_as_it_came(
    served: Served, remote: RemoteShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = encode_search_request(replace(SEARCH)) + b"\xf8\x7f\x01"  # of a later contract
    arrived: list[SearchRequest] = []
    search = served.shard.search

    async def noted(request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        arrived.append(request)
        return await search(request, call=call)

    monkeypatch.setattr(served.shard, "search", noted)
    router = await Router.connect([remote])
    came = decode_search_request(payload, Limits())
    answer = await router.search(came)
    await router.search(replace(came, min_coverage=0.5))
    assert [request.encoded == payload for request in arrived] == [True, False]
    assert arrived[1].min_coverage == 0.0, "the router judges the coverage"
    assert answer.encoded is not None
    assert same(decode_search_response(answer.encoded, Include()), answer)


async def test_what_is_large_goes_by_a_call_of_its_own(served: Served, remote: RemoteShard) -> None:
    await served.shard.create_collection(config_of("wide", dim=1_024))
    queries = some_vectors(LINK_BYTES_MAX // (4 * 1_024), dim=1_024)
    many = SearchRequest(collection="wide", queries=queries, k=1)
    await remote.search(many)
    far = SearchRequest(collection="words", queries=some_vectors(10), k=10_000)
    await remote.search(far)
    assert served.began == ["Search", "Search"]


async def test_an_answer_that_turns_out_large_is_asked_for_again_by_a_call_of_its_own(
    served: Served, remote: RemoteShard
) -> None:
    corpus = corpus_of(ROWS)
    metadata = [metadata_from_mapping({"text": "x" * 60_000})] * ROWS
    await served.shard.upsert(
        UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors, metadata=metadata)
    )
    search = SearchRequest(
        collection="words", queries=some_vectors(1), k=ROWS, include=Include(metadata=True)
    )
    answer = await remote.search(search)
    assert answer.metadata == metadata
    assert served.began == ["SearchStream", "Search"]


async def test_what_finds_no_place_on_a_busy_link_goes_by_a_call_of_its_own(
    served: Served, remote: RemoteShard
) -> None:
    direct = await served.shard.search(SEARCH)
    answers = await asyncio.gather(*(remote.search(SEARCH) for _ in range(WINDOW_REQUESTS + 5)))
    assert all(same(answer, direct) for answer in answers)
    assert sorted(served.began) == ["Search"] * 5 + ["SearchStream"]


async def test_another_placement_is_another_link(served: Served, remote: RemoteShard) -> None:
    meant = Call(placement=fingerprint_of(await served.shard.topology()))
    for call in (NO_LIMIT, meant, meant, NO_LIMIT):
        await remote.search(SEARCH, call=call)
    assert served.began == ["SearchStream"] * 3


# ---- links and connections grow old -------------------------------------------------------------


async def test_an_old_link_ends_with_its_last_answer_while_another_is_searched_over(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    remote = RemoteShard(served.address, clock=lambda: now)
    hanging = Hanging(served, monkeypatch)
    slow = asyncio.ensure_future(remote.search(SEARCH))
    await within(hanging.began.wait())
    monkeypatch.undo()
    now += LINK_AGE_S - 1
    await remote.search(SEARCH)
    assert served.began == ["SearchStream"]
    now += 1
    await remote.search(SEARCH)
    await remote.search(SEARCH)
    assert served.began == ["SearchStream"] * 2
    hanging.let_go.set()
    assert same(await within(slow), await served.shard.search(SEARCH))
    await within(served.stream_ended.wait())
    assert served.open_streams == 1
    await remote.search(SEARCH)
    assert served.began == ["SearchStream"] * 2, "no link broke"
    await remote.close()


async def test_no_search_fails_while_connections_and_links_are_replaced_again_and_again(
    served: Served,
) -> None:
    await served.stop()
    served.options = [("grpc.max_connection_age_ms", 100)]
    await served.start()
    now = time.monotonic()
    remote = RemoteShard(served.address, clock=lambda: now)
    direct = await served.shard.search(SEARCH)
    rounds = 0
    while len(served.peers) < 5 or rounds < 90:
        now += LINK_AGE_S / 30
        over_the_link = [remote.search(SEARCH) for _ in range(4)]
        beside_it = [remote.count(COUNT) for _ in range(2)]
        answers = await within(asyncio.gather(*over_the_link))
        counts = await within(asyncio.gather(*beside_it))
        assert all(same(answer, direct) for answer in answers)
        assert counts == [ROWS] * 2
        rounds += 1
    assert set(served.began) == {"SearchStream", "Count"}, "no link broke"
    assert served.began.count("SearchStream") >= 3
    await remote.close()


async def test_whoever_is_not_who_was_meant_is_looked_up_anew(served: Served) -> None:
    now = time.monotonic()
    channels: list[grpc.aio.Channel] = []

    def channel_to(target: str) -> grpc.aio.Channel:
        channels.append(open_channel(target))
        return channels[-1]

    connection = Connection(served.address, channel_to=channel_to, clock=lambda: now)
    remote = RemoteShard(served.address, connection=connection)
    for_another = Call(placement="another")
    await remote.search(SEARCH)

    now += RENEWAL_S
    with pytest.raises(PlacementMismatch):
        await remote.search(SEARCH, call=for_another)
    assert len(channels) == 2
    await remote.search(SEARCH)
    links = served.began.count("SearchStream")
    now += RENEWAL_S
    with pytest.raises(PlacementMismatch):
        await remote.count(COUNT, call=for_another)
    assert len(channels) == 3
    await remote.search(SEARCH)
    assert served.began.count("SearchStream") == links + 1, "the link was the old channel's"
    now += RENEWAL_S
    await remote.topology()
    assert len(channels) == 3
    assert isinstance(remote, Named), "a router tells it to"
    remote.resolve_again()
    await remote.topology()
    assert len(channels) == 4
    now += RENEWAL_S
    served.lacks = {"Delete"}
    with pytest.raises(ShardUnavailable, match="not a vectorshard server"):
        await remote.delete(DeleteRequest(collection="words", ids=corpus_of(1).ids))
    assert len(channels) == 5
    assert same(await remote.search(SEARCH), await served.shard.search(SEARCH))
    await remote.close()


async def test_a_call_that_is_cut_with_a_channel_that_was_replaced_is_unavailable(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = asyncio.Event()

    async def hang(request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        began.set()
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(served.shard, "count", hang)
    channel = open_channel(served.address)
    connection = Connection(served.address, channel_to=lambda _: channel)
    remote = RemoteShard(served.address, connection=connection)
    asking = asyncio.ensure_future(remote.count(COUNT))
    await within(began.wait())
    await channel.close()
    with pytest.raises(ShardUnavailable, match="closed"):
        await within(asking)
    await remote.close()


async def test_whoever_finds_no_connection_looks_the_name_up_anew(served: Served) -> None:
    now = time.monotonic()
    opened = 0

    def channel_to(target: str) -> grpc.aio.Channel:
        nonlocal opened
        opened += 1
        return open_channel(served.address if opened > 1 else "127.0.0.1:1")

    connection = Connection("moved:7700", channel_to=channel_to, clock=lambda: now)
    remote = RemoteShard("moved:7700", connection=connection)
    now += RENEWAL_S
    with pytest.raises(ShardUnavailable, match="refused"):  # a write is not repeated
        await remote.delete(DeleteRequest(collection="words", ids=corpus_of(ROWS).ids))
    assert await remote.count(COUNT) == ROWS
    assert opened == 2
    await remote.close()


# ---- errors are those of the unary call ---------------------------------------------------------


async def asked_both_ways(
    served: Served, search: SearchRequest, call: Call
) -> list[VectorShardError]:
    """Return the errors of a search over the link, and of one by unary call."""
    errors = []
    for lacking in (set[str](), {"SearchStream"}):
        served.lacks = lacking
        served.began.clear()
        remote = RemoteShard(served.address)
        with pytest.raises(VectorShardError) as caught:
            await within(remote.search(search, call=call))
        errors.append(caught.value)
        assert served.began == (["SearchStream", "Search"] if lacking else ["SearchStream"])
        await remote.close()
    return errors


ABSENT = SearchRequest(collection="absent", queries=some_vectors(1), k=3)
NARROW = SearchRequest(collection="words", queries=np.zeros((1, 1), dtype=np.float32), k=3)


@pytest.mark.parametrize(
    ("search", "call", "kind"),
    [
        (ABSENT, NO_LIMIT, CollectionNotFound),
        (NARROW, NO_LIMIT, DimensionMismatch),
        (SEARCH, Call(incarnation="older"), IncarnationMismatch),
        (SEARCH, Call(placement="another"), PlacementMismatch),
    ],
)
async def test_a_refusal_is_the_same_over_the_link(
    served: Served, search: SearchRequest, call: Call, kind: type[VectorShardError]
) -> None:
    linked, unary = await asked_both_ways(served, search, call)
    assert type(linked) is type(unary) is kind
    assert str(linked) == str(unary)
    assert vars(linked) == vars(unary)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Overloaded("full"), Overloaded),
        (ShardUnavailable("shard 7 is gone"), ShardUnavailable),
        (WritesStopped("of the disk"), WritesStopped),
        (KeyError("the secret"), InternalError),
    ],
)
async def test_a_failure_is_the_same_over_the_link(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[VectorShardError],
) -> None:
    async def fail(request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        raise error

    monkeypatch.setattr(served.shard, "search", fail)
    linked, unary = await asked_both_ways(served, SEARCH, NO_LIMIT)
    assert type(linked) is type(unary) is kind
    assert bool(linked.error_id) == bool(unary.error_id) == (kind in {WritesStopped, InternalError})
    hidden = str.maketrans("0123456789abcdef", "0" * 16)  # the ids differ
    assert str(linked).translate(hidden) == str(unary).translate(hidden)


async def test_a_deadline_that_passes_meanwhile_is_exceeded_and_names_the_server(
    served: Served, remote: RemoteShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(served, monkeypatch)
    with pytest.raises(DeadlineExceeded, match=remote.target):
        await remote.search(SEARCH, call=Call(deadline=time.monotonic() + 0.05))
    await within(hanging.withdrawn.wait())
    hanging.let_go.set()
    await remote.search(SEARCH)
    assert served.began == ["SearchStream"], "the link is as good as before"


async def test_a_server_that_is_missing_is_unavailable_and_named() -> None:
    nobody = RemoteShard("127.0.0.1:1")
    with pytest.raises(ShardUnavailable, match=r"127\.0\.0\.1:1: .*refused"):
        await nobody.search(SEARCH)
    await nobody.close()


async def test_a_stranger_is_told_from_a_server_of_ours(
    served: Served, remote: RemoteShard
) -> None:
    served.lacks = {"SearchStream", "Search"}
    with pytest.raises(ShardUnavailable, match="not a vectorshard server"):
        await remote.search(SEARCH)


async def test_a_server_without_search_stream_is_searched_by_unary_calls(
    served: Served, remote: RemoteShard
) -> None:
    served.lacks = {"SearchStream"}
    assert same(await remote.search(SEARCH), await served.shard.search(SEARCH))


# ---- who leaves, and what breaks ----------------------------------------------------------------


async def test_who_is_no_longer_waited_for_is_told(
    served: Served, remote: RemoteShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(served, monkeypatch)
    asking = asyncio.ensure_future(remote.search(SEARCH))
    await within(hanging.began.wait())
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await within(hanging.withdrawn.wait())


@pytest.mark.parametrize("large", [False, True], ids=["link", "call"])
async def test_who_leaves_a_router_is_withdrawn_at_the_shard_unless_others_share_the_search(
    served: Served, remote: RemoteShard, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    router = await Router.connect([remote])
    await router.search(SEARCH)
    search = replace(SEARCH, queries=some_vectors(10), k=10_000) if large else SEARCH
    hanging = Hanging(served, monkeypatch)
    first, second, third = (asyncio.ensure_future(router.search(search)) for _ in range(3))
    await within(hanging.began.wait())
    hanging.began.clear()
    first.cancel()
    await within(hanging.withdrawn.wait())
    hanging.withdrawn.clear()
    await within(hanging.began.wait())  # the other two, as one
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert not hanging.withdrawn.is_set()
    third.cancel()
    await within(hanging.withdrawn.wait())
    assert ("Search" in served.began) == large


async def test_a_broken_link_is_followed_by_a_call_and_by_a_new_link(
    served: Served, remote: RemoteShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(served, monkeypatch)
    asking = [asyncio.ensure_future(remote.search(SEARCH)) for _ in range(5)]
    await within(hanging.began.wait())
    await served.stop()
    for caller in asking:
        with pytest.raises(ShardUnavailable, match=remote.target):
            await within(caller)
    await served.start()
    hanging.let_go.set()
    served.began.clear()
    deadline = time.monotonic() + DEADLINE_S
    while True:  # the channel waits a moment before it tries anew
        try:
            await remote.search(SEARCH)
            break
        except ShardUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0)  # an open breaker refuses without a turn of the event loop
    await remote.search(SEARCH)
    assert served.began[-1:] == ["SearchStream"]


async def test_a_server_that_drains_answers_what_it_has_and_the_rest_is_asked_by_calls(
    served: Served, remote: RemoteShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(served, monkeypatch)
    asking = asyncio.ensure_future(remote.search(SEARCH))
    await within(hanging.began.wait())
    draining = asyncio.ensure_future(served.service.drain())
    hanging.let_go.set()
    await within(asking)
    assert await within(draining), "a stream had to be ended"
    await remote.search(SEARCH)
    assert served.began[0] == "SearchStream"
    assert served.began[-1] == "Search"


async def test_a_search_in_flight_when_the_remote_closes_is_unavailable_and_not_cancelled(
    served: Served, remote: RemoteShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(served, monkeypatch)
    asking = asyncio.ensure_future(remote.search(SEARCH))
    await within(hanging.began.wait())
    await within(remote.close())
    with pytest.raises(ShardUnavailable, match="closed"):
        await within(asking)
    with pytest.raises(ShardUnavailable, match="closed"):
        await within(remote.search(SEARCH))
