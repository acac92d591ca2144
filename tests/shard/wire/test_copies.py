"""Copies arrive as they were sent, to the last field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.samples import config_of
from tests.shard.wire.strategies import configs, texts, uint32s, uint64s
from tests.shard.wire.test_membership import members, sessions, some
from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.copies import (
    CloseCopyRequest,
    CopiedRows,
    Copy,
    OpenCopyRequest,
    ReadCopyRequest,
)
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.membership import Stage
from vectorshard.shard.types import Ledger
from vectorshard.shard.wire import copies
from vectorshard.shard.wire.collections import encode_config

names = st.binary(max_size=16)


@given(
    st.builds(
        Copy,
        copy=names,
        config=configs,
        incarnation=texts,
        stage=st.sampled_from(Stage),
        members=some(members),
        cluster=texts,
        shards_total=uint32s,
        placement_epoch=uint32s,
        slots=some(st.tuples(uint32s, uint32s)),
        directory=texts,
        life=uint32s,
        sessions=sessions,
        sequence=uint64s,
        rows=uint64s,
        live=uint64s,
        ledger=st.builds(Ledger, accepted=uint64s, buffered=uint64s, lost=uint64s),
        content_sum=names,
        dead=names,
        damaged=some(uint64s),
    )
)
def test_a_copy_arrives_as_it_was_sent(copy: Copy) -> None:
    assert copies.decode_open_copy_response(copies.encode_open_copy_response(copy)) == copy


@given(st.builds(CopiedRows, block=names, next_row=uint64s, damaged=some(uint64s)))
def test_rows_arrive_as_they_were_sent(rows: CopiedRows) -> None:
    assert copies.decode_read_copy_response(copies.encode_read_copy_response(rows)) == rows


@given(texts, uint32s, names, uint64s, uint32s)
def test_requests_arrive_as_they_were_sent(
    collection: str, shard: int, name: bytes, row: int, size: int
) -> None:
    opening = OpenCopyRequest(collection=collection, shard=shard, dead_below=row)
    reading = ReadCopyRequest(
        collection=collection, shard=shard, copy=name, first_row=row, bytes_max=size
    )
    closing = CloseCopyRequest(collection=collection, shard=shard, copy=name)
    assert copies.decode_open_copy_request(copies.encode_open_copy_request(opening)) == opening
    assert copies.decode_read_copy_request(copies.encode_read_copy_request(reading)) == reading
    assert copies.decode_close_copy_request(copies.encode_close_copy_request(closing)) == closing
    copies.decode_close_copy_response(copies.encode_close_copy_response())


def test_sessions_that_are_not_parallel_are_refused() -> None:
    response = twins.OpenCopyResponse(
        config=encode_config(config_of()),
        stage=twins.STAGE_CREATED,
        sessions=[1, 2],
        first_sequences=[1],
    )
    with pytest.raises(MalformedMessage, match="2 sessions do not match 1"):
        copies.decode_open_copy_response(response.SerializeToString())
