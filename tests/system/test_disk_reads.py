"""Disks of real servers that are damaged, or fail a read: one collection suffers, others serve.

Failed reads are injected by strace: the system call returns EIO, as the kernel does for a bad
sector. The rows are written in this process, by the shards that the servers then open.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bare_wire import int64s
from tests.system.acknowledged import DIM, vectors_of
from tests.system.conftest import Server, ServerProcess, Starter, log_entries, refused, wait_until
from vectorshard.cli.embedded import open_embedded
from vectorshard.client.client import Client
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.errors import CorruptData, ShardUnavailable
from vectorshard.shard.types import CollectionConfig, IdType, IndexConfig, Metric, UpsertRequest
from vectorshard.shard.wire.metadata import metadata_from_mapping
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

NAMES = ("alpha", "beta", "gamma")
HARMED = "beta"
IDS = range(600)
METADATA = metadata_from_mapping({"text": "x" * 6_000})
"""Of all rows together more than SQLite caches, so that a read comes from the disk."""
SERVICE = "vectorshard.v1.VectorService"
BACK_S = 10.0

needs_strace = pytest.mark.skipif(
    not shutil.which("strace"), reason="needs strace: .ci/prerequisites --strace"
)


def write_rows(data: Path, shards: int) -> None:
    """Write the same rows, with metadata, to three collections of the shards below `data`."""

    async def write() -> None:
        router = await open_embedded(data, shards, EngineConfig())
        for name in NAMES:
            config = CollectionConfig(
                name=name, dim=DIM, metric=Metric.L2, id_type=IdType.INT64, index=IndexConfig()
            )
            await router.create_collection(config)
            await router.upsert(
                UpsertRequest(
                    collection=name,
                    ids=np.array(IDS),
                    vectors=vectors_of(IDS, 1),
                    metadata=[METADATA] * len(IDS),
                )
            )
        await router.close()

    asyncio.run(write())


def failing_reads(path: Path, first: int = 1) -> list[str]:
    """Return an strace that fails every read of a file, from the `first` on, with EIO."""
    inject = f"inject=pread64:error=EIO:when={first}+"
    return ["strace", "-f", "-o", "/dev/null", "-P", str(path), "-e", "trace=pread64", "-e", inject]


@contextmanager
def attached(command: Sequence[str], server: ServerProcess) -> Iterator[None]:
    """Trace a running server within the context."""
    assert server.process is not None
    with subprocess.Popen(
        [*command, "-p", str(server.process.pid)], stderr=subprocess.PIPE, text=True
    ) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate()


def first_rows(client: Client, name: str) -> list[int]:
    """Return the ids of rows that are read with their vectors and metadata."""
    ids: list[int] = client.get(name, list(IDS[:3]), vectors=True, metadata=True).ids.tolist()
    return ids


def is_serving(server: Server) -> bool:
    """Return what a server's health says of the service."""
    with server.channel() as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        answer = health_pb2_grpc.HealthStub(channel).Check(request)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@needs_strace
def test_a_disk_that_fails_reads_is_not_called_damaged(
    start_server: Starter, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_rows(data, 1)
    store = data / "shard-0" / "collections" / HARMED / "store.db"
    server = start_server.shard(
        0, 1, data=data / "shard-0", prefix=[*failing_reads(store, 4), "-D"]
    )
    with server.client() as client, server.stub() as stub:
        for name in NAMES:
            get = v1.GetRequest(collection=name, ids=int64s(*IDS[:3]))
            if name != HARMED:
                assert len(stub.Get(get).ids.int64s.values) == 3
                continue
            refusal = refused(lambda get=get: stub.Get(get))  # type: ignore[misc]
            assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
            assert refusal.reason == "COLLECTION_UNREADABLE"
            assert "Input/output error" in refusal.message
            assert "nothing is known to be lost" in refusal.message
        assert [problem.collection for problem in client.server_info().problems] == [HARMED]
        assert is_serving(server)
    server.stop()
    server.prefix = ()
    server.start()
    with server.client() as client, server.stub() as stub:
        assert not client.server_info().problems
        get = v1.GetRequest(
            collection=HARMED, ids=int64s(*IDS[:3]), include=v1.Include(metadata=True)
        )
        with attached(failing_reads(store), server):
            refusal = refused(lambda: stub.Get(get))
        assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refusal.reason == "READ_FAILED"
        assert first_rows(client, HARMED) == [*IDS[:3]]
        [problem] = client.server_info().problems
        assert "nothing is known to be lost" in problem.text
    server.stop()


def test_one_damaged_collection_of_three_leaves_the_others_and_its_other_shard(
    start_server: Starter, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_rows(data, 2)
    (row_file,) = (data / "shard-1" / "collections" / HARMED).glob("rows-*")
    good = tmp_path / "good"
    shutil.copy(row_file, good)
    os.truncate(row_file, 40)  # single rows that are damaged would not set it aside
    fleet = start_server.fleet(2, data=data)
    harmed = fleet.shards[1]
    queries = vectors_of(IDS[:20], 1)
    assert is_serving(harmed)
    assert is_serving(fleet)
    logged = [entry for entry in log_entries(harmed) if entry["event"] == "collection set aside"]
    assert [(entry["collection"], entry["state"]) for entry in logged] == [(HARMED, "damaged")]
    with fleet.client() as client:
        for name in NAMES:
            if name != HARMED:
                assert client.search(name, queries, 1).receipt.coverage == 1.0
        with pytest.raises((CorruptData, ShardUnavailable), match="set aside"):
            client.search(HARMED, queries, 1)
        hits = client.search(HARMED, queries, 1, min_coverage=0.4)
        assert hits.receipt.coverage == 0.5
        [missing] = [part for part in hits.receipt.shards if part.missing_reason]
        assert missing.shard == 1
        assert "set aside" in missing.missing_reason
        first, second = client.describe(HARMED).shards
        assert not first.missing_reason
        assert "committed rows" in second.missing_reason
    with harmed.client() as client:
        [problem] = client.server_info().problems
        assert (problem.shard, problem.collection) == (1, HARMED)
    harmed.stop()
    shutil.copy(good, row_file)
    harmed.start_again()
    with fleet.client() as client:
        wait_until(
            lambda: client.search(HARMED, queries, 1, min_coverage=0.4).receipt.coverage == 1.0,
            BACK_S,
        )
        assert client.search(HARMED, queries, 1).ids.tolist() == [*IDS[:20]]
        assert client.count(HARMED) == len(IDS)
    fleet.stop()


@pytest.mark.system_long
def test_a_read_that_ended_the_process_is_looked_for_at_the_next_start(
    start_server: Starter, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_rows(data, 1)
    server = start_server.shard(0, 1, data=data / "shard-0")
    (row_file,) = (server.data / "collections" / HARMED).glob("rows-*")
    good = row_file.read_bytes()
    with server.client() as client:
        os.truncate(row_file, 4_096)  # what is beyond reads as from a disk that fails: a SIGBUS
        with pytest.raises(ShardUnavailable):
            client.search(HARMED, vectors_of(IDS[-5:], 1), 1, exact=True)
    assert server.ended() == -signal.SIGBUS
    row_file.write_bytes(good)
    server.start()
    assert "reading all vectors now" in server.log_text()
    server.stop()
    server.start()
    assert server.log_text().count("reading all vectors now") == 1
    server.stop()
