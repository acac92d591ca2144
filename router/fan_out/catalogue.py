"""The collections of a router: create, drop, update, list, and what it remembers of them.

The downstream shard with the smallest leaf shard decides about names: a collection is created there
first and dropped there first. A router that remembers a dropped collection, or an outdated
placement, is told so by its downstream shards; it looks again and repeats the call once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from vectorshard.router.fan_out.absence import refusal_of, refusal_of_create
from vectorshard.router.fan_out.children import Child, Children, all_answers
from vectorshard.router.fan_out.examination import Examination
from vectorshard.router.fan_out.settlement import Settlement
from vectorshard.shard.engine.validation import already_exists
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    IncarnationMismatch,
    InvalidRequest,
    PlacementMismatch,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.types import Call, CollectionConfig, CollectionEntry, UpdateRequest

T = TypeVar("T")
Request = TypeVar("Request")


class Catalogue:
    """The collections of a router. `new_incarnation` names the incarnation of a new one."""

    def __init__(
        self, children: Children, examination: Examination, new_incarnation: Callable[[], str]
    ) -> None:
        self._children = children
        self._examination = examination
        self._settlement = Settlement(children, examination)
        self._new_incarnation = new_incarnation
        self._entries: dict[str, CollectionEntry] = {}

    async def create_collection(
        self, config: CollectionConfig, call: Call
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection on every child, or complete one that only some have.

        When two callers create the same name, the slower gets the collection of the other. Raises
        CollectionExists if that has another configuration, and ShardMissing if a shard has lost it:
        it is never completed on an empty shard. Nor is any collection created while a shard runs on
        another directory than it should. What was dropped on some shards only is dropped on the
        others first. With shards of earlier releases that is IncarnationMismatch.
        """
        try:
            return await self._with_placement(call, lambda: self._create(config, call))
        except IncarnationMismatch:
            if call.incarnation:
                raise
            await self._examination.again()
            return await self._create(config, call)

    async def _create(self, config: CollectionConfig, call: Call) -> tuple[CollectionEntry, bool]:
        await self._examination.examined(call)
        holders = await self._judged_holders(config.name, call)
        if refusal_of_create(self._examination.verdicts.values()) is not None:
            # The reports of a round are not of one moment: a drop of another collection meanwhile
            # looks as if a shard had lost it.
            await self._examination.again()
            holders = await self._judged_holders(config.name, call)
        decider, *others = self._children.in_order()
        if (refusal := refusal_of_create(self._examination.verdicts.values())) is not None:
            raise refusal
        known = [entry for _, entry in holders]
        for entry in known:
            if entry.config != config:
                raise already_exists(entry.config, config)
        incarnations = {entry.incarnation for entry in known}
        if call.incarnation:
            incarnations.add(call.incarnation)
        # Created there first and dropped there first: missing there, it is the rest of a drop. A
        # shard that makes reports would have reported one.
        judged = incarnations <= self._examination.verdicts.keys()
        left_over = bool(holders) and holders[0][0] is not decider and not judged
        if len(incarnations) > 1 or left_over:
            raise IncarnationMismatch(
                f"collection {config.name!r} was dropped on some shards only; drop it once more"
            )
        wanted = incarnations.pop() if incarnations else self._new_incarnation()
        members = () if call.staged else self._examination.members()
        call = replace(call, incarnation=wanted, staged=call.staged or bool(members))
        # Before the first call is made: a child that has become unknown prevents all of them.
        calls = [child.to(call) for child in (decider, *others)]
        first_entry, first_new = await decider.shard.create_collection(config, call=calls[0])
        also = await all_answers(
            child.shard.create_collection(config, call=child_call)
            for child, child_call in zip(others, calls[1:], strict=True)
        )
        new = first_new or any(new for _, new in also)
        if members and (new or not self._settlement.is_settled(wanted)):
            await self._settlement.settle(config.name, wanted, members, call)
        self._entries[config.name] = first_entry
        return first_entry, new

    async def _judged_holders(self, name: str, call: Call) -> list[tuple[Child, CollectionEntry]]:
        """Return the children that have a collection of a name, and are not missing.

        A collection whose drop has begun is dropped on the others first.
        """
        holders = await self._holders(name, call)
        verdicts = self._examination.verdicts
        newer = any(entry.incarnation not in verdicts for _, entry in holders)
        if newer or self._examination.unheard():  # than the last round
            await self._examination.again()
        dropped = {
            entry.incarnation
            for _, entry in holders
            if self._examination.is_dropped(entry.incarnation)
        }
        for incarnation in dropped:
            await self._settlement.drop(name, incarnation, call)
        if (error := self._examination.lost(name)) is not None:
            raise error
        return [held for held in holders if held[1].incarnation not in dropped]

    async def drop_collection(self, name: str, call: Call) -> None:
        """Drop the present collection of that name on every child that has it.

        A drop that arrives late does not affect a later collection of the same name. Shards that
        have lost the collection do not hinder it.
        """
        await self._with_placement(call, lambda: self._drop(name, call))

    async def _drop(self, name: str, call: Call) -> None:
        self._entries.pop(name, None)
        await self._examination.examined(call)
        holders = await self._holders(name, call)
        lost = self._settlement.lost_parts(name)
        if not holders and not lost:
            raise _not_found(name)
        if not holders:
            for incarnation in lost:
                if call.incarnation in ("", incarnation):
                    await self._settlement.drop(name, incarnation, call)
            return
        if call.incarnation:
            holders = [held for held in holders if held[1].incarnation == call.incarnation]
            if not holders:
                raise _recreated(name)

        async def drop(child: Child, entry: CollectionEntry) -> None:
            meant = replace(call, incarnation=entry.incarnation)
            # The drop of another caller may have been faster.
            with suppress(CollectionNotFound, IncarnationMismatch):
                await child.shard.drop_collection(name, call=child.to(meant))
            self._examination.dropped(entry.incarnation)

        await drop(*holders[0])
        await all_answers(drop(*held) for held in holders[1:])
        for incarnation in {entry.incarnation for _, entry in holders} & lost:
            await self._settlement.drop(name, incarnation, call)

    async def update_collection(self, request: UpdateRequest, call: Call) -> CollectionEntry:
        """Change a collection on every child, first on the one that decides about names.

        Repeating an update that reached only some children completes it.
        """
        return await self.ask(request.collection, call, self._update, request)

    async def _update(
        self, request: UpdateRequest, entry: CollectionEntry, call: Call
    ) -> CollectionEntry:
        self.require_whole(entry)
        decider, *others = self._children.in_order()
        # Before the first call is made: a child that has become unknown prevents all of them.
        calls = [child.to(call) for child in (decider, *others)]
        updated = await decider.shard.update_collection(request, call=calls[0])
        await all_answers(
            child.shard.update_collection(request, call=child_call)
            for child, child_call in zip(others, calls[1:], strict=True)
        )
        self._entries[request.collection] = updated
        return updated

    async def list_collections(self, call: Call) -> Sequence[CollectionEntry]:
        """Return the collections of all children, by name."""
        held = await self._with_placement(call, lambda: self._held(call))
        entries = {
            entry.config.name: entry
            for _, entry in held
            if not self._examination.is_dropped(entry.incarnation)
        }
        return [entries[name] for name in sorted(entries)]

    async def _holders(self, name: str, call: Call) -> list[tuple[Child, CollectionEntry]]:
        """Return the children that have a collection, in the order of their leaf shards."""
        return [held for held in await self._held(call) if held[1].config.name == name]

    async def _held(self, call: Call) -> list[tuple[Child, CollectionEntry]]:
        """Return every collection of every child, in the order of their leaf shards."""
        call = replace(call, incarnation="")
        children = self._children.in_order()
        listings = await all_answers(
            child.shard.list_collections(call=child.to(call)) for child in children
        )
        return [
            (child, entry)
            for child, listing in zip(children, listings, strict=True)
            for entry in listing
        ]

    # ---- look up --------------------------------------------------------------------------------

    async def ask(
        self,
        name: str,
        call: Call,
        ask: Callable[[Request, CollectionEntry, Call], Coroutine[Any, Any, T]],
        request: Request,
        *,
        strict: bool = True,
    ) -> T:
        """Make a call with the remembered entry of a collection.

        If that entry is outdated, look it up and repeat the call once. The call that `ask` gets
        names the incarnation of its entry. A strict call waits for shards to be examined.
        """

        async def ask_with(entry: CollectionEntry) -> T:
            entry_call = replace(call, incarnation=entry.incarnation)
            return await self._with_placement(call, lambda: ask(request, entry, entry_call))

        if strict and not self._examination.is_complete:
            await self._examination.examined(call)
        remembered = self._entries.get(name)
        if remembered is not None and call.incarnation not in ("", remembered.incarnation):
            remembered = None
        entry = remembered or await self._look_up(name, call)
        try:
            return await ask_with(entry)
        except (CollectionNotFound, IncarnationMismatch, InvalidRequest) as error:
            self._entries.pop(name, None)
            looked_up = remembered is None or bool(call.incarnation)
            if looked_up and (isinstance(error, InvalidRequest) or not self._examination.is_active):
                raise
            refused = error
        if not isinstance(refused, InvalidRequest):
            await self._settlement.finish(name, call)
        entry = await self._look_up(name, call)
        if entry == remembered and isinstance(refused, InvalidRequest):
            raise refused
        try:
            return await ask_with(entry)
        except CollectionNotFound as error:
            if not self._examination.is_active:
                raise
            # Not "create it first": another shard has it.
            raise ShardUnavailable(f"collection {name!r} is being created: {error}") from error

    async def require_settled(self, entry: CollectionEntry, call: Call) -> None:
        """Finish the create of a collection that is to be written, if it is unfinished."""
        if self._examination.is_unfinished(entry.incarnation):
            await self._settlement.finish(entry.config.name, call)
            await self._examination.again()
            if self._examination.is_unfinished(entry.incarnation):
                raise ShardUnavailable(f"collection {entry.config.name!r} is being created")

    def require_whole(self, entry: CollectionEntry) -> None:
        """Raise what is missing of a collection, if anything is."""
        if absent := self._examination.absent(entry.incarnation):
            raise refusal_of(absent)

    async def _look_up(self, name: str, call: Call) -> CollectionEntry:
        entry = await self._with_placement(call, lambda: self._first_entry(name, call))
        self._entries[name] = entry
        return entry

    async def _first_entry(self, name: str, call: Call) -> CollectionEntry:
        """Ask all children concurrently, and return the entry of the first that has one.

        A child with another incarnation rejects the call that follows. The only child that has the
        collection may be missing: without it, no answer proves that the collection does not exist.
        """
        any_incarnation = replace(call, incarnation="")
        asked = [
            asyncio.ensure_future(child.shard.list_collections(call=child.to(any_incarnation)))
            for child in self._children.known()
        ]
        failure: VectorShardError | None = self._children.missing()
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    entries = await answer
                except (ShardUnavailable, DeadlineExceeded) as error:
                    failure = failure or error
                    continue
                for entry in entries:
                    if entry.config.name != name:
                        continue
                    if self._examination.is_dropped(entry.incarnation):
                        continue
                    if call.incarnation in ("", entry.incarnation):
                        return entry
                    failure = _recreated(name)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise failure or self._examination.lost(name) or _not_found(name)

    async def _with_placement(self, call: Call, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make a call; if a child rejects its fingerprint, learn the placement and repeat once.

        The call is repeated even if nothing new is learned: a concurrent call may have learned it.
        """
        try:
            return await ask()
        except PlacementMismatch:
            await self._children.learn(call)
            await self._examination.examined(call)
        try:
            return await ask()
        except PlacementMismatch as error:
            if isinstance(self._children.missing(), PlacementMismatch):
                raise
            raise ShardUnavailable(f"the placement is changing: {error}") from error


def _not_found(name: str) -> CollectionNotFound:
    return CollectionNotFound(f"collection {name!r} does not exist")


def _recreated(name: str) -> IncarnationMismatch:
    return IncarnationMismatch(f"collection {name!r} was dropped and created again")
