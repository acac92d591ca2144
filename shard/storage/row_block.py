"""A block of rows, with all that belongs to them: what a backup consists of.

docs/formats.md has its bytes. A block means the same on any shard and any machine. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from vectorshard.shard.errors import CorruptData
from vectorshard.shard.rows.id_column import decode_ids, encode_ids
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import HASH_BYTES, content_hashes, from_bytes
from vectorshard.shard.types import (
    BoolArray,
    Float32Array,
    IdArray,
    IdType,
    Int64Array,
    UInt64Array,
)

MAGIC: Final = b"VSBLOCK1"
_HEAD: Final = struct.Struct("<8s2I6Q")
_TAIL: Final = struct.Struct("<I")
_ID_TYPES: Final = (IdType.INT64, IdType.STRING)


class BlockDamaged(CorruptData):
    """The bytes are no block of rows, or do not match its checksum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Rows of one shard, ascending by number.

    `rows` int64 (rows,) are their numbers, `ids` (rows,) their ids, `content_hashes` uint64
    (rows, 2), `vectors` float32 (rows, dim) as they are stored, `metadata` one serialized Struct
    for each, empty where a row has none.
    """

    id_type: IdType
    rows: Int64Array
    ids: IdArray
    content_hashes: UInt64Array
    vectors: Float32Array
    metadata: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.rows)

    def mismatches(self) -> BoolArray:
        """Return which rows do not match their content hashes, bool (rows,)."""
        found = content_hashes(self.ids, self.metadata, self.vectors)
        wrong: BoolArray = (found != self.content_hashes).any(axis=1)
        return wrong

    def encode(self) -> bytes:
        """Return the block as bytes."""
        metadata = b"".join(self.metadata)
        lengths = np.fromiter(map(len, self.metadata), "<u4", len(self)) if metadata else b""
        parts = (
            self.rows.astype("<i8", copy=False).tobytes(),
            encode_ids(self.id_type, self.ids),
            self.content_hashes.tobytes(),
            np.ascontiguousarray(self.vectors, dtype="<f4").tobytes(),
            bytes(lengths),
            metadata,
        )
        head = _HEAD.pack(
            MAGIC, _ID_TYPES.index(self.id_type), self.vectors.shape[1], *map(len, parts)
        )
        return b"".join((head, *parts, _TAIL.pack(checksum(head, *parts))))

    @classmethod
    def decode(cls, block: bytes) -> RowBlock:
        """Return the rows of a block; raises BlockDamaged. See also `mismatches`."""
        if len(block) < _HEAD.size + _TAIL.size:
            raise BlockDamaged(f"a block of rows of {len(block)} bytes")
        magic, id_type, dim, *lengths = _HEAD.unpack_from(block)
        body = memoryview(block)[: len(block) - _TAIL.size]
        if magic != MAGIC or _HEAD.size + sum(lengths) != len(body):
            raise BlockDamaged("no block of rows, or one that was cut")
        if _TAIL.unpack_from(block, len(body))[0] != checksum(bytes(body)):
            raise BlockDamaged("a block of rows does not match its checksum")
        ends = np.cumsum([_HEAD.size, *lengths]).tolist()
        numbers, ids, hashes, vectors, sizes, metadata = (
            bytes(body[first:last]) for first, last in pairwise(ends)
        )
        try:
            rows = np.frombuffer(numbers, dtype="<i8")
            return cls(
                id_type=_ID_TYPES[id_type],
                rows=rows,
                ids=decode_ids(_ID_TYPES[id_type], ids, len(rows)),
                content_hashes=from_bytes(hashes[: HASH_BYTES * len(rows)]),
                vectors=np.frombuffer(vectors, dtype="<f4").reshape(len(rows), dim),
                metadata=_metadata(sizes, metadata, len(rows)),
            )
        except (IndexError, ValueError, CorruptData) as error:
            raise BlockDamaged(f"a block of rows contradicts itself: {error}") from error


def joined(blocks: Sequence[RowBlock]) -> RowBlock:
    """Return the rows of blocks that follow each other as one block."""
    if len(blocks) == 1:
        return blocks[0]
    return RowBlock(
        id_type=blocks[0].id_type,
        rows=np.concatenate([block.rows for block in blocks]),
        ids=np.concatenate([block.ids for block in blocks]),
        content_hashes=np.concatenate([block.content_hashes for block in blocks]),
        vectors=np.concatenate([block.vectors for block in blocks]),
        metadata=[struct for block in blocks for struct in block.metadata],
    )


def _metadata(sizes: bytes, metadata: bytes, rows: int) -> Sequence[bytes]:
    if not sizes:
        return [b""] * rows
    ends = np.cumsum(np.frombuffer(sizes, dtype="<u4"), dtype=np.int64).tolist()
    if len(ends) != rows or ends[-1] != len(metadata):
        raise ValueError(f"{len(ends)} lengths of metadata for {rows} rows")
    return [metadata[first:last] for first, last in pairwise((0, *ends))]
