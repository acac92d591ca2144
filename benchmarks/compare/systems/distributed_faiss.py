"""distributed-faiss: two of its servers with IVF-Flat, as many lists as it infers from the rows.

It needs a checkout in PYTHONPATH. Inner products of unit vectors are its cosine.
"""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.compare.systems import Float32Array, Int64Array, free_port, padded, wait_for

EFFORTS = tuple(sorted({round(1.2**step) for step in range(36)}))
"""nprobe, 1 to 591."""
EMBEDDED = False
SERVER_WIDE = True
WRITE_ROWS = 2_000
SERVERS = 2
IMPORTS = ("distributed_faiss.client",)
COLLECTION = "compare"
SERVE = """
import logging, sys
from distributed_faiss.server import IndexServer
logging.getLogger().setLevel(logging.WARNING)
IndexServer(int(sys.argv[1]), sys.argv[3]).start_blocking(int(sys.argv[2]))
"""


def start(directory: Path) -> tuple[str, list[int]]:
    """Run the servers, and load what they saved before, which is nothing unless asked."""
    directory.mkdir(exist_ok=True)
    ports, pids = [], []
    for rank in range(SERVERS):
        ports.append(free_port())
        command = [sys.executable, "-c", SERVE, str(rank), ports[-1], str(directory)]
        pids.append(subprocess.Popen(command, stdout=sys.stderr).pid)
    for port in ports:
        wait_for(partial(_touch, int(port)))
    servers = directory / "servers.txt"
    servers.write_text("\n".join([str(SERVERS), *(f"127.0.0.1,{port}" for port in ports)]) + "\n")
    return str(servers), pids


def _touch(port: int) -> None:
    socket.create_connection(("127.0.0.1", port)).close()


class Connection:
    """Its client: a socket to each server."""

    def __init__(self, target: str, dim: int, metric: str) -> None:
        from distributed_faiss.client import IndexClient
        from distributed_faiss.index_cfg import IndexCfg

        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            self._client = IndexClient(target)
        metric = {"cosine": "dot", "l2": "l2"}[metric]
        self._client.cfg = IndexCfg(
            faiss_factory="IVF{centroids},Flat", dim=dim, metric=metric, infer_centroids=True
        )
        self._rows = 0

    def create(self) -> None:
        self._client.create_index(COLLECTION)

    def write(self, first: int, vectors: Float32Array) -> None:
        """Add rows to a server's buffer, in memory; each has its number as metadata."""
        numbers = list(range(first, first + len(vectors)))
        self._client.add_index_data(COLLECTION, np.ascontiguousarray(vectors), numbers)
        self._rows = numbers[-1] + 1

    def finish(self) -> None:
        """Train on all rows, and wait until they are added."""
        self._client.sync_train(COLLECTION)
        while self._client.get_ntotal(COLLECTION) < self._rows:
            time.sleep(0.02)
        time.sleep(0.1)  # its state follows

    def tune(self, effort: float) -> None:
        self._client.set_nprobe(COLLECTION, int(effort))

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        _, rows = self._client.search(np.ascontiguousarray(queries), k, COLLECTION)
        return padded([[row for row in of_query if row is not None] for of_query in rows], k)

    def count(self) -> int:
        return int(self._client.get_ntotal(COLLECTION))

    def close(self) -> None:
        self._client.close()
