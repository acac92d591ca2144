"""Searches of 4-bit codes by FAISS's fast scan, one result whatever the number of queries.

FAISS ranks the lists of few queries by other arithmetic than those of many, and scans them in an
order that depends on its implementation: of the rows whose codes tie with the last candidate's, it
keeps others. Here the lists of a query are those of exact arithmetic, and are scanned in the order
of their numbers. So the fastest implementation can be chosen for each search.
"""

from __future__ import annotations

from typing import Final

import faiss
import numpy as np

from vectorshard.shard.types import Float32Array, Int64Array, Metric

PQ_BITS: Final = 4  # of a sub-quantizer's code, as fast scan requires: 32 codes fit one register
PQ_WIDE_DIM: Final = 256
"""From this dim on, a sub-quantizer codes four components; below it, two. Fewer sub-quantizers make
a scan cheaper and its order coarser, which more candidates compensate. Each component of a wide
embedding matters less (`python -m benchmarks --only codes`)."""

PQ_CENTROIDS: Final = 1 << PQ_BITS

EACH_ALONE: Final = 11
"""FAISS's `implem` that scans the lists of one query after the other."""

LIST_BY_LIST: Final = 13
"""The one that scans a list for all queries that probe it, FAISS's default for 32 codes a block."""

SHARED_LISTS: Final = 0.5
"""Queries for each list from which on LIST_BY_LIST is the faster one: on an EPYC with AVX2, alone
it takes 1.2 to 1.7 times as long, with 64 queries .5 to .75 times. With AVX-512, EACH_ALONE takes
.8 to .95 times as long with any number of queries."""

_FAST_SCAN_BLOCK: Final = 32  # codes scanned at once
_UNIT_ROUNDOFF: Final = 2.0**-24  # of float32
_ROUNDINGS: Final = 16  # of a score, in addition to one per component


def shared_lists_min(simd_level: int) -> float:
    """Return the queries for each list from which on LIST_BY_LIST serves, for a level of FAISS."""
    wide = simd_level >= faiss.SIMDLevel_AVX512 and simd_level < faiss.SIMDLevel_ARM_NEON
    return float("inf") if wide else SHARED_LISTS


