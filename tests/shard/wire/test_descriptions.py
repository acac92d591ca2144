"""Descriptions and training: what is said of the shards arrives as it was said."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.strategies import configs, shard_descriptions, uint32s
from vectorshard.shard import types
from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
from vectorshard.shard.wire import descriptions
from vectorshard.v1 import vectorshard_pb2 as v1


@given(configs, st.lists(shard_descriptions, max_size=2), uint32s)
def test_a_description_comes_back_without_its_incarnation(
    config: types.CollectionConfig, shards: list[ShardDescription], batch_size: int
) -> None:
    small = [
        dataclasses.replace(shard, ledger=types.Ledger(accepted=7, buffered=3, deleted=4))
        for shard in shards
    ]
    description = CollectionDescription(
        config=config,
        incarnation="x1",
        shards=tuple(small),
        recommended_batch_size=batch_size,
    )
    payload = descriptions.encode_describe_collection_response(description)
    assert descriptions.decode_describe_collection_response(payload) == description
    assert v1.DescribeCollectionResponse.FromString(payload).ledger.accepted == 7 * len(small)
    assert descriptions.decode_train_response(descriptions.encode_train_response(shards)) == tuple(
        shards
    )


@pytest.mark.parametrize("wait", [True, False])
def test_requests_for_training_and_descriptions_come_back_as_they_were_sent(wait: bool) -> None:
    train = types.TrainRequest(collection="words", wait=wait)
    assert descriptions.decode_train_request(descriptions.encode_train_request(train)) == train
    describe = descriptions.encode_describe_collection_request("words")
    assert descriptions.decode_describe_collection_request(describe) == "words"
