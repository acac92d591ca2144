"""Get, Count and List: what is asked for, its defaults, and the rows that come back."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import REQUEST_DECODERS, refusal
from tests.shard.wire.strategies import (
    LIMITS,
    assert_same,
    cursors,
    filters,
    id_arrays,
    includes,
    names,
    rows_with_include,
    uint64s,
)
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import LimitExceeded, MalformedMessage
from vectorshard.shard.filters import Filter
from vectorshard.shard.wire import reads
from vectorshard.shard.wire.writes import decode_delete_request, encode_delete_request
from vectorshard.v1 import vectorshard_pb2 as v1


@given(names, id_arrays, includes)
def test_requests_by_ids_come_back_as_they_were_sent(
    name: str, ids: types.IdArray, include: types.Include
) -> None:
    delete = types.DeleteRequest(collection=name, ids=ids)
    assert_same(decode_delete_request(encode_delete_request(delete), LIMITS), delete)
    get = types.GetRequest(collection=name, ids=ids, include=include)
    assert_same(reads.decode_get_request(reads.encode_get_request(get), LIMITS), get)
    count = types.CountRequest(collection=name, ids=ids)
    assert_same(reads.decode_count_request(reads.encode_count_request(count), LIMITS), count)


@given(names, filters, includes, st.none() | id_arrays)
def test_requests_by_filter_come_back_as_they_were_sent(
    name: str, filter_: Filter, include: types.Include, ids: types.IdArray | None
) -> None:
    delete = types.DeleteRequest(collection=name, filter=filter_)
    assert_same(decode_delete_request(encode_delete_request(delete), LIMITS), delete)
    get = types.GetRequest(collection=name, filter=filter_, include=include)
    assert_same(reads.decode_get_request(reads.encode_get_request(get), LIMITS), get)
    count = types.CountRequest(collection=name, ids=ids, filter=filter_)
    assert_same(reads.decode_count_request(reads.encode_count_request(count), LIMITS), count)


@given(
    names,
    st.integers(1, LIMITS.page_size),
    st.none() | cursors,
    st.none() | filters,
    includes,
    st.booleans(),
)
def test_a_listing_comes_back_as_it_was_asked(
    name: str,
    page_size: int,
    cursor: types.Cursor | None,
    filter_: Filter | None,
    include: types.Include,
    skip_damaged: bool,
) -> None:
    request = types.ListRequest(
        collection=name,
        page_size=page_size,
        cursor=cursor,
        filter=filter_,
        include=include,
        skip_damaged=skip_damaged,
    )
    assert reads.decode_list_request(reads.encode_list_request(request), LIMITS) == request


@given(rows_with_include(), st.none() | cursors, st.none() | id_arrays.filter(len))
def test_rows_come_back_as_they_were_sent(
    drawn: tuple[types.Rows, types.Include],
    cursor: types.Cursor | None,
    damaged: types.IdArray | None,
) -> None:
    rows, include = drawn
    got = reads.encode_get_response(rows, LIMITS)
    assert_same(reads.decode_get_response(got, include), rows)
    assert v1.GetResponse.FromString(got).SerializeToString(deterministic=True) == got
    page = dataclasses.replace(rows, cursor=cursor, damaged=damaged)
    listed = reads.encode_list_response(page, LIMITS)
    assert_same(reads.decode_list_response(listed, include), page)
    assert v1.ListResponse.FromString(listed).SerializeToString(deterministic=True) == listed


def test_a_delete_or_get_of_nothing_named_is_refused() -> None:
    for rpc, request in (("delete", v1.DeleteRequest()), ("get", v1.GetRequest())):
        assert (
            refusal(MalformedMessage, REQUEST_DECODERS[rpc], request.SerializeToString())[0]
            == "ids"
        )


def test_a_get_without_include_brings_everything() -> None:
    request = v1.GetRequest(ids=v1.Ids(int64s=v1.Int64Ids(values=[1])))
    decoded = reads.decode_get_request(request.SerializeToString(), LIMITS)
    assert decoded.include == types.Include(vectors=True, metadata=True)
    request.include.SetInParent()
    decoded = reads.decode_get_request(request.SerializeToString(), LIMITS)
    assert decoded.include == types.Include()


def test_pages_over_the_limit_are_refused_and_none_means_the_default() -> None:
    too_large = v1.ListRequest(page_size=10_001).SerializeToString()
    assert refusal(LimitExceeded, REQUEST_DECODERS["list"], too_large) == ("page_size", None)
    assert reads.decode_list_request(b"", LIMITS).page_size == 1_000
    assert reads.decode_list_request(b"", Limits(page_size=10)).page_size == 10


@given(uint64s)
def test_a_count_comes_back_as_it_was_sent(count: int) -> None:
    assert reads.decode_count_response(reads.encode_count_response(count)) == count


def test_a_count_of_everything_names_no_ids() -> None:
    everything = types.CountRequest(collection="words")
    assert reads.decode_count_request(reads.encode_count_request(everything), LIMITS) == everything
