"""The placement hash: the slot of each id. Pure.

Rows on disk are placed by it, so it never changes. It does not know which shard owns a slot.
"""

from __future__ import annotations

import numpy as np
import xxhash

from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.types import IdArray, Int64Array, UInt64Array

# XXH3_64_4to8 of the xxHash specification (Cyan4973/xxHash, doc/xxhash_spec.md, "4-8 bytes of
# input") for 8 bytes, seed 0 and the default secret. With seed 0 the modified seed is 0 too.
_SECRET_8_TO_16 = 0x1CAD21F72C81017C
_SECRET_16_TO_24 = 0xDB979083E96DD4DE
_KEY = np.uint64(_SECRET_8_TO_16 ^ _SECRET_16_TO_24)
_PRIME_MX2 = np.uint64(0x9FB21C651E98DF25)
_INPUT_LENGTH = np.uint64(8)


def slots_of(ids: IdArray) -> Int64Array:
    """Return the slot of each id: its xxh3-64 modulo SLOTS_TOTAL. int64 (rows,)."""
    return slots_by_hash(xxh3_64(ids))


def slots_by_hash(id_hashes: UInt64Array) -> Int64Array:
    """Return the slots of ids with these xxh3-64, uint64 (rows,). int64 (rows,)."""
    return (id_hashes % np.uint64(SLOTS_TOTAL)).astype(np.int64)


def xxh3_64(ids: IdArray) -> UInt64Array:
    """Return the xxh3-64 (seed 0) of each id, uint64 (rows,).

    An int64 is hashed as its 8 little-endian bytes, a `str` as its UTF-8 bytes.
    """
    if ids.dtype == np.object_:
        encoded = map(str.encode, ids.tolist())
        return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(ids))
    return _xxh3_64_of_8_bytes(ids.astype(np.uint64))


def _xxh3_64_of_8_bytes(words: UInt64Array) -> UInt64Array:
    """Return the xxh3-64 of each word's 8 little-endian bytes, seed 0."""
    mixed = _rotated_left(words, 32)  # the first four bytes become the high half
    mixed ^= _KEY
    mixed ^= _rotated_left(mixed, 49) ^ _rotated_left(mixed, 24)
    mixed *= _PRIME_MX2
    mixed ^= (mixed >> np.uint64(35)) + _INPUT_LENGTH
    mixed *= _PRIME_MX2
    mixed ^= mixed >> np.uint64(28)
    return mixed


def _rotated_left(words: UInt64Array, bits: int) -> UInt64Array:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))
