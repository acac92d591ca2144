"""The children of a router, and what is known of each.

A child is unknown until it has said which leaf shards it reaches, and becomes unknown again when
what it says contradicts the others. Unknown children are asked again in the background, so that a
router may start before its shards. Every call to a child names the shards that it is taken for;
when the child refuses that, `learn` asks all of them anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog
from tenacity import AsyncRetrying, retry_if_result, wait_exponential_jitter

from vectorshard.router.fan_out.placement import Placement
from vectorshard.shard.errors import PlacementMismatch, ShardUnavailable, VectorShardError
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.types import NO_LIMIT, Call, IdArray, Int64Array, Role, Topology

LEARNING_TIMEOUT_S: Final = 2.0
"""How long a child may take to say who it is; a child that runs does so in milliseconds."""

TIME_TO_ANSWER: Final = 0.1
TIME_TO_ANSWER_MAX_S: Final = 0.25
"""What a router keeps of a caller's time for its own answer: a part, and never more than this."""

_FIRST_WAIT_S: Final = 0.1
_AGAIN: Final = wait_exponential_jitter(multiplier=_FIRST_WAIT_S, max=1.0, jitter=0.1)

_log = structlog.get_logger(__name__)


_NOT_ASKED: Final = ShardUnavailable("a child has not said yet who it is")


@dataclass(slots=True)
class Child:
    """A child, what it has told of itself, and, as long as that is nothing, why."""

    number: int
    name: str
    shard: Shard
    clock: Callable[[], float] = time.monotonic
    topology: Topology | None = None
    fingerprint: str = ""
    reason: VectorShardError = _NOT_ASKED

    @property
    def is_another(self) -> bool:
        """Whether what answers there is not the child, by what it last said of itself."""
        return self.topology is None and isinstance(self.reason, PlacementMismatch)

    def to(self, call: Call) -> Call:
        """Return the call as this child gets it: it names who the child is taken for.

        Raises why it is unknown, when it is: nothing is sent to a child that may be anybody.

        It ends a little before the caller's own: whoever is silent until then can still be named,
        or done without.
        """
        if self.topology is None:
            raise self.reason
        deadline = call.deadline
        if deadline is not None:
            left_s = max(0.0, deadline - self.clock())
            deadline -= min(TIME_TO_ANSWER * left_s, TIME_TO_ANSWER_MAX_S)
        return replace(call, placement=self.fingerprint, deadline=deadline)

    @property
    def first_shard(self) -> int:
        """The smallest leaf shard that it leads to; raises why it is unknown, when it is."""
        if self.topology is None:
            raise self.reason
        return min(shard.shard for shard in self.topology.shards)


