"""The IVF index: FAISS behind a small face, and the only importer of it.

Holds codes of rows under their row numbers; the rows themselves live in the row file. What FAISS
1.15.1 demands of its callers, and where it is kept:

* adding while searching crashes the process: the collection holds a ReadWriteLock around both;
* nprobe and selectors travel per call in SearchParametersIVF; `index.nprobe` is never set;
* missing hits come back as row -1 and are dropped here;
* a row added twice is stored twice, a NaN row is dropped silently: rows come here once, checked;
* OpenMP's number of threads belongs to the calling thread: `use_cores` sets it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from shard.exact import Candidates, concatenate
from shard.tombstones import Tombstones
from shard.types import BoolArray, Float32Array, IndexKind, Int64Array, Metric

KMEANS_ROUNDS: Final = 10
"""Iterations of k-means, as FAISS itself defaults to for coarse quantizers."""

_PROPOSALS_FACTOR: Final = {IndexKind.IVF_FLAT: 1, IndexKind.IVF_SQ8: 2}
_PROPOSALS_SLACK: Final = 16
"""Candidates asked of an index beyond k, so that the exact re-rank has the k best among them."""

_TIED_PROPOSALS_MAX: Final = 4_096


def use_cores(cores: int) -> None:
    """Let FAISS use that many cores in calls from this thread."""
    faiss.omp_set_num_threads(cores)


class IvfIndex:
    """A trained IVF index over row numbers. Not safe for adding beside anything else."""

    def __init__(self, kind: IndexKind, index: faiss.IndexIVF) -> None:
        self._kind = kind
        self._index = index

    @classmethod
    def train(
        cls, kind: IndexKind, metric: Metric, sample: Float32Array, nlist: int, seed: int
    ) -> IvfIndex:
        """Train an empty index with `nlist` lists on `sample` (rows, dim), rows >= nlist."""
        dim = sample.shape[1]
        faiss_metric = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        quantizer = faiss.IndexFlat(dim, faiss_metric)
        if kind is IndexKind.IVF_FLAT:
            index = faiss.IndexIVFFlat(quantizer, dim, nlist, faiss_metric)
        else:
            index = faiss.IndexIVFScalarQuantizer(
                quantizer, dim, nlist, faiss.ScalarQuantizer.QT_8bit, faiss_metric
            )
        index.cp.seed = seed
        index.cp.niter = KMEANS_ROUNDS
        index.cp.min_points_per_centroid = 1  # fewer than 39 a list is the caller's decision
        index.cp.max_points_per_centroid = len(sample)  # the caller has sampled already
        index.train(sample)
        return cls(kind, index)

    @classmethod
    def from_bytes(cls, kind: IndexKind, serialized: bytes) -> IvfIndex:
        """Read what `to_bytes` wrote. The caller has verified its checksum: FAISS would not."""
        return cls(kind, faiss.deserialize_index(np.frombuffer(serialized, dtype=np.uint8)))

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
    def list_imbalance(self) -> float:
        """FAISS's imbalance factor: 1 when all lists are equally long."""
        return float(self._index.invlists.imbalance_factor()) if self.rows else 1.0

    @property
    def memory_bytes(self) -> int:
        """Bytes of codes, row numbers and centroids."""
        per_row = int(self._index.code_size) + 8
        return self.rows * per_row + self.nlist * int(self._index.d) * 4

    def add(self, rows: Int64Array, vectors: Float32Array) -> None:
        """Add `vectors` (rows, dim) under their row numbers, which it must not hold yet."""
        if len(rows):
            self._index.add_with_ids(np.ascontiguousarray(vectors), rows)

    def propose(
        self,
        queries: Float32Array,
        k: int,
        nprobe: int,
        tombstones: Tombstones,
        squared_norms_of: Callable[[Int64Array], Float32Array],
    ) -> Candidates:
        """Propose living rows for each query from its `nprobe` nearest lists.

        For IVF_FLAT they hold the k best of those lists and, up to a bound, all that tie with the
        k-th: ties are decided by id, which FAISS does not know. For compressed codes they hold a
        multiple of k, for the exact re-rank to choose from.

        Parameters
        ----------
        queries
            Float32 (queries, dim).
        squared_norms_of
            Returns the float32 squared norms of living rows, of the shape of their int64 numbers.
        """
        proposals = _PROPOSALS_FACTOR[self._kind] * k + _PROPOSALS_SLACK
        scores, rows = self._search(queries, proposals, nprobe, tombstones)
        found = [_pairs(np.arange(len(queries)), rows)]
        if self._kind is not IndexKind.IVF_FLAT:
            return found[0]
        open_queries = np.arange(len(queries))
        while proposals < min(self.rows, _TIED_PROPOSALS_MAX + k):
            ends = [k - 1, -1]
            tied = _tied(queries[open_queries], scores[:, ends], rows[:, ends], squared_norms_of)
            if not tied.any():
                break
            found[-1] = _pairs(open_queries[~tied], rows[~tied])
            open_queries = open_queries[tied]
            proposals *= 2
            scores, rows = self._search(queries[open_queries], proposals, nprobe, tombstones)
            found.append(_pairs(open_queries, rows))
        return concatenate(found)

    def _search(
        self, queries: Float32Array, proposals: int, nprobe: int, tombstones: Tombstones
    ) -> tuple[Float32Array, Int64Array]:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)
        if tombstones.count:
            dead = faiss.IDSelectorBitmap(tombstones.bits)
            # Never a bitmap of the living: it answers false past its end, and newer rows lie there.
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=faiss.IDSelectorNot(dead))
        scores, rows = self._index.search(queries, proposals, params=parameters)
        return scores, rows


def _pairs(query_of: Int64Array, rows: Int64Array) -> Candidates:
    """Flatten rows (queries, proposals), without the missing ones."""
    there = rows >= 0
    return Candidates(np.broadcast_to(query_of[:, None], rows.shape)[there], rows[there])


def _tied(
    queries: Float32Array,
    scores: Float32Array,
    rows: Int64Array,
    squared_norms_of: Callable[[Int64Array], Float32Array],
) -> BoolArray:
    """Say of each query whether two of its candidates may have the same score.

    FAISS sums float32 products or squared differences: the error of each score is below
    dim * 2^-24 * |q| * |x| or dim * 2^-24 * score. `scores` and `rows` are (queries, 2); the
    padding of a short answer (row -1) ties with nothing.
    """
    whole = np.flatnonzero(rows[:, 1] >= 0)
    queries, scores = queries[whole], scores[whole]
    query_norms = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)
    row_norms = squared_norms_of(rows[whole]).max(axis=1).astype(np.float64)
    scale = np.maximum(np.abs(scores).max(axis=1), np.sqrt(query_norms * row_norms))
    error = queries.shape[1] * 2.0**-24 * scale
    gap = np.abs(scores[:, 0].astype(np.float64) - scores[:, 1])
    tied = np.zeros(len(rows), dtype=np.bool_)
    tied[whole] = gap <= 2 * error
    return tied
