"""How many rows each inverted list holds, how many of them live, and how many lists to probe. Pure.

Deletes leave an index whose lists are as many as before, and hold less. A search that probes as
many lists as the calibration found then sees fewer rows: fewer than k, or not the best of them. So
each query probes lists until they hold enough living rows, measured against its *own* lists at the
training: lists differ in size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import BoolArray, Float64Array, Int32Array, Int64Array

DEAD_SHARE_IGNORED: Final = 0.1
"""With a smaller share of dead rows in every list, searches probe the calibrated lists. The reserve
of a calibration covers it, and ranking lists for each query costs 5 % of a search in batches."""

HOLE_CANDIDATES: Final = 4
"""The candidates of a query in a hole, relative to those of the calibration: its hits are far away,
and their codes tell less."""

_HOLE_LOST: Final = 0.15, 0.25
"""A query lies in a hole if its lists lost more than this share of what they would have kept, had
rows been deleted at random: at least the first share and two standard deviations, or the second.
Under INNER_PRODUCT, the lists of a hole lie in many regions, and lose little more than others."""

_HOLE_ROWS: Final = 10
"""Times as many rows for such a query: its hits lie all around the hole. Where parts of the data
are unequally dense (d = 4 to 16, IVF_FLAT and IVF_SQ8, a target of .95), the recall in holes is
.95 to 1.0 with it, and .79 to .93 with 3 times. An exact scan bounds the cost."""

_ENOUGH: Final = 0.9  # of the living rows wanted: the lists are as good as those of the training

_MOST_LISTS: Final = 0.5
"""Where more of the lists are probed, the others may hold few rows and yet what is missed: under
INNER_PRODUCT, the few rows far out. So the lists count there, not only the rows in them."""


def probed_odds(nprobe: int, nlist: int) -> float:
    """Return lists probed by lists left out, one more than there are: all of them are finite."""
    probed = min(nprobe, nlist)
    return probed / (nlist + 1 - probed)


def grown_nprobe(
    nprobe: int, nlist: int, growth: float, shares: Float64Array | float
) -> Float64Array:
    """Return the lists that find with each share of the rows what `nprobe` find with all.

    The odds grow as a power of 1 / share. For few lists that is nprobe itself; for nearly all, no
    power of nprobe would be left below nlist.
    """
    odds = probed_odds(nprobe, nlist) * np.maximum(shares, 1e-9) ** -growth
    return np.asarray((nlist + 1) * odds / (1 + odds))


class Occupancy:
    """The rows in each list: `held`, dead or alive, and `living`. int64 (nlist,).

    `rows` and `rows_living` are their sums. `is_even` says whether no list is empty or lost a share
    of its rows that matters.
    """

    def __init__(self, held: Int64Array, living: Int64Array) -> None:
        self.held, self.living = held, living
        self.rows, self.rows_living = int(held.sum()), int(living.sum())
        least = np.maximum((1 - DEAD_SHARE_IGNORED) * held, 1)
        self.is_even = bool(np.all(living >= least))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The living rows that a query's lists must hold.

    Parameters
    ----------
    nprobe
        The calibrated number of lists.
    at_least
        Rows, whatever the lists held.
    trained
        Rows of the index when it was trained: the lists are compared with their size then.
    growth
        The exponent by which the odds of nprobe grow with k: with a share s of the rows left, the k
        best are where the best k / s were.
    """

    nprobe: int
    at_least: int
    trained: int
    growth: float


@dataclass(frozen=True, slots=True)
class Widths:
    """How many of its nearest lists each query probes; arrays (queries,).

    `lists` int64 counts empty lists too; -1 if the ranked lists are too few or hold too few rows.
    `widened` and `in_hole` are bool: queries that probe more lists than calibrated, and those that
    lie in a hole.
    """

    lists: Int64Array
    widened: BoolArray
    in_hole: BoolArray


