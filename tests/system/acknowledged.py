"""What a collection may hold, by what was asked of it and what of that was acknowledged.

Every write has a number, its stamp, which stands in the vectors and metadata that it writes: a row
that is read tells which write it comes from, and shows whether it is of one piece.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.system.conftest import adds_up
from vectorshard.client.client import Client
from vectorshard.shard.types import Float32Array, Int64Array

DIM = 16
IDS_A_GET = 50_000
QUERIES = 500
"""Rows that each check searches for: an exact search of all of them by all would take minutes."""

STAMP_SCALE = 64
"""A stamp is divided by it: stamps stay as small as the other components, and exact."""


def vectors_of(ids: npt.ArrayLike, stamps: npt.ArrayLike) -> Float32Array:
    """Return the vectors (rows, 16) of `ids` as the writes `stamps` (rows,), or one, write them."""
    id_array = np.asarray(ids, dtype=np.float64)
    vectors = np.zeros((len(id_array), DIM), dtype=np.float32)
    vectors[:] = 3 * np.sin(np.outer(id_array + 1, np.sqrt(np.arange(2, DIM + 2))))
    vectors[:, 0] = np.asarray(stamps) / STAMP_SCALE
    return vectors


def metadata_of(stamp: int) -> dict[str, float]:
    """Return the metadata of a row that the write `stamp` writes."""
    return {"stamp": float(stamp)}


@dataclass(slots=True)
class Acknowledged:
    """The states that each row may be in.

    A state is the stamp of the write that made it, negative for a delete; 0 is before all writes.
    Of each id, one write after the other is begun; another may begin before one is acknowledged.
    """

    with_metadata: bool = True
    """Whether rows have it, which takes most of the time that a check takes."""
    states: dict[int, set[int]] = field(default_factory=dict)
    _stamp: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, ids: Iterable[int], *, delete: bool = False) -> int:
        """Note that a write of `ids` is about to be sent, and return its stamp."""
        with self._lock:
            self._stamp += 1
            stamp = self._stamp
            for id_ in ids:
                self.states.setdefault(id_, {0}).add(-stamp if delete else stamp)
        return stamp

    def acknowledge(self, ids: Iterable[int], stamp: int) -> None:
        """Note that a write was acknowledged: no older state is possible any more."""
        with self._lock:
            for id_ in ids:
                self.states[id_] = {state for state in self.states[id_] if abs(state) >= stamp}

    def upsert(self, client: Client, name: str, ids: Sequence[int]) -> None:
        """Write rows."""
        stamp = self.begin(ids)
        metadata = [metadata_of(stamp)] * len(ids) if self.with_metadata else None
        assert client.upsert(name, ids, vectors_of(ids, stamp), metadata).accepted == len(ids)
        self.acknowledge(ids, stamp)

    def delete(self, client: Client, name: str, ids: Sequence[int]) -> None:
        """Delete rows, or what may be some."""
        stamp = self.begin(ids, delete=True)
        client.delete(name, ids)
        self.acknowledge(ids, stamp)

    def check(self, client: Client, name: str) -> None:
        """Assert that every row is in a state that it may be in, and has no other from now on.

        Rows are read by Get, counted, listed, and searched for; the deleted are searched for too.
        Nobody else writes meanwhile.
        """
        ids, stamps = self._read(client, name)
        found = dict(zip(ids.tolist(), stamps.tolist(), strict=True))
        for id_, states in self.states.items():
            if id_ in found:
                assert found[id_] in states, f"row {id_} is as {found[id_]}, not as of {states}"
            else:
                assert min(states) <= 0, f"row {id_} is lost: {states}"
            self.states[id_] = {found.get(id_, 0)}
        assert client.count(name) == len(ids)
        listed = [page.ids for page in client.list_rows(name, page_size=10_000)]
        np.testing.assert_array_equal(np.sort(np.concatenate([ids[:0], *listed])), ids)
        description = client.describe(name)
        assert adds_up(description)
        assert description.ledger.live == len(ids)
        self._search(client, name, ids, stamps)

    def _read(self, client: Client, name: str) -> tuple[Int64Array, Int64Array]:
        """Return the ids that exist, ascending, and their stamps, after a look at every row."""
        asked = np.array(sorted(self.states), dtype=np.int64)
        ids, stamps = [asked[:0]], [asked[:0]]
        for first in range(0, len(asked), IDS_A_GET):
            some = asked[first : first + IDS_A_GET]
            rows = client.get(name, some, metadata=self.with_metadata)
            assert rows.vectors is not None
            written_by = np.rint(rows.vectors[:, 0] * STAMP_SCALE).astype(np.int64)
            np.testing.assert_array_equal(rows.vectors, vectors_of(rows.ids, written_by))
            if self.with_metadata:
                assert rows.metadata == [metadata_of(stamp) for stamp in written_by.tolist()]
            ids.append(rows.ids.astype(np.int64))
            stamps.append(written_by)
        return np.concatenate(ids), np.concatenate(stamps)

    def _search(self, client: Client, name: str, ids: Int64Array, stamps: Int64Array) -> None:
        rng = np.random.default_rng(len(ids))
        chosen = rng.permutation(len(ids))[:QUERIES]
        efforts: tuple[dict[str, Any], ...] = ({"exact": True}, {"nprobe": 65_536})
        for effort in efforts:
            hits = client.search(name, vectors_of(ids[chosen], stamps[chosen]), 1, **effort)
            assert hits.receipt.coverage == 1.0
            np.testing.assert_array_equal(hits.ids, ids[chosen])
            assert not hits.scores.any()
        dead = np.array([id_ for id_, states in self.states.items() if states == {0}])[:QUERIES]
        if len(dead):
            hits = client.search(name, vectors_of(dead, 0), 3, exact=True)
            assert not set(hits.ids.tolist()) & set(dead.tolist())
