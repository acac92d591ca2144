"""What a client returns, where the vocabulary of shard.types has no class for it. Pure."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, overload

import numpy as np

from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import InvalidParameter, Unsupported
from vectorshard.shard.membership import Problem
from vectorshard.shard.texts import (
    Grid,
    Readable,
    counted,
    metadata_text,
    receipt_grid,
    topology_grid,
    vector_text,
)
from vectorshard.shard.types import (
    Float32Array,
    IdArray,
    Int64Array,
    Receipt,
    RowError,
    Rows,
    SearchResult,
    Token,
    UInt32Array,
)
from vectorshard.shard.wire.metadata import mappings_from_metadata
from vectorshard.shard.wire.primitives import shown

ROWS_SHOWN: Final = 20
"""The hits, or rows, that are printed; the others are counted."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. `vector` (dim,) and `metadata` are None unless the search asked for them."""

    id: int | str
    score: float
    vector: Float32Array | None = None
    metadata: dict[str, Any] | None = None


class HitMatrix(NamedTuple):
    """Hits as matrices (queries, k), best first; `counts` (queries,) are the hits of each query.

    What is beyond a query's count is padding: the id -1 or "", and the score NaN.
    """

    ids: IdArray
    scores: Float32Array
    counts: UInt32Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits(Readable, Sequence[list[Hit]]):
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

    def to_numpy(self, k: int | None = None) -> HitMatrix:
        """Return ids and scores as matrices of `k` columns, by default as many as are needed.

        Raises InvalidParameter if a query has more hits than that.
        """
        needed = int(self.counts.max(initial=0))
        if k is not None and k < needed:
            raise InvalidParameter(f"{k} is less than the {needed} hits of a query", field="k")
        shape = (len(self), needed if k is None else k)
        queries, ranks = self._places()
        strings = self.ids.dtype == np.object_
        ids: Any = np.full(shape, "" if strings else -1, dtype=self.ids.dtype)
        scores = np.full(shape, np.nan, dtype=np.float32)
        ids[queries, ranks] = self.ids
        scores[queries, ranks] = self.scores
        return HitMatrix(ids, scores, self.counts)

    def _places(self) -> tuple[Int64Array, Int64Array]:
        """Return the query of each hit, and its rank from 0 (hits,)."""
        queries = np.repeat(np.arange(len(self), dtype=np.int64), self.counts)
        firsts = np.repeat(np.array(self._bounds[:-1], dtype=np.int64), self.counts)
        return queries, np.arange(self.ids.size, dtype=np.int64) - firsts

    def to_pandas(self) -> Any:
        """Return a DataFrame with one row for each hit: query, rank from 1, id, score.

        Vectors and metadata are further columns, if the search asked for them. Raises Unsupported
        if pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise Unsupported("pandas is not installed: pip install pandas") from None
        columns = self._columns()
        if self.vectors is not None:
            columns["vector"] = list(self.vectors)
        if self.metadata is not None:
            columns["metadata"] = self.metadata
        return pandas.DataFrame(columns)

    def to_arrow(self) -> Any:
        """Return a table with one row for each hit: query, rank from 1, id, score.

        Vectors, as fixed size lists, and metadata, as JSON, are further columns, if the search
        asked for them. Raises Unsupported if pyarrow is not installed.
        """
        try:
            import pyarrow
        except ImportError:
            raise Unsupported("pyarrow is not installed: pip install pyarrow") from None
        columns = self._columns()
        if self.vectors is not None:
            components = pyarrow.array(np.ascontiguousarray(self.vectors).reshape(-1))
            dim = self.vectors.shape[1]
            columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(components, dim)
        if self.metadata is not None:
            columns["metadata"] = [json.dumps(mapping) for mapping in self.metadata]
        return pyarrow.table(columns)

    def _columns(self) -> dict[str, Any]:
        queries, ranks = self._places()
        return {"query": queries, "rank": ranks + 1, "id": self.ids, "score": self.scores}

    def _grids(self) -> Sequence[Grid]:
        queries, ranks = self._places()
        columns = ["query", "rank", "id", "score"]
        columns += _columns_of(self)
        rows = []
        for hit in range(min(self.ids.size, ROWS_SHOWN)):
            row = [str(queries[hit]), str(ranks[hit] + 1), str(self.ids[hit])]
            rows.append([*row, f"{self.scores[hit]:.6g}", *_cells_of(self, hit)])
        title = f"{counted(self.ids.size, 'hit')} of {counted(len(self), 'query', 'queries')}"
        return [Grid(title, columns, rows), *_further(self.ids.size), receipt_grid(self.receipt)]

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
        return self._of_query(_place(query, len(self), "query", "queries"))

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


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `vector` (dim,) and `metadata` are None unless the call asked for them."""

    id: int | str
    vector: Float32Array | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsView(Readable):
    """Rows that exist: ids (rows,), and the parts that the call asked for, else None.

    Iterating over it yields a `Row` for each.
    `vectors` is float32 (rows, dim), of norm 1 under COSINE; `metadata` is one dict per row.
    `damaged` are the ids of damaged rows that a listing has left out here, None without any.
    """

    ids: IdArray
    vectors: Float32Array | None = None
    metadata: list[dict[str, Any]] | None = None
    damaged: IdArray | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.ids.size

    @property
    def is_empty(self) -> bool:
        """Whether it has no rows, and names no damaged ones either."""
        return not len(self) and (self.damaged is None or not self.damaged.size)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows, in their order."""
        for row, id_ in enumerate(self.ids.tolist()):
            yield self._row(row, id_)

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> list[Row]: ...
    def __getitem__(self, row: int | slice) -> Row | list[Row]:
        """Return one row, by its place, or several."""
        if isinstance(row, slice):
            return [self[place] for place in range(len(self))[row]]
        row = _place(row, len(self), "row")
        return self._row(row, self.ids[row : row + 1].tolist()[0])

    def _row(self, row: int, id_: int | str) -> Row:
        vector = None if self.vectors is None else self.vectors[row]
        return Row(id_, vector, None if self.metadata is None else self.metadata[row])

    def _grids(self) -> Sequence[Grid]:
        rows = [
            [str(id_), *_cells_of(self, row)]
            for row, id_ in enumerate(self.ids[:ROWS_SHOWN].tolist())
        ]
        title = counted(len(self), "row")
        if self.damaged is not None and self.damaged.size:
            title += f", {counted(self.damaged.size, 'damaged one')} left out"
        return [Grid(title, ["id", *_columns_of(self)], rows), *_further(len(self))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo(Readable):
    """The version of a server, the leaf shards that it reaches, and the limits it enforces.

    `problems` are what an operator has to look at, such as a shard that lost its disk.
    """

    version: str
    topology: Topology
    limits: Limits
    problems: tuple[Problem, ...] = ()

    def _grids(self) -> Sequence[Grid]:
        limits = self.limits
        problems = [
            Grid(f"shard {each.shard}, {each.collection or 'all collections'}: {each.text}")
            for each in self.problems
        ]
        return [
            topology_grid(self.topology, f"vectorshard {self.version}"),
            Grid(
                f"limits: dim {limits.dim:,}, k {limits.k:,}, {limits.queries:,} queries, "
                f"{limits.rows:,} rows, {limits.message_bytes:,} bytes of a message"
            ),
            *problems,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertSummary(Readable):
    """The result of an upsert: `accepted` rows are durable and searchable.

    `errors` names the rows that an INSERT found under their id with other content. A search with
    `token` sees all accepted rows.
    """

    accepted: int
    errors: tuple[RowError, ...]
    token: Token

    def _grids(self) -> Sequence[Grid]:
        title = f"{counted(self.accepted, 'row')} accepted, {len(self.errors):,} refused"
        refused = [Grid(f"row {each.row}: {each.message}") for each in self.errors[:10]]
        return [Grid(title), *refused]


def _columns_of(found: Hits | RowsView) -> list[str]:
    """Return the names of what hits or rows include."""
    included = {"vector": found.vectors, "metadata": found.metadata}
    return [name for name, values in included.items() if values is not None]


def _cells_of(found: Hits | RowsView, place: int) -> list[str]:
    """Return what a hit or a row includes, as text."""
    vector = [] if found.vectors is None else [vector_text(found.vectors[place].tolist())]
    return [*vector, *([] if found.metadata is None else [metadata_text(found.metadata[place])])]


class _OutOfRange(InvalidParameter, IndexError):
    """A place beyond the last: as an IndexError, it ends an iteration."""


def _place(place: int, count: int, one: str, several: str = "") -> int:
    """Return a place from 0, of one that may count from the end."""
    try:
        return range(count)[operator.index(place)]
    except TypeError:
        reason = f"{shown(place)} is not the number of a {one}, or a slice"
        raise InvalidParameter(reason, field=one) from None
    except IndexError:
        reason = f"{one} {place} is out of range: {counted(count, one, several)}, counted from 0"
        raise _OutOfRange(reason, field=one) from None


def _further(rows: int) -> list[Grid]:
    """Return the line that counts the rows that are not printed."""
    return [Grid(f"... and {rows - ROWS_SHOWN:,} more")] if rows > ROWS_SHOWN else []


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
    return RowsView(
        ids=rows.ids,
        vectors=rows.vectors,
        metadata=_mappings(rows.metadata),
        damaged=rows.damaged,
    )


def _mappings(metadata: Sequence[bytes] | None) -> list[dict[str, Any]] | None:
    return None if metadata is None else mappings_from_metadata(metadata)