class Children:
    """The children of a router, in order. Use `connect`.

    Parameters
    ----------
    shards
        At least one.
    role
        What the router's own topology says.
    names
        What errors and the log call each of them, such as its address; or none.
    partial
        Whether they may be a part of the placement only.
    sleep
        Waits some seconds, between two tries to learn.
    clock
        Seconds, as in a call's deadline.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        role: Role,
        *,
        names: Sequence[str] = (),
        partial: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        names = names or [f"child {number}" for number in range(len(shards))]
        self._children = [
            Child(number, name, shard, clock)
            for number, (name, shard) in enumerate(zip(names, shards, strict=True))
        ]
        self._role = role
        self._partial = partial
        self._sleep = sleep
        self._asking: asyncio.Task[None] | None = None
        self._learning: asyncio.Task[None] | None = None
        self._closed = False
        self.placement = Placement([None] * len(shards), partial=partial)
        self.topology = self._topology()

    async def connect(self) -> None:
        """Learn from the children who they are; go on with those that do not answer yet.

        Raises
        ------
        PlacementMismatch
            If one that answers contradicts another, or the placement.
        """
        await self.learn(NO_LIMIT)
        for child in self._children:
            if child.is_another:
                await self.close()
                raise child.reason

    async def close(self) -> None:
        """Ask no more, and close the children."""
        self._closed = True
        tasks = [task for task in (self._asking, self._learning) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(child.shard.close() for child in self._children))

    # ---- who they are ---------------------------------------------------------------------------

    async def learn(self, call: Call) -> None:
        """Ask all children anew who they are; whoever comes while they are asked waits along.

        A child that does not answer stays what it was. One that contradicts the others is unknown
        from then on. A caller whose deadline passes goes on with what is known.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._learn_from(self._children))
        left_s = None if call.deadline is None else max(0.0, call.deadline - self.clock())
        asking = self._asking
        await asyncio.wait([asking], timeout=left_s)
        if asking.done() and not asking.cancelled():  # `close` cancels it, nobody else
            asking.result()
        if self._incomplete():
            self._keep_learning()

    async def _learn_from(self, children: Sequence[Child]) -> None:
        deadline = self.clock() + LEARNING_TIMEOUT_S
        told = await asyncio.gather(
            *(
                child.shard.topology(call=Call(deadline=deadline, anew=child.is_another))
                for child in children
            ),
            return_exceptions=True,
        )
        news: list[tuple[Child, Topology]] = []
        for child, topology in zip(children, told, strict=True):
            if isinstance(topology, Topology):
                if topology != child.topology:
                    news.append((child, topology))
            elif not isinstance(topology, VectorShardError):
                raise topology
            elif child.topology is None:
                self._note(child, topology)
        # All at once: what a child has just taken back contradicts nobody.
        for child, _ in news:
            self._know(child, None)
        for child, topology in news:
            self._believe(child, topology)

    def _believe(self, child: Child, told: Topology) -> None:
        """Take what a child says, unless the others contradict it."""
        if not told.shards:  # a router that knows none of its own yet
            self._note(child, ShardUnavailable(f"{child.name}: reaches no shard yet"))
            return
        try:
            self._know(child, told)
        except PlacementMismatch as error:
            self._note(child, PlacementMismatch(f"{child.name}: {error}"))
        else:
            shards = [shard.shard for shard in told.shards]
            _log.info("a child said who it is", child=child.name, shards=shards)

    def _note(self, child: Child, reason: VectorShardError) -> None:
        """Keep why a child is unknown; it is asked again and again, so log only changes."""
        before, child.reason = child.reason, reason
        if isinstance(reason, PlacementMismatch):
            if str(before) != str(reason):
                _log.error("a child contradicts the placement", reason=str(reason))
        elif before is _NOT_ASKED or type(before) is not type(reason):
            _log.warning("a child is unknown", child=child.name, reason=str(reason))

    def _know(self, child: Child, topology: Topology | None) -> None:
        topologies = [each.topology for each in self._children]
        topologies[child.number] = topology
        self.placement = Placement(topologies, partial=self._partial)
        child.topology = topology
        child.fingerprint = fingerprint_of(topology) if topology is not None else ""
        self.topology = self._topology()

    def _topology(self) -> Topology:
        return Topology(
            role=self._role,
            cluster=self.placement.cluster,
            placement_epoch=self.placement.epoch,
            shards_total=self.placement.shards_total,
            shards=self.placement.shards,
        )

    def _unknown(self) -> list[Child]:
        return [child for child in self._children if child.topology is None]

    def _keep_learning(self) -> None:
        if not self._closed and (self._learning is None or self._learning.done()):
            self._learning = asyncio.ensure_future(self._learn_until_all_are_known())

    def _incomplete(self) -> bool:
        """Whether a child is unknown, or a shard that a router below may find in time."""
        return bool(self._unknown()) or (not self._partial and bool(self.placement.missing_shards))

    async def _learn_until_all_are_known(self) -> None:
        async def learn_unknown() -> bool:
            try:
                await self._learn_from(self._unknown() or self._children)
            except Exception:  # it must not end with one bad answer: nobody else would ask again
                _log.exception("learning who the children are failed")
            return self._incomplete()

        again = AsyncRetrying(retry=retry_if_result(bool), wait=_AGAIN, sleep=self._sleep)
        await self._sleep(_FIRST_WAIT_S)
        await again(learn_unknown)

    # ---- whom to ask ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._children)

    def __getitem__(self, number: int) -> Child:
        return self._children[number]

    def known(self) -> list[Child]:
        """Return the children that have said who they are, in order."""
        return [child for child in self._children if child.topology is not None]

    def all(self) -> list[Child]:
        """Return all children, in order; raise what `missing` returns when one is unknown."""
        if (missing := self.missing()) is not None:
            raise missing
        if self._incomplete():
            self._keep_learning()
            shards = ", ".join(map(str, self.placement.missing_shards))
            raise ShardUnavailable(f"no child leads to shard {shards} yet")
        return self._children

    def in_order(self) -> list[Child]:
        """Return all children by their first shard, which is alike for every router over them.

        Raises what `all` raises.
        """
        return sorted(self.all(), key=lambda child: child.first_shard)

    def missing(self) -> ShardUnavailable | PlacementMismatch | None:
        """Return what is wrong with the children that are unknown, None when none is.

        PlacementMismatch, which waiting does not mend, if one contradicts the others.
        """
        unknown = self._unknown()
        if not unknown:
            return None
        text = "; ".join(str(child.reason) for child in unknown)
        if any(child.is_another for child in unknown):
            return PlacementMismatch(text)
        return ShardUnavailable(text)

    def split(self, ids: IdArray) -> Iterator[tuple[Child, Int64Array]]:
        """Yield each child that owns some of the ids, with their indices (rows,), ascending.

        Raises what `missing` returns, before it yields, when no known child owns an id's slot.
        """
        try:
            for number, indices in self.placement.split(ids):
                yield self._children[number], indices
        except ShardUnavailable as error:
            self._keep_learning()  # a router below may lead to more by now
            raise self.missing() or error from None
