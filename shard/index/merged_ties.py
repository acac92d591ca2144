"""What a shard's ties contribute to answers, which several shards may share. Pure.

The shards of a collection hold rows alike. Of the k best rows of all, a shard holds a number b that
is binomial: `merged_chances`. Without ties, the shard must find its own b best, since no other
shard has them. Where many rows have the score of the last hit (bits, small integers, copies), any
will do, from any shard: what one lacks, the others have in excess, and even a better row that was
missed is replaced by one of the score of the last.

So the score of the last hit is expected to be that of one of the shard's rows. If that is a crowd
of ties, and the shard has g rows up to there, the others have a number B that is negative binomial,
given that all of them suffice, g + B >= k. The answer takes k g / (g + B) hits from this shard, and
all that the shard has found counts, up to that number. The mean of that is taken over all B: what
one answer has in excess is of no use to another. Hits that are in no crowd are groups of one, and
give what the weights of `merged_chances` give. A shard alone has all k hits, and the last is of its
last group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import merged_chances
from vectorshard.shard.types import Float64Array, Int64Array

CROWD_MIN: Final = 3
"""The ties of a crowd, at least. That others have them too is no assumption to make of a pair: of
rows that were written twice, both are here, and taking them for a crowd would tell .02 too much."""

TAKES: Final = 8  # quantiles of the hits that answers take from a shard


@dataclass(frozen=True, slots=True)
class Ties:
    """The groups of true hits, best first, of one query after the other: crowds, and single hits.

    Only queries with a crowd have groups: others take a fifth of the time without. `hits` is the
    number of true hits of each query, int64 (queries,). The others are int64 (groups,): the query
    of each, its first place, and the end of its places.
    """

    hits: Int64Array
    query_of: Int64Array
    begins: Int64Array
    ends: Int64Array

    @classmethod
    def of(cls, ranks: Int64Array, hits: Int64Array) -> Ties | None:
        """Return the groups; None if there is no crowd.

        `ranks`, int64 (queries, k), are those of the hits themselves: how many are better.
        """
        places = np.arange(ranks.shape[1])
        there = places < hits[:, None]
        if not there.any():
            return None
        begins = there & (ranks == places)
        group = np.cumsum(begins) - 1  # over all queries
        sizes = np.bincount(group[there.ravel()])
        crowded = (sizes >= CROWD_MIN)[group].reshape(ranks.shape) & there
        if not crowded.any():
            return None
        begins |= there & ~crowded
        begins &= crowded.any(axis=1)[:, None]
        query_of, begin = np.nonzero(begins)
        ends = hits[query_of]
        follows = np.flatnonzero(query_of[1:] == query_of[:-1])
        ends[follows] = begin[follows + 1]
        return cls(hits, query_of, begin, ends)

    def merged(self, k: int, shards: int) -> MergedTies:
        """Return what they contribute to the k best of all shards."""
        kept = np.flatnonzero(self.begins < np.minimum(self.hits, k)[self.query_of])
        query_of, begin, end = self.query_of[kept], self.begins[kept], self.ends[kept]
        in_crowd = end - begin >= CROWD_MIN
        is_first = np.append(True, query_of[1:] != query_of[:-1])
        is_last = np.append(is_first[1:], True)
        singles, crowds = _chances_of_last(k, shards)
        by_score = in_crowd | np.append(in_crowd[1:], False)  # ends where a crowd ends or begins
        until = np.where(by_score, crowds[np.minimum(end, k)], singles[np.minimum(end, k)])
        until[is_last] = 1.0
        before = np.append(0.0, until[:-1])
        before[is_first] = np.where(in_crowd[is_first], 0.0, singles[0])
        takes = np.repeat(end[:, None].astype(np.float64), TAKES, axis=1)
        crowd_ends, which = np.unique(end[in_crowd], return_inverse=True)
        if len(crowd_ends):
            taken = [hits_taken(k, shards, rows) for rows in crowd_ends.tolist()]
            takes[in_crowd] = np.array(taken)[which]
        chances = np.maximum(until - before, 0.0)
        # Each answer counts as k / shards hits; of single hits, the mean of b is that.
        chances[in_crowd] *= k / shards / takes[in_crowd].mean(axis=1)
        return MergedTies(len(self.hits), query_of, begin, end, chances, takes)


def _chances_of_last(k: int, shards: int) -> tuple[Float64Array, Float64Array]:
    """Return the chances that the last hit is at most as bad as a shard's r-th row, r = 0 .. k.

    Two arrays (k + 1,): where rows have scores of their own, so that no more than r hits are of
    this shard, and where others have rows of the same score as the r-th.
    """
    singles = 1.0 - np.append(merged_chances(k, shards), 0.0)
    crowds = np.append(0.0, 1.0 - np.append(merged_chances(k - 1, shards), 0.0))
    return singles, crowds


@lru_cache(maxsize=4_096)
def hits_taken(k: int, shards: int, rows: int) -> tuple[float, ...]:
    """Return quantiles of the hits that an answer takes from a shard whose `rows` rows are up to
    the score of the last, which others have too. TAKES of them.
    """
    if shards == 1:
        return (float(min(k, rows)),) * TAKES
    mean, least = rows * (shards - 1), max(0, k - rows)
    others = np.arange(max(k, int(mean + 8 * math.sqrt(mean * shards)) + 8))
    steps = np.log((rows + others) / (others + 1)) + math.log1p(-1 / shards)
    logs = np.append(0.0, np.cumsum(steps))[least:]
    others = np.arange(len(logs)) + least
    chances = np.exp(logs - logs.max())
    below = np.cumsum(chances) / chances.sum()
    at = np.searchsorted(below, (np.arange(TAKES) + 0.5) / TAKES)
    return tuple((k * rows / (rows + others[at])).tolist())


@dataclass(frozen=True, slots=True)
class MergedTies:
    """For each group, what answers need whose last hit is of it, in the order of the queries.

    `takes` float64 (groups, TAKES) are numbers of hits that they take from this shard, equally
    likely; `chances` float64 (groups,) weigh them. The others are int64 (groups,).
    """

    queries: int
    query_of: Int64Array
    begins: Int64Array
    ends: Int64Array
    chances: Float64Array
    takes: Float64Array

    def recalls(
        self,
        query_of: Int64Array,
        ranks: Int64Array,
        ordinals: Int64Array,
        columns: Int64Array,
        tried: int,
    ) -> Float64Array:
        """Return the recall of each query with each number of candidates. float64 (queries, tried).

        Parameters
        ----------
        query_of, ranks, ordinals, columns
            int64 (found,): the query of each true hit found, its rank, its place among those found,
            as `FoundHits` counts, and the first number of candidates that includes it, `tried` if
            none does.
        """
        if not len(self.begins):
            return np.ones((self.queries, tried))
        width = 1 + max(int(self.ends.max()), int(ordinals.max(initial=0)))
        keys = self.query_of * width + self.begins  # ascending
        of_rank = np.searchsorted(keys, query_of * width + ranks, side="right") - 1
        of_place = np.searchsorted(keys, query_of * width + ordinals, side="right") - 1
        in_crowd = self.ends[of_rank] - self.begins[of_rank] >= CROWD_MIN
        group = np.where(in_crowd, of_rank, of_place)
        place = np.where(in_crowd, ranks, ordinals)
        good = (self.query_of[group] == query_of) & (place < self.ends[group])
        cells = group[good] * (tried + 1) + columns[good]
        counts = np.bincount(cells, minlength=len(keys) * (tried + 1))
        counts = counts.reshape(len(keys), tried + 1)[:, :tried].cumsum(axis=1).cumsum(axis=0)
        recalls = np.ones((self.queries, tried))
        begins = np.flatnonzero(np.append(True, self.query_of[1:] != self.query_of[:-1]))
        sizes = np.diff(np.append(begins, len(keys)))
        before = np.concatenate([np.zeros((1, tried), counts.dtype), counts])[begins]
        of_query = counts - np.repeat(before, sizes, axis=0)
        given = self.chances[:, None] * self._taken(of_query)
        needed = self.chances * self.takes.mean(axis=1)
        asked = self.query_of[begins]
        total = np.add.reduceat(needed, begins)[:, None]
        recalls[asked] = np.minimum(np.add.reduceat(given, begins, axis=0) / total, 1.0)
        return recalls

    def _taken(self, found: Int64Array) -> Float64Array:
        """Return the mean number of hits taken of those `found` up to each group. As `found`."""
        taken = np.minimum(found, self.takes[:, :1])
        crowds = np.flatnonzero(self.ends - self.begins >= CROWD_MIN)
        of_crowds = np.zeros((len(crowds), found.shape[1]))
        for take in self.takes[crowds].T:
            of_crowds += np.minimum(found[crowds], take[:, None])
        taken[crowds] = of_crowds / TAKES
        return np.asarray(taken)
