"""What holds for every RPC: only our errors for whatever bytes, and not one RPC left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.shard.wire.messages import (
    ANSWER_DECODERS,
    REQUEST_DECODERS,
    refusal,
    search_bytes,
    upsert_bytes,
)
from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import MalformedMessage, VectorShardError
from vectorshard.shard.wire.rpcs import (
    KINDS,
    SEARCH_STREAM,
    SERVICE_NAME,
    SHARD_SERVICE_NAME,
    UPSERT_STREAM,
    path_of,
)
from vectorshard.shard.wire.search_stream import (
    decode_search_stream_request,
    decode_search_stream_response,
)
from vectorshard.shard.wire.writes import decode_upsert_request
from vectorshard.v1 import vectorshard_pb2 as v1

SERVICES = (
    v1.DESCRIPTOR.services_by_name["VectorService"],
    twins.DESCRIPTOR.services_by_name["ShardService"],
)


def test_every_rpc_of_the_contract_has_its_decoder() -> None:
    rpcs = {method.name.lower() for service in SERVICES for method in service.methods}
    rpcs.remove("searchstream")  # refused before anything of it is read
    assert {name.replace("_", "") for name in REQUEST_DECODERS} == rpcs


def test_every_rpc_of_the_contract_is_in_the_table_or_beside_it() -> None:
    assert [service.full_name for service in SERVICES] == [SERVICE_NAME, SHARD_SERVICE_NAME]
    rpcs = [*KINDS, UPSERT_STREAM, SEARCH_STREAM]
    assert sorted(map(path_of, rpcs)) == sorted(
        f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods
    )
    assert len(set(rpcs)) == len(rpcs)


@pytest.mark.parametrize("rpc", REQUEST_DECODERS)
def test_unparsable_requests_are_malformed(rpc: str) -> None:
    for garbage in (b"\xff", b"\x0a\x7fabc", b"\x00"):
        assert refusal(MalformedMessage, REQUEST_DECODERS[rpc], garbage) == ("message", None)


@pytest.mark.parametrize(
    ("decode", "contracts"),
    [
        (lambda payload: decode_upsert_request(payload, Limits()), "an UpsertRequest"),
        (decode_search_stream_request, "a SearchStreamRequest"),
        (decode_search_stream_response, "a SearchStreamResponse"),
    ],
)
def test_an_unparsable_message_is_named_as_in_the_contract(
    decode: Callable[[bytes], object], contracts: str
) -> None:
    with pytest.raises(MalformedMessage) as raised:
        decode(b"\xff")
    assert str(raised.value) == f"message: not {contracts}: Wire format was corrupt"


@pytest.mark.parametrize("rpc", ANSWER_DECODERS)
def test_unparsable_answers_are_malformed(rpc: str) -> None:
    assert refusal(MalformedMessage, ANSWER_DECODERS[rpc], b"\x0a\x7fabc")[0] == "message"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([*REQUEST_DECODERS.values(), *ANSWER_DECODERS.values()]), st.binary(max_size=40)
)
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
    for decode in (REQUEST_DECODERS["upsert"], REQUEST_DECODERS["search"]):
        with contextlib.suppress(VectorShardError):
            decode(bytes(broken))
