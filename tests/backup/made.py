"""Backups made by hand, of collections that a test opened: without servers and their copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np

from vectorshard.backup.layout import BLOCKS, manifest_object, number_of
from vectorshard.backup.manifest import (
    CollectionBackup,
    DeadRows,
    LeftOut,
    Manifest,
    Scope,
    ShardBackup,
    StoredBlock,
    session_names,
)
from vectorshard.backup.targets import Target
from vectorshard.cli.fleet import identity_of
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.config import SLOTS_TOTAL, EngineConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.membership import Stage
from vectorshard.shard.rows.row_bitmap import encode_rows
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import sum_bytes, sum_from_bytes
from vectorshard.shard.storage.data_directory import DataDirectory
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_block import RowBlock
from vectorshard.shard.types import (
    CollectionEntry,
    DeleteRequest,
    IdArray,
    Int64Array,
    UpsertRequest,
)

FIRST, SECOND = "00000001-20261130T020000Z-0000aaaa", "00000002-20261201T020000Z-0000bbbb"


class Fleet:
    """The collections of some shards, each written by its slots."""

    def __init__(self, collections: Mapping[str, Sequence[Collection]]) -> None:
        self.collections = collections
        self.shards = len(next(iter(collections.values())))

    def owners(self, ids: IdArray) -> Int64Array:
        """Return the shard of each id."""
        firsts = [slots_of_shard(shard, self.shards)[0][0] for shard in range(self.shards)]
        return np.searchsorted(firsts, slots_of(ids), side="right") - 1

    def upsert(self, request: UpsertRequest) -> None:
        """Write rows, each on its shard."""
        owners = self.owners(request.ids)
        for shard, collection in enumerate(self.collections[request.collection]):
            places = np.flatnonzero(owners == shard)
            metadata = request.metadata
            part = UpsertRequest(
                collection=request.collection,
                ids=request.ids[places],
                vectors=request.vectors[places],
                metadata=None
                if metadata is None
                else [metadata[place] for place in places.tolist()],
            )
            (outcome,) = collection.writes.apply([part])
            assert not isinstance(outcome, Exception), outcome

    def delete(self, name: str, ids: IdArray) -> None:
        """Delete rows, each on its shard."""
        for collection in self.collections[name]:
            collection.writes.apply([DeleteRequest(collection=name, ids=ids)])


@contextmanager
def fleet(path: Path, shards: int, *entries: CollectionEntry) -> Iterator[Fleet]:
    """Lend collections in new data directories."""
    with ExitStack() as opened:
        collections: dict[str, list[Collection]] = {entry.config.name: [] for entry in entries}
        for shard in range(shards):
            identity = identity_of(shard, shards, "old")
            directory = opened.enter_context(
                closing(DataDirectory.open(Disk(), path / f"shard-{shard}", identity))
            )
            for entry in entries:
                name = entry.config.name
                with directory.creating_collection(name, entry.incarnation) as building:
                    Collection.create(Disk(), building, entry)
                collection = Collection.open(
                    Disk(),
                    directory.collection_directory(name),
                    shard,
                    EngineConfig(),
                    directory.session,
                )
                opened.callback(collection.close)
                collections[name].append(collection)
        yield Fleet(collections)


def back_up(
    target: Target,
    name: str,
    backed_up: Fleet,
    previous: Manifest | None = None,
    *,
    block_rows: int = 100,
    left_out: Sequence[LeftOut] = (),
) -> Manifest:
    """Write a backup of a fleet; with `previous`, only the blocks that it lacks."""
    collections = []
    for number, (title, parts) in enumerate(backed_up.collections.items()):
        before = previous.collections[number].shards if previous else ()
        gone = {each.shard for each in left_out if each.collection == title}
        shards = tuple(
            _shard(target, shard, part, before[shard] if before else None, block_rows)
            for shard, part in enumerate(parts)
            if shard not in gone
        )
        total = sum(sum_from_bytes(shard.sum) for shard in shards)
        collections.append(
            CollectionBackup(
                config=parts[0].entry.config,
                incarnation=parts[0].entry.incarnation,
                stage=Stage.COMPLETE,
                members=(),
                token="",
                content_sum=sum_bytes(total).hex(),
                live=sum(shard.live for shard in shards),
                shards=shards,
            )
        )
        assert title == collections[-1].name
    manifest = Manifest(
        number=number_of(name),
        scope=Scope.ALL,
        cluster="old",
        shards_total=backed_up.shards,
        slots_total=SLOTS_TOTAL,
        version="0",
        begun="2026-12-01T02:00:00+00:00",
        ended="2026-12-01T02:00:01+00:00",
        previous=FIRST if previous else "",
        collections=tuple(collections),
        left_out=tuple(left_out),
    )
    target.put(manifest_object(name), manifest.encode(), if_absent=True)
    return manifest


def _shard(
    target: Target, shard: int, part: Collection, before: ShardBackup | None, block_rows: int
) -> ShardBackup:
    snapshot, store = part.snapshot, part.state.row_store
    first = before.rows if before else 0
    blocks = list(before.blocks) if before else []
    live = snapshot.tombstones.live_rows(first, snapshot.rows)
    for at in range(0, len(live), block_rows):
        rows = live[at : at + block_rows]
        stored = RowBlock(
            id_type=part.entry.config.id_type,
            rows=rows,
            ids=snapshot.ids_of(rows),
            content_hashes=snapshot.content_hashes_of(rows),
            vectors=snapshot.vectors_of(rows),
            metadata=store.metadata(rows),
        ).encode()
        title = f"{BLOCKS}{part.entry.incarnation}/{shard}-d-1/{rows[0]}-{rows[-1] + 1}.block"
        target.put(title, stored, if_absent=True)
        blocks.append(
            StoredBlock(
                name=title,
                first_row=int(rows[0]),
                next_row=int(rows[-1]) + 1,
                rows=len(rows),
                size_bytes=len(stored),
                crc32c=checksum(stored),
            )
        )
    dead = np.setdiff1d(np.arange(first), snapshot.tombstones.live_rows(0, first))
    return ShardBackup(
        shard=shard,
        directory="d",
        life=1,
        first_sequences=store.sessions.first_sequences,
        sessions=session_names(store.sessions),
        sequence=snapshot.sequence,
        rows=snapshot.rows,
        live=snapshot.live,
        ledger=part.reads.ledger(),
        content_sum=snapshot.sum.hex(),
        blocks=tuple(blocks),
        dead=DeadRows.inline(encode_rows(dead)),
    )
