"""The scrub: each kind of rot is found once, and what is derived is repaired."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.shard.engine import rot
from tests.shard.engine.rot import ENGINE, Rot, scrubbed, upsert
from vectorshard.shard.descriptions import Scrub as Description
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.scrub import Scrub
from vectorshard.shard.engine.scrub_files import FileScrub
from vectorshard.shard.engine.scrub_findings import Findings
from vectorshard.shard.engine.scrub_index import IndexScrub
from vectorshard.shard.engine.scrub_rows import RowScrub
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.storage import filter_file
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.types import CollectionConfig, IdType, IndexKind


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    collection = scrubbed(tmp_path)
    yield collection
    collection.close()


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


def found_by(collection: Collection, *, read_disk: bool = False) -> tuple[str, ...]:
    """Return what a pass finds that earlier passes did not."""
    before = collection.scrub.description.findings_total
    description = collection.scrub.run_pass(read_disk)
    return description.findings[: description.findings_total - before]


@pytest.mark.parametrize(
    ("kind", "id_type", "read_disk"),
    [
        (IndexKind.IVF_PQ, IdType.INT64, False),
        (IndexKind.IVF_FLAT, IdType.STRING, True),
        (IndexKind.IVF_SQ8, IdType.INT64, True),
    ],
)
def test_a_sound_collection_has_no_findings(
    tmp_path: Path, kind: IndexKind, id_type: IdType, read_disk: bool
) -> None:
    collection = scrubbed(tmp_path, kind=kind, id_type=id_type)
    description = collection.scrub.run_pass(read_disk)
    assert description.findings == ()
    assert description.passes == 1
    assert description.rows == collection.snapshot.live
    assert description.last_pass_read_disk == read_disk
    assert not collection.problems
    collection.close()


@pytest.mark.parametrize(("damage", "text"), rot.REPAIRED_IN_MEMORY.items(), ids=name_of)
def test_rot_in_memory_is_found_once_and_repaired(tmp_path: Path, damage: Rot, text: str) -> None:
    kind, id_type = IndexKind.IVF_FLAT, IdType.STRING
    collection = scrubbed(tmp_path, kind=kind, id_type=id_type)
    damage(collection)
    found = found_by(collection)
    assert any(text in each for each in found), found
    assert found_by(collection) == ()
    assert not collection.problems
    collection.close()


def test_values_that_are_rejected_today_stay_as_an_earlier_release_took_them(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = rot.metadata_of(2)
    take = declared_fields

    def take_but_one(config: CollectionConfig, metadata: list[bytes]) -> object:
        if refused in metadata:
            raise InvalidParameter("rounded", field="metadata.year")
        return take(config, metadata)

    monkeypatch.setattr(filter_file, "declared_fields", take_but_one)
    assert found_by(collection) == ()


def test_norms_are_compared_with_the_vectors_too(collection: Collection) -> None:
    rot.norm(collection)
    wrong = collection.snapshot.squared_norms.copy()
    findings = Findings(collection.state.noticed, "words")
    index = IndexScrub(collection.state, collection.maintenance, findings)
    rows = RowScrub(collection.state, findings, index, read_disk=False)
    assert list(rows.pieces(0, collection.snapshot.rows, None))
    (text,) = findings.texts
    assert "squared norm of row" in text
    assert collection.snapshot.squared_norms[5] == wrong[5] / 2


@pytest.mark.parametrize(("damage", "text"), rot.INDEX_ROT.items(), ids=name_of)
@pytest.mark.parametrize("kind", list(IndexKind))
def test_a_rotten_index_is_trained_again(
    tmp_path: Path, kind: IndexKind, damage: Rot, text: str
) -> None:
    collection = scrubbed(tmp_path, kind=kind)
    assert not collection.maintenance.training_due
    damage(collection)
    found = found_by(collection)
    assert any(text in each for each in found), found
    assert collection.maintenance.training_due
    assert found_by(collection) == ()  # it was told, and asked for, already
    collection.close()


def test_centroids_that_change_are_noticed_from_the_second_pass_on(collection: Collection) -> None:
    assert found_by(collection) == ()
    assert collection.snapshot.index is not None
    collection.snapshot.index.ivf._centroids()[0, 0] += 1
    (text,) = found_by(collection)
    assert "changed centroids" in text
    assert collection.maintenance.training_due


@pytest.mark.parametrize(("damage", "text"), rot.RECORD_ROT.items(), ids=name_of)
def test_a_rotten_record_is_a_problem_that_says_what_to_do(
    collection: Collection, damage: Rot, text: str
) -> None:
    damage(collection)
    found = found_by(collection, read_disk=True)
    assert any(text in each for each in found), found
    (problem,) = [each for each in collection.problems if each.kind is ProblemKind.DAMAGED]
    assert "vectorshard backup" in problem.text
    assert found_by(collection) == ()


def test_sessions_that_are_gone_are_a_problem(tmp_path: Path) -> None:
    scrubbed(tmp_path).close()
    with closing(Collection.open(Disk(), tmp_path, 0, ENGINE, session=7)) as collection:
        upsert(collection, range(1), seed=7)
        rot.sessions_lost(collection)
        (text,) = found_by(collection)
        assert "0 of 1 sessions" in text


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (rot.sum_changed, "the ledger differs"),
        (rot.tombstone_lost, "the tombstones of commit"),
    ],
    ids=name_of,
)
def test_memory_that_contradicts_the_ledger_is_a_problem(
    collection: Collection, damage: Rot, text: str
) -> None:
    damage(collection)
    assert any(text in each for each in found_by(collection))
    assert any(each.kind is ProblemKind.DAMAGED for each in collection.problems)


def test_the_content_hashes_of_live_rows_add_up_to_the_sum(collection: Collection) -> None:
    findings = Findings(collection.state.noticed, "words")
    files = FileScrub(collection.state, findings, read_disk=False)
    assert list(files.content_sum())
    assert findings.total == 0
    collection.state.columns._content_hashes[7, 1] ^= np.uint64(1 << 40)
    assert list(files.content_sum())
    (text,) = findings.texts
    assert "do not add up" in text


@pytest.mark.parametrize("read_disk", [False, True])
@pytest.mark.parametrize(("damage", "text"), rot.FILE_ROT.items(), ids=name_of)
def test_a_rotten_derived_file_is_written_again(
    collection: Collection, damage: Rot, text: str, read_disk: bool
) -> None:
    damage(collection)
    (found,) = found_by(collection, read_disk=read_disk)
    assert text in found
    if damage is not rot.log_mark:
        assert collection.maintenance.checkpoint_due
        collection.maintenance.checkpoint()
    assert found_by(collection, read_disk=read_disk) == ()
    assert not collection.maintenance.checkpoint_due


@pytest.mark.parametrize("read_disk", [False, True])
@pytest.mark.parametrize("damage", rot.ROW_ROT, ids=name_of)
def test_a_rotten_row_is_noted_as_damaged(
    collection: Collection, damage: Rot, read_disk: bool
) -> None:
    damage(collection)
    row = int(collection.state.columns.positions.rows_at(np.array([4]))[0])
    with capture_logs() as log:
        found = found_by(collection, read_disk=read_disk)
    assert [each["repaired"] for each in log if each["event"] == "scrub finding"] == [False]
    assert any(f"damaged row, from row {row} on" in each for each in found), found
    assert row in collection.snapshot.damaged
    assert ProblemKind.ROWS_DAMAGED in [each.kind for each in collection.problems]
    assert found_by(collection) == ()


class DecayedDisk(Disk):
    """A disk whose row file has decayed at one byte, while the page cache is sound."""

    def __init__(self) -> None:
        self.decayed = False
        self.past_cache: set[int] = set()

    def open_to_read(self, path: Path, *, past_cache: bool = False) -> DiskFile:
        file = super().open_to_read(path, past_cache=past_cache)
        if past_cache and path.name.startswith("rows-"):
            self.past_cache.add(file.descriptor)
        else:
            self.past_cache.discard(file.descriptor)
        return file

    def read(self, file: DiskFile, offset: int, buffer: memoryview) -> int:
        found = super().read(file, offset, buffer)
        if self.decayed and file.descriptor in self.past_cache and offset == 0:
            buffer[4 * rot.DIM * 4] ^= 1
        return found

    def write(self, file: DiskFile, offset: int, contents: bytes | bytearray | memoryview) -> None:
        super().write(file, offset, contents)
        if file.path.name.startswith("rows-") and offset == 4 * rot.DIM * 4:
            self.decayed = False


@pytest.mark.parametrize(
    ("byte", "bit", "text"),
    [(102, 0, "free space corruption"), (34, 6, "invalid page number"), (108, 7, "out of range")],
)
def test_pages_that_no_record_is_on_are_looked_at_too(
    collection: Collection, byte: int, bit: int, text: str
) -> None:
    """The free space, the list of free pages and the schema, as the next write will find them."""
    path = collection.state.directory / "store.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        page = bytearray(file.read(4_096))
        page[byte] ^= 1 << bit
        file.seek(0)
        file.write(page)
    found = found_by(collection, read_disk=True)
    assert any(text in each for each in found), found
    assert collection.problems


def test_what_has_decayed_on_the_disk_under_sound_pages_is_written_again(tmp_path: Path) -> None:
    disk = DecayedDisk()
    collection = scrubbed(tmp_path, disk=disk)
    disk.decayed = True
    assert found_by(collection) == ()
    (text,) = found_by(collection, read_disk=True)
    assert "had decayed on the disk; they were sound in memory and are written again" in text
    assert not disk.decayed
    assert found_by(collection, read_disk=True) == ()
    collection.close()


class CachedDisk(Disk):
    """A disk on a file system that cannot be read past the page cache."""

    def open_to_read(self, path: Path, *, past_cache: bool = False) -> DiskFile:
        if past_cache:
            raise OSError(22, "Invalid argument", str(path))
        return super().open_to_read(path)


def test_a_pass_says_when_it_could_not_read_the_disk(tmp_path: Path) -> None:
    collection = scrubbed(tmp_path, disk=CachedDisk())
    description = collection.scrub.run_pass(read_disk=True)
    assert (description.findings, description.last_pass_read_disk) == ((), False)
    collection.close()


class FailingReads(Disk):
    """A disk that fails each read of a row file."""

    failing = False

    def read(self, file: DiskFile, offset: int, buffer: memoryview) -> int:
        if self.failing and file.path.name.startswith("rows-"):
            raise OSError(5, "Input/output error", str(file.path))
        return super().read(file, offset, buffer)


def test_a_failed_read_is_a_problem_of_the_disk_and_damages_no_row(tmp_path: Path) -> None:
    disk = FailingReads()
    collection = scrubbed(tmp_path, disk=disk)
    disk.failing = True
    (text,) = found_by(collection)
    assert "a read failed" in text
    assert [each.kind for each in collection.problems] == [ProblemKind.UNREADABLE]
    disk.failing = False
    assert found_by(collection) == ()
    collection.close()


# ---- pace ---------------------------------------------------------------------------------------


class Hands:
    """A clock and a CPU clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.cpu = 0.0

    def clock(self) -> float:
        return self.now

    def thread_time(self) -> float:
        self.cpu += 0.001
        return self.cpu


