"""Values of the vocabulary, drawn by hypothesis, and their equality bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vectorshard.shard import descriptions, membership, types
from vectorshard.shard.config import Limits
from vectorshard.shard.filters import And, Equals, Exists, In, Not, Or, Range
from vectorshard.shard.wire.metadata import metadata_from_mapping

LIMITS = Limits()

uint32s = st.integers(0, 2**32 - 1)
uint64s = st.integers(0, 2**64 - 1)
float32s = st.floats(0, 1, width=32).map(lambda value: float(str(np.float32(value))))
texts = st.text(max_size=8)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
int64_ids = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=6).map(
    lambda ids: np.array(ids, dtype=np.int64)
)
string_ids = st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=6).map(
    lambda ids: np.array([*ids, None], dtype=object)[:-1]
)
id_arrays = st.one_of(int64_ids, string_ids)
includes = st.one_of(
    st.builds(types.Include, vectors=st.booleans(), metadata=st.booleans()),
    st.builds(
        types.Include, vectors=st.booleans(), metadata=st.just(True), metadata_json=st.just(True)
    ),
)
metadata_values = st.recursive(
    st.none()
    | st.booleans()
    | texts
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**53), 2**53),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
mappings = st.dictionaries(texts, metadata_values, max_size=3)
tokens = st.builds(
    types.Token,
    incarnation=st.text(min_size=1, max_size=8),
    sequences=st.dictionaries(uint32s, uint64s, max_size=4),
    sessions=st.dictionaries(uint32s, uint64s, max_size=4),
)
cursors = st.builds(
    types.Cursor, incarnation=st.text(min_size=1, max_size=8), shard=uint32s, row=uint64s
)
ledgers = st.builds(types.Ledger, **{f.name: uint64s for f in dataclasses.fields(types.Ledger)})
shard_descriptions = st.builds(
    descriptions.ShardDescription,
    shard=uint32s,
    state=st.sampled_from(types.ShardState),
    training=st.booleans(),
    ledger=ledgers,
    nlist=uint32s,
    nprobe=uint32s,
    measured_recall=float32s,
    live_recall=float32s,
    live_queries=uint32s,
    measured_recall_balanced=float32s,
    calibration_rows=uint64s,
    calibration_queries=uint32s,
    calibrated_at=st.floats(0, 1e10),
    rows_changed_since=uint64s,
    index_kind=st.none() | st.sampled_from(types.IndexKind),
    drift=float32s,
    generation=uint64s,
    rows_trained_on=uint64s,
    list_imbalance=float32s,
    last_training_s=st.integers(0, 10**9).map(lambda ms: ms / 1000),
    last_trained_at=st.integers(0, 2**41).map(lambda ms: ms / 1000),
    memory_bytes=uint64s,
    disk_bytes=uint64s,
    missing_reason=texts,
    writes_stopped=texts,
    kept_files=texts,
    rows_damaged=uint64s,
    damaged_ids=st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(tuple),
        st.lists(texts, max_size=3).map(tuple),
    ),
    scrub=st.none()
    | st.builds(
        descriptions.Scrub,
        passes=uint64s,
        progress=float32s,
        last_pass_at=st.floats(0, 1e10),
        last_pass_read_disk=st.booleans(),
        rows=uint64s,
        findings=st.lists(texts, max_size=3).map(tuple),
    ),
    content_sum=st.binary(max_size=16),
    restored_from=texts,
)
problems = st.builds(
    membership.Problem,
    shard=uint32s,
    kind=st.sampled_from(membership.ProblemKind),
    text=texts,
    collection=texts,
)
filter_values = st.booleans() | texts | st.floats(allow_nan=False)
bounds = st.none() | st.floats(allow_nan=False)
conditions = st.one_of(
    st.builds(Equals, texts, filter_values),
    st.builds(In, texts, st.lists(filter_values, max_size=3).map(tuple)),
    st.builds(Range, texts, bounds, bounds, bounds, bounds),
    st.builds(Exists, texts),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)
receipts = st.builds(
    types.Receipt,
    shards=st.lists(
        st.builds(
            types.ShardReceipt,
            shard=uint32s,
            missing_reason=texts,
            rows_visible=uint64s,
            rows_damaged=uint64s,
            rows_exact=uint64s,
            nlist=uint32s,
            nprobe=uint32s,
            generation=uint64s,
            rows_passing=uint64s,
            filter_plan=st.none() | st.sampled_from(types.FilterPlan),
            exact_reason=st.none() | st.sampled_from(types.ExactReason),
            queries_widened=uint64s,
            queries_exact=uint64s,
            nprobe_mean=st.integers(0, 100_000).map(lambda hundredths: hundredths / 100),
        ),
        max_size=3,
    ).map(tuple),
    coverage=float32s,
)
lists_rules = st.one_of(
    st.sampled_from([types.NlistRule.SQRT_4, types.NlistRule.SQRT_8, types.NlistRule.SQRT_16]).map(
        lambda rule: {"nlist_rule": rule}
    ),
    st.integers(1, LIMITS.nlist).map(
        lambda nlist: {"nlist_rule": types.NlistRule.FIXED, "nlist": nlist}
    ),
)
indexes = st.builds(
    lambda kind, size, rule: types.IndexConfig(kind=kind, min_training_size=size, **rule),
    st.sampled_from(types.IndexKind),
    st.integers(1, 2**32 - 1),
    lists_rules,
)
configs = st.builds(
    types.CollectionConfig,
    name=names,
    dim=st.integers(1, LIMITS.dim),
    metric=st.sampled_from(types.Metric),
    id_type=st.sampled_from(types.IdType),
    index=indexes,
    target_recall=float32s.filter(lambda recall: recall > 0),
    filter_fields=st.lists(
        st.builds(
            types.FilterField,
            st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
            st.sampled_from(types.FieldType),
        ),
        max_size=3,
        unique_by=lambda field: field.name,
    ).map(tuple),
)


def matrices(rows: int, dtypes: Sequence[Any] = (np.float32, np.float16)) -> st.SearchStrategy[Any]:
    """Return arrays (rows, 3), of whatever bits."""
    return st.sampled_from(dtypes).flatmap(
        lambda dtype: hnp.arrays(dtype, (rows, 3), elements=st.floats(width=16))
    )


def metadata_of(rows: int) -> st.SearchStrategy[list[bytes]]:
    """Return the metadata of so many rows."""
    return st.lists(mappings.map(metadata_from_mapping), min_size=rows, max_size=rows)


@st.composite
def upsert_requests(draw: st.DrawFn) -> types.UpsertRequest:
    """Return a batch of up to 6 rows."""
    ids = draw(id_arrays)
    metadata = draw(st.none() | metadata_of(len(ids)))
    return types.UpsertRequest(
        collection=draw(names),
        ids=ids,
        vectors=draw(matrices(len(ids))),
        metadata=metadata or None,
        mode=draw(st.sampled_from(types.WriteMode)),
    )


@st.composite
def rows_with_include(draw: st.DrawFn) -> tuple[types.Rows, types.Include]:
    """Return rows and what of them was asked for."""
    ids = draw(id_arrays)
    include = draw(includes)
    rows = types.Rows(
        ids=ids,
        vectors=draw(matrices(len(ids), [np.float32])) if include.vectors else None,
        metadata=draw(metadata_of(len(ids))) if include.metadata else None,
        metadata_json=include.metadata_json,
    )
    return rows, include


@st.composite
def search_results(draw: st.DrawFn) -> tuple[types.SearchResult, types.Include]:
    """Return the hits of a few queries, and what of them was asked for."""
    rows, include = draw(rows_with_include())
    cuts = sorted(draw(st.lists(st.integers(0, len(rows.ids)), max_size=3)))
    counts = np.diff([0, *cuts, len(rows.ids)]).astype(np.uint32)
    scores = draw(hnp.arrays(np.float32, len(rows.ids), elements=st.floats(width=32)))
    result = types.SearchResult(
        hits=types.TopK(counts=counts, ids=rows.ids, scores=scores),
        receipt=draw(receipts),
        vectors=rows.vectors,
        metadata=rows.metadata,
        metadata_json=rows.metadata_json,
    )
    return result, include


def assert_same(one: Any, other: Any) -> None:
    """Assert that two values of the vocabulary are equal, arrays bit for bit."""
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            if field.compare:
                assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if one.dtype == np.object_:
            assert one.tolist() == other.tolist()
        else:
            assert one.tobytes() == other.tobytes()
    else:
        assert one == other
