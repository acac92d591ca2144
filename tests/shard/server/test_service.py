"""The service in this process, over its bare bytes: unary calls."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.shard.samples import DEADLINE_S, config_of, corpus_of, identity_of, int64s, some_vectors
from tests.shard.server.served import LIMITS, SEARCH, Served, Streaming, Unary, upsert_of
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import ShardDescription, Topology
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    InternalError,
    InvalidVector,
    MalformedMessage,
    PlacementMismatch,
    WritesStopped,
)
from vectorshard.shard.membership import Problem
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    GetRequest,
    Include,
    ListRequest,
    Role,
    Token,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire import collections, reads
from vectorshard.shard.wire.descriptions import (
    encode_describe_collection_request,
    encode_train_request,
)
from vectorshard.shard.wire.rpcs import SERVICE_NAME
from vectorshard.shard.wire.searches import decode_search_response, encode_search_request
from vectorshard.shard.wire.server_info import (
    decode_get_server_info_response,
    encode_get_server_info_request,
)
from vectorshard.shard.wire.writes import (
    decode_delete_response,
    decode_upsert_response,
    encode_delete_request,
    encode_upsert_request,
)

# ---- unary calls --------------------------------------------------------------------------------


async def test_a_search_over_the_wire_answers_as_the_shard_does(served: Served) -> None:
    corpus = corpus_of(50)
    await served.shard.upsert(
        UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors)
    )
    payload = await served.call("Search", encode_search_request(SEARCH))
    over_wire = decode_search_response(payload, Include())
    direct = await served.shard.search(SEARCH)
    assert over_wire.hits.ids.tolist() == direct.hits.ids.tolist()
    assert over_wire.hits.scores.tobytes() == direct.hits.scores.tobytes()
    assert over_wire.receipt == direct.receipt
    assert await served.counted("Search", "OK") == 1


async def test_the_server_says_its_version_topology_and_limits(served: Served) -> None:
    payload = await served.call("GetServerInfo", encode_get_server_info_request())
    version, topology, limits, problems = decode_get_server_info_response(payload)
    assert (version, topology.role, limits.k) == ("1.2.3", Role.SHARD, LIMITS.k)
    assert problems == ()
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
        assert decode_get_server_info_response(payload)[1] == moved


@pytest.mark.parametrize("method", ["Search", "Upsert", "Get", "CreateCollection", "Train"])
async def test_bytes_that_do_not_parse_are_the_callers_mistake(served: Served, method: str) -> None:
    code, error = await served.refusal(method, b"\xff\xff\xff")
    assert code == "INVALID_ARGUMENT"
    assert isinstance(error, MalformedMessage)
    assert await served.counted(method, "INVALID_ARGUMENT") == 1


async def test_an_error_keeps_its_kind_field_and_row_over_the_wire(served: Served) -> None:
    code, error = await served.refusal(
        "Count", reads.encode_count_request(CountRequest(collection="absent"))
    )
    assert code == "NOT_FOUND"
    assert isinstance(error, CollectionNotFound)
    vectors = some_vectors(3)
    vectors[2, 2] = np.nan
    request = UpsertRequest(collection="words", ids=int64s(1, 2, 3), vectors=vectors)
    code, error = await served.refusal("Upsert", encode_upsert_request(request))
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
        "Count", reads.encode_count_request(CountRequest(collection="words"))
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
        "Count", reads.encode_count_request(CountRequest(collection="words"))
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
    payload = reads.encode_count_request(CountRequest(collection="words"))
    rpc: Unary = served.channel.unary_unary(f"/{SERVICE_NAME}/Count")
    assert reads.decode_count_response(await rpc(payload, timeout=DEADLINE_S)) == 7
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
    message = encode_upsert_request(
        UpsertRequest(collection="words", ids=ids, vectors=some_vectors(1))
    )
    began = time.monotonic()
    async for _ in stream(iter([message, message])):
        pass
    assert len(deadlines) == 2
    assert all(each is not None and each >= began + 29.0 for each in deadlines)
    rpc: Unary = served.channel.unary_unary(f"/{SERVICE_NAME}/Train")
    await rpc(encode_train_request(TrainRequest(collection="words")))


# ---- whom a call means --------------------------------------------------------------------------

COUNT = reads.encode_count_request(CountRequest(collection="words"))

EVERY_UNARY_CALL = {
    "CreateCollection": b"",
    "DropCollection": collections.encode_drop_collection_request("words"),
    "UpdateCollection": collections.encode_update_collection_request(
        UpdateRequest(collection="words", target_recall=0.95)
    ),
    "ListCollections": collections.encode_list_collections_request(),
    "DescribeCollection": encode_describe_collection_request("words"),
    "Upsert": upsert_of(0),
    "Delete": encode_delete_request(DeleteRequest(collection="words", ids=int64s(1))),
    "Get": reads.encode_get_request(GetRequest(collection="words", ids=int64s(1))),
    "Count": COUNT,
    "List": reads.encode_list_request(ListRequest(collection="words")),
    "Search": encode_search_request(SEARCH),
    "Train": encode_train_request(TrainRequest(collection="words")),
    "GetServerInfo": encode_get_server_info_request(),
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


async def test_a_router_of_an_earlier_release_means_every_opening_of_a_shard(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await served.shard.topology()
    opened = [
        replace(before, shards=(replace(before.shards[0], session=session),))
        for session in ("first", "second")
    ]

    async def topology(*, call: Call = NO_LIMIT) -> Topology:
        return opened[1]

    monkeypatch.setattr(served.shard, "topology", topology)
    earlier = fingerprint_of(before, with_sessions=False)
    await served.call("Count", COUNT, call=Call(placement=earlier))
    await served.call("Count", COUNT, call=Call(placement=fingerprint_of(opened[1])))
    _, error = await served.refusal("Count", COUNT, Call(placement=fingerprint_of(opened[0])))
    assert isinstance(error, PlacementMismatch)


async def test_a_router_of_an_earlier_release_gets_tokens_that_it_can_read(served: Served) -> None:
    topology = await served.shard.topology()
    deletion = encode_delete_request(DeleteRequest(collection="words", ids=int64s(1)))
    for with_sessions in (True, False):
        call = Call(placement=fingerprint_of(topology, with_sessions=with_sessions))
        written, _ = decode_upsert_response(await served.call("Upsert", upsert_of(0, 3), call))
        deleted = decode_delete_response(await served.call("Delete", deletion, call))
        for result in (written, deleted):
            assert result.token.sequences
            assert bool(result.token.sessions) is with_sessions


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
    payload = collections.encode_create_collection_request(
        name=config.name,
        dim=config.dim,
        metric=config.metric,
        id_type=config.id_type,
        index=config.index,
        target_recall=config.target_recall,
    )
    answer = await served.call("CreateCollection", payload, call=Call(incarnation="given"))
    entry, created = collections.decode_create_collection_response(answer)
    assert (entry.incarnation, created) == ("given", True)


async def test_a_look_for_problems_may_begin_before_every_caller_of_the_last_one_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def problems() -> list[Problem]:
        await asyncio.sleep(0)
        return []

    async def twice() -> tuple[Problem, ...]:
        await served.service._problems()
        return await served.service._problems()

    monkeypatch.setattr(served.shard, "problems", problems)
    assert [*await asyncio.gather(twice(), served.service._problems())] == [(), ()]
