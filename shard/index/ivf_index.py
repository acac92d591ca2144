"""The IVF index: FAISS behind a small face, and the only importer of it.

Holds codes of rows under their row numbers; the rows themselves live in the row file. What FAISS
1.15.1 demands of its callers, and where it is kept:

* adding while searching crashes the process: the collection holds a ReadWriteLock around both;
* `merge_from` and `add_core` of a fast-scan index corrupt the heap: rows go in by `add_with_ids`;
* nprobe and selectors travel per call in SearchParametersIVF; `index.nprobe` is never set;
* missing hits come back as row -1 and are dropped here;
* a row added twice is stored twice, a NaN row is dropped silently: rows come here once, checked;
* OpenMP's number of threads belongs to the calling thread: `use_cores` sets it.
"""

from __future__ import annotations

from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from vectorshard.shard.index.calibration import Setting
from vectorshard.shard.index.exact import Candidates, concatenate, costs_of
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import (
    BoolArray,
    Float32Array,
    IndexKind,
    Int32Array,
    Int64Array,
    Metric,
    UInt8Array,
)

KMEANS_ROUNDS: Final = 10
"""Iterations of k-means, as FAISS itself defaults to for coarse quantizers."""

PQ_BITS: Final = 4
"""Bits of a sub-quantizer's code: what fast scan reads, 32 codes of it in one register."""

PQ_WIDE_DIM: Final = 256
"""From this dim on a sub-quantizer codes four components, below it two. Fewer make a scan cheaper
and its order coarser, which more candidates make up for; the components of wide embeddings say less
each (`python -m benchmarks --only codes`)."""

PROPOSALS_SLACK: Final = 16
"""Candidates asked of IVF_FLAT beyond k, among which ties with the k-th show."""

_PQ_CENTROIDS: Final = 1 << PQ_BITS
_FAST_SCAN_BLOCK: Final = 32  # codes that are scanned at once
_TIED_PROPOSALS_MAX: Final = 4_096
_UNIT_ROUNDOFF: Final = 2.0**-24  # of float32
_UNDERFLOW: Final = 2.0**-146  # more than what a float32 component's square loses by underflow


def use_cores(cores: int) -> None:
    """Let FAISS use that many cores in calls from this thread."""
    faiss.omp_set_num_threads(cores)


