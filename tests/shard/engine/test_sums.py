"""The sum in the ledger is that of the content hashes of the rows that live, whatever happened."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np
import pytest
import xxhash

from tests.shard.engine.contents import (
    DIM,
    SEED,
    Contents,
    Write,
    Writes,
    applied,
    check_contents,
    entry_of,
    opened,
    sweep,
)
from vectorshard.shard.engine import state
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import IdType, Metric, WriteMode

STEPS = 24


def sum_by_hand(contents: Contents) -> bytes:
    """Add up the hashes of docs/formats.md, without the code that writes them."""
    total = 0
    for id_, (vector, metadata) in contents.rows.items():
        seed = xxhash.xxh3_64_intdigest(id_.encode()) if isinstance(id_, str) else id_ % 2**64
        row = xxhash.xxh3_128_intdigest(vector, seed)
        if metadata:
            row ^= xxhash.xxh3_128_intdigest(metadata, 2**64 - 1 - seed)
        total += row
    return (total % 2**128).to_bytes(16, "big")


def check_sum(collection: Collection, contents: Contents) -> None:
    assert collection.state.row_store.sum == sum_by_hand(contents)
    assert collection.snapshot.sum == sum_by_hand(contents)


def check_ranges(directory: Path, row_file: str) -> None:
    """Compare the checksum of each record's vectors with those in the row file."""
    vectors = np.fromfile(directory / row_file, dtype=np.uint8)
    with closing(sqlite3.connect(directory / "store.db")) as connection:
        kept = connection.execute(
            "SELECT length(row_numbers) / 8, range_crc32c FROM kept ORDER BY first_row"
        )
        commits = connection.execute("SELECT rows, range_crc32c FROM commits ORDER BY sequence")
        at = 0
        for rows, range_crc32c in [*kept, *commits]:
            end = at + rows * DIM * 4
            assert checksum(vectors[at:end]) == range_crc32c
            at = end


@pytest.mark.parametrize("id_type", list(IdType))
@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_that_of_the_rows_that_live(tmp_path: Path, id_type: IdType, seed: int) -> None:
    random, write = Random(seed), Writes(id_type, seed)
    entry, contents = entry_of(id_type, Metric.COSINE), Contents(Metric.COSINE)
    path = tmp_path / "shard-0"
    directory = path / "collections" / "words"

    def drawn() -> Sequence[int]:
        return random.sample(range(60), random.randrange(1, 20))

    def written() -> list[Write]:
        mode = random.choice(list(WriteMode))
        writes: list[Write] = [write.upsert(drawn(), mode), write.delete(drawn())]
        return writes[: random.randrange(1, 3)]

    def compact(collection: Collection) -> None:
        nonlocal contents

        def meanwhile() -> None:
            nonlocal contents
            contents = applied(collection, contents, *written())

        collection.compaction.run(meanwhile)
        check_sum(collection, contents)
        if random.random() < 0.7:
            sweep(collection)

    for _ in range(3):
        with opened(Disk(), path, entry) as collection:
            check_sum(collection, contents)
            for _ in range(STEPS // 3):
                if random.random() < 0.1 and len(contents.rows) < contents.accepted:
                    compact(collection)
                else:
                    contents = applied(collection, contents, *written())
                check_sum(collection, contents)
            compact(collection)
            sweep(collection)
        check_ranges(directory, collection.state.row_store.row_file)


def test_the_death_of_a_damaged_row_leaves_the_sum_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "ROWS_VERIFIED_AT_START", 5)
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    entry = entry_of(IdType.STRING, Metric.L2)
    with opened(Disk(), path, entry) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
    rows = path / "collections" / "words" / "rows-0.f32"
    damaged = bytearray(rows.read_bytes())
    for row in (3, 4):
        damaged[row * DIM * 4] ^= 1
    rows.write_bytes(damaged)
    with opened(Disk(), path, entry) as collection:
        contents = applied(collection, contents, write.delete([3]), write.upsert([4]))
        check_sum(collection, contents)
        check_contents(collection, contents)
    with opened(Disk(), path, entry) as collection:
        check_sum(collection, contents)
