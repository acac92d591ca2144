"""Tables, times and scalars of other libraries: taken as their user means them, or refused.

Iterated, a table is the names of its columns, and numpy converts a time to a bare number or to a
date, depending on its unit. Neither may become an id, a value or a number unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pyarrow as arrow
import pytest

from vectorshard.client import calls
from vectorshard.client.config_arguments import seconds_of
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidId, InvalidParameter, InvalidRequest
from vectorshard.shard.filters import Equals, In, Range
from vectorshard.shard.wire.searches import decode_search_request
from vectorshard.shard.wire.writes import decode_upsert_request

EYE = np.eye(3)
TABLES: list[Any] = [
    pandas.DataFrame({"id": ["a", "b", "c"]}),
    pandas.DataFrame([7, 8, 9]),
    pandas.DataFrame([[1, 2, 3]]),
    arrow.table({"id": [7, 8, 9]}),
    arrow.RecordBatch.from_pydict({"id": [7, 8, 9]}),
]
TIMES: list[Any] = [
    convert(5, unit) for convert in (np.datetime64, np.timedelta64) for unit in ("ns", "us", "M")
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: type(table).__name__)
def test_a_table_is_not_a_list_of_the_names_of_its_columns(table: Any) -> None:
    for call in (
        lambda: calls.upsert("words", table, EYE),
        lambda: calls.delete("words", table),
        lambda: calls.get("words", table),
        lambda: calls.count("words", table),
        lambda: calls.count("words", filter={"lang": table}),
    ):
        with pytest.raises(InvalidRequest, match="has columns: pass one of them"):
            call()
    with pytest.raises(InvalidParameter, match="is not a tuple of values"):
        calls.count("words", filter=In("lang", table))


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_a_time_of_numpy_is_no_number_in_any_unit(time: Any) -> None:
    several = np.array([time])
    refused: list[Callable[[], object]] = [
        lambda: calls.upsert("words", several, EYE[:1]),
        lambda: calls.upsert("words", time, EYE[:1]),
        lambda: calls.upsert("words", [time], EYE[:1]),
        lambda: calls.upsert("words", [1], EYE[:1], {"at": time}),
        lambda: calls.upsert("words", [1], EYE[:1], {"at": several}),
        lambda: calls.upsert("words", [1], several.reshape(1, 1)),
        lambda: calls.count("words", filter=Equals("at", time)),
        lambda: calls.count("words", filter={"at": several}),
        lambda: calls.count("words", filter=In("at", (time,))),
        lambda: calls.count("words", filter=Range("at", lt=time)),
        lambda: calls.search("words", EYE[0], target_recall=time),
        lambda: seconds_of(time, "timeout_s"),
    ]
    for call in refused:
        with pytest.raises(InvalidRequest):
            call()


def test_a_refused_time_is_named_with_its_unit() -> None:
    ids: Any = [np.timedelta64(5, "ns")]
    with pytest.raises(InvalidId, match=r"row 0: timedelta64\('5 nanoseconds'\) is not an integer"):
        calls.upsert("words", ids, EYE[:1])
    with pytest.raises(InvalidParameter, match=r"type datetime64 .* use value\.astype\(str\)"):
        calls.upsert("words", [1], EYE[:1], {"at": np.datetime64(5, "ns")})


@pytest.mark.parametrize(
    "twice",
    [
        pandas.DataFrame([[1, 2]], columns=["a", "a"]),
        arrow.table([arrow.array([1]), arrow.array([2])], names=["a", "a"]),
    ],
    ids=lambda table: type(table).__name__,
)
def test_two_columns_of_one_name_are_refused(twice: Any) -> None:
    with pytest.raises(InvalidParameter, match="column 'a' occurs twice") as caught:
        calls.upsert("words", [1], EYE[:1], twice)
    assert caught.value.field == "metadata"


def test_values_of_an_arrow_array_are_taken_one_by_one() -> None:
    for column in (
        arrow.array(EYE.tolist()),
        arrow.array(EYE.tolist(), type=arrow.list_(arrow.float32(), 3)),
    ):
        query = calls.search("words", column[1])
        assert decode_search_request(query.payload, Limits()).queries.tolist() == [[0, 1, 0]]
        upload = calls.upsert("words", [*arrow.array(["a", "b", "c"])], [*column])
        upload.cut(Limits())
        request = decode_upsert_request(upload.message(0), Limits())[0]
        assert request.ids.tolist() == ["a", "b", "c"]
        assert request.vectors.tolist() == EYE.tolist()
    with pytest.raises(InvalidRequest, match="queries: "):
        calls.search("words", arrow.scalar(3))


def test_a_filter_has_no_truth_value() -> None:
    for combine in (
        lambda: Equals("lang", "en") and Range("year", lt=1990),
        lambda: Equals("lang", "en") or Range("year", lt=1990),
        lambda: not Equals("lang", "en"),
    ):
        with pytest.raises(InvalidParameter, match="use & for and"):
            combine()


def test_text_that_is_not_utf8_is_refused_by_the_name_of_its_place() -> None:
    for filter_, what in ((Equals("\ud800", 1), "field"), (Equals("lang", "\ud800"), "value")):
        with pytest.raises(InvalidParameter, match=f"filter: {what} .* has a lone surrogate"):
            calls.count("words", filter=filter_)


def test_an_array_without_an_axis_is_a_list_of_one_in_metadata() -> None:
    calls.upsert("words", [1], EYE[:1], {"n": np.array(3)})
    with pytest.raises(InvalidParameter, match=r"use value\.tolist\(\)"):
        calls.upsert("words", [1], EYE[:1], {"n": pandas.Series([3])})
