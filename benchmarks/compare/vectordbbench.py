"""VectorDBBench's client of this project: package vectordb-bench 2, with `pip install vectorshard`.

Its enum DB, in vectordb_bench/backend/clients/__init__.py, lists all clients. To add this one, give
DB a member VectorShard, for which `init_cls` returns VectorShard, `config_cls` VectorShardConfig,
and `case_config_cls` VectorShardCase.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from pydantic import BaseModel
from vectordb_bench.backend.clients.api import DBCaseConfig, DBConfig, MetricType, VectorDB

from vectorshard import Client
from vectorshard.errors import CollectionNotFound, VectorShardError

TIMEOUT_S = 3_600.0
METRICS = {"COSINE": "cosine", "L2": "l2", "IP": "inner_product", "DP": "inner_product"}


class VectorShardConfig(DBConfig):  # type: ignore[misc]
    """Where the server is."""

    target: str = "127.0.0.1:7700"

    def to_dict(self) -> dict[str, Any]:
        """Return what VectorShard takes as `db_config`."""
        return {"target": self.target}


class VectorShardCase(BaseModel, DBCaseConfig):  # type: ignore[misc]
    """The metric, and the recall that searches aim at: the server chooses its effort."""

    metric_type: MetricType | None = None
    target_recall: float = 0.95

    def index_param(self) -> dict[str, Any]:
        """Return the arguments of create_collection."""
        metric = METRICS[(self.metric_type or MetricType.COSINE).name]
        return {"metric": metric, "target_recall": self.target_recall}

    def search_param(self) -> dict[str, Any]:
        """Return the arguments of searches."""
        return {"target_recall": self.target_recall}


class VectorShard(VectorDB):  # type: ignore[misc]
    """One collection; threads share the connection of `init`."""

    name = "VectorShard"

    def __init__(
        self,
        dim: int,
        db_config: dict[str, Any],
        db_case_config: VectorShardCase | None,
        collection_name: str = "vectordbbench",
        drop_old: bool = False,
        **_: Any,
    ) -> None:
        self._target = db_config["target"]
        self._case = db_case_config or VectorShardCase()
        self._collection = collection_name
        self._client: Client | None = None
        with Client(self._target) as client:
            if drop_old:
                with suppress(CollectionNotFound):
                    client.drop_collection(collection_name)
            client.create_collection(collection_name, dim=dim, **self._case.index_param())

    @contextmanager
    def init(self) -> Iterator[None]:
        """Connect."""
        with Client(self._target, timeout_s=TIMEOUT_S) as client:
            self._client = client
            yield
        self._client = None

    def _connected(self) -> Client:
        assert self._client is not None, "call init() before"
        return self._client

    def insert_embeddings(
        self, embeddings: list[list[float]], metadata: list[int], *_: Any, **__: Any
    ) -> tuple[int, Exception | None]:
        """Upsert rows, whose ids are `metadata`; return how many are durable, and the error."""
        try:
            vectors = np.asarray(embeddings, np.float32)
            self._connected().upsert(self._collection, metadata, vectors)
        except VectorShardError as error:
            return 0, error
        return len(metadata), None

    def search_embedding(self, query: list[float], k: int = 100, *_: Any, **__: Any) -> list[int]:
        """Return the ids of the k best."""
        asked = np.asarray([query], np.float32)
        hits = self._connected().search(self._collection, asked, k, **self._case.search_param())
        return [int(id_) for id_ in hits.ids]

    def optimize(self, data_size: int | None = None) -> None:
        """Train on all rows, and wait."""
        self._connected().train(self._collection, wait=True, timeout_s=TIMEOUT_S)
