"""Every RPC from bytes to numpy and back: what is sent comes back, what cannot be is refused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vectorshard.v1 import vectorshard_pb2 as v1

from shard import types, wire
from shard.config import Limits
from shard.errors import (
    InvalidParameter,
    LimitExceeded,
    MalformedMessage,
    Unsupported,
    VectorShardError,
)
from tests.shard.wire_samples import (
    ANSWER_DECODERS,
    DECODERS,
    LIMITS,
    assert_same,
    configs,
    create_bytes,
    cursors,
    float32s,
    id_arrays,
    includes,
    matrices,
    matrix,
    names,
    refusal,
    rows_with_include,
    search_bytes,
    search_results,
    shard_descriptions,
    texts,
    tokens,
    uint32s,
    uint64s,
    upsert_bytes,
    upsert_requests,
)

# ---- round trips ---------------------------------------------------------------------------------


@given(upsert_requests(), uint64s)
def test_an_upsert_comes_back_as_it_was_sent(request: types.UpsertRequest, request_id: int) -> None:
    payload = wire.encode_upsert_request(request, request_id)
    decoded, decoded_id = wire.decode_upsert_request(payload, LIMITS)
    assert_same(decoded, request)
    assert decoded_id == request_id


@given(upsert_requests(), uint64s)
def test_an_upsert_is_the_public_message_byte_for_byte(
    request: types.UpsertRequest, request_id: int
) -> None:
    payload = wire.encode_upsert_request(request, request_id)
    message = v1.UpsertRequest.FromString(payload)
    assert message.SerializeToString(deterministic=True) == payload
    ids = message.ids.strings if request.ids.dtype == np.object_ else message.ids.int64s
    assert list(ids.values) == request.ids.tolist()
    assert message.vectors.data == request.vectors.tobytes()
    assert len(message.metadata) == len(request.metadata or ())


@given(search_results())
def test_hits_come_back_as_they_were_sent(
    drawn: tuple[types.SearchResult, types.Include],
) -> None:
    result, include = drawn
    payload = wire.encode_search_response(result, LIMITS)
    assert_same(wire.decode_search_response(payload, include), result)


@given(search_results())
def test_hits_are_the_public_message_byte_for_byte(
    drawn: tuple[types.SearchResult, types.Include],
) -> None:
    result, _ = drawn
    payload = wire.encode_search_response(result, LIMITS)
    message = v1.SearchResponse.FromString(payload)
    assert message.SerializeToString(deterministic=True) == payload
    assert np.array(message.scores, dtype="<f4").tobytes() == result.hits.scores.tobytes()
    assert list(message.counts) == result.hits.counts.tolist()
    assert message.receipt.shards_total == len(result.receipt.shards)


@given(rows_with_include(), st.none() | cursors)
def test_rows_come_back_as_they_were_sent(
    drawn: tuple[types.Rows, types.Include], cursor: types.Cursor | None
) -> None:
    rows, include = drawn
    got = wire.encode_get_response(rows, LIMITS)
    assert_same(wire.decode_get_response(got, include), rows)
    assert v1.GetResponse.FromString(got).SerializeToString(deterministic=True) == got
    page = dataclasses.replace(rows, cursor=cursor)
    listed = wire.encode_list_response(page, LIMITS)
    assert_same(wire.decode_list_response(listed, include), page)
    assert v1.ListResponse.FromString(listed).SerializeToString(deterministic=True) == listed


@given(
    names,
    st.sampled_from([0, 1, 4]).flatmap(matrices),
    st.integers(1, LIMITS.k),
    st.one_of(
        st.just(types.Effort()),
        st.just(types.Effort(exact=True)),
        st.builds(types.Effort, nprobe=st.integers(1, LIMITS.nlist)),
        st.builds(types.Effort, target_recall=float32s.filter(bool)),
    ),
    includes,
    st.none() | st.floats(width=32, allow_nan=False),
    float32s,
    st.none() | tokens,
)
def test_a_search_comes_back_as_it_was_sent(
    name: str,
    queries: types.VectorArray,
    k: int,
    effort: types.Effort,
    include: types.Include,
    score_threshold: float | None,
    min_coverage: float,
    token: types.Token | None,
) -> None:
    request = types.SearchRequest(
        collection=name,
        queries=queries,
        k=k,
        effort=effort,
        include=include,
        score_threshold=score_threshold,
        min_coverage=min_coverage,
        token=token,
    )
    assert_same(wire.decode_search_request(wire.encode_search_request(request), LIMITS), request)


@given(names, id_arrays, includes)
def test_requests_by_ids_come_back_as_they_were_sent(
    name: str, ids: types.IdArray, include: types.Include
) -> None:
    delete = types.DeleteRequest(collection=name, ids=ids)
    assert_same(wire.decode_delete_request(wire.encode_delete_request(delete), LIMITS), delete)
    get = types.GetRequest(collection=name, ids=ids, include=include)
    assert_same(wire.decode_get_request(wire.encode_get_request(get), LIMITS), get)
    count = types.CountRequest(collection=name, ids=ids)
    assert_same(wire.decode_count_request(wire.encode_count_request(count), LIMITS), count)


@given(names, st.integers(1, LIMITS.page_size), st.none() | cursors, includes)
def test_a_listing_comes_back_as_it_was_asked(
    name: str, page_size: int, cursor: types.Cursor | None, include: types.Include
) -> None:
    request = types.ListRequest(
        collection=name, page_size=page_size, cursor=cursor, include=include
    )
    assert wire.decode_list_request(wire.encode_list_request(request), LIMITS) == request


@given(configs)
def test_a_resolved_configuration_comes_back_as_it_was_sent(
    config: types.CollectionConfig,
) -> None:
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    request = wire.encode_create_collection_request(**parts)
    assert wire.decode_create_collection_request(request, LIMITS) == config
    response = wire.encode_create_collection_response(config, True)
    assert wire.decode_create_collection_response(response) == (config, True)
    listed = wire.encode_list_collections_response([config, config])
    assert wire.decode_list_collections_response(listed) == [config, config]


@given(configs, st.lists(shard_descriptions, max_size=2), uint32s)
def test_a_description_comes_back_without_its_incarnation(
    config: types.CollectionConfig, shards: list[types.ShardDescription], batch_size: int
) -> None:
    small = [
        dataclasses.replace(shard, ledger=types.Ledger(accepted=7, buffered=3, deleted=4))
        for shard in shards
    ]
    description = types.CollectionDescription(
        config=config,
        incarnation="x1",
        shards=tuple(small),
        recommended_batch_size=batch_size,
    )
    payload = wire.encode_describe_collection_response(description)
    expected = dataclasses.replace(description, incarnation="")
    assert wire.decode_describe_collection_response(payload) == expected
    assert v1.DescribeCollectionResponse.FromString(payload).ledger.accepted == 7 * len(small)
    assert wire.decode_train_response(wire.encode_train_response(shards)) == tuple(shards)


@given(
    uint64s,
    st.lists(st.builds(types.RowError, uint32s, st.integers(0, 16), texts), max_size=3).map(tuple),
    tokens,
    uint64s,
)
def test_acknowledgements_come_back_as_they_were_sent(
    accepted: int, errors: tuple[types.RowError, ...], token: types.Token, request_id: int
) -> None:
    upserted = types.UpsertResult(accepted=accepted, errors=errors, token=token)
    payload = wire.encode_upsert_response(upserted, request_id)
    assert wire.decode_upsert_response(payload) == (upserted, request_id)
    deleted = types.DeleteResult(deleted=accepted, token=token)
    assert wire.decode_delete_response(wire.encode_delete_response(deleted)) == deleted
    assert wire.decode_count_response(wire.encode_count_response(accepted)) == accepted


@given(
    texts,
    st.sampled_from(types.Role),
    uint64s,
    st.lists(st.builds(lambda first, last: (first, last), uint32s, uint32s), max_size=2),
    st.builds(Limits, **{f.name: uint32s for f in dataclasses.fields(Limits)}),
)
def test_server_info_comes_back_as_it_was_sent(
    text: str, role: types.Role, epoch: int, slots: list[tuple[int, int]], limits: Limits
) -> None:
    topology = types.Topology(
        role=role,
        cluster=text,
        placement_epoch=epoch,
        shards=(types.ShardPlacement(shard=3, slots=tuple(slots)),),
    )
    payload = wire.encode_get_server_info_response(text, topology, limits)
    assert wire.decode_get_server_info_response(payload) == (text, topology, limits)


@pytest.mark.parametrize("wait", [True, False])
def test_small_requests_come_back_as_they_were_sent(wait: bool) -> None:
    train = types.TrainRequest(collection="words", wait=wait)
    assert wire.decode_train_request(wire.encode_train_request(train)) == train
    drop = wire.encode_drop_collection_request("words")
    assert wire.decode_drop_collection_request(drop) == "words"
    describe = wire.encode_describe_collection_request("words")
    assert wire.decode_describe_collection_request(describe) == "words"
    wire.decode_list_collections_request(wire.encode_list_collections_request())
    wire.decode_get_server_info_request(wire.encode_get_server_info_request())
    wire.decode_drop_collection_response(wire.encode_drop_collection_response())
    everything = types.CountRequest(collection="words")
    assert wire.decode_count_request(wire.encode_count_request(everything), LIMITS) == everything


# ---- bytes that are no message -------------------------------------------------------------------


def test_every_rpc_of_the_contract_has_its_decoder() -> None:
    service = v1.DESCRIPTOR.services_by_name["VectorService"]
    rpcs = {method.name.lower() for method in service.methods}
    assert {name.replace("_", "") for name in DECODERS} == rpcs


@pytest.mark.parametrize("rpc", DECODERS)
def test_unparsable_requests_are_malformed(rpc: str) -> None:
    for garbage in (b"\xff", b"\x0a\x7fabc", b"\x00"):
        assert refusal(MalformedMessage, DECODERS[rpc], garbage) == ("message", None)


@pytest.mark.parametrize("rpc", ANSWER_DECODERS)
def test_unparsable_answers_are_malformed(rpc: str) -> None:
    assert refusal(MalformedMessage, ANSWER_DECODERS[rpc], b"\x0a\x7fabc")[0] == "message"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([*DECODERS.values(), *ANSWER_DECODERS.values()]), st.binary(max_size=40))
def test_no_bytes_raise_anything_but_our_errors(
    decode: Callable[[bytes], object], payload: bytes
) -> None:
    with contextlib.suppress(VectorShardError):
        decode(payload)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([upsert_bytes(metadata=[{"a": 1}, {}]), search_bytes(nprobe=3, token=b"x")]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_no_flipped_bytes_raise_anything_but_our_errors(
    payload: bytes, flips: list[tuple[int, int]]
) -> None:
    broken = bytearray(payload)
    for position, value in flips:
        broken[position % len(broken)] = value
    for decode in (DECODERS["upsert"], DECODERS["search"]):
        with contextlib.suppress(VectorShardError):
            decode(bytes(broken))


# ---- what is asked of a search -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": LIMITS.k + 1}, "k"),
        ({"nprobe": 0}, "nprobe"),
        ({"nprobe": LIMITS.nlist + 1}, "nprobe"),
        ({"target_recall": 0.0}, "target_recall"),
        ({"target_recall": -0.5}, "target_recall"),
        ({"target_recall": 1.01}, "target_recall"),
        ({"target_recall": float("nan")}, "target_recall"),
        ({"min_coverage": -0.1}, "min_coverage"),
        ({"min_coverage": 1.1}, "min_coverage"),
        ({"min_coverage": float("nan")}, "min_coverage"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"token": b"garbage"}, "token"),
        ({"token": b"\x08\x01"}, "token"),
    ],
)
def test_parameters_out_of_their_range_are_refused(parts: dict[str, Any], field: str) -> None:
    assert refusal(InvalidParameter, DECODERS["search"], search_bytes(**parts)) == (field, None)


def test_parameters_that_are_left_out_have_their_defaults() -> None:
    request = wire.decode_search_request(search_bytes(), LIMITS)
    assert request.effort == types.Effort()
    assert request.min_coverage == 1.0
    assert request.score_threshold is None
    assert request.token is None
    assert request.include == types.Include()
    assert wire.decode_search_request(search_bytes(exact=False), LIMITS).effort == types.Effort()


def test_a_stated_zero_coverage_and_threshold_are_kept() -> None:
    payload = search_bytes(min_coverage=0.0, score_threshold=0.0)
    request = wire.decode_search_request(payload, LIMITS)
    assert request.min_coverage == 0.0
    assert request.score_threshold == 0.0


def test_recall_and_coverage_are_the_decimals_that_were_stated() -> None:
    request = wire.decode_search_request(search_bytes(target_recall=0.95, min_coverage=0.6), LIMITS)
    assert request.effort.target_recall == 0.95
    assert request.min_coverage == 0.6


def test_more_queries_or_hits_than_the_limits_allow_are_refused() -> None:
    three = search_bytes(queries=matrix(data=bytes(24)))
    queries = (wire.decode_search_request, three, Limits(queries=2))
    assert refusal(LimitExceeded, *queries) == ("queries", None)
    hits = (wire.decode_search_request, three, Limits(hits=8))
    assert refusal(LimitExceeded, *hits) == ("k", None)


def test_pages_over_the_limit_are_refused_and_none_means_the_default() -> None:
    too_large = v1.ListRequest(page_size=10_001).SerializeToString()
    assert refusal(LimitExceeded, DECODERS["list"], too_large) == ("page_size", None)
    assert wire.decode_list_request(b"", LIMITS).page_size == 1_000
    assert wire.decode_list_request(b"", Limits(page_size=10)).page_size == 10


def test_an_unknown_mode_is_refused_and_none_means_upsert() -> None:
    assert refusal(InvalidParameter, DECODERS["upsert"], upsert_bytes(mode=3)) == ("mode", None)
    request, _ = wire.decode_upsert_request(upsert_bytes(), LIMITS)
    assert request.mode is types.WriteMode.UPSERT


def test_what_a_client_cannot_write_is_refused_there() -> None:
    queries = np.zeros((1, 2), dtype=np.float32)
    for k in (-1, 2**32):
        request = types.SearchRequest(collection="a", queries=queries, k=k)
        refusal(InvalidParameter, wire.encode_search_request, request)
    listing = types.ListRequest(collection="a", page_size=-1)
    assert refusal(InvalidParameter, wire.encode_list_request, listing)[0] == "page_size"


# ---- not in this release -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("delete", v1.DeleteRequest(filter=v1.Filter())),
        ("get", v1.GetRequest(filter=v1.Filter())),
        ("count", v1.CountRequest(filter=v1.Filter())),
        ("list", v1.ListRequest(filter=v1.Filter())),
        ("search", v1.SearchRequest(filter=v1.Filter())),
        ("search_stream", v1.SearchStreamRequest()),
        ("explain", v1.ExplainRequest()),
        (
            "create_collection",
            v1.CreateCollectionRequest.FromString(
                create_bytes(index=v1.IndexConfig(kind=v1.INDEX_KIND_IVF_PQ))
            ),
        ),
    ],
)
def test_what_is_not_in_this_release_is_unsupported(rpc: str, request_: Message) -> None:
    with pytest.raises(Unsupported):
        DECODERS[rpc](request_.SerializeToString())


# ---- answers -------------------------------------------------------------------------------------


def some_hits(vectors: types.Float32Array | None = None) -> types.SearchResult:
    """Return 4 hits of 2 queries."""
    return types.SearchResult(
        hits=types.TopK(
            counts=np.array([3, 1], dtype=np.uint32),
            ids=np.arange(4),
            scores=np.ones(4, dtype=np.float32),
        ),
        receipt=types.Receipt(shards=(), coverage=1.0),
        vectors=vectors,
    )


@pytest.mark.parametrize("message_bytes", [20, 100])
def test_an_answer_over_the_limit_is_refused_with_advice(message_bytes: int) -> None:
    limits = Limits(message_bytes=message_bytes)
    vectors = np.zeros((4, 9), dtype=np.float32)
    with pytest.raises(LimitExceeded, match="fewer queries") as raised:
        wire.encode_search_response(some_hits(vectors), limits)
    assert raised.value.field == "k"
    rows = types.Rows(ids=np.arange(4), vectors=vectors)
    with pytest.raises(LimitExceeded, match="fewer ids"):
        wire.encode_get_response(rows, limits)
    with pytest.raises(LimitExceeded, match="smaller pages"):
        wire.encode_list_response(rows, limits)


def test_an_answer_of_just_the_limit_is_sent() -> None:
    payload = wire.encode_search_response(some_hits(), LIMITS)
    assert wire.encode_search_response(some_hits(), Limits(message_bytes=len(payload))) == payload
    with pytest.raises(LimitExceeded):
        wire.encode_search_response(some_hits(), Limits(message_bytes=len(payload) - 1))


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"counts": [3]}, "counts"),
        ({"counts": [2**32 - 1, 5]}, "counts"),
        ({"scores": [0.5]}, "scores"),
        ({"ids": v1.Ids(int64s=v1.Int64Ids(values=[1]))}, "scores"),
        ({"vectors": matrix(data=bytes(8))}, "vectors"),
        ({"metadata": [{}]}, "metadata"),
    ],
)
def test_an_answer_whose_parts_do_not_fit_is_malformed(broken: dict[str, Any], field: str) -> None:
    message = v1.SearchResponse.FromString(wire.encode_search_response(some_hits(), LIMITS))
    for name in broken:
        message.ClearField(name)
    message.MergeFrom(v1.SearchResponse(**broken))
    if field in {"vectors", "metadata"}:
        include = types.Include(vectors=field == "vectors", metadata=field == "metadata")
    else:
        include = types.Include()
    payload = message.SerializeToString()
    assert refusal(MalformedMessage, wire.decode_search_response, payload, include)[0] == field


def test_an_answer_without_what_was_asked_for_is_malformed() -> None:
    payload = wire.encode_search_response(some_hits(), LIMITS)
    for include in (types.Include(vectors=True), types.Include(metadata=True)):
        with pytest.raises(MalformedMessage):
            wire.decode_search_response(payload, include)
