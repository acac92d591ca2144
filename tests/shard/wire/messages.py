"""Messages made by hand: the smallest legal ones, with parts replaced, and how they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.shard.wire.strategies import LIMITS
from vectorshard.shard import types
from vectorshard.shard.errors import InvalidRequest
from vectorshard.shard.wire import copies, descriptions, membership, reads, searches, writes
from vectorshard.shard.wire.collections import (
    decode_create_collection_request,
    decode_create_collection_response,
    decode_drop_collection_request,
    decode_drop_collection_response,
    decode_list_collections_request,
    decode_list_collections_response,
    decode_update_collection_request,
    decode_update_collection_response,
)
from vectorshard.shard.wire.server_info import (
    decode_get_server_info_request,
    decode_get_server_info_response,
)
from vectorshard.v1 import vectorshard_pb2 as v1


def delimited(number: int, content: bytes) -> bytes:
    """Return a length-delimited field of fewer than 16,384 bytes, made by hand."""
    length = len(content)
    head = [length] if length < 128 else [length & 127 | 128, length >> 7]
    return bytes([number << 3 | 2, *head]) + content


def matrix(**parts: Any) -> v1.Matrix:
    """Return a (2, 2) matrix with some parts replaced."""
    whole: dict[str, Any] = {"data": bytes(16), "dim": 2, "dtype": v1.D_TYPE_FLOAT32}
    return v1.Matrix(**(whole | parts))


def upsert_bytes(**parts: Any) -> bytes:
    """Return an Upsert of two rows of dim 2, with some parts replaced."""
    whole: dict[str, Any] = {
        "collection": "words",
        "ids": v1.Ids(int64s=v1.Int64Ids(values=[1, 2])),
        "vectors": matrix(data=np.arange(4, dtype="<f4").tobytes()),
    }
    return v1.UpsertRequest(**(whole | parts)).SerializeToString()


def search_bytes(**parts: Any) -> bytes:
    """Return a Search of one query of dim 2, with some parts replaced."""
    whole: dict[str, Any] = {
        "collection": "words",
        "k": 3,
        "queries": matrix(data=np.arange(2, dtype="<f4").tobytes()),
    }
    return v1.SearchRequest(**(whole | parts)).SerializeToString()


def explain_bytes(**parts: Any) -> bytes:
    """Return an Explain of one query of dim 2 and one id, with some parts replaced."""
    whole: dict[str, Any] = {
        "collection": "words",
        "id": v1.Ids(int64s=v1.Int64Ids(values=[1])),
        "query": matrix(data=np.arange(2, dtype="<f4").tobytes()),
    }
    return v1.ExplainRequest(**(whole | parts)).SerializeToString()


def create_bytes(**parts: Any) -> bytes:
    """Return the smallest CreateCollection, with some parts replaced."""
    whole: dict[str, Any] = {
        "name": "words",
        "dim": 3,
        "metric": v1.METRIC_L2,
        "id_type": v1.ID_TYPE_INT64,
    }
    return v1.CreateCollectionRequest(
        config=v1.CollectionConfig(**(whole | parts))
    ).SerializeToString()


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


def refusal(
    kind: type[InvalidRequest], decode: Callable[..., object], *arguments: Any
) -> tuple[str, int | None]:
    """Return the field and row that a refusal names."""
    with pytest.raises(kind) as raised:
        decode(*arguments)
    assert type(raised.value) is kind
    return raised.value.field, raised.value.row


REQUEST_DECODERS: dict[str, Callable[[bytes], object]] = {
    "create_collection": lambda p: decode_create_collection_request(p, LIMITS),
    "drop_collection": decode_drop_collection_request,
    "update_collection": decode_update_collection_request,
    "list_collections": decode_list_collections_request,
    "describe_collection": descriptions.decode_describe_collection_request,
    "upsert": lambda p: writes.decode_upsert_request(p, LIMITS),
    "upsert_stream": lambda p: writes.decode_upsert_request(p, LIMITS),
    "delete": lambda p: writes.decode_delete_request(p, LIMITS),
    "get": lambda p: reads.decode_get_request(p, LIMITS),
    "count": lambda p: reads.decode_count_request(p, LIMITS),
    "list": lambda p: reads.decode_list_request(p, LIMITS),
    "search": lambda p: searches.decode_search_request(p, LIMITS),
    "explain": lambda p: searches.decode_explain_request(p, LIMITS),
    "train": descriptions.decode_train_request,
    "get_server_info": decode_get_server_info_request,
    "exchange": membership.decode_exchange_request,
    "settle": membership.decode_settle_request,
    "accept_loss": membership.decode_accept_loss_request,
    "open_copy": copies.decode_open_copy_request,
    "read_copy": copies.decode_read_copy_request,
    "close_copy": copies.decode_close_copy_request,
}
ANSWER_DECODERS: dict[str, Callable[[bytes], object]] = {
    "create_collection": decode_create_collection_response,
    "drop_collection": decode_drop_collection_response,
    "update_collection": decode_update_collection_response,
    "list_collections": decode_list_collections_response,
    "describe_collection": descriptions.decode_describe_collection_response,
    "upsert": writes.decode_upsert_response,
    "delete": writes.decode_delete_response,
    "get": lambda p: reads.decode_get_response(p, types.Include()),
    "count": reads.decode_count_response,
    "list": lambda p: reads.decode_list_response(p, types.Include()),
    "search": lambda p: searches.decode_search_response(p, types.Include()),
    "explain": searches.decode_explain_response,
    "train": descriptions.decode_train_response,
    "get_server_info": decode_get_server_info_response,
    "exchange": membership.decode_exchange_response,
    "settle": membership.decode_settle_response,
    "accept_loss": membership.decode_accept_loss_response,
    "open_copy": copies.decode_open_copy_response,
    "read_copy": copies.decode_read_copy_response,
    "close_copy": copies.decode_close_copy_response,
}
