"""Sets of row numbers as bytes: 64-bit Roaring bitmaps in the portable format. Pure."""

from __future__ import annotations

from array import array

import numpy as np
from pyroaring import BitMap64

from vectorshard.shard.errors import CorruptData
from vectorshard.shard.types import Int64Array


def encode_rows(rows: Int64Array) -> bytes:
    """Return row numbers as a serialized bitmap."""
    bitmap = BitMap64(array("Q", rows.astype(np.uint64).tobytes()))
    bitmap.run_optimize()
    serialized: bytes = bitmap.serialize()
    return serialized


def decode_rows(serialized: bytes) -> Int64Array:
    """Return the row numbers of a serialized bitmap, ascending; CorruptData if they are damaged."""
    try:
        found = BitMap64.deserialize(serialized)
    except (IndexError, ValueError) as error:
        raise CorruptData(f"a set of row numbers does not parse: {error}") from error
    return np.array(found.to_array(), dtype=np.int64) if found else np.zeros(0, dtype=np.int64)
