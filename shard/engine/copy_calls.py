"""The calls about copies, as a leaf shard answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from vectorshard.shard.copies import (
    CloseCopyRequest,
    CopiedRows,
    Copy,
    OpenCopyRequest,
    ReadCopyRequest,
)
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.collection_set import CollectionSet
from vectorshard.shard.engine.copies import (
    LEASE_S,
    Copies,
    Pinned,
    copied_rows,
    dead_rows,
    pinned_now,
)
from vectorshard.shard.errors import PlacementMismatch
from vectorshard.shard.membership import Sessions
from vectorshard.shard.storage.data_directory import ShardIdentity
from vectorshard.shard.types import NO_LIMIT, Call


class CopyCalls:
    """The part of a leaf shard that hands out its rows to be copied."""

    _collections: CollectionSet
    _copies: Copies
    _identity: ShardIdentity
    _read: Callable[..., Awaitable[Any]]
    _expiry: asyncio.TimerHandle | None = None

    async def open_copy(self, request: OpenCopyRequest, *, call: Call = NO_LIMIT) -> Copy:
        """Pin the present rows of a collection."""
        collection = self._find(request.collection, request.shard, call)
        self._copies.require_room()
        pinned, dead = await self._read(collection, _pin, collection, request.dead_below)
        name = self._copies.put(pinned)
        if self._expiry is None:
            self._expire_copies()
        return self._copy(name, pinned, dead)

    async def read_copy(self, request: ReadCopyRequest, *, call: Call = NO_LIMIT) -> CopiedRows:
        """Return the next rows of a copy, each verified."""
        collection = self._find(request.collection, request.shard, call)
        pinned = self._copies.use(request.copy, collection)
        next_row = 0
        try:
            rows: CopiedRows = await self._read(
                collection, copied_rows, pinned, request.first_row, request.bytes_max
            )
            next_row = rows.next_row
        finally:
            self._copies.used(request.copy, next_row)
        return rows

    async def close_copy(self, request: CloseCopyRequest, *, call: Call = NO_LIMIT) -> None:
        """Let go of a copy."""
        self._copies.close(request.copy)

    def _find(self, name: str, shard: int, call: Call) -> Collection:
        if shard != self._identity.shard:
            raise PlacementMismatch(f"this is shard {self._identity.shard}, not {shard}")
        return self._collections.find_whole(name, call).collection

    def _expire_copies(self) -> None:
        """Close what is over, and look again later while copies are open."""
        self._copies.expire()
        self._expiry = None
        if len(self._copies):
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(LEASE_S / 2, self._expire_copies)

    def _close_copies(self) -> None:
        """Close all copies; the shard stops."""
        self._copies.close_all()
        if self._expiry is not None:
            self._expiry.cancel()

    def _copy(self, name: bytes, pinned: Pinned, dead: bytes) -> Copy:
        snapshot, row_store = pinned.snapshot, pinned.collection.state.row_store
        identity, directory = self._identity, self._collections.directory
        begun = [
            (first, session)
            for first, session in zip(
                row_store.sessions.first_sequences, row_store.sessions.sessions, strict=True
            )
            if first <= snapshot.sequence
        ]
        return Copy(
            copy=name,
            config=pinned.collection.entry.config,
            incarnation=pinned.collection.entry.incarnation,
            stage=row_store.membership.stage,
            members=row_store.membership.members,
            cluster=identity.cluster,
            shards_total=identity.shards_total,
            placement_epoch=identity.placement_epoch,
            slots=identity.slots,
            directory=directory.directory,
            life=directory.life,
            sessions=Sessions(
                first_sequences=tuple(first for first, _ in begun),
                sessions=tuple(session for _, session in begun),
            ),
            sequence=snapshot.sequence,
            rows=snapshot.rows,
            live=snapshot.live,
            ledger=pinned.ledger,
            content_sum=snapshot.sum,
            dead=dead,
            damaged=tuple(snapshot.damaged.tolist()),
        )


def _pin(collection: Collection, dead_below: int) -> tuple[Pinned, bytes]:
    pinned = pinned_now(collection)
    return pinned, dead_rows(pinned.snapshot, dead_below)
