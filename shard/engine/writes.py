"""The writes of one collection, from one thread at a time, one commit in flight.

A commit has four steps, each in a separate method or class:

1. plan: which rows to append and which to kill (`CommitPlan`); nothing is written;
2. prepare: the vectors go to the row file and are synced; the rows do not exist yet;
3. decide: one transaction of the row store; from here on the commit is durable;
4. publish: the commit becomes visible to searches that start later, and is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from vectorshard.shard.engine.commit_plan import (
    COMMIT_IDS_MAX,
    AdmittedDelete,
    AdmittedFilterDelete,
    AdmittedUpsert,
    AdmittedWrite,
    CommitPlan,
    WriteOutcome,
)
from vectorshard.shard.engine.machine import limit_reached
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.engine.validation import (
    admit_rows,
    check_filter,
    check_ids,
    check_vectors,
)
from vectorshard.shard.errors import CorruptData, WritesStopped
from vectorshard.shard.membership import Membership
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import sum_of
from vectorshard.shard.storage.disk import DISK_ERRORS
from vectorshard.shard.storage.read_failures import is_malformed
from vectorshard.shard.storage.row_store_format import Commit
from vectorshard.shard.types import (
    CollectionEntry,
    DeleteRequest,
    Float32Array,
    IdArray,
    UpsertRequest,
    WriteMode,
)

T = TypeVar("T")
R = TypeVar("R")


class Writes:
    """Writes to one collection on one shard, from one thread at a time.

    Parameters
    ----------
    upkeep_due
        Whether background work is due; asked after each commit.
    """

    def __init__(self, state: CollectionState, upkeep_due: Callable[[], bool]) -> None:
        self._state = state
        self._upkeep_due = upkeep_due

    def apply(
        self, requests: Sequence[UpsertRequest | DeleteRequest]
    ) -> list[WriteOutcome | Exception]:
        """Commit a group of writes; return an outcome or an error for each, in order.

        A write with an outcome is durable, and visible to every search that starts later.
        """
        state = self._state
        with state.writes_lock.read():
            outcomes: list[WriteOutcome | Exception] = []
            plan = self._new_plan()
            planned: list[WriteOutcome | Exception] = []
            for request in requests:
                try:
                    write = self._admitted(request)
                    if not plan.fits(write, COMMIT_IDS_MAX):
                        outcomes += self._committed(plan, planned)
                        plan, planned = self._new_plan(), []
                    planned.append(plan.add(write))
                except Exception as error:
                    planned.append(limit_reached(error) or state.noticed.error_of(error))
            return outcomes + self._committed(plan, planned)

    def restore(self, ids: IdArray, vectors: Float32Array, metadata: Sequence[bytes]) -> None:
        """Commit rows as another copy of the collection stores them, in one commit.

        Under COSINE these are unit vectors, and stay as they are: normalized again, some would
        differ in their last bit, and so the content sum. InvalidRequest for what the collection
        does not store; CorruptData if an id exists.
        """
        config = self._state.entry.config
        check_ids(config, ids)
        check_vectors(config, vectors, "vectors")
        upsert = AdmittedUpsert(
            ids=ids,
            vectors=np.ascontiguousarray(vectors, dtype=np.float32),
            metadata=metadata,
            field_values=declared_fields(config, metadata),
            mode=WriteMode.INSERT,
        )
        with self._state.writes_lock.read():
            plan = self._new_plan()
            plan.add(upsert)
            if plan.rows != len(ids):
                raise CorruptData(f"collection {config.name!r}: an id is there twice")
            self._commit(plan)

    def update(self, target_recall: float) -> CollectionEntry:
        """Change the target recall, durably, then for searches that start later.

        The index needs no training: its calibration covers every target.
        """
        state = self._state
        config = replace(state.entry.config, target_recall=target_recall)
        entry = self._changed(state.row_store.set_configuration, config)
        state.publish_configuration(entry)
        return entry

    def set_membership(self, membership: Membership) -> None:
        """Change the stage and the members, durably."""
        self._changed(self._state.row_store.set_membership, membership)

    def record_loss(self, lost: int) -> None:
        """Record durably how many rows of the collection are lost in all."""
        if lost != self._state.row_store.lost:
            self._changed(self._state.record_loss, lost)

    def _changed(self, change: Callable[[T], R], argument: T) -> R:
        """Change a property of the row store; name the failure of a disk."""
        if self._state.stop_reason:
            raise WritesStopped(self._state.stop_reason)
        self._state.require_writable()
        try:
            return change(argument)
        except (*DISK_ERRORS, MemoryError) as error:
            raise self._write_failure(error) from error
        except WritesStopped as error:  # the change may be there
            raise self._state.stop_writes(str(error)) from error

    def _admitted(self, request: UpsertRequest | DeleteRequest) -> AdmittedWrite:
        """Validate a write, or raise InvalidRequest; return it in the form that is stored."""
        config = self._state.entry.config
        if isinstance(request, DeleteRequest):
            self._state.require_writable()
            if request.ids is None:
                assert request.filter is not None
                check_filter(config, request.filter)
                return AdmittedFilterDelete(filter=request.filter)
            check_ids(config, request.ids)
            return AdmittedDelete(ids=request.ids)
        self._state.require_room()
        check_ids(config, request.ids)
        vectors, squared_norms = admit_rows(config, request.vectors, "vectors")
        return AdmittedUpsert(
            ids=request.ids,
            vectors=vectors,
            squared_norms=squared_norms,
            id_hashes=request.id_hashes,
            metadata=request.metadata,
            field_values=declared_fields(config, request.metadata),
            mode=request.mode,
        )

    def _new_plan(self) -> CommitPlan:
        state = self._state
        return CommitPlan(
            state.snapshot, state.entry.config.id_type, state.newest_rows, state.row_store.metadata
        )

    def _committed(
        self, plan: CommitPlan, planned: Sequence[WriteOutcome | Exception]
    ) -> list[WriteOutcome | Exception]:
        """Commit a plan and complete its outcomes; errors of single writes stay as they are."""
        try:
            sequence = self._commit(plan)
        except Exception as error:
            return [outcome if isinstance(outcome, Exception) else error for outcome in planned]
        return [
            outcome if isinstance(outcome, Exception) else replace(outcome, sequence=sequence)
            for outcome in planned
        ]

    def _commit(self, plan: CommitPlan) -> int:
        """Make a plan durable, then visible; return the sequence number of its commit."""
        state = self._state
        if state.stop_reason:
            raise WritesStopped(state.stop_reason)
        if plan.changes_nothing:
            return state.snapshot.sequence
        try:
            if len(plan.damaged):
                state.found_damaged(state.snapshot, plan.damaged, "write")
            commit = self._prepare(plan)
            sequence = state.row_store.commit(commit)  # this decides
        except (*DISK_ERRORS, MemoryError) as error:
            raise self._write_failure(error) from error
        except WritesStopped as error:  # the commit may be there
            raise state.stop_writes(str(error)) from error
        try:
            state.publish_commit(plan, sequence, commit)
            if self._upkeep_due():
                state.on_change()
        except BaseException as error:
            # The committed and the published rows differ now: the next append would be misplaced.
            raise state.stop_writes(f"a commit could not be published ({error!r})") from error
        return sequence

    def _prepare(self, plan: CommitPlan) -> Commit:
        """Write the plan's vectors to the row file, synced; return the record to commit."""
        ids, vectors = plan.ids, plan.vectors
        if plan.rows:
            self._state.columns.write(plan.first_row, vectors)
        replaced, deleted = plan.replaced, plan.deleted
        dead_sum = 0
        if len(replaced) or len(deleted):
            # Stored hashes, never computed again: else the death of a damaged row would leave the
            # sum wrong.
            dead = np.concatenate([replaced, deleted])
            dead_sum = sum_of(self._state.snapshot.content_hashes_of(dead))
        return Commit(
            first_row=plan.first_row,
            ids=ids,
            content_hashes=plan.content_hashes,
            squared_norms=plan.squared_norms,
            range_crc32c=checksum(vectors.view(np.uint8)),
            metadata=plan.metadata,
            replaced=replaced,
            deleted=deleted,
            dead_sum=dead_sum,
        )

    def _write_failure(self, error: Exception) -> Exception:
        """Translate a failed write; stop all writes unless a limit of the machine is the cause.

        A failed sync may have dropped the written pages from the kernel while they stay readable.
        A second try would succeed without having stored anything.
        """
        if (overloaded := limit_reached(error)) is not None:
            return overloaded
        if is_malformed(error):
            return self._state.stop_writes(f"the row store is damaged, or a read failed ({error})")
        return self._state.stop_writes(f"the disk failed a write ({error})")
