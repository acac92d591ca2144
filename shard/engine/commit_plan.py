"""The plan of a commit: what a group of writes changes, before anything is written. Pure.

Writes join a plan in the order of their arrival. A write that touches an id of the plan does not
fit: it goes into the next plan, and so sees this one's rows. A delete by filter may touch any id,
so it has a plan to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from vectorshard.shard.filters import Filter
from vectorshard.shard.index.exact import stored_squared_norms
from vectorshard.shard.rows.filter_columns import FieldValues
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.content_hash import content_hashes
from vectorshard.shard.types import (
    Float32Array,
    IdArray,
    IdType,
    Int64Array,
    RowError,
    RowErrorCode,
    UInt64Array,
    WriteMode,
)

_Scalar = TypeVar("_Scalar", np.float32, np.uint64)

COMMIT_IDS_MAX: Final = 20_000
"""Ids that one group commit writes or deletes; a single larger write still goes as one. Larger:
fewer syncs per row, longer waits of each writer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedUpsert:
    """Rows as the collection stores them: validated, float32, unit vectors under COSINE.

    `field_values` are the declared fields of the metadata, if any are declared; `id_hashes`, uint64
    (rows,), the xxh3-64 of the ids, and `squared_norms`, float32 (rows,), those of the vectors, as
    far as they are known.
    """

    ids: IdArray
    vectors: Float32Array
    metadata: Sequence[bytes] | None
    field_values: Sequence[FieldValues] | None = None
    id_hashes: UInt64Array | None = None
    squared_norms: Float32Array | None = None
    mode: WriteMode


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedDelete:
    """Ids to delete, each once."""

    ids: IdArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedFilterDelete:
    """A filter; the rows that pass it when the delete is committed are deleted."""

    filter: Filter


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertOutcome:
    """The acknowledged and the refused rows of one upsert."""

    accepted: int
    errors: tuple[RowError, ...]
    sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOutcome:
    """Rows deleted by one delete."""

    deleted: int
    sequence: int = 0


AdmittedWrite = AdmittedUpsert | AdmittedDelete | AdmittedFilterDelete
WriteOutcome = UpsertOutcome | DeleteOutcome


