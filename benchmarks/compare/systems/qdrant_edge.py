"""Qdrant Edge: Qdrant's engine as a library in the process of its callers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.compare.systems import (
    HNSW_BUILD_EFFORT,
    HNSW_EFFORTS,
    HNSW_LINKS,
    Float32Array,
    Int64Array,
    padded,
)

EFFORTS = HNSW_EFFORTS
EMBEDDED = True
SERVER_WIDE = True
WRITE_ROWS = 2_000
IMPORTS = ("qdrant_edge",)
SCAN_KB = 1_000
"""Segments below this are scanned."""


class Connection:
    """The shard itself: all callers share it."""

    def __init__(self, target: str, dim: int, metric: str) -> None:
        import qdrant_edge as edge

        self._edge = edge
        self._path = Path(target)
        self._dim = dim
        self._distance = {"cosine": edge.Distance.Cosine, "l2": edge.Distance.Euclid}[metric]
        self._params = edge.SearchParams()
        self._shard: Any = edge.EdgeShard.load(target) if self._path.exists() else None

    def create(self) -> None:
        self._path.mkdir()
        vectors = self._edge.EdgeVectorParams(self._dim, self._distance)
        hnsw = self._edge.HnswIndexConfig(HNSW_LINKS, HNSW_BUILD_EFFORT, SCAN_KB)
        optimizers = self._edge.EdgeOptimizersConfig(indexing_threshold=SCAN_KB)
        config = self._edge.EdgeConfig(vectors=vectors, hnsw_config=hnsw, optimizers=optimizers)
        self._shard = self._edge.EdgeShard.create(str(self._path), config)

    def write(self, first: int, vectors: Float32Array) -> None:
        """Upsert rows; they are in its log when it returns."""
        rows = enumerate(vectors.tolist(), start=first)
        points = [self._edge.Point(number, vector) for number, vector in rows]
        self._shard.update(self._edge.UpdateOperation.upsert_points(points))

    def finish(self) -> None:
        self._shard.optimize()
        self._shard.flush()

    def tune(self, effort: float) -> None:
        self._params = self._edge.SearchParams(hnsw_ef=int(effort))

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        nearest = [self._edge.Query.Nearest(query) for query in queries.tolist()]
        asked = [
            self._edge.QueryRequest(limit=k, query=each, params=self._params) for each in nearest
        ]
        if len(asked) == 1:
            found = [self._shard.query(asked[0])]
        else:
            found = self._shard.query_batch(self._edge.QueryBatchRequest(asked))
        return padded([[point.id for point in of_query] for of_query in found], k)

    def count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest()))

    def close(self) -> None:
        self._shard.close()
