"""Damaged rows where vectors are read in bulk: trainings, absorption, compactions; and starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.shard.engine.damage import NAME, ROWS, Damaged, colour_of, metadata_of, upsert_of
from tests.shard.samples import Corpus, delete, some_vectors
from vectorshard.shard.engine import damaged_rows, state
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.filters import Equals, Filter, Not
from vectorshard.shard.types import Effort, IndexKind, Int64Array, SearchRequest

ROW = 117
INDEX = Effort(nprobe=1_000)


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Damaged]:
    damaged = Damaged(tmp_path)
    yield damaged
    damaged.collection.close()


def trained(damaged: Damaged) -> None:
    build_index(damaged.collection, lambda: 0.0)


def found(damaged: Damaged, effort: Effort = INDEX, filter_: Filter | None = None) -> list[object]:
    """Return the ids of all hits of a search through the index."""
    queries = damaged.corpus.vectors[:1]
    request = SearchRequest(
        collection=NAME, queries=queries, k=2 * ROWS, effort=effort, filter=filter_
    )
    ids: list[object] = damaged.collection.reads.search(request).hits.ids.tolist()
    return ids


def check(damaged: Damaged, *rows: int, live: int = ROWS) -> None:
    """Assert that these rows are damaged and hidden, and that the ledger has all of them."""
    collection = damaged.collection
    assert collection.snapshot.damaged.tolist() == list(rows)
    ledger = collection.reads.ledger()
    assert ledger.adds_up
    assert ledger.live == live
    for effort in (INDEX, Effort(exact=True), Effort()):
        ids = found(damaged, effort)
        assert len(ids) == len(set(ids)) == live - len(rows)
        assert not set(damaged.corpus.ids[list(rows)].tolist()) & set(ids)


@pytest.mark.parametrize(
    ("kind", "harm"),
    [(IndexKind.IVF_PQ, Damaged.make_nan), (IndexKind.IVF_FLAT, Damaged.flip_vector)],
)
def test_a_training_leaves_damaged_rows_out_and_succeeds(
    tmp_path: Path, kind: IndexKind, harm: object
) -> None:
    damaged = Damaged(tmp_path, kind=kind)
    assert callable(harm)
    harm(damaged, ROW)
    trained(damaged)
    check(damaged, ROW)
    snapshot = damaged.collection.snapshot
    assert snapshot.index is not None
    assert snapshot.index.ivf.rows == ROWS - 1
    damaged.make_nan(ROW + 50)  # a row that the index holds
    trained(damaged)
    check(damaged, ROW, ROW + 50)
    damaged.write(damaged.written_again([ROW, ROW + 50]))
    check(damaged)
    damaged.collection.close()


@pytest.mark.parametrize("moment", [2, 4])
def test_damage_in_the_middle_of_a_training_does_not_reach_the_index(
    damaged: Damaged, moment: int
) -> None:
    calls = 0

    def harm_once() -> bool:
        nonlocal calls
        calls += 1
        if calls == moment:  # after k-means, and before FAISS gets the rows
            damaged.make_nan(ROW)
        return False

    build_index(damaged.collection, lambda: 0.0, harm_once)
    assert calls > 4
    check(damaged, ROW)
    snapshot = damaged.collection.snapshot
    assert snapshot.index is not None
    assert snapshot.index.ivf.rows == ROWS - 1


@pytest.mark.parametrize("harm", [Damaged.make_nan, Damaged.flip_vector])
def test_rows_that_are_damaged_before_they_are_absorbed_stay_out(
    damaged: Damaged, harm: object
) -> None:
    trained(damaged)
    more = Corpus(np.arange(10_000_000, 10_000_060), some_vectors(60, seed=5))
    damaged.write(upsert_of(more, metadata_of(range(60))))
    assert callable(harm)
    harm(damaged, ROWS + 33)
    while damaged.collection.maintenance.absorb_piece():
        pass
    collection = damaged.collection
    assert collection.snapshot.damaged.tolist() == [ROWS + 33]
    assert collection.snapshot.absorbed_until == ROWS + 60
    ledger = collection.reads.ledger()
    assert ledger.adds_up
    assert (ledger.live, ledger.indexed, ledger.buffered) == (ROWS + 60, ROWS + 60, 0)
    assert len(found(damaged)) == ROWS + 59
    damaged.write(upsert_of(more.take(slice(33, 34)), metadata_of(range(33, 34))))
    assert len(found(damaged)) == ROWS + 60
    damaged.reopen()
    assert len(found(damaged)) == ROWS + 60


@pytest.mark.parametrize("known", [False, True])
def test_a_compaction_keeps_damaged_rows_damaged(
    damaged: Damaged, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "ROWS_VERIFIED_AT_START", 5)
    damaged.flip_vector(ROW)
    if known:
        damaged.collection.state.note_damaged(np.array([ROW]), "test")
    delete(damaged.collection, damaged.corpus.ids[:100])
    damaged.collection.compaction.run(lambda: None)
    check(damaged, ROW, live=ROWS - 100)
    row_store = damaged.collection.state.row_store
    row_store.record_damaged(np.zeros(0, np.int64))  # as if the disk had been full
    damaged.collection.maintenance.checkpoint()
    damaged.reopen()
    check(damaged, live=ROWS - 100)
    trained(damaged)
    check(damaged, ROW, live=ROWS - 100)
    damaged.write(damaged.written_again([ROW]))
    check(damaged, live=ROWS - 100)


def test_ranges_of_vectors_cover_all_rows(damaged: Damaged) -> None:
    collection = damaged.collection

    def suspects(first: int, last: int) -> tuple[Int64Array, int]:
        return damaged_rows.suspects(collection.state.row_store, collection.snapshot, first, last)

    for deleted in (range(10, 140), range(150, 250)):
        for first, last in ((0, ROWS), (150, 151), (99, 101), (ROWS - 1, ROWS), (0, 1)):
            rows, until = suspects(first, last)
            assert not len(rows)
            assert until >= last
        delete(collection, damaged.corpus.ids[deleted])
        collection.compaction.run(lambda: None)
        again = Corpus(damaged.corpus.ids[20:30], some_vectors(10, seed=deleted[0]))
        damaged.write(upsert_of(again, metadata_of(range(10))))
    for row in (5, 145, ROWS + 15):
        damaged.flip_vector(row)
        rows, _ = suspects(0, collection.snapshot.rows)
        assert row in rows
        rows, _ = suspects(row, row + 1)
        assert row in rows


# ---- starts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [Damaged.flip_metadata, Damaged.flip_vector])
def test_filter_columns_are_not_built_from_damaged_metadata(
    damaged: Damaged, harm: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "ROWS_VERIFIED_AT_START", 5)
    assert callable(harm)
    harm(damaged, ROW)
    damaged.reopen()
    check(damaged, ROW)
    own, next_one = (Equals("colour", colour_of(row)) for row in (ROW, ROW + 1))
    assert len(found(damaged, filter_=own)) == 29
    assert len(found(damaged, filter_=next_one)) == 30
    assert len(found(damaged, filter_=Not(own))) == 270
    assert damaged.collection.snapshot.damaged_passing(next_one).tolist() == [ROW]


def test_a_row_that_a_repair_made_sound_is_found_again(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "ROWS_VERIFIED_AT_START", 5)
    damaged.flip_vector(ROW)
    damaged.reopen()  # builds columns without the row
    trained(damaged)
    damaged.collection.maintenance.checkpoint()  # an index file and a filter file without the row
    damaged.reopen()
    check(damaged, ROW)
    for _ in range(2):
        damaged.flip_vector(ROW)  # the bit is as it was
        damaged.reopen()
        check(damaged)
        own = Equals("colour", colour_of(ROW))
        assert damaged.corpus.ids[ROW] in found(damaged, filter_=own)
        assert damaged.corpus.ids[ROW] in found(damaged)
        damaged.reopen()  # the files lack it still
        check(damaged)
        damaged.flip_vector(ROW)
        damaged.reopen()
        check(damaged, ROW)
