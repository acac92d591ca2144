"""The service in this process, over its bare bytes: its streams, and their drain."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.shard.samples import DEADLINE_S, config_of, open_shard, some_vectors
from tests.shard.server.served import (
    LIMITS,
    SEARCH,
    Served,
    Streaming,
    next_answer,
    search_message,
    upsert_of,
)
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    MalformedMessage,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
)
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.server.grpc_options import server_options
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.status import error_from_rpc, read_status
from vectorshard.shard.server.telemetry import RpcMetrics
from vectorshard.shard.server.upsert_stream import WINDOW_MESSAGES
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    SearchRequest,
    SearchResult,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire.call_metadata import metadata_of
from vectorshard.shard.wire.reads import decode_count_response, encode_count_request
from vectorshard.shard.wire.rpcs import SERVICE_NAME
from vectorshard.shard.wire.search_stream import (
    ENVELOPE_BYTES,
    StreamAnswer,
    StreamRequest,
    encode_search_stream_request,
)
from vectorshard.shard.wire.searches import encode_search_request, encode_search_response
from vectorshard.shard.wire.writes import decode_upsert_response

# ---- UpsertStream -------------------------------------------------------------------------------


async def test_each_message_of_an_upload_is_acknowledged_in_order(served: Served) -> None:
    stream = served.stream("UpsertStream")
    messages = 5 * WINDOW_MESSAGES

    async def send() -> None:
        for number in range(messages):
            await stream.write(upsert_of(5 * number, request_id=number + 1))
        await stream.done_writing()

    sending = asyncio.ensure_future(send())
    results = [decode_upsert_response(payload) async for payload in stream]
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
        assert decode_upsert_response(acknowledgement)[1] == request_id
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
    assert decode_upsert_response(acknowledged)[1] == 1
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
    payload = encode_count_request(CountRequest(collection="words"))
    counted = decode_count_response(await served.call("Count", payload))
    assert counted in {5, 10, 15}


# ---- SearchStream -------------------------------------------------------------------------------


async def test_a_stream_answers_as_search_does_and_each_message_counts_as_one(
    served: Served,
) -> None:
    await served.call("Upsert", upsert_of(0, rows=40))
    unary = await served.call("Search", encode_search_request(SEARCH))
    stream = served.stream("SearchStream")
    for request_id in (1, 2, 3):
        await stream.write(search_message(request_id))
        assert await next_answer(stream) == StreamAnswer(request_id=request_id, response=unary)
    await stream.write(search_message(4, replace(SEARCH, collection="absent")))
    _, error = read_status((await next_answer(stream)).error)
    assert isinstance(error, CollectionNotFound)
    await stream.write(encode_search_stream_request(StreamRequest(request_id=5, search=b"\xff")))
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


@pytest.mark.parametrize("over", [0, 1, ENVELOPE_BYTES])
async def test_an_answer_that_fits_only_without_its_envelope_is_refused_alone(
    tmp_path: Path, over: int
) -> None:
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    ids, vectors = np.arange(40), some_vectors(40)
    await shard.upsert(UpsertRequest(collection="words", ids=ids, vectors=vectors))
    request = replace(SEARCH, k=40)
    largest = encode_search_response(await shard.search(request), LIMITS)
    limits = replace(LIMITS, message_bytes=len(largest) + ENVELOPE_BYTES - over)
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
