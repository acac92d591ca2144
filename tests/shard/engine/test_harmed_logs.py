"""A log that was harmed after a kill is noticed, and the start that notices it changes nothing.

A collection is copied as a killed process leaves it. Its log is harmed in many ways, each tried on
the copy: the collection must not open, every file must stay as it was, and with the good log in its
place everything must be there. `SEEDS` of the drawn harms are named in a failure.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.shard.engine.contents import (
    ENGINE,
    ENTRY,
    SEED,
    Contents,
    Writes,
    applied,
    check_contents,
    opened,
)
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.errors import CorruptData
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import Metric

SEEDS: Final = 52
"""Of each drawn harm, for each history. With the others, more than 300 tries."""

PUT_BACK_EVERY: Final = 6
"""Tries after which the good log is put back and everything is compared. After all others, that the
bytes are the same must do."""

LOG: Final = "store.db-wal"


@dataclass(frozen=True)
class Killed:
    """What a killed process left: its files, those of a day before, and what must be there.

    `synced` is the log mark of a commit in between, and `synced_bytes` the length of the log then.
    """

    files: Mapping[str, bytes]
    yesterday: Mapping[str, bytes]
    contents: Contents
    synced: bytes
    synced_bytes: int


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a collection without SQLite's shared memory, which means nothing."""
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name != "store.db-shm"
    }


def killed(path: Path, *, compacted: bool) -> Killed:
    """Write 24 commits, perhaps with a compaction among them, and look as if killed then."""
    write = Writes(ENTRY.config.id_type, SEED)
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(100)))
    directory = path / "collections" / "words"
    with opened(Disk(), path, ENTRY) as collection:
        yesterday = files_of(directory)
        for commit in range(20):
            contents = applied(collection, contents, write.upsert(range(commit * 5, commit * 9)))
            if compacted and commit == 10:
                collection.compaction.run(lambda: None)
                while collection.compaction.sweep_due:
                    collection.compaction.sweep()
            if commit == 15:
                synced = files_of(directory)
        contents = applied(collection, contents, write.delete(range(0, 60, 7)))
        files = files_of(directory)
        return Killed(files, yesterday, contents, synced["log-end"], len(synced[LOG]))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compacted"])
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return killed(tmp_path_factory.mktemp("history") / "shard-0", compacted=request.param)


