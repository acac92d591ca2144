"""The map from row numbers to positions in the row file, and back. Immutable and pure.

A row's number never changes; its position does, because a compaction removes dead rows. Before the
first compaction the map is the identity and costs nothing. Afterwards a bit for each row below
`compacted_until` records whether it was kept, and a running count for every 64 bits makes a
position one lookup and one popcount: 0.19 bytes for every row ever accepted. The rows from
`compacted_until` on follow the kept ones, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import BoolArray, Int64Array, UInt32Array, UInt64Array

_WORD_BITS = 64
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True, eq=False)
class RowMap:
    """The identity by default; `of_kept` builds any other map.

    Bit `row % 64`, least significant first, of `_words[row // 64]` is set for kept rows, and
    `_kept_before[word]` counts the kept rows before that word. `compacted_until` itself has a word.
    """

    compacted_until: int = 0  # rows below this are in the file only if they were kept
    kept: int = 0  # how many of these were kept
    _words: UInt64Array = field(default_factory=lambda: np.zeros(1, "<u8"))
    _kept_before: UInt32Array = field(default_factory=lambda: np.zeros(1, np.uint32))

    @classmethod
    def of_kept(cls, rows: Int64Array, compacted_until: int) -> RowMap:
        """Return the map of a file with `rows`, ascending, of those below `compacted_until`."""
        words = np.zeros(compacted_until // _WORD_BITS + 1, "<u8")
        bits = _ONE << (rows % _WORD_BITS).astype(np.uint64)
        places = rows // _WORD_BITS
        if len(rows):
            begins = np.flatnonzero(np.diff(places, prepend=-1))
            words[places[begins]] = np.bitwise_or.reduceat(bits, begins)
        counts = np.bitwise_count(words).astype(np.uint32)
        kept_before = np.cumsum(counts, dtype=np.uint32) - counts
        return cls(compacted_until, len(rows), words, kept_before)

    @property
    def is_identity(self) -> bool:
        """Whether every row's position equals its number."""
        return self.kept == self.compacted_until

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated."""
        return self._words.nbytes + self._kept_before.nbytes

    def rows(self, positions: int) -> int:
        """Return the number of rows ever committed, given the positions in the file."""
        return positions + self.compacted_until - self.kept

    def of(self, rows: Int64Array) -> Int64Array:
        """Return the position of each of `rows`, all >= 0. int64, of the same shape.

        For a removed row it is the position of the next kept one, so the rows of [first, last) are
        at [of(first), of(last)).
        """
        if self.is_identity:
            return rows
        below = np.minimum(rows, self.compacted_until)
        places = below // _WORD_BITS
        lower_bits = (_ONE << (below % _WORD_BITS).astype(np.uint64)) - _ONE
        positions: Int64Array = rows - below
        positions += np.bitwise_count(self._words[places] & lower_bits)
        positions += self._kept_before[places]
        return positions

    def of_padded(self, rows: Int64Array) -> Int64Array:
        """Return the position of each of `rows`, keeping FAISS's padding -1."""
        if self.is_identity:
            return rows
        return np.where(rows < 0, -1, self.of(np.maximum(rows, 0)))

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the positions [first, last) of the rows in [first, last)."""
        begin, end = self.of(np.array([first, last], dtype=np.int64)).tolist()
        return begin, end

    def rows_at(self, positions: Int64Array) -> Int64Array:
        """Return the row at each of `positions` (positions,), all >= 0. int64 (positions,)."""
        if self.is_identity:
            return positions
        rows = positions + (self.compacted_until - self.kept)
        below = np.flatnonzero(positions < self.kept)
        wanted = positions[below].astype(np.uint32)
        places = np.searchsorted(self._kept_before, wanted, side="right") - 1
        nth = wanted - self._kept_before[places]
        rows[below] = places * _WORD_BITS + _nth_bit(self._words[places], nth)
        return rows

    def hold(self, rows: Int64Array) -> BoolArray:
        """Return whether each of `rows` (rows,), all >= 0, has a position. bool (rows,)."""
        below = np.minimum(rows, self.compacted_until)
        bits = self._words[below // _WORD_BITS] >> (below % _WORD_BITS).astype(np.uint64)
        kept: BoolArray = (bits & _ONE).astype(np.bool_)
        return kept | (rows >= self.compacted_until)

    def hold_between(self, first: int, last: int) -> BoolArray | None:
        """Return a mask of the rows in [first, last) with a position; None if all have one."""
        if self.is_identity or first >= self.compacted_until:
            return None
        held = np.ones(last - first, dtype=np.bool_)
        until = min(last, self.compacted_until)
        part = self._words[first // _WORD_BITS : -(-until // _WORD_BITS)].view(np.uint8)
        bits = np.unpackbits(part, bitorder="little")[first % _WORD_BITS :]
        held[: until - first] = bits[: until - first]
        return held

    def tombstones(self) -> Tombstones:
        """Return the tombstones of the removed rows: they are all dead."""
        bits = ~self._words.view(np.uint8)[: -(-self.compacted_until // 8)]
        if self.compacted_until % 8:
            bits[-1] &= (1 << self.compacted_until % 8) - 1
        bits.flags.writeable = False
        return Tombstones(bits, self.compacted_until - self.kept)


def _nth_bit(words: UInt64Array, nth: UInt32Array) -> Int64Array:
    """Return the place of the `nth` set bit, both from 0, of each word. All (words,)."""
    nth = nth.copy()
    words = words.copy()
    at = np.zeros(len(words), dtype=np.int64)
    for width in (32, 16, 8, 4, 2, 1):
        in_lower_half = np.bitwise_count(words & np.uint64((1 << width) - 1))
        upper = np.flatnonzero(nth >= in_lower_half)
        nth[upper] -= in_lower_half[upper]
        words[upper] >>= np.uint64(width)
        at[upper] += width
    return at
