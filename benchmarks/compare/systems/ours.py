"""This project's server as `vectorshard serve` starts it, asked over gRPC by its Python client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.compare.systems import Float32Array, Int64Array

EFFORTS = (
    *(0.70, 0.75, 0.80, 0.84, 0.87, 0.89, 0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97),
    *(0.98, 0.985, 0.99, 0.995),
)
"""Target recalls."""
EMBEDDED = False
SERVER_WIDE = False
WRITE_ROWS = 20_000
IMPORTS = ("vectorshard", "benchmarks.server")
COLLECTION = "compare"


def start(directory: Path) -> tuple[str, list[int]]:
    """Run a server."""
    from vectorshard.shard.config import LISTENING

    program = str(Path(sys.executable).with_name("vectorshard"))
    command = [program, "serve", "--data", str(directory), "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.startswith(LISTENING):
        raise RuntimeError("the server did not start")
    return line.removeprefix(LISTENING).strip(), [server.pid]


class Connection:
    """A client with a connection of its own."""

    def __init__(self, target: str, dim: int, metric: str) -> None:
        from vectorshard import Client

        self._client = Client(target, timeout_s=120.0)
        self._dim, self._metric = dim, metric
        self._recall = 0.95

    def create(self) -> None:
        self._client.create_collection(COLLECTION, dim=self._dim, metric=self._metric)

    def write(self, first: int, vectors: Float32Array) -> None:
        self._client.upsert(COLLECTION, np.arange(first, first + len(vectors)), vectors)

    def finish(self) -> None:
        """Wait until the index has absorbed the rows and no training runs."""
        from benchmarks.server import wait_until_at_rest
        from vectorshard.shard.types import ShardState

        shards = self._client.describe(COLLECTION).shards
        if any(shard.state is not ShardState.TRAINED and not shard.training for shard in shards):
            self._client.train(COLLECTION, wait=True)  # too few rows to train unasked
        wait_until_at_rest(self._client, COLLECTION)

    def tune(self, effort: float) -> None:
        self._recall = effort

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        hits = self._client.search(COLLECTION, queries, k, target_recall=self._recall)
        return np.asarray(hits.ids, np.int64).reshape(len(queries), -1)[:, :k]

    def count(self) -> int:
        return self._client.count(COLLECTION)

    def close(self) -> None:
        self._client.close()
