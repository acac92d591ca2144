"""The rows that a row does not find when it serves as a query."""

from __future__ import annotations

import numpy as np

from vectorshard.shard.index.exact import Candidates
from vectorshard.shard.index.own_rows import COPIES_MAX, NO_ROW, OwnRows
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import IndexKind

VECTORS = np.array([[0, 0], [1, 1], [1, 1], [1, 1], [1, 2], [3, 3]], np.float32)
HELD = RowRange(VECTORS, np.vecdot(VECTORS, VECTORS), Tombstones(), 0, 6)


def own_rows(rows: list[int], candidates: list[list[int]]) -> OwnRows:
    pairs, own = Candidates.of_each(np.array(candidates)), np.array(rows)
    return OwnRows.among(pairs, HELD, VECTORS[np.maximum(own, 0)], own)


def test_the_own_rows_of_a_row_are_all_of_its_content_and_those_of_a_live_query_none() -> None:
    own = own_rows([2, 0, NO_ROW], [[2, 4, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    assert own.counts.tolist() == [3, 1, 0]
    assert [own.copies_of(query).tolist() for query in range(3)] == [[1, 3], [], []]
    assert own.most == 3
    assert own.more_candidates(IndexKind.IVF_FLAT) == 0
    assert own.more_candidates(IndexKind.IVF_PQ) == 2  # of 3, 1 and 0


def test_own_rows_are_left_out_and_set_back_behind_others() -> None:
    rows = [[2, 4, 1, 3], [1, 0, 2, 3], [0, 1, 2, 3]]
    own = own_rows([2, 0, NO_ROW], rows)
    left = own.left_out_of(Candidates.of_each(np.array(rows)))
    assert left.query_of.tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    assert left.row_of.tolist() == [4, 1, 2, 3, 0, 1, 2, 3]
    found, are_own = own.set_back(np.array(rows), 0)
    assert found.tolist() == [[4, 2, 1, 3], [1, 2, 3, 0], [0, 1, 2, 3]]
    assert are_own.sum(axis=1).tolist() == [3, 1, 0]
    assert own.set_back(np.array(rows[1:]), 1)[0].tolist() == found[1:].tolist()


def test_other_rows_of_a_content_that_was_written_very_often_are_hits() -> None:
    vectors = np.zeros((COPIES_MAX + 2, 2), np.float32)
    held = RowRange(vectors, np.zeros(len(vectors), np.float32), Tombstones(), 0, len(vectors))
    for rows, own_rows_found in ((COPIES_MAX + 1, COPIES_MAX + 1), (COPIES_MAX + 2, 1)):
        pairs = Candidates.of_each(np.arange(rows)[None])
        own = OwnRows.among(pairs, held, vectors[:1], np.zeros(1, np.int64))
        assert own.counts.tolist() == [own_rows_found]
        assert own.most == own_rows_found
        assert len(own.copies) == own_rows_found - 1
