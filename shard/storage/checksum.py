"""Checksums of what is on disk: CRC-32C (RFC 3720, appendix B.4) of rows, records and files.

Pure: numpy in, numpy out. What each checksum covers is part of the format (docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c
import numpy as np

from vectorshard.shard.types import Float32Array, IdArray, Int64Array, UInt8Array, UInt32Array


def checksum(*parts: bytes | UInt8Array) -> int:
    """Return the CRC-32C of the concatenated `parts`."""
    crc = 0
    for part in parts:
        crc = int(google_crc32c.extend(crc, part))
    return crc


def checksum_after(crc32c: int, part: memoryview) -> int:
    """Return the CRC-32C of what has `crc32c` so far, followed by `part`."""
    return int(google_crc32c.extend(crc32c, np.frombuffer(part, dtype=np.uint8)))


def row_checksums(
    rows: Int64Array, ids: IdArray, metadata: Sequence[bytes], vectors: Float32Array
) -> UInt32Array:
    """Return the checksum of each row, uint32 (rows,).

    It covers the row number, so it detects a row in the place of another of the same content.

    Parameters
    ----------
    rows
        int64 (rows,): their numbers.
    ids
        (rows,) int64, or object of str.
    metadata
        One for each row, empty where it has none.
    vectors
        float32 (rows, dim), as they are stored.
    """
    strings = ids.dtype == np.object_
    encoded = [id_.encode() for id_ in ids.tolist()] if strings else []
    head = np.empty((len(rows), 2), dtype="<i8")
    head[:, 0] = rows
    lengths = head[:, 1:].view("<u4")
    lengths[:, 0] = [len(id_) for id_ in encoded] if strings else 8
    lengths[:, 1] = [len(packed) for packed in metadata]
    parts = [head, np.ascontiguousarray(vectors, dtype="<f4")]
    if not strings:
        parts.append(ids.astype("<i8", copy=False).reshape(-1, 1))
    fixed = np.concatenate([part.view(np.uint8) for part in parts], axis=1)
    # List comprehensions, not a map inside one C call: that would keep the GIL for a whole batch.
    crcs = [google_crc32c.value(row) for row in fixed.view(f"V{fixed.shape[1]}")[:, 0].tolist()]
    if strings:
        crcs = [google_crc32c.extend(*pair) for pair in zip(crcs, encoded, strict=True)]
    if any(metadata):
        crcs = [google_crc32c.extend(*pair) for pair in zip(crcs, metadata, strict=True)]
    return np.array(crcs, dtype=np.uint32)
