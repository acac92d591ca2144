"""A damaged collection is repaired: what comes back, what is lost, and that it is said."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.shard.engine.contents import (
    DIM,
    ENGINE,
    ENTRY,
    IDENTITY,
    WHOLE_ROWS,
    Contents,
    Writes,
    applied,
    check_contents,
    now,
    opened,
)
from tests.shard.engine.damaged_directories import (
    LOG,
    Killed,
    flip,
    flip_some,
    killed,
    repaired,
    repaired_words,
    unchanged,
)
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.errors import DataDirectoryLocked, RowStoreCorrupt
from vectorshard.shard.membership import Stage
from vectorshard.shard.storage.data_directory import DataDirectory
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.repair_findings import METADATA, Outcome, Repair
from vectorshard.shard.types import Ledger

LOG_FLIPS = 5  # in each history
LAST_COMMIT = 21


HISTORIES: dict[bool, Killed] = {}

with_and_without_compaction = pytest.mark.parametrize(
    "history", [False, True], ids=["plain", "compacted"], indirect=True
)


@pytest.fixture
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    compacted = getattr(request, "param", True)
    if compacted not in HISTORIES:
        path = tmp_path_factory.mktemp("history")
        HISTORIES[compacted] = killed(path, compacted=compacted)
    return HISTORIES[compacted]


@pytest.fixture
def place(history: Killed, tmp_path: Path) -> Path:
    """The collection's directory in a copy to harm."""
    return history.copy(tmp_path / "shard-0")


def shard_of(place: Path) -> Path:
    return place.parents[1]


@contextmanager
def words(place: Path) -> Iterator[Collection]:
    with closing(Collection.open(Disk(), place, 0, ENGINE)) as collection:
        yield collection


def check_whole(place: Path, found: Repair, contents: Contents) -> None:
    assert (found.outcome, found.whole, found.still_damaged) == (Outcome.REPAIRED, True, [])
    with words(place) as collection:
        check_contents(collection, contents)
    check_sound(place)


def check_sound(place: Path) -> None:
    """A second repair finds nothing."""
    assert {each.outcome for each in repaired(shard_of(place))} == {Outcome.SOUND}


def ledger_of(place: Path) -> Ledger:
    with words(place) as collection:
        ledger = collection.reads.ledger()
        assert ledger.adds_up
        return ledger


# ---- nothing to do ------------------------------------------------------------------------------


def test_a_sound_directory_is_sound_and_nothing_is_changed(place: Path) -> None:
    for write in (False, True):
        with unchanged(place.parent):
            found = repaired(shard_of(place), write=write)
        assert [each.outcome for each in found] == [Outcome.SOUND, Outcome.SOUND]


def test_without_write_nothing_is_changed(place: Path) -> None:
    for name in (LOG, "log-end", "store.db"):
        flip(place / name, 8 * 300)
    (place / LOG).unlink()
    with unchanged(shard_of(place)):
        found = repaired_words(shard_of(place), write=False)
    assert found.outcome is Outcome.REPAIRABLE


def test_a_directory_in_use_is_not_touched(place: Path) -> None:
    with opened(Disk(), shard_of(place), ENTRY):
        for write in (False, True):
            with pytest.raises(DataDirectoryLocked, match="is open in this process"):
                repaired(shard_of(place), write=write)


# ---- the log ------------------------------------------------------------------------------------


@with_and_without_compaction
def test_a_flip_in_the_log_costs_nothing(history: Killed, tmp_path: Path) -> None:
    for seed in range(LOG_FLIPS):
        place = history.copy(tmp_path / str(seed) / "shard-0")
        bit = flip_some(place / LOG, Random(seed))
        found = repaired_words(shard_of(place))
        with words(place) as collection:
            check_contents(collection, history.contents)
        assert found.whole, (seed, bit)
        assert found.outcome in (Outcome.REPAIRED, Outcome.SOUND)
        assert bool(found.kept_in) == (place.with_name("words.damaged")).exists()


@with_and_without_compaction
def test_a_log_that_was_cut_gives_back_what_it_has_and_says_what_is_missing(
    history: Killed, place: Path
) -> None:
    contents = (place / LOG).read_bytes()
    (place / LOG).write_bytes(contents[: len(contents) - 9_000])
    found = repaired_words(shard_of(place))
    assert not found.whole
    assert found.commits_lost
    assert found.commits_lost[-1] == LAST_COMMIT
    assert found.rows_lost is None
    assert ledger_of(place).lost == 0  # until the loss is accepted: other shards know how many
    kept = place.with_name("words.damaged")
    assert (kept / LOG).read_bytes() == contents[:-9_000]
    check_sound(place)