def calibrated_suffices(occupancy: Occupancy, ranked: Int64Array, wanted: Wanted) -> bool:
    """Whether `widths` would choose the calibrated lists for every query.

    `ranked` is int64 (queries, nprobe). After random deletes that is often so, and quickly found.
    """
    held, found = occupancy.held[ranked], occupancy.living[ranked].sum(axis=1)
    needed, in_hole = _needed(occupancy, held.sum(axis=1), found, wanted)
    if in_hole.any() or not held.all() or (found < _ENOUGH * needed).any():
        return False
    return bool((_grown_lists(occupancy, held.sum(axis=1), found, wanted) <= wanted.nprobe).all())


def widths(occupancy: Occupancy, ranked: Int64Array, wanted: Wanted) -> Widths:
    """Return how many of its ranked lists each query must probe.

    Parameters
    ----------
    ranked
        int64 (queries, n): the lists nearest to each query, nearest first.
    """
    held, living = occupancy.held[ranked], occupancy.living[ranked].cumsum(axis=1)
    counted = (held > 0).cumsum(axis=1) <= wanted.nprobe  # the lists of the calibration
    usual = np.maximum(counted.sum(axis=1), 1)
    found = living[np.arange(len(ranked)), usual - 1]
    needed, in_hole = _needed(occupancy, (held * counted).sum(axis=1), found, wanted)
    lists = np.maximum((living < needed[:, None]).sum(axis=1) + 1, usual)
    lists = np.where(found >= _ENOUGH * needed, usual, lists)
    lists = np.maximum(lists, _grown_lists(occupancy, (held * counted).sum(axis=1), found, wanted))
    nprobe = min(wanted.nprobe, np.count_nonzero(occupancy.held))
    too_few = (counted & (held > 0)).sum(axis=1) < nprobe
    lists[too_few | (lists > ranked.shape[1])] = -1
    return Widths(lists, lists != usual, in_hole)


def _needed(
    occupancy: Occupancy, held: Int64Array, living: Int64Array, wanted: Wanted
) -> tuple[Float64Array, BoolArray]:
    """Return the living rows that each query's lists must hold, and whether it lies in a hole.

    `held` and `living` are the rows of its calibrated lists; all arrays are (queries,).
    """
    scale = min(1.0, wanted.trained / max(1, occupancy.rows))
    share = min(1.0, occupancy.rows_living / max(1.0, scale * occupancy.rows))
    kept = (share * scale) * held
    least, most = _HOLE_LOST
    in_hole = kept - living > np.clip(2 * np.sqrt(kept), least * kept, most * kept)
    grown = grown_nprobe(wanted.nprobe, len(occupancy.held), wanted.growth, share)
    needed = np.maximum((scale * share / wanted.nprobe * grown) * held, wanted.at_least)
    if in_hole.any():
        needed = np.where(in_hole, _HOLE_ROWS * needed, needed)
    return np.minimum(needed, occupancy.rows_living), in_hole


def _grown_lists(
    occupancy: Occupancy, held: Int64Array, living: Int64Array, wanted: Wanted
) -> Int64Array:
    """Return the lists that a query that probes most needs at least, by `grown_nprobe`. (queries,)

    `held` and `living` are those of `_needed`; lists that lost nothing need no more.
    """
    nlist = len(occupancy.held)
    if wanted.nprobe <= _MOST_LISTS * nlist:
        return np.zeros(len(held), np.int64)
    scale = min(1.0, wanted.trained / max(1, occupancy.rows))
    shares = np.minimum(1.0, living / np.maximum(1.0, scale * held))
    grown = grown_nprobe(wanted.nprobe, nlist, wanted.growth, shares)
    return np.minimum(np.rint(grown), nlist).astype(np.int64)


