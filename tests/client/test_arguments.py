"""What a caller may hand over, and what is refused by the name of the argument and with the cure.

The values go through the methods' own calls; nothing is sent.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import pandas
import pyarrow as arrow
import pytest

from vectorshard import Client
from vectorshard.client import calls
from vectorshard.client.config_arguments import seconds_of
from vectorshard.client.upload import UpsertUpload
from vectorshard.shard import filters
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    ClientUnusable,
    InvalidConfig,
    InvalidId,
    InvalidParameter,
    InvalidRequest,
    InvalidVector,
    MalformedMessage,
)
from vectorshard.shard.filters import And, Equals, Exists, Filter, In, Not, Or
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    FilterField,
    IdType,
    IndexConfig,
    IndexKind,
    Metric,
    NlistRule,
    UpsertRequest,
)
from vectorshard.shard.wire.collections import decode_create_collection_request
from vectorshard.shard.wire.metadata import mapping_from_metadata
from vectorshard.shard.wire.reads import decode_count_request, decode_get_request
from vectorshard.shard.wire.searches import decode_search_request
from vectorshard.shard.wire.writes import decode_delete_request, decode_upsert_request

ROWS = {"alpha": [1, 0], "beta": [0, 1], "gamma": [1, 1]}
EYE = np.eye(2)
ANY: Any = calls
ANY_FILTER: Any = filters
ANY_CLIENT: Any = Client
ANY_INDEX: Any = IndexConfig
ANY_FIELD: Any = FilterField
"""What a type checker would refuse before the client does."""

AN_UUID = uuid.UUID(int=7)
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


class Tensor:
    """What a client sees of a tensor of torch: `fails` is what torch raises for it."""

    def __init__(self, values: Any, fails: str = "") -> None:
        self._values = values
        self._fails = fails

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Return the values, as torch does for a tensor in memory."""
        if self._fails:
            raise RuntimeError(self._fails)
        return np.asarray(self._values, dtype=dtype)

    def tolist(self) -> Any:
        """Return the values as lists."""
        return np.asarray(self._values).tolist()


def written(upload: UpsertUpload) -> UpsertRequest:
    """Return the only message of an upload."""
    upload.cut(Limits())
    assert upload.messages == 1
    return decode_upsert_request(upload.message(0), Limits())[0]


def created(**options: Any) -> CollectionConfig:
    """Return what a server reads of a create."""
    payload = calls.create_collection("words", dim=2, **options).payload
    return decode_create_collection_request(payload, Limits())


def searched(filter_: Any) -> Filter | None:
    """Return the filter that a server reads."""
    call = calls.search("words", [1, 0], filter=filter_)
    return decode_search_request(call.payload, Limits()).filter


# ---- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        ["alpha", "beta", "gamma"],
        ROWS.keys(),
        iter(ROWS),
        (name for name in ROWS),
        deque(ROWS),
        np.array(list(ROWS)),
        np.array(list(ROWS), dtype=np.dtypes.StringDType()),
        [np.str_(name) for name in ROWS],
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_ids_of_everything_that_has_an_order_are_taken(ids: Any) -> None:
    request = written(calls.upsert("words", ids, list(ROWS.values())))
    assert request.ids.tolist() == list(ROWS)
    assert request.vectors.tolist() == list(ROWS.values())


@pytest.mark.parametrize(
    "unordered",
    [
        lambda: set(ROWS),
        lambda: frozenset(ROWS),
        lambda: {1, 2, 3},
        lambda: iter({1, 2, 3}),
        lambda: iter(frozenset(ROWS)),
        lambda: ROWS,
        OrderedDict,
        lambda: ROWS.items(),
        lambda: iter(ROWS.items()),
        lambda: reversed(ROWS.items()),
    ],
)
def test_what_has_no_order_is_refused_where_rows_are_matched_by_their_order(
    unordered: Callable[[], Any],
) -> None:
    for call, field in (
        (lambda: calls.upsert("words", unordered(), np.eye(3)), "ids"),
        (lambda: calls.get("words", unordered()), "ids"),
        (lambda: calls.upsert("words", [1, 2, 3], unordered()), "vectors"),
        (lambda: calls.upsert("words", [1, 2, 3], np.eye(3), unordered()), "metadata"),
        (lambda: calls.search("words", unordered()), "queries"),
        (lambda: [*ANY_CLIENT("h:1").search_stream("words", unordered())], "batches"),
    ):
        with pytest.raises(InvalidRequest, match="pass") as caught:
            call()
        assert caught.value.field == field


