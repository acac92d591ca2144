"""Copies of a shard's rows, between servers and a backup: OpenCopy, ReadCopy, CloseCopy.

A block of rows passes as it is: shard.storage.row_block says what is in it.
"""

from __future__ import annotations

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import copies, types
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.wire.collections import decode_config, encode_config
from vectorshard.shard.wire.membership import decode_members, decode_sessions, encode_members
from vectorshard.shard.wire.primitives import STAGES, copied, parse
from vectorshard.v1 import vectorshard_pb2 as v1

# ---- OpenCopy ------------------------------------------------------------------------------------


def encode_open_copy_request(request: copies.OpenCopyRequest) -> bytes:
    """Request a copy of a leaf shard's rows."""
    return twins.OpenCopyRequest(**copied(request, copies.OpenCopyRequest)).SerializeToString()


def decode_open_copy_request(payload: bytes) -> copies.OpenCopyRequest:
    """Return which leaf shard's rows are to be copied."""
    request = parse(twins.OpenCopyRequest, payload)
    return copies.OpenCopyRequest(**copied(request, copies.OpenCopyRequest))


_OF_COPY = ("config", "stage", "members", "slots", "sessions", "ledger", "damaged")


def encode_open_copy_response(copy: copies.Copy) -> bytes:
    """Answer with what is pinned."""
    return twins.OpenCopyResponse(
        **copied(copy, copies.Copy, *_OF_COPY),
        config=encode_config(copy.config),
        stage=STAGES.number[copy.stage],
        members=encode_members(copy.members),
        slots=[v1.SlotRange(first=first, last=last) for first, last in copy.slots],
        first_sequences=copy.sessions.first_sequences,
        sessions=copy.sessions.sessions,
        ledger=v1.Ledger(**copied(copy.ledger, types.Ledger)),
        damaged=copy.damaged,
    ).SerializeToString()


def decode_open_copy_response(payload: bytes) -> copies.Copy:
    """Return what is pinned."""
    response = parse(twins.OpenCopyResponse, payload)
    return copies.Copy(
        **copied(response, copies.Copy, *_OF_COPY),
        config=decode_config(response.config),
        stage=STAGES.member(response.stage, "stage", MalformedMessage),
        members=decode_members(response.members),
        slots=tuple((slots.first, slots.last) for slots in response.slots),
        sessions=decode_sessions(response.first_sequences, response.sessions, "sessions"),
        ledger=types.Ledger(**copied(response.ledger, types.Ledger)),
        damaged=tuple(response.damaged),
    )


# ---- ReadCopy ------------------------------------------------------------------------------------


def encode_read_copy_request(request: copies.ReadCopyRequest) -> bytes:
    """Request some rows of a copy."""
    return twins.ReadCopyRequest(**copied(request, copies.ReadCopyRequest)).SerializeToString()


def decode_read_copy_request(payload: bytes) -> copies.ReadCopyRequest:
    """Return which rows are wanted."""
    request = parse(twins.ReadCopyRequest, payload)
    return copies.ReadCopyRequest(**copied(request, copies.ReadCopyRequest))


def encode_read_copy_response(rows: copies.CopiedRows) -> bytes:
    """Answer with a block of rows."""
    return twins.ReadCopyResponse(**copied(rows, copies.CopiedRows)).SerializeToString()


def decode_read_copy_response(payload: bytes) -> copies.CopiedRows:
    """Return a block of rows."""
    response = parse(twins.ReadCopyResponse, payload)
    return copies.CopiedRows(
        **copied(response, copies.CopiedRows, "damaged"), damaged=tuple(response.damaged)
    )


# ---- CloseCopy -----------------------------------------------------------------------------------


def encode_close_copy_request(request: copies.CloseCopyRequest) -> bytes:
    """Request the end of a copy."""
    return twins.CloseCopyRequest(**copied(request, copies.CloseCopyRequest)).SerializeToString()


def decode_close_copy_request(payload: bytes) -> copies.CloseCopyRequest:
    """Return which copy is to end."""
    request = parse(twins.CloseCopyRequest, payload)
    return copies.CloseCopyRequest(**copied(request, copies.CloseCopyRequest))


def encode_close_copy_response() -> bytes:
    """Answer that the copy is gone."""
    return twins.CloseCopyResponse().SerializeToString()


def decode_close_copy_response(payload: bytes) -> None:
    """Check that the bytes parse."""
    parse(twins.CloseCopyResponse, payload)
