"""Which rows pass a filter: as plain Python says, of whatever rows, also after a restart."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shard.filter_samples import FIELDS, filters, holds, mappings, packed
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.filters import Equals, Exists, Filter, In, Not, Range
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.rows.filter_columns import (
    DamagedColumns,
    FieldValues,
    FilterColumns,
    packed_bits,
    row_numbers,
)
from vectorshard.shard.types import CollectionConfig, IdType, Metric

CONFIG = CollectionConfig(
    name="words", dim=2, metric=Metric.L2, id_type=IdType.INT64, filter_fields=FIELDS
)
tables = st.lists(mappings, max_size=20)


def values_of(table: list[dict[str, Any]], first: int = 0) -> dict[int, FieldValues]:
    """Return the declared fields of rows from `first` on."""
    values = declared_fields(CONFIG, packed(table))
    return {first + row: each for row, each in enumerate(values or [])}


def columns_of(table: list[dict[str, Any]]) -> FilterColumns:
    """Return the columns of rows with this metadata."""
    columns = FilterColumns(FIELDS)
    columns.append(values_of(table), len(table))
    return columns


def passing(columns: FilterColumns, filter_: Filter, rows: int) -> list[int]:
    """Return the rows that pass."""
    found: list[int] = row_numbers(columns.passing(filter_, rows)).tolist()
    return found


@settings(max_examples=300)
@given(tables, tables, filters)
def test_what_passes_is_what_plain_python_says(
    table: list[dict[str, Any]], later: list[dict[str, Any]], filter_: Filter
) -> None:
    columns = columns_of(table)
    expected = [row for row, mapping in enumerate(table) if holds(filter_, mapping)]
    assert passing(columns, filter_, len(table)) == expected
    columns.append(values_of(later, len(table)), len(table) + len(later))
    assert passing(columns, filter_, len(table)) == expected, "newer rows change no older answer"
    everything = table + later
    expected = [row for row, mapping in enumerate(everything) if holds(filter_, mapping)]
    assert passing(columns, filter_, len(everything)) == expected


@given(tables, tables, filters)
def test_columns_come_back_from_bytes_and_grow_on(
    table: list[dict[str, Any]], later: list[dict[str, Any]], filter_: Filter
) -> None:
    columns = columns_of(table)
    columns.append(values_of(later, len(table)), len(table) + len(later))
    back = FilterColumns.from_bytes(FIELDS, len(table), columns.to_bytes(len(table)))
    assert passing(back, filter_, len(table)) == passing(columns, filter_, len(table))
    back.append(values_of(later, len(table)), len(table) + len(later))
    rows = len(table) + len(later)
    assert passing(back, filter_, rows) == passing(columns, filter_, rows)


@given(tables, st.integers(0, 60))
def test_bytes_that_stop_short_are_refused(table: list[dict[str, Any]], cut: int) -> None:
    serialized = columns_of(table).to_bytes(len(table))
    with pytest.raises(DamagedColumns):
        FilterColumns.from_bytes(FIELDS, len(table), serialized[: min(cut, len(serialized) - 9)])


def test_a_number_that_is_none_passes_no_comparison_but_exists() -> None:
    columns = FilterColumns(FIELDS)
    columns.append({0: (None, None, float("nan"), None)}, 2)
    assert passing(columns, Exists("rating"), 2) == [0]
    assert passing(columns, Range("rating"), 2) == [0]
    assert passing(columns, Range("rating", gte=float("-inf")), 2) == []
    assert passing(columns, Not(Equals("rating", 1.0)), 2) == [0, 1]


def test_rows_without_a_field_pass_only_where_it_is_denied() -> None:
    columns = columns_of([{}, {"lang": "en"}, {"lang": []}])
    assert passing(columns, Equals("lang", "en"), 3) == [1]
    assert passing(columns, Not(Equals("lang", "en")), 3) == [0, 2]
    assert passing(columns, Exists("lang"), 3) == [1, 2]
    assert passing(columns, In("lang", ()), 3) == []


def test_without_declared_fields_there_is_nothing_to_keep() -> None:
    columns = FilterColumns(())
    columns.append({}, 1_000_000)
    assert columns.memory_bytes == 0
    assert columns.to_bytes(1_000_000) == b""


def test_a_bitmap_covers_all_rows_and_reads_false_behind_them() -> None:
    bits = packed_bits(np.array([0, 8, 9]), 17)
    assert bits.tolist() == [1, 3, 0]


def test_readers_beside_a_writer_see_the_rows_of_their_snapshot() -> None:
    columns = FilterColumns(FIELDS)
    table = [{"lang": "en" if row % 2 else "de", "year": row} for row in range(3_000)]
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            rows = columns.rows
            for filter_ in (Equals("lang", "en"), Range("year", gte=0)):
                found = passing(columns, filter_, rows)
                expected = [row for row in range(rows) if holds(filter_, table[row])]
                if found != expected:
                    wrong.append((filter_, rows))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for first in range(0, len(table), 10):
        columns.append(values_of(table[first : first + 10], first), first + 10)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


@pytest.mark.parametrize(
    ("table", "field", "row"),
    [
        ([{"year": 1.0}, {"year": 1.5}, {"lang": 3}], "metadata.year", 1),
        ([{"year": 1.0}, {"lang": 3}, {"year": 1.5}], "metadata.lang", 1),
        ([{"year": 1.0}, {"year": 2.0**63}], "metadata.year", 1),
        ([{"year": 1.0}, {}, {"year": "1"}], "metadata.year", 2),
        ([{"year": -(2.0**63)}, {"year": True}], "metadata.year", 1),
    ],
)
def test_the_first_row_with_a_value_of_another_type_is_named(
    table: list[dict[str, Any]], field: str, row: int
) -> None:
    with pytest.raises(InvalidParameter) as raised:
        declared_fields(CONFIG, packed(table))
    assert (raised.value.field, raised.value.row) == (field, row)