def test_the_values_of_a_dict_are_in_the_order_of_its_keys() -> None:
    described = {name: {"name": name} for name in ROWS}
    for values in (ROWS.values(), iter(ROWS.values()), [*ROWS.values()]):
        request = written(calls.upsert("words", ROWS.keys(), values, described.values()))
        assert request.ids.tolist() == list(ROWS)
        assert request.vectors.tolist() == list(ROWS.values())
        assert request.metadata is not None
        of_rows = [mapping_from_metadata(each) for each in request.metadata]
        assert of_rows == [*described.values()]


def test_a_set_that_keeps_an_order_is_taken() -> None:
    class Ordered(Set[str], Sequence[str]):
        """A set that is a sequence, too, as a SortedSet is."""

        def __len__(self) -> int:
            return len(ROWS)

        def __contains__(self, name: object) -> bool:
            return name in ROWS

        def __getitem__(self, place: Any) -> Any:
            return [*ROWS][place]

    request = written(calls.upsert("words", Ordered(), EYE[[0, 1, 0]]))
    assert request.ids.tolist() == list(ROWS)


def test_a_set_of_ids_is_taken_where_no_order_counts() -> None:
    deleted = decode_delete_request(calls.delete("words", {3, 1}).payload, Limits())
    assert deleted.ids is not None
    assert sorted(deleted.ids.tolist()) == [1, 3]
    counted = decode_count_request(calls.count("words", iter({3, 1})).payload, Limits())
    assert counted.ids is not None
    assert sorted(counted.ids.tolist()) == [1, 3]
    for call in (calls.delete, calls.count):
        with pytest.raises(InvalidId, match="dict is a mapping"):
            call("words", {3: "c"})


@pytest.mark.parametrize("id_", [7, np.int64(7), np.array(7), "king", np.str_("king")])
def test_one_id_stands_for_a_list_of_one(id_: Any) -> None:
    plain = id_.item() if isinstance(id_, np.generic | np.ndarray) else id_
    got = decode_get_request(calls.get("words", id_).payload, Limits())
    assert got.ids is not None
    assert got.ids.tolist() == [plain]


def test_one_id_takes_one_vector_and_one_mapping() -> None:
    request = written(calls.upsert("words", "king", [1, 0], {"lang": "en"}))
    assert (request.ids.tolist(), request.vectors.tolist()) == (["king"], [[1, 0]])
    assert request.metadata is not None
    assert [mapping_from_metadata(each) for each in request.metadata] == [{"lang": "en"}]


# ---- vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vectors",
    [
        [[1, 0], [0, 1]],
        ([1, 0], [0, 1]),
        (row for row in EYE),
        [np.array([1, 0]), np.array([0, 1])],
        np.array([None, None]),
        Tensor(EYE),
        [Tensor([1, 0]), Tensor([0, 1])],
    ],
    ids=lambda vectors: type(vectors).__name__,
)
def test_vectors_of_any_container_are_taken(vectors: Any) -> None:
    if isinstance(vectors, np.ndarray):
        vectors[:] = [np.array([1, 0]), [0, 1]]  # as a Series of arrays is
    assert written(calls.upsert("words", [1, 2], vectors)).vectors.tolist() == EYE.tolist()


def test_a_series_and_a_frame_of_pandas_are_taken() -> None:
    rows = pandas.DataFrame(
        {"id": ["a", "b"], "vector": [[1, 0], [0, 1]], "year": [1990, np.nan], "lang": ["en", None]}
    )
    request = written(calls.upsert("words", rows.id, rows.vector, rows[["year", "lang"]]))
    assert (request.ids.tolist(), request.vectors.tolist()) == (["a", "b"], EYE.tolist())
    assert request.metadata is not None
    of_rows = [mapping_from_metadata(each) for each in request.metadata]
    assert of_rows == [{"year": 1990, "lang": "en"}, {}]
    numbers = pandas.DataFrame(EYE, index=[4, 5])
    again = written(calls.upsert("words", numbers.index, numbers))
    assert (again.ids.tolist(), again.vectors.tolist()) == ([4, 5], EYE.tolist())
    with pytest.raises(InvalidVector, match="row 1: 3 components do not match the 2 of row 0"):
        calls.upsert("words", [1, 2], pandas.Series([[1, 0], [1, 2, 3]]))