def untrained_pq(dim: int, nlist: int, faiss_metric: int, seed: int) -> faiss.IndexIVF:
    """Return an empty IVF_PQ index, with dim padded to a multiple of its sub-quantizers' width."""
    width = 4 if dim >= PQ_WIDE_DIM else 2
    sub_quantizers = -(-dim // width)
    held_dim = sub_quantizers * width
    quantizer = faiss.IndexFlat(held_dim, faiss_metric)
    index = faiss.IndexIVFPQFastScan(
        quantizer, held_dim, nlist, sub_quantizers, PQ_BITS, faiss_metric, _FAST_SCAN_BLOCK
    )
    # Codes of the vectors, not of their residuals: a search then computes one table per query
    # instead of one per list, and is twice as fast at the same recall.
    index.by_residual = False
    index.pq.cp.seed = seed
    index.pq.cp.min_points_per_centroid = 1
    return index


class NearestLists:
    """Finds the lists nearest to queries, by their centroids.

    One float32 product scores all centroids. Where its rounding may decide between two of them,
    float64 does, so a query has the same lists alone and in any batch. Under L2 both are taken
    relative to the mean centroid: far from the origin a product has no digits left.

    Parameters
    ----------
    centroids
        float32 (nlist, dim), referred to.
    """

    def __init__(self, metric: Metric, centroids: Float32Array) -> None:
        self._origin: Float32Array | None = None
        self._offsets: Float32Array | None = None
        points = centroids
        if metric is Metric.L2:
            self._origin = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
            points = centroids - self._origin
            self._offsets = (np.vecdot(points, points, dtype=np.float64) / -2).astype(np.float32)
        self._points = points
        self._directions = points.T
        self._largest = float(np.sqrt(np.vecdot(points, points).max(initial=0.0)))
        roundings = (points.shape[1] + _ROUNDINGS) * _UNIT_ROUNDOFF
        self._slack = 2 * roundings / (1 - roundings) * self._largest

    def of(self, queries: Float32Array, n: int) -> Int64Array:
        """Return the `n` nearest lists of each of `queries` (queries, dim), by number.

        int64 (queries, n), all lists if there are fewer.
        """
        nlist = len(self._points)
        if n >= nlist:
            return np.tile(np.arange(nlist), (len(queries), 1))
        if self._origin is not None:
            queries = queries - self._origin
        scores = queries @ self._directions
        if self._offsets is not None:
            scores += self._offsets
        cut = nlist - n
        order = scores.argpartition((cut - 1, cut), axis=1)
        lists = np.sort(order[:, cut:], axis=1)
        norms = np.sqrt(np.vecdot(queries, queries)).tolist()
        for query, (next_, last) in enumerate(order[:, cut - 1 : cut + 1].tolist()):
            of_query = scores[query]
            slack = self._slack * (norms[query] + self._largest)
            if not of_query[last] - of_query[next_] > slack:  # NaN too
                self._decide(queries[query], of_query, lists[query], float(of_query[last]), slack)
        return lists

    def _decide(
        self,
        query: Float32Array,
        scores: Float32Array,
        lists: Int64Array,
        worst: float,
        slack: float,
    ) -> None:
        """Replace the lists of a query, (n,), for which rounding errors may have decided.

        `worst` is the least of their `scores`, (nlist,), whose errors `slack` bounds.
        """
        near = np.flatnonzero(~(np.abs(scores - worst) > 2 * slack))
        kept = np.setdiff1d(lists, near, assume_unique=True)
        points = self._points[near].astype(np.float64)
        exact = np.vecdot(points, query.astype(np.float64))
        if self._offsets is not None:
            exact -= np.vecdot(points, points) / 2
        best = near[np.argsort(-exact, kind="stable")[: len(lists) - len(kept)]]
        lists[:] = np.sort(np.concatenate([kept, best]))


class FastScan:
    """Searches an index of fast-scan codes, whose `by_residual` is False. Thread-safe, as FAISS is.

    Parameters
    ----------
    index
        It may grow. Its `implem` is set.
    shared_lists
        See `shared_lists_min`.
    """

    def __init__(
        self,
        index: faiss.IndexIVFPQFastScan,
        metric: Metric,
        centroids: Float32Array,
        shared_lists: float | None = None,
    ) -> None:
        self._lists = NearestLists(metric, centroids)
        if shared_lists is None:
            shared_lists = shared_lists_min(int(faiss.SIMDConfig.get_level()))
        self._together_from = shared_lists * int(index.nlist)
        self._together = index
        # `implem` is shared by all threads that search an index: hence two of the same lists.
        shape = index.d, index.nlist, index.M, index.nbits, index.metric_type, index.bbs
        self._alone = faiss.IndexIVFPQFastScan(index.quantizer, *shape)
        self._alone.pq = index.pq
        self._alone.by_residual = False
        self._alone.is_trained = True
        self._alone.replace_invlists(index.invlists, False)
        self._together.implem, self._alone.implem = LIST_BY_LIST, EACH_ALONE
        self._parameters: tuple[int, faiss.IDSelector | None, faiss.SearchParametersIVF] | None
        self._parameters = None

    def nearest(
        self,
        queries: Float32Array,
        wanted: int,
        nprobe: int,
        selector: faiss.IDSelector | None,
        lists: Int64Array | None = None,
    ) -> tuple[Float32Array, Int64Array]:
        """Return the `wanted` rows with the nearest codes, nearest first, and their scores.

        float32 and int64 (queries, wanted), padded with -1.

        Parameters
        ----------
        queries
            float32 (queries, dim) as the index holds vectors, in C order.
        lists
            int64 (queries, n), in any order, padded with -1 anywhere; None: the `nprobe` nearest.
        """
        number = len(queries)
        lists = self._lists.of(queries, nprobe) if lists is None else np.sort(lists, axis=1)
        probed = lists.shape[1]
        index = self._together if number * probed >= self._together_from else self._alone
        rows = np.empty((number, wanted), np.int64)
        scores = np.empty((number, wanted), np.float32)
        at_scores = faiss.swig_ptr(scores)
        index.search_preassigned_c(  # only the raw call takes a selector
            number,
            faiss.swig_ptr(queries),
            wanted,
            faiss.swig_ptr(lists),
            at_scores,  # the distances of the centroids: not read
            at_scores,
            faiss.swig_ptr(rows),
            False,
            self._parameters_of(probed, selector),
        )
        return scores, rows

    def _parameters_of(
        self, nprobe: int, selector: faiss.IDSelector | None
    ) -> faiss.SearchParametersIVF:
        last = self._parameters
        if last is None or last[0] != nprobe or last[1] is not selector:
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
            last = self._parameters = nprobe, selector, parameters
        return last[2]
