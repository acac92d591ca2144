"""A damaged log is read on behind the damage, and damage of one byte is undone."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from vectorshard.shard.storage.repair_log import (
    FRAME_HEAD_BYTES,
    HEAD_BYTES,
    LogPages,
    read_log,
)

PAGE_BYTES = 1024
FRAME_BYTES = FRAME_HEAD_BYTES + PAGE_BYTES
FLIPS = 80


@dataclass(frozen=True)
class Log:
    """A log of 12 transactions after a checkpoint: its bytes, and what it must hold."""

    contents: bytes
    expected: LogPages

    @property
    def bytes_in_use(self) -> int:
        return HEAD_BYTES + self.expected.frames * FRAME_BYTES


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    path = tmp_path_factory.mktemp("log") / "some.db"
    random = Random(5)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE some (number INTEGER PRIMARY KEY, content BLOB)")
        for round_ in range(2):
            for _ in range(24 - 12 * round_):
                values = (random.randbytes(random.randrange(2_000)),)
                connection.execute("INSERT INTO some (content) VALUES (?)", values)
            if not round_:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        contents = path.with_name("some.db-wal").read_bytes()
        pages = pages_by_sqlite(path, connection)
    return Log(contents, pages)


def pages_by_sqlite(path: Path, connection: sqlite3.Connection) -> LogPages:
    """Return what the log adds to the database: the pages that a checkpoint changes."""
    before = path.read_bytes()
    ((_, frames, _),) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    after = path.read_bytes()
    found = LogPages(frames=frames)
    for first in range(0, len(after), PAGE_BYTES):
        page = after[first : first + PAGE_BYTES]
        if page != before[first : first + PAGE_BYTES]:
            found.pages[first // PAGE_BYTES + 1] = page
    return found


def check_same(found: LogPages, expected: LogPages) -> None:
    assert found.pages.items() >= expected.pages.items()
    assert found.frames == expected.frames


def test_a_sound_log_is_read_as_sqlite_reads_it(log: Log) -> None:
    found = read_log(log.contents, PAGE_BYTES)
    check_same(found, log.expected)
    assert (found.undone, found.damaged) == ([], [])
    assert len(log.contents) > log.bytes_in_use, "frames of an earlier round should follow"


def test_a_flip_is_undone_or_keeps_to_its_page(log: Log) -> None:
    undone = 0
    for seed in range(FLIPS):
        bit = Random(seed).randrange(log.bytes_in_use * 8)
        harmed = bytearray(log.contents)
        harmed[bit // 8] ^= 1 << bit % 8
        found = read_log(bytes(harmed), PAGE_BYTES)
        wrong = [n for n, page in log.expected.pages.items() if found.pages.get(n) != page]
        assert len(wrong) == len(found.damaged) <= 1 or not wrong, (seed, wrong, found.damaged)
        assert found.frames == log.expected.frames, seed
        undone += not wrong
    assert undone > FLIPS * 0.9


def test_a_damaged_sector_costs_only_its_page(log: Log) -> None:
    at = HEAD_BYTES + 3 * FRAME_BYTES + 300
    harmed = log.contents[:at] + bytes(512) + log.contents[at + 512 :]
    found = read_log(harmed, PAGE_BYTES)
    assert found.damaged == [3]
    (number,) = struct.unpack_from(">I", log.contents, HEAD_BYTES + 3 * FRAME_BYTES)
    wrong = [n for n, page in log.expected.pages.items() if found.pages.get(n) != page]
    assert wrong in ([], [number])


@pytest.mark.parametrize("byte_", range(HEAD_BYTES))
def test_a_damaged_header_costs_nothing(log: Log, byte_: int) -> None:
    harmed = bytearray(log.contents)
    harmed[byte_] ^= 0xFF
    check_same(read_log(bytes(harmed), PAGE_BYTES), log.expected)


def test_a_log_that_was_cut_ends_with_its_last_whole_transaction(log: Log) -> None:
    ends = [0]
    for frame in range(log.expected.frames):
        (total,) = struct.unpack_from(">I", log.contents, HEAD_BYTES + frame * FRAME_BYTES + 4)
        if total:
            ends.append(frame + 1)
    for frames in range(log.expected.frames):
        cut = log.contents[: HEAD_BYTES + frames * FRAME_BYTES + 100]
        found = read_log(cut, PAGE_BYTES)
        whole = max(end for end in ends if end <= frames)
        same = read_log(log.contents[: HEAD_BYTES + whole * FRAME_BYTES], PAGE_BYTES)
        assert found.pages == same.pages


@pytest.mark.parametrize("contents", [b"", b"short", bytes(HEAD_BYTES)])
def test_without_a_frame_a_log_holds_nothing(contents: bytes) -> None:
    assert read_log(contents, PAGE_BYTES).pages == {}
