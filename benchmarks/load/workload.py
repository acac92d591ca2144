"""The rows, queries and ground truth of a run: from a file, or synthetic.

The queries are a sample spread over all queries of the file, in an order that the seed decides: the
first queries of a file may be of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.load.plan import CallKind, Plan
from benchmarks.load.recall import nearest_rows
from benchmarks.load.stored_rows import why_other_rows
from benchmarks.vectors import clustered
from vectorshard.cli.vector_files import (
    Column,
    UnreadableFile,
    VectorFile,
    as_vectors,
    existing_key,
    open_hdf5,
    open_vectors,
)
from vectorshard.client.client import Client
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.types import IdArray, Metric, VectorArray

SYNTHETIC = "synthetic"
SYNTHETIC_DIM = 100
SYNTHETIC_QUERIES = 1_000
SAMPLE_MAX = 10_000
"""The number of distinct queries, or of distinct rows to write."""
QUERIES_KEYS = ("test", "queries")
NEIGHBORS_KEYS = ("neighbors",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The vectors of a run.

    `source` has the rows of the collection. `sample` (queries, dim) has the vectors of the calls:
    queries, or rows to write. `truth` (queries, k_max) has the ids of the nearest rows of `source`
    to each query; None if they are unknown.
    """

    source: VectorFile
    sample: VectorArray
    truth: IdArray | None = None


@contextmanager
def open_workload(plan: Plan, dim: int | None) -> Iterator[Workload]:
    """Open the file or the synthetic rows of `plan.data` until the context ends.

    `dim` is that of the collection, for synthetic rows; None if it does not exist yet.

    Raises
    ------
    UnreadableFile
        If the file lacks an array, or its arrays do not fit together.
    """
    if plan.data == SYNTHETIC:
        yield _synthetic(plan, dim or SYNTHETIC_DIM)
        return
    path = Path(plan.data)
    with open_vectors(path, vectors_key=plan.vectors_key) as source:
        if not source.rows:
            raise UnreadableFile(f"{path}: the file contains no vectors")
        yield _of_file(plan, path, source)


def _synthetic(plan: Plan, dim: int) -> Workload:
    vectors = clustered(plan.rows, dim)
    source = VectorFile(vectors=vectors, ids=None, metric=Metric.L2)
    if plan.call is CallKind.upsert:
        return Workload(source=source, sample=_rows_of(source, plan.seed))
    queries = clustered(SYNTHETIC_QUERIES, dim, part=1)
    queries = queries[order_of(len(queries), plan.seed)]
    truth = nearest_rows(vectors, queries, min(plan.k, plan.rows), Metric.L2)
    return Workload(source=source, sample=queries, truth=truth)


def _of_file(plan: Plan, path: Path, source: VectorFile) -> Workload:
    if plan.call is CallKind.upsert:
        return Workload(source=source, sample=_rows_of(source, plan.seed))
    with ExitStack() as stack:
        arrays = _arrays(path, stack)
        queries_key = key_of(arrays, plan.queries_key, QUERIES_KEYS)
        neighbors_key = key_of(arrays, plan.neighbors_key, NEIGHBORS_KEYS)
        if not queries_key:
            return Workload(source=source, sample=_rows_of(source, plan.seed))
        queries = spread(arrays[queries_key])
        neighbors = spread(arrays[neighbors_key]) if neighbors_key else None
    if queries.ndim != 2 or queries.dtype.kind not in "fiu" or not len(queries):
        raise UnreadableFile(
            f"{path}: queries must be (queries, dim) real numbers, not "
            f"{queries.dtype} of shape {queries.shape}"
        )
    order = order_of(len(queries), plan.seed)
    return Workload(
        source=source,
        sample=as_vectors(queries[order]),
        truth=None if neighbors is None else _truth(path, source, queries, neighbors)[order],
    )


def _truth(
    path: Path, source: VectorFile, queries: npt.NDArray[Any], neighbors: npt.NDArray[Any]
) -> IdArray:
    """Return the ids of the rows whose numbers are `neighbors` (queries, k_max)."""
    if neighbors.ndim != 2 or neighbors.dtype.kind not in "iu" or len(neighbors) != len(queries):
        raise UnreadableFile(
            f"{path}: neighbors must be (queries, k) row numbers, not "
            f"{neighbors.dtype} of shape {neighbors.shape} for {len(queries)} queries"
        )
    if neighbors.size and not 0 <= neighbors.min() <= neighbors.max() < source.rows:
        raise UnreadableFile(f"{path}: neighbors contains row numbers that do not exist")
    return neighbors.astype(np.int64) if source.ids is None else source.ids[neighbors]


def _arrays(path: Path, stack: ExitStack) -> Mapping[str, Any]:
    """Return the named arrays of a file; `stack` closes them. A .npy has none."""
    if path.suffix.lower() == ".npz":
        arrays: Mapping[str, Any] = stack.enter_context(np.load(path, allow_pickle=False))
        return arrays
    if path.suffix.lower() == ".npy":
        return {}
    datasets: Mapping[str, Any] = stack.enter_context(open_hdf5(path))
    return datasets


def key_of(arrays: Mapping[str, Any], key: str, defaults: Sequence[str]) -> str:
    """Return `key`, which must exist, or the first existing default, or ""."""
    if key:
        return existing_key(arrays, key)
    return next((default for default in defaults if default in arrays), "")


def spread(column: Column, most: int = SAMPLE_MAX) -> npt.NDArray[Any]:
    """Return at most `most` rows of a column, evenly spaced."""
    step = -(-column.shape[0] // most) if column.shape[0] else 1
    return column[::step]


def order_of(rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the numbers of all rows, shuffled."""
    return np.random.default_rng(seed).permutation(rows)


def _rows_of(source: VectorFile, seed: int) -> VectorArray:
    rows = as_vectors(spread(source.vectors))
    return as_vectors(rows[order_of(len(rows), seed)])


def why_no_recall(
    client: Client, workload: Workload, description: CollectionDescription, k: int
) -> str:
    """Return why the ground truth does not apply to a collection; empty if it does."""
    if workload.truth is None:
        return "the data has no ground truth"
    if workload.truth.shape[1] < k:
        return f"the ground truth has {workload.truth.shape[1]} rows a query, not {k}"
    return why_other_rows(client, description, workload.source)
