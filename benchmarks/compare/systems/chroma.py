"""Chroma: its own server (`chroma run`), asked over HTTP by its Python client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.compare.systems import (
    HNSW_BUILD_EFFORT,
    HNSW_EFFORTS,
    HNSW_LINKS,
    Float32Array,
    Int64Array,
    free_port,
    padded,
    wait_for,
)

EFFORTS = HNSW_EFFORTS
EMBEDDED = False
SERVER_WIDE = True
AT_START = True
WRITE_ROWS = 5_000
IMPORTS = ("chromadb",)
COLLECTION = "compare"


def start(directory: Path) -> tuple[str, list[int]]:
    """Run a server."""
    port = free_port()
    program = str(Path(sys.executable).with_name("chroma"))
    command = [program, "run", "--path", str(directory), "--host", "127.0.0.1", "--port", port]
    quietly = {**os.environ, "RUST_LOG": "error"}  # else it logs every request
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=quietly)
    wait_for(lambda: urlopen(f"http://127.0.0.1:{port}/api/v2/heartbeat").close())
    return port, [server.pid]


def _client(port: str) -> Any:
    import chromadb

    settings = chromadb.Settings(anonymized_telemetry=False)
    return chromadb.HttpClient(host="127.0.0.1", port=int(port), settings=settings)


class Connection:
    """A client and its collection."""

    def __init__(self, target: str, dim: int, metric: str) -> None:
        self._client = _client(target)
        self._metric = metric
        self._opened: Any = None

    def create(self) -> None:
        hnsw = {"space": self._metric, "max_neighbors": HNSW_LINKS}
        hnsw["ef_construction"] = HNSW_BUILD_EFFORT
        self._client.create_collection(
            COLLECTION, configuration={"hnsw": hnsw}, embedding_function=None
        )

    @property
    def _collection(self) -> Any:
        if self._opened is None:
            self._opened = self._client.get_collection(COLLECTION, embedding_function=None)
        return self._opened

    def write(self, first: int, vectors: Float32Array) -> None:
        """Add rows; it logs them before it answers, and indexes them before a search."""
        numbers = range(first, first + len(vectors))
        self._collection.add(ids=[str(number) for number in numbers], embeddings=vectors)

    def finish(self) -> None:
        """Search once: a search waits for the index."""
        self.search(self._collection.get(limit=1, include=["embeddings"])["embeddings"], 1)

    def tune(self, effort: float) -> None:
        self._collection.modify(configuration={"hnsw": {"ef_search": int(effort)}})

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        answer = self._collection.query(query_embeddings=queries, n_results=k, include=[])
        return padded([[int(row) for row in of_query] for of_query in answer["ids"]], k)

    def count(self) -> int:
        return int(self._collection.count())

    def close(self) -> None:
        """Leave the connection to its pool."""
