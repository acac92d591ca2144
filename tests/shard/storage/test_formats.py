"""docs/formats.md says what the code writes."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from tests.shard.storage.row_store_samples import ENTRY, commit_of, compact
from vectorshard.shard.membership import SeenDirectory, Sessions
from vectorshard.shard.rows.filter_columns import FilterColumns
from vectorshard.shard.storage import data_directory, row_store_format
from vectorshard.shard.storage.checked_json import CRC32C
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import content_hashes, sum_bytes, sum_of
from vectorshard.shard.storage.data_directory import DirectoryId, ShardIdentity
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.filter_file import Origin, store_columns
from vectorshard.shard.storage.register import RegisterEntry
from vectorshard.shard.storage.room import Room
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import IndexFile, LastCompaction, config_to_json
from vectorshard.shard.storage.witness import StoredStatement
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    IdArray,
    IdType,
    IndexConfig,
    IndexKind,
    Metric,
    NlistRule,
)

PAGE = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def rows_of(section: str, heads: str) -> list[list[str]]:
    """Return the cells of the table of a section that has these heads, without backticks."""
    after = SECTIONS[section].split(f"| {heads} |\n", 1)[1]
    lines = after.split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture
def database(tmp_path: Path) -> sqlite3.Connection:
    """The database of a store with two commits, a compaction and one commit after it."""
    store = RowStore.create(Disk(), tmp_path, ENTRY)
    store.close()
    store = RowStore.open(Disk(), tmp_path)
    store.start_writing(session=2**62 + 1)
    compact(store)
    store.close()
    return sqlite3.connect(tmp_path / "store.db")


def test_the_tables_and_columns_of_the_page_are_the_schema(database: sqlite3.Connection) -> None:
    described: dict[str, list[tuple[str, str]]] = {}
    table = ""
    for name, column, type_, _ in rows_of("store.db", "table | column | type | meaning"):
        table = name or table
        described.setdefault(table, []).append((column, type_))
    tables = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    assert described == {
        name: [
            (column, type_)
            for _, column, type_, *_ in database.execute(f"PRAGMA table_info({name})")
        ]
        for (name,) in tables
    }
    indexes = database.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql > ''")
    assert all(f"`{name}`" in SECTIONS["store.db"] for (name,) in indexes)


def test_the_versions_of_the_page_are_the_code_s() -> None:
    assert f"format version, {row_store_format.FORMAT_VERSION}." in SECTIONS["store.db"]
    name, _, meaning = rows_of("shard.json", "field | type | meaning")[0]
    assert name == "format_version"
    assert meaning.startswith(f"{data_directory.FORMAT_VERSION}.")


def test_the_fields_of_the_records_are_the_code_s() -> None:
    described = {row[0]: row[1] for row in rows_of("store.db", "record | fields, in their order")}
    for record, kind in (
        ("configuration", CollectionConfig),
        ("index", IndexConfig),
        ("rebuilt", LastCompaction),
        ("index_file", IndexFile),
    ):
        named = re.findall(r"`(\w+)`", f"`{described[record]}")
        expected = [field.name for field in fields(kind)]
        assert [name for name in dict.fromkeys(named) if name in expected] == expected, record
    identity = [row[0] for row in rows_of("shard.json", "field | type | meaning")][1:]
    stored = (*fields(ShardIdentity), *fields(DirectoryId))
    assert identity == [*(field.name for field in stored), CRC32C]
    registered = [row[0] for row in rows_of("register.json", "field | type | meaning")]
    assert registered == [field.name for field in fields(RegisterEntry)]
    lists = dict(rows_of("witness.json", "list | fields"))
    for of_witness, name in ((StoredStatement, "statements"), (SeenDirectory, "seen")):
        expected = [field.name for field in fields(of_witness)]
        assert re.findall(r"`(\w+)`", f"`{lists[name]}")[: len(expected)] == expected
    for values in (Metric, IdType, FieldType):
        assert (
            f"({', '.join(str(member.value) for member in values)})" in described["configuration"]
        )
    for kinds in (IndexKind, NlistRule):
        assert f"({', '.join(str(member.value) for member in kinds)})" in described["index"]


def test_the_properties_of_the_page_are_those_that_a_store_writes(tmp_path: Path) -> None:
    RowStore.create(Disk(), tmp_path, ENTRY, restored_from="a backup").close()
    store = RowStore.open(Disk(), tmp_path)
    store.start_writing(7)
    store.record_damaged(np.array([0]))
    compact(store)
    while store.sweep_due:
        store.sweep(lambda rows: ~np.isin(rows, [0, 1, 7]))
    names = {field.name: 0 for field in fields(IndexFile)}
    store.set_index_file(IndexFile(**{**names, "name": "", "calibration": ()}))  # type: ignore[arg-type]
    store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    stored = dict(connection.execute("SELECT key, value FROM properties"))
    assert {row[0] for row in rows_of("store.db", "key | value")} == stored.keys()
    assert stored["configuration"] == config_to_json(ENTRY.config)
    assert json.loads(stored["rebuilt"]) == asdict(store.last_compaction)


def test_record_checksums_cover_what_the_page_says(database: sqlite3.Connection) -> None:
    def covered(record: tuple[Any, ...]) -> int:
        numbers, crc32c, blobs, of_range = record[:3], record[3], record[4:-1], record[-1]
        covered = (*numbers, *map(len, blobs), of_range)
        assert checksum(struct.pack(f"<{len(covered)}q", *covered), *blobs) == crc32c
        return 1

    for table, records in (("commits", 3), ("kept", 2)):
        assert sum(map(covered, database.execute(f"SELECT * FROM {table}"))) == records
    for first_sequence, session, crc32c in database.execute("SELECT * FROM sessions"):
        assert checksum(struct.pack("<2q", first_sequence, session)) == crc32c
    for key, value, crc32c in database.execute("SELECT * FROM properties"):
        assert checksum(f"{key}{value}".encode()) == crc32c


def test_the_head_of_a_filter_file_is_as_the_page_says(tmp_path: Path) -> None:
    columns = FilterColumns(ENTRY.config.filter_fields)
    columns.append({0: (("en",),), 2: (("de", "en"),)}, 3)
    sessions = Sessions(first_sequences=(1, 5), sessions=(70, 71))
    store_columns(Disk(), tmp_path, columns, 3, 4, Origin("i", sessions), Room("words"))
    contents = (tmp_path / "filters-3.columns").read_bytes()
    assert contents[:8] == b"VSFILTR2"
    assert "`VSFILTR2`" in SECTIONS["filters-R.columns"]
    crc32c = checksum(contents[:24], struct.pack("<Q", 70), b"i", contents[28:])
    assert struct.unpack("<QQI", contents[8:28]) == (3, 4, crc32c)
    parts, rest = [], contents[28:]
    while rest:
        length = int.from_bytes(rest[:8], "little")
        parts.append(rest[8 : 8 + length])
        rest = rest[8 + length :]
    assert (parts[1], parts[2], parts[4]) == ((2).to_bytes(8, "little"), b"en", b"de")


def test_ids_are_as_the_page_says(tmp_path: Path) -> None:
    store = RowStore.create(Disk(), tmp_path, ENTRY)
    store.commit(commit_of(0, 2, ids=np.array([-1, 7])))
    store.close()
    ((ids,),) = sqlite3.connect(tmp_path / "store.db").execute("SELECT ids FROM commits")
    assert ids == struct.pack("<2q", -1, 7)


@pytest.mark.parametrize("id_type", list(IdType))
def test_content_hashes_are_as_the_page_says(id_type: IdType) -> None:
    ids: IdArray = np.array([-5, 7])
    seeds = [2**64 - 5, 7]
    if id_type is IdType.STRING:
        ids = np.array(["tea", "Zürich"], dtype=np.object_)
        seeds = [xxhash.xxh3_64_intdigest(id_.encode()) for id_ in ids]
    vectors = np.array([[1.5, -2.0], [0.0, 3.0]], dtype=np.float32)
    first, second = (
        xxhash.xxh3_128_intdigest(struct.pack("<2f", *vector), seed)
        for vector, seed in zip(vectors.tolist(), seeds, strict=True)
    )
    second ^= xxhash.xxh3_128_intdigest(b"metadata", seeds[1] ^ (2**64 - 1))
    hashes = content_hashes(ids, [b"", b"metadata"], vectors)
    assert hashes.tobytes() == first.to_bytes(16, "big") + second.to_bytes(16, "big")
    assert sum_bytes(sum_of(hashes)) == ((first + second) % 2**128).to_bytes(16, "big")


def test_the_log_mark_is_as_the_page_says(tmp_path: Path) -> None:
    store = RowStore.create(Disk(), tmp_path, ENTRY)
    store.commit(commit_of(0, 3))
    store.set_index_file(None)
    store.close()
    contents = (tmp_path / "log-end").read_bytes()
    assert len(contents) == 8_192
    slots = [contents[:28], contents[4_096:][:28]]
    for slot in slots:
        assert struct.unpack("<I", slot[24:]) == (checksum(slot[:24]),)
    assert sorted(struct.unpack("<8sQQ", slot[:24]) for slot in slots) == [
        (b"VSSLOTS1", 1, 1),
        (b"VSSLOTS1", 2, 1),
    ]
    for text in ("`VSSLOTS1`", "8,192 bytes"):
        assert text in SECTIONS["log-end"]


@pytest.mark.parametrize("rows", [0, 1, 499, 500, 8_001, 20_000])
def test_sums_of_few_and_of_many_rows_are_alike(rows: int) -> None:
    hashes = np.random.default_rng(rows).integers(0, 2**64, (rows, 2), dtype=np.uint64)
    total = sum(int.from_bytes(row.tobytes(), "big") for row in hashes)
    assert sum_of(hashes) == total % 2**128
