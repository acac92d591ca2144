"""The ids of a shard's rows, and an index from each id to its newest row. Pure.

Everything is in numpy arrays, without a Python object per row. Rows are identified by *position*,
so a compaction leaves no trace of the rows that it removes. Callers hold the tombstones.

There is one writer at a time. Other threads may read rows and ids that existed before their call,
without a lock: a full array is replaced, never resized, and a length is published last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.rows.slots import xxh3_64
from vectorshard.shard.types import BoolArray, IdArray, IdType, Int64Array, UInt8Array, UInt64Array

HashIds: TypeAlias = Callable[[IdArray], UInt64Array]

_Scalar = TypeVar("_Scalar", np.int64, np.uint8, np.uint64)

_ABSENT = -1
_TABLE_BITS_MIN = 10
_LENGTH_BYTES = 4


class IdColumn:
    """The id of every row, all of one type, append-only.

    INT64 ids are one int64 array; STRING ids are one arena of UTF-8 bytes and the offset of each.
    """

    def __init__(self, id_type: IdType) -> None:
        self._values = _Int64Values() if id_type is IdType.INT64 else _StringValues()
        self._rows = 0
        self.id_type = id_type

    def __len__(self) -> int:
        """The number of rows appended."""
        return self._rows

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated, including spare capacity."""
        return self._values.memory_bytes

    def append(self, ids: IdArray) -> None:
        """Append the ids of the next rows, (rows,) of the column's type."""
        self._values.append(ids)
        self._rows += len(ids)

    def extend_encoded(self, blob: bytes, rows: int) -> None:
        """Append `rows` ids as `encode_ids` wrote them.

        Raises RowStoreCorrupt if `blob` does not hold exactly that many; nothing is appended. It
        does not check that strings are UTF-8: `blob` is stored with a checksum.
        """
        self._values.extend_encoded(blob, rows)
        self._rows += rows

    def take(self, positions: Int64Array) -> IdArray:
        """Return the ids at `positions`, (rows,), which must have been appended."""
        return self._values.take(positions)

    def take_encoded(self, positions: Int64Array) -> bytes:
        """Return the ids at `positions` as `encode_ids` writes them, without creating strings."""
        return self._values.take_encoded(positions)


def encode_ids(id_type: IdType, ids: IdArray) -> bytes:
    """Return ids (rows,) as bytes for storage.

    INT64: little-endian int64s. STRING: the uint32 little-endian length in bytes of each, then the
    UTF-8 bytes of all.
    """
    if id_type is IdType.INT64:
        return ids.astype("<i8").tobytes()
    texts = [text.encode() for text in ids.tolist()]
    lengths = np.fromiter(map(len, texts), "<u4", len(texts))
    return lengths.tobytes() + b"".join(texts)


def decode_ids(id_type: IdType, blob: bytes, rows: int) -> IdArray:
    """Return the `rows` ids that `encode_ids` wrote to `blob`, (rows,).

    Raises RowStoreCorrupt if `blob` does not hold exactly that many ids.
    """
    if id_type is IdType.INT64:
        return _decoded_int64s(blob, rows)
    text, ends = _decoded_strings(blob, rows)
    try:
        return _strings(text.tobytes(), ends)
    except UnicodeDecodeError as error:
        raise RowStoreCorrupt(f"an id is not UTF-8: {error}") from error


