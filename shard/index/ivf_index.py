"""The IVF index: a small interface to FAISS.

It holds codes of rows under their row numbers; the vectors are in the row file. This module,
`code_check`, `fast_scan` and `float32_kernels` alone import FAISS. FAISS 1.15.1 has these pitfalls:

* Adding during a search crashes the process. The collection guards both with a ReadWriteLock.
* `merge_from` and `add_core` of a fast-scan index corrupt the heap. Only `add_with_ids` is used.
* `index.nprobe` is shared state. Each call passes nprobe and selector in SearchParametersIVF.
* Missing hits are returned as row -1. They are dropped here.
* A row added twice is stored twice; a NaN row is dropped silently. Rows are validated before.
* The number of OpenMP threads is a property of the calling thread. `use_cores` sets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from vectorshard.shard.index.calibration import SearchParameters
from vectorshard.shard.index.exact import Candidates, concatenate
from vectorshard.shard.index.fast_scan import PQ_CENTROIDS, FastScan, untrained_pq
from vectorshard.shard.index.float32_kernels import shortlist
from vectorshard.shard.index.occupancy import Occupancy, OccupancyCounts
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
CANDIDATES_SLACK: Final = 16  # requested of IVF_FLAT beyond k, to detect ties with the k-th

_NO_QUERIES: Final = np.zeros(0, np.int64)
_TIED_CANDIDATES_MAX: Final = 4_096
_KIND_OF_CLASS: Final = {
    faiss.IndexIVFFlat: IndexKind.IVF_FLAT,
    faiss.IndexIVFScalarQuantizer: IndexKind.IVF_SQ8,
    faiss.IndexIVFPQFastScan: IndexKind.IVF_PQ,
}
_UNIT_ROUNDOFF: Final = 2.0**-24  # of float32


def use_cores(cores: int) -> None:
    """Set the number of cores that FAISS uses in calls from this thread."""
    faiss.omp_set_num_threads(cores)


@dataclass(frozen=True, slots=True)
class Probes:
    """The lists that each query probes: `lists` int64 (queries, n), nearest first, -1 for none.

    `distances`, float32 of that shape, are those of FAISS's coarse quantizer.
    """

    lists: Int64Array
    distances: Float32Array

    def of(self, queries: Int64Array) -> Probes:
        """Return the probes of some of the queries."""
        return Probes(self.lists[queries], self.distances[queries])

    def replaced(self, queries: Int64Array, others: Probes) -> Probes:
        """Return these with `others`, which are more, in place of those of some queries."""
        wider = (0, 0), (0, others.lists.shape[1] - self.lists.shape[1])
        lists = np.pad(self.lists, wider, constant_values=-1)
        distances = np.pad(self.distances, wider)
        lists[queries], distances[queries] = others.lists, others.distances
        return Probes(lists, distances)


@dataclass(frozen=True, slots=True)
class Proposed:
    """Candidates, and `short`, int64: the queries for which the index proposed too few rows."""

    candidates: Candidates
    short: Int64Array


class IvfIndex:
    """A trained IVF index over row numbers. `add` is not safe during any other call.

    IVF_PQ pads vectors with zeros to a multiple of its sub-quantizers' width, which does not change
    scores.
    """

    def __init__(self, kind: IndexKind, dim: int, index: faiss.IndexIVF) -> None:
        self.kind = kind
        """It may differ from the configured kind: `shard.index.index_kind`."""
        self._dim = dim
        self._index = index
        self._held_dim = int(index.d)
        self.nlist = int(index.nlist)
        """The number of inverted lists."""
        self.rows = int(index.ntotal)
        """The number of rows that FAISS reports; noted, as every search asks for it."""
        is_l2 = index.metric_type == faiss.METRIC_L2
        self._metric = Metric.L2 if is_l2 else Metric.INNER_PRODUCT
        self._fast_scan: FastScan | None = None
        if kind is IndexKind.IVF_PQ:
            self._fast_scan = FastScan(index, self._metric, self._centroids())
        self._occupancy = OccupancyCounts(self._list_sizes, self._rows_and_lists)
        self._selected: tuple[Tombstones, faiss.IDSelector | None] = Tombstones(), None

    @classmethod
    def train(
        cls, kind: IndexKind, metric: Metric, sample: Float32Array, nlist: int, seed: int
    ) -> IvfIndex:
        """Train an empty index with `nlist` lists on `sample` (rows, dim), rows >= nlist."""
        dim = sample.shape[1]
        faiss_metric = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        if kind is IndexKind.IVF_PQ:
            index = untrained_pq(dim, nlist, faiss_metric, seed)
            sample = _padded(sample, index.d)
        elif kind is IndexKind.IVF_FLAT:
            quantizer = faiss.IndexFlat(dim, faiss_metric)
            index = faiss.IndexIVFFlat(quantizer, dim, nlist, faiss_metric)
        else:
            quantizer = faiss.IndexFlat(dim, faiss_metric)
            index = faiss.IndexIVFScalarQuantizer(
                quantizer, dim, nlist, faiss.ScalarQuantizer.QT_8bit, faiss_metric
            )
        if kind is IndexKind.IVF_PQ and len(sample) < PQ_CENTROIDS:
            sample = np.resize(sample, (PQ_CENTROIDS, index.d))  # repeats rows
        index.cp.seed = seed
        index.cp.niter = KMEANS_ROUNDS
        index.cp.min_points_per_centroid = 1  # the caller decides on fewer than 39 per list
        index.cp.max_points_per_centroid = len(sample)  # the caller has already sampled
        index.train(sample)
        return cls(kind, dim, index)

    @classmethod
    def from_bytes(cls, dim: int, serialized: bytes) -> IvfIndex:
        """Read what `to_bytes` wrote, whose checksum was verified; RuntimeError for other bytes."""
        index = faiss.deserialize_index(np.frombuffer(serialized, dtype=np.uint8))
        if (kind := _KIND_OF_CLASS.get(type(index))) is None:
            raise RuntimeError(f"{type(index).__name__} is not a kind of index")
        return cls(kind, dim, index)

    def to_bytes(self) -> npt.NDArray[np.uint8]:
        """Serialize the index."""
        serialized: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        return serialized

    @property
    def faiss_index(self) -> faiss.IndexIVF:
        """FAISS's index, for `code_check`."""
        return self._index

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
        return self.rows * (self.code_bytes + 8) + self.nlist * self._held_dim * 4

    def add(self, rows: Int64Array, vectors: Float32Array) -> None:
        """Add `vectors` (rows, dim) under their row numbers, which must be new to the index."""
        if len(rows):
            try:
                self._index.add_with_ids(self.as_held(vectors), rows)
            finally:
                self.rows = int(self._index.ntotal)
            if self._occupancy.follows_rows:
                self._occupancy.add(rows, self.lists_of(vectors))

    def occupancy(self, tombstones: Tombstones) -> Occupancy:
        """Return how full the lists are."""
        return self._occupancy.of(tombstones, self.rows)

    def is_even(self, tombstones: Tombstones) -> bool:
        """Whether the calibrated number of lists is right: see `Occupancy.is_even`."""
        return self._occupancy.are_even(tombstones, self.rows)

    def nearest_lists(self, queries: Float32Array, n: int) -> Probes:
        """Return the `n` nearest lists of each of `queries` (queries, dim), empty ones too."""
        distances, lists = self._index.quantizer.search(self.as_held(queries), n)
        return Probes(lists, distances)

    def proposed(
        self,
        queries: Float32Array,
        k: int,
        parameters: SearchParameters,
        tombstones: Tombstones,
        vectors: Float32Array,
        squared_norms: Float32Array,
        positions: RowMap | None = None,
        passing: UInt8Array | None = None,
        *,
        probes: Probes | None = None,
        enough: int = 0,
    ) -> Proposed:
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
        probes
            The lists of each query, in place of its `nprobe` nearest.
        enough
            The rows to propose for a query; with fewer, it is `short`.
        """
        if not len(vectors):  # no live rows, though the index may hold codes of dead ones
            return Proposed(concatenate([]), np.arange(len(queries) if enough else 0))
        positions = positions or RowMap()
        search = parameters.nprobe, self._selector(tombstones, passing), probes
        if self.kind is not IndexKind.IVF_FLAT:
            wanted = max(k, enough, parameters.candidates)
            rows = self._nearest(queries, wanted, *search)
            found = shortlist(self._metric, queries, rows, k, vectors, squared_norms, positions)
            return Proposed(found, _short(rows, enough))
        scores, rows = self._search(queries, max(k, enough) + CANDIDATES_SLACK, *search)
        short, wanted = _short(rows, enough), k + CANDIDATES_SLACK
        scores, rows = scores[:, :wanted], rows[:, :wanted]
        return Proposed(
            self._with_ties((queries, k, *search), scores, rows, squared_norms, positions), short
        )

    def nearest(
        self,
        queries: Float32Array,
        wanted: int,
        nprobe: int,
        tombstones: Tombstones,
        probes: Probes | None = None,
    ) -> Int64Array:
        """Return the live rows with the nearest codes, nearest first.

        int64 (queries, wanted), padded with -1.
        """
        return self._nearest(queries, wanted, nprobe, self._selector(tombstones), probes)

    def list_of(self, row: int, vector: Float32Array) -> int:
        """Return the inverted list that holds a row, given its vector (1, dim).

        It searches list by list, from the nearest to the vector on. When FAISS adds many rows at
        once it rounds differently than for a single row, and may choose another list.

        Raises
        ------
        LookupError
            If no list holds the row.
        """
        for list_ in self.nearest_lists(vector, self.nlist).lists[0].tolist():
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
        nearest = self.nearest_lists(queries, self.nlist).lists
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

    def _list_sizes(self) -> Int64Array:
        """Return the rows in each list, dead or alive. int64 (nlist,)."""
        size_of = self._index.invlists.list_size
        return np.array([size_of(list_) for list_ in range(self.nlist)], np.int64)

    def _rows_and_lists(self) -> tuple[Int64Array, Int32Array, int]:
        """Return all rows held, ascending, the list of each, and the number of lists."""
        rows = np.concatenate([self._rows_of_list(list_) for list_ in range(self.nlist)])
        lists = np.repeat(np.arange(self.nlist, dtype=np.int32), self._list_sizes())
        order = np.argsort(rows, kind="stable")  # each list is ascending: a merge
        return rows[order], lists[order], self.nlist

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
        return self.nearest_lists(vectors, 1).lists[:, 0]

    def centroid_distances(self, vectors: Float32Array) -> Float32Array:
        """Return the L2 distance of each of `vectors` to its list's centroid. float32 (rows,)."""
        differences = self.as_held(vectors) - self._centroids()[self.lists_of(vectors)]
        distances: Float32Array = np.sqrt(np.vecdot(differences, differences))
        return distances

    def _centroids(self) -> Float32Array:
        """Return the centroids, float32 (nlist, dim as held): a view into the index."""
        flat = faiss.downcast_index(self._index.quantizer)
        values: Float32Array = faiss.rev_swig_ptr(flat.get_xb(), self.nlist * self._held_dim)
        return values.reshape(self.nlist, -1)

    def centroid_scores(self, queries: Float32Array) -> Float32Array:
        """Return the approximate score of each list's centroid. float32 (queries, nlist).

        In float64: float32 rounds one query otherwise than many, and too much far from the origin.
        """
        centroids, exact = self._centroids().astype(float), self.as_held(queries).astype(float)
        products = exact @ centroids.T
        if self._metric is Metric.L2:
            products *= -2
            products += np.vecdot(exact, exact)[:, None]
            products += np.vecdot(centroids, centroids)
        scores: Float32Array = products.astype(np.float32)
        return scores

    def _with_ties(
        self,
        search: tuple[Float32Array, int, int, faiss.IDSelector | None, Probes | None],
        scores: Float32Array,
        rows: Int64Array,
        squared_norms: Float32Array,
        positions: RowMap,
    ) -> Candidates:
        """Return `rows` and, by further searches, the rows that tie with the k-th of a query."""
        queries, k, nprobe, selector, probes = search
        wanted = rows.shape[1]
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
            of_open = None if probes is None else probes.of(open_queries)
            scores, rows = self._search(queries[open_queries], wanted, nprobe, selector, of_open)
            found.append(_pairs(open_queries, rows))
        return concatenate(found)

    def _nearest(
        self,
        queries: Float32Array,
        wanted: int,
        nprobe: int,
        selector: faiss.IDSelector | None,
        probes: Probes | None = None,
    ) -> Int64Array:
        if self._fast_scan is None:
            return self._search(queries, wanted, nprobe, selector, probes)[1]
        lists = None if probes is None else probes.lists
        return self._fast_scan.nearest(self.as_held(queries), wanted, nprobe, selector, lists)[1]

    def _search(
        self,
        queries: Float32Array,
        wanted: int,
        nprobe: int,
        selector: faiss.IDSelector | None,
        probes: Probes | None = None,
    ) -> tuple[Float32Array, Int64Array]:
        queries = self.as_held(queries)
        if probes is None:
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
            scores, rows = self._index.search(queries, wanted, params=parameters)
            return scores, rows
        # Only the raw call takes a selector. It skips the padding -1 anywhere.
        parameters = faiss.SearchParametersIVF(nprobe=probes.lists.shape[1], sel=selector)
        scores = np.empty((len(queries), wanted), np.float32)
        rows = np.empty((len(queries), wanted), np.int64)
        lists, distances = map(np.ascontiguousarray, (probes.lists, probes.distances))
        self._index.search_preassigned_c(
            len(queries),
            faiss.swig_ptr(queries),
            wanted,
            *map(faiss.swig_ptr, (lists, distances, scores, rows)),
            False,
            parameters,
        )
        return scores, rows

    def _selector(
        self, tombstones: Tombstones, passing: UInt8Array | None = None
    ) -> faiss.IDSelector | None:
        """Return a selector of the live rows, or of `passing`, a bitmap of live rows.

        It reads the bitmap in place and keeps it alive.
        """
        if passing is not None:
            return faiss.IDSelectorBitmap(passing)
        last, selector = self._selected
        if last is not tombstones:
            selector = None
            if tombstones.count:
                # Not of the live rows: past its end a bitmap excludes rows, and newer ones are
                # there.
                selector = faiss.IDSelectorNot(faiss.IDSelectorBitmap(tombstones.bits))
            self._selected = tombstones, selector
        return selector

    def as_held(self, vectors: Float32Array) -> Float32Array:
        """Return vectors (rows, dim) as FAISS takes them, with zeros where it needs more."""
        return _padded(vectors, self._held_dim)


def _padded(vectors: Float32Array, dim: int) -> Float32Array:
    """Return vectors (rows, dim) in C order, padded with zeros to `dim` components."""
    missing = dim - vectors.shape[1]
    if missing:
        vectors = np.pad(vectors, ((0, 0), (0, missing)))
    return np.ascontiguousarray(vectors)


def _short(rows: Int64Array, enough: int) -> Int64Array:
    """Return the queries with fewer than `enough` of `rows` (queries, n), which -1 pads."""
    if not enough or min(rows[:, enough - 1].tolist(), default=0) >= 0:
        return _NO_QUERIES
    return np.flatnonzero(rows[:, enough - 1] < 0)


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
