"""What a client hands back: as matrices and tables, and as a person reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vectorshard import Hits, Row, RowsView, ServerInfo, UpsertSummary
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import (
    CollectionDescription,
    Explanation,
    ShardDescription,
    ShardPlacement,
    Topology,
)
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.membership import Problem, ProblemKind
from vectorshard.shard.texts import WHY_EXACT
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
    Role,
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
    assert rows[-1:] == [Row(8, None, {})]
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


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (2, "{} 2 is out of range: {}, counted from 0"),
        (-3, "{} -3 is out of range: {}, counted from 0"),
        ("a", "{0}: 'a' is not the number of a {0}, or a slice"),
        (1.0, "{0}: 1.0 is not the number of a {0}, or a slice"),
        (None, "{0}: None is not the number of a {0}, or a slice"),
    ],
)
def test_a_place_that_there_is_not_is_an_error_of_the_tree(place: Any, text: str) -> None:
    hits = hits_of([7, 8, 9])
    for found, one, all_of_them in (
        (replace(hits, counts=hits.counts[:2]), "query", "2 queries"),
        (RowsView(ids=np.array([7, 8])), "row", "2 rows"),
    ):
        with pytest.raises(InvalidParameter) as caught:
            found[place]
        assert str(caught.value) == text.format(one, all_of_them)
        assert caught.value.field == one
        assert isinstance(caught.value, IndexError) == isinstance(place, int)
        assert len([*found]) == 2


WORDS = CollectionConfig(name="words", dim=2, metric=Metric.L2, id_type=IdType.INT64)
INFO = ServerInfo(
    version="1.2.3",
    topology=Topology(
        role=Role.ROUTER,
        cluster="c",
        placement_epoch=1,
        shards_total=2,
        shards=(ShardPlacement(shard=1, slots=((0, 9), (20, 29))),),
    ),
    limits=Limits(dim=99),
    problems=(Problem(shard=0, kind=ProblemKind.MISSING, text="its disk was lost"),),
)
FOUND = Explanation(exists=True, shard=1, buffered=True, exact_rank=3, score=0.5)
INDEXED = Explanation(
    exists=True, shard=1, list=17, centroid_rank=5, nprobe_needed=5, exact_rank=1_200, score=0.25
)


@pytest.mark.parametrize(
    ("described", "lines"),
    [
        (WORDS, ["words: dim 2, l2, int64 ids, ivf_pq, target recall 0.95"]),
        (
            INFO,
            [
                "vectorshard 1.2.3, router of cluster c, reaches 1 of 2 shards",
                "shard  slots",
                "1      0-9, 20-29",
                "limits: dim 99, k 10,000, 10,000 queries, 100,000 rows, 67,108,864 bytes of a "
                "message",
                "shard 0, all collections: its disk was lost",
            ],
        ),
        (
            FOUND,
            [
                "explanation",
                "figure                  value",
                "exact rank              3",
                "score                   0.5",
                "shard                   1",
                "in the training buffer  yes",
            ],
        ),
        (
            replace(FOUND, hidden_by_filter=True, exact_reason=ExactReason.NO_INDEX),
            [
                "explanation, hidden by the filter",
                "figure                           value",
                "exact rank                       3",
                "score                            0.5",
                "shard                            1",
                "in the training buffer           yes",
                "default search scores every row  there is no index yet",
            ],
        ),
        (
            INDEXED,
            [
                "explanation",
                "figure                       value",
                "exact rank                   1,200",
                "score                        0.25",
                "shard                        1",
                "in the training buffer       no",
                "list                         17",
                "rank of the list's centroid  5",
                "nprobe needed                5",
            ],
        ),
        (Explanation(shard=1, deleted=True), ["the row was deleted from shard 1: no search"]),
        (Explanation(shard=1), ["there is no such row; shard 1 would hold it. It was never "]),
    ],
)
def test_every_description_reads_as_a_person_expects(described: Any, lines: list[str]) -> None:
    read = str(described).splitlines()
    assert [line[: len(start)] for line, start in zip(read, lines, strict=True)] == lines
    assert described._repr_html_().startswith("<p>")
    assert repr(described).startswith(type(described).__name__ + "(")


def test_every_reason_for_an_exact_search_has_a_text() -> None:
    assert WHY_EXACT.keys() == {reason.value for reason in ExactReason}


def test_printed_vectors_and_metadata_are_cut() -> None:
    vectors = (np.arange(300) / 7).astype(np.float32).reshape(3, 100)
    metadata = [{"text": "x" * 500}, {}, {}]
    rows = RowsView(ids=np.array([7, 8, 9]), vectors=vectors, metadata=metadata)
    for shown in (rows, hits_of([7, 8, 9], vectors=vectors, metadata=metadata)):
        lines = str(shown).splitlines()
        assert lines[1].split()[-2:] == ["vector", "metadata"]
        assert "0 0.1429 0.2857 0.4286 ... 96 more" in lines[2]
        assert max(map(len, lines)) < 160
    [short] = str(RowsView(ids=np.array([7]), vectors=vectors[:1, :4])).splitlines()[2:]
    assert short == "7   0 0.1429 0.2857 0.4286"
    damaged = RowsView(ids=np.array([7]), damaged=np.array([8]))
    assert str(damaged).startswith("1 row, 1 damaged one left out")