class IdIndex:
    """The newest row of each id: an open-addressing hash table of positions, at most half full.

    A table entry is a row's position; its id is read from the column. The n-th probe of an id is
    n(n+1)/2 places after its first, which visits every place of a table whose size is a power of
    two (Knuth, The Art of Computer Programming 3, section 6.4) and needs fewer rounds than linear
    probing. All ids of a call advance together, one probe per round, so the work is vectorized.
    STRING ids are compared by their stored hashes first, then as strings.

    There is no delete. `lookup` may run during `put` and finds every id that was put before.

    Parameters
    ----------
    column
        The ids of the rows.
    hash_ids
        ids (rows,) -> uint64 (rows,). The *high* bits choose the first probe: the low bits of
        xxh3-64 determine the placement, so within a shard they are far from uniform.
    room
        The initial capacity, in ids.
    """

    def __init__(self, column: IdColumn, hash_ids: HashIds = xxh3_64, room: int = 0) -> None:
        self._column = column
        self._hash_ids = hash_ids
        self._hash_of_row: _Growing[np.uint64] | None = (
            _Growing(np.uint64) if column.id_type is IdType.STRING else None
        )
        self._table = _empty_table(max(_TABLE_BITS_MIN, _bits_for(room)))
        self._ids = 0

    def __len__(self) -> int:
        """The number of distinct ids."""
        return self._ids

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated, excluding the column."""
        kept = 0 if self._hash_of_row is None else self._hash_of_row.memory_bytes
        return self._table.nbytes + kept

    def lookup(self, ids: IdArray, hashes: UInt64Array | None = None) -> Int64Array:
        """Return the position of each id's newest row, -1 for unknown ids. int64 (ids,).

        `hashes`, uint64 (ids,), are what `hash_ids` returns for the ids, if they are known.
        """
        _, rows = self._find(ids, self._hash_ids(ids) if hashes is None else hashes)
        return rows

    @property
    def places(self) -> int:
        """The number of places of the table; it grows."""
        return len(self._table)

    def foreign_in(self, first: int, last: int) -> int:
        """Count the entries of the places [first, last) that no look-up should meet.

        Those that are no position of the column, and those whose id is not looked up there. A
        place beyond the table holds none.
        """
        table = self._table
        entries = table[first:last]
        places = np.flatnonzero(entries != _ABSENT) + first
        rows = table[places]
        known = (rows >= 0) & (rows < len(self._column))
        places, rows = places[known], rows[known]
        found, _ = self._find(self._column.take(rows), self.hashes(rows))
        return int(np.count_nonzero(~known)) + int(np.count_nonzero(found != places))

    def hashes(self, rows: Int64Array) -> UInt64Array:
        """Return the hashes of the ids of rows, by position. uint64 (rows,)."""
        if self._hash_of_row is None:
            return self._hash_ids(self._column.take(rows))
        return self._hash_of_row.take(rows)

    def put(self, ids: IdArray, rows: Int64Array, hashes: UInt64Array | None = None) -> None:
        """Make `rows`, positions where the column holds them already, the newest of distinct `ids`.

        Both are (ids,), and so are their `hashes` as in `lookup`. If memory runs out, existing ids
        keep their rows; some new ids may be entered.
        """
        if hashes is None:
            hashes = self._hash_ids(ids)
        if self._hash_of_row is not None:
            self._hash_of_row.write(rows, hashes)
        table = self._table
        positions, older = self._find(ids, hashes)
        absent = older == _ABSENT
        self._make_room(int(np.count_nonzero(absent)))
        if self._table is not table:
            positions, _ = self._find(ids, hashes)
        _place(self._table, hashes[absent], rows[absent])
        self._table[positions[~absent]] = rows[~absent]

    def put_new(self, rows: Int64Array, hashes: UInt64Array) -> None:
        """Enter rows of distinct new ids, by position, given their hashes."""
        if self._hash_of_row is not None:
            self._hash_of_row.write(rows, hashes)
        self._make_room(len(rows))
        _place(self._table, hashes, rows)

    def _find(self, ids: IdArray, hashes: UInt64Array) -> tuple[Int64Array, Int64Array]:
        """Return the last place probed for each id, and the row there: the id's own, or -1."""
        table = self._table
        positions = _first_positions(table, hashes)
        rows = table[positions]
        probing = np.flatnonzero(self._other(rows, ids, hashes))
        step = 0
        while len(probing):
            step += 1
            at = (positions[probing] + step) & (len(table) - 1)
            there = table[at]
            positions[probing] = at
            rows[probing] = there
            probing = probing[self._other(there, ids[probing], hashes[probing])]
        return positions, rows

    def _other(self, rows: Int64Array, ids: IdArray, hashes: UInt64Array) -> BoolArray:
        """Return whether each table entry is a row of another id than the given one."""
        taken: BoolArray = rows != _ABSENT
        if self._hash_of_row is None:
            taken &= self._column.take(rows) != ids
            return taken
        alike = np.flatnonzero(taken & (self._hash_of_row.take(rows) == hashes))
        taken[alike] = self._column.take(rows[alike]) != ids[alike]
        return taken

    def _make_room(self, ids: int) -> None:
        """Count `ids` new entries, and grow the table if it would be over half full."""
        self._ids += ids
        if 2 * self._ids <= len(self._table):
            return
        table = _empty_table(_bits_for(self._ids))
        rows = self._table[self._table != _ABSENT]
        _place(table, self.hashes(rows), rows)
        self._table = table


def _bits_for(ids: int) -> int:
    """Return the bits of the smallest table that `ids` fill at most half."""
    return max(0, 2 * ids - 1).bit_length()


def _empty_table(bits: int) -> Int64Array:
    return np.full(1 << bits, _ABSENT, np.int64)


def _first_positions(table: Int64Array, hashes: UInt64Array) -> Int64Array:
    """Return the first place to probe for each hash: its highest bits."""
    table_bits = len(table).bit_length() - 1
    return (hashes >> np.uint64(64 - table_bits)).astype(np.int64)


def _place(table: Int64Array, hashes: UInt64Array, rows: Int64Array) -> None:
    """Enter rows whose ids are not in the table. When several want one place, one gets it."""
    positions = _first_positions(table, hashes)
    step = 0
    while len(rows):
        step += 1
        free = table[positions] == _ABSENT
        table[positions[free]] = rows[free]
        waiting = table[positions] != rows
        rows = rows[waiting]
        positions = (positions[waiting] + step) & (len(table) - 1)


