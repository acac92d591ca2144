"""What a shard's ties contribute to answers, which several shards may share. Pure.

The shards of a collection hold rows alike. Of the k best rows of all, a shard holds a number b that
is binomial: `merged_chances`. Without ties, the shard must find its own b best, since no other
shard has them. Where many rows have the score of the last hit (bits, small integers, copies), any
will do, from any shard: what one lacks, the others have in excess, and even a better row that was
missed is replaced by one of the score of the last.

So the score of the last hit is expected to be that of one of the shard's rows. If it is that of a
crowd of ties, all that the shard has found up to there counts, up to the mean number of hits that
such an answer takes from a shard. Hits that are in no crowd are groups of one, and give what the
weights of `merged_chances` give. A shard alone has all k hits, and the last is of its last group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import merged_chances
from vectorshard.shard.types import Float64Array, Int64Array

CROWD_MIN: Final = 3
"""The ties of a crowd, at least. That others have them too is no assumption to make of a pair: of
rows that were written twice, both are here, and taking them for a crowd would tell .02 too much."""


@dataclass(frozen=True, slots=True)
class Ties:
    """The groups of true hits, best first, of one query after the other: crowds, and single hits.

    `hits` is the number of true hits of each query, int64 (queries,). The others are int64
    (groups,): the query of each, its first place, and the end of its places.
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
        query_of, begin = np.nonzero(begins)
        ends = hits[query_of]
        follows = np.flatnonzero(query_of[1:] == query_of[:-1])
        ends[follows] = begin[follows + 1]
        return cls(hits, query_of, begin, ends)

    def merged(self, k: int, shards: int) -> MergedTies:
        """Return what they contribute to the k best of all shards."""
        at_least = merged_chances(k, shards)
        chances = np.append(1.0, at_least) - np.append(at_least, 0.0)  # of b = 0 .. k
        numbers = np.arange(k + 1)
        kept = np.flatnonzero(self.begins < np.minimum(self.hits, k)[self.query_of])
        query_of, begin, end = self.query_of[kept], self.begins[kept], self.ends[kept]
        # With b hits, the last is of the group that holds the b-th, or of the next: of its ties,
        # none may be on this shard.
        is_last = np.append(query_of[1:] != query_of[:-1], True)
        share = 1 - 1 / (end - begin)  # of the chance that b hits end before a crowd
        next_share = np.where(is_last, 0.0, np.append(share[1:], 0.0))
        upto = np.where(is_last, k, np.minimum(end, k))
        hits = np.minimum(self.hits, k)[query_of]

        def summed(values: Float64Array) -> Float64Array:
            total = np.cumsum(values)
            of_group = total[upto] - total[begin] + share * values[begin]
            return np.asarray(of_group - next_share * values[np.minimum(end, k)])

        chance, needed = summed(chances), summed(chances * numbers)
        # A shard with fewer rows than hits gives them all.
        few = is_last & (hits < k)
        beyond = np.append(np.cumsum((chances * numbers)[::-1])[::-1], 0.0)[hits + 1]
        chance_beyond = np.append(np.cumsum(chances[::-1])[::-1], 0.0)[hits + 1]
        needed = np.where(few, needed - beyond + hits * chance_beyond, needed)
        return MergedTies(len(self.hits), query_of, begin, end, chance, needed)


@dataclass(frozen=True, slots=True)
class MergedTies:
    """For each group: the chance that the last hit of an answer is of it, and the hits that answers
    then take from this shard, times that chance. All (groups,), in the order of the queries.
    """

    queries: int
    query_of: Int64Array
    begins: Int64Array
    ends: Int64Array
    chances: Float64Array
    needed: Float64Array

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
        given = np.minimum(self.chances[:, None] * of_query, self.needed[:, None])
        asked = self.query_of[begins]
        total = np.add.reduceat(self.needed, begins)[:, None]
        recalls[asked] = np.minimum(np.add.reduceat(given, begins, axis=0) / total, 1.0)
        return recalls
