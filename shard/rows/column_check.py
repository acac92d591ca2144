"""Compares filter columns with the metadata that they are made of. Pure.

The values of a row never change, so rows that are checked at different times add up: each keyword
must hold the rows that have it, and among all checked rows no more than these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from pyroaring import BitMap

from vectorshard.shard.rows.filter_columns import FieldValues, FilterColumns, row_numbers
from vectorshard.shard.types import Int64Array


class ColumnCheck:
    """One check of filter columns, from the first row to the last."""

    def __init__(self, columns: FilterColumns) -> None:
        self._columns = columns
        self._checked = BitMap()
        self._counts = {name: Counter[str]() for name in columns.keyword_fields}

    def wrong_rows(self, values: Mapping[int, FieldValues]) -> Int64Array:
        """Check rows whose fields should be `values`; return those that differ, ascending."""
        wrong = self._columns.unlike(values)
        for name, place in self._columns.keyword_fields.items():
            sound = (set(of_row[place] or ()) for row, of_row in values.items() if row not in wrong)  # type: ignore[arg-type]
            self._counts[name].update(chain.from_iterable(sound))
        self._checked |= BitMap(list(values)) - wrong
        return row_numbers(wrong)

    def wrong_keywords(self, keywords: Sequence[tuple[str, str]]) -> Int64Array:
        """Check keywords of fields after all rows; return rows that one may hold by mistake."""
        suspects = BitMap()
        for name, keyword in keywords:
            held = self._columns.rows_with(name, keyword)
            if held.intersection_cardinality(self._checked) != self._counts[name][keyword]:
                suspects |= held & self._checked
        return row_numbers(suspects)
