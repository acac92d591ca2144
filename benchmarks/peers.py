"""FAISS called in this process, for comparison with servers. No server takes part.

All vectors have norm 1 and all scores are inner products, as in a COSINE collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.vectors import SEED, Float32Array

Int64Array = npt.NDArray[np.int64]

TRAINING_ROWS_A_LIST = 64
PQ_BITS = 4
COMPONENTS_A_CODE = 2
"""Components of one sub-quantizer, as in the shards for dims below 256."""
FAST_SCAN_BLOCK = 32
FLAT_NLIST = 1_024
HNSW_LINKS = 32
EFFORT_STEP = 1.2
"""Ratio of two consecutive efforts."""
EFFORT_MAX = 2_000

Search = Callable[[Sequence[Float32Array], int, int], Int64Array]
"""Searches batches, each (queries, dim), for k hits at an effort: rows int64 (queries, k)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The effort of a search of codes: lists probed, and rows re-ranked."""

    nprobe: int
    candidates: int


class Codes:
    """The shards' index without the shards: 4-bit codes, candidates re-ranked by their vectors.

    Rows are distributed randomly over as many parts as there are shards. Each part has an index and
    a thread with one core, and does not wait for the others before its next batch.

    Parameters
    ----------
    vectors
        float32 (rows, dim), of an even dim.
    nlist
        Lists of each part.
    parts
        The number of parts, at most the number of cores.
    components
        Components of one sub-quantizer; a divisor of dim.
    """

    def __init__(
        self, vectors: Float32Array, nlist: int, parts: int, components: int = COMPONENTS_A_CODE
    ) -> None:
        order = np.random.default_rng(SEED).permutation(len(vectors))
        self._rows: list[Int64Array] = [np.sort(part) for part in np.array_split(order, parts)]
        self._vectors = [np.ascontiguousarray(vectors[rows]) for rows in self._rows]
        self._threads = [
            ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(1,))
            for _ in range(parts)
        ]
        training = [
            thread.submit(_trained_codes, part, nlist, components)
            for thread, part in zip(self._threads, self._vectors, strict=True)
        ]
        self._indexes = [trained.result() for trained in training]

    def search(
        self, batches: Sequence[Float32Array], k: int, settings: Sequence[Setting]
    ) -> Int64Array:
        """Return the rows of the k best of each query, int64 (queries, k), -1 after the last.

        Parameters
        ----------
        batches
            Each float32 (queries, dim).
        settings
            One per part.
        """
        asked: list[list[Future[tuple[Float32Array, Int64Array]]]] = [
            [
                thread.submit(self._search_part, part, batch, k, setting)
                for part, (thread, setting) in enumerate(zip(self._threads, settings, strict=True))
            ]
            for batch in batches
        ]
        return np.concatenate([_merged([part.result() for part in parts], k) for parts in asked])

    def places(
        self, batches: Sequence[Float32Array], truth: Int64Array, nprobe: int, most: int
    ) -> Int64Array:
        """Return the rank of each true row by the codes of its part: int64 (queries, k), from 0.

        `truth` is int64 (queries, k). A row that is not among the best `most` has rank `most`.
        """
        asked = [
            [
                thread.submit(self._proposed, part, batch, nprobe, most)
                for part, thread in enumerate(self._threads)
            ]
            for batch in batches
        ]
        places = np.full(truth.shape, most)
        queries = iter(range(len(truth)))
        for parts in asked:
            for rows_of_parts in zip(*(part.result() for part in parts), strict=True):
                query = next(queries)
                for rows in rows_of_parts:
                    _, true, at = np.intersect1d(truth[query], rows, return_indices=True)
                    places[query, true] = at
        return places

    def _proposed(self, part: int, queries: Float32Array, nprobe: int, most: int) -> Int64Array:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)
        _, rows = self._indexes[part].search(queries, most, params=parameters)
        return np.where(rows < 0, -1, self._rows[part][rows])

    def _search_part(
        self, part: int, queries: Float32Array, k: int, setting: Setting
    ) -> tuple[Float32Array, Int64Array]:
        parameters = faiss.SearchParametersIVF(nprobe=setting.nprobe)
        wanted = max(k, setting.candidates)
        _, rows = self._indexes[part].search(queries, wanted, params=parameters)
        scores = np.empty(rows.shape, np.float32)  # -inf for row -1
        faiss.fvec_inner_products_by_idx(
            faiss.swig_ptr(scores),
            faiss.swig_ptr(queries),
            faiss.swig_ptr(self._vectors[part]),
            faiss.swig_ptr(rows),
            queries.shape[1],
            *rows.shape,
        )
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(rows, best, axis=1)
        numbers = np.where(found < 0, -1, self._rows[part][found])
        return np.take_along_axis(scores, best, axis=1), numbers


def _trained_codes(vectors: Float32Array, nlist: int, components: int) -> faiss.IndexIVFPQFastScan:
    dim = vectors.shape[1]
    index = faiss.IndexIVFPQFastScan(
        faiss.IndexFlatIP(dim),
        dim,
        nlist,
        dim // components,
        PQ_BITS,
        faiss.METRIC_INNER_PRODUCT,
        FAST_SCAN_BLOCK,
    )
    index.by_residual = False
    _train(index, vectors, nlist)
    index.add_with_ids(vectors, np.arange(len(vectors)))
    return index


def _train(index: faiss.IndexIVF, vectors: Float32Array, nlist: int) -> None:
    """Train on a sample spread over all rows, which may be ordered."""
    wanted = min(len(vectors), nlist * TRAINING_ROWS_A_LIST)
    sample = np.random.default_rng(SEED).choice(len(vectors), wanted, replace=False)
    index.cp.seed = SEED
    index.cp.min_points_per_centroid = 1
    index.train(vectors[np.sort(sample)])


def _merged(parts: Sequence[tuple[Float32Array, Int64Array]], k: int) -> Int64Array:
    scores = np.concatenate([scores for scores, _ in parts], axis=1)
    rows = np.concatenate([rows for _, rows in parts], axis=1)
    best = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(rows, best, axis=1)


def flat(vectors: Float32Array) -> Search:
    """Return the search of IVF1024,Flat over `vectors` (rows, dim); its effort is nprobe."""
    faiss.omp_set_num_threads(cores())
    dim, nlist = vectors.shape[1], min(FLAT_NLIST, len(vectors))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, nlist, faiss.METRIC_INNER_PRODUCT)
    _train(index, vectors, nlist)
    index.add(vectors)
    return _searching(index, lambda nprobe: faiss.SearchParametersIVF(nprobe=nprobe))


def hnsw(vectors: Float32Array) -> Search:
    """Return the search of HNSW32 over `vectors` (rows, dim); its effort is efSearch."""
    faiss.omp_set_num_threads(cores())
    index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    return _searching(index, lambda ef: faiss.SearchParametersHNSW(efSearch=ef))


def _searching(index: faiss.Index, parameters: Callable[[int], faiss.SearchParameters]) -> Search:
    def search(batches: Sequence[Float32Array], k: int, effort: int) -> Int64Array:
        faiss.omp_set_num_threads(cores())  # of the calling thread
        asked = parameters(effort)
        return np.concatenate([index.search(batch, k, params=asked)[1] for batch in batches])

    return search


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def batches_of(queries: Float32Array, size: int) -> list[Float32Array]:
    """Return queries (queries, dim) in batches of `size`; the last may be smaller."""
    return [
        np.ascontiguousarray(queries[first : first + size])
        for first in range(0, len(queries), size)
    ]


def recall_of(found: npt.NDArray[np.integer], neighbors: npt.NDArray[np.integer]) -> float:
    """Return the share of the neighbors (queries, k) among those found, (queries, k)."""
    pairs = zip(found, neighbors, strict=True)
    right = sum(len(np.intersect1d(rows, truth)) for rows, truth in pairs)
    return right / neighbors.size


@dataclass(frozen=True, slots=True)
class Point:
    """The result of an effort: recall, and queries per second."""

    effort: int
    recall: float
    queries_per_s: float


def curve(
    search: Callable[[int], npt.NDArray[np.integer]],
    neighbors: npt.NDArray[np.integer],
    *,
    lowest: int,
    recall_from: float,
    recall_to: float,
    passes: int,
) -> list[Point]:
    """Return the points of growing effort, from the first recall until one reaches the second.

    Parameters
    ----------
    search
        Finds rows (queries, k) at an effort.
    neighbors
        (queries, k): the ground truth.
    lowest
        The first effort.
    passes
        How often each effort is timed, in turn; the rates are medians.
    """
    recalls: dict[int, float] = {}
    rates: dict[int, list[float]] = {}
    for effort in efforts(lowest):
        start = perf_counter()
        found = search(effort)
        took_s = perf_counter() - start
        recall = recall_of(found, neighbors)
        if recall >= recall_from:
            recalls[effort] = recall
            rates[effort] = [len(neighbors) / took_s]
        if recall >= recall_to:
            break
    for _ in range(passes - 1):
        for effort, of_effort in rates.items():
            start = perf_counter()
            search(effort)
            of_effort.append(len(neighbors) / (perf_counter() - start))
    return [Point(effort, recalls[effort], median(rates[effort])) for effort in rates]


def efforts(lowest: int) -> Iterator[int]:
    """Yield efforts from the lowest to EFFORT_MAX, each about EFFORT_STEP times the previous."""
    effort = lowest
    while effort <= EFFORT_MAX:
        yield effort
        effort = max(effort + 1, round(effort * EFFORT_STEP))


def cheapest(points: Sequence[Point], recall: float) -> Point:
    """Return the point of least effort that reaches a recall.

    Raises
    ------
    ValueError
        If no point does.
    """
    reaching = [point for point in points if point.recall >= recall]
    return min(reaching, key=lambda point: point.effort)
