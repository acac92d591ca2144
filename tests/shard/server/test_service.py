"""The service in this process, over its bare bytes: statuses, streams and the drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.rpc import (  # type: ignore[import-untyped]  # it has stubs, but no py.typed
    error_details_pb2,
    status_pb2,
)
from prometheus_client import CollectorRegistry

from tests.shard.samples import (
    DEADLINE_S,
    config_of,
    corpus_of,
    identity_of,
    int64s,
    open_shard,
    some_vectors,
)
from vectorshard.shard import wire
from vectorshard.shard.config import Limits
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    InternalError,
    InvalidVector,
    MalformedMessage,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
    VectorShardError,
    WritesStopped,
)
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.server.run import server_options
from vectorshard.shard.server.search_limiter import ALWAYS_TAKEN, SearchGate
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.status import DETAILS_KEY, RETRY_DELAY_S, error_from_rpc, read_status
from vectorshard.shard.server.telemetry import RpcMetrics
from vectorshard.shard.server.upsert_stream import WINDOW_MESSAGES
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    GetRequest,
    Include,
    ListRequest,
    Role,
    SearchRequest,
    SearchResult,
    ShardDescription,
    Token,
    Topology,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire.call_metadata import metadata_of
from vectorshard.shard.wire.rpcs import SERVICE_NAME

LIMITS = Limits()

Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
Streaming: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"


@dataclass
class Served:
    """A shard behind a service on a port of this machine, and ways to call it with bytes."""

    shard: LocalShard
    service: VectorService
    channel: grpc.aio.Channel
    registry: CollectorRegistry

    async def call(self, method: str, payload: bytes, call: Call = NO_LIMIT) -> bytes:
        rpc: Unary = self.channel.unary_unary(f"/{SERVICE_NAME}/{method}")
        answer: bytes = await rpc(payload, timeout=DEADLINE_S, metadata=metadata_of(call))
        return answer

    def stream(self, method: str) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        return self.channel.stream_stream(f"/{SERVICE_NAME}/{method}")(timeout=DEADLINE_S)

    async def refusal(
        self, method: str, payload: bytes = b"", call: Call = NO_LIMIT
    ) -> tuple[str, VectorShardError]:
        """Call what must fail; return the code and the error that it stands for."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, payload, call)
        return caught.value.code().name, error_from_rpc(caught.value)

    async def counted(self, method: str, code: str) -> float:
        """Return how many calls were counted, which happens after they are answered."""
        labels = {"method": method, "code": code}
        deadline = time.monotonic() + DEADLINE_S
        while True:
            count = self.registry.get_sample_value("vectorshard_calls_total", labels)
            if count is not None:
                return count
            assert time.monotonic() < deadline, "never counted"
            await self.call("GetServerInfo", b"")


@asynccontextmanager
async def serving(tmp_path: Path, limits: Limits = LIMITS) -> AsyncIterator[Served]:
    """Serve a shard with an empty collection."""
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    registry = CollectorRegistry()
    service = VectorService(shard, limits, "1.2.3", RpcMetrics(registry))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(shard, service, channel, registry)
    await server.stop(None)
    await shard.close()


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


def upsert_of(first: int, rows: int = 5, request_id: int = 0) -> bytes:
    ids = np.arange(first, first + rows)
    vectors = some_vectors(rows, seed=first)
    request = UpsertRequest(collection="words", ids=ids, vectors=vectors)
    return wire.encode_upsert_request(request, request_id)


SEARCH = SearchRequest(collection="words", queries=some_vectors(2), k=3)


# ---- unary calls --------------------------------------------------------------------------------


async def test_a_search_over_the_wire_answers_as_the_shard_does(served: Served) -> None:
    corpus = corpus_of(50)
    await served.shard.upsert(
        UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors)
    )
    payload = await served.call("Search", wire.encode_search_request(SEARCH))
    over_wire = wire.decode_search_response(payload, Include())
    direct = await served.shard.search(SEARCH)
    assert over_wire.hits.ids.tolist() == direct.hits.ids.tolist()
    assert over_wire.hits.scores.tobytes() == direct.hits.scores.tobytes()
    assert over_wire.receipt == direct.receipt
    assert await served.counted("Search", "OK") == 1