def test_columns_of_arrow_are_taken() -> None:
    fixed = arrow.array([[9, 9], [1, 0], [0, 1]], type=arrow.list_(arrow.float32(), 2))[1:]
    ids = arrow.array(["a", "b"])
    for vectors in (
        fixed,
        arrow.chunked_array([fixed[:1], fixed[1:]]),
        fixed.cast(arrow.list_(arrow.float32())),
    ):
        request = written(calls.upsert("words", ids, vectors, arrow.table({"n": [1, 2]})))
        assert (request.ids.tolist(), request.vectors.tolist()) == (["a", "b"], EYE.tolist())
        assert request.metadata is not None
        assert [mapping_from_metadata(each) for each in request.metadata] == [{"n": 1}, {"n": 2}]
    with_null = arrow.array([[1, 0], None], type=arrow.list_(arrow.float32(), 2))
    with pytest.raises(InvalidVector, match="row 1: null is not a vector"):
        calls.upsert("words", [1, 2], with_null)
    with pytest.raises(InvalidVector, match="Table has columns"):
        calls.search("words", arrow.table({"v": fixed}))


# ---- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        IndexConfig(kind=IndexKind.IVF_FLAT, nlist=224),
        ANY_INDEX(kind="ivf_flat", nlist=np.int64(224), nlist_rule="Fixed"),
        {"kind": "IVF-FLAT", "nlist": 224},
    ],
)
def test_an_nlist_means_that_it_is_fixed_and_enums_may_be_text(index: Any) -> None:
    assert created(index=index).index == IndexConfig(
        kind=IndexKind.IVF_FLAT, nlist_rule=NlistRule.FIXED, nlist=224
    )


def test_a_kind_alone_is_an_index() -> None:
    for index in ("ivf_sq8", IndexKind.IVF_SQ8):
        assert created(index=index).index == IndexConfig(kind=IndexKind.IVF_SQ8)


@pytest.mark.parametrize(
    "fields",
    [
        [FilterField("a", FieldType.INT64)],
        [ANY_FIELD("a", "int64")],
        [("a", "INT64")],
        (each for each in [["a", FieldType.INT64]]),
        {"a": "int64"},
        {"a": "int64"}.items(),
        FilterField("a", FieldType.INT64),
    ],
)
def test_filter_fields_are_taken_in_every_form(fields: Any) -> None:
    assert created(filter_fields=fields).filter_fields == (FilterField("a", FieldType.INT64),)


def test_enums_are_taken_as_text_in_any_case() -> None:
    config = created(metric="Inner-Product", id_type="STRING")
    assert (config.metric, config.id_type) == (Metric.INNER_PRODUCT, IdType.STRING)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"lang": "en"}, Equals("lang", "en")),
        ({"lang": "en", "year": np.int64(1990)}, And((Equals("lang", "en"), Equals("year", 1990)))),
        ({"lang": ["en", "de"]}, In("lang", ("en", "de"))),
        ({"n": np.array([1, 2])}, In("n", (1, 2))),
        ({"n": range(1, 3)}, In("n", (1, 2))),
        ({"lang": pandas.Series(["en"])}, In("lang", ("en",))),
        ({"lang": arrow.array(["en"])}, In("lang", ("en",))),
        ('lang = "en"', Equals("lang", "en")),
        (Or((Exists("a"), Not(Exists("b")))), Or((Exists("a"), Not(Exists("b"))))),
        (ANY_FILTER.In("lang", ["en"]), In("lang", ("en",))),
    ],
)
def test_a_filter_may_be_a_mapping(given: Any, read: Filter) -> None:
    assert searched(given) == read


# ---- refusals ------------------------------------------------------------------------------------


def upsert_of(ids: Any = (1, 2), vectors: Any = EYE, metadata: Any = None, **more: Any) -> Any:
    """Upsert into "words"."""
    return written(calls.upsert("words", ids, vectors, metadata, **more))


def nested(levels: int) -> dict[str, Any]:
    """Return mappings in mappings; for 0, one that contains itself."""
    outer: dict[str, Any] = {}
    inner = outer
    for _ in range(levels):
        inner["in"] = inner = {}
    inner["in"] = inner if not levels else 1
    return outer


REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    # ids
    (
        lambda: upsert_of([AN_UUID, AN_UUID]),
        InvalidId,
        "ids: row 0: UUID.* pass a string, such as str",
    ),
    (
        lambda: upsert_of([1, np.float64(2.0)]),
        InvalidId,
        r"ids: row 1: 2\.0 is not an integer: pass int",
    ),
    (lambda: upsert_of(["a", np.int64(9)]), InvalidId, "ids: row 1: 9 is not a string; row 0 is"),
    (
        lambda: upsert_of([1, "b"]),
        InvalidId,
        "ids: row 1: 'b' is not an integer; row 0 is an integer",
    ),
    (lambda: upsert_of([b"a", b"b"]), InvalidId, r"ids: row 0: b'a' .* id.decode\(\)"),
    (lambda: upsert_of(b"ab"), InvalidId, r"ids: bytes is not an id: .*decode"),
    (lambda: upsert_of(None), InvalidId, "ids: None is not an id: pass integers or strings"),
    (lambda: upsert_of(1.5), InvalidId, "ids: 1.5 is not an id"),
    (lambda: upsert_of(AN_UUID), InvalidId, "ids: UUID.* is not an id: pass a string, such as str"),
    (lambda: upsert_of([1, None]), InvalidId, "ids: row 1: None is not an integer"),
    (lambda: upsert_of(np.ma.array([1, 2])), InvalidId, r"ids: a masked array .*compressed\(\)"),
    (
        lambda: upsert_of({1: 2}.items(), [[1, 0]]),
        InvalidId,
        r"ids: dict_items are pairs: pass keys\(\) and values\(\) as separate arguments",
    ),
    (lambda: ANY.explain("words", [1, 0], True), InvalidId, "ids: row 0: True is not an integer"),
    (lambda: ANY.explain("words", [1, 0], AN_UUID), InvalidId, "pass a string, such as str"),
    # vectors
    (
        lambda: upsert_of(vectors=np.ma.array(EYE)),
        InvalidVector,
        r"vectors: a masked array .*filled",
    ),
    (
        lambda: upsert_of(vectors=[EYE[0], np.ma.array(EYE[1])]),
        InvalidVector,
        "vectors: a masked array",
    ),
    (
        lambda: upsert_of(vectors=Tensor(EYE, "requires grad")),
        InvalidVector,
        r"grad: pass .detach\(\).cpu",
    ),
    (
        lambda: upsert_of(vectors=[Tensor([1, 0], "cuda:0")] * 2),
        InvalidVector,
        r"vectors: .*detach\(\)",
    ),
    (
        lambda: upsert_of(vectors=None),
        InvalidVector,
        "vectors: expected real numbers, got NoneType",
    ),
    (
        lambda: upsert_of(vectors=object()),
        InvalidVector,
        "vectors: expected real numbers, got object",
    ),
    (lambda: upsert_of(vectors=EYE > 0), InvalidVector, "got dtype bool: pass .astype"),
    (lambda: upsert_of(vectors=[[1, None], [1, 2]]), InvalidVector, "got dtype object"),
    (
        lambda: upsert_of(vectors=[1, 0]),
        MalformedMessage,
        r"shape \(2,\) is not \(rows, dim\): pass",
    ),
    (lambda: upsert_of("king", EYE), MalformedMessage, "vectors: 2 rows for 1 id: give one"),
    (lambda: ANY.search("words", "king"), InvalidVector, "queries: expected real numbers"),
    # metadata
    (
        lambda: upsert_of(metadata={"a": 1}),
        MalformedMessage,
        "1 mapping does not match 2 ids: pass a list",
    ),
    (
        lambda: upsert_of(metadata="text"),
        InvalidParameter,
        "metadata: str is not a sequence of mappings",
    ),
    (lambda: upsert_of(metadata=["{}", "{}"]), InvalidParameter, r"row 0: '{}' .* pass json.loads"),
    (lambda: upsert_of(metadata=7), InvalidParameter, "metadata: 7 is not a mapping"),
    (
        lambda: upsert_of(metadata=[None, {"a": float("nan")}]),
        InvalidParameter,
        "row 1: key a: nan is not",
    ),
    (
        lambda: upsert_of(metadata=[{"a": {"b": [1, np.inf]}}, {}]),
        InvalidParameter,
        r"row 0: key a\.b: inf",
    ),
    (
        lambda: upsert_of(metadata=[{"t": NOW}, {}]),
        InvalidParameter,
        r"key t: type datetime .*isoformat",
    ),
    (
        lambda: upsert_of(metadata=[{"t": NOW.date()}, {}]),
        InvalidParameter,
        r"key t: type date .*isoformat",
    ),
    (
        lambda: upsert_of(metadata=[{"p": decimal.Decimal("1")}, {}]),
        InvalidParameter,
        r"key p: .*float\(value\)",
    ),
    (lambda: upsert_of(metadata=[{"u": AN_UUID}, {}]), InvalidParameter, r"key u: .*str\(value\)"),
    (lambda: upsert_of(metadata=[{"s": {1}}, {}]), InvalidParameter, r"key s: .*sorted\(value\)"),
    (lambda: upsert_of(metadata=[{"b": b"x"}, {}]), InvalidParameter, r"key b: .*decode"),
    (
        lambda: upsert_of(metadata=[{"n": 2**60}, {}]),
        InvalidParameter,
        "key n: integer .* use a string",
    ),
    (
        lambda: upsert_of(metadata=[{np.int64(9): 1}, {}]),
        InvalidParameter,
        r"name 9 is not .* str\(name\)",
    ),
    (
        lambda: upsert_of(metadata=[{}, {"a": "caf\udce9"}]),
        InvalidParameter,
        r"row 1: key a: value 'caf\\udce9' has a lone surrogate.*: use value.encode\(",
    ),
    (
        lambda: upsert_of(metadata=[{}, {"a": {"b": ["\ud800"]}}]),
        InvalidParameter,
        r"row 1: key a\.b: value '\\ud800' has a lone surrogate",
    ),
    (
        lambda: upsert_of(metadata=[{"a\ud800": 1}, {}]),
        InvalidParameter,
        r"row 0: name 'a\\ud800' has a lone surrogate.*: use name.encode\(",
    ),
    (
        lambda: upsert_of(metadata=[{}, {"a": 1, "deep": nested(40)}]),
        InvalidParameter,
        "row 1: key deep: nests too deep: use at most 16 levels, or text",
    ),
    (
        lambda: upsert_of(metadata=[{}, {"a": 1, "self": nested(0)}]),
        InvalidParameter,
        "row 1: key self: nests too deep",
    ),
    # configurations
    (
        lambda: created(metric="dot"),
        InvalidConfig,
        "config.metric: 'dot' is not one of l2, inner_product",
    ),
    (lambda: created(metric=IdType.INT64), InvalidConfig, "config.metric: .* is not one of l2"),
    (lambda: created(metric=[]), InvalidConfig, "config.metric: .* is not one of l2"),
    (
        lambda: created(index="hnsw"),
        InvalidConfig,
        "config.index.kind: 'hnsw' is not one of ivf_flat",
    ),
    (
        lambda: created(index={"lists": 9}),
        InvalidConfig,
        "config.index: 'lists' is not one of kind",
    ),
    (lambda: created(index=9), InvalidConfig, "config.index: 9 is not an IndexConfig"),
    (
        lambda: created(index=ANY_INDEX(nlist="9")),
        InvalidConfig,
        "config.index.nlist: '9' is not",
    ),
    (
        lambda: created(filter_fields="lang"),
        InvalidConfig,
        "config.filter_fields: 'lang' is not a list",
    ),
    (
        lambda: created(filter_fields=["lang"]),
        InvalidConfig,
        "row 0: 'lang' is not a FilterField, or a pair",
    ),
    (
        lambda: created(filter_fields=[("a", "text")]),
        InvalidConfig,
        "'text' is not one of keyword, int64",
    ),
    (
        lambda: created(filter_fields=[(9, "bool")]),
        InvalidConfig,
        "config.filter_fields: 9 is not a string",
    ),
    (
        lambda: ANY.create_collection("w", dim=np.float64(9)),
        InvalidConfig,
        r"config.dim: 9\.0 is not",
    ),
    (lambda: ANY.create_collection(9, dim=2), InvalidConfig, "config.name: 9 is not a string"),
    (
        lambda: upsert_of(mode="replace"),
        InvalidParameter,
        "mode: 'replace' is not one of upsert, insert",
    ),
    (lambda: upsert_of(progress=1), InvalidParameter, "progress: 1 is not callable|progress 1"),
    (
        lambda: ANY.upsert(None, [1], EYE[:1]),
        InvalidParameter,
        "collection: None is not a string",
    ),
    # filters
    (lambda: searched({}), InvalidParameter, "filter: an empty mapping .* pass None"),
    (
        lambda: searched({"year": {"$gte": 1990}}),
        InvalidParameter,
        "'year' is a mapping: pass text",
    ),
    (lambda: searched({"year": None}), InvalidParameter, r"filter: value None .*Not\(Exists"),
    (lambda: searched({9: "a"}), InvalidParameter, "field 9 is not a string"),
    (lambda: searched(7), InvalidParameter, "filter: 7 is not a filter: pass text"),
    (lambda: searched(pandas.Series([1, 2])), InvalidParameter, "filter: 0 1 1 2 dtype: int64 is"),
    (lambda: searched(["a = 1"]), InvalidParameter, r"filter: \['a = 1'\] is not a filter"),
    (
        lambda: searched(ANY_FILTER.Range("year", gte="1990")),
        InvalidParameter,
        "bound '1990' of 'year' is not a number",
    ),
    (
        lambda: searched(ANY_FILTER.Equals("t", NOW)),
        InvalidParameter,
        "filter: value datetime.* is not a string",
    ),
    (
        lambda: searched(ANY_FILTER.In("lang", "en")),
        InvalidParameter,
        "values 'en' of 'lang' is not a tuple",
    ),
    (
        lambda: searched(ANY_FILTER.In("lang", 5)),
        InvalidParameter,
        "values 5 of 'lang' is not a tuple",
    ),
    (lambda: searched(ANY_FILTER.Not("a = 1")), InvalidParameter, "'a = 1' is not a filter"),
    (
        lambda: searched(ANY_FILTER.And((Exists("a"), None))),
        InvalidParameter,
        "None is not a filter",
    ),
    (lambda: searched(ANY_FILTER.And(Exists("a"))), InvalidParameter, "is not a tuple of filters"),
    (lambda: searched("lang == en"), InvalidParameter, 'column 9: .* text needs quotes: "en"'),
    # searches
    (
        lambda: ANY.search("w", [1], np.float64(9.0)),
        InvalidParameter,
        r"k: 9\.0 is not an integer",
    ),
    (lambda: ANY.search("w", [1], 2.0), InvalidParameter, r"k: 2\.0 is not an integer"),
    (lambda: ANY.search("w", [1], True), InvalidParameter, "k: True is not an integer"),
    (lambda: ANY.search("w", [[]], 2), MalformedMessage, r"queries: shape \(1, 0\) is not"),
    (
        lambda: ANY.search("w", [1], 2, target_recall=True),
        InvalidParameter,
        "target_recall: True is not a number",
    ),
    (
        lambda: ANY.create_collection("w", dim=True),
        InvalidConfig,
        "config.dim: True is not an integer",
    ),
    (
        lambda: ANY.create_collection("w", dim=1, target_recall=0),
        InvalidConfig,
        r"config.target_recall: 0 is not in \(0, 1\]",
    ),
    (
        lambda: ANY.search("w", [1], exact="yes"),
        InvalidParameter,
        "exact: 'yes' is not True or False",
    ),
    (
        lambda: ANY.search("w", [1], metadata=1),
        InvalidParameter,
        "metadata: 1 is not True or False",
    ),
    (lambda: ANY.search("w", [1], token=b"t"), InvalidParameter, "token: b't' is not a Token"),
    (
        lambda: ANY.search("w", [1], timeout_s="1"),
        InvalidParameter,
        "timeout_s: '1' is not a number",
    ),
    (
        lambda: ANY.search("w", [1], timeout_s=-1),
        InvalidParameter,
        "timeout_s: -1 is not a positive",
    ),
    (lambda: ANY.train("w", wait="yes"), InvalidParameter, "wait: 'yes' is not True or False"),
    (
        lambda: ANY.list_rows("w", page_size="9").next_call(),
        InvalidParameter,
        "page_size: '9' is not",
    ),
    # the client itself
    (
        lambda: ANY_CLIENT("h:1", retry="sometimes"),
        InvalidParameter,
        "retry: 'sometimes' is not one of none",
    ),
    (
        lambda: ANY_CLIENT("h:1", timeout_s=None),
        InvalidParameter,
        "timeout_s: None is not a number",
    ),
    (lambda: ANY_CLIENT(7700), InvalidParameter, "target: 7700 is not a string"),
]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    REFUSED,
    ids=[re.sub(r"\W+", "-", text)[:50] for _, _, text in REFUSED],
)
def test_what_is_not_understood_is_refused_by_name_and_with_the_cure(
    call: Callable[[], object], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()
    assert not re.search(r"np\.\w+\(", str(caught.value))


def test_calls_after_a_close_are_an_error_of_the_tree() -> None:
    client = Client("127.0.0.1:1")
    client.close()
    with pytest.raises(ClientUnusable, match="the client is closed"):
        client.count("words")


@pytest.mark.parametrize("seconds", [float("inf"), 1e300])
def test_an_endless_timeout_is_a_long_one(seconds: float) -> None:
    assert seconds_of(seconds) == 1e8