class ListedRows:
    """The list of every row of an index, and how full the lists are as rows come and die.

    Not thread-safe. `rows` int64, ascending, and `lists` int32, both (rows,), are what it holds.
    """

    def __init__(self, rows: Int64Array, lists: Int32Array, nlist: int) -> None:
        self._rows, self._lists = rows, lists
        self._used = len(rows)
        self._held = np.bincount(lists, minlength=nlist)
        self._living = np.zeros(nlist, np.int64)
        self._checked = 0  # of the rows: `_living` counts them, without those of `_tombstones`
        self._tombstones = Tombstones()

    def add(self, rows: Int64Array, lists: Int64Array) -> None:
        """Note rows that were added to the index, and their lists. They must be the newest."""
        last = self._used + len(rows)
        if last > len(self._rows):  # doubled, so that a few rows seldom copy them all
            self._rows = np.resize(self._rows, 2 * last)
            self._lists = np.resize(self._lists, 2 * last)
        self._rows[self._used : last], self._lists[self._used : last] = rows, lists
        self._used = last
        self._held = self._held + np.bincount(lists, minlength=len(self._held))

    def occupancy(self, tombstones: Tombstones) -> Occupancy:
        """Return how full the lists are under these tombstones, or newer ones seen before."""
        if tombstones.count > self._tombstones.count:
            self._subtract(tombstones.rows_since(self._tombstones))
            self._tombstones = tombstones
        new = slice(self._checked, self._used)
        alive = ~self._tombstones.are_dead(self._rows[new])
        self._living = self._living + self._counted(self._lists[new][alive])
        self._checked = self._used
        return Occupancy(self._held, self._living)

    def _subtract(self, dead: Int64Array) -> None:
        """Subtract rows that died, if they are rows of the index that `_living` counts."""
        if self._checked:
            rows = self._rows[: self._checked]
            at = np.minimum(np.searchsorted(rows, dead), self._checked - 1)
            self._living = self._living - self._counted(self._lists[at[rows[at] == dead]])

    def _counted(self, lists: Int32Array) -> Int64Array:
        return np.bincount(lists, minlength=len(self._held))


class OccupancyCounts:
    """The occupancy of one index, counted when a search asks. Thread-safe.

    Parameters
    ----------
    sizes
        Returns the rows of each list, dead or alive. int64 (nlist,).
    rows_and_lists
        Returns what `ListedRows` takes: called once, for the first dead row (15 ns a row).
    """

    def __init__(
        self,
        sizes: Callable[[], Int64Array],
        rows_and_lists: Callable[[], tuple[Int64Array, Int32Array, int]],
    ) -> None:
        self._sizes, self._rows_and_lists = sizes, rows_and_lists
        self._lock = threading.Lock()
        self._listed: ListedRows | None = None
        self._last: tuple[Tombstones, int, Occupancy] | None = None

    @property
    def follows_rows(self) -> bool:
        """Whether `add` must be called for rows that are added."""
        return self._listed is not None

    def add(self, rows: Int64Array, lists: Int64Array) -> None:
        """Note rows that were added, while nothing else uses the index."""
        if self._listed is not None:
            self._listed.add(rows, lists)

    def of(self, tombstones: Tombstones, rows: int) -> Occupancy:
        """Return how full the lists are. `rows` is the number of rows in the index."""
        last = self._last
        if last is None or last[0] is not tombstones or last[1] != rows:
            with self._lock:
                if self._listed is None and tombstones.count:
                    self._listed = ListedRows(*self._rows_and_lists())
                if self._listed is None:
                    held = self._sizes()
                    found = Occupancy(held, held)
                else:
                    found = self._listed.occupancy(tombstones)
                last = self._last = tombstones, rows, found
        return last[2]

    def are_even(self, tombstones: Tombstones, rows: int) -> bool:
        """Whether the calibrated number of lists is right: see `Occupancy.is_even`."""
        last = self._last
        if last is not None and last[0] is tombstones and last[2].is_even:
            return True  # without further deletes, lists only grow
        return self.of(tombstones, rows).is_even
