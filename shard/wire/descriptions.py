"""DescribeCollection and Train: the descriptions of a collection and of its shards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from google.protobuf import duration_pb2, timestamp_pb2

from vectorshard.shard import descriptions, types
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.wire.collections import decode_config, encode_config
from vectorshard.shard.wire.primitives import (
    INDEX_KINDS,
    SHARD_STATES,
    copied,
    parse,
    shortest_decimal,
)
from vectorshard.v1 import vectorshard_pb2 as v1


def encode_describe_collection_request(collection: str) -> bytes:
    """Name the collection to describe."""
    return v1.DescribeCollectionRequest(collection=collection).SerializeToString()


def decode_describe_collection_request(payload: bytes) -> str:
    """Return the name of the collection to describe."""
    return parse(v1.DescribeCollectionRequest, payload).collection


def encode_describe_collection_response(description: descriptions.CollectionDescription) -> bytes:
    """Answer with a description."""
    return v1.DescribeCollectionResponse(
        config=encode_config(description.config),
        ledger=v1.Ledger(**copied(description.ledger, types.Ledger)),
        shards=[_encode_shard(shard) for shard in description.shards],
        recommended_batch_size=description.recommended_batch_size,
        incarnation=description.incarnation,
    ).SerializeToString()


def decode_describe_collection_response(payload: bytes) -> descriptions.CollectionDescription:
    """Return a description; its ledger is the sum of the shards'."""
    response = parse(v1.DescribeCollectionResponse, payload)
    return descriptions.CollectionDescription(
        config=decode_config(response.config),
        incarnation=response.incarnation,
        shards=tuple(_decode_shard(shard) for shard in response.shards),
        recommended_batch_size=response.recommended_batch_size,
    )


def encode_train_request(request: types.TrainRequest) -> bytes:
    """Request the training of a new index."""
    return v1.TrainRequest(collection=request.collection, wait=request.wait).SerializeToString()


def decode_train_request(payload: bytes) -> types.TrainRequest:
    """Return the collection to train, and whether to wait."""
    request = parse(v1.TrainRequest, payload)
    return types.TrainRequest(collection=request.collection, wait=request.wait)


def encode_train_response(shards: Iterable[descriptions.ShardDescription]) -> bytes:
    """Answer with the shards, in the order given."""
    return v1.TrainResponse(shards=[_encode_shard(shard) for shard in shards]).SerializeToString()


def decode_train_response(payload: bytes) -> tuple[descriptions.ShardDescription, ...]:
    """Return the shards, by number."""
    return tuple(_decode_shard(shard) for shard in parse(v1.TrainResponse, payload).shards)


_CONVERTED: Final = (
    "state",
    "ledger",
    "last_training_s",
    "last_trained_at",
    "index_kind",
    "damaged_ids",
    "scrub",
)
_DECIMALS: Final = (
    "measured_recall",
    "measured_recall_balanced",
    "live_recall",
    "list_imbalance",
    "drift",
)


def _encode_shard(shard: descriptions.ShardDescription) -> v1.ShardDescription:
    message = v1.ShardDescription(
        **copied(shard, descriptions.ShardDescription, *_CONVERTED),
        state=SHARD_STATES.number[shard.state],
        ledger=v1.Ledger(**copied(shard.ledger, types.Ledger)),
    )
    if shard.index_kind is not None:
        message.index_kind = INDEX_KINDS.number[shard.index_kind]
    if shard.scrub is not None:
        message.scrub.CopyFrom(v1.Scrub(**copied(shard.scrub, descriptions.Scrub)))
    for id_ in shard.damaged_ids:
        if isinstance(id_, str):
            message.damaged_ids.strings.values.append(id_)
        else:
            message.damaged_ids.int64s.values.append(id_)
    if shard.last_training_s:
        message.last_training_duration.CopyFrom(
            duration_pb2.Duration(**_seconds_and_nanos(shard.last_training_s))
        )
    if shard.last_trained_at:
        message.last_trained_at.CopyFrom(
            timestamp_pb2.Timestamp(**_seconds_and_nanos(shard.last_trained_at))
        )
    return message


def _seconds_and_nanos(seconds: float) -> dict[str, int]:
    nanos = round(math.fmod(seconds, 1.0) * 1e9)
    return {"seconds": int(seconds) + nanos // 10**9, "nanos": nanos % 10**9}


def _seconds_of(message: duration_pb2.Duration | timestamp_pb2.Timestamp) -> float:
    # One division of integers yields the nearest double, which is the one that was sent.
    return (message.seconds * 10**9 + message.nanos) / 10**9


def _decode_shard(shard: v1.ShardDescription) -> descriptions.ShardDescription:
    values = copied(shard, descriptions.ShardDescription, *_CONVERTED)
    for name in _DECIMALS:
        values[name] = shortest_decimal(values[name])
    index_kind = None
    if shard.index_kind:
        index_kind = INDEX_KINDS.member(shard.index_kind, "shards.index_kind", MalformedMessage)
    scrub = None
    if shard.HasField("scrub"):
        read = copied(shard.scrub, descriptions.Scrub, "findings")
        read["progress"] = shortest_decimal(read["progress"])
        scrub = descriptions.Scrub(**read, findings=tuple(shard.scrub.findings))
    damaged = shard.damaged_ids
    return descriptions.ShardDescription(
        **values,
        damaged_ids=tuple(damaged.strings.values) or tuple(damaged.int64s.values),
        scrub=scrub,
        state=SHARD_STATES.member(shard.state, "shards.state", MalformedMessage),
        ledger=types.Ledger(**copied(shard.ledger, types.Ledger)),
        last_training_s=_seconds_of(shard.last_training_duration),
        last_trained_at=_seconds_of(shard.last_trained_at),
        index_kind=index_kind,
    )
