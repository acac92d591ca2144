"""What a client returns, where the vocabulary of shard.types has no class for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.membership import Problem
from vectorshard.shard.types import (
    Float32Array,
    IdArray,
    Receipt,
    RowError,
    Rows,
    SearchResult,
    Token,
    UInt32Array,
)
from vectorshard.shard.wire.metadata import mapping_from_metadata


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. `vector` (dim,) and `metadata` are None unless the search asked for them."""

    id: int | str
    score: float
    vector: Float32Array | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits(Sequence[list[Hit]]):
    """The hits of a batch of queries, flat in query order, best first.

    As a sequence it has one list of `Hit` for each query. `counts` is uint32 (queries,), `ids`
    (hits,), `scores` float32 (hits,). `vectors`, float32 (hits, dim), and `metadata`, one dict per
    hit, are None unless the search asked for them. `receipt` reports what the response covers.
    """

    counts: UInt32Array
    ids: IdArray
    scores: Float32Array
    receipt: Receipt
    vectors: Float32Array | None = None
    metadata: list[dict[str, Any]] | None = None

    @cached_property
    def _bounds(self) -> list[int]:
        """Where the hits of each query begin, and where those of the last query end."""
        return [0, *np.cumsum(self.counts, dtype=np.int64).tolist()]

    def __len__(self) -> int:
        """Return the number of queries."""
        return self.counts.size

    @overload
    def __getitem__(self, query: int) -> list[Hit]: ...
    @overload
    def __getitem__(self, query: slice) -> list[list[Hit]]: ...
    def __getitem__(self, query: int | slice) -> list[Hit] | list[list[Hit]]:
        """Return the hits of one query, or of several."""
        if isinstance(query, slice):
            return [self._of_query(number) for number in range(len(self))[query]]
        return self._of_query(range(len(self))[query])

    def _of_query(self, query: int) -> list[Hit]:
        flat = range(self._bounds[query], self._bounds[query + 1])
        span = slice(flat.start, flat.stop)
        return [
            Hit(
                id_,
                score,
                None if self.vectors is None else self.vectors[hit],
                None if self.metadata is None else self.metadata[hit],
            )
            for hit, id_, score in zip(
                flat, self.ids[span].tolist(), self.scores[span].tolist(), strict=True
            )
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsView:
    """Rows that exist: ids (rows,), and the parts that the call asked for, else None.

    `vectors` is float32 (rows, dim), of norm 1 under COSINE; `metadata` is one dict per row.
    """

    ids: IdArray
    vectors: Float32Array | None = None
    metadata: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.ids.size


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """The version of a server, the leaf shards that it reaches, and the limits it enforces.

    `problems` are what an operator has to look at, such as a shard that lost its disk.
    """

    version: str
    topology: Topology
    limits: Limits
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertSummary:
    """The result of an upsert: `accepted` rows are durable and searchable.

    `errors` names the rows that an INSERT found under their id with other content. A search with
    `token` sees all accepted rows.
    """

    accepted: int
    errors: tuple[RowError, ...]
    token: Token


def hits_of(result: SearchResult) -> Hits:
    """Return a search result with its metadata as dicts."""
    return Hits(
        counts=result.hits.counts,
        ids=result.hits.ids,
        scores=result.hits.scores,
        receipt=result.receipt,
        vectors=result.vectors,
        metadata=_mappings(result.metadata),
    )


def rows_view(rows: Rows) -> RowsView:
    """Return rows with their metadata as dicts."""
    return RowsView(ids=rows.ids, vectors=rows.vectors, metadata=_mappings(rows.metadata))


def _mappings(metadata: Sequence[bytes] | None) -> list[dict[str, Any]] | None:
    return None if metadata is None else [mapping_from_metadata(row) for row in metadata]