# ---- the database -------------------------------------------------------------------------------


def checkpointed(place: Path) -> Path:
    """Move the log into the database, as an orderly end does; return the database."""
    with words(place):
        pass
    return place / "store.db"


def test_flips_in_the_database_cost_nothing_or_are_told(history: Killed, tmp_path: Path) -> None:
    whole = 0
    for seed in range(8):
        place = history.copy(tmp_path / str(seed) / "shard-0")
        flip_some(checkpointed(place), Random(seed))
        found = repaired_words(shard_of(place), drop_damaged=True)
        with words(place) as collection:
            assert collection.reads.ledger().adds_up
            collection.reads.list_rows(0, 10_000, WHOLE_ROWS)
            if found.whole and not found.rows_dropped:
                check_contents(collection, history.contents)
                whole += 1
        check_sound(place)
    assert whole >= 7


def without_commits(place: Path, *sequences: int) -> None:
    """Lose commits, as if their pages had been overwritten."""
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        for sequence in sequences:
            connection.execute(
                "UPDATE commits SET ids = zeroblob(length(ids)), crc32c = 7 WHERE sequence = ?",
                (sequence,),
            )


@with_and_without_compaction
def test_a_lost_commit_is_counted_as_lost_and_the_rest_is_there(
    history: Killed, place: Path
) -> None:
    before = ledger_of(place)
    without_commits(place, 18)
    found = repaired_words(shard_of(place))
    assert (found.outcome, found.whole, found.commits_lost) == (Outcome.REPAIRED, False, (18,))
    assert found.rows_lost
    after = ledger_of(place)
    assert (after.lost, after.accepted) == (found.rows_lost, before.accepted)
    with words(place) as collection:
        page, _ = collection.reads.list_rows(0, 10_000, WHOLE_ROWS)
        assert page.vectors is not None
        assert page.metadata is not None
        rows = zip(page.vectors, page.metadata, strict=True)
        there = dict(zip(page.ids.tolist(), rows, strict=True))
        same = [
            id_
            for id_, (vector, metadata) in there.items()
            if history.contents.rows.get(id_) == (vector.tobytes(), metadata)
        ]
        assert len(same) >= len(history.contents.rows) - 8
        assert len(page.ids) == len(set(page.ids.tolist()))
    check_sound(place)


def test_the_rows_of_a_damaged_commit_come_back_if_they_match_their_hashes(
    history: Killed, place: Path
) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute(
            "UPDATE commits SET squared_norms = zeroblob(length(squared_norms)) WHERE sequence = 18"
        )
    check_whole(place, repaired_words(shard_of(place)), history.contents)


def test_of_a_damaged_commit_only_rows_that_do_not_match_their_hashes_are_lost(
    place: Path,
) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute(
            "UPDATE commits SET content_hashes = CAST(zeroblob(32) || "
            "substr(content_hashes, 33) AS BLOB) WHERE sequence = 20"
        )
    found = repaired_words(shard_of(place))
    assert (found.whole, found.commits_lost, found.rows_lost) == (False, (20,), 2)
    assert ledger_of(place).lost == 2


def test_without_a_ledger_the_rows_of_the_last_commits_come_back_too(place: Path) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute("UPDATE commits SET crc32c = crc32c + 5 WHERE sequence >= 20")
        connection.execute("UPDATE ledger SET accepted = -1")
    found = repaired_words(shard_of(place))
    assert (found.whole, found.commits_lost, found.rows_lost) == (False, (20, 21), 0)
    assert found.rows_back is None
    assert ledger_of(place).lost == 0
    with words(place) as collection:
        assert len({f"wört-{number}" for number in range(95, 171)} - set(ids_of(collection))) == 0


def ids_of(collection: Collection) -> list[int | str]:
    page, _ = collection.reads.list_rows(0, 10_000, WHOLE_ROWS)
    ids: list[int | str] = page.ids.tolist()
    return ids


def test_after_a_lost_commit_the_store_is_of_another_session_and_directory(place: Path) -> None:
    without_commits(place, 18)
    repaired_words(shard_of(place))
    with words(place) as collection:
        sessions = collection.state.row_store.sessions
        assert sessions.first_sequences[-1] == 18
        membership = collection.state.row_store.membership
        assert [member.shard for member in membership.members] == [0]
        assert membership.members[0].directory not in ("", membership.directory)
        assert membership.stage is Stage.COMPLETE
    again = repaired_words(shard_of(place), write=False)
    assert (again.outcome, again.gave_up) == (Outcome.SOUND, True)