class _Growing(Generic[_Scalar]):
    """An array with spare capacity. A replaced array stays valid for its readers.

    Its capacity is at least one value, so that taking -1 is always safe, if meaningless.
    """

    def __init__(self, dtype: type[_Scalar]) -> None:
        self._array: npt.NDArray[_Scalar] = np.empty(1, dtype)
        self._length = 0

    @property
    def memory_bytes(self) -> int:
        return self._array.nbytes

    def append(self, values: npt.NDArray[_Scalar]) -> None:
        end = self._length + len(values)
        array = self._with_room(end)
        array[self._length : end] = values
        self._array = array
        self._length = end

    def write(self, at: Int64Array, values: npt.NDArray[_Scalar]) -> None:
        """Write values (values,) anywhere; gaps are undefined until written."""
        end = int(at.max(initial=-1)) + 1
        array = self._with_room(end)
        array[at] = values
        self._array = array
        self._length = max(self._length, end)

    def take(self, at: Int64Array) -> npt.NDArray[_Scalar]:
        return self._array[at]

    def _with_room(self, length: int) -> npt.NDArray[_Scalar]:
        """Return the array, or a copy of at least twice its size if `length` does not fit."""
        if length <= len(self._array):
            return self._array
        larger = np.empty(max(length, 2 * len(self._array)), self._array.dtype)
        larger[: self._length] = self._array[: self._length]
        return larger


class _Int64Values:
    """int64 ids, 8 bytes per row."""

    def __init__(self) -> None:
        self._ids = _Growing(np.int64)

    @property
    def memory_bytes(self) -> int:
        return self._ids.memory_bytes

    def append(self, ids: IdArray) -> None:
        self._ids.append(ids.astype(np.int64, copy=False))

    def extend_encoded(self, blob: bytes, rows: int) -> None:
        self._ids.append(_decoded_int64s(blob, rows))

    def take(self, positions: Int64Array) -> IdArray:
        return self._ids.take(positions)

    def take_encoded(self, positions: Int64Array) -> bytes:
        return encode_ids(IdType.INT64, self._ids.take(positions))


class _StringValues:
    """Contiguous UTF-8 strings in one arena; string p spans _ends[p] to _ends[p + 1]."""

    def __init__(self) -> None:
        self._arena = _Growing(np.uint8)
        self._ends = _Growing(np.int64)
        self._ends.append(np.zeros(1, np.int64))
        self._arena_bytes = 0

    @property
    def memory_bytes(self) -> int:
        return self._arena.memory_bytes + self._ends.memory_bytes

    def append(self, ids: IdArray) -> None:
        self.extend_encoded(encode_ids(IdType.STRING, ids), len(ids))

    def extend_encoded(self, blob: bytes, rows: int) -> None:
        text, ends = _decoded_strings(blob, rows)
        self._arena.append(text)
        self._ends.append(ends + self._arena_bytes)
        self._arena_bytes += len(text)

    def take(self, positions: Int64Array) -> IdArray:
        text, ends = self._texts(positions)
        return _strings(text.tobytes(), ends)

    def take_encoded(self, positions: Int64Array) -> bytes:
        text, ends = self._texts(positions)
        return np.diff(ends, prepend=0).astype("<u4").tobytes() + text.tobytes()

    def _texts(self, positions: Int64Array) -> tuple[UInt8Array, Int64Array]:
        """Return the bytes of some strings, and the end of each in them: int64 (positions,)."""
        begins = self._ends.take(positions)
        lengths = self._ends.take(positions + 1) - begins
        ends = np.cumsum(lengths)
        # Byte i of the result belongs to the first string that ends after it.
        places = np.repeat(begins + lengths - ends, lengths)
        places += np.arange(len(places))
        return self._arena.take(places), ends


def _decoded_int64s(blob: bytes, rows: int) -> Int64Array:
    if len(blob) != 8 * rows:
        raise RowStoreCorrupt(f"blob length {len(blob)} is not 8 * {rows} int64 ids")
    return np.frombuffer(blob, "<i8").astype(np.int64, copy=False)


def _decoded_strings(blob: bytes, rows: int) -> tuple[UInt8Array, Int64Array]:
    """Return the bytes of all strings, and the end of each in them: int64 (rows,)."""
    text_begins = _LENGTH_BYTES * rows
    if len(blob) < text_begins:
        raise RowStoreCorrupt(f"blob length {len(blob)} is less than 4 * {rows} string ids")
    ends = np.cumsum(np.frombuffer(blob, "<u4", rows), dtype=np.int64)
    text = np.frombuffer(blob, np.uint8, offset=text_begins) if rows else np.empty(0, np.uint8)
    if len(text) != (ends[-1] if rows else len(blob)):
        raise RowStoreCorrupt(f"blob length {len(blob)} does not match {rows} string ids")
    return text, ends


def _strings(text: bytes, ends: Int64Array) -> IdArray:
    """Split `text` into an object array of `str`, (rows,)."""
    bounds = [0, *ends.tolist()]
    strings = np.empty(len(ends), np.object_)
    strings[:] = [text[bounds[i] : bounds[i + 1]].decode() for i in range(len(ends))]
    return strings
