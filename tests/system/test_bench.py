"""`vectorshard bench` against a real server, as a person starts it."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.system.conftest import VECTORSHARD, ServerProcess, new_name
from vectorshard.client.client import Client

pytestmark = pytest.mark.system

ROWS, QUERIES, DIM, K = 3_000, 40, 16, 10


def bench(server: ServerProcess, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [str(VECTORSHARD), "bench", "--target", server.address, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="session")
def shared_server(embedded_server: ServerProcess) -> ServerProcess:
    """One kind of server: the load generator is a client, and sees no difference."""
    return embedded_server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Vectors, queries and their exact neighbors under cosine."""
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((ROWS, DIM), dtype=np.float32)
    queries = rng.standard_normal((QUERIES, DIM), dtype=np.float32)
    cosines = queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    path = tmp_path / "data.npz"
    neighbors = np.argsort(-cosines, axis=1)[:, :K]
    np.savez(path, vectors=vectors, queries=queries, neighbors=neighbors)
    return path


def json_of(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the result of a run that must have succeeded."""
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.mark.parametrize(
    "options", [["--rps", "150", "--batch", "2", "--connections", "2"], ["--closed", "--exact"]]
)
def test_it_fills_a_collection_asks_every_call_and_measures_recall(
    shared_server: ServerProcess, client: Client, file: Path, options: Sequence[str]
) -> None:
    name = new_name()
    data = ["--collection", name, "--data", str(file), "--ingest", "--target-recall", "0.99"]
    if "--exact" in options:
        data = data[:-2]
    result = json_of(
        bench(
            shared_server, *data, *options, "--total", "100", "--warmup", "0.2", "--format", "json"
        )
    )
    assert result["codes"] == {"OK": 100}
    assert (result["calls"], result["calls_failed"]) == (100, 0)
    assert result["recall"] == 1 if "--exact" in options else result["recall"] >= 0.9
    assert result["recall_queries"] == QUERIES
    assert 0 < result["latency_p50_ms"] <= result["latency_p99_ms"] <= result["latency_max_ms"]
    assert client.describe(name).ledger.live == ROWS


def test_it_writes_new_rows_however_often_it_runs(
    shared_server: ServerProcess, client: Client
) -> None:
    name = new_name()
    client.create_collection(name, dim=DIM)
    options = ["--collection", name, "--call", "upsert", "--batch", "5", "--rows", "20"]
    for run in (1, 2):
        ended = bench(
            shared_server, *options, "--closed", "--total", "10", "--warmup", "0", "--format", "csv"
        )
        assert ended.returncode == 0, ended.stderr
        [row] = csv.DictReader(io.StringIO(ended.stdout))
        assert row["codes"] == "OK:10"
        assert client.count(name) == run * 50


def test_runs_at_the_same_time_write_rows_of_their_own(
    shared_server: ServerProcess, client: Client
) -> None:
    name = new_name()
    client.create_collection(name, dim=DIM)
    command = [str(VECTORSHARD), "bench", "--target", shared_server.address, "--collection", name]
    command += ["--call", "upsert", "--batch", "5", "--rows", "20", "--closed", "--total", "50"]
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, "--warmup", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            )
            for _ in range(2)
        ]
        for run in runs:
            assert run.wait(60) == 0
    assert client.count(name) == 2 * 250


def test_rows_of_others_are_neither_overwritten_nor_measured(
    shared_server: ServerProcess, client: Client, file: Path
) -> None:
    name = new_name()
    client.create_collection(name, dim=DIM)
    others = np.ones((ROWS, DIM), dtype=np.float32)
    client.upsert(name, np.arange(ROWS), others)
    options = ["--collection", name, "--data", str(file), "--total", "5", "--warmup", "0"]
    refused = bench(shared_server, *options, "--ingest")
    assert refused.returncode == 1
    assert "row 0 of the collection differs from the data's" in refused.stderr
    assert client.describe(name).ledger.accepted == ROWS
    measured = json_of(bench(shared_server, *options, "--format", "json"))
    assert measured["recall"] is None
    assert "differs from the data's" in " ".join(measured["warnings"])


def test_calls_that_all_fail_end_in_1_with_their_statuses(
    shared_server: ServerProcess, client: Client
) -> None:
    name = new_name()
    client.create_collection(name, dim=DIM)
    options = ["--collection", name, "--rows", "20", "--k", "10001", "--total", "5"]
    ended = bench(shared_server, *options, "--warmup", "0", "--format", "json")
    assert ended.returncode == 1
    result = json.loads(ended.stdout)
    assert result["codes"] == {"INVALID_ARGUMENT": 5}
    assert "the first INVALID_ARGUMENT: k: 10,001 is not in 1..10,000" in result["warnings"]


def test_a_collection_that_is_not_there_is_one_line(shared_server: ServerProcess) -> None:
    ended = bench(shared_server, "--collection", "absent")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no collection 'absent' to load; --ingest")
    assert len(ended.stderr.splitlines()) == 1


def test_an_interruption_prints_what_was_measured_so_far(shared_server: ServerProcess) -> None:
    command = [str(VECTORSHARD), "bench", "--target", shared_server.address, "--call", "empty"]
    command += ["--warmup", "0", "--duration", "60", "--format", "json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        assert running.stdout is not None
        assert "calls" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        told = json.loads(running.stdout.read())
        assert running.wait(30) == 130
    assert told["interrupted"]
    assert told["elapsed_s"] < 50
    assert set(told["codes"]) <= {"OK"}
