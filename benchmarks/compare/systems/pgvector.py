"""pgvector: PostgreSQL from the package pgserver, with an HNSW index that is built after the load.

As root, pgserver creates the user `pgserver` and runs PostgreSQL as that user.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.compare.systems import (
    HNSW_BUILD_EFFORT,
    HNSW_EFFORTS,
    HNSW_LINKS,
    Float32Array,
    Int64Array,
    padded,
)

EFFORTS = HNSW_EFFORTS
EMBEDDED = False
SERVER_WIDE = False
WRITE_ROWS = 20_000
IMPORTS = ("psycopg",)
SHARED_BUFFERS = "512MB"
BUILD_MEMORY = "1GB"
COPY_HEADER, COPY_TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


def start(directory: Path) -> tuple[str, list[int]]:
    """Run PostgreSQL with buffers that hold table and index."""
    import pgserver

    is_new = not (directory / "PG_VERSION").exists()
    # After kill -9 it names a process that is no more, and pgserver would take it for a server.
    (directory / "postmaster.pid").unlink(missing_ok=True)
    server = pgserver.get_server(directory, cleanup_mode="stop")
    if is_new:
        server.psql(f"ALTER SYSTEM SET shared_buffers = '{SHARED_BUFFERS}';")
        server.psql("CREATE EXTENSION vector;")
        server.cleanup()
        server = pgserver.get_server(directory, cleanup_mode="stop")
    return str(server.get_uri()), [int(server.get_pid())]


class Connection:
    """A connection of psycopg; a batch is a pipeline of queries."""

    def __init__(self, target: str, dim: int, metric: str) -> None:
        import psycopg

        self._connection = psycopg.connect(target, autocommit=True, prepare_threshold=0)
        self._dim = dim
        self._order = {"cosine": "<=>", "l2": "<->"}[metric]
        self._operators = f"vector_{metric}_ops"

    def create(self) -> None:
        self._connection.execute(
            f"CREATE TABLE rows (id bigint PRIMARY KEY, embedding vector({self._dim}))"
        )

    def write(self, first: int, vectors: Float32Array) -> None:
        """Copy rows in its binary format, in one transaction."""
        width = vectors.shape[1]
        fields = [("fields", ">i2"), ("id_bytes", ">i4"), ("id", ">i8"), ("bytes", ">i4")]
        fields += [("dim", ">i2"), ("unused", ">i2")]
        rows = np.zeros(len(vectors), np.dtype([*fields, ("vector", ">f4", (width,))]))
        rows["fields"], rows["id_bytes"], rows["bytes"], rows["dim"] = 2, 8, 4 + 4 * width, width
        rows["id"] = np.arange(first, first + len(vectors))
        rows["vector"] = vectors
        with self._connection.cursor().copy("COPY rows FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(COPY_HEADER + rows.tobytes() + COPY_TRAILER)

    def finish(self) -> None:
        execute = self._connection.execute
        execute(f"SET maintenance_work_mem = '{BUILD_MEMORY}'")
        execute(
            f"CREATE INDEX ON rows USING hnsw (embedding {self._operators}) "
            f"WITH (m = {HNSW_LINKS}, ef_construction = {HNSW_BUILD_EFFORT})"
        )
        execute("ANALYZE rows")

    def tune(self, effort: float) -> None:
        self._connection.execute(f"SET hnsw.ef_search = {int(effort)}")

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Search the queries one by one, without waiting for the answer of the one before."""
        statement = f"SELECT id FROM rows ORDER BY embedding {self._order} %s::vector LIMIT {k}"
        asked = [("[" + ",".join(map(str, query)) + "]",) for query in queries.tolist()]
        if len(asked) == 1:
            cursors = [self._connection.execute(statement, asked[0])]
        else:
            with self._connection.pipeline():
                cursors = [self._connection.execute(statement, each) for each in asked]
        return padded([[row for (row,) in cursor.fetchall()] for cursor in cursors], k)

    def count(self) -> int:
        counted = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return int(counted[0]) if counted else 0

    def close(self) -> None:
        self._connection.close()