class IvfIndex:
    """A trained IVF index over row numbers. Not safe for adding beside anything else.

    IVF_PQ pads vectors with zeros to a multiple of its sub-quantizers' width, which changes no
    score.
    """

    def __init__(self, kind: IndexKind, dim: int, index: faiss.IndexIVF) -> None:
        self._kind = kind
        self._dim = dim
        self._index = index

    @classmethod
    def train(
        cls, kind: IndexKind, metric: Metric, sample: Float32Array, nlist: int, seed: int
    ) -> IvfIndex:
        """Train an empty index with `nlist` lists on `sample` (rows, dim), rows >= nlist."""
        dim = sample.shape[1]
        faiss_metric = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        if kind is IndexKind.IVF_PQ:
            index = _untrained_pq(dim, nlist, faiss_metric, seed)
            sample = _padded(sample, index.d)
        elif kind is IndexKind.IVF_FLAT:
            quantizer = faiss.IndexFlat(dim, faiss_metric)
            index = faiss.IndexIVFFlat(quantizer, dim, nlist, faiss_metric)
        else:
            quantizer = faiss.IndexFlat(dim, faiss_metric)
            index = faiss.IndexIVFScalarQuantizer(
                quantizer, dim, nlist, faiss.ScalarQuantizer.QT_8bit, faiss_metric
            )
        if kind is IndexKind.IVF_PQ and len(sample) < _PQ_CENTROIDS:
            sample = np.resize(sample, (_PQ_CENTROIDS, index.d))  # repeats the rows
        index.cp.seed = seed
        index.cp.niter = KMEANS_ROUNDS
        index.cp.min_points_per_centroid = 1  # fewer than 39 a list is the caller's decision
        index.cp.max_points_per_centroid = len(sample)  # the caller has sampled already
        index.train(sample)
        return cls(kind, dim, index)

    @classmethod
    def from_bytes(cls, kind: IndexKind, dim: int, serialized: bytes) -> IvfIndex:
        """Read what `to_bytes` wrote. The caller has verified its checksum: FAISS would not."""
        return cls(kind, dim, faiss.deserialize_index(np.frombuffer(serialized, dtype=np.uint8)))

    def to_bytes(self) -> npt.NDArray[np.uint8]:
        """Serialize the index."""
        serialized: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        return serialized

    @property
    def rows(self) -> int:
        """How many rows FAISS says it holds."""
        return int(self._index.ntotal)

    @property
    def nlist(self) -> int:
        """How many inverted lists it has."""
        return int(self._index.nlist)

    @property
    def code_bytes(self) -> int:
        """Bytes of a row's code."""
        return int(self._index.code_size)

    @property
    def list_imbalance(self) -> float:
        """FAISS's imbalance factor: 1 when all lists are equally long."""
        return float(self._index.invlists.imbalance_factor()) if self.rows else 1.0

    @property
    def memory_bytes(self) -> int:
        """Bytes of codes, row numbers and centroids."""
        return self.rows * (self.code_bytes + 8) + self.nlist * int(self._index.d) * 4

    def add(self, rows: Int64Array, vectors: Float32Array) -> None:
        """Add `vectors` (rows, dim) under their row numbers, which it must not hold yet."""
        if len(rows):
            self._index.add_with_ids(self._as_held(vectors), rows)

    def propose(
        self,
        queries: Float32Array,
        k: int,
        setting: Setting,
        tombstones: Tombstones,
        vectors: Float32Array,
        squared_norms: Float32Array,
        positions: RowMap | None = None,
        passing: UInt8Array | None = None,
    ) -> Candidates:
        """Propose living rows for each query from its nearest lists.

        For IVF_FLAT they hold the k best of those lists and, up to a bound, all that tie with the
        k-th: ties are decided by id, which FAISS does not know. For compressed codes they hold the
        k best of the rows whose codes look best, and what ties with the k-th of them.

        Parameters
        ----------
        queries
            Float32 (queries, dim).
        setting
            The lists probed, and for compressed codes the rows whose codes are believed so far.
        vectors, squared_norms
            Float32 (positions, dim) and (positions,) of all living rows that the index holds.
        positions
            Where each row lies in those two; None: at its number.
        passing
            Only these rows: a bitmap of living ones that covers all rows that the index holds, one
            bit a row, least significant first. None: all that live.
        """
        if not len(vectors):  # nothing lives, though the index may hold codes of the dead
            return concatenate([])
        positions = positions or RowMap()
        selector = _selector(tombstones, passing)
        if self._kind is IndexKind.IVF_FLAT:
            return self._propose_with_ties(
                queries, k, setting.nprobe, selector, squared_norms, positions
            )
        wanted = max(k, setting.candidates)
        _, rows = self._search(queries, wanted, setting.nprobe, selector)
        return shortlist(self._metric, queries, rows, k, vectors, squared_norms, positions)

    def nearest(
        self, queries: Float32Array, wanted: int, nprobe: int, tombstones: Tombstones
    ) -> Int64Array:
        """Return the living rows that look best by their codes, best first.

        int64 (queries, wanted), -1 behind the last.
        """
        _, rows = self._search(queries, wanted, nprobe, _selector(tombstones))
        return rows

    def list_of(self, row: int, vector: Float32Array) -> int:
        """Return the inverted list that holds a row, given its vector (1, dim).

        It is looked for, list by list from the nearest to the vector on: FAISS, adding many rows at
        once, rounds differently from a look at one, and may have found another list nearer.

        Raises
        ------
        LookupError
            If no list holds it.
        """
        for list_ in self._nearest_lists(vector)[0].tolist():
            if row in self._rows_of_list(list_):
                return int(list_)
        raise LookupError(f"no inverted list holds row {row}")

    def centroid_rank(self, query: Float32Array, list_: int) -> int:
        """Return the place of a list among those that a search for `query` (1, dim) probes, from 1.

        It is the smallest nprobe that reaches the list.
        """
        return int(self.centroid_ranks(query)[0, list_]) + 1

    def centroid_ranks(self, queries: Float32Array) -> Int32Array:
        """Return the place of each list among those that a search probes, from 0.

        int32 (queries, nlist), for `queries` (queries, dim).
        """
        nearest = self._nearest_lists(queries)
        ranks = np.empty(nearest.shape, np.int32)
        np.put_along_axis(ranks, nearest, np.arange(self.nlist, dtype=np.int32)[None], axis=1)
        return ranks

    def lists_of_rows(self, last: int) -> Int32Array:
        """Return the list that holds each row below `last`: int32 (last,), -1 for none."""
        lists = np.full(last, -1, np.int32)
        for list_ in range(self.nlist):
            rows = self._rows_of_list(list_)
            lists[rows[rows < last]] = list_
        return lists

    def _nearest_lists(self, queries: Float32Array) -> Int64Array:
        """Return all lists by their centroids' nearness to each of `queries` (queries, dim)."""
        lists: Int64Array
        _, lists = self._index.quantizer.search(self._as_held(queries), self.nlist)
        return lists

    def _rows_of_list(self, list_: int) -> Int64Array:
        """Return the rows that a list holds: a view into the index."""
        lists = self._index.invlists
        rows = lists.list_size(list_)
        if not rows:
            return np.zeros(0, np.int64)
        held: Int64Array = faiss.rev_swig_ptr(lists.get_ids(list_), rows)
        return held

    def lists_of(self, vectors: Float32Array) -> Int64Array:
        """Return the inverted list that holds, or would hold, each of `vectors`. int64 (rows,)."""
        lists: Int64Array = self._index.quantizer.search(self._as_held(vectors), 1)[1][:, 0]
        return lists

    def centroid_scores(self, queries: Float32Array) -> Float32Array:
        """Return the score of each list's centroid, about. float32 (queries, nlist)."""
        flat = faiss.downcast_index(self._index.quantizer)
        values = faiss.rev_swig_ptr(flat.get_xb(), self.nlist * int(self._index.d))
        centroids = values.reshape(self.nlist, -1)
        queries = self._as_held(queries)
        products: Float32Array = queries @ centroids.T
        if self._metric is not Metric.L2:
            return products
        query_norms, norms = np.vecdot(queries, queries), np.vecdot(centroids, centroids)
        products *= -2
        products += query_norms[:, None]
        products += norms
        return products

    def _propose_with_ties(
        self,
        queries: Float32Array,
        k: int,
        nprobe: int,
        selector: faiss.IDSelector | None,
        squared_norms: Float32Array,
        positions: RowMap,
    ) -> Candidates:
        proposals = k + PROPOSALS_SLACK
        scores, rows = self._search(queries, proposals, nprobe, selector)
        found = [_pairs(np.arange(len(queries)), rows)]
        open_queries = np.arange(len(queries))
        while proposals < min(self.rows, _TIED_PROPOSALS_MAX + k):
            ends = [k - 1, -1]
            at = positions.of_padded(rows[:, ends])
            tied = _tied(queries[open_queries], scores[:, ends], at, squared_norms)
            if not tied.any():
                break
            found[-1] = _pairs(open_queries[~tied], rows[~tied])
            open_queries = open_queries[tied]
            proposals *= 2
            scores, rows = self._search(queries[open_queries], proposals, nprobe, selector)
            found.append(_pairs(open_queries, rows))
        return concatenate(found)

    def _search(
        self,
        queries: Float32Array,
        proposals: int,
        nprobe: int,
        selector: faiss.IDSelector | None,
    ) -> tuple[Float32Array, Int64Array]:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        scores, rows = self._index.search(self._as_held(queries), proposals, params=parameters)
        return scores, rows

    @property
    def _metric(self) -> Metric:
        is_l2 = self._index.metric_type == faiss.METRIC_L2
        return Metric.L2 if is_l2 else Metric.INNER_PRODUCT

    def _as_held(self, vectors: Float32Array) -> Float32Array:
        return _padded(vectors, int(self._index.d))


