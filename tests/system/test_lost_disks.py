"""Real processes whose disks are lost, old or exchanged: noticed, served as missing, accepted."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.bare_wire import matrix
from tests.net.operations import never_seen
from tests.system.conftest import (
    VECTORSHARD,
    Fleet,
    Server,
    Starter,
    log_lines,
    logged_address,
    refused,
    wait_until,
)
from vectorshard.client.client import Client
from vectorshard.shard.errors import ShardMissing, VectorShardError
from vectorshard.v1 import vectorshard_pb2 as v1

ROWS = 400
VECTORS = np.random.default_rng(1).standard_normal((2 * ROWS, 8), dtype=np.float32)
IDS = np.arange(2 * ROWS)


def filled(server: Server) -> Client:
    """Return a client of a server with a collection of ROWS rows."""
    client = server.client()
    client.create_collection("words", dim=8, metric="l2")
    client.upsert("words", IDS[:ROWS], VECTORS[:ROWS])
    assert client.search("words", VECTORS[:1], k=1).receipt.coverage == 1.0
    return client


def vectorshard(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end."""
    command = [str(VECTORSHARD), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def require_missing(client: Client, shard: int) -> None:
    """Searches name the missing shard, or fail; nothing suggests to create the collection."""
    for call in (
        lambda: client.search("words", VECTORS[:1], k=5),
        lambda: client.count("words"),
        lambda: client.create_collection("words", dim=8, metric="l2"),
        lambda: client.upsert("words", IDS[:ROWS], VECTORS[:ROWS]),
    ):
        with pytest.raises(ShardMissing, match=f"shard {shard}: .*accept-loss"):
            call()
    receipt = client.search("words", VECTORS[:1], k=5, min_coverage=0.25).receipt
    assert receipt.coverage == pytest.approx(0.5)
    assert receipt.shards[shard].missing_reason.startswith("ShardMissing: ")
    assert client.describe("words").shards[shard].missing_reason
    assert [problem.shard for problem in client.server_info().problems] == [shard]


def what_is_seen(fleet: Fleet) -> set[str]:
    """Return what clients, metrics and log of the router show, as docs/operations.md does."""
    request = v1.SearchRequest(collection="words", queries=matrix(VECTORS[:1]), k=5)
    with fleet.router.stub() as stub:
        refusal = refused(lambda: stub.Search(request))
        request.min_coverage = 0.25
        receipt = stub.Search(request).receipt
    seen = {f"code {refusal.code.name}", f"reason {refusal.reason}"}
    seen |= {f"message {refusal.message}", f"receipt {receipt.shards[1].missing_reason}"}
    address = logged_address(fleet.router, "serving metrics")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        seen |= {f"metric {line}" for line in answer.read().decode().splitlines()}
    return seen | log_lines(fleet.router)


def is_missing(client: Client) -> bool:
    """Whether the router has found out; before, the shard only does not answer yet."""
    try:
        client.count("words")
    except ShardMissing:
        return True
    except VectorShardError:
        return False
    raise AssertionError("it was answered")


def restart_with(fleet: Fleet, shard: int, harm: Callable[[Path], object]) -> None:
    """Harm the directory of a stopped shard, and start it again."""
    server = fleet.shards[shard]
    server.kill()
    harm(server.data)
    server.start_again()


@pytest.mark.system
def test_an_emptied_directory_is_missing_until_its_loss_is_accepted(start_server: Starter) -> None:
    fleet = start_server.fleet(2, options=["--metrics", "127.0.0.1:0"])
    with filled(fleet) as client:
        kept = fleet.shards[1].data.with_name("kept")
        lost = client.describe("words").shards[1].ledger.accepted
        witness = fleet.shards[0].data / "witness.json"
        wait_until(lambda: witness.exists() and f"{lost}," in witness.read_text())

        def lose(data: Path) -> None:
            shutil.copytree(data, kept)
            shutil.rmtree(data)

        restart_with(fleet, 1, lose)
        wait_until(lambda: is_missing(client))
        require_missing(client, 1)
        assert not never_seen("Disks", what_is_seen(fleet))
        fleet.router.kill()
        fleet.router.start_again()
        wait_until(lambda: is_missing(client))
        require_missing(client, 1)
        again = vectorshard("accept-loss", "--target", fleet.address, "--shard-id", 0, "--yes")
        assert (again.returncode, again.stdout) == (0, "nothing is missing on shard 0\n")
        done = vectorshard("accept-loss", "--target", fleet.address, "--shard-id", 1, "--yes")
        assert done.returncode == 0, done.stderr
        assert f" {lost} " in done.stdout
        ledger = client.describe("words").ledger
        assert (ledger.lost, ledger.adds_up) == (lost, True)
        client.upsert("words", IDS[:ROWS], VECTORS[:ROWS])
        assert client.count("words") == ROWS

        def bring_back(data: Path) -> None:
            shutil.rmtree(data)
            shutil.copytree(kept, data)

        restart_with(fleet, 1, bring_back)
        wait_until(lambda: is_missing(client))
        require_missing(client, 1)


@pytest.mark.system
def test_an_older_copy_of_a_directory_is_missing(start_server: Starter) -> None:
    fleet = start_server.fleet(2)
    with filled(fleet) as client:
        copy = fleet.shards[0].data.with_name("copy")
        restart_with(fleet, 0, lambda data: shutil.copytree(data, copy))
        wait_until(lambda: count_of(client) == ROWS)
        client.upsert("words", IDS, VECTORS)

        def put_back(data: Path) -> None:
            shutil.rmtree(data)
            shutil.copytree(copy, data)

        restart_with(fleet, 0, put_back)
        wait_until(lambda: is_missing(client))
        require_missing(client, 0)


def count_of(client: Client) -> int:
    """Return the number of rows; -1 while a shard does not answer."""
    try:
        return client.count("words")
    except VectorShardError:
        return -1


@pytest.mark.system
def test_a_lost_collection_of_one_process_is_missing_and_drop_frees_its_name(
    start_server: Starter,
) -> None:
    server = start_server(2)
    with filled(server):
        pass
    server.stop()
    shutil.rmtree(server.data / "shard-1" / "collections" / "words")
    server.start()
    with server.client() as client:
        require_missing(client, 1)
        client.drop_collection("words")
    with filled(server) as client:
        assert client.count("words") == ROWS
        wait_until(lambda: not client.server_info().problems)  # as of the last examination
