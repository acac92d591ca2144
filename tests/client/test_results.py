"""What a client hands back: as matrices and tables, and as a person reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vectorshard import Hits, Row, RowsView, UpsertSummary
from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.types import (
    CollectionConfig,
    ExactReason,
    FieldType,
    FilterField,
    FilterPlan,
    IdType,
    Ledger,
    Metric,
    Receipt,
    RowError,
    ShardReceipt,
    ShardState,
    Token,
)

RECEIPT = Receipt(
    shards=(
        ShardReceipt(
            shard=0,
            rows_visible=1_200,
            rows_exact=30,
            nlist=64,
            nprobe=9,
            rows_passing=40,
            filter_plan=FilterPlan.INDEX,
        ),
        ShardReceipt(shard=1, rows_visible=5, rows_exact=5, exact_reason=ExactReason.FEW_ROWS),
        ShardReceipt(shard=2, missing_reason="<connection refused>"),
    ),
    coverage=0.75,
)
LEDGER = Ledger(accepted=1_300, buffered=200, indexed=1_000, deleted=60, replaced=40)


def hits_of(ids: Any, **more: Any) -> Hits:
    """Return three queries with 2, 0 and 1 hits."""
    return Hits(
        counts=np.array([2, 0, 1], dtype=np.uint32),
        ids=np.array(ids),
        scores=np.array([0.9, 0.5, 0.25], dtype=np.float32),
        receipt=RECEIPT,
        **more,
    )


def test_hits_as_matrices_are_padded_and_counted() -> None:
    ids, scores, counts = hits_of([7, -1, 9]).to_numpy()
    assert ids.tolist() == [[7, -1], [-1, -1], [9, -1]]
    assert np.nan_to_num(scores, nan=-2).tolist() == [
        [pytest.approx(0.9), 0.5],
        [-2, -2],
        [0.25, -2],
    ]
    assert counts.tolist() == [2, 0, 1]
    assert [str(each.dtype) for each in (ids, scores)] == ["int64", "float32"]
    wide = hits_of(np.array(["a", "b", "c"], dtype=object)).to_numpy(k=3)
    assert wide.ids.tolist() == [["a", "b", ""], ["", "", ""], ["c", "", ""]]
    with pytest.raises(InvalidParameter, match="k: 1 is less than the 2 hits of a query"):
        hits_of([7, 8, 9]).to_numpy(k=1)


def test_no_queries_are_an_empty_matrix() -> None:
    nothing = Hits(
        counts=np.empty(0, dtype=np.uint32),
        ids=np.empty(0, dtype=np.int64),
        scores=np.empty(0, dtype=np.float32),
        receipt=RECEIPT,
    )
    assert nothing.to_numpy().ids.shape == (0, 0)
    assert str(nothing).startswith("0 hits of 0 queries\n")


def test_hits_are_a_frame_with_a_row_for_each() -> None:
    frame = hits_of([7, 8, 9], vectors=np.eye(3, dtype=np.float32), metadata=[{}, {"a": 1}, {}])
    shown = frame.to_pandas()
    assert shown["query"].tolist() == [0, 0, 2]
    assert shown["rank"].tolist() == [1, 2, 1]
    assert shown["id"].tolist() == [7, 8, 9]
    assert shown["vector"][1].tolist() == [0, 1, 0]
    assert shown["metadata"].tolist() == [{}, {"a": 1}, {}]


def test_hits_are_an_arrow_table_with_a_row_for_each() -> None:
    hits = hits_of(
        np.array(["a", "b", "c"], dtype=object),
        vectors=np.eye(3, dtype=np.float32),
        metadata=[{}, {"a": 1}, {"a": "x"}],
    )
    table = hits.to_arrow().to_pydict()
    assert table["query"] == [0, 0, 2]
    assert table["id"] == ["a", "b", "c"]
    assert table["vector"][2] == [0, 0, 1]
    assert table["metadata"] == ["{}", '{"a": 1}', '{"a": "x"}']


def test_rows_are_iterated() -> None:
    rows = RowsView(ids=np.array([7, 8]), metadata=[{"a": 1}, {}])
    assert (rows[0], rows[-1]) == (Row(7, None, {"a": 1}), Row(8, None, {}))
    with pytest.raises(IndexError):
        rows[2]
    assert list(rows) == [Row(7, None, {"a": 1}), Row(8, None, {})]
    [first, _] = RowsView(ids=np.array([7, 8]), vectors=np.eye(2, dtype=np.float32))
    assert first.vector is not None
    assert first.vector.tolist() == [1, 0]


def test_a_receipt_reads_as_a_table() -> None:
    assert str(RECEIPT).splitlines() == [
        "2 of 3 shards answered, coverage 75%",
        "shard  rows visible  rows exact  nprobe  nlist  note",
        "0      1,200         30          9       64     rows that pass the filter: 40",
        "1      5             5           -       -      exact: few_rows",
        "2      -             -           -       -      missing: <connection refused>",
    ]
    assert "&lt;connection refused&gt;" in RECEIPT._repr_html_()
    assert repr(RECEIPT).startswith("Receipt(shards=(ShardReceipt(")


def test_a_ledger_reads_as_its_equation() -> None:
    assert str(LEDGER) == (
        "1,300 accepted = 200 buffered + 1,000 indexed + 60 deleted + 40 replaced"
    )
    assert str(replace(LEDGER, accepted=1_301)).endswith("(DOES NOT ADD UP)")
    assert "+ 3 lost" in str(replace(LEDGER, lost=3))


def test_a_description_reads_as_what_it_is_and_what_is_wrong_with_it() -> None:
    shard = ShardDescription(
        shard=0,
        state=ShardState.TRAINED,
        training=True,
        ledger=LEDGER,
        nlist=64,
        nprobe=9,
        measured_recall=0.961,
    )
    lost = ShardDescription(
        shard=1,
        state=ShardState.BUFFERING,
        training=False,
        ledger=Ledger(),
        missing_reason="disk lost",
        rows_damaged=2,
    )
    description = CollectionDescription(
        config=CollectionConfig(
            name="words",
            dim=100,
            metric=Metric.COSINE,
            id_type=IdType.STRING,
            filter_fields=(FilterField("lang", FieldType.KEYWORD),),
        ),
        incarnation="",
        shards=(shard, lost),
        recommended_batch_size=64,
    )
    assert str(description).splitlines() == [
        "words: dim 100, cosine, string ids, ivf_pq, target recall 0.95, "
        "filter fields: lang keyword",
        "1,300 accepted = 200 buffered + 1,000 indexed + 60 deleted + 40 replaced",
        "shard  state               rows   buffered  indexed  nlist  nprobe  recall",
        "0      trained (training)  1,200  200       1,000    64     9       0.961",
        "1      missing             0      0         0        -      -       -",
        "shard 1 is missing: disk lost",
        "shard 1 has damaged rows: 2",
    ]
    assert str(shard).splitlines()[0] == "shard 0"
    assert "<table>" in description._repr_html_()


def test_hits_rows_and_summaries_read_as_what_they_are() -> None:
    lines = str(hits_of([7, 8, 9], metadata=[{}, {"a": 1}, {}])).splitlines()
    assert lines[:3] == [
        "3 hits of 3 queries",
        "query  rank  id  score  metadata",
        "0      1     7   0.9    {}",
    ]
    assert "2 of 3 shards answered, coverage 75%" in lines
    rows = RowsView(ids=np.arange(23))
    assert str(rows).splitlines()[0] == "23 rows"
    assert str(rows).splitlines()[-1] == "... and 3 more"
    summary = UpsertSummary(
        accepted=2, errors=(RowError(1, 6, "exists"),), token=Token(incarnation="")
    )
    assert str(summary) == "2 rows accepted, 1 refused\nrow 1: exists"
