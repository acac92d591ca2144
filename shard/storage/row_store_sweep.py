"""Removes from a row store, piece by piece, what compactions have made garbage.

Whether readers still need it is for callers to know, and must not enter here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from vectorshard.shard.storage.row_database import RowDatabase
from vectorshard.shard.storage.row_store_format import LastCompaction
from vectorshard.shard.types import BoolArray, Int64Array

SWEPT_COMMITS = 256
SWEPT_ROWS = 5_000
"""What one transaction removes, or a little more. Larger: fewer syncs, longer pauses of writers and
of Python for the JSON of so many row numbers."""

_CONDENSED_COMMITS = (
    "DELETE FROM commits WHERE sequence IN (SELECT sequence FROM (SELECT sequence, rows, "
    "sum(rows) OVER (ORDER BY sequence) AS total FROM commits WHERE sequence <= ? "
    "ORDER BY sequence LIMIT ?) WHERE total - rows < ?)"
)
_UNUSED_GENERATIONS = (
    "DELETE FROM kept WHERE rowid IN (SELECT rowid FROM kept WHERE generation <> ? LIMIT 1)"
)

InRowFile: TypeAlias = Callable[[Int64Array], BoolArray]
"""Returns of rows (rows,) whether the row file holds them."""


class Sweep:
    """The garbage of one row store. The caller's thread is the only one that sweeps."""

    def __init__(self, database: RowDatabase, *, due: bool) -> None:
        self.due = due
        """Whether there may be garbage."""
        self._database = database
        self._metadata_swept_until = 0

    def restart(self) -> None:
        """Begin again: a compaction came into use."""
        self.due, self._metadata_swept_until = True, 0

    def remove_piece(self, last: LastCompaction, in_row_file: InRowFile | None) -> None:
        """Remove a piece of the garbage, or record that all of it is removed.

        Pass `in_row_file` as None if no row has metadata. After a failure, nothing was removed.
        """
        if self._remove(_CONDENSED_COMMITS, last.sequence, SWEPT_COMMITS, SWEPT_ROWS):
            return
        if self._remove(_UNUSED_GENERATIONS, last.generation):
            return
        if in_row_file is not None and self._remove_metadata(last.rebuilt_until, in_row_file):
            return
        with self._database.transaction(0):
            self._database.put_property("swept", str(last.generation))
        self.due = False

    def _remove(self, statement: str, *arguments: int) -> bool:
        """Delete a piece; return whether there was any."""
        with self._database.transaction(SWEPT_ROWS * 32) as connection:
            return connection.execute(statement, arguments).rowcount > 0

    def _remove_metadata(self, until: int, in_row_file: InRowFile) -> bool:
        """Delete metadata of the next rows that were left out; return whether there were any."""
        with self._database.transaction(0) as connection:
            ((packed,),) = connection.execute(
                "SELECT json_group_array(row) FROM (SELECT row FROM metadata "
                "WHERE row >= ? AND row < ? ORDER BY row LIMIT ?)",
                (self._metadata_swept_until, until, SWEPT_ROWS),
            ).fetchall()
            rows = np.array(json.loads(packed), dtype=np.int64)
            gone = rows[~in_row_file(rows)]
            connection.execute(
                "DELETE FROM metadata WHERE row IN (SELECT value FROM json_each(?))",
                (json.dumps(gone.tolist()),),
            )
        if len(rows):
            self._metadata_swept_until = int(rows[-1]) + 1
        return len(rows) > 0