class CommitPlan:
    """The rows that one commit appends, and the rows that it kills.

    Parameters
    ----------
    snapshot
        The committed state.
    id_type
        The collection's id type.
    lookup
        Returns the newest committed row of each id, or -1; it takes ids, and their hashes if they
        are known.
    stored_metadata
        Returns the metadata of committed rows.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        id_type: IdType,
        lookup: Callable[[IdArray, UInt64Array | None], Int64Array],
        stored_metadata: Callable[[Int64Array], Sequence[bytes]],
    ) -> None:
        self._snapshot = snapshot
        self._id_type = id_type
        self._lookup = lookup
        self._stored_metadata = stored_metadata
        self._touched: set[int | str] = set()  # filled only when a second write asks to join
        self._unlisted: list[IdArray] = []  # ids of writes that are not in `_touched` yet
        self._touched_ids = 0
        self._touches_any = False
        self._ids: list[IdArray] = []
        self._vectors: list[Float32Array] = []
        self._replaced: list[Int64Array] = []
        self._deleted: list[Int64Array] = []
        self._damaged: list[Int64Array] = []
        # Of the rows to append, as far as they are known:
        self._hashes: list[UInt64Array | None] = []
        self._id_hashes: list[UInt64Array | None] = []
        self._squared_norms: list[Float32Array | None] = []
        self.first_row = snapshot.rows
        self.rows = 0
        self.metadata: dict[int, bytes] = {}
        """By row number, of the rows to append that have some."""
        self.field_values: dict[int, FieldValues] = {}
        """The declared fields by row number, of the rows to append that have metadata."""

    def fits(self, write: AdmittedWrite, ids_max: int) -> bool:
        """Whether the write may join: it touches no id twice and keeps the commit within bounds."""
        if self._touches_any:
            return False
        if self._touched_ids == 0:
            return True
        if isinstance(write, AdmittedFilterDelete):
            return False
        if self._touched_ids + len(write.ids) > ids_max:
            return False
        for ids in self._unlisted:
            self._touched.update(ids.tolist())
        self._unlisted.clear()
        return self._touched.isdisjoint(write.ids.tolist())

    def add(self, write: AdmittedWrite) -> WriteOutcome:
        """Add a write that fits; return its outcome, valid once the plan is committed."""
        if isinstance(write, AdmittedFilterDelete):
            self._touches_any = True
            passing = self._snapshot.passing(write.filter)
            self._deleted.append(passing)
            return DeleteOutcome(deleted=len(passing))
        self._unlisted.append(write.ids)
        self._touched_ids += len(write.ids)
        hashes = write.id_hashes if isinstance(write, AdmittedUpsert) else None
        rows = self._lookup(write.ids, hashes)
        exists = rows >= 0
        exists[exists] = ~self._snapshot.tombstones.are_dead(rows[exists])
        if isinstance(write, AdmittedDelete):
            self._deleted.append(rows[exists])
            return DeleteOutcome(deleted=int(np.count_nonzero(exists)))
        return self._add_upsert(write, rows, np.flatnonzero(exists))

    def _add_upsert(
        self, write: AdmittedUpsert, rows: Int64Array, existing: Int64Array
    ) -> UpsertOutcome:
        hashes = None
        changed = healed = existing
        if len(existing):
            metadata = self._metadata_of(write, np.arange(len(write.ids)))
            hashes = content_hashes(write.ids, metadata, write.vectors, write.id_hashes)
            changed, healed = self._compared(write, hashes, rows, existing)
        appended = np.ones(len(write.ids), dtype=np.bool_)
        appended[existing] = False
        errors: tuple[RowError, ...] = ()
        if write.mode is WriteMode.INSERT:
            errors = tuple(
                RowError(int(row), RowErrorCode.ALREADY_EXISTS, "the id exists with other content")
                for row in changed
            )
        else:
            appended[changed] = True
            self._replaced.append(rows[changed])
        if len(healed):
            appended[healed] = True
            self._replaced.append(rows[healed])
        self._append(write, np.flatnonzero(appended), hashes)
        return UpsertOutcome(accepted=len(write.ids) - len(errors), errors=errors)

    def _compared(
        self, write: AdmittedUpsert, hashes: UInt64Array, rows: Int64Array, existing: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """Return which of the `existing` rows of a write are stored with other content, and which
        with the same, but damaged: to write them again heals them.

        The hashes tell what was stored, the bytes whether it is still there.
        """
        stored, snapshot = rows[existing], self._snapshot
        written = hashes[existing]
        equal = np.flatnonzero((written == snapshot.content_hashes_of(stored)).all(axis=1))
        changed, same, stored = np.delete(existing, equal), existing[equal], stored[equal]
        if not len(same):
            return changed, same
        bits, stored_bits = write.vectors[same].view(np.uint32), snapshot.vectors_of(stored)
        sound = (bits == stored_bits.view(np.uint32)).all(axis=1) & ~snapshot.hidden.are_dead(
            stored
        )
        metadata, stored_metadata = self._metadata_of(write, same), self._stored_metadata(stored)
        sound &= np.fromiter(map(eq, metadata, stored_metadata), np.bool_, len(same))
        self._damaged.append(stored[~sound])
        return changed, same[~sound]

    @staticmethod
    def _metadata_of(write: AdmittedUpsert, rows: Int64Array) -> Sequence[bytes]:
        if write.metadata is None:
            return [b""] * len(rows)
        return [write.metadata[row] for row in rows.tolist()]

    def _append(
        self, write: AdmittedUpsert, chosen: Int64Array, hashes: UInt64Array | None
    ) -> None:
        if len(chosen):
            self._hashes.append(_chosen(hashes, chosen))
            self._id_hashes.append(_chosen(write.id_hashes, chosen))
            self._squared_norms.append(_chosen(write.squared_norms, chosen))
        if write.metadata is not None:
            first = self.first_row + self.rows
            for position, row in enumerate(chosen.tolist()):
                if write.metadata[row]:
                    self.metadata[first + position] = write.metadata[row]
                    if write.field_values is not None:
                        self.field_values[first + position] = write.field_values[row]
        everything = len(chosen) == len(write.ids)
        self._ids.append(write.ids if everything else write.ids[chosen])
        self._vectors.append(write.vectors if everything else write.vectors[chosen])
        self.rows += len(chosen)

    @property
    def changes_nothing(self) -> bool:
        """Whether there is nothing to write."""
        return self.rows == 0 and not any(map(len, (*self._replaced, *self._deleted)))

    @property
    def ids(self) -> IdArray:
        """(rows,) of the rows to append."""
        if not self._ids:
            return np.zeros(0, dtype=object if self._id_type is IdType.STRING else np.int64)
        return joined_ids(self._ids)

    @property
    def vectors(self) -> Float32Array:
        """(rows, dim) of the rows to append."""
        if not self._vectors:
            return np.zeros((0, self._snapshot.vectors.shape[1]), dtype=np.float32)
        return self._vectors[0] if len(self._vectors) == 1 else np.concatenate(self._vectors)

    @property
    def content_hashes(self) -> UInt64Array:
        """uint64 (rows, 2), of the rows to append."""
        if (known := _known(self._hashes)) is not None:
            return known
        metadata = [b""] * self.rows
        for row, struct in self.metadata.items():
            metadata[row - self.first_row] = struct
        return content_hashes(self.ids, metadata, self.vectors, self.id_hashes)

    @property
    def id_hashes(self) -> UInt64Array | None:
        """uint64 (rows,), the xxh3-64 of the ids of the rows to append; None if unknown."""
        return _known(self._id_hashes)

    @property
    def squared_norms(self) -> Float32Array:
        """float32 (rows,), of the rows to append."""
        known = _known(self._squared_norms)
        return stored_squared_norms(self.vectors) if known is None else known

    @property
    def replaced(self) -> Int64Array:
        """Rows that an upsert replaces."""
        return _joined(self._replaced)

    @property
    def deleted(self) -> Int64Array:
        """Rows that are deleted."""
        return _joined(self._deleted)

    @property
    def damaged(self) -> Int64Array:
        """Rows that were found damaged, or were known to be, and that an upsert heals."""
        return _joined(self._damaged)

    @property
    def tombstones(self) -> Tombstones:
        """The tombstones after the commit."""
        return self._snapshot.tombstones.with_dead(np.concatenate([self.replaced, self.deleted]))


def joined_ids(parts: Sequence[IdArray]) -> IdArray:
    """Concatenate id arrays of one type, at least one array."""
    ids: IdArray = parts[0]
    if len(parts) > 1:
        ids = np.concatenate(parts)  # type: ignore[assignment]  # numpy widens the dtype
    return ids


def _chosen(values: NDArray[_Scalar] | None, chosen: Int64Array) -> NDArray[_Scalar] | None:
    if values is None or len(chosen) == len(values):
        return values
    return values[chosen]


def _known(parts: Sequence[NDArray[_Scalar] | None]) -> NDArray[_Scalar] | None:
    """Concatenate arrays, at least one; None unless all are known."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return known[0] if len(known) == 1 else np.concatenate(known)


def _joined(parts: Sequence[Int64Array]) -> Int64Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