async def test_the_server_says_its_version_topology_and_limits(served: Served) -> None:
    payload = await served.call("GetServerInfo", wire.encode_get_server_info_request())
    version, topology, limits = wire.decode_get_server_info_response(payload)
    assert (version, topology.role, limits.k) == ("1.2.3", Role.SHARD, LIMITS.k)
    assert topology.cluster == identity_of().cluster


async def test_the_server_says_its_topology_as_it_is_now(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.call("GetServerInfo", b"")
    moved = replace(await served.shard.topology(), placement_epoch=9)

    async def topology(*, call: Call = NO_LIMIT) -> Topology:
        return moved

    monkeypatch.setattr(served.shard, "topology", topology)
    for _ in range(2):
        payload = await served.call("GetServerInfo", b"")
        assert wire.decode_get_server_info_response(payload)[1] == moved


@pytest.mark.parametrize("method", ["Search", "Upsert", "Get", "CreateCollection", "Train"])
async def test_bytes_that_do_not_parse_are_the_callers_mistake(served: Served, method: str) -> None:
    code, error = await served.refusal(method, b"\xff\xff\xff")
    assert code == "INVALID_ARGUMENT"
    assert isinstance(error, MalformedMessage)
    assert await served.counted(method, "INVALID_ARGUMENT") == 1


async def test_an_error_keeps_its_kind_field_and_row_over_the_wire(served: Served) -> None:
    code, error = await served.refusal(
        "Count", wire.encode_count_request(CountRequest(collection="absent"))
    )
    assert code == "NOT_FOUND"
    assert isinstance(error, CollectionNotFound)
    vectors = some_vectors(3)
    vectors[2, 2] = np.nan
    request = UpsertRequest(collection="words", ids=int64s(1, 2, 3), vectors=vectors)
    code, error = await served.refusal("Upsert", wire.encode_upsert_request(request))
    assert code == "INVALID_ARGUMENT"
    assert isinstance(error, InvalidVector)
    assert (error.field, error.row) == ("vectors", 2)


async def test_an_unexpected_error_shows_an_opaque_id_and_nothing_else(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def spoiled(request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        raise KeyError("the secret")

    monkeypatch.setattr(served.shard, "count", spoiled)
    code, error = await served.refusal(
        "Count", wire.encode_count_request(CountRequest(collection="words"))
    )
    assert code == "INTERNAL"
    assert isinstance(error, InternalError)
    assert len(error.error_id) == 16
    assert "secret" not in str(error)
    assert await served.counted("Count", "INTERNAL") == 1


async def test_an_error_whose_story_another_server_keeps_is_passed_on_as_it_is(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = WritesStopped("The disk failed a write. The server's log tells more, under abc.")
    told.error_id = "abc"

    async def refused(request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        raise told

    monkeypatch.setattr(served.shard, "count", refused)
    code, error = await served.refusal(
        "Count", wire.encode_count_request(CountRequest(collection="words"))
    )
    assert (code, type(error)) == ("FAILED_PRECONDITION", WritesStopped)
    assert (str(error), error.error_id) == (str(told), "abc")


async def test_the_callers_deadline_reaches_the_shard_and_who_has_none_gets_one(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_s: list[float] = []

    async def count(request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        assert call.deadline is not None
        left_s.append(call.deadline - time.monotonic())
        return 7

    monkeypatch.setattr(served.shard, "count", count)
    payload = wire.encode_count_request(CountRequest(collection="words"))
    rpc: Unary = served.channel.unary_unary(f"/{SERVICE_NAME}/Count")
    assert wire.decode_count_response(await rpc(payload, timeout=DEADLINE_S)) == 7
    await rpc(payload)
    default_s = Limits().default_timeout_ms / 1_000
    assert left_s == pytest.approx([DEADLINE_S, default_s], abs=5.0)


async def test_each_message_of_an_upload_has_its_own_time_and_a_training_takes_what_it_takes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float | None] = []

    async def upsert(request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        deadlines.append(call.deadline)
        return UpsertResult(accepted=1, errors=(), token=Token(incarnation="x"))

    async def train(request: TrainRequest, *, call: Call = NO_LIMIT) -> list[ShardDescription]:
        assert call.deadline is None
        return []

    monkeypatch.setattr(served.shard, "upsert", upsert)
    monkeypatch.setattr(served.shard, "train", train)
    stream: Streaming = served.channel.stream_stream(f"/{SERVICE_NAME}/UpsertStream")
    ids = int64s(1)
    message = wire.encode_upsert_request(
        UpsertRequest(collection="words", ids=ids, vectors=some_vectors(1))
    )
    began = time.monotonic()
    async for _ in stream(iter([message, message])):
        pass
    assert len(deadlines) == 2
    assert all(each is not None and each >= began + 29.0 for each in deadlines)
    rpc: Unary = served.channel.unary_unary(f"/{SERVICE_NAME}/Train")
    await rpc(wire.encode_train_request(TrainRequest(collection="words")))


# ---- whom a call means --------------------------------------------------------------------------

COUNT = wire.encode_count_request(CountRequest(collection="words"))

EVERY_UNARY_CALL = {
    "CreateCollection": b"",
    "DropCollection": wire.encode_drop_collection_request("words"),
    "ListCollections": wire.encode_list_collections_request(),
    "DescribeCollection": wire.encode_describe_collection_request("words"),
    "Upsert": upsert_of(0),
    "Delete": wire.encode_delete_request(DeleteRequest(collection="words", ids=int64s(1))),
    "Get": wire.encode_get_request(GetRequest(collection="words", ids=int64s(1))),
    "Count": COUNT,
    "List": wire.encode_list_request(ListRequest(collection="words")),
    "Search": wire.encode_search_request(SEARCH),
    "Train": wire.encode_train_request(TrainRequest(collection="words")),
    "GetServerInfo": wire.encode_get_server_info_request(),
}


@pytest.mark.parametrize("method", EVERY_UNARY_CALL)
async def test_a_call_that_takes_the_server_for_another_is_refused_and_does_nothing(
    served: Served, method: str
) -> None:
    meant = Call(placement=fingerprint_of(replace(await served.shard.topology(), cluster="other")))
    code, error = await served.refusal(method, EVERY_UNARY_CALL[method], meant)
    assert code == "FAILED_PRECONDITION"
    assert isinstance(error, PlacementMismatch)
    assert "shards 0 of 1 of cluster cluster, placement epoch 1" in str(error)
    assert await served.counted(method, "FAILED_PRECONDITION") == 1
    description = await served.shard.describe("words")
    assert description.ledger.accepted == 0


@pytest.mark.parametrize("method", sorted(EVERY_UNARY_CALL.keys() - {"CreateCollection"}))
async def test_a_call_that_takes_the_server_for_what_it_is_is_answered(
    served: Served, method: str
) -> None:
    meant = Call(placement=fingerprint_of(await served.shard.topology()))
    for call in (meant, NO_LIMIT):
        await served.shard.create_collection(config_of())
        await served.call(method, EVERY_UNARY_CALL[method], call=call)


async def test_a_server_that_has_become_another_knows_it_at_the_next_call(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await served.shard.topology()
    meant = Call(placement=fingerprint_of(before))
    await served.call("Count", COUNT, call=meant)
    now = replace(before, cluster="other")

    async def topology(*, call: Call = NO_LIMIT) -> Topology:
        return now

    monkeypatch.setattr(served.shard, "topology", topology)
    _, error = await served.refusal("Count", COUNT, meant)
    assert isinstance(error, PlacementMismatch)
    await served.call("Count", COUNT, call=Call(placement=fingerprint_of(now)))


async def test_a_call_that_means_another_incarnation_is_refused(served: Served) -> None:
    incarnation = (await served.shard.describe("words")).incarnation
    await served.call("Count", COUNT, call=Call(incarnation=incarnation))
    code, error = await served.refusal("Count", COUNT, Call(incarnation="older"))
    assert code == "FAILED_PRECONDITION"
    assert isinstance(error, IncarnationMismatch)


async def test_a_collection_is_created_under_the_incarnation_that_the_caller_gives(
    served: Served,
) -> None:
    config = config_of("other")
    payload = wire.encode_create_collection_request(
        name=config.name,
        dim=config.dim,
        metric=config.metric,
        id_type=config.id_type,
        index=config.index,
        target_recall=config.target_recall,
    )
    answer = await served.call("CreateCollection", payload, call=Call(incarnation="given"))
    entry, created = wire.decode_create_collection_response(answer)
    assert (entry.incarnation, created) == ("given", True)


# ---- UpsertStream -------------------------------------------------------------------------------


async def test_each_message_of_an_upload_is_acknowledged_in_order(served: Served) -> None:
    stream = served.stream("UpsertStream")
    messages = 5 * WINDOW_MESSAGES

    async def send() -> None:
        for number in range(messages):
            await stream.write(upsert_of(5 * number, request_id=number + 1))
        await stream.done_writing()

    sending = asyncio.ensure_future(send())
    results = [wire.decode_upsert_response(payload) async for payload in stream]
    await sending
    assert [request_id for _, request_id in results] == list(range(1, messages + 1))
    assert {result.accepted for result, _ in results} == {5}
    assert await served.shard.count(CountRequest(collection="words")) == 5 * messages
    assert await served.counted("UpsertStream", "OK") == 1


async def test_an_empty_upload_ends_well(served: Served) -> None:
    stream = served.stream("UpsertStream")
    await stream.done_writing()
    assert [payload async for payload in stream] == []
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_bad_message_ends_an_upload_after_the_acknowledgements_before_it(
    served: Served,
) -> None:
    stream = served.stream("UpsertStream")
    await stream.write(upsert_of(0, request_id=1))
    await stream.write(upsert_of(5, request_id=2))
    await stream.write(b"\xff\xff\xff")
    for request_id in (1, 2):
        acknowledgement = await stream.read()
        assert isinstance(acknowledgement, bytes)
        assert wire.decode_upsert_response(acknowledgement)[1] == request_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert isinstance(error_from_rpc(caught.value), MalformedMessage)
    assert await served.shard.count(CountRequest(collection="words")) == 10
    assert await served.counted("UpsertStream", "INVALID_ARGUMENT") == 1


async def test_an_error_of_the_shard_ends_an_upload_with_its_status(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        raise Overloaded("the disk is full")

    monkeypatch.setattr(served.shard, "upsert", full)
    stream = served.stream("UpsertStream")
    await stream.write(upsert_of(0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(error_from_rpc(caught.value), Overloaded)


async def test_a_drain_ends_an_open_upload_and_keeps_what_was_acknowledged(served: Served) -> None:
    stream = served.stream("UpsertStream")
    await stream.write(upsert_of(0, request_id=1))
    acknowledged = await stream.read()
    assert isinstance(acknowledged, bytes)
    assert wire.decode_upsert_response(acknowledged)[1] == 1
    assert await served.service.drain(), "a stream had to be ended"
    assert not await served.service.drain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error_from_rpc(caught.value), ShardUnavailable)
    assert await served.shard.count(CountRequest(collection="words")) == 5


async def test_an_upload_that_its_caller_abandons_harms_nobody(served: Served) -> None:
    stream = served.stream("UpsertStream")
    for number in range(3):
        await stream.write(upsert_of(5 * number))
    await stream.read()
    stream.cancel()
    payload = wire.encode_count_request(CountRequest(collection="words"))
    counted = wire.decode_count_response(await served.call("Count", payload))
    assert counted in {5, 10, 15}


# ---- SearchStream -------------------------------------------------------------------------------


def search_message(
    request_id: int, request: SearchRequest = SEARCH, incarnation: str = ""
) -> bytes:
    return wire.encode_search_stream_request(
        wire.StreamRequest(
            request_id=request_id,
            search=wire.encode_search_request(request),
            incarnation=incarnation,
        )
    )


async def next_answer(stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> wire.StreamAnswer:
    payload = await stream.read()
    assert isinstance(payload, bytes)
    return wire.decode_search_stream_response(payload)


async def test_a_stream_answers_as_search_does_and_each_message_counts_as_one(
    served: Served,
) -> None:
    await served.call("Upsert", upsert_of(0, rows=40))
    unary = await served.call("Search", wire.encode_search_request(SEARCH))
    stream = served.stream("SearchStream")
    for request_id in (1, 2, 3):
        await stream.write(search_message(request_id))
        assert await next_answer(stream) == wire.StreamAnswer(request_id=request_id, response=unary)
    await stream.write(search_message(4, replace(SEARCH, collection="absent")))
    _, error = read_status((await next_answer(stream)).error)
    assert isinstance(error, CollectionNotFound)
    await stream.write(
        wire.encode_search_stream_request(wire.StreamRequest(request_id=5, search=b"\xff"))
    )
    _, error = read_status((await next_answer(stream)).error)
    assert isinstance(error, MalformedMessage)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    assert await served.counted("Search", "OK") == 4
    assert await served.counted("Search", "NOT_FOUND") == 1
    assert await served.counted("Search", "INVALID_ARGUMENT") == 1
    assert await served.counted("SearchStream", "OK") == 1


async def test_whom_a_stream_means_is_checked_for_every_message(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await served.shard.topology()
    meant = Call(placement=fingerprint_of(before))
    rpc: Streaming = served.channel.stream_stream(f"/{SERVICE_NAME}/SearchStream")
    stream = rpc(timeout=DEADLINE_S, metadata=metadata_of(meant))
    await stream.write(search_message(1))
    assert (await next_answer(stream)).response is not None

    async def topology(*, call: Call = NO_LIMIT) -> Topology:
        return replace(before, cluster="other")

    monkeypatch.setattr(served.shard, "topology", topology)
    await stream.write(search_message(2))
    _, error = read_status((await next_answer(stream)).error)
    assert isinstance(error, PlacementMismatch)
    await stream.done_writing()
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_message_that_means_another_incarnation_is_refused_alone(served: Served) -> None:
    incarnation = (await served.shard.describe("words")).incarnation
    stream = served.stream("SearchStream")
    await stream.write(search_message(1, incarnation="older"))
    _, error = read_status((await next_answer(stream)).error)
    assert isinstance(error, IncarnationMismatch)
    await stream.write(search_message(2, incarnation=incarnation))
    assert (await next_answer(stream)).response is not None
    await stream.done_writing()


async def test_an_unexpected_error_is_opaque_in_a_stream_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def spoiled(request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        raise KeyError("the secret")

    monkeypatch.setattr(served.shard, "search", spoiled)
    stream = served.stream("SearchStream")
    await stream.write(search_message(1))
    answer = await next_answer(stream)
    code, error = read_status(answer.error)
    assert (code.name, len(error.error_id)) == ("INTERNAL", 16)
    assert b"secret" not in answer.error
    await stream.done_writing()
    assert await served.counted("Search", "INTERNAL") == 1


@pytest.mark.parametrize("over", [0, 1, wire.ENVELOPE_BYTES])
async def test_an_answer_that_fits_only_without_its_envelope_is_refused_alone(
    tmp_path: Path, over: int
) -> None:
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    ids, vectors = np.arange(40), some_vectors(40)
    await shard.upsert(UpsertRequest(collection="words", ids=ids, vectors=vectors))
    request = replace(SEARCH, k=40)
    largest = wire.encode_search_response(await shard.search(request), LIMITS)
    limits = replace(LIMITS, message_bytes=len(largest) + wire.ENVELOPE_BYTES - over)
    service = VectorService(shard, limits, "1.2.3", RpcMetrics(CollectorRegistry()))
    server = grpc.aio.server(options=server_options(limits))
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        rpc: Streaming = channel.stream_stream(f"/{SERVICE_NAME}/SearchStream")
        stream = rpc(timeout=DEADLINE_S)
        for request_id in (2**64 - 1, 1):
            await stream.write(search_message(request_id, request))
            answer = await next_answer(stream)
            assert answer.request_id == request_id
            assert (answer.response == largest) == (not over)
        await stream.done_writing()
    await server.stop(None)
    await shard.close()


async def test_a_drain_ends_an_open_search_stream(served: Served) -> None:
    stream = served.stream("SearchStream")
    await stream.write(search_message(1))
    assert (await next_answer(stream)).response is not None
    assert await served.service.drain(), "a stream had to be ended"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert isinstance(error_from_rpc(caught.value), ShardUnavailable)


async def test_a_search_stream_that_its_caller_abandons_withdraws_its_searches(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, withdrawn = asyncio.Event(), asyncio.Event()

    async def hangs(request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        began.set()
        try:
            return await asyncio.Future()
        finally:
            withdrawn.set()

    monkeypatch.setattr(served.shard, "search", hangs)
    stream = served.stream("SearchStream")
    await stream.write(search_message(1))
    await asyncio.wait_for(began.wait(), DEADLINE_S)
    stream.cancel()
    await asyncio.wait_for(withdrawn.wait(), DEADLINE_S)


# ---- the budget of all writes -------------------------------------------------------------------


async def test_a_write_without_room_is_refused_at_once_but_a_routers_waits(
    tmp_path: Path,
) -> None:
    payload = upsert_of(0)
    deletion = wire.encode_delete_request(DeleteRequest(collection="words", ids=int64s(0)))
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
        acknowledged = wire.decode_upsert_response(await stream.read())  # type: ignore[arg-type]
        assert acknowledged[0].accepted == 5
        await stream.done_writing()
        assert await served.shard.count(CountRequest(collection="words")) == 15
        await served.call("Upsert", upsert_of(15))


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


SEARCH_BYTES = wire.encode_search_request(SEARCH)


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
        assert caught.value.details() == "2 searches are in progress"
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
        assert caught.value.details() == "2 streams are open"
        assert retry_delay_s(caught.value) == RETRY_DELAY_S
        running = await held.begin()
        for method, payload in (("Count", b""), ("GetServerInfo", b""), ("Upsert", upsert_of(0))):
            code, error = await held.served.refusal(method, payload)
            assert (code, str(error)) == ("RESOURCE_EXHAUSTED", "3 calls are in progress")
        held.may_go_on.set()
        await running
        for stream in streams:
            await stream.done_writing()
            await stream.read()


async def test_a_search_that_has_no_time_to_wait_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = SearchGate(LIMITS.searches)
    monkeypatch.setattr("vectorshard.shard.server.service.SearchGate", lambda _: gate)
    async with serving(tmp_path) as served:
        monkeypatch.setattr(SearchGate, "expected_wait_s", 1e6)
        places = [gate.enter(None) for _ in range(ALWAYS_TAKEN)]
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


async def test_a_busy_server_answers_as_an_idle_one_whoever_has_the_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = await served.call("Search", SEARCH_BYTES)
    monkeypatch.setattr(SearchGate, "is_busy", True)
    assert await served.call("Search", SEARCH_BYTES) == idle
    code, error = await served.refusal("Search", b"no bytes of a message")
    assert (code, type(error)) == ("INVALID_ARGUMENT", MalformedMessage)
    assert await served.counted("Search", "OK") == 2
    nothing: Any = served.channel.stream_unary(f"/{SERVICE_NAME}/Search")(timeout=DEADLINE_S)
    await nothing.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await nothing
    assert isinstance(error_from_rpc(caught.value), MalformedMessage)