def scrub_by_hand(collection: Collection) -> tuple[Scrub, Hands]:
    hands = Hands()
    scrub = Scrub(collection.state, collection.maintenance, hands.clock, hands.thread_time)
    return scrub, hands


def run_due(scrub: Scrub) -> list[float]:
    """Step to the end of a pass; return the rests."""
    rests = []
    while (rest_s := scrub.step()) is not None:
        rests.append(rest_s)
    return rests


def test_a_pass_rests_so_long_that_it_takes_its_share_of_a_core(collection: Collection) -> None:
    scrub, hands = scrub_by_hand(collection)
    assert run_due(scrub) == []
    hands.now += collection.engine.scrub.first_after_s
    rests = run_due(scrub)
    share = collection.engine.scrub.core_share
    assert min(rests) >= 0.001 * (1 / share - 1) - 1e-9
    assert scrub.description.passes == 1


def test_passes_read_the_disk_at_longer_intervals(collection: Collection) -> None:
    scrub, hands = scrub_by_hand(collection)
    config = collection.engine.scrub
    hands.now += config.first_after_s
    read: list[bool] = []
    for _ in range(26):
        run_due(scrub)
        read.append(scrub.description.last_pass_read_disk)
        assert scrub.due_in_s == config.interval_s
        hands.now += config.interval_s
    assert read == [True, *[False] * 23, True, False]


def test_a_close_ends_a_pass_at_once(tmp_path: Path) -> None:
    collection = scrubbed(tmp_path)
    scrub, hands = scrub_by_hand(collection)
    hands.now += collection.engine.scrub.first_after_s
    assert scrub.step() is not None
    collection.close()
    assert scrub.step() is None
    assert scrub.description == Description(progress=scrub.description.progress)


def test_a_pass_that_has_begun_shows_how_far_it_is(collection: Collection) -> None:
    scrub, hands = scrub_by_hand(collection)
    hands.now += collection.engine.scrub.first_after_s
    seen = []
    while scrub.step() is not None:
        seen.append(scrub.description.progress)
    assert seen == sorted(seen)
    assert 0.0 < max(seen) <= 1.0
    assert scrub.description.progress == 0.0