def test_a_newest_commit_that_is_gone_without_a_trace_but_the_log_mark_is_lost(
    place: Path,
) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        (accepted,) = connection.execute("SELECT accepted FROM ledger").fetchone()
    with words(place) as collection:
        before = collection.state.row_store.sum
        write = Writes(ENTRY.config.id_type, 7).upsert(range(200, 205))
        applied(collection, Contents(ENTRY.config.metric), write)
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute("DELETE FROM commits WHERE sequence = ?", (LAST_COMMIT + 1,))
        connection.execute("UPDATE ledger SET accepted = ?, sum = ?", (accepted, before))
    with pytest.raises(RowStoreCorrupt, match=r"commit 21.*log-end has .*commit 22"):
        Collection.open(Disk(), place, 0, ENGINE)
    found = repaired_words(shard_of(place))
    assert (found.outcome, found.whole) == (Outcome.REPAIRED, False)
    assert found.commits_lost == (LAST_COMMIT + 1,)


def test_repaired_files_belong_to_whom_they_belonged(place: Path) -> None:
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    (shard_of(place) / "session").write_bytes(b"7")
    flip(place / LOG, 8 * 5_001)
    for path in [shard_of(place), *shard_of(place).rglob("*")]:
        os.chown(path, owner, -1)
        path.chmod(0o700 if path.is_dir() else 0o600)
    found = repaired(shard_of(place))
    assert [each.outcome for each in found] == [Outcome.REPAIRED] * 2
    for path in [*shard_of(place).glob("s*"), *place.iterdir(), place]:
        status = path.stat()
        assert status.st_uid == owner, path
        if path.parent != shard_of(place):
            assert status.st_mode & 0o777 == (0o700 if path == place else 0o600), path


def test_sessions_that_are_gone_come_back(history: Killed, place: Path) -> None:
    contents = history.contents
    for session in (7, 8):
        with closing(Collection.open(Disk(), place, 0, ENGINE, session)) as collection:
            contents = applied(
                collection, contents, Writes(ENTRY.config.id_type, session).upsert(range(3))
            )
            expected = collection.state.row_store.sessions
    assert expected.sessions == (7, 8)
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute("DELETE FROM sessions WHERE session = 7")
    found = repaired_words(shard_of(place))
    assert "1 of 2 sessions" in found.findings[0].found
    check_whole(place, found, contents)
    with words(place) as collection:
        assert collection.state.row_store.sessions == expected


def test_a_damaged_ledger_is_computed_again(history: Killed, place: Path) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute("UPDATE ledger SET accepted = accepted + 7, sum = zeroblob(16)")
    found = repaired_words(shard_of(place))
    check_whole(place, found, history.contents)


def test_a_store_without_its_configuration_is_refused(place: Path) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute("UPDATE properties SET value = 'x' WHERE key = 'configuration'")
    with unchanged(place.parent):
        found = repaired_words(shard_of(place))
    assert (found.outcome, "backup" in found.cure) == (Outcome.REFUSED, True)


# ---- the log mark -------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["flip", "zeros", "gone"])
def test_a_damaged_log_mark_is_written_again(history: Killed, place: Path, harm: str) -> None:
    path = place / "log-end"
    if harm == "flip":
        flip(path, 77)
        flip(path, 4096 * 8 + 99)
    elif harm == "zeros":
        path.write_bytes(bytes(8192))
    else:
        path.unlink()
    found = repaired_words(shard_of(place))
    check_whole(place, found, history.contents)
    assert (place / "damaged.log-end.1").exists() == (harm != "gone")
    assert not found.kept_in


@with_and_without_compaction
def test_a_database_of_yesterday_comes_back_as_what_it_is(history: Killed, place: Path) -> None:
    (place / LOG).unlink()
    shutil.copy(history.yesterday / "collections" / "words" / "store.db", place / "store.db")
    found = repaired_words(shard_of(place))
    assert not found.whole
    assert found.commits_lost == tuple(range(2, LAST_COMMIT + 1))


def test_a_database_of_yesterday_with_the_log_of_today_comes_back_whole(tmp_path: Path) -> None:
    history = killed(tmp_path / "history", compacted=False)
    place = history.copy(tmp_path / "shard-0")
    shutil.copy(history.yesterday / "collections" / "words" / "store.db", place / "store.db")
    found = repaired_words(shard_of(place))
    assert found.whole
    with words(place) as collection:
        check_contents(collection, history.contents)


