"""The same ids written again and again: real servers rebuild themselves, and lose nothing by it."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from router.client import Client
from shard.config import RebuildConfig
from shard.errors import ShardUnavailable
from shard.types import Float32Array
from tests.system.acknowledged import DIM, Acknowledged
from tests.system.conftest import ServerProcess, Starter, wait_until

pytestmark = pytest.mark.system

NAME = "churn"
IDS = range(2_000)
LARGE_DIM = 64
ROW_BYTES = 4 * LARGE_DIM
DEAD_ROWS_MIN = RebuildConfig().dead_rows_min

TURNS = 50
STORE_BYTES = 8 * 1024 * 1024
"""The row store beside the vectors: its log, and pages that wait for new rows."""

KILLS = 6
ACTIVITY_S = (0.3, 1.5)


def row_files(server: ServerProcess) -> list[Path]:
    return sorted(server.data.glob(f"shard-*/collections/{NAME}/rows-*.f32"))


def generation_of(row_file: Path) -> int:
    return int(row_file.stem.split("-")[1])


def vectors(turn: int) -> Float32Array:
    rng = np.random.default_rng(turn)
    return rng.standard_normal((len(IDS), LARGE_DIM)).astype(np.float32)


def test_churn_keeps_disk_and_memory_bounded(start_server: Starter) -> None:
    server = start_server(1)
    disk_bytes, memory_bytes = [], []
    with server.client() as client:
        client.create_collection(NAME, dim=LARGE_DIM, metric="l2")
        for turn in range(TURNS):
            client.upsert(NAME, list(IDS), vectors(turn))
            (shard,) = client.describe(NAME).shards
            disk_bytes.append(shard.disk_bytes)
            memory_bytes.append(shard.memory_bytes)
        written_bytes = TURNS * len(IDS) * ROW_BYTES
        # Writes go on during a rebuild; at its end there are as many rows as lived, or came.
        bound = 3 * DEAD_ROWS_MIN * ROW_BYTES + STORE_BYTES
        wait_until(lambda: client.describe(NAME).shards[0].disk_bytes < bound)
        assert bound < written_bytes
        for figures in (disk_bytes, memory_bytes):
            assert any(after < before for before, after in pairwise(figures))
        ledger = client.describe(NAME).ledger
        assert ledger.accepted == TURNS * len(IDS)
        assert ledger.live == len(IDS)
    server.stop()
    [row_file] = row_files(server)
    assert generation_of(row_file) > 1
    assert row_file.stat().st_blocks * 512 < bound
    server.start()
    with server.client() as client:
        rows = client.get(NAME, list(IDS))
        np.testing.assert_array_equal(rows.vectors, vectors(TURNS - 1))
        assert client.describe(NAME).ledger.accepted == TURNS * len(IDS)
    server.stop()


def test_a_server_that_is_killed_amid_rebuilds_loses_nothing_and_revives_nothing(
    start_server: Starter,
) -> None:
    server = start_server(1)
    rows = Acknowledged(with_metadata=False)
    rng = np.random.default_rng(3)
    generations = []
    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric="l2")
    for _ in range(KILLS):
        killed = threading.Event()
        writers = [
            threading.Thread(target=churn, args=(server, rows, list(IDS[half::2]), killed))
            for half in (0, 1)
        ]
        for writer in writers:
            writer.start()
        time.sleep(rng.uniform(*ACTIVITY_S))
        killed.set()
        server.kill()
        for writer in writers:
            writer.join()
        server.start()
        generations.append(max(map(generation_of, row_files(server))))
        with server.client() as client:
            rows.check(client, NAME)
    assert "background work failed" not in server.log_text()
    server.stop()
    assert generations[-1] > 1


def churn(
    server: ServerProcess, rows: Acknowledged, ids: list[int], killed: threading.Event
) -> None:
    """Write the same rows again and again, and delete some, until the server is killed."""
    with Client(server.address) as client:
        try:
            while True:
                rows.upsert(client, NAME, ids)
                rows.delete(client, NAME, ids[:100])
        except ShardUnavailable:
            assert killed.is_set()
