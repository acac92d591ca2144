"""The same ids written again and again: real servers rebuild themselves, and lose nothing by it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.system.acknowledged import DIM, Acknowledged
from tests.system.conftest import ServerProcess, Starter, wait_until
from vectorshard.client.client import Client
from vectorshard.shard.config import CompactionConfig
from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.types import Float32Array

pytestmark = pytest.mark.system

NAME = "churn"
IDS = range(2_000)
LARGE_DIM = 64
ROW_BYTES = 4 * LARGE_DIM
DEAD_ROWS_MIN = CompactionConfig().dead_rows_min

TURNS = 50
STORE_BYTES = 8 * 1024 * 1024
"""The row store beside the vectors: its log, and pages that wait for new rows."""

KILLS = 2
KILLS_LONG = 12
LATER_S = 0.1
"""How long after the begin of a rebuild a server is killed, at most."""

PATIENCE_S = 60.0
"""The thread that rebuilds is the last to run where the cores are taken."""


def row_files(server: ServerProcess) -> list[Path]:
    return sorted(server.data.glob(f"shard-*/collections/{NAME}/rows-*.f32"))


def generation_of(row_file: Path) -> int:
    return int(row_file.stem.split("-")[1])


def vectors(turn: int) -> Float32Array:
    rng = np.random.default_rng(turn)
    return rng.standard_normal((len(IDS), LARGE_DIM)).astype(np.float32)


def test_churn_keeps_the_disk_bounded(start_server: Starter) -> None:
    server = start_server(1)
    with server.client() as client:
        client.create_collection(NAME, dim=LARGE_DIM, metric="l2")
        for turn in range(TURNS):
            client.upsert(NAME, list(IDS), vectors(turn))
        written_bytes = TURNS * len(IDS) * ROW_BYTES
        bound = (len(IDS) + DEAD_ROWS_MIN) * ROW_BYTES + STORE_BYTES
        assert bound < written_bytes / 2
        wait_until(lambda: client.describe(NAME).shards[0].disk_bytes < bound, PATIENCE_S)
        ledger = client.describe(NAME).ledger
        assert ledger.accepted == TURNS * len(IDS)
        assert ledger.live == len(IDS)
    server.stop()
    [row_file] = row_files(server)
    assert generation_of(row_file) > 0
    assert row_file.stat().st_blocks * 512 < bound
    server.start()
    with server.client() as client:
        rows = client.get(NAME, list(IDS))
        np.testing.assert_array_equal(rows.vectors, vectors(TURNS - 1))
        assert client.describe(NAME).ledger.accepted == TURNS * len(IDS)
    server.stop()


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_LONG, marks=pytest.mark.system_long)])
def test_a_server_that_is_killed_amid_rebuilds_loses_nothing_and_revives_nothing(
    start_server: Starter, kills: int
) -> None:
    server = start_server(1)
    rows = Acknowledged(with_metadata=False)
    rng = np.random.default_rng(3)
    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric="l2")
    for _ in range(kills):
        files_before = set(row_files(server))
        killed = threading.Event()
        writers = [
            threading.Thread(target=churn, args=(server, rows, list(IDS[half::2]), killed))
            for half in (0, 1)
        ]
        for writer in writers:
            writer.start()
        try:
            wait_for_a_rebuild(server, files_before)
            time.sleep(rng.uniform(0, LATER_S))
        finally:
            killed.set()
            server.kill()
            for writer in writers:
                writer.join()
        server.start()
        with server.client() as client:
            rows.check(client, NAME)
    # What is due after the last start is done, with nobody to write meanwhile.
    wait_until(
        lambda: [generation_of(file) > 0 for file in row_files(server)] == [True], PATIENCE_S
    )
    with server.client() as client:
        rows.check(client, NAME)
    assert "background work failed" not in server.log_text()
    server.stop()


def wait_for_a_rebuild(server: ServerProcess, files_before: set[Path]) -> None:
    """Wait until the server has begun to write another row file."""
    wait_until(lambda: bool(set(row_files(server)) - files_before), PATIENCE_S)


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