def test_a_log_of_another_store_is_left_out(history: Killed, place: Path, tmp_path: Path) -> None:
    checkpointed(place)
    other = killed(tmp_path / "other", compacted=False, seed=5).path / "collections" / "words"
    shutil.copy(other / LOG, place / LOG)
    found = repaired_words(shard_of(place))
    assert f"{LOG} it is the log of another store" in [
        f"{each.file} {each.found}" for each in found.findings
    ]
    check_whole(place, found, history.contents)


# ---- rows ---------------------------------------------------------------------------------------


def row_file(place: Path) -> Path:
    (path,) = place.glob("rows-*")
    return path


def live_position(place: Path) -> int:
    """Return where a live row is in the row file."""
    with words(place) as collection:
        snapshot = collection.snapshot
        live = snapshot.tombstones.live_rows(0, snapshot.rows)
        return int(snapshot.positions.of(live[20:21])[0])


def test_a_flipped_bit_of_a_vector_is_undone(history: Killed, place: Path) -> None:
    flip(row_file(place), (live_position(place) * DIM * 4 + 5) * 8)
    found = repaired_words(shard_of(place))
    (row,) = found.damaged_rows
    assert row.restored
    check_whole(place, found, history.contents)


def test_rows_that_cannot_be_restored_are_named_and_dropped_on_request(
    history: Killed, place: Path
) -> None:
    with row_file(place).open("r+b") as file:
        file.seek(live_position(place) * DIM * 4)
        file.write(b"\x55" * DIM * 4)
    found = repaired_words(shard_of(place), write=False)
    ids = [each.id for each in found.still_damaged]
    assert len(ids) == 1
    assert found.whole
    before = history.contents
    found = repaired_words(shard_of(place), drop_damaged=True)
    assert (found.outcome, found.rows_dropped) == (Outcome.REPAIRED, len(ids))
    left = {id_: row for id_, row in before.rows.items() if id_ not in ids}
    after = replace(before, rows=left, deleted=before.deleted + len(ids))
    with words(place) as collection:
        check_contents(collection, after)
    check_sound(place)


def test_damaged_metadata_is_restored(history: Killed, place: Path) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        ((row, struct),) = connection.execute(
            "SELECT row, struct FROM metadata ORDER BY row DESC LIMIT 1"
        ).fetchall()
        harmed = bytes([struct[0] ^ 2]) + struct[1:]
        connection.execute("UPDATE metadata SET struct = ? WHERE row = ?", (harmed, row))
    check_whole(place, repaired_words(shard_of(place)), history.contents)


def test_metadata_that_is_gone_makes_its_row_damaged(place: Path) -> None:
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute("DELETE FROM metadata WHERE row = (SELECT max(row) FROM metadata)")
    found = repaired_words(shard_of(place), drop_damaged=True)
    assert (found.rows_dropped, found.whole) == (1, True)
    check_sound(place)


@with_and_without_compaction
def test_metadata_that_is_gone_as_a_whole_is_told_from_a_wrong_row_file(
    history: Killed, place: Path
) -> None:
    with words(place) as collection:  # most rows have metadata then
        write = Writes(ENTRY.config.id_type, 7).upsert(range(0, 900, 3))
        applied(collection, history.contents, write)
    with closing(sqlite3.connect(checkpointed(place))) as connection, connection:
        connection.execute("DELETE FROM metadata")
    with words(place) as collection:
        damaged = collection.snapshot.damaged.tolist()
    assert len(damaged) == 300
    found = repaired_words(shard_of(place))
    assert (found.outcome, found.whole) == (Outcome.ROWS_DAMAGED, True)
    assert [each.row for each in found.still_damaged] == damaged
    assert {each.found for each in found.still_damaged} == {METADATA}


@with_and_without_compaction
def test_the_rows_beyond_the_end_of_a_cut_row_file_are_named(history: Killed, place: Path) -> None:
    path = row_file(place)
    with path.open("r+b") as file:
        file.truncate(100 * DIM * 4 + 7)
    found = repaired_words(shard_of(place), drop_damaged=True)
    assert found.rows_dropped == len(found.damaged_rows) > 0
    gone = {each.id for each in found.damaged_rows}
    left = {id_: row for id_, row in history.contents.rows.items() if id_ not in gone}
    deleted = history.contents.deleted + len(gone)
    with words(place) as collection:
        check_contents(collection, replace(history.contents, rows=left, deleted=deleted))
    assert path.stat().st_size >= 1024 * 1024
    check_sound(place)


