"""Tokens and cursors: only those that were issued are taken."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import REQUEST_DECODERS, refusal
from tests.shard.wire.strategies import cursors, tokens
from vectorshard.shard import types
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.wire import opaque
from vectorshard.v1 import vectorshard_pb2 as v1


@given(tokens, cursors)
def test_tokens_and_cursors_come_back_as_they_were_sent(
    token: types.Token, cursor: types.Cursor
) -> None:
    assert opaque.decode_token(opaque.encode_token(token)) == token
    assert opaque.decode_cursor(opaque.encode_cursor(cursor)) == cursor


def test_no_token_is_a_token_without_an_incarnation() -> None:
    assert opaque.encode_token(types.Token(incarnation="")) == b""
    assert opaque.decode_token(b"") == types.Token(incarnation="")


@given(st.binary(min_size=1, max_size=30))
def test_garbage_is_no_token_and_no_cursor(garbage: bytes) -> None:
    with contextlib.suppress(InvalidParameter):
        assert opaque.encode_token(opaque.decode_token(garbage)) == garbage
    with contextlib.suppress(InvalidParameter):
        assert opaque.encode_cursor(opaque.decode_cursor(garbage)) == garbage


def test_no_cursor_is_no_bytes() -> None:
    assert opaque.encode_cursor(None) == b""
    assert opaque.decode_cursor(b"") is None


@pytest.mark.parametrize(
    "garbage", [b"garbage", b"\x10\x01", b"\x0a\x01a\x10\x00", b"\x0a\x01a\xf8\x7f\x01"]
)
def test_a_cursor_that_was_not_issued_is_refused(garbage: bytes) -> None:
    assert refusal(InvalidParameter, opaque.decode_cursor, garbage) == ("cursor", None)
    listing = v1.ListRequest(cursor=garbage).SerializeToString()
    assert refusal(InvalidParameter, REQUEST_DECODERS["list"], listing) == ("cursor", None)


@pytest.mark.parametrize(
    "garbage", [b"garbage", b"\x12\x04\x08\x01\x10\x01", b"\x0a\x01a\xf8\x7f\x01"]
)
def test_a_token_that_was_not_issued_is_refused(garbage: bytes) -> None:
    assert refusal(InvalidParameter, opaque.decode_token, garbage) == ("token", None)
