"""Blocks of rows: what goes in comes out, and no byte of one changes unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.storage.content_hash import content_hashes
from vectorshard.shard.storage.row_block import BlockDamaged, RowBlock
from vectorshard.shard.types import IdType


def block_of(rows: int, id_type: IdType = IdType.INT64, *, with_metadata: bool = True) -> RowBlock:
    """Return a block of rows, each with another vector."""
    rng = np.random.default_rng(rows)
    vectors = rng.normal(size=(rows, 3)).astype(np.float32)
    ids = np.arange(rows) * 7 - 5
    if id_type is IdType.STRING:
        ids = np.array([f"id-{id_}-\u00e9" for id_ in ids.tolist()], dtype=object)
    metadata = [b"x" * (row % 3) if with_metadata else b"" for row in range(rows)]
    return RowBlock(
        id_type=id_type,
        rows=np.arange(rows) * 2 + 3,
        ids=ids,
        content_hashes=content_hashes(ids, metadata, vectors),
        vectors=vectors,
        metadata=metadata,
    )


@pytest.mark.parametrize("id_type", IdType)
@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 20])
def test_a_block_is_decoded_as_it_was(rows: int, id_type: IdType, with_metadata: bool) -> None:
    block = block_of(rows, id_type, with_metadata=with_metadata)
    back = RowBlock.decode(block.encode())
    assert back.id_type is id_type
    assert len(back) == rows
    assert back.rows.tolist() == block.rows.tolist()
    assert back.ids.tolist() == block.ids.tolist()
    assert back.content_hashes.tolist() == block.content_hashes.tolist()
    assert back.vectors.tolist() == block.vectors.tolist()
    assert list(back.metadata) == list(block.metadata)
    assert not back.mismatches().any()


def test_a_row_that_changed_before_it_was_encoded_is_told() -> None:
    block = block_of(20)
    block.vectors[4, 1] += 1
    assert np.flatnonzero(RowBlock.decode(block.encode()).mismatches()).tolist() == [4]


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_bit_of_a_block_flips_unnoticed(place: int, bit: int) -> None:
    encoded = bytearray(block_of(5).encode())
    encoded[place % len(encoded)] ^= 1 << bit
    with pytest.raises(BlockDamaged):
        RowBlock.decode(bytes(encoded))


@given(length=st.integers(0, 10**6))
def test_a_block_that_was_cut_is_told(length: int) -> None:
    encoded = block_of(5).encode()
    with pytest.raises(BlockDamaged):
        RowBlock.decode(encoded[: length % len(encoded)])
