"""The dead rows: an immutable bitmap, replaced as a whole by every commit that kills rows. Pure.

A set bit means *dead*, so rows past the end of the bitmap are live: the index may hold rows that
are newer than the bitmap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vectorshard.shard.types import BoolArray, Int64Array, UInt8Array


def _no_bits() -> UInt8Array:
    return np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Tombstones:
    """Dead rows: bit `row % 8`, least significant first, of byte `row // 8` is set."""

    bits: UInt8Array = field(default_factory=_no_bits)
    count: int = 0

    def with_dead(self, rows: Int64Array) -> Tombstones:
        """Return these tombstones plus `rows`, which must be distinct and live."""
        if len(rows) == 0:
            return self
        bytes_needed = int(rows.max()) // 8 + 1
        bits = np.zeros(max(bytes_needed, len(self.bits)), dtype=np.uint8)
        bits[: len(self.bits)] = self.bits
        np.bitwise_or.at(bits, rows >> 3, (1 << (rows & 7)).astype(np.uint8))
        bits.flags.writeable = False
        return Tombstones(bits, self.count + len(rows))

    def rows_since(self, older: Tombstones) -> Int64Array:
        """Return the rows that died since `older`, ascending; every row dead then is dead now."""
        changed = self.bits.copy()
        changed[: len(older.bits)] ^= older.bits
        places = np.flatnonzero(changed)
        nth, bit = np.nonzero(np.unpackbits(changed[places, None], axis=1, bitorder="little"))
        return places[nth] * 8 + bit

    def are_dead(self, rows: Int64Array) -> BoolArray:
        """Return whether each of `rows`, all >= 0, is dead. bool (rows,)."""
        dead = np.zeros(len(rows), dtype=np.bool_)
        covered = np.flatnonzero(rows < 8 * len(self.bits))
        rows = rows[covered]
        dead[covered] = (self.bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1
        return dead

    def live_between(self, first: int, last: int) -> BoolArray | None:
        """Return a mask (last - first,) of the live rows in [first, last); None if all are live."""
        part = self.bits[first // 8 : (last + 7) // 8]
        if not part.any():
            return None
        live = np.ones(last - first, dtype=np.bool_)
        dead = np.unpackbits(part, bitorder="little")[first % 8 :][: last - first]
        live[: len(dead)] = dead == 0
        return live

    def live_rows(self, first: int, last: int, rows_max: int | None = None) -> Int64Array:
        """Return the live rows in [first, last), ascending, at most `rows_max` of them."""
        live = self.live_between(first, last)
        if live is None:
            return np.arange(first, last if rows_max is None else min(first + rows_max, last))
        return np.flatnonzero(live)[:rows_max] + first

    def count_between(self, first: int, last: int) -> int:
        """Count the dead rows in [first, last)."""
        live = self.live_between(first, last)
        return 0 if live is None else last - first - int(np.count_nonzero(live))
