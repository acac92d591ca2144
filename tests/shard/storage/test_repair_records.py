"""Sound records are found page by page, and single flipped bits in records are undone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tests.shard.storage.row_store_samples import sample
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import content_hashes
from vectorshard.shard.storage.repair_bits import (
    record_without_flip,
    row_without_flip,
    without_flip,
)
from vectorshard.shard.storage.repair_records import Records, StorePages, records_of
from vectorshard.shard.storage.row_store_format import FORMAT_VERSION, is_sound
from vectorshard.shard.types import IdArray


def rows_of(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(params=[False, True], ids=["plain", "compacted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    sample(tmp_path, rebuilt=request.param)
    return tmp_path / "store.db"


def read(path: Path) -> Records:
    return records_of(StorePages(path.read_bytes()))


def check_read(records: Records, path: Path) -> None:
    commits = {row[0]: row for row in rows_of(path, "SELECT * FROM commits")}
    kept = {(row[0], row[1]): row for row in rows_of(path, "SELECT * FROM kept")}
    assert (records.commits, records.kept) == (commits, kept)
    assert records.metadata == dict(rows_of(path, "SELECT * FROM metadata"))
    assert records.properties == dict(rows_of(path, "SELECT key, value FROM properties"))
    sessions = dict(rows_of(path, "SELECT first_sequence, session FROM sessions"))
    assert records.sessions == sessions
    ((accepted, lost),) = rows_of(path, "SELECT accepted, lost FROM ledger")
    assert records.ledger is not None
    assert (records.ledger.accepted, records.ledger.lost) == (accepted, lost)


def test_all_records_are_read_as_sqlite_reads_them(store: Path) -> None:
    records = read(store)
    check_read(records, store)
    assert records.undone == []


def test_without_the_schema_and_the_trees_the_records_are_read(store: Path) -> None:
    contents = bytearray(store.read_bytes())
    contents[16:100] = bytes(84)  # of the header all but its first words
    contents[200:4096] = bytes(3_896)
    check_read(records_of(StorePages(bytes(contents))), store)


def test_a_version_that_no_release_wrote_is_damage(store: Path) -> None:
    contents = bytearray(store.read_bytes())
    contents[60:64] = b"\x12\x34\x56\x78"
    pages = StorePages(bytes(contents))
    assert pages.version == FORMAT_VERSION
    contents[60:64] = bytes([0, 0, 0, FORMAT_VERSION + 1])
    assert StorePages(bytes(contents)).version == FORMAT_VERSION + 1


def test_flips_cost_few_records(store: Path) -> None:
    sound = read(store)
    lost = 0
    for seed in range(60):
        contents = bytearray(store.read_bytes())
        bit = Random(seed).randrange(len(contents) * 8)
        contents[bit // 8] ^= 1 << bit % 8
        found = records_of(StorePages(bytes(contents)))
        for sequence, record in found.commits.items():
            assert sound.commits.get(sequence, record) == record
        lost += len(sound.commits.keys() - found.commits.keys())
        assert found.properties.items() <= sound.properties.items()
    assert lost == 0


def test_a_flipped_bit_of_a_record_is_undone(store: Path) -> None:
    record = next(iter(read(store).commits.values()))
    for column in range(len(record)):
        if column == 3:
            continue
        harmed = list(record)
        if isinstance(harmed[column], int):
            harmed[column] ^= 1 << 5
        elif harmed[column]:
            blob = bytearray(harmed[column])
            blob[len(blob) // 2] ^= 4
            harmed[column] = bytes(blob)
        else:
            continue
        assert not is_sound(tuple(harmed))
        assert record_without_flip(tuple(harmed)) == record


def test_two_flipped_bits_are_not_undone(store: Path) -> None:
    record = list(next(iter(read(store).commits.values())))
    norms = bytearray(record[7])
    norms[0] ^= 1
    norms[9] ^= 16
    record[7] = bytes(norms)
    assert record_without_flip(tuple(record)) is None


def test_every_flip_of_a_message_and_of_its_checksum_is_undone() -> None:
    message = b"what was written"
    stored = checksum(message)
    for bit in range(len(message) * 8):
        harmed = bytearray(message)
        harmed[bit // 8] ^= 1 << bit % 8
        assert without_flip(bytes(harmed), stored) == message
    for bit in range(32):
        assert without_flip(message, stored ^ 1 << bit) == message


@pytest.mark.parametrize("ids", [np.array([-7]), np.array(["wört"], dtype=object)])
@pytest.mark.parametrize("metadata", [b"", b"some metadata"])
def test_a_flipped_bit_of_a_row_is_undone(ids: IdArray, metadata: bytes) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(1, 6)
    stored = content_hashes(ids, [metadata], vectors).tobytes()
    vector = vectors.tobytes()
    for place in range(0, 24 + len(metadata), 5):
        harmed = bytearray(vector + metadata)
        harmed[place] ^= 64
        found = row_without_flip(ids, bytes(harmed[24:]), bytes(harmed[:24]), stored)
        assert found == (metadata, vector)
    assert row_without_flip(ids, metadata, bytes(24), stored) is None
