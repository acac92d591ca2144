"""Undoes a single flipped bit, where a checksum or a content hash proves which one it was.

CRC-32C is linear: a flipped bit changes it by a pattern that depends only on the bit's distance
from the end, so the pattern names the bit. A content hash has 128 bits: each flip is tried. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_128_digest

from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import content_hash_seeds
from vectorshard.shard.storage.row_store_format import Record
from vectorshard.shard.storage.two_slots import Slot, slot_of
from vectorshard.shard.types import IdArray

_POLYNOMIAL: Final = 0x82F63B78  # CRC-32C, reflected (RFC 3720, appendix B.4)


def without_flip(message: bytes, stored: int) -> bytes | None:
    """Return a message whose CRC-32C is `stored` and that differs in one bit, or not at all.

    If the stored checksum differs in one bit from the message's, the message itself is returned.
    None if no single bit explains the difference.
    """
    difference = checksum(message) ^ stored
    if difference.bit_count() <= 1:
        return message
    state = 1
    for distance in range(1, len(message) * 8 + 1):
        state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
        if state == difference:
            bit = len(message) * 8 - distance
            sound = bytearray(message)
            sound[bit // 8] ^= 1 << bit % 8
            return bytes(sound)
    return None


def slots_without_flips(stored: Sequence[tuple[bytes, int]]) -> tuple[list[Slot], bool]:
    """Return the slots of `stored_records` whose flips could be undone, and whether none had to be.

    A record that is missing, or stays damaged, is left out.
    """
    slots, sound = [], len(stored) == 2
    for record, crc32c in stored:
        undone = without_flip(record, crc32c)
        slot = None if undone is None else slot_of(undone)
        sound &= slot is not None and checksum(record) == crc32c
        if slot is not None:
            slots.append(slot)
    return slots, sound


def record_without_flip(record: Record) -> Record | None:
    """Return a row of `commits` or `kept` that matches its checksum, after one flip was undone.

    None if no single bit explains the difference, or if a column has the wrong type.
    """
    numbers, stored, blobs, range_crc32c = record[:3], record[3], record[4:-1], record[-1]
    lengths = [len(blob) for blob in blobs]
    head = struct.Struct(f"<{len(numbers) + len(lengths) + 1}q")
    try:
        message = head.pack(*numbers, *lengths, range_crc32c) + b"".join(blobs)
        sound = without_flip(message, stored)
    except (TypeError, struct.error):
        return None
    if sound is None:
        return None
    *values, sound_range = head.unpack_from(sound)
    if values[len(numbers) :] != lengths:  # they were not stored: something else is damaged
        return None
    parts, at = [], head.size
    for length in lengths:
        parts.append(sound[at : at + length])
        at += length
    return (*values[: len(numbers)], checksum(sound), *parts, sound_range)


def row_without_flip(
    ids: IdArray, metadata: bytes, vector: bytes, stored: bytes
) -> tuple[bytes, bytes] | None:
    """Return the metadata and the vector of a row that match its content hash.

    One bit of either is flipped back. `ids` (1,) is the row's id. None if no single bit explains
    the difference.
    """
    of_vector, of_metadata = content_hash_seeds(ids)
    hashed = xxh3_128_digest(vector, of_vector)
    if metadata:
        wanted = _xor(stored, hashed)
        found = _flip_to(metadata, of_metadata, wanted)
        if found is not None:
            return found, vector
        stored = _xor(stored, xxh3_128_digest(metadata, of_metadata))
    found = _flip_to(vector, of_vector, stored)
    return None if found is None else (metadata, found)


def _flip_to(content: bytes, seed: int, wanted: bytes) -> bytes | None:
    tried = bytearray(content)
    for bit in range(len(tried) * 8):
        tried[bit // 8] ^= 1 << bit % 8
        if xxh3_128_digest(tried, seed) == wanted:
            return bytes(tried)
        tried[bit // 8] ^= 1 << bit % 8
    return None


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
