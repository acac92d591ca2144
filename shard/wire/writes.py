"""Upsert, UpsertStream and Delete."""

from __future__ import annotations

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, MalformedMessage
from vectorshard.shard.wire.bulk import check_count, content_bytes, number_bytes, read_twin
from vectorshard.shard.wire.canonical_metadata import canonical_metadata, metadata_from_json
from vectorshard.shard.wire.ids import check_ids, encode_ids
from vectorshard.shard.wire.matrices import encode_matrix
from vectorshard.shard.wire.opaque import decode_token, encode_token
from vectorshard.shard.wire.primitives import WRITE_MODES, copied, parse
from vectorshard.shard.wire.selection import (
    parse_filtered,
    required_selection,
    set_selection,
)
from vectorshard.v1 import vectorshard_pb2 as v1


def encode_upsert_request(request: types.UpsertRequest, request_id: int = 0) -> bytes:
    """Write a batch of rows: float16 vectors as FLOAT16, others as FLOAT32.

    Raises InvalidId for a string that UTF-8 cannot encode.
    """
    return twins.UpsertRequestTwin(
        collection=request.collection,
        ids=encode_ids(request.ids),
        vectors=encode_matrix(request.vectors),
        metadata=request.metadata,
        mode=WRITE_MODES.number[request.mode],
        request_id=request_id,
    ).SerializeToString()


def decode_upsert_request(payload: bytes, limits: Limits) -> tuple[types.UpsertRequest, int]:
    """Return the batch and its request_id. Arrays are read-only views; metadata is canonical.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, counts that do not match, an invalid matrix or metadata.
    InvalidId, InvalidParameter, LimitExceeded
        For an invalid id or mode, or a size over the limit.
    """
    twin, bulk = read_twin(twins.UpsertRequestTwin, v1.UpsertRequest, payload, _other_upsert_bytes)
    ids = bulk.ids()
    check_ids(ids, limits)
    vectors = bulk.vectors()
    check_count("vectors", len(vectors), ids.size)
    metadata = None
    if bulk.metadata:
        check_count("metadata", len(bulk.metadata), ids.size)
        metadata = canonical_metadata(bulk.metadata, limits)
    if bulk.metadata_json:
        if bulk.metadata:
            reason = "metadata and metadata_json are mutually exclusive"
            raise MalformedMessage(reason, field="metadata_json")
        check_count("metadata_json", len(bulk.metadata_json), ids.size)
        metadata = metadata_from_json(bulk.metadata_json, limits)
    mode = WRITE_MODES.member(twin.mode or v1.WRITE_MODE_UPSERT, "mode", InvalidParameter)
    request = types.UpsertRequest(
        collection=twin.collection, ids=ids, vectors=vectors, metadata=metadata, mode=mode
    )
    return request, twin.request_id


def _other_upsert_bytes(twin: twins.UpsertRequestTwin) -> int:
    return (
        content_bytes(len(twin.collection.encode()))
        + number_bytes(twin.mode)
        + number_bytes(twin.request_id)
    )


def encode_upsert_response(result: types.UpsertResult, request_id: int = 0) -> bytes:
    """Acknowledge a batch."""
    return v1.UpsertResponse(
        accepted=result.accepted,
        errors=[v1.RowError(**copied(error, types.RowError)) for error in result.errors],
        token=encode_token(result.token),
        request_id=request_id,
    ).SerializeToString()


def decode_upsert_response(payload: bytes) -> tuple[types.UpsertResult, int]:
    """Return the acknowledgement and its request_id."""
    response = parse(v1.UpsertResponse, payload)
    result = types.UpsertResult(
        accepted=response.accepted,
        errors=tuple(types.RowError(**copied(error, types.RowError)) for error in response.errors),
        token=decode_token(response.token),
    )
    return result, response.request_id


def encode_delete_request(request: types.DeleteRequest) -> bytes:
    """Name the rows to delete."""
    message = v1.DeleteRequest(collection=request.collection)
    set_selection(message, request.ids, request.filter)
    return message.SerializeToString()


def decode_delete_request(payload: bytes, limits: Limits) -> types.DeleteRequest:
    """Return which rows to delete.

    Raises what `required_selection` raises, and MalformedMessage for bytes that do not parse.
    """
    request = parse_filtered(v1.DeleteRequest, payload, limits)
    ids, filter_ = required_selection(request, limits)
    return types.DeleteRequest(collection=request.collection, ids=ids, filter=filter_)


def encode_delete_response(result: types.DeleteResult) -> bytes:
    """Answer with the number of deleted rows."""
    return v1.DeleteResponse(
        deleted=result.deleted, token=encode_token(result.token)
    ).SerializeToString()


def decode_delete_response(payload: bytes) -> types.DeleteResult:
    """Return the number of deleted rows."""
    response = parse(v1.DeleteResponse, payload)
    return types.DeleteResult(deleted=response.deleted, token=decode_token(response.token))
