"""What a row that serves as a query must not find: itself, and other rows of its content. Pure.

Such a query stands for queries like the rows, which are in no row yet. Where each content was
written ten times, its nine other rows would be nine of ten hits, found by any search at all.

Yet a query's neighborhood has as many rows as that of a row, which is one of them: a row in a
cluster of twelve has eleven others around it, and a query has twelve. So a search re-ranks as many
candidates more as a query has own rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.index.exact import NO_CANDIDATES, Candidates
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.types import BoolArray, Float32Array, IndexKind, Int64Array

NO_ROW: Final = -2  # the own row of a query that is not a row

COPIES_MAX: Final = 30
"""Of a content that was written more often, the other rows are hits: it is one of few contents, and
asked for again."""

_MORE_MAX: Final = 10  # candidates in place of own rows
_COMPARED: Final = 1_048_576  # components compared at once


@dataclass(frozen=True, slots=True)
class OwnRows:
    """What some queries must not find.

    `rows` int64 (queries,) is the row that each query is, NO_ROW for none. `copies` are the other
    rows of its content, in query order; `counts` int64 (queries,) is how many own rows a query has.
    """

    rows: Int64Array
    copies: Candidates
    counts: Int64Array

    @classmethod
    def among(
        cls, candidates: Candidates, held: RowRange, queries: Float32Array, rows: Int64Array
    ) -> OwnRows:
        """Return the own rows of queries that are these `rows`, given the best rows of each.

        `candidates` include all that score as well as a row itself, if that is among them.
        """
        of_row = rows[candidates.query_of] >= 0
        of_row &= candidates.row_of != rows[candidates.query_of]
        others = candidates.where(of_row)
        at, vectors = others.at(held.positions), np.asarray(held.vectors)
        at_once = max(1, _COMPARED // queries.shape[1])
        same = np.zeros(len(others), np.bool_)
        for first in range(0, len(others), at_once):
            piece = slice(first, first + at_once)
            one = vectors[at.row_of[piece], 0] == queries[at.query_of[piece], 0]
            likely = first + np.flatnonzero(one)
            content = vectors.take(at.row_of[likely], axis=0)
            same[likely] = (content == queries[at.query_of[likely]]).all(axis=1)
        copies = np.bincount(others.query_of[same], minlength=len(rows))
        same &= copies[others.query_of] <= COPIES_MAX
        order = np.argsort(others.query_of[same], kind="stable")
        counts = np.where(copies > COPIES_MAX, 0, copies) + (rows >= 0)
        query_of, row_of = others.query_of[same][order], others.row_of[same][order]
        return cls(rows, Candidates(query_of, row_of), counts)

    @property
    def most(self) -> int:
        """The most own rows of a query."""
        return int(self.counts.max(initial=0))

    def more_candidates(self, kind: IndexKind) -> int:
        """Return the candidates that a search needs beyond those measured without own rows.

        Those by exact scores are as many as the hits, whatever rows there are.
        """
        if kind is IndexKind.IVF_FLAT or not len(self.counts):
            return 0
        return min(_MORE_MAX, math.ceil(float(self.counts.mean())))

    def copies_of(self, query: int) -> Int64Array:
        """Return the other rows of a query's content."""
        first, last = np.searchsorted(self.copies.query_of, [query, query + 1]).tolist()
        return self.copies.row_of[first:last]

    def left_out_of(self, candidates: Candidates) -> Candidates:
        """Return candidates without own rows."""
        kept = candidates.row_of != self.rows[candidates.query_of]
        if len(self.copies):
            width = 1 + int(max(candidates.row_of.max(initial=0), self.copies.row_of.max()))
            pairs = candidates.query_of * width + candidates.row_of
            kept &= ~np.isin(pairs, self.copies.query_of * width + self.copies.row_of)
        return candidates.where(kept)

    def set_back(self, rows: Int64Array, first: int) -> tuple[Int64Array, BoolArray]:
        """Return candidates, nearest first, with own rows last, and which of them are own rows.

        `rows` int64 (n, candidates) are those of the queries from the `first` on.
        """
        own = rows == self.rows[first : first + len(rows), None]
        for query in np.flatnonzero(self.counts[first : first + len(rows)] > 1).tolist():
            own[query] |= np.isin(rows[query], self.copies_of(first + query))
        order = np.argsort(own, axis=1, kind="stable")
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(own, order, axis=1)


def no_own_rows() -> OwnRows:
    """Return those of no queries."""
    nothing = np.zeros(0, np.int64)
    return OwnRows(nothing, NO_CANDIDATES, nothing)
