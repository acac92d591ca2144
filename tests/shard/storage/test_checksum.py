"""Checksums follow their definition and notice every change."""

from __future__ import annotations

import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorshard.shard.storage.checksum import checksum, row_checksums
from vectorshard.shard.types import IdArray, Int64Array, UInt32Array

ROWS = np.array([7, 8, 2**40])
INT64_IDS = np.array([-(2**63), 0, 2**63 - 1])
STRING_IDS = np.array(["a", "Zürich", "日本"], dtype=np.object_)
METADATA = [b"", b"\0\n\0", b"x" * 300]
VECTORS = np.array([[0.0, -0.0], [1.5, np.pi], [-1e30, 1e-30]], dtype=np.float32)


def by_definition(rows: Int64Array, ids: IdArray) -> UInt32Array:
    found = []
    for row, id_, metadata, vector in zip(rows, ids, METADATA, VECTORS, strict=True):
        encoded = id_.encode() if isinstance(id_, str) else struct.pack("<q", id_)
        head = struct.pack("<qII2f", row, len(encoded), len(metadata), *vector)
        found.append(google_crc32c.value(head + encoded + metadata))
    return np.array(found, dtype=np.uint32)


def test_the_checksum_is_crc32c() -> None:
    assert checksum(b"1234", b"56789") == 0xE3069283  # the check value of RFC 3720's polynomial
    assert checksum(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283


@pytest.mark.parametrize("ids", [INT64_IDS, STRING_IDS])
def test_row_checksums_follow_their_definition(ids: IdArray) -> None:
    np.testing.assert_array_equal(
        row_checksums(ROWS, ids, METADATA, VECTORS), by_definition(ROWS, ids)
    )


def test_no_rows_have_no_checksums() -> None:
    for ids in (INT64_IDS, STRING_IDS):
        found = row_checksums(ROWS[:0], ids[:0], [], VECTORS[:0])
        assert found.shape == (0,)
        assert found.dtype == np.uint32


@settings(max_examples=200, deadline=None)
@given(bit=st.integers(0, 32 * 4 - 1))
def test_every_bit_of_a_vector_counts(bit: int) -> None:
    vector = np.arange(4, dtype=np.float32).reshape(1, 4)
    changed = vector.copy()
    changed.view(np.uint8)[0, bit // 8] ^= 1 << bit % 8
    before, after = (row_checksums(ROWS[:1], INT64_IDS[:1], [b""], v) for v in (vector, changed))
    assert before != after


def test_the_row_the_id_and_the_metadata_count() -> None:
    vector = VECTORS[:1]

    def one(row: int, id_: str, metadata: bytes) -> int:
        ids = np.array([id_], dtype=np.object_)
        return int(row_checksums(np.array([row]), ids, [metadata], vector)[0])

    assert len({one(1, "ab", b""), one(2, "ab", b""), one(1, "a", b"b"), one(1, "a", b"")}) == 4
