"""How many rows each inverted list holds, how many of them live, and how many lists to probe. Pure.

Deletes leave an index whose lists are as many as before, and hold less. A search that probes as
many lists as the calibration found then sees fewer rows: fewer than k, or not the best of them. So
each query probes lists until they hold enough living rows, measured against its *own* lists at the
training: lists differ in size.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.index.growth import Growth
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import BoolArray, Float64Array, Int32Array, Int64Array

DEAD_SHARE_IGNORED: Final = 0.1
"""With a smaller share of dead rows in every list, searches probe the calibrated lists, unless a
few rows less need far more (`Growth.is_much`). The reserve of a calibration covers it, and ranking
lists for each query costs 5 % of a search in batches."""

HOLE_CANDIDATES: Final = 4
"""The candidates of a query in a hole, relative to those of the calibration: its hits are far away,
and their codes tell less."""

_HOLE_LOST: Final = 0.15, 0.25
"""A query lies in a hole if its lists lost more than this share of what they would have kept, had
rows been deleted at random: at least the first share and two standard deviations, or the second.
Under INNER_PRODUCT, the lists of a hole lie in many regions, and lose little more than others."""

_NOT_LOST: Final = 0.9
"""Of the first of these: queries that lost less are in no hole, which is quickly seen."""

_HOLE_ROWS: Final = 10
"""Times as many rows for such a query: its hits lie all around the hole. Where parts of the data
are unequally dense (d = 4 to 16, IVF_FLAT and IVF_SQ8, a target of .95), the recall in holes is
.95 to 1.0 with it, and .79 to .93 with 3 times. An exact scan bounds the cost."""

_ENOUGH: Final = 0.9  # of the living rows wanted: the lists are as good as those of the training

_RANKED_FIRST: Final = 1.5
_RANKED_MIN: Final = 16
"""The lists ranked for each query at first, relative to those expected. In batches, ranking four
times as many costs a third of a search; to rank all for a query that lacks some, little."""

_MOST_LISTS: Final = 0.5
"""Where more of the lists are probed, the others may hold few rows and yet what is missed: under
INNER_PRODUCT, the few rows far out. So the lists count there, not only the rows in them."""

_NO_HOLE: Final[BoolArray] = np.zeros(1, np.bool_)


class Occupancy:
    """The rows in each list: `held`, dead or alive, and `living`. int64 (nlist,).

    `rows` and `rows_living` are their sums. `is_even` says whether no list is empty or lost a share
    of its rows that matters, `none_empty` and `none_dead` whether each holds a row, and a living
    one. `largest` are the rows in the largest list.
    """

    def __init__(self, held: Int64Array, living: Int64Array) -> None:
        self.held, self.living = held, living
        self.rows, self.rows_living = int(held.sum()), int(living.sum())
        least = np.maximum((1 - DEAD_SHARE_IGNORED) * held, 1)
        self.is_even = bool(np.all(living >= least))
        self.largest = int(held.max(initial=0))
        self.none_empty, self.none_dead = bool(held.all()), bool(living.all())
        self._both = np.stack([held, living], axis=1)
        self._shares: tuple[Wanted, Shares] | None = None

    def counted(self, ranked: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the rows held and living in the first, first two .. of some lists; as `ranked`."""
        rows = self._both.take(ranked, axis=0).cumsum(axis=1)
        return rows[..., 0], rows[..., 1]

    def shares(self, wanted: Wanted) -> Shares:
        """Return what does not depend on the query; most searches want the same."""
        last = self._shares
        if last is None or last[0] != wanted:
            last = self._shares = wanted, Shares.of(self, wanted)
        return last[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The living rows that a query's lists must hold.

    Parameters
    ----------
    at_least
        Rows, whatever the lists held.
    calibrated
        Live rows at the calibration: the lists are compared with their size then.
    growth
        Of nprobe, as fewer rows live.
    """

    at_least: int
    calibrated: int
    growth: Growth

    @property
    def nprobe(self) -> int:
        """The calibrated number of lists."""
        return self.growth.parameters.nprobe


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

    def replaced(self, queries: Int64Array, others: Widths) -> Widths:
        """Return these with `others` in place of those of some queries, int64."""
        lists, widened, in_hole = self.lists.copy(), self.widened.copy(), self.in_hole.copy()
        lists[queries], widened[queries] = others.lists, others.widened
        in_hole[queries] = others.in_hole
        return Widths(lists, widened, in_hole)


@dataclass(frozen=True, slots=True)
class Shares:
    """What part of the rows held living rows are measured against.

    `scale` is the part that an index has grown to, `kept` the part that would live in each list had
    rows died at random, and `needed` the part that a query needs; `grown` is the number of lists
    that hold so many then, and `candidates` what it re-ranks.
    """

    scale: float
    kept: float
    needed: float
    grown: float
    candidates: int

    @classmethod
    def of(cls, occupancy: Occupancy, wanted: Wanted) -> Shares:
        """Return those of an index."""
        scale = min(1.0, wanted.calibrated / max(1, occupancy.rows))
        share = min(1.0, occupancy.rows_living / max(1.0, scale * occupancy.rows))
        nlist = len(occupancy.held)
        grown = float(wanted.growth.nprobe(nlist, share))
        needed = scale * share / wanted.nprobe * grown
        return cls(scale, share * scale, needed, grown, wanted.growth.candidates(share))


def lists_ranked_first(occupancy: Occupancy, wanted: Wanted) -> int:
    """Return how many lists to rank for each query: nearly always as many as it probes."""
    grown = max(wanted.nprobe, occupancy.shares(wanted).grown)
    return min(len(occupancy.held), max(_RANKED_MIN, math.ceil(_RANKED_FIRST * grown)))


def widths(occupancy: Occupancy, ranked: Int64Array, wanted: Wanted) -> Widths:
    """Return how many of its ranked lists each query must probe.

    Parameters
    ----------
    ranked
        int64 (queries, n): the lists nearest to each query, nearest first.
    """
    queries, most = ranked.shape
    if queries == 1 and (one := _width_of_one(occupancy, ranked[0], wanted)) is not None:
        return one
    held, living = occupancy.counted(ranked)
    usual: Int64Array | int  # the lists of the calibration
    too_few: BoolArray | np.bool_
    if occupancy.none_empty:
        usual = min(wanted.nprobe, most)
        too_few = np.bool_(usual < min(wanted.nprobe, len(occupancy.held)))
        usually_held, found = held[:, usual - 1], living[:, usual - 1]
    else:
        there = (occupancy.held[ranked] > 0).cumsum(axis=1)
        usual = np.maximum((there <= wanted.nprobe).sum(axis=1), 1)
        too_few = there[:, -1] < min(wanted.nprobe, np.count_nonzero(occupancy.held))
        at = np.arange(queries), usual - 1
        usually_held, found = held[at], living[at]
    needed, in_hole = _needed(occupancy, usually_held, found, wanted)
    lists = np.full(queries, usual)
    few = found < _ENOUGH * needed
    if few.any():
        wider = np.maximum((living < needed[:, None]).sum(axis=1) + 1, usual)
        lists = np.where(few, wider, usual)
    if wanted.nprobe > _MOST_LISTS * len(occupancy.held):
        lists = np.maximum(lists, _grown_lists(occupancy, usually_held, found, wanted))
    widened = lists != usual
    if too_few.any() or widened.any():
        lists[too_few | (lists > most)] = -1
    return Widths(lists, widened, in_hole)


def _width_of_one(occupancy: Occupancy, ranked: Int64Array, wanted: Wanted) -> Widths | None:
    """Return the width of one query by plain numbers: a third of the time, a tenth of a search.

    None if they do not suffice: it may lie in a hole, lists are empty, or most are probed.
    """
    nlist, most = len(occupancy.held), len(ranked)
    usual = min(wanted.nprobe, most)
    if not occupancy.none_empty or usual < wanted.nprobe or usual > _MOST_LISTS * nlist:
        return None
    shares = occupancy.shares(wanted)
    held = int(occupancy.held[ranked[:usual]].sum())
    living = occupancy.living[ranked].tolist()
    found = sum(living[:usual])
    if found < (1 - _NOT_LOST * _HOLE_LOST[0]) * (shares.kept * held):
        return None
    needed = min(max(shares.needed * held, wanted.at_least), occupancy.rows_living)
    lists = usual
    if found < _ENOUGH * needed:
        while found < needed and 0 < lists < most:
            found += living[lists]
            lists += 1
        if found < needed:
            lists = -1
    return Widths(np.array([lists]), np.array([lists != usual]), _NO_HOLE)


def _needed(
    occupancy: Occupancy, held: Int64Array, living: Int64Array, wanted: Wanted
) -> tuple[Float64Array, BoolArray]:
    """Return the living rows that each query's lists must hold, and whether it lies in a hole.

    `held` and `living` are the rows of its calibrated lists; all arrays are (queries,).
    """
    shares = occupancy.shares(wanted)
    needed = np.maximum(shares.needed * held, wanted.at_least)
    kept = shares.kept * held
    least, most = _HOLE_LOST
    in_hole = living < (1 - _NOT_LOST * least) * kept
    if in_hole.any():
        in_hole = kept - living > np.clip(2 * np.sqrt(kept), least * kept, most * kept)
        needed = np.where(in_hole, _HOLE_ROWS * needed, needed)
    return np.minimum(needed, occupancy.rows_living), in_hole


def _grown_lists(
    occupancy: Occupancy, held: Int64Array, living: Int64Array, wanted: Wanted
) -> Int64Array:
    """Return the lists that a query that probes most needs at least. (queries,)

    `held` and `living` are those of `_needed`; lists that lost nothing need no more.
    """
    nlist = len(occupancy.held)
    shares = np.minimum(1.0, living / np.maximum(1.0, occupancy.shares(wanted).scale * held))
    grown = wanted.growth.nprobe(nlist, shares)
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
