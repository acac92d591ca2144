"""Rows whose stored bytes change: found where they are read, named, hidden, kept, and healed."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.shard.engine.damage import HARMS, NAME, ROWS, Damaged, Harm, colour_of, upsert_of
from tests.shard.samples import Corpus, delete, some_vectors
from vectorshard.shard.descriptions import ExplainRequest
from vectorshard.shard.engine import damaged_rows
from vectorshard.shard.engine import state as state_module
from vectorshard.shard.engine.commit_plan import DeleteOutcome, UpsertOutcome
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.errors import RowsDamaged
from vectorshard.shard.filters import Equals, Filter, Not
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_store_format import damaged_from_json, damaged_to_json
from vectorshard.shard.types import (
    DeleteRequest,
    Effort,
    IdType,
    Include,
    RowErrorCode,
    SearchRequest,
    ShardReceipt,
    WriteMode,
)

ROW = 117
METADATA = Include(metadata=True)
VECTORS = Include(vectors=True)
WHOLE = Include(vectors=True, metadata=True)
NOTHING = Include()
EXACT, INDEX = Effort(exact=True), Effort(nprobe=1_000)
EACH_HARM = pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
TWO_HARMS = pytest.mark.parametrize("harm", [Damaged.flip_vector, Damaged.flip_metadata])


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Damaged]:
    damaged = Damaged(tmp_path)
    yield damaged
    damaged.collection.close()


def search(
    damaged: Damaged,
    *,
    include: Include = NOTHING,
    effort: Effort = EXACT,
    filter_: Filter | None = None,
    k: int = ROWS,
) -> tuple[list[int], ShardReceipt]:
    """Search for a vector of the row; return the rows found, best first, and the receipt."""
    request = SearchRequest(
        collection=NAME,
        queries=damaged.corpus.vectors[ROW : ROW + 1],
        k=k,
        effort=effort,
        filter=filter_,
        include=include,
    )
    found = damaged.collection.reads.search(request)
    numbers = {id_: row for row, id_ in enumerate(damaged.corpus.ids.tolist())}
    return [numbers[id_] for id_ in found.hits.ids.tolist()], found.receipt.shards[0]


def check_hidden(damaged: Damaged, *rows: int) -> None:
    """Assert that these rows, and no others, are damaged, hidden and told."""
    collection, others = damaged.collection, sorted({*range(ROWS)} - {*rows})
    ids = damaged.corpus.ids[list(rows)].tolist()
    for effort in (EXACT, INDEX):
        for include in (NOTHING, WHOLE):
            found, receipt = search(damaged, effort=effort, include=include)
            assert sorted(found) == others
            assert (receipt.rows_visible, receipt.rows_damaged) == (len(others), len(rows))
            colour = Equals("colour", colour_of(ROW))
            found, receipt = search(damaged, effort=effort, include=include, filter_=colour)
            assert sorted(found) == [row for row in others if row % 10 == ROW % 10]
            found, _ = search(damaged, effort=effort, include=include, filter_=Not(colour))
            assert sorted(found) == [row for row in others if row % 10 != ROW % 10]
    ledger = collection.reads.ledger()
    assert ledger.adds_up
    assert ledger.live == collection.reads.count(None) == ROWS
    assert collection.reads.count(damaged.corpus.ids) == ROWS
    assert collection.reads.count(None, Equals("colour", colour_of(ROW))) == sum(
        row % 10 == ROW % 10 for row in others
    )
    described = collection.reads.describe()
    assert (described.rows_damaged, list(described.damaged_ids)) == (len(rows), ids[:100])
    (problem,) = collection.problems
    assert (problem.kind, problem.collection) == (ProblemKind.ROWS_DAMAGED, NAME)
    assert str(ids[0]) in problem.text
    assert "psert or delete" in problem.text
    assert collection.reads.get(damaged.corpus.ids, NOTHING).ids.tolist() == (
        damaged.corpus.ids.tolist()
    )


def check_whole(damaged: Damaged, rows: int = ROWS) -> None:
    """Assert that no row is damaged, and so many live."""
    collection = damaged.collection
    assert not len(collection.snapshot.damaged)
    assert collection.problems == []
    found, receipt = search(damaged, include=WHOLE)
    assert len(found) == receipt.rows_visible == collection.reads.count(None) == rows
    assert collection.reads.ledger().adds_up
    assert len(collection.reads.list_rows(0, ROWS, WHOLE)[0].ids) == rows


# ---- finding ------------------------------------------------------------------------------------


def get(damaged: Damaged, include: Include) -> None:
    damaged.collection.reads.get(damaged.corpus.ids[ROW - 2 : ROW + 2], include)


def get_filtered(damaged: Damaged, include: Include) -> None:
    damaged.collection.reads.get(None, include, Equals("colour", colour_of(ROW)))


def list_rows(damaged: Damaged, include: Include) -> None:
    damaged.collection.reads.list_rows(50, 100, include)


def list_filtered(damaged: Damaged, include: Include) -> None:
    damaged.collection.reads.list_rows(50, 100, include, Equals("colour", colour_of(ROW)))


def explain(damaged: Damaged, _: Include) -> None:
    query = damaged.corpus.vectors[:1]
    request = ExplainRequest(collection=NAME, query=query, id=damaged.corpus.ids[ROW : ROW + 1])
    damaged.collection.reads.explain(request)


@pytest.mark.parametrize(
    ("harm", "include"),
    [("vector", METADATA), ("metadata", VECTORS)],
    ids=["a vector, read for metadata", "metadata, read for vectors"],
)
@pytest.mark.parametrize("read", [get, get_filtered, list_rows, list_filtered, explain])
def test_a_reader_of_a_damaged_row_is_told_its_id_and_the_cure(
    damaged: Damaged, read: Callable[[Damaged, Include], None], include: Include, harm: str
) -> None:
    HARMS[harm](damaged, ROW)
    for _ in range(2):
        with pytest.raises(RowsDamaged) as raised:
            read(damaged, include)
        assert f"id {damaged.corpus.ids[ROW]} " in str(raised.value)
        assert "upsert or delete these ids" in str(raised.value)
    check_hidden(damaged, ROW)


@pytest.mark.parametrize(
    ("harm", "include", "trained"),
    [
        ("vector", METADATA, False),
        ("vector", METADATA, True),
        ("metadata", VECTORS, True),
        ("no metadata", WHOLE, False),
        ("nan", NOTHING, False),
        ("nan", NOTHING, True),
    ],
)
def test_a_search_that_meets_a_damaged_row_answers_without_it(
    tmp_path: Path, include: Include, harm: str, trained: bool
) -> None:
    damaged = Damaged(tmp_path, IdType.STRING)
    if trained:
        build_index(damaged.collection, lambda: 0.0)
    HARMS[harm](damaged, ROW)
    found, receipt = search(damaged, include=include, effort=INDEX if trained else EXACT)
    assert ROW not in found
    assert (len(found), receipt.rows_damaged) == (ROWS - 1, 1)
    check_hidden(damaged, ROW)
    damaged.collection.close()


def test_a_page_of_damaged_rows_is_found_as_a_whole(damaged: Damaged) -> None:
    rows = list(range(40, 160))
    for row in rows:
        damaged.flip_vector(row)
    found, receipt = search(damaged, include=METADATA, k=1)
    assert receipt.rows_damaged == len(rows)
    assert found[0] not in rows
    check_hidden(damaged, *rows)


def test_damage_everywhere_is_an_error_and_not_an_endless_search(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damaged_rows, "NEIGHBOURS", 0)
    for row in range(ROWS):
        damaged.flip_vector(row)
    with pytest.raises(RowsDamaged, match="the stored bytes of ids"):
        search(damaged, include=METADATA, k=1)


def test_a_row_that_a_compaction_has_copied_whole_is_not_damaged(damaged: Damaged) -> None:
    old = damaged.collection.snapshot
    delete(damaged.collection, damaged.corpus.ids[:100])
    damaged.collection.compaction.run(lambda: None)
    damaged.collection.state.found_damaged(old, np.array([ROW]), "read")
    check_whole(damaged, ROWS - 100)


# ---- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter_", [None, Equals("colour", colour_of(ROW))])
@pytest.mark.parametrize("include", [NOTHING, METADATA, WHOLE])
def test_a_listing_gets_past_damaged_rows_and_names_them(
    damaged: Damaged, filter_: Filter | None, include: Include
) -> None:
    rows = [ROW, ROW + 10, ROW + 1]
    for row in rows:
        damaged.flip_vector(row)
    damaged.collection.state.note_damaged(np.array(rows), "test")
    expected = [row for row in range(ROWS) if filter_ is None or row % 10 == ROW % 10]
    listed, named, first = [], [], 0
    while True:
        page, next_row = damaged.collection.reads.list_rows(
            first, 20, include, filter_, skip_damaged=True
        )
        listed += page.ids.tolist()
        if page.damaged is not None:
            named += page.damaged.tolist()
        if include.vectors:
            assert page.vectors is not None
            assert len(page.vectors) == len(page.ids)
        if next_row is None:
            break
        first = next_row
    ids = damaged.corpus.ids
    assert listed == [ids[row] for row in expected if row not in rows]
    assert sorted(named) == sorted(ids[row] for row in rows if row in expected)


def test_ids_alone_are_listed_and_counted_of_damaged_rows_too(damaged: Damaged) -> None:
    damaged.flip_vector(ROW)
    damaged.collection.state.note_damaged(np.array([ROW]), "test")
    page, _ = damaged.collection.reads.list_rows(0, ROWS, NOTHING)
    assert page.ids.tolist() == damaged.corpus.ids.tolist()
    with pytest.raises(RowsDamaged):
        damaged.collection.reads.list_rows(0, ROWS, NOTHING, Equals("colour", colour_of(ROW)))


# ---- healing ------------------------------------------------------------------------------------


@TWO_HARMS
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("mode", list(WriteMode))
def test_writing_the_same_content_again_heals_a_damaged_row(
    damaged: Damaged, harm: Harm, known: bool, mode: WriteMode
) -> None:
    total = damaged.collection.snapshot.sum
    harm(damaged, ROW)
    if known:
        search(damaged, include=WHOLE)
    (outcome,) = damaged.write(damaged.written_again([ROW - 1, ROW, ROW + 1], mode))
    assert isinstance(outcome, UpsertOutcome)
    assert (outcome.accepted, outcome.errors) == (3, ())
    ledger = damaged.collection.reads.ledger()
    assert (ledger.accepted, ledger.replaced) == (ROWS + 1, 1)
    check_whole(damaged)
    assert damaged.collection.snapshot.sum == total
    damaged.reopen()
    check_whole(damaged)


@TWO_HARMS
@pytest.mark.parametrize("known", [False, True])
def test_other_content_or_a_delete_heals_it_too(damaged: Damaged, harm: Harm, known: bool) -> None:
    for row in (ROW, ROW + 1):
        harm(damaged, row)
    if known:
        search(damaged, include=WHOLE)
    other = Corpus(damaged.corpus.ids[ROW : ROW + 1], some_vectors(1, seed=9))
    (outcome,) = damaged.write(upsert_of(other, [b""], WriteMode.INSERT))
    assert isinstance(outcome, UpsertOutcome)
    assert [error.code for error in outcome.errors] == [RowErrorCode.ALREADY_EXISTS]
    damaged.write(upsert_of(other, [b""]))
    delete(damaged.collection, damaged.corpus.ids[ROW + 1 : ROW + 2])
    check_whole(damaged, ROWS - 1)
    damaged.reopen()
    check_whole(damaged, ROWS - 1)


@TWO_HARMS
def test_a_delete_by_filter_spares_damaged_rows(damaged: Damaged, harm: Harm) -> None:
    harm(damaged, ROW)
    search(damaged, include=WHOLE)
    request = DeleteRequest(collection=NAME, filter=Equals("colour", colour_of(ROW)))
    (outcome,) = damaged.collection.writes.apply([request])
    assert isinstance(outcome, DeleteOutcome)
    assert outcome.deleted == 29
    assert damaged.collection.snapshot.damaged.tolist() == [ROW]


# ---- keeping ------------------------------------------------------------------------------------


@EACH_HARM
def test_a_start_notes_damaged_rows(damaged: Damaged, harm: Harm) -> None:
    harm(damaged, ROW)
    with capture_logs() as logs:
        damaged.reopen()
    (log,) = [log for log in logs if log["event"] == "row damaged"]
    assert (log["id"], log["row"], log["by"]) == (damaged.corpus.ids[ROW], ROW, "start")
    check_hidden(damaged, ROW)


def test_rows_that_were_found_damaged_stay_so_over_starts(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "ROWS_VERIFIED_AT_START", 5)
    for row in (ROW, ROW + 3, ROW + 5):
        damaged.flip_vector(row)
    search(damaged, include=WHOLE)
    delete(damaged.collection, damaged.corpus.ids[ROW + 3 : ROW + 4])
    for _ in range(2):
        damaged.reopen()
        assert damaged.collection.snapshot.damaged.tolist() == [ROW, ROW + 5]
    damaged.flip_vector(ROW)  # as a repair does
    damaged.reopen()
    assert damaged.collection.snapshot.damaged.tolist() == [ROW + 5]


def test_what_a_full_disk_did_not_record_is_damaged_all_the_same(tmp_path: Path) -> None:
    class FullDisk(Disk):
        is_full = False

        def commit(self, connection: sqlite3.Connection) -> None:
            if self.is_full:
                raise OSError(errno.ENOSPC, "no space left on device")
            super().commit(connection)

    disk = FullDisk()
    damaged = Damaged(tmp_path, disk=disk)
    damaged.flip_vector(ROW)
    disk.is_full = True
    with capture_logs() as logs:
        search(damaged, include=WHOLE)
    assert "damaged rows not recorded" in [log["event"] for log in logs]
    check_hidden(damaged, ROW)
    disk.is_full = False
    (outcome,) = damaged.write(damaged.written_again([ROW]))
    assert isinstance(outcome, UpsertOutcome)
    check_whole(damaged)
    damaged.collection.close()


def test_many_damaged_rows_are_recorded_by_ranges() -> None:
    rows = np.array([0, 1, 2, 7, 9, 10])
    stored = damaged_to_json(rows)
    assert json.loads(stored) == [[0, 2], [7, 7], [9, 10]]
    assert damaged_from_json(stored).tolist() == rows.tolist()
    assert damaged_to_json(rows[:0]) == "[]"
    assert damaged_from_json("[]").tolist() == []
