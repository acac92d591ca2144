"""A collection of 300 rows with metadata, and damage to what it stores."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from tests.shard.samples import (
    SMALL_ENGINE,
    Corpus,
    config_of,
    corpus_of,
    open_collection,
)
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.commit_plan import WriteOutcome
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    FieldType,
    FilterField,
    IdType,
    IndexKind,
    UpsertRequest,
    WriteMode,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

ROWS: Final = 300
DIM: Final = 8
NAME: Final = "words"


def colour_of(row: int) -> str:
    """Return the declared field of a row: each colour has 30 rows."""
    return f"colour {row % 10}"


def metadata_of(rows: range) -> list[bytes]:
    """Return the metadata of rows, by their numbers."""
    return [metadata_from_mapping({"colour": colour_of(row), "text": "a" * 50}) for row in rows]


def upsert_of(
    corpus: Corpus, metadata: list[bytes], mode: WriteMode = WriteMode.UPSERT
) -> UpsertRequest:
    """Return a write of a corpus."""
    return UpsertRequest(
        collection=NAME, ids=corpus.ids, vectors=corpus.vectors, metadata=metadata, mode=mode
    )


class Damaged:
    """An open collection whose rows are written, in commits of 100, and can be damaged.

    Row n has the n-th id of `corpus` until it is written again.
    """

    def __init__(
        self,
        directory: Path,
        id_type: IdType = IdType.INT64,
        kind: IndexKind = IndexKind.IVF_FLAT,
        disk: Disk | None = None,
    ) -> None:
        self.directory = directory
        self.corpus = corpus_of(ROWS, id_type=id_type)
        self.metadata = metadata_of(range(ROWS))
        config = replace(
            config_of(id_type=id_type, kind=kind),
            filter_fields=(FilterField("colour", FieldType.KEYWORD),),
        )
        self.collection = open_collection(directory, config, engine=SMALL_ENGINE, disk=disk)
        for first in range(0, ROWS, 100):
            rows = slice(first, first + 100)
            (outcome,) = self.write(upsert_of(self.corpus.take(rows), self.metadata[rows]))
            assert not isinstance(outcome, Exception)

    def write(self, request: UpsertRequest) -> list[WriteOutcome | Exception]:
        """Apply one write."""
        return self.collection.writes.apply([request])

    def written_again(self, rows: list[int], mode: WriteMode = WriteMode.UPSERT) -> UpsertRequest:
        """Return a write of the very content of some rows."""
        return upsert_of(self.corpus.take(rows), [self.metadata[row] for row in rows], mode)

    def reopen(self) -> None:
        """Close the collection, and start again on its files."""
        self.collection.close()
        self.collection = Collection.open(Disk(), self.directory, 0, SMALL_ENGINE)

    # ---- harms ----------------------------------------------------------------------------------

    def flip_vector(self, row: int, *, value: bytes | None = None) -> None:
        """Change a bit of a row's vector in the file, or write a value into its first component."""
        at = int(self.collection.snapshot.positions.of(np.array([row]))[0]) * DIM * 4
        with (self.directory / self.collection.state.row_store.row_file).open("r+b") as file:
            file.seek(at)
            old = file.read(4)
            file.seek(at)
            file.write(value or bytes([old[0] ^ 1]) + old[1:])

    def make_nan(self, row: int) -> None:
        """Make a component of a row's vector NaN."""
        self.flip_vector(row, value=np.float32(np.nan).tobytes())

    def flip_metadata(self, row: int) -> None:
        """Change the colour of a row in the store: it becomes that of another row."""
        (new,) = metadata_of(range(row + 1, row + 2))
        self._execute("UPDATE metadata SET struct = ? WHERE row = ?", new, row)

    def lose_metadata(self, row: int) -> None:
        """Lose a row's metadata."""
        self._execute("DELETE FROM metadata WHERE row = ?", row)

    def _execute(self, statement: str, *arguments: object) -> None:
        with closing(sqlite3.connect(self.directory / "store.db")) as connection, connection:
            assert connection.execute(statement, arguments).rowcount == 1


Harm: TypeAlias = Callable[[Damaged, int], None]
HARMS: Final[dict[str, Harm]] = {
    "vector": Damaged.flip_vector,
    "nan": Damaged.make_nan,
    "metadata": Damaged.flip_metadata,
    "no metadata": Damaged.lose_metadata,
}
