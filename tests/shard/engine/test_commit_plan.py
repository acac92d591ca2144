"""What a group of writes comes to: rows to append, rows that die, and an outcome for each write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from tests.shard.samples import ids_of, int64s, some_vectors, strings
from vectorshard.shard.engine.commit_plan import (
    AdmittedDelete,
    AdmittedFilterDelete,
    AdmittedUpsert,
    AdmittedWrite,
    CommitPlan,
    DeleteOutcome,
    UpsertOutcome,
)
from vectorshard.shard.filters import Equals
from vectorshard.shard.rows.filter_columns import FilterColumns
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.content_hash import content_hashes
from vectorshard.shard.types import (
    FieldType,
    FilterField,
    Float32Array,
    IdArray,
    IdType,
    Int64Array,
    RowErrorCode,
    UInt64Array,
    WriteMode,
)

BOTH_ID_TYPES = pytest.mark.parametrize("id_type", list(IdType))
LARGE = 1_000


class Committed:
    """What is committed: the ids 0, 1, 2 ... in rows of the same number, some of them dead."""

    def __init__(
        self,
        rows: int = 10,
        dead: Sequence[int] = (),
        damaged: Sequence[int] = (),
        metadata: Mapping[int, bytes] | None = None,
        id_type: IdType = IdType.INT64,
    ) -> None:
        self.id_type = id_type
        self.vectors = some_vectors(rows)
        self.metadata = metadata or {}
        self.row_of = {id_: row for row, id_ in enumerate(ids_of(id_type, range(rows)).tolist())}
        self.damaged = int64s(*damaged)
        self.tombstones = Tombstones().with_dead(int64s(*dead))
        self.columns = FilterColumns([FilterField("lang", FieldType.KEYWORD)])

    def plan(self) -> CommitPlan:
        snapshot = Snapshot(
            sequence=1,
            vectors=self.vectors,
            squared_norms=np.zeros(len(self.vectors), dtype=np.float32),
            ids=IdColumn(self.id_type),
            content_hashes=content_hashes(
                ids_of(self.id_type, range(len(self.vectors))),
                self.stored_metadata(np.arange(len(self.vectors))),
                self.vectors,
            ),
            tombstones=self.tombstones,
            damaged=self.damaged,
            columns=self.columns,
        )
        return CommitPlan(snapshot, self.id_type, self.lookup, self.stored_metadata)

    def lookup(self, ids: IdArray, id_hashes: UInt64Array | None = None) -> Int64Array:
        return np.array([self.row_of.get(id_, -1) for id_ in ids.tolist()], dtype=np.int64)

    def stored_metadata(self, rows: Int64Array) -> Sequence[bytes]:
        return [self.metadata.get(row, b"") for row in rows.tolist()]


def upsert(
    ids: IdArray,
    vectors: Float32Array,
    metadata: Sequence[bytes] | None = None,
    mode: WriteMode = WriteMode.UPSERT,
) -> AdmittedUpsert:
    return AdmittedUpsert(ids=ids, vectors=vectors, metadata=metadata, mode=mode)


@BOTH_ID_TYPES
@pytest.mark.parametrize("mode", list(WriteMode))
def test_new_rows_are_appended_in_their_order(id_type: IdType, mode: WriteMode) -> None:
    plan = Committed(id_type=id_type).plan()
    ids, vectors = ids_of(id_type, [70, 20, 50]), some_vectors(3, seed=1)
    outcome = plan.add(upsert(ids, vectors, [b"x", b"", b"z"], mode))
    assert outcome == UpsertOutcome(accepted=3, errors=())
    assert (plan.first_row, plan.rows) == (10, 3)
    assert plan.ids.tolist() == ids.tolist()
    np.testing.assert_array_equal(plan.vectors, vectors)
    assert plan.metadata == {10: b"x", 12: b"z"}
    assert len(plan.replaced) == len(plan.deleted) == 0
    assert not plan.changes_nothing


def test_changed_rows_replace_the_old_ones_and_identical_ones_add_nothing() -> None:
    committed = Committed()
    plan = committed.plan()
    vectors = committed.vectors[[2, 5, 7]].copy()
    vectors[1, 0] += 1
    assert plan.add(upsert(int64s(2, 5, 7), vectors)) == UpsertOutcome(accepted=3, errors=())
    assert plan.ids.tolist() == [5]
    np.testing.assert_array_equal(plan.vectors, vectors[1:2])
    assert plan.replaced.tolist() == [5]
    assert plan.tombstones.count == 1
    assert plan.tombstones.are_dead(int64s(2, 5, 7)).tolist() == [False, True, False]


def test_identical_means_the_same_bits_and_the_same_metadata() -> None:
    committed = Committed(metadata={1: b"x", 2: b"y", 3: b"z"})
    committed.vectors[4, 0] = 0.0
    plan = committed.plan()
    ids = int64s(0, 1, 2, 3, 4)
    vectors = committed.vectors[:5].copy()
    vectors[4, 0] = -0.0
    plan.add(upsert(ids, vectors, [b"", b"x", b"other", b"", b""]))
    assert plan.ids.tolist() == [2, 3, 4]
    assert plan.metadata == {10: b"other"}


def test_an_insert_refuses_changed_rows_by_their_index_and_takes_the_others() -> None:
    committed = Committed(dead=[8])
    plan = committed.plan()
    vectors = some_vectors(5, seed=1)
    vectors[3] = committed.vectors[6]
    outcome = plan.add(upsert(int64s(90, 4, 91, 6, 8), vectors, mode=WriteMode.INSERT))
    assert isinstance(outcome, UpsertOutcome)
    assert outcome.accepted == 4
    assert [(error.row, error.code) for error in outcome.errors] == [
        (1, RowErrorCode.ALREADY_EXISTS)
    ]
    assert plan.ids.tolist() == [90, 91, 8]
    assert len(plan.replaced) == 0


def test_a_dead_row_is_not_there_whatever_it_held() -> None:
    committed = Committed(dead=[3])
    plan = committed.plan()
    plan.add(upsert(int64s(3), committed.vectors[3:4]))
    assert plan.ids.tolist() == [3]
    assert len(plan.replaced) == 0
    other = committed.plan()
    assert other.add(AdmittedDelete(ids=int64s(3))) == DeleteOutcome(deleted=0)
    assert other.changes_nothing


def test_a_delete_kills_the_rows_that_live() -> None:
    plan = Committed(dead=[3]).plan()
    outcome = plan.add(AdmittedDelete(ids=int64s(3, 4, 99, 1)))
    assert outcome == DeleteOutcome(deleted=2)
    assert plan.deleted.tolist() == [4, 1]
    assert plan.tombstones.count == 3
    assert not plan.changes_nothing


@BOTH_ID_TYPES
def test_writes_of_different_ids_travel_together(id_type: IdType) -> None:
    committed = Committed(id_type=id_type)
    plan = committed.plan()
    writes: list[AdmittedWrite] = [
        upsert(ids_of(id_type, [20, 21]), some_vectors(2, seed=1)),
        AdmittedDelete(ids=ids_of(id_type, [0, 1])),
        upsert(ids_of(id_type, [2, 22]), some_vectors(2, seed=2), [b"x", b"y"]),
    ]
    for write in writes:
        assert plan.fits(write, LARGE)
        plan.add(write)
    assert plan.ids.tolist() == ids_of(id_type, [20, 21, 2, 22]).tolist()
    assert plan.vectors.shape == (4, 8)
    assert plan.metadata == {12: b"x", 13: b"y"}
    assert (plan.replaced.tolist(), plan.deleted.tolist()) == ([2], [0, 1])
    assert plan.tombstones.live_rows(0, 10).tolist() == list(range(3, 10))


@BOTH_ID_TYPES
def test_a_write_of_an_id_that_the_plan_touches_has_to_wait(id_type: IdType) -> None:
    plan = Committed(id_type=id_type).plan()
    plan.add(upsert(ids_of(id_type, [20]), some_vectors(1)))
    plan.add(AdmittedDelete(ids=ids_of(id_type, [1, 77])))
    for touched in (20, 1, 77):
        ids = ids_of(id_type, [5, touched])
        assert not plan.fits(AdmittedDelete(ids=ids), LARGE)
        assert not plan.fits(upsert(ids, some_vectors(2)), LARGE)
    assert plan.fits(AdmittedDelete(ids=ids_of(id_type, [5])), LARGE)


def test_a_plan_has_a_bound_that_only_its_first_write_may_exceed() -> None:
    plan = Committed().plan()
    large = upsert(np.arange(100, 200), some_vectors(100))
    assert plan.fits(large, 50)
    plan.add(large)
    assert not plan.fits(upsert(int64s(1), some_vectors(1)), 50)
    other = Committed().plan()
    other.add(upsert(np.arange(100, 130), some_vectors(30)))
    assert other.fits(upsert(np.arange(200, 220), some_vectors(20)), 50)
    assert not other.fits(upsert(np.arange(200, 221), some_vectors(21)), 50)


def small_writes(id_type: IdType) -> Iterator[AdmittedWrite]:
    """Yield a hundred upserts and deletes of three ids each, 20 to 319, no id twice."""
    for first in range(20, 320, 3):
        ids = ids_of(id_type, range(first, first + 3))
        yield upsert(ids, some_vectors(3, seed=first)) if first % 2 else AdmittedDelete(ids=ids)


@BOTH_ID_TYPES
def test_each_of_many_small_writes_is_remembered(id_type: IdType) -> None:
    plan = Committed(id_type=id_type).plan()
    touched: list[int] = []
    for write, first in zip(small_writes(id_type), range(20, 320, 3), strict=True):
        assert plan.fits(write, LARGE)
        plan.add(write)
        touched += range(first, first + 3)
    assert plan.rows == 150
    for number in touched:
        assert not plan.fits(AdmittedDelete(ids=ids_of(id_type, [7, number])), LARGE)
    assert plan.fits(upsert(ids_of(id_type, [7, 19, 320]), some_vectors(3)), LARGE)


@BOTH_ID_TYPES
def test_ids_to_delete_count_towards_the_bound(id_type: IdType) -> None:
    plan = Committed(id_type=id_type).plan()
    writes = list(small_writes(id_type))
    for write in writes[:20]:
        assert plan.fits(write, 60)
        plan.add(write)
    assert (plan.rows, len(plan.deleted)) == (30, 0)
    for write in writes[20:22]:
        assert not plan.fits(write, 60)
        assert plan.fits(write, 63)
    deletes = Committed(id_type=id_type).plan()
    deletes.add(AdmittedDelete(ids=ids_of(id_type, range(10))))
    assert not deletes.fits(AdmittedDelete(ids=ids_of(id_type, [10])), 10)


def test_joining_costs_what_the_write_weighs_and_not_what_joined_before() -> None:
    class Counted(str):
        """An id that counts how often any of its kind is hashed."""

        __slots__ = ()
        hashed = 0

        def __hash__(self) -> int:
            Counted.hashed += 1
            return super().__hash__()

    plan = Committed(id_type=IdType.STRING).plan()
    for number in range(500):
        write = AdmittedDelete(ids=strings(Counted(f"id-{number}")))
        assert plan.fits(write, LARGE)
        plan.add(write)
    assert Counted.hashed <= 4 * 500


@BOTH_ID_TYPES
def test_an_empty_plan_changes_nothing_and_has_empty_parts(id_type: IdType) -> None:
    plan = Committed(id_type=id_type).plan()
    plan.add(upsert(ids_of(id_type, []), some_vectors(0)))
    plan.add(AdmittedDelete(ids=ids_of(id_type, [])))
    assert plan.changes_nothing
    assert plan.ids.shape == (0,)
    assert plan.vectors.shape == (0, 8)
    assert len(plan.replaced) == len(plan.deleted) == plan.tombstones.count == 0


def test_a_delete_by_filter_kills_what_passes_and_lives() -> None:
    committed = Committed(dead=[3])
    committed.columns.append({row: (("en",) if row % 2 else ("de",),) for row in range(10)}, 10)
    plan = committed.plan()
    assert plan.add(AdmittedFilterDelete(filter=Equals("lang", "en"))) == DeleteOutcome(deleted=4)
    assert plan.deleted.tolist() == [1, 5, 7, 9]
    assert not plan.changes_nothing


def test_a_delete_by_filter_has_a_plan_to_itself() -> None:
    by_filter = AdmittedFilterDelete(filter=Equals("lang", "en"))
    plan = Committed().plan()
    assert plan.fits(by_filter, LARGE)
    plan.add(by_filter)
    assert not plan.fits(AdmittedDelete(ids=int64s(1)), LARGE)
    assert not plan.fits(upsert(int64s(70), some_vectors(1)), LARGE)
    assert not plan.fits(by_filter, LARGE)
    plan = Committed().plan()
    plan.add(AdmittedDelete(ids=int64s(1)))
    assert not plan.fits(by_filter, LARGE)


def test_declared_fields_go_with_the_rows_that_are_appended() -> None:
    plan = Committed(metadata={2: b"b"}).plan()
    vectors = some_vectors(10)[[1, 2, 3]]
    plan.add(
        AdmittedUpsert(
            ids=int64s(1, 2, 3),
            vectors=vectors,
            metadata=[b"a", b"b", b"c"],
            field_values=[(("a",),), (("b",),), (("c",),)],
            mode=WriteMode.UPSERT,
        )
    )
    assert plan.metadata == {10: b"a", 11: b"c"}
    assert plan.field_values == {10: (("a",),), 11: (("c",),)}
