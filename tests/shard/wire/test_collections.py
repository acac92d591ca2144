"""Collections: defaults filled in, and what cannot be a collection refused by field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.samples import config_of
from tests.shard.wire.messages import REQUEST_DECODERS, create_bytes, refusal
from tests.shard.wire.strategies import LIMITS, configs
from vectorshard.shard import types
from vectorshard.shard.errors import InvalidConfig, InvalidParameter, MalformedMessage
from vectorshard.shard.wire.collections import (
    decode_create_collection_request,
    decode_create_collection_response,
    decode_drop_collection_request,
    decode_drop_collection_response,
    decode_list_collections_request,
    decode_list_collections_response,
    decode_update_collection_request,
    decode_update_collection_response,
    encode_create_collection_request,
    encode_create_collection_response,
    encode_drop_collection_request,
    encode_drop_collection_response,
    encode_list_collections_request,
    encode_list_collections_response,
    encode_update_collection_request,
    encode_update_collection_response,
)
from vectorshard.v1 import vectorshard_pb2 as v1


@given(configs)
def test_a_resolved_configuration_comes_back_as_it_was_sent(
    config: types.CollectionConfig,
) -> None:
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    request = encode_create_collection_request(**parts)
    assert decode_create_collection_request(request, LIMITS) == config
    entries = [types.CollectionEntry(config=config, incarnation=name) for name in ("x1", "")]
    response = encode_create_collection_response(entries[0], True)
    assert decode_create_collection_response(response) == (entries[0], True)
    listed = encode_list_collections_response(entries)
    assert decode_list_collections_response(listed) == entries


def test_collections_without_an_incarnation_each_are_no_list() -> None:
    one = v1.ListCollectionsResponse(collections=[v1.CollectionConfig()])
    with pytest.raises(MalformedMessage, match="0 incarnations do not match 1 collection"):
        decode_list_collections_response(one.SerializeToString())


def test_defaults_are_filled_in() -> None:
    config = decode_create_collection_request(create_bytes(), LIMITS)
    assert config == types.CollectionConfig(
        name="words",
        dim=3,
        metric=types.Metric.L2,
        id_type=types.IdType.INT64,
        index=types.IndexConfig(
            kind=types.IndexKind.IVF_PQ,
            min_training_size=1_000,
            nlist_rule=types.NlistRule.BY_KIND,
            nlist=0,
        ),
        target_recall=0.95,
        filter_fields=(),
    )


def test_a_stated_default_is_the_same_configuration() -> None:
    stated = create_bytes(
        target_recall=0.95,
        index=v1.IndexConfig(
            kind=v1.INDEX_KIND_IVF_PQ,
            min_training_size=1_000,
            nlist_rule=v1.NLIST_RULE_BY_KIND,
        ),
    )
    assert decode_create_collection_request(stated, LIMITS) == decode_create_collection_request(
        create_bytes(), LIMITS
    )


def test_a_given_nlist_means_the_fixed_rule() -> None:
    payload = create_bytes(index=v1.IndexConfig(nlist=64))
    index = decode_create_collection_request(payload, LIMITS).index
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
            {"filter_fields": [v1.FilterField(name="a b", type=v1.FIELD_TYPE_BOOL)]},
            "config.filter_fields",
            0,
        ),
        (
            {
                "filter_fields": [
                    v1.FilterField(name=f"f{number}", type=v1.FIELD_TYPE_BOOL)
                    for number in range(65)
                ]
            },
            "config.filter_fields",
            None,
        ),
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
    decode = REQUEST_DECODERS["create_collection"]
    assert refusal(InvalidConfig, decode, create_bytes(**parts)) == (field, row)


def test_a_request_without_a_configuration_is_refused() -> None:
    assert refusal(InvalidConfig, REQUEST_DECODERS["create_collection"], b"") == ("config", None)


def test_a_client_refuses_a_dim_that_it_cannot_write() -> None:
    with pytest.raises(InvalidConfig):
        encode_create_collection_request(
            name="a", dim=-1, metric=types.Metric.L2, id_type=types.IdType.INT64
        )


def test_a_drop_and_a_listing_come_back_as_they_were_sent() -> None:
    drop = encode_drop_collection_request("words")
    assert decode_drop_collection_request(drop) == "words"
    decode_drop_collection_response(encode_drop_collection_response())
    decode_list_collections_request(encode_list_collections_request())


@given(st.floats(0.0625, 1.0, width=32).map(lambda recall: float(f"{recall:.4g}")))
def test_an_update_is_read_as_it_was_written(target_recall: float) -> None:
    request = types.UpdateRequest(collection="words", target_recall=target_recall)
    assert decode_update_collection_request(encode_update_collection_request(request)) == request


def test_an_updated_collection_is_read_as_it_was_written() -> None:
    entry = types.CollectionEntry(config=config_of(target_recall=0.97), incarnation="1f")
    assert decode_update_collection_response(encode_update_collection_response(entry)) == entry


@pytest.mark.parametrize("target_recall", [None, 0.0, -1.0, 1.25, float("nan"), float("inf")])
def test_an_update_without_a_recall_is_refused(target_recall: float | None) -> None:
    message = v1.UpdateCollectionRequest(collection="words", target_recall=target_recall)
    with pytest.raises(InvalidParameter) as caught:
        decode_update_collection_request(message.SerializeToString())
    assert caught.value.field == "target_recall"
