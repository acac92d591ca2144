"""Rows, queries and their exact neighbours, from any HDF5 file in the layout of ann-benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.compare.systems import Float32Array, Int64Array

K = 10
NEIGHBORS = 100
METRICS = {"angular": "cosine", "cosine": "cosine", "euclidean": "l2"}
"""Of the file's attribute `distance`."""
QUERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Dataset:
    """float32 rows (rows, dim) and queries, and int64 neighbours (queries, 100), best first.

    For "cosine" all vectors have norm 1. The first third of the queries, at most 1,000, is the
    sample that efforts are chosen by; the others are held out.
    """

    metric: str
    train: Float32Array
    queries: Float32Array
    neighbors: Int64Array

    @classmethod
    def read(cls, file: Path, rows: int | None, seed: int) -> Dataset:
        """Read a file, or a random part of its rows, in their order, with exact neighbours.

        Raises
        ------
        ValueError
            If the file's distance is none of METRICS.
        """
        import h5py

        with h5py.File(file, "r") as datasets:
            distance = datasets.attrs["distance"]
            if distance not in METRICS:
                raise ValueError(f"{file}: distance {distance} is none of {', '.join(METRICS)}")
            train, queries = datasets["train"][:], datasets["test"][:]
            neighbors = datasets["neighbors"][:].astype(np.int64)
        metric, size = METRICS[distance], len(train)
        queries = queries.astype(np.float32)
        if rows is not None and rows < size:
            train = train[np.sort(np.random.default_rng(seed).permutation(size)[:rows])]
        train = train.astype(np.float32)
        if metric == "cosine":
            train /= np.linalg.norm(train, axis=1, keepdims=True)
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        if len(train) < size:
            neighbors = nearest(train, queries, metric)
        return cls(metric, train, queries, neighbors)

    def first(self, rows: int) -> Dataset:
        """Return the first rows alone."""
        train = self.train[:rows]
        return Dataset(self.metric, train, self.queries, nearest(train, self.queries, self.metric))

    def save(self, directory: Path) -> None:
        """Write it for the client processes, which map it."""
        directory.mkdir()
        (directory / "metric").write_text(json.dumps(self.metric))
        for name in ("train", "queries", "neighbors"):
            np.save(directory / f"{name}.npy", getattr(self, name))
        (directory / "acknowledged").write_bytes(bytes(8))

    @classmethod
    def open(cls, directory: Path) -> Dataset:
        """Map what `save` wrote."""
        names = ("train", "queries", "neighbors")
        arrays = [np.load(directory / f"{name}.npy", mmap_mode="r") for name in names]
        return cls(json.loads((directory / "metric").read_text()), *arrays)

    def sample(self, is_tuning: bool, queries: int) -> tuple[Float32Array, Int64Array]:
        """Return at most so many queries of the sample, or held out, and their neighbours."""
        split = min(1_000, len(self.queries) // 3)
        part = slice(0, split) if is_tuning else slice(split, None)
        chosen = np.ascontiguousarray(self.queries[part][:queries])
        return chosen, np.asarray(self.neighbors[part][:queries])


def nearest(train: Float32Array, queries: Float32Array, metric: str) -> Int64Array:
    """Return the nearest rows of each query, int64 (queries, 100), best first, by a product."""
    norms = np.einsum("ij,ij->i", train, train) if metric == "l2" else np.float32(0)
    found = []
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        scores = 2 * queries[first : first + QUERIES_AT_ONCE] @ train.T - norms
        kept = min(NEIGHBORS, scores.shape[1])
        best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(found)


def recall_of(found: Int64Array, neighbors: Int64Array) -> float:
    """Return the share of the k nearest among those found, (queries, k)."""
    k = found.shape[1]
    hits = [np.isin(truth[:k], rows).sum() for rows, truth in zip(found, neighbors, strict=True)]
    return float(np.sum(hits) / (k * len(found)))
