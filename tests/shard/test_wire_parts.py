"""Tokens, cursors and configurations: what comes back, and what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectorshard.v1 import vectorshard_pb2 as v1

from shard import types, wire
from shard.errors import (
    InvalidConfig,
    InvalidParameter,
)
from shard.wire_parts import decode_cursor, decode_token, encode_cursor, encode_token
from tests.shard.wire_samples import (
    DECODERS,
    LIMITS,
    create_bytes,
    cursors,
    refusal,
    tokens,
)

# ---- tokens and cursors --------------------------------------------------------------------------


@given(tokens, cursors)
def test_tokens_and_cursors_come_back_as_they_were_sent(
    token: types.Token, cursor: types.Cursor
) -> None:
    assert decode_token(encode_token(token)) == token
    assert decode_cursor(encode_cursor(cursor)) == cursor


def test_no_token_is_a_token_without_an_incarnation() -> None:
    assert encode_token(types.Token(incarnation="")) == b""
    assert decode_token(b"") == types.Token(incarnation="")


@given(st.binary(min_size=1, max_size=30))
def test_garbage_is_no_token_and_no_cursor(garbage: bytes) -> None:
    with contextlib.suppress(InvalidParameter):
        assert encode_token(decode_token(garbage)) == garbage
    with contextlib.suppress(InvalidParameter):
        assert encode_cursor(decode_cursor(garbage)) == garbage


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x10\x01", b"\x0a\x01a\x10\x00"])
def test_a_cursor_that_was_not_issued_is_refused(garbage: bytes) -> None:
    assert refusal(InvalidParameter, decode_cursor, garbage) == ("cursor", None)
    if garbage:
        listing = v1.ListRequest(cursor=garbage).SerializeToString()
        assert refusal(InvalidParameter, DECODERS["list"], listing) == ("cursor", None)


# ---- collections ---------------------------------------------------------------------------------


def test_defaults_are_filled_in() -> None:
    config = wire.decode_create_collection_request(create_bytes(), LIMITS)
    assert config == types.CollectionConfig(
        name="words",
        dim=3,
        metric=types.Metric.L2,
        id_type=types.IdType.INT64,
        index=types.IndexConfig(
            kind=types.IndexKind.IVF_FLAT,
            min_training_size=1_000,
            nlist_rule=types.NlistRule.SQRT_4,
            nlist=0,
        ),
        target_recall=0.95,
        filter_fields=(),
    )


def test_a_stated_default_is_the_same_configuration() -> None:
    stated = create_bytes(
        target_recall=0.95,
        index=v1.IndexConfig(
            kind=v1.INDEX_KIND_IVF_FLAT,
            min_training_size=1_000,
            nlist_rule=v1.NLIST_RULE_SQRT_4,
        ),
    )
    assert wire.decode_create_collection_request(
        stated, LIMITS
    ) == wire.decode_create_collection_request(create_bytes(), LIMITS)


def test_a_given_nlist_means_the_fixed_rule() -> None:
    payload = create_bytes(index=v1.IndexConfig(nlist=64))
    index = wire.decode_create_collection_request(payload, LIMITS).index
    assert (index.nlist_rule, index.nlist) == (types.NlistRule.FIXED, 64)


FIELD = v1.FilterField(name="a", type=v1.FIELD_TYPE_KEYWORD)


@pytest.mark.parametrize(
    ("parts", "field", "row"),
    [
        *(({"name": name}, "config.name", None) for name in ("", "A", "-a", "a" * 65, "a\n", "ä")),
        ({"dim": 0}, "config.dim", None),
        ({"dim": 8_193}, "config.dim", None),
        ({"metric": 0}, "config.metric", None),
        ({"metric": 9}, "config.metric", None),
        ({"id_type": 0}, "config.id_type", None),
        ({"id_type": 9}, "config.id_type", None),
        ({"target_recall": 1.5}, "config.target_recall", None),
        ({"target_recall": -1.0}, "config.target_recall", None),
        ({"target_recall": float("nan")}, "config.target_recall", None),
        ({"index": v1.IndexConfig(kind=9)}, "config.index.kind", None),  # type: ignore[arg-type]
        ({"index": v1.IndexConfig(nlist_rule=9)}, "config.index.nlist_rule", None),  # type: ignore[arg-type]
        ({"index": v1.IndexConfig(nlist_rule=v1.NLIST_RULE_FIXED)}, "config.index.nlist", None),
        (
            {"index": v1.IndexConfig(nlist_rule=v1.NLIST_RULE_SQRT_4, nlist=3)},
            "config.index.nlist",
            None,
        ),
        ({"index": v1.IndexConfig(nlist=65_537)}, "config.index.nlist", None),
        ({"filter_fields": [FIELD, FIELD]}, "config.filter_fields", 1),
        (
            {"filter_fields": [v1.FilterField(type=v1.FIELD_TYPE_BOOL)]},
            "config.filter_fields",
            0,
        ),
        ({"filter_fields": [FIELD, v1.FilterField(name="b")]}, "config.filter_fields", 1),
    ],
)
def test_a_collection_that_cannot_be_is_refused(
    parts: dict[str, Any], field: str, row: int | None
) -> None:
    decode = DECODERS["create_collection"]
    assert refusal(InvalidConfig, decode, create_bytes(**parts)) == (field, row)


def test_a_request_without_a_configuration_is_refused() -> None:
    assert refusal(InvalidConfig, DECODERS["create_collection"], b"") == ("config", None)


def test_a_client_refuses_a_dim_that_it_cannot_write() -> None:
    with pytest.raises(InvalidConfig):
        wire.encode_create_collection_request(
            name="a", dim=-1, metric=types.Metric.L2, id_type=types.IdType.INT64
        )
