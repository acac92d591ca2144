"""Ranges of rows whose vectors have one checksum: those of a commit, or of a piece that the last
compaction kept. To compare it costs a fiftieth of what the content hashes of its rows cost.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from vectorshard.shard.storage.row_store_format import LastCompaction

_KEPT: Final = (
    "SELECT first_row, last_row + 1, range_crc32c FROM kept WHERE generation = :generation AND "
    "first_row < :last AND first_row >= (SELECT coalesce(max(first_row), 0) FROM kept "
    "WHERE generation = :generation AND first_row <= :first) ORDER BY first_row"
)
_COMMITS: Final = (
    "SELECT first_row, first_row + rows, range_crc32c FROM commits WHERE rows > 0 AND "
    "sequence > :sequence AND first_row < :last AND first_row >= (SELECT "
    "coalesce(max(first_row), 0) FROM commits WHERE rows > 0 AND first_row <= :first) "
    "ORDER BY first_row"
)


@dataclass(frozen=True, slots=True)
class VectorRange:
    """The rows first <= row < last, as far as the row file holds them; `crc32c` is that of all
    their vectors, in the order of their positions.
    """

    first: int
    last: int
    crc32c: int


def vector_ranges(
    reader: sqlite3.Connection, compaction: LastCompaction, first: int, last: int
) -> list[VectorRange]:
    """Return the ranges that have a row in [first, last), ascending, and perhaps one before."""
    arguments = {
        "generation": compaction.generation,
        "sequence": compaction.sequence,
        "first": first,
        "last": last,
    }
    statements = (_KEPT, _COMMITS) if first < compaction.rebuilt_until else (_COMMITS,)
    return [
        VectorRange(*found)
        for statement in statements
        for found in reader.execute(statement, arguments)
    ]