def _selector(tombstones: Tombstones, passing: UInt8Array | None = None) -> faiss.IDSelector | None:
    """Return what lets FAISS see only some rows: those that live, or a bitmap of living ones.

    It reads the bitmap in place and keeps it alive.
    """
    if passing is not None:
        return faiss.IDSelectorBitmap(passing)
    if not tombstones.count:
        return None
    # Never a bitmap of the living: it answers false past its end, and newer rows lie there.
    return faiss.IDSelectorNot(faiss.IDSelectorBitmap(tombstones.bits))


def _untrained_pq(dim: int, nlist: int, faiss_metric: int, seed: int) -> faiss.IndexIVF:
    """Return an empty IVF_PQ index, of a dim that its sub-quantizers divide."""
    width = 4 if dim >= PQ_WIDE_DIM else 2
    sub_quantizers = -(-dim // width)
    held_dim = sub_quantizers * width
    quantizer = faiss.IndexFlat(held_dim, faiss_metric)
    index = faiss.IndexIVFPQFastScan(
        quantizer, held_dim, nlist, sub_quantizers, PQ_BITS, faiss_metric, _FAST_SCAN_BLOCK
    )
    # Codes of the vectors themselves, not of what a centroid leaves of them: a search then computes
    # one table a query instead of one a list, and is twice as fast at the same recall.
    index.by_residual = False
    index.pq.cp.seed = seed
    index.pq.cp.min_points_per_centroid = 1
    return index


def _padded(vectors: Float32Array, dim: int) -> Float32Array:
    """Return vectors (rows, dim) as FAISS takes them, with zeros behind their components."""
    missing = dim - vectors.shape[1]
    if missing:
        vectors = np.pad(vectors, ((0, 0), (0, missing)))
    return np.ascontiguousarray(vectors)


def shortlist(
    metric: Metric,
    queries: Float32Array,
    rows: Int64Array,
    k: int,
    vectors: Float32Array,
    squared_norms: Float32Array,
    positions: RowMap | None = None,
) -> Candidates:
    """Return those of some rows that may be among the k best of each query, ties included.

    FAISS's float32 kernels score the rows where they lie, without a copy. Their error is bounded as
    `shard.index.exact` bounds its product's, so that the exact score need only be computed of what
    is
    near the k-th: seldom more than k.

    Parameters
    ----------
    queries
        Float32 (queries, dim).
    rows
        Int64 (queries, candidates), -1 where there is none.
    vectors, squared_norms
        Float32 (positions, dim), row-major, and (positions,), at least one.
    positions
        Where each row lies in those two; None: at its number.
    """
    at = (positions or RowMap()).of_padded(rows)
    costs = float32_costs(metric, queries, at, vectors)
    wanted = min(k, rows.shape[1])
    kth = np.partition(costs, wanted - 1, axis=1)[:, wanted - 1 : wanted]
    largest = squared_norms.take(at, mode="wrap").max(axis=1, keepdims=True)
    near = costs <= costs_that_tie(metric, queries, kth, largest)
    near &= rows >= 0
    query_of, place = np.nonzero(near)
    return Candidates(query_of, rows[query_of, place])


def float32_costs(
    metric: Metric, queries: Float32Array, rows: Int64Array, vectors: Float32Array
) -> Float32Array:
    """Return scores by FAISS's float32 kernels, turned so that smaller is better.

    float32 (queries, candidates), infinite where `rows`, int64 of that shape, has -1. `queries` is
    float32 (queries, dim); `vectors`, float32 (rows, dim), is read at `rows` alone.
    """
    queries = np.ascontiguousarray(queries)
    scores = np.empty(rows.shape, np.float32)
    kernel = (
        faiss.fvec_L2sqr_by_idx if metric.smaller_is_better else faiss.fvec_inner_products_by_idx
    )
    kernel(
        faiss.swig_ptr(scores),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        queries.shape[1],
        *rows.shape,
    )
    return costs_of(metric, scores)


def costs_that_tie(
    metric: Metric, queries: Float32Array, costs: Float32Array, squared_norms: Float32Array
) -> Float32Array:
    """Return the highest costs by `float32_costs` that may be of the same exact score as these.

    Parameters
    ----------
    costs
        Float32 (queries, n), exact or by `float32_costs`.
    squared_norms
        Float32 (queries, 1): the largest of the rows that are compared.
    """
    dim = queries.shape[1]
    # Of both costs, of the exact score, and of the limit itself.
    relative = 4 * (dim + 4) * _UNIT_ROUNDOFF
    if metric.smaller_is_better:  # sums of squares: each is off by a part of itself
        return np.asarray(costs * np.float32(1 + relative) + np.float32(dim * _UNDERFLOW))
    query_norms = np.sqrt(np.vecdot(queries, queries))[:, None]
    return np.asarray(costs + relative * query_norms * np.sqrt(squared_norms))


def _pairs(query_of: Int64Array, rows: Int64Array) -> Candidates:
    """Flatten rows (queries, proposals), without the missing ones."""
    there = rows >= 0
    return Candidates(np.broadcast_to(query_of[:, None], rows.shape)[there], rows[there])


def _tied(
    queries: Float32Array, scores: Float32Array, at: Int64Array, squared_norms: Float32Array
) -> BoolArray:
    """Say of each query whether two of its candidates may have the same score.

    FAISS sums float32 products or squared differences: the error of each score is below
    dim * 2^-24 * |q| * |x| or dim * 2^-24 * score. `scores` and `at`, positions, are (queries,
    2); the padding of a short answer (-1) ties with nothing.
    """
    query_norms = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)
    row_norms = squared_norms[at].max(axis=1).astype(np.float64)
    scale = np.maximum(np.abs(scores).max(axis=1), np.sqrt(query_norms * row_norms))
    error = queries.shape[1] * 2.0**-24 * scale
    gap = np.abs(scores[:, 0].astype(np.float64) - scores[:, 1])
    return np.asarray((at[:, 1] >= 0) & (gap <= 2 * error))