def flip(files: dict[str, bytes], random: Random) -> None:
    """Change one bit of the log."""
    log = bytearray(files[LOG])
    bit = random.randrange(len(log) * 8)
    log[bit // 8] ^= 1 << bit % 8
    files[LOG] = bytes(log)


def cut(files: dict[str, bytes], random: Random) -> None:
    """Shorten the log."""
    files[LOG] = files[LOG][: random.randrange(len(files[LOG]))]


def zero(files: dict[str, bytes], random: Random) -> None:
    """Lose a sector of the log, as a disk may."""
    at = random.randrange(len(files[LOG]) // 512) * 512
    files[LOG] = files[LOG][:at] + bytes(512) + files[LOG][at + 512 :]


Harm = Callable[[dict[str, bytes], Random], None]


def lay_out(directory: Path, files: Mapping[str, bytes]) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    for name, contents in files.items():
        (directory / name).write_bytes(contents)


def check_refused(directory: Path, files: Mapping[str, bytes]) -> None:
    """Open a harmed collection: it must not open, and nothing may change."""
    lay_out(directory, files)
    with pytest.raises(CorruptData):
        Collection.open(Disk(), directory, 0, ENGINE).close()
    assert {LOG: b"", **files_of(directory)} == {LOG: b"", **files}


def check_whole(directory: Path, history: Killed) -> None:
    """Put the good log back, beside whatever the failed start left of shared memory."""
    for name in (LOG, "store.db"):
        (directory / name).write_bytes(history.files[name])
    with closing(Collection.open(Disk(), directory, 0, ENGINE)) as collection:
        check_contents(collection, history.contents)


@pytest.mark.parametrize("harm", [flip, cut, zero])
def test_a_harmed_log_is_noticed_and_nothing_is_changed(
    tmp_path: Path, history: Killed, harm: Harm
) -> None:
    for seed in range(SEEDS):
        files = dict(history.files)
        harm(files, Random(seed))
        if files == history.files:
            continue
        try:
            check_refused(tmp_path / "words", files)
            if seed % PUT_BACK_EVERY == 0:
                check_whole(tmp_path / "words", history)
        except BaseException as error:
            error.add_note(f"{harm.__name__}, seed {seed}")
            raise


def test_a_log_that_is_gone_is_noticed(tmp_path: Path, history: Killed) -> None:
    files = {name: contents for name, contents in history.files.items() if name != LOG}
    check_refused(tmp_path / "words", files)
    check_whole(tmp_path / "words", history)
    check_refused(tmp_path / "words", {**history.files, LOG: b""})


def test_a_log_of_another_moment_is_noticed(tmp_path: Path, history: Killed) -> None:
    for name in (LOG, "store.db"):
        other = {each: history.yesterday.get(each, b"") for each in (name, LOG)}
        check_refused(tmp_path / "words", {**history.files, **other})
        check_whole(tmp_path / "words", history)


def test_after_a_power_cut_all_that_a_synced_mark_covers_is_noticed(
    tmp_path: Path, history: Killed
) -> None:
    log, end = history.files[LOG], history.synced_bytes
    assert len(log) > end
    files = {**history.files, "log-end": history.synced}
    check_refused(tmp_path / "words", {**files, LOG: log[: end - 1]})
    for seed in range(SEEDS):
        harmed = {LOG: log[:end]}
        flip(harmed, Random(seed))
        check_refused(tmp_path / "words", {**files, LOG: harmed[LOG] + log[end:]})
    lay_out(tmp_path / "words", {**files, LOG: log[:end]})  # what follows is not noticed
    Collection.open(Disk(), tmp_path / "words", 0, ENGINE).close()


def test_the_good_log_opens_however_often_a_start_looked(tmp_path: Path, history: Killed) -> None:
    lay_out(tmp_path / "words", history.files)
    check_whole(tmp_path / "words", history)


# ---- the order of a start -----------------------------------------------------------------------


class TracedDisk(Disk):
    """A disk that notes each statement with whether its connection may write."""

    def __init__(self) -> None:
        self.statements: list[tuple[bool, str]] = []

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = super().connect(path)
        connection.set_trace_callback(lambda text: self.statements.append((True, text)))
        return connection

    def connect_reader(self, path: Path) -> sqlite3.Connection:
        connection = super().connect_reader(path)
        connection.set_trace_callback(lambda text: self.statements.append((False, text)))
        return connection


def test_a_start_reads_all_records_once_in_one_transaction_that_cannot_write(
    tmp_path: Path, history: Killed
) -> None:
    lay_out(tmp_path / "words", history.files)
    disk = TracedDisk()
    with closing(Collection.open(disk, tmp_path / "words", 0, ENGINE)):
        writes = [may_write for may_write, _ in disk.statements]
        looked = [text for may_write, text in disk.statements if not may_write]
    assert writes == sorted(writes)
    assert (looked[0], looked[-1]) == ("BEGIN", "ROLLBACK")
    assert sum(" ids, range_crc32c FROM commits " in text for text in looked) == 1
    assert not any(" FROM " in text for may_write, text in disk.statements if may_write)


# ---- other damage -------------------------------------------------------------------------------

STRAYS: Final = {"rows-7.f32": b"7", "index-9-9.faiss": b"9", "filters-3.columns": b"3"}
"""What a start removes, once everything else is verified."""


def row_file_of(files: Mapping[str, bytes]) -> str:
    return next(name for name in files if name.startswith("rows-"))


def rotten(files: dict[str, bytes]) -> None:
    """Change a bit of every row."""
    name = row_file_of(files)
    files[name] = bytes(byte ^ 1 for byte in files[name])


def short(files: dict[str, bytes]) -> None:
    """Cut the row file off."""
    name = row_file_of(files)
    files[name] = files[name][:700]


def gone(files: dict[str, bytes]) -> None:
    """Lose the row file."""
    del files[row_file_of(files)]


@pytest.mark.parametrize("harm", [rotten, short, gone])
def test_damaged_rows_are_noticed_before_anything_is_changed(
    tmp_path: Path, history: Killed, harm: Callable[[dict[str, bytes]], None]
) -> None:
    files = {**history.files, **STRAYS}
    harm(files)
    check_refused(tmp_path / "words", files)
    name = row_file_of(history.files)
    (tmp_path / "words" / name).write_bytes(history.files[name])
    check_whole(tmp_path / "words", history)
    assert not STRAYS.keys() & files_of(tmp_path / "words").keys()
