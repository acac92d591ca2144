"""The IVF index: a small interface to FAISS, and its only importer.

It holds codes of rows under their row numbers; the vectors are in the row file. FAISS 1.15.1 has
these pitfalls:

* Adding during a search crashes the process. The collection guards both with a ReadWriteLock.
* `merge_from` and `add_core` of a fast-scan index corrupt the heap. Only `add_with_ids` is used.
* `index.nprobe` is shared state. Each call passes nprobe and selector in SearchParametersIVF.
* Missing hits are returned as row -1. They are dropped here.
* A row added twice is stored twice; a NaN row is dropped silently. Rows are validated before.
* The number of OpenMP threads is a property of the calling thread. `use_cores` sets it.
"""

from __future__ import annotations

from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from vectorshard.shard.index.calibration import SearchParameters
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

KMEANS_ROUNDS: Final = 10  # FAISS's default for coarse quantizers
PQ_BITS: Final = 4  # of a sub-quantizer's code, as fast scan requires: 32 codes fit one register
CANDIDATES_SLACK: Final = 16  # requested of IVF_FLAT beyond k, to detect ties with the k-th

PQ_WIDE_DIM: Final = 256
"""From this dim on, a sub-quantizer codes four components; below it, two. Fewer sub-quantizers make
a scan cheaper and its order coarser, which more candidates compensate. Each component of a wide
embedding matters less (`python -m benchmarks --only codes`)."""

_PQ_CENTROIDS: Final = 1 << PQ_BITS
_FAST_SCAN_BLOCK: Final = 32  # codes scanned at once
_TIED_CANDIDATES_MAX: Final = 4_096
_UNIT_ROUNDOFF: Final = 2.0**-24  # of float32
_UNDERFLOW: Final = 2.0**-146  # above the underflow error of a float32 component's square


def use_cores(cores: int) -> None:
    """Set the number of cores that FAISS uses in calls from this thread."""
    faiss.omp_set_num_threads(cores)


