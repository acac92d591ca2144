"""One round: backups while clients write, a kill -9, restores, and what they must be equal to.

A round has a seed, which draws the shards before and after, the moments, and the kind of server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import numpy as np

from tests.system.acknowledged import DIM, STAMP_SCALE, Acknowledged, metadata_of, vectors_of
from tests.system.conftest import Server, Starter
from vectorshard.backup.layout import backup_names, read_manifest
from vectorshard.backup.restore import Backup, Restore, Restored, ShardPlace, wanted_of
from vectorshard.backup.run import Backup as Making
from vectorshard.backup.run import Wanted
from vectorshard.backup.targets import DirectoryTarget
from vectorshard.backup.verify import verify
from vectorshard.cli.embedded import open_embedded
from vectorshard.cli.fleet import EMBEDDED, identity_of
from vectorshard.client.client import Client
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.errors import ShardUnavailable, VectorShardError
from vectorshard.shard.storage.content_hash import sum_bytes, sum_from_bytes
from vectorshard.shard.storage.data_directory import DataDirectory
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import Effort, Float32Array, IndexConfig, Metric, SearchRequest
from vectorshard.shard.wire.metadata import mapping_from_metadata

NAME = "words"
IDS = 300
WRITERS = 2
A_WRITE = 20
K = 10
UNTRAINED = IndexConfig(min_training_size=1_000_000)


class Silent:
    """A report of a backup that is not kept."""

    def expected(self, collection: str, shard: int, rows: int) -> None:
        """Do nothing."""

    def opened(self, collection: str, shard: int, rows: int) -> None:
        """Do nothing."""

    def copied(self, collection: str, shard: int, rows: int, size_bytes: int) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Watched(Acknowledged):
    """What rows may be in a backup: all states that were possible since `watch` was called."""

    possible: dict[int, set[int]] = field(default_factory=dict)

    def watch(self) -> None:
        """Begin again with the states that are possible now."""
        with self._lock:
            self.possible = {id_: set(states) for id_, states in self.states.items()}

    def begin(self, ids: Sequence[int], *, delete: bool = False) -> int:  # type: ignore[override]
        """Note that a write of `ids` is about to be sent, and return its stamp."""
        stamp = Acknowledged.begin(self, ids, delete=delete)
        with self._lock:
            for id_ in ids:
                self.possible.setdefault(id_, {0}).add(-stamp if delete else stamp)
        return stamp


def back_up(address: str, target: DirectoryTarget, patience_s: float = 60.0) -> str:
    """Back up all that a server has; return the name of the backup."""

    async def make() -> str:
        server = RemoteShard(address)
        try:
            wanted = Wanted(timeout_s=60.0, patience_s=patience_s)
            making = Making(server, target, wanted, version="0", report=Silent())
            return (await making.run()).name
        finally:
            await server.close()

    return asyncio.run(make())


def restore(target: DirectoryTarget, name: str, data: Path, shards: int) -> Restored:
    """Verify a backup, and restore it for so many shards of one process."""
    manifest = read_manifest(target, name)
    assert not verify(target, manifest).findings
    places = [
        ShardPlace(path=data / EMBEDDED.format(shard), identity=identity_of(shard, shards, "new"))
        for shard in range(shards)
    ]
    backup = Backup(target=target, name=name, manifest=manifest)
    (found,) = Restore(backup, places).run(data, wanted_of(manifest, []))
    assert found.sum_built == bytes.fromhex(manifest.collections[0].content_sum)
    return found


def contents(data: Path, shards: int) -> tuple[dict[int, tuple[int, bytes]], bytes]:
    """Return the restored rows, each with its stamp and vector, and their content sum."""
    rows: dict[int, tuple[int, bytes]] = {}
    total = 0
    for shard in range(shards):
        identity = identity_of(shard, shards, "")
        path = data / EMBEDDED.format(shard)
        with closing(DataDirectory.open(Disk(), path, identity)) as directory:
            place = directory.collection_directory(NAME)
            with closing(Collection.open(Disk(), place, shard, EngineConfig())) as collection:
                snapshot = collection.snapshot
                here = np.arange(snapshot.rows)
                ids, vectors = snapshot.ids_of(here), snapshot.vectors_of(here)
                stamps = np.rint(vectors[:, 0] * STAMP_SCALE).astype(np.int64)
                np.testing.assert_array_equal(vectors, vectors_of(ids, stamps))
                metadata = collection.state.row_store.metadata(here)
                for id_, stamp, vector, struct in zip(
                    ids.tolist(), stamps.tolist(), vectors, metadata, strict=True
                ):
                    assert id_ not in rows, f"id {id_} is there twice"
                    assert mapping_from_metadata(struct) == metadata_of(stamp)
                    rows[id_] = (stamp, vector.tobytes())
                total += sum_from_bytes(snapshot.sum)
    return rows, sum_bytes(total)


def exact_hits(data: Path, shards: int, queries: Float32Array) -> list[tuple[int | str, float]]:
    """Return the hits of exact searches of a restored fleet."""

    async def search() -> list[tuple[int | str, float]]:
        router = await open_embedded(data, shards, EngineConfig())
        try:
            request = SearchRequest(
                collection=NAME, queries=queries, k=K, effort=Effort(exact=True)
            )
            hits = (await router.search(request)).hits
            return list(zip(hits.ids.tolist(), hits.scores.tolist(), strict=True))
        finally:
            await router.close()

    return asyncio.run(search())


@dataclass(slots=True)
class Round:
    """A server that is written to, backed up, killed, and started again."""

    start: Starter
    path: Path
    seed: int
    rows: Watched = field(default_factory=Watched)
    killed: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)

    def run(self) -> str:
        """Play the round; return what it was, in words."""
        random = Random(self.seed)
        before, same = random.choice([1, 2, 3]), random.random() < 0.3
        after = before if same else random.choice([n for n in (1, 2, 3, 4) if n != before])
        fleet, during = random.random() < 0.25, random.random() < 0.5
        server: Server = (self.start.fleet if fleet else self.start)(before)
        target = DirectoryTarget(self.path / "target", create=True, paced=False)
        with server.client() as client:
            client.create_collection(NAME, dim=DIM, metric=Metric.L2, index=UNTRAINED)
            for first in range(0, IDS, 100):
                self.rows.upsert(client, NAME, range(first, first + 100))
        self.rows.watch()
        newest = back_up(server.address, target)
        possible = {id_: set(states) for id_, states in self.rows.possible.items()}
        made = self._under_writes(server, target, random, kill_during=during)
        if made is not None:
            newest, possible = made, self.rows.possible
        assert newest in backup_names(target)
        self._check_restored(target, newest, random.choice([before, after]), possible)
        self._check_at_rest(server, target, after, random)
        kind = "a fleet" if fleet else "one process"
        ended = "killed during the backup" if made is None else "killed after the backup"
        return f"{kind} of {before} -> {after} shards, {ended}"

    def _under_writes(
        self, server: Server, target: DirectoryTarget, random: Random, *, kill_during: bool
    ) -> str | None:
        """Back up while clients write, and kill the server; None if the backup did not end."""
        writers = [
            threading.Thread(target=self._write, args=(server, number, random.random()))
            for number in range(WRITERS)
        ]
        self.rows.watch()
        for writer in writers:
            writer.start()
        killer = threading.Timer(random.uniform(0.0, 0.25), self._kill, args=(server,))
        made = None
        try:
            if kill_during:
                killer.start()
            made = back_up(server.address, target, patience_s=0.5 if kill_during else 60.0)
        except VectorShardError:
            assert self.killed.is_set(), "the backup failed, and its server was not killed"
        finally:
            if kill_during:
                killer.join()
            else:
                self._kill(server)
            for writer in writers:
                writer.join()
        assert not self.failures, self.failures
        return made

    def _kill(self, server: Server) -> None:
        self.killed.set()
        server.kill()

    def _write(self, server: Server, number: int, chance: float) -> None:
        """Upsert and delete this writer's ids, until the server is killed."""
        random, own = Random(chance), range(number, IDS + 60, WRITERS)
        try:
            with server.client() as client:
                while not self.killed.is_set():
                    ids = random.sample(own, A_WRITE)
                    if random.random() < 0.3:
                        self.rows.delete(client, NAME, ids)
                    else:
                        self.rows.upsert(client, NAME, ids)
        except (ShardUnavailable, grpc.RpcError) as failure:
            if not self.killed.is_set():
                self.failures.append(failure)
        except BaseException as failure:
            self.failures.append(failure)

    def _check_restored(
        self, target: DirectoryTarget, name: str, shards: int, possible: Mapping[int, set[int]]
    ) -> None:
        """Check that each restored row is whole, and of a write that may be in the backup."""
        data = self.path / "restored"
        found = restore(target, name, data, shards)
        rows, total = contents(data, shards)
        assert total == found.sum_built
        for id_, states in possible.items():
            if id_ in rows:
                assert rows[id_][0] in states, f"row {id_} is as {rows[id_][0]}, not of {states}"
            else:
                assert min(states) <= 0, f"row {id_} is lost: {states}"
        assert rows.keys() <= possible.keys()

    def _check_at_rest(
        self, server: Server, target: DirectoryTarget, shards: int, random: Random
    ) -> None:
        """Start the killed server again, back up what it has, and compare a restore with it."""
        server.start()
        with server.client() as client:
            self.rows.check(client, NAME)
            name = back_up(server.address, target)
            data = self.path / "same"
            found = restore(target, name, data, shards)
            rows, total = contents(data, shards)
            assert total == found.sum_built
            assert {id_: stamp for id_, (stamp, _) in rows.items()} == _live(self.rows)
            ids = random.sample(range(IDS), 20)
            queries = vectors_of(ids, 0) + np.float32(0.01)
            assert exact_hits(data, shards, queries) == _hits(client, queries)
        server.kill()


def _live(rows: Acknowledged) -> dict[int, int]:
    """Return the stamp of each row that is there, after a check."""
    found = {id_: next(iter(states)) for id_, states in rows.states.items()}
    return {id_: stamp for id_, stamp in found.items() if stamp > 0}


def _hits(client: Client, queries: Float32Array) -> list[tuple[int | str, float]]:
    hits = client.search(NAME, queries, K, exact=True)
    return list(zip(hits.ids.tolist(), hits.scores.tolist(), strict=True))
