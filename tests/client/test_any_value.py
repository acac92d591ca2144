"""Any value for any argument of any call is taken or refused within the one tree of errors."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import inspect
import math
import re
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pyarrow as arrow
import pytest

from vectorshard.client import calls
from vectorshard.client.calls import Listing, UnaryCall
from vectorshard.client.client import Client
from vectorshard.client.upload import UpsertUpload
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidRequest
from vectorshard.shard.filters import And, Equals, In, Not, Or, Range
from vectorshard.shard.types import FieldType, FilterField, IndexConfig, Metric, Token


class Odd:
    """A value that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


ANY: Any = None
ANYTHING: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**200, 0.5, math.nan, math.inf, -math.inf),
    *("", "a", "\ud800", "a" * 600, "ivf_flat", "l2", "lang = 1", b"a", bytearray(b"a")),
    *([], [1], [1, 2], ["a"], [None], [[1, 2]], [[1], [1, 2]], [[]], (), (1, "a"), {1}, {"a"}),
    *({}, {"a": 1}, {1: 2}, {"a": {"b": [1, {"c": object()}]}}, [{}], [{"a": 1}], [{"a": {1}}]),
    *(np.int64(9), np.float32(0.5), np.str_("a"), np.bool_(True), np.datetime64("2026-01-01")),
    *(np.arange(2), np.eye(2), np.zeros((0, 2)), np.zeros((2, 0)), np.array(1), np.array(["a"])),
    *(np.array([None]), np.array([1, "a"], dtype=object), np.zeros(1, dtype="M8[s]")),
    *(np.zeros(2, dtype=complex), np.zeros(2, dtype=[("a", "i4")]), np.ma.array([1, 2])),
    *(np.datetime64(5, "ns"), np.timedelta64(5, "ns"), np.array([5], dtype="m8[ns]")),
    *(pandas.DataFrame({"a": [1]}), pandas.DataFrame([[1, 2]], columns=["a", "a"]), pandas.NA),
    *(pandas.Series([1, 2]), pandas.Series([[1, 2]]), pandas.Timestamp(5), pandas.Timedelta(5)),
    *(arrow.array([1, 2]), arrow.scalar(1), arrow.scalar([1, 2]), arrow.table({"a": [1]})),
    *(arrow.array([[1, 2]], arrow.list_(arrow.int64(), 2))[0], arrow.array([{"a": 1}])),
    *(object(), object, len, iter([1]), (each for each in "ab"), range(2), {"a": 1}.keys()),
    *(decimal.Decimal(1), uuid.UUID(int=1), datetime.datetime.min, datetime.timedelta(1), 1j),
    *(Equals("a", 1), Equals(ANY, ANY), In("a", ANY), Range("a", gt=ANY), Not(ANY), And(ANY)),
    *(Or(()), And((ANY,)), Metric.L2, FieldType.BOOL, FilterField(ANY, ANY), Token(incarnation="")),
    *(IndexConfig(nlist=ANY), IndexConfig(kind=ANY), IndexConfig(min_training_size=ANY)),
    *([FilterField("a", ANY)], [("a",)], [["a", 1]], memoryview(b"ab"), ..., NotImplemented, Odd()),
]

GOOD: dict[str, dict[str, Any]] = {
    "create_collection": {"name": "w", "dim": 2},
    "drop_collection": {"name": "w"},
    "update_collection": {"name": "w", "target_recall": 0.9},
    "describe": {"name": "w"},
    "train": {"name": "w"},
    "upsert": {"name": "w", "ids": [1, 2], "vectors": np.eye(2)},
    "delete": {"name": "w", "ids": [1]},
    "get": {"name": "w", "ids": [1]},
    "count": {"name": "w"},
    "list_rows": {"name": "w"},
    "search": {"name": "w", "queries": [[1.0, 0.0]]},
    "explain": {"name": "w", "query": [1.0, 0.0], "id_": 1},
}
"""Arguments that each call takes, without a server."""

ARGUMENTS = [
    (name, argument)
    for name in GOOD
    for argument in inspect.signature(getattr(calls, name)).parameters
]


def built(build: Callable[..., object], arguments: dict[str, Any]) -> None:
    """Build what travels."""
    made = build(**arguments)
    if isinstance(made, UpsertUpload):
        made.cut(Limits())
        for number in range(made.messages):
            made.message(number)
    elif isinstance(made, Listing):
        assert isinstance(made.next_call(), UnaryCall)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_any_value_of_an_argument_is_taken_or_refused_within_the_tree(
    name: str, argument: str
) -> None:
    build = getattr(calls, name)
    refusals = []
    for value in ANYTHING:
        arguments = {**GOOD[name], argument: value}
        if argument == "filter" and name in {"delete", "get"}:
            del arguments["ids"]
        try:
            built(build, arguments)
        except InvalidRequest as error:
            refusals.append(str(error))
    assert not [text for text in refusals if re.search(r"np\.\w+\(", text)]


@pytest.mark.parametrize("argument", ["target", "timeout_s", "retry"])
def test_any_value_of_a_clients_argument_is_taken_or_refused(argument: str) -> None:
    for value in ANYTHING:
        arguments = {"target": "127.0.0.1:1", argument: value}
        with contextlib.suppress(InvalidRequest):
            Client(**arguments).close()


@pytest.mark.parametrize("batches", [None, 7, "ab", np.array(1)])
def test_batches_that_are_none_are_refused(batches: Any) -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(InvalidRequest, match=r"batches: .* is not a list of queries"),
    ):
        list(client.search_stream("w", batches))