class IvfIndex:
    """A trained IVF index over row numbers. `add` is not safe during any other call.

    IVF_PQ pads vectors with zeros to a multiple of its sub-quantizers' width, which does not change
    scores.
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
            sample = np.resize(sample, (_PQ_CENTROIDS, index.d))  # repeats rows
        index.cp.seed = seed
        index.cp.niter = KMEANS_ROUNDS
        index.cp.min_points_per_centroid = 1  # the caller decides on fewer than 39 per list
        index.cp.max_points_per_centroid = len(sample)  # the caller has already sampled
        index.train(sample)
        return cls(kind, dim, index)

    @classmethod
    def from_bytes(cls, kind: IndexKind, dim: int, serialized: bytes) -> IvfIndex:
        """Read what `to_bytes` wrote. The caller has verified the checksum; FAISS does not."""
        return cls(kind, dim, faiss.deserialize_index(np.frombuffer(serialized, dtype=np.uint8)))

    def to_bytes(self) -> npt.NDArray[np.uint8]:
        """Serialize the index."""
        serialized: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        return serialized

    @property
    def rows(self) -> int:
        """The number of rows that FAISS reports."""
        return int(self._index.ntotal)

    @property
    def nlist(self) -> int:
        """The number of inverted lists."""
        return int(self._index.nlist)

    @property
    def code_bytes(self) -> int:
        """Bytes of a row's code."""
        return int(self._index.code_size)

    @property
    def list_imbalance(self) -> float:
        """FAISS's imbalance factor: 1 if all lists are equally long."""
        return float(self._index.invlists.imbalance_factor()) if self.rows else 1.0

    @property
    def memory_bytes(self) -> int:
        """Bytes of codes, row numbers and centroids."""
        return self.rows * (self.code_bytes + 8) + self.nlist * int(self._index.d) * 4

    def add(self, rows: Int64Array, vectors: Float32Array) -> None:
        """Add `vectors` (rows, dim) under their row numbers, which must be new to the index."""
        if len(rows):
            self._index.add_with_ids(self._as_held(vectors), rows)

    def candidates(
        self,
        queries: Float32Array,
        k: int,
        parameters: SearchParameters,
        tombstones: Tombstones,
        vectors: Float32Array,
        squared_norms: Float32Array,
        positions: RowMap | None = None,
        passing: UInt8Array | None = None,
    ) -> Candidates:
        """Return live candidates for each query from its nearest lists.

        For IVF_FLAT they contain the k best rows of those lists and, up to a bound, all ties with
        the k-th: ids decide ties, and FAISS does not know them. For compressed codes they contain
        the k best of the rows with the nearest codes, and all ties with the k-th of these.

        Parameters
        ----------
        queries
            Float32 (queries, dim).
        parameters
            The lists probed and, for compressed codes, the candidates re-ranked.
        vectors, squared_norms
            Float32 (positions, dim) and (positions,) of all live rows in the index.
        positions
            Maps rows to positions in those two; None: the identity.
        passing
            A bitmap of the live rows to search, one bit per row, least significant first. It covers
            all rows in the index. None: all live rows.
        """
        if not len(vectors):  # no live rows, though the index may hold codes of dead ones
            return concatenate([])
        positions = positions or RowMap()
        selector = _selector(tombstones, passing)
        if self._kind is IndexKind.IVF_FLAT:
            return self._candidates_with_ties(
                queries, k, parameters.nprobe, selector, squared_norms, positions
            )
        wanted = max(k, parameters.candidates)
        _, rows = self._search(queries, wanted, parameters.nprobe, selector)
        return shortlist(self._metric, queries, rows, k, vectors, squared_norms, positions)

    def nearest(
        self, queries: Float32Array, wanted: int, nprobe: int, tombstones: Tombstones
    ) -> Int64Array:
        """Return the live rows with the nearest codes, nearest first.

        int64 (queries, wanted), padded with -1.
        """
        _, rows = self._search(queries, wanted, nprobe, _selector(tombstones))
        return rows

    def list_of(self, row: int, vector: Float32Array) -> int:
        """Return the inverted list that holds a row, given its vector (1, dim).

        It searches list by list, from the nearest to the vector on. When FAISS adds many rows at
        once it rounds differently than for a single row, and may choose another list.

        Raises
        ------
        LookupError
            If no list holds the row.
        """
        for list_ in self._nearest_lists(vector)[0].tolist():
            if row in self._rows_of_list(list_):
                return int(list_)
        raise LookupError(f"no inverted list holds row {row}")

    def centroid_rank(self, query: Float32Array, list_: int) -> int:
        """Return the rank of a list's centroid for `query` (1, dim), from 1.

        It is the smallest nprobe that reaches the list.
        """
        return int(self.centroid_ranks(query)[0, list_]) + 1

    def centroid_ranks(self, queries: Float32Array) -> Int32Array:
        """Return the rank of each list's centroid for `queries` (queries, dim), from 0.

        int32 (queries, nlist).
        """
        nearest = self._nearest_lists(queries)
        ranks = np.empty(nearest.shape, np.int32)
        np.put_along_axis(ranks, nearest, np.arange(self.nlist, dtype=np.int32)[None], axis=1)
        return ranks

    def lists_of_rows(self, last: int) -> Int32Array:
        """Return the list that holds each row below `last`: int32 (last,), -1 if none does."""
        lists = np.full(last, -1, np.int32)
        for list_ in range(self.nlist):
            rows = self._rows_of_list(list_)
            lists[rows[rows < last]] = list_
        return lists

    def _nearest_lists(self, queries: Float32Array) -> Int64Array:
        """Return all lists, nearest centroid first, for each of `queries` (queries, dim)."""
        lists: Int64Array
        _, lists = self._index.quantizer.search(self._as_held(queries), self.nlist)
        return lists

    def _rows_of_list(self, list_: int) -> Int64Array:
        """Return the rows in a list: a view into the index."""
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
        """Return the approximate score of each list's centroid. float32 (queries, nlist)."""
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

    def _candidates_with_ties(
        self,
        queries: Float32Array,
        k: int,
        nprobe: int,
        selector: faiss.IDSelector | None,
        squared_norms: Float32Array,
        positions: RowMap,
    ) -> Candidates:
        wanted = k + CANDIDATES_SLACK
        scores, rows = self._search(queries, wanted, nprobe, selector)
        found = [_pairs(np.arange(len(queries)), rows)]
        open_queries = np.arange(len(queries))
        while wanted < min(self.rows, _TIED_CANDIDATES_MAX + k):
            ends = [k - 1, -1]
            at = positions.of_padded(rows[:, ends])
            tied = _tied(queries[open_queries], scores[:, ends], at, squared_norms)
            if not tied.any():
                break
            found[-1] = _pairs(open_queries[~tied], rows[~tied])
            open_queries = open_queries[tied]
            wanted *= 2
            scores, rows = self._search(queries[open_queries], wanted, nprobe, selector)
            found.append(_pairs(open_queries, rows))
        return concatenate(found)

    def _search(
        self,
        queries: Float32Array,
        wanted: int,
        nprobe: int,
        selector: faiss.IDSelector | None,
    ) -> tuple[Float32Array, Int64Array]:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        scores, rows = self._index.search(self._as_held(queries), wanted, params=parameters)
        return scores, rows

    @property
    def _metric(self) -> Metric:
        is_l2 = self._index.metric_type == faiss.METRIC_L2
        return Metric.L2 if is_l2 else Metric.INNER_PRODUCT

    def _as_held(self, vectors: Float32Array) -> Float32Array:
        return _padded(vectors, int(self._index.d))


