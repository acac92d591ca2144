"""zvec: a library in the process of its callers, with an HNSW index."""

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
WRITE_ROWS = 1_000
IMPORTS = ("zvec",)
FIELD = "embedding"


class Connection:
    """The collection itself: all callers share it."""

    def __init__(self, target: str, dim: int, metric: str) -> None:
        import zvec

        self._zvec = zvec
        self._target, self._dim = target, dim
        self._metric = {"cosine": zvec.MetricType.COSINE, "l2": zvec.MetricType.L2}[metric]
        self._param = zvec.HnswQueryParam()
        self._collection: Any = zvec.open(target) if Path(target).exists() else None

    def create(self) -> None:
        index = self._zvec.HnswIndexParam(
            metric_type=self._metric, m=HNSW_LINKS, ef_construction=HNSW_BUILD_EFFORT
        )
        kind = self._zvec.DataType.VECTOR_FP32
        vectors = self._zvec.VectorSchema(FIELD, kind, dimension=self._dim, index_param=index)
        schema = self._zvec.CollectionSchema("compare", vectors=vectors)
        self._collection = self._zvec.create_and_open(self._target, schema)

    def write(self, first: int, vectors: Float32Array) -> None:
        rows = enumerate(vectors, start=first)
        statuses = self._collection.insert(
            [self._zvec.Doc(str(number), vectors={FIELD: vector}) for number, vector in rows]
        )
        if not all(status.ok() for status in statuses):
            raise RuntimeError("rows were not inserted")

    def finish(self) -> None:
        self._collection.optimize()
        self._collection.flush()

    def tune(self, effort: float) -> None:
        self._param = self._zvec.HnswQueryParam(ef=int(effort))

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Search the queries one by one: it takes no batch."""
        asked = (self._zvec.Query(FIELD, vector=query, param=self._param) for query in queries)
        found = [self._collection.query(each, topk=k, output_fields=[]) for each in asked]
        return padded([[int(row.id) for row in of_query] for of_query in found], k)

    def count(self) -> int:
        return int(self._collection.stats.doc_count)

    def close(self) -> None:
        self._collection.close()
