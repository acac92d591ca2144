"""Tokens and cursors: opaque bytes that a caller keeps and sends back."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import types
from vectorshard.shard.errors import InvalidParameter

_OpaqueT = TypeVar("_OpaqueT", twins.Token, twins.Cursor)


def encode_token(token: types.Token) -> bytes:
    """Return the opaque bytes of a token; b"" for a token without an incarnation."""
    if not token.incarnation:
        return b""
    return twins.Token(
        incarnation=token.incarnation,
        sequences=dict(token.sequences),
        sessions=dict(token.sessions),
    ).SerializeToString(deterministic=True)


def decode_token(token: bytes) -> types.Token:
    """Return the token of `encode_token`'s bytes; b"" is a token without an incarnation.

    Raises InvalidParameter if `encode_token` did not write these bytes.
    """
    if not token:
        return types.Token(incarnation="")
    message = _parse_issued(twins.Token, token, "token")
    return types.Token(
        incarnation=message.incarnation,
        sequences=dict(message.sequences),
        sessions=dict(message.sessions),
    )


def encode_cursor(cursor: types.Cursor | None) -> bytes:
    """Return the opaque bytes of a List cursor; b"" for none."""
    if cursor is None:
        return b""
    return twins.Cursor(
        incarnation=cursor.incarnation, shard=cursor.shard, row=cursor.row
    ).SerializeToString(deterministic=True)


def decode_cursor(cursor: bytes) -> types.Cursor | None:
    """Return the cursor of `encode_cursor`'s bytes; None for b"".

    Raises InvalidParameter if `encode_cursor` did not write these bytes.
    """
    if not cursor:
        return None
    message = _parse_issued(twins.Cursor, cursor, "cursor")
    return types.Cursor(incarnation=message.incarnation, shard=message.shard, row=message.row)


def _parse_issued(kind: type[_OpaqueT], issued: bytes, field: str) -> _OpaqueT:
    """Return the message of these bytes, if serializing it yields the same bytes."""
    try:
        message = kind.FromString(issued)
    except DecodeError:
        message = kind()
    message.DiscardUnknownFields()
    if not message.incarnation or message.SerializeToString(deterministic=True) != issued:
        raise InvalidParameter(f"{field} was not issued by this service", field=field)
    return message