def _selector(tombstones: Tombstones, passing: UInt8Array | None = None) -> faiss.IDSelector | None:
    """Return a selector of the live rows, or of `passing`, a bitmap of live rows.

    It reads the bitmap in place and keeps it alive.
    """
    if passing is not None:
        return faiss.IDSelectorBitmap(passing)
    if not tombstones.count:
        return None
    # Not a bitmap of the live rows: past its end it excludes rows, and newer rows are there.
    return faiss.IDSelectorNot(faiss.IDSelectorBitmap(tombstones.bits))


def _untrained_pq(dim: int, nlist: int, faiss_metric: int, seed: int) -> faiss.IndexIVF:
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


def _padded(vectors: Float32Array, dim: int) -> Float32Array:
    """Return vectors (rows, dim) in C order, padded with zeros to `dim` components."""
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
    """Return the rows that may be among the k best of each query, including ties.

    FAISS's float32 kernels score the rows in place, without a copy. Their error is bounded as in
    `shard.index.exact`, so exact scores are only needed for rows near the k-th: seldom more than k.

    Parameters
    ----------
    queries
        Float32 (queries, dim).
    rows
        Int64 (queries, candidates), padded with -1.
    vectors, squared_norms
        Float32 (positions, dim), row-major, and (positions,), at least one.
    positions
        Maps rows to positions in those two; None: the identity.
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
    """Return the costs of rows by FAISS's float32 kernels; smaller is better.

    float32 (queries, candidates), infinite where `rows`, int64 of that shape, is -1. `queries` is
    float32 (queries, dim); `vectors`, float32 (rows, dim), is read only at `rows`.
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
    """Return the highest costs by `float32_costs` that may have the same exact score as `costs`.

    Parameters
    ----------
    costs
        Float32 (queries, n), exact or by `float32_costs`.
    squared_norms
        Float32 (queries, 1): the largest among the rows compared.
    """
    dim = queries.shape[1]
    # Four errors: of both costs, of the exact score, and of the limit.
    relative = 4 * (dim + 4) * _UNIT_ROUNDOFF
    if metric.smaller_is_better:  # sums of squares: the error is relative
        return np.asarray(costs * np.float32(1 + relative) + np.float32(dim * _UNDERFLOW))
    query_norms = np.sqrt(np.vecdot(queries, queries))[:, None]
    return np.asarray(costs + relative * query_norms * np.sqrt(squared_norms))


def _pairs(query_of: Int64Array, rows: Int64Array) -> Candidates:
    """Flatten rows (queries, candidates), without the missing ones."""
    there = rows >= 0
    return Candidates(np.broadcast_to(query_of[:, None], rows.shape)[there], rows[there])


def _tied(
    queries: Float32Array, scores: Float32Array, at: Int64Array, squared_norms: Float32Array
) -> BoolArray:
    """Return whether two candidates of each query may have the same score. bool (queries,).

    FAISS sums float32 products or squared differences, so the error of a score is below
    dim * 2^-24 * |q| * |x| or dim * 2^-24 * score. `scores` and the positions `at` are
    (queries, 2); the padding -1 of a short result ties with nothing.
    """
    query_norms = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)
    row_norms = squared_norms[at].max(axis=1).astype(np.float64)
    scale = np.maximum(np.abs(scores).max(axis=1), np.sqrt(query_norms * row_norms))
    error = queries.shape[1] * _UNIT_ROUNDOFF * scale
    gap = np.abs(scores[:, 0].astype(np.float64) - scores[:, 1])
    return np.asarray((at[:, 1] >= 0) & (gap <= 2 * error))
