"""The children of a router, which are its downstream shards, and what it has learned about each.

A child is unknown until it has reported its leaf shards, and becomes unknown again when its report
contradicts those of the others. The router asks unknown children again in the background, so that
it may start before its shards. Every call to a child carries the fingerprint of the shards that it
is meant for. When a child rejects the fingerprint, `learn` asks all children again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import structlog
from tenacity import AsyncRetrying, retry_if_result, wait_exponential_jitter

from vectorshard.router.fan_out.placement import Placement
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import (
    InvalidParameter,
    PlacementMismatch,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.types import NO_LIMIT, Call, IdArray, Int64Array, Role

LEARNING_TIMEOUT_S: Final = 2.0
"""Timeout of the question for a child's leaf shards. A healthy child answers in milliseconds."""

TIME_TO_ANSWER: Final = 0.1
TIME_TO_ANSWER_MAX_S: Final = 0.25
"""The part of a caller's time that a router keeps for its own answer, and its maximum."""

_FIRST_WAIT_S: Final = 0.1
_WAITS: Final = wait_exponential_jitter(multiplier=_FIRST_WAIT_S, max=1.0, jitter=0.1)

_NOT_ASKED: Final = ShardUnavailable("the downstream shard has not reported its leaf shards yet")

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@runtime_checkable
class Named(Protocol):
    """A shard that is reached by a name, whose address may change."""

    def resolve_again(self) -> None:
        """Resolve the name again with the next call: another server answers at the address."""


@dataclass(slots=True)
class Child:
    """A child, its leaf shards, and, while those are unknown, why."""

    number: int
    name: str
    shard: Shard
    clock: Callable[[], float] = time.monotonic
    topology: Topology | None = None
    fingerprint: str = ""
    reason: VectorShardError = _NOT_ASKED

    @property
    def is_another(self) -> bool:
        """Whether its last report contradicts the placement: another server answers there."""
        return self.topology is None and isinstance(self.reason, PlacementMismatch)

    def to(self, call: Call) -> Call:
        """Return the call as this child gets it: with the fingerprint of its leaf shards.

        An unknown child raises its reason: it may be another server, and gets no calls. The
        deadline is a little before the caller's, so that a child that misses it can be named in
        the error, or left out of the answer.
        """
        if self.topology is None:
            raise self.reason
        deadline = call.deadline
        if deadline is not None:
            left_s = max(0.0, deadline - self.clock())
            deadline -= min(TIME_TO_ANSWER * left_s, TIME_TO_ANSWER_MAX_S)
        return Call(  # `replace` takes three times as long
            deadline=deadline,
            incarnation=call.incarnation,
            placement=self.fingerprint,
            staged=call.staged,
        )

    @property
    def first_shard(self) -> int:
        """The smallest of its leaf shards. An unknown child raises its reason."""
        if self.topology is None:
            raise self.reason
        return min(shard.shard for shard in self.topology.shards)


