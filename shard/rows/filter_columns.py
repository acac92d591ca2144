"""Filter columns: one column over the row numbers for each declared field.

Columns only grow. A commit appends its rows before it publishes its snapshot, and a reader states
the number of rows of its snapshot: newer rows are cut off. So a result always belongs to that
snapshot, and taking a snapshot copies nothing. One thread appends, and any number of threads read
without a lock: each pyroaring method runs entirely under the GIL, and a full array is replaced,
not changed.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vectorshard.shard.filters import And, Condition, Equals, Exists, Filter, In, Not, Or, Range
from vectorshard.shard.types import FieldType, FilterField, Float64Array, Int64Array, UInt8Array

FieldValue: TypeAlias = tuple[str, ...] | float | bool | None
"""A declared field of one row: keywords, a number or a bool by its type; None if absent or null.
Numbers are float, as in metadata, including those of INT64."""

FieldValues: TypeAlias = tuple[FieldValue, ...]
"""All declared fields of one row, in order of declaration."""

_LENGTH: Final = struct.Struct("<Q")
_KEYWORD_BYTES: Final = 200  # of a keyword, its dict entry and an empty bitmap
_HELD_BYTES: Final = 2  # of a row in a bitmap, unless it is packed more tightly


class DamagedColumns(ValueError):
    """The bytes were not written by a `FilterColumns` with these fields."""


def _bitmap_of(rows: npt.NDArray[np.integer]) -> BitMap:
    # pyroaring takes an array.array as a whole, and anything else number by number.
    return BitMap(array("I", np.ascontiguousarray(rows, dtype=np.uint32).tobytes()))


def _below(rows: int) -> BitMap:
    return BitMap(range(rows))


@dataclass(slots=True)
class _KeywordColumn:
    """The rows of each keyword; a row with a list has several."""

    present: BitMap = field(default_factory=BitMap)
    by_keyword: dict[str, BitMap] = field(default_factory=dict)
    held: int = 0  # sum of the rows of all keywords

    def append(self, rows: Sequence[int], values: Sequence[FieldValue]) -> None:
        rows_of: dict[FieldValue, list[int]] = {}
        for row, value in zip(rows, values, strict=True):
            if value in rows_of:
                rows_of[value].append(row)
            else:
                rows_of[value] = [row]
        rows_of.pop(None, None)
        for keywords, alike in rows_of.items():
            assert isinstance(keywords, tuple)
            added = BitMap(array("I", alike))
            for keyword in keywords:
                if (held := self.by_keyword.get(keyword)) is None:
                    self.by_keyword[keyword] = added.copy()
                else:
                    held |= added
            self.present |= added
            self.held += len(keywords) * len(alike)

    def unlike(self, values: Mapping[int, FieldValue]) -> BitMap:
        """Return those rows that lack a keyword of theirs, or that the keywords follow."""
        wrong = _unlike_present(self.present, values)
        rows_of: dict[str, list[int]] = {}
        for row, value in values.items():
            for keyword in value or ():  # type: ignore[union-attr]
                rows_of.setdefault(keyword, []).append(row)
        for keyword, rows in rows_of.items():
            wrong |= BitMap(rows) - self.rows_with(keyword)
        return wrong

    def rewrite(self, row: int, value: FieldValue) -> None:
        assert value is None or isinstance(value, tuple)
        for rows in self.by_keyword.values():
            rows.discard(row)
        self.present.discard(row)
        self.append([row], [value])

    def rows_with(self, value: object) -> BitMap:
        return self.by_keyword.get(value) or BitMap()  # type: ignore[call-overload]

    def holding(self, condition: Condition, rows: int) -> BitMap:
        if isinstance(condition, Equals):
            return self.rows_with(condition.value)
        assert isinstance(condition, In)
        return reduce(or_, map(self.rows_with, condition.values), BitMap())

    def parts(self, rows: int) -> Iterator[bytes]:
        yield (self.present & _below(rows)).serialize()
        everything = _below(rows)
        by_keyword = [
            (keyword, cut)
            for keyword, bitmap in list(self.by_keyword.items())
            if (cut := bitmap & everything)
        ]
        yield _LENGTH.pack(len(by_keyword))
        for keyword, cut in by_keyword:
            yield keyword.encode()
            yield cut.serialize()

    def load(self, parts: Iterator[bytes]) -> None:
        self.present = BitMap.deserialize(next(parts))
        (keywords,) = _LENGTH.unpack(next(parts))
        for _ in range(keywords):
            keyword = next(parts).decode()
            self.by_keyword[keyword] = bitmap = BitMap.deserialize(next(parts))
            self.held += len(bitmap)

    @property
    def memory_bytes(self) -> int:
        """An estimate: to query many bitmaps would take too long."""
        keywords = len(self.by_keyword) * _KEYWORD_BYTES
        return _bitmap_bytes(self.present) + keywords + self.held * _HELD_BYTES


@dataclass(slots=True)
class _BoolColumn:
    """The rows that have a value, and those that are true."""

    present: BitMap = field(default_factory=BitMap)
    true: BitMap = field(default_factory=BitMap)

    def append(self, rows: Sequence[int], values: Sequence[FieldValue]) -> None:
        self.true |= BitMap([row for row, value in zip(rows, values, strict=True) if value])
        self.present |= _those_present(rows, values)

    def unlike(self, values: Mapping[int, FieldValue]) -> BitMap:
        true = BitMap([row for row, value in values.items() if value])
        return _unlike_present(self.present, values) | (true ^ (self.true & BitMap(list(values))))

    def rewrite(self, row: int, value: FieldValue) -> None:
        self.true.discard(row)
        self.present.discard(row)
        self.append([row], [value])

    def holding(self, condition: Condition, rows: int) -> BitMap:
        wanted = condition.values if isinstance(condition, In) else _value_of(condition)
        holding = self.true.copy() if True in wanted else BitMap()
        if False in wanted:
            holding |= self.present - self.true
        return holding

    def parts(self, rows: int) -> Iterator[bytes]:
        yield (self.present & _below(rows)).serialize()
        yield (self.true & _below(rows)).serialize()

    def load(self, parts: Iterator[bytes]) -> None:
        self.present = BitMap.deserialize(next(parts))
        self.true = BitMap.deserialize(next(parts))

    @property
    def memory_bytes(self) -> int:
        return _bitmap_bytes(self.present) + _bitmap_bytes(self.true)


@dataclass(slots=True)
class _NumberColumn:
    """The number of each row; NaN without one, which fails every comparison."""

    present: BitMap = field(default_factory=BitMap)
    numbers: Float64Array = field(default_factory=lambda: np.zeros(0))

    def append(self, rows: Sequence[int], values: Sequence[FieldValue]) -> None:
        present = _those_present(rows, values)
        if not present:
            return
        if present.max() >= len(self.numbers):
            grown = np.full(max(1_024, 2 * present.max()), np.nan)
            grown[: len(self.numbers)] = self.numbers
            self.numbers = grown
        if len(present) == len(rows):
            self.numbers[rows] = values
        else:
            for row, value in zip(rows, values, strict=True):
                if value is not None:
                    self.numbers[row] = value
        self.present |= present

    def unlike(self, values: Mapping[int, FieldValue]) -> BitMap:
        wrong = _unlike_present(self.present, values)
        rows = np.fromiter(values, dtype=np.int64, count=len(values))
        wanted = np.array(
            [np.nan if value is None else value for value in values.values()], dtype=np.float64
        )
        found = np.full(len(rows), np.nan)
        held = rows < len(self.numbers)
        found[held] = self.numbers[rows[held]]
        differ = (found != wanted) & ~(np.isnan(found) & np.isnan(wanted))
        return wrong | _bitmap_of(rows[differ])

    def rewrite(self, row: int, value: FieldValue) -> None:
        if row < len(self.numbers):
            self.numbers[row] = np.nan
        self.present.discard(row)
        self.append([row], [value])

    def holding(self, condition: Condition, rows: int) -> BitMap:
        numbers = self.numbers[:rows]
        if isinstance(condition, Range):
            holds = np.ones(len(numbers), dtype=np.bool_)
            for bound, compare in (
                (condition.gt, np.greater),
                (condition.gte, np.greater_equal),
                (condition.lt, np.less),
                (condition.lte, np.less_equal),
            ):
                if bound is not None:
                    holds &= compare(numbers, bound)
            return _bitmap_of(np.flatnonzero(holds)) & self.present
        wanted = condition.values if isinstance(condition, In) else _value_of(condition)
        return _bitmap_of(np.flatnonzero(np.isin(numbers, np.array(wanted, dtype=np.float64))))

    def parts(self, rows: int) -> Iterator[bytes]:
        yield (self.present & _below(rows)).serialize()
        yield self.numbers[:rows].astype("<f8", copy=False).tobytes()

    def load(self, parts: Iterator[bytes]) -> None:
        self.present = BitMap.deserialize(next(parts))
        self.numbers = np.frombuffer(next(parts), dtype="<f8").astype(np.float64)

    @property
    def memory_bytes(self) -> int:
        return self.numbers.nbytes + _bitmap_bytes(self.present)


_Column: TypeAlias = _KeywordColumn | _BoolColumn | _NumberColumn

_COLUMN_OF: Final[Mapping[FieldType, type[_Column]]] = {
    FieldType.KEYWORD: _KeywordColumn,
    FieldType.BOOL: _BoolColumn,
    FieldType.INT64: _NumberColumn,
    FieldType.DOUBLE: _NumberColumn,
}


def _value_of(condition: Condition) -> tuple[object, ...]:
    assert isinstance(condition, Equals)
    return (condition.value,)


def _unlike_present(present: BitMap, values: Mapping[int, FieldValue]) -> BitMap:
    """Return those rows whose value is there though it should not be, or the reverse."""
    wanted = BitMap([row for row, value in values.items() if value is not None])
    return wanted ^ (present & BitMap(list(values)))


def _those_present(rows: Sequence[int], values: Sequence[FieldValue]) -> BitMap:
    """Return the rows that have a value."""
    if None in values:
        rows = [row for row, value in zip(rows, values, strict=True) if value is not None]
    return BitMap(array("I", rows))


def _bitmap_bytes(bitmap: BitMap) -> int:
    statistics = bitmap.get_statistics()
    return (
        statistics["n_bytes_array_containers"]
        + statistics["n_bytes_run_containers"]
        + statistics["n_bytes_bitset_containers"]
    )


class FilterColumns:
    """The declared fields of a collection's rows. Without any there are no columns and no costs."""

    def __init__(self, fields: Sequence[FilterField]) -> None:
        self._fields = tuple(fields)
        self._columns = {each.name: _COLUMN_OF[each.type]() for each in fields}
        self.rows = 0
        """Rows appended, including those without metadata."""
        self.unknown: Int64Array = np.zeros(0, np.int64)
        """Damaged rows whose fields could not be read, ascending. They have none."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of bitmaps and numbers."""
        return sum(column.memory_bytes for column in self._columns.values())

    def append(self, values: Mapping[int, FieldValues], rows: int) -> None:
        """Append the rows up to `rows`, with `values` by row number; a row may have none."""
        if values and self._columns:
            numbers = list(values)
            of_columns = zip(*values.values(), strict=True)
            for column, of_column in zip(self._columns.values(), of_columns, strict=True):
                column.append(numbers, of_column)
        self.rows = rows

    # ---- what the scrub compares ----------------------------------------------------------------

    def unlike(self, values: Mapping[int, FieldValues]) -> BitMap:
        """Return those rows whose fields are not as in `values`.

        A keyword that a row has too many is not noticed: `count_among` counts them.
        """
        wrong = BitMap()
        for place, column in enumerate(self._columns.values()):
            wrong |= column.unlike({row: of_row[place] for row, of_row in values.items()})
        return wrong

    @property
    def keyword_fields(self) -> dict[str, int]:
        """The fields of keywords, and their places in FieldValues."""
        return {
            each.name: place
            for place, each in enumerate(self._fields)
            if each.type is FieldType.KEYWORD
        }

    def keywords(self) -> list[tuple[str, str]]:
        """Return the fields and keywords that there are now."""
        return [
            (name, keyword)
            for name in self.keyword_fields
            for keyword in list(self._keywords_of(name))
        ]

    def rows_with(self, name: str, keyword: str) -> BitMap:
        """Return the rows that a field's keyword holds, dead or alive."""
        return self._keywords_of(name).get(keyword) or BitMap()

    def _keywords_of(self, name: str) -> dict[str, BitMap]:
        column = self._columns[name]
        assert isinstance(column, _KeywordColumn)
        return column.by_keyword

    def rewrite(self, values: Mapping[int, FieldValues]) -> None:
        """Write the fields of rows again; nothing is appended meanwhile."""
        for row, of_row in values.items():
            for column, value in zip(self._columns.values(), of_row, strict=True):
                column.rewrite(row, value)

    def passing(self, filter_: Filter, rows: int) -> BitMap:
        """Return the rows below `rows`, dead or alive, that pass a validated filter."""
        return self._passing(filter_, rows, _below(rows))

    def _passing(self, filter_: Filter, rows: int, everything: BitMap) -> BitMap:
        if isinstance(filter_, And | Or):
            join = and_ if isinstance(filter_, And) else or_
            return reduce(join, (self._passing(each, rows, everything) for each in filter_.filters))
        if isinstance(filter_, Not):
            return everything - self._passing(filter_.filter, rows, everything)
        assert isinstance(filter_, Equals | In | Range | Exists)
        column = self._columns[filter_.field]
        if isinstance(filter_, Exists):
            return column.present & everything
        return column.holding(filter_, rows) & everything

    def to_bytes(self, rows: int) -> bytes:
        """Serialize the first `rows` rows, possibly while more are appended.

        Every part is preceded by its length; the columns are in order of declaration.
        """
        everything = bytearray()
        for column in self._columns.values():
            for part in column.parts(rows):
                everything += _LENGTH.pack(len(part)) + part
        return bytes(everything)

    @classmethod
    def from_bytes(
        cls, fields: Sequence[FilterField], rows: int, serialized: bytes
    ) -> FilterColumns:
        """Read what `to_bytes` wrote for `rows` rows.

        Raises DamagedColumns if `to_bytes` did not write it.
        """
        columns = cls(fields)
        parts = _parts_of(serialized)
        try:
            for column in columns._columns.values():
                column.load(parts)
        except (StopIteration, ValueError, IndexError, struct.error) as error:
            raise DamagedColumns(repr(error)) from error
        columns.rows = rows
        return columns


def _parts_of(serialized: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(serialized):
        (length,) = _LENGTH.unpack_from(serialized, at)
        at += _LENGTH.size
        if length > len(serialized) - at:  # pyroaring would read past the end of the bytes
            raise DamagedColumns(
                f"part length {length} at {at} exceeds the {len(serialized)} bytes"
            )
        yield serialized[at : at + length]
        at += length


def row_numbers(bitmap: BitMap) -> Int64Array:
    """Return the rows of a bitmap, ascending. int64."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint32).astype(np.int64)


def packed_bits(rows: Int64Array, rows_total: int) -> UInt8Array:
    """Return a bitmap of `rows_total` rows in FAISS's format.

    uint8 (ceil(rows_total / 8),): bit ``row % 8``, least significant first, of byte ``row // 8`` is
    set for each of `rows`.
    """
    mask = np.zeros(rows_total, dtype=np.bool_)
    mask[rows] = True
    return np.packbits(mask, bitorder="little")
