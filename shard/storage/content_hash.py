"""Content hashes: 16 bytes for the id, the vector and the metadata of a row, and sums of them.

The hash of a row is the same wherever the row lies, so the sum of the hashes of all live rows is
the same for every copy of a collection, in any order. What it covers is part of the format
(docs/formats.md). Pure: numpy in, numpy out. It is no defence against an adversary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from xxhash import xxh3_128_digest

from vectorshard.shard.rows.slots import xxh3_64
from vectorshard.shard.types import Float32Array, IdArray, UInt64Array

HASH_BYTES: Final = 16
SUM_MODULUS: Final = 2**128
_FEW: Final = 8
_MANY: Final = 500
_AT_ONCE: Final = 8_000
_OF_METADATA: Final = 2**64 - 1  # turns the seed of the vector into that of the metadata


def content_hashes(
    ids: IdArray,
    metadata: Sequence[bytes],
    vectors: Float32Array,
    id_hashes: UInt64Array | None = None,
) -> UInt64Array:
    """Return the content hash of each row: uint64 (rows, 2), which are the 16 bytes of each.

    Parameters
    ----------
    ids
        (rows,) int64, or object of str.
    metadata
        One for each row, serialized deterministically; empty where it has none.
    vectors
        float32 (rows, dim), as they are stored.
    id_hashes
        The xxh3-64 of the ids, uint64 (rows,), if they are known.
    """
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    if not rows.size:
        return np.zeros((len(ids), 2), dtype=np.uint64)
    if ids.dtype != np.object_:
        seeds = ids.view(np.uint64).tolist()
    else:
        seeds = (xxh3_64(ids) if id_hashes is None else id_hashes).tolist()
    # List comprehensions, not a map inside one C call: that would keep the GIL for a whole batch.
    stored, size = rows.tobytes(), rows.shape[1] * rows.itemsize
    packed = [stored[first : first + size] for first in range(0, len(stored), size)]
    hashes = from_bytes(
        b"".join([xxh3_128_digest(row, seed) for row, seed in zip(packed, seeds, strict=True)])
    )
    if all(metadata):
        inverted = [seed ^ _OF_METADATA for seed in seeds]
        pairs = zip(metadata, inverted, strict=True)
        digests = [xxh3_128_digest(struct, seed) for struct, seed in pairs]
        hashes = hashes ^ from_bytes(b"".join(digests))
    elif any(metadata):
        described = [row for row, struct in enumerate(metadata) if struct]
        digests = [xxh3_128_digest(metadata[row], seeds[row] ^ _OF_METADATA) for row in described]
        hashes = hashes.copy()
        hashes[described] ^= from_bytes(b"".join(digests))
    return hashes


def content_hash_seeds(ids: IdArray) -> tuple[int, int]:
    """Return the seeds of an id (1,) for the hash of its vector, and for that of its metadata."""
    (seed,) = (xxh3_64(ids) if ids.dtype == np.object_ else ids.view(np.uint64)).tolist()
    return seed, seed ^ _OF_METADATA


def from_bytes(stored: bytes | bytearray) -> UInt64Array:
    """Return stored hashes as uint64 (rows, 2); ValueError if these are not whole hashes."""
    return np.frombuffer(stored, dtype=np.uint64).reshape(-1, 2)


def sum_of(hashes: UInt64Array) -> int:
    """Return the sum of hashes, uint64 (rows, 2), modulo 2**128."""
    if len(hashes) < _FEW:
        stored = hashes.tobytes()
        ends = range(HASH_BYTES, len(stored) + 1, HASH_BYTES)
        return (
            sum(int.from_bytes(stored[end - HASH_BYTES : end], "big") for end in ends) % SUM_MODULUS
        )
    pieces = range(0, len(hashes), _AT_ONCE)
    return sum(_sum_of(hashes[at : at + _AT_ONCE]) for at in pieces) % SUM_MODULUS


def _sum_of(hashes: UInt64Array) -> int:
    if len(hashes) < _MANY:
        limbs = hashes.reshape(-1).view(">u4").reshape(-1, 4).sum(axis=0, dtype=np.uint64).tolist()
    else:  # numpy adds up rows of swapped bytes four times as slowly
        swapped = hashes.byteswap().view("<u4").reshape(-1, 4)
        limbs = [int(swapped[:, limb].sum(dtype=np.uint64)) for limb in (1, 0, 3, 2)]
    first, second, third, fourth = limbs
    total: int = (first << 96) + (second << 64) + (third << 32) + fourth
    return total


def sum_bytes(total: int) -> bytes:
    """Return a sum as its 16 bytes, of which the first is the most significant."""
    return (total % SUM_MODULUS).to_bytes(HASH_BYTES, "big")


def sum_from_bytes(stored: bytes) -> int:
    """Return the sum of `sum_bytes`; ValueError if these are not 16 bytes."""
    if len(stored) != HASH_BYTES:
        raise ValueError(f"a sum of {len(stored)} bytes")
    return int.from_bytes(stored, "big")