def test_damaged_rows_are_on_record_so_that_a_start_knows_them(
    history: Killed, place: Path
) -> None:
    path = row_file(place)
    with path.open("r+b") as file:
        file.truncate(100 * DIM * 4)
    found = repaired_words(shard_of(place))
    damaged = [each.row for each in found.damaged_rows]
    assert len(damaged) > 1
    again = repaired_words(shard_of(place))
    assert (again.outcome, again.findings, again.kept_in) == (Outcome.ROWS_DAMAGED, [], "")
    gone = [each.id for each in found.damaged_rows]
    with words(place) as collection:
        assert collection.snapshot.damaged.tolist() == damaged
        healing = [id_ for id_ in gone if id_ in history.contents.rows]
        write = Writes(ENTRY.config.id_type, 7).upsert(
            [int(str(id_).split("-")[1]) for id_ in healing]
        )
        contents = applied(collection, history.contents, write)
        check_contents(collection, contents)


def test_vectors_are_found_in_the_row_file_of_a_compaction_that_the_store_does_not_know(
    tmp_path: Path,
) -> None:
    history = killed(tmp_path / "history", compacted=True)
    place = history.copy(tmp_path / "shard-0")
    log = place / LOG
    with log.open("r+b") as file:
        file.truncate(40_000)
    found = repaired_words(shard_of(place))
    texts = [each.found for each in found.findings if each.file == "rows-0.f32"]
    assert "rows are in rows-1.f32" in texts[0]
    assert not found.whole
    dropped = {each.id for each in found.damaged_rows}
    with words(place) as collection:
        live = collection.reads.ledger().live
        assert collection.snapshot.live - len(collection.snapshot.damaged) == live - len(dropped)
        assert 0 < len(dropped) < live


def test_a_row_file_of_another_store_is_refused(place: Path) -> None:
    path = row_file(place)
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()[: 200 * DIM * 4]))
    with unchanged(place.parent):
        found = repaired_words(shard_of(place))
    assert found.outcome is Outcome.REFUSED
    assert "Move these files back" in found.cure


# ---- derived files ------------------------------------------------------------------------------


def test_damaged_derived_files_are_set_aside(history: Killed, place: Path) -> None:
    with words(place) as collection:
        build_index(collection, now)
        collection.maintenance.checkpoint()
    (index_file,) = place.glob("index-*")
    flip_some(index_file, Random(1))
    found = repaired_words(shard_of(place))
    assert (place / f"damaged.{index_file.name}.1").exists()
    check_whole(place, found, history.contents)


# ---- files that were mixed up -------------------------------------------------------------------


def test_files_of_another_collection_or_directory_are_refused(place: Path) -> None:
    with words(place) as collection:
        membership = collection.state.row_store.membership
        collection.writes.set_membership(replace(membership, directory="another"))
    found = repaired_words(shard_of(place))
    assert (found.outcome, "another data directory" in found.findings[0].found) == (
        Outcome.REFUSED,
        True,
    )
    shutil.copytree(place, place.with_name("other"))
    other = repaired(shard_of(place))[1]
    assert (other.collection, other.outcome) == ("other", Outcome.REFUSED)
    assert "of collection 'words'" in other.findings[0].found


ARCHIVE = Path(__file__).parents[2] / "fixtures" / "data_directory_0a911ab.tar.gz"


def test_a_directory_of_an_earlier_format_is_left_to_a_start(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as contents:
        contents.extractall(tmp_path, filter="data")
    directory = tmp_path / "killed" / "shard-0"
    with unchanged(directory / "collections"):
        (found,) = repaired(directory)
    assert found.outcome is Outcome.REFUSED
    assert "Start a server of this release" in found.cure


# ---- a crash of the repair ----------------------------------------------------------------------


class Stopped(Exception):
    """Stands for the end of the process."""


class StoppingDisk(Disk):
    """Ends before the n-th rename."""

    def __init__(self, renames: int) -> None:
        self.renames = renames

    def rename(self, source: Path, destination: Path) -> None:
        if destination.parent.name == "collections":
            self.renames -= 1
            if self.renames < 0:
                raise Stopped
        super().rename(source, destination)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_repair_that_was_interrupted_is_ended_by_the_next(
    history: Killed, place: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(place / LOG, 8 * 5_000)
    with monkeypatch.context() as patched:
        patched.setattr(
            "tests.shard.engine.damaged_directories.Disk", lambda: StoppingDisk(renames)
        )
        with pytest.raises(Stopped):
            repaired_words(shard_of(place))
    with closing(DataDirectory.open(Disk(), shard_of(place), IDENTITY)):
        pass  # a start in between removes nothing that is needed
    found = repaired_words(shard_of(place))
    assert found.outcome is Outcome.REPAIRED
    with words(place) as collection:
        check_contents(collection, history.contents)
    assert not place.with_name(".repairing-words").exists()
