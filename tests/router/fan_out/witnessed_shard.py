"""A shard that keeps membership, and whose disk a test loses, puts back and copies.

It obeys the rules of shard.witnesses as `LocalShard` does. Its rows are those of a `FaultyShard`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from tests.router.model_shard import FaultyShard, Held, State
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    ShardUnavailable,
    Unsupported,
)
from vectorshard.shard.membership import (
    AcceptLossRequest,
    AcceptLossResult,
    CollectionReport,
    CollectionState,
    ExchangeRequest,
    Member,
    Sessions,
    SettleRequest,
    ShardReport,
    Stage,
)
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    Token,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.witnesses import Remembered, remembered, session_at, settled

_drawn = count(1)
"""Chance, as far as directories and sessions need it: no two are equal."""


@dataclass
class Records:
    """What a data directory has besides rows."""

    directory: str
    life: int = 1
    opens: int = 1
    names: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    stages: dict[str, Stage] = field(default_factory=dict)
    members: dict[str, tuple[Member, ...]] = field(default_factory=dict)
    sessions: dict[str, Sessions] = field(default_factory=dict)
    remembered: Remembered = field(default_factory=Remembered)


class WitnessedShard(FaultyShard):
    """A leaf shard with a data directory. `old` makes it one of an earlier release."""

    def __init__(self, shard: int, shards_total: int) -> None:
        super().__init__(shard, shards_total)
        self.records = Records(f"directory-{next(_drawn)}")
        self.session = next(_drawn)
        self.version = 0
        self.old = False
        self.exchanges: list[ExchangeRequest] = []
        self.settled: list[SettleRequest] = []
        self.settle_failure: Exception | None = None

    # ---- what happens to its disk ---------------------------------------------------------------

    def restart(self) -> None:
        """Open the directory once more."""
        self.records.opens += 1
        self.session = next(_drawn)

    def wipe(self) -> None:
        """Start on an empty directory."""
        self.states.append(State(self.state.sequence + 1, 0.0, {}))
        self.records = Records(f"directory-{next(_drawn)}", opens=0)
        self.restart()

    def copied(self) -> tuple[Records, State]:
        """Return a copy of the directory."""
        return copy.deepcopy(self.records), self.state

    def put_back(self, copied: tuple[Records, State]) -> None:
        """Start on a copy of the directory."""
        self.records = copy.deepcopy(copied[0])
        self.states.append(copied[1])
        self.restart()

    def lose(self, name: str) -> None:
        """Lose the directory of a collection."""
        self.records.lost.add(self.entries[name].incarnation)
        del self.entries[name]
        self.restart()

    # ---- the shard ------------------------------------------------------------------------------

    @property
    def _topology(self) -> Topology:
        topology = super()._topology
        if self.old:
            return topology
        [placement] = topology.shards
        session = f"{self.records.directory}-{self.session}"
        return replace(topology, shards=(replace(placement, session=session),))

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        if call.incarnation in self.records.dropped:
            raise IncarnationMismatch("it was dropped")
        entry, new = await super().create_collection(config, call=call)
        if new:
            stage = Stage.CREATED if call.staged and not self.old else Stage.COMPLETE
            self.records.stages[entry.incarnation] = stage
            self.records.names[entry.incarnation] = config.name
        return entry, new

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        if call.incarnation in self.records.lost:
            self._arrive("drop", name, call)
            self.records.lost.discard(call.incarnation)
            self.records.dropped.add(call.incarnation)
            return
        await super().drop_collection(name, call=call)
        self.records.dropped.add(call.incarnation)

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        entry = self.entries.get(request.collection)
        if entry and self.records.stages.get(entry.incarnation) is not Stage.COMPLETE:
            raise ShardUnavailable(f"collection {request.collection!r} is being created")
        return await super().upsert(request, call=call)

    def _change(self, kind: str, name: str, held: Held | None, *ids: int) -> None:
        super()._change(kind, name, held, *ids)
        if held is None:
            return
        incarnation = held.entry.incarnation
        kept = self.records.sessions.get(incarnation, Sessions())
        if self.session not in kept.sessions:
            self.records.sessions[incarnation] = Sessions(
                first_sequences=(*kept.first_sequences, self.state.sequence),
                sessions=(*kept.sessions, self.session),
            )

    def _token(self, held: Held) -> Token:
        token = super()._token(held)
        if self.old:
            return token
        kept = self.records.sessions.get(held.entry.incarnation, Sessions())
        return replace(token, sessions={self.shard: session_at(kept, self.state.sequence)})

    # ---- membership -----------------------------------------------------------------------------

    def report(self) -> ShardReport:
        """Return what it has."""
        self.version += 1
        records = self.records
        here = {held.entry.incarnation: held for held in self.state.held.values()}
        found = []
        for incarnation, name in records.names.items():
            state = CollectionState.LIVE
            if incarnation in records.dropped:
                state = CollectionState.DROPPED
            elif incarnation in records.lost:
                state = CollectionState.LOST
            held = here.get(incarnation)
            found.append(
                CollectionReport(
                    name=name,
                    incarnation=incarnation,
                    state=state,
                    reason="its directory is gone" if state is CollectionState.LOST else "",
                    stage=records.stages.get(incarnation, Stage.COMPLETE),
                    members=records.members.get(incarnation, ()),
                    sessions=records.sessions.get(incarnation, Sessions()),
                    sequence=self.state.sequence if held is not None else 0,
                    accepted=held.ledger.accepted if held is not None else 0,
                    live=held.ledger.live if held is not None else 0,
                )
            )
        return ShardReport(
            cluster=self.cluster,
            shard=self.shard,
            directory=records.directory,
            life=records.life,
            opens=records.opens,
            session=self.session,
            version=self.version,
            collections=tuple(found),
            statements=records.remembered.statements,
            seen=records.remembered.seen,
        )

    async def exchange(
        self, request: ExchangeRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardReport]:
        if self.old:
            raise Unsupported("no such RPC")
        self._arrive("exchange", request, call)
        self.exchanges.append(request)
        live = {held.entry.incarnation for held in self.state.held.values()}
        self.records.remembered = remembered(
            self.records.remembered, request.others, live, self.shard
        )
        for incarnation in request.forget:
            self.records.dropped.discard(incarnation)
            self.records.names.pop(incarnation, None)
        return [self.report()]

    async def settle(self, request: SettleRequest, *, call: Call = NO_LIMIT) -> None:
        if self.old:
            raise Unsupported("no such RPC")
        self._arrive("settle", request, call)
        self.settled.append(request)
        if self.settle_failure is not None:
            raise self.settle_failure
        if self.entries.get(request.collection) is None:
            raise CollectionNotFound(f"collection {request.collection!r} does not exist")
        records, incarnation = self.records, request.incarnation
        own = Member(shard=self.shard, directory=records.directory, life=records.life)
        records.stages[incarnation], records.members[incarnation] = settled(
            records.stages.get(incarnation, Stage.COMPLETE),
            records.members.get(incarnation, ()),
            own,
            request,
        )

    async def accept_loss(
        self, request: AcceptLossRequest, *, call: Call = NO_LIMIT
    ) -> AcceptLossResult:
        self._arrive("accept_loss", request, call)
        self.records.life = request.life
        for loss in request.losses:
            if loss.collection not in self.entries:
                entry = CollectionEntry(config=loss.config, incarnation=loss.incarnation)
                self.entries[loss.collection] = entry
            self.records.lost.discard(loss.incarnation)
            self.records.names[loss.incarnation] = loss.collection
            self.records.stages[loss.incarnation] = loss.stage
            self.records.members[loss.incarnation] = loss.members
        return AcceptLossResult(losses=request.losses, life=request.life)
