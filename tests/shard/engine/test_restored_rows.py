"""Rows that another copy of the collection stored: written as they are, and none twice."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.shard.engine.contents import DIM, IDENTITY, entry_of, opened
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.validation import admit_vectors
from vectorshard.shard.errors import CorruptData, InvalidId, InvalidRequest
from vectorshard.shard.storage.data_directory import DataDirectory
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import Float32Array, IdType, Include, Metric, UpsertRequest

ROWS = 2_000
ENTRY = entry_of(IdType.INT64, Metric.COSINE)
BACKUP = "20261201T020000Z-12345678"


def unit_vectors() -> Float32Array:
    """Return vectors as a collection stores them."""
    vectors = np.random.default_rng(3).standard_normal((ROWS, DIM)).astype(np.float32)
    return admit_vectors(ENTRY.config, vectors, "vectors")


def test_stored_unit_vectors_stay_as_they_are(tmp_path: Path) -> None:
    ids, vectors = np.arange(ROWS), unit_vectors()
    assert (admit_vectors(ENTRY.config, vectors, "vectors") != vectors).any(), "no row would change"
    sums = []
    for name in ("written", "restored"):
        with opened(Disk(), tmp_path / name, ENTRY) as collection:
            if name == "written":
                drawn = np.random.default_rng(3).standard_normal((ROWS, DIM)).astype(np.float32)
                collection.writes.apply([UpsertRequest(collection="words", ids=ids, vectors=drawn)])
            else:
                collection.writes.restore(ids, vectors, [b""] * ROWS)
            sums.append(collection.snapshot.sum)
            stored = collection.reads.get(ids, Include(vectors=True))
            assert stored.vectors is not None
            np.testing.assert_array_equal(stored.vectors, vectors)
    assert sums[0] == sums[1]


def test_an_id_is_restored_once(tmp_path: Path) -> None:
    vectors = unit_vectors()
    with opened(Disk(), tmp_path, ENTRY) as collection:
        collection.writes.restore(np.arange(10), vectors[:10], [b""] * 10)
        for again in (vectors[9:19], vectors[10:20]):  # the same content, and another
            with pytest.raises(CorruptData, match="an id is there twice"):
                collection.writes.restore(np.arange(9, 19), again, [b""] * 10)
        assert collection.snapshot.rows == 10


def test_what_a_collection_does_not_store_is_not_restored(tmp_path: Path) -> None:
    with opened(Disk(), tmp_path, ENTRY) as collection:
        with pytest.raises(InvalidId):
            collection.writes.restore(np.array(["a"], object), unit_vectors()[:1], [b""])
        with pytest.raises(InvalidRequest):
            collection.writes.restore(np.arange(1), np.full((1, DIM), np.nan, np.float32), [b""])
        assert collection.snapshot.rows == 0


def test_a_collection_says_from_which_backup_it_was_restored(tmp_path: Path) -> None:
    with (
        closing(DataDirectory.open(Disk(), tmp_path, IDENTITY)) as directory,
        directory.creating_collection("words", "first") as building,
    ):
        Collection.create(Disk(), building, ENTRY, restored_from=BACKUP)
    for _ in range(2):
        with opened(Disk(), tmp_path, ENTRY) as collection:
            assert collection.reads.describe().restored_from == BACKUP
    with opened(Disk(), tmp_path / "other", ENTRY) as created:
        assert created.reads.describe().restored_from == ""
