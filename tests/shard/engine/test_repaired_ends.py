"""A repair says what is gone at the end of the commits, though the log mark is gone as well."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.shard.engine.contents import ENGINE, ENTRY, Contents, Writes, applied, check_contents
from tests.shard.engine.damaged_directories import LOG, Killed, killed, repaired, repaired_words
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.repair_findings import Outcome, Repair

MARK = "log-end"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return killed(tmp_path_factory.mktemp("history"), compacted=True)


@pytest.fixture
def place(history: Killed, tmp_path: Path) -> Path:
    """The collection's directory in a copy to harm."""
    return history.copy(tmp_path / "shard-0")


def opened(place: Path) -> Collection:
    return Collection.open(Disk(), place, 0, ENGINE)


def harm(place: Path, *statements: str) -> None:
    """Move the log into the database, and change it."""
    with closing(opened(place)):
        pass
    with closing(sqlite3.connect(place / "store.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def check_whole(place: Path, found: Repair, contents: Contents) -> None:
    assert (found.outcome, found.whole, found.commits_lost) == (Outcome.REPAIRED, True, ())
    with closing(opened(place)) as collection:
        check_contents(collection, contents)
    assert {each.outcome for each in repaired(place.parents[1])} == {Outcome.SOUND}


GONE = "DELETE FROM commits WHERE sequence >= 20"
NO_DELETE = "UPDATE commits SET deleted = zeroblob(0) WHERE sequence = 21"


@pytest.mark.parametrize("statement", [GONE, NO_DELETE])
def test_without_a_log_mark_the_ledger_says_what_is_gone(place: Path, statement: str) -> None:
    with closing(opened(place)) as collection:
        before = collection.reads.ledger()
    harm(place, statement)
    (place / MARK).unlink()
    found = repaired_words(place.parents[1])
    assert (found.outcome, found.whole) == (Outcome.REPAIRED, False)
    assert any("commits are gone, by its ledger" in each.found for each in found.findings)
    assert found.rows_back
    assert bool(found.rows_lost) is (statement == GONE)
    with closing(opened(place)) as collection:
        after, store = collection.reads.ledger(), collection.state.row_store
        assert (after.accepted, after.lost) == (before.accepted, found.rows_lost)
        assert store.gave_up_commits
        assert store.sessions.first_sequences[-1:] <= (collection.snapshot.sequence,)
        write = Writes(ENTRY.config.id_type, 7).upsert(range(200, 205))
        applied(collection, Contents(ENTRY.config.metric), write)


def test_without_a_log_mark_and_a_ledger_nobody_knows(place: Path) -> None:
    harm(place, GONE, "UPDATE ledger SET accepted = -1, sum = zeroblob(16)")
    (place / MARK).write_bytes(bytes(8192))
    found = repaired_words(place.parents[1])
    assert (found.whole, found.rows_lost, found.rows_back) == (False, None, None)
    text = "nothing tells whether commits after 19 are gone"
    assert text in [each.found for each in found.findings]


def test_without_a_log_mark_the_ledger_proves_that_nothing_is_gone(
    history: Killed, place: Path
) -> None:
    harm(
        place,
        "UPDATE commits SET squared_norms = zeroblob(length(squared_norms)) WHERE sequence = 18",
    )
    (place / MARK).unlink()
    check_whole(place, repaired_words(place.parents[1]), history.contents)


@pytest.mark.parametrize("without_mark", [False, True])
def test_a_log_that_is_older_than_its_store_is_left_out(
    history: Killed, place: Path, *, without_mark: bool
) -> None:
    older = place.parent / "older-log"
    shutil.copy(place / LOG, older)
    with closing(opened(place)) as collection:
        write = Writes(ENTRY.config.id_type, 7).upsert(range(20, 25))
        contents = applied(collection, history.contents, write)
    shutil.move(older, place / LOG)
    if without_mark:
        (place / MARK).unlink()
    with pytest.raises(RowStoreCorrupt, match=MARK):
        opened(place)
    found = repaired_words(place.parents[1])
    assert (LOG, "it is older than store.db") in [
        (each.file, each.found) for each in found.findings
    ]
    check_whole(place, found, contents)