class Children:
    """The children of a router, in order. Use `connect`. Parameters are those of the router."""

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
        names = names or [f"downstream shard {number}" for number in range(len(shards))]
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
        self.when_changed: Callable[[], None] = lambda: None
        """Called after each change of what is known of the leaf shards."""
        self.placement = Placement([None] * len(shards), partial=partial)
        self.topology = self._topology()

    async def connect(self) -> None:
        """Learn the leaf shards of all children that answer.

        Raises PlacementMismatch if a child contradicts another one, or the placement.
        """
        await self.learn(NO_LIMIT)
        for child in self._children:
            if child.is_another:
                await self.close()
                raise child.reason

    async def close(self) -> None:
        """Stop learning, and close the children."""
        self._closed = True
        tasks = [task for task in (self._asking, self._learning) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(child.shard.close() for child in self._children))

    # ---- what they report -----------------------------------------------------------------------

    async def learn(self, call: Call) -> None:
        """Ask all children for their leaf shards; concurrent callers share one round.

        A child that does not answer keeps its last report. A child that contradicts the others
        becomes unknown. A caller whose deadline passes continues with what is known.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._learn_from(self._children))
        left_s = None if call.deadline is None else max(0.0, call.deadline - self.clock())
        asking = self._asking
        await asyncio.wait([asking], timeout=left_s)
        if asking.done() and not asking.cancelled():  # only `close` cancels it
            asking.result()
        if self._incomplete():
            self._keep_learning()

    async def _learn_from(self, children: Sequence[Child]) -> None:
        deadline = self.clock() + LEARNING_TIMEOUT_S
        for child in children:
            if child.is_another and isinstance(child.shard, Named):
                child.shard.resolve_again()
        reports = await asyncio.gather(
            *(child.shard.topology(call=Call(deadline=deadline)) for child in children),
            return_exceptions=True,
        )
        news: list[tuple[Child, Topology]] = []
        for child, report in zip(children, reports, strict=True):
            if isinstance(report, Topology):
                if report != child.topology:
                    news.append((child, report))
            elif not isinstance(report, VectorShardError):
                raise report
            elif child.topology is None:
                self._set_reason(child, report)
        # First all of them: a report that a child has withdrawn contradicts no other.
        for child, _ in news:
            self._set_topology(child, None)
        for child, report in news:
            self._accept(child, report)

    def _accept(self, child: Child, report: Topology) -> None:
        """Take over what a child reports, unless the others contradict it."""
        if not report.shards:  # a router that knows none of its own downstream shards yet
            self._set_reason(child, ShardUnavailable(f"{child.name}: it reaches no shard yet"))
            return
        try:
            self._set_topology(child, report)
        except PlacementMismatch as error:
            self._set_reason(child, PlacementMismatch(f"{child.name}: {error}"))
        else:
            leaves = [shard.shard for shard in report.shards]
            if self._role is not Role.EMBEDDED:  # shards in this process are no news
                _log.info("downstream shard known", target=child.name, leaf_shards=leaves)

    def _set_reason(self, child: Child, reason: VectorShardError) -> None:
        """Set why a child is unknown. It is asked again and again, so only changes are logged."""
        before, child.reason = child.reason, reason
        if isinstance(reason, PlacementMismatch):
            if str(before) != str(reason):
                _log.error("placement contradiction", target=child.name, reason=str(reason))
        elif before is _NOT_ASKED or type(before) is not type(reason):
            _log.warning("downstream shard unknown", target=child.name, reason=str(reason))

    def _set_topology(self, child: Child, topology: Topology | None) -> None:
        topologies = [each.topology for each in self._children]
        topologies[child.number] = topology
        self.placement = Placement(topologies, partial=self._partial)
        child.topology = topology
        child.fingerprint = fingerprint_of(topology) if topology is not None else ""
        self.topology = self._topology()
        self.when_changed()

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
        """Whether a child is unknown, or a leaf shard that a router below may find later."""
        return bool(self._unknown()) or (not self._partial and bool(self.placement.missing_shards))

    async def _learn_until_all_are_known(self) -> None:
        async def learn_unknown() -> bool:
            try:
                await self._learn_from(self._unknown() or self._children)
            except Exception:  # the task must survive a bad answer: no other would ask again
                _log.exception("learning the placement failed")
            return self._incomplete()

        retrying = AsyncRetrying(retry=retry_if_result(bool), wait=_WAITS, sleep=self._sleep)
        await self._sleep(_FIRST_WAIT_S)
        await retrying(learn_unknown)

    # ---- which to ask ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._children)

    def __getitem__(self, number: int) -> Child:
        return self._children[number]

    def of_shard(self, shard: int) -> Child:
        """Return the child that reaches a leaf shard.

        Raises InvalidParameter if the placement has no such shard, ShardUnavailable if none
        reaches it.
        """
        placement = self.placement
        number = placement.child_of_shard(shard)
        if number is not None:
            return self[number]
        if 0 < placement.shards_total <= shard:
            raise InvalidParameter(
                f"{shard} is not in 0..{placement.shards_total - 1}", field="shard"
            )
        raise self.missing() or ShardUnavailable(f"no downstream shard reaches shard {shard}")

    def known(self) -> list[Child]:
        """Return the children whose leaf shards are known, in order."""
        return [child for child in self._children if child.topology is not None]

    def all(self) -> list[Child]:
        """Return all children, in order; raise what `missing` returns if one is unknown."""
        if (missing := self.missing()) is not None:
            raise missing
        if self._incomplete():
            self._keep_learning()
            shards = ", ".join(map(str, self.placement.missing_shards))
            raise ShardUnavailable(f"no downstream shard reaches shard {shards} yet")
        return self._children

    def in_order(self) -> list[Child]:
        """Return all children by their first leaf shard: the same order in every router over them.

        Raises what `all` raises.
        """
        return sorted(self.all(), key=lambda child: child.first_shard)

    def is_absent(self, child: Child, absent: Collection[int]) -> bool:
        """Whether all leaf shards of a child are among those that are absent."""
        return bool(absent) and all(
            shard in absent for shard in self.placement.shards_of_child(child.number)
        )

    def require_present(self, child: Child, absent: Mapping[int, VectorShardError]) -> None:
        """Raise why a leaf shard of a child is absent, if one is."""
        if absent:
            for shard in self.placement.shards_of_child(child.number):
                if shard in absent:
                    raise absent[shard]

    def missing(self) -> ShardUnavailable | PlacementMismatch | None:
        """Return why children are unknown, None if all are known.

        PlacementMismatch, which waiting does not resolve, if one contradicts the others.
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

        Raises what `missing` returns, before it yields, if no known child owns the slot of an id.
        """
        try:
            for number, indices in self.placement.split(ids):
                yield self._children[number], indices
        except ShardUnavailable as error:
            self._keep_learning()  # a router below may reach more by now
            raise self.missing() or error from None


async def all_answers(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the answers of all calls. When all have ended, raise the first error, if any.

    A part that ran on after its call has failed could undo what is written next.
    """
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
