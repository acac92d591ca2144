"""Cross-examination: whether the shards of a router have what the others know that they had.

In the background, every WITNESS_INTERVAL_S, a router asks all shards for reports, hands each of
them the reports of the others, and judges them (router.fan_out.verdicts). A shard that does not
have what it should have is missing: no call is sent to it, and every answer says so. Searches and
writes only look up what the last round found.

A shard that has just been found, or was started again, is examined before it answers strictly. A
shard of an earlier release has no session, makes no reports, and is served as it always was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from vectorshard.router.fan_out import verdicts
from vectorshard.router.fan_out.absence import (
    error_of,
    holders_of,
    identified,
    of_one_name,
    refusal_of,
    served_in,
    set_aside_in,
)
from vectorshard.router.fan_out.children import Child, Children
from vectorshard.router.fan_out.memory import ROUND_S, Memory
from vectorshard.router.fan_out.missing_log import MissingLog
from vectorshard.router.fan_out.verdicts import CollectionVerdict, Kind
from vectorshard.shard.errors import (
    ShardMissing,
    ShardUnavailable,
    Unsupported,
    VectorShardError,
)
from vectorshard.shard.membership import (
    ExchangeRequest,
    Member,
    Problem,
    ProblemKind,
    ShardReport,
)
from vectorshard.shard.types import Call, Role, Token

WITNESS_INTERVAL_S: Final = 1.0
"""Time between two rounds. What a shard has written since the last one has no witness yet."""

EXCHANGE_TIMEOUT_S: Final = 2.0
"""Timeout of a round. A healthy shard makes its report in milliseconds."""

_ROUNDS_AT_ONCE: Final = 4
"""Rounds without a pause: three examine a shard, and one may meet a create."""

JUDGED_ON_LOOP: Final = 500
"""Collections of all shards that are judged on the event loop, in a few milliseconds."""

_NONE: Final[Mapping[int, VectorShardError]] = {}

_log = structlog.get_logger(__name__)


class Examination:
    """What a router knows of its leaf shards. It lives on an event loop.

    Parameters
    ----------
    children
        The children of the router. Their changes start examinations.
    interval_s
        Time between two rounds.
    sleep
        Waits some seconds.
    """

    def __init__(
        self,
        children: Children,
        *,
        interval_s: float = WITNESS_INTERVAL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._children = children
        self._interval_s = interval_s
        self._sleep = sleep
        self.memory = Memory()
        self.reports: dict[int, ShardReport] = {}
        """Of the leaf shards that answered in the last round."""
        self.verdicts: Mapping[str, CollectionVerdict] = {}
        """Of the last round, by incarnation."""
        self._before: Mapping[str, CollectionVerdict] = {}
        self._absent: dict[str, dict[int, VectorShardError]] = {}
        self._sessions: dict[int, str] = {}
        self._examined: dict[int, tuple[str, int | None]] = {}
        self._waiting: frozenset[int] = frozenset()
        self._undecided = False
        self._missing_log = MissingLog()
        self._unfinished: frozenset[str] = frozenset()
        self._failures: dict[int, VectorShardError] = {}
        self._handed: dict[str, dict[int, tuple[int, int]]] = {}
        self._from_above: dict[int, ShardReport] = {}
        self._forget: set[str] = set()
        self._rested_on: tuple[Any, Any] = (None, None)
        self._has_news = False
        self._next: asyncio.Task[None] | None = None
        self._running = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None
        self._closed = False
        self.when_due: Callable[[Sequence[CollectionVerdict]], Awaitable[None]] | None = None
        """Finishes what two rounds in a row have found unfinished."""
        children.when_changed = self._placement_changed
        self._placement_changed()

    async def close(self) -> None:
        """End the rounds."""
        self._closed = True
        tasks = [task for task in (self._background, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what calls look up ---------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether any leaf shard makes reports."""
        return bool(self._sessions)

    @property
    def is_complete(self) -> bool:
        """Whether every leaf shard that makes reports has been cross-examined."""
        return not self._waiting and not self._undecided

    def absent(self, incarnation: str) -> Mapping[int, VectorShardError]:
        """Return the leaf shards that must not be asked about a collection, and why.

        ShardMissing, CollectionDamaged, or ShardUnavailable for one that is not examined yet.
        """
        if not self._absent and not self._waiting:
            return _NONE
        missing = self._absent.get(incarnation, _NONE)
        if not self._waiting:
            return missing
        return {shard: self._not_examined(shard) for shard in sorted(self._waiting)} | dict(missing)

    def _not_examined(self, shard: int) -> ShardUnavailable:
        failure = self._failures.get(shard)
        because = "" if failure is None else f": {failure}"
        return ShardUnavailable(f"shard {shard} is not yet cross-examined{because}")

    def is_unfinished(self, incarnation: str) -> bool:
        """Whether a create has not reached all shards: rows of it would prove that it has."""
        return incarnation in self._unfinished

    def named(self, name: str) -> list[CollectionVerdict]:
        """Return the verdicts on all collections of a name, of which one at most is not dropped."""
        return [verdict for verdict in self.verdicts.values() if verdict.name == name]

    def is_dropped(self, incarnation: str) -> bool:
        """Whether the drop of a collection has begun."""
        verdict = self.verdicts.get(incarnation)
        return verdict is not None and verdict.dropped

    def lost(self, name: str) -> VectorShardError | None:
        """Return why a collection of this name is missing somewhere; None if it is not."""
        for verdict in self.named(name):
            if not verdict.dropped and (absent := self._absent.get(verdict.incarnation)):
                return refusal_of(absent)
        return next(iter(self.set_aside(name).values()), None)

    def set_aside(self, name: str) -> dict[str, VectorShardError]:
        """Return what shards have set aside of a name, by incarnation, which may be unknown."""
        found = set_aside_in(self.reports, name)
        return {each: error for each, error in found if not self.is_dropped(each)}

    def members(self) -> tuple[Member, ...]:
        """Return the directories of all leaf shards of the placement.

        Empty if one of them is not behind this router, or of an earlier release. Raises
        ShardUnavailable if one is not examined.
        """
        placement = self._children.placement
        shards = range(placement.shards_total)
        if any(shard not in self._sessions for shard in shards):
            return ()
        examined = [self._examined.get(shard) for shard in shards]
        if any(each is not None and each[1] is None for each in examined):
            return ()
        if unheard := self.unheard():
            raise self._not_examined(unheard[0])
        return tuple(
            Member(
                shard=shard, directory=self.reports[shard].directory, life=self.reports[shard].life
            )
            for shard in shards
        )

    def dropped(self, incarnation: str) -> None:
        """Note that the drop of a collection has begun: nothing of it is missing any more."""
        self._absent.pop(incarnation, None)
        if (verdict := self.verdicts.get(incarnation)) is not None:
            self.verdicts = {**self.verdicts, incarnation: replace(verdict, dropped=True)}

    def unheard(self) -> list[int]:
        """Return the leaf shards that should have made a report, and are not examined by one."""
        placement = self._children.placement
        old = {shard.shard for shard in placement.shards if not shard.session}
        return [
            shard
            for shard in range(placement.shards_total)
            if shard not in old and (shard not in self.reports or shard in self._waiting)
        ]

    def acknowledged(self, token: Token) -> None:
        """Remember the token of a write."""
        if self._sessions:
            self.memory.acknowledged(token)
            self._has_news = True

    def problems(self) -> list[Problem]:
        """Return what an operator has to look at, by shard, as of the last round."""
        found = [each for _, report in sorted(self.reports.items()) for each in report.problems]
        told: set[object] = {
            (each.shard, each.collection) for each in found if each.kind is ProblemKind.MISSING
        }
        for incarnation, absent in self._absent.items():
            verdict = self.verdicts.get(incarnation)
            for shard, error in absent.items():
                name = verdict.name if verdict is not None else ""
                same = {(shard, name), (name, str(error))}  # two of a name are told once
                if isinstance(error, ShardMissing) and not told & same:
                    told |= same
                    kind, text = ProblemKind.MISSING, str(error)
                    found.append(Problem(shard=shard, kind=kind, text=text, collection=name))
        return sorted(found, key=lambda each: (each.shard, each.collection))

    # ---- rounds ---------------------------------------------------------------------------------

    def _placement_changed(self) -> None:
        """Take note of the present leaf shards; examine those that are new."""
        self._sessions = {
            shard.shard: shard.session for shard in self._children.placement.shards if shard.session
        }
        self._note_waiting()
        known = {child.fingerprint for child in self._children.known()}
        self._handed = {each: handed for each, handed in self._handed.items() if each in known}
        idle = self._background is None or self._background.done()
        if self._sessions and idle and not self._closed:
            self._background = asyncio.ensure_future(self._examine_for_ever())

    def _note_waiting(self) -> None:
        self._waiting = frozenset(
            shard
            for shard, session in self._sessions.items()
            if self._examined.get(shard, ("", None))[0] != session
        )

    async def _examine_for_ever(self) -> None:
        while self._sessions:
            try:
                await self._examine_now()
            except Exception:  # the task must survive: no other would examine again
                _log.exception("the examination of the shards failed")
            await self._sleep(self._interval_s)

    async def _examine_now(self) -> None:
        """Run a round, and more of them while that examines further shards."""
        for _ in range(_ROUNDS_AT_ONCE):
            await self.again()
            if not self._needs_more:
                break
        await self._hand_over()
        due = [
            verdict
            for incarnation, verdict in self.verdicts.items()
            if is_due(verdict) and is_due(self._before.get(incarnation))
        ]
        if due and self.when_due is not None:
            await self.when_due(due)

    async def examined(self, call: Call) -> None:
        """Wait until all leaf shards that answer are examined, or the call's time is over."""
        clock = self._children.clock
        for _ in range(_ROUNDS_AT_ONCE):
            if self.is_complete:
                return
            left_s = None if call.deadline is None else max(0.0, call.deadline - clock())
            done, _ = await asyncio.wait([asyncio.ensure_future(self.again())], timeout=left_s)
            if not done or not self._needs_more:
                return

    @property
    def _needs_more(self) -> bool:
        """Whether another round now would examine further shards, or decide about a create."""
        return self._undecided or bool(self._waiting - self._failures.keys())

    async def again(self) -> None:
        """Return after a round that has begun after this call; concurrent callers share it."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._run_next())
        await asyncio.shield(self._next)

    async def _run_next(self) -> None:
        async with self._running:
            self._next = None
            stale = await self._round()
        if stale:
            await self._children.learn(Call(deadline=self._children.clock() + EXCHANGE_TIMEOUT_S))

    async def _round(self) -> bool:
        """Ask all children, and judge what they report; return whether the placement is old."""
        began = self._children.clock()
        self._forget_what_routers_got()
        children = [child for child in self._children.known() if self._leaves(child)]
        sessions = dict(self._sessions)
        self.memory.begin()
        forget = tuple(self._forget)
        answers = await asyncio.gather(
            *(self._ask(child, forget) for child in children), return_exceptions=True
        )
        reports: dict[int, ShardReport] = {}
        self._failures = {}
        reached_all = True
        for child, answer in zip(children, answers, strict=True):
            if isinstance(answer, Unsupported):
                self._examined |= {leaf: (sessions[leaf], None) for leaf in self._leaves(child)}
            elif isinstance(answer, VectorShardError):
                self._failures |= dict.fromkeys(self._leaves(child), answer)
                reached_all = False
            elif isinstance(answer, BaseException):
                raise answer
            else:
                reports |= self._accepted(child, answer)
        if reached_all:
            self.memory.forget(forget)
            self._forget.difference_update(forget)
        if self._children.clock() - began > ROUND_S:
            return False  # too old to accuse anybody
        return await self._judge(reports, sessions)

    def _forget_what_routers_got(self) -> None:
        """A router below forgets with its process, which nothing here would notice."""
        for child in self._children.known():
            if child.topology is not None and child.topology.role is not Role.SHARD:
                self._handed.pop(child.fingerprint, None)

    def _leaves(self, child: Child) -> list[int]:
        shards = child.topology.shards if child.topology is not None else ()
        return [shard.shard for shard in shards if shard.session]

    def _news_for(self, child: Child) -> dict[int, ShardReport]:
        """Return the reports that a child has not been handed yet, by leaf shard."""
        own = set(self._children.placement.shards_of_child(child.number))
        handed = self._handed.get(child.fingerprint, {})
        return {
            shard: report
            for shard, report in (self._from_above | self.reports).items()
            if shard not in own and handed.get(shard) != (report.session, report.version)
        }

    async def _ask(self, child: Child, forget: tuple[str, ...]) -> Sequence[ShardReport]:
        """Exchange reports with a child: it gets those that it has not got yet."""
        # By its fingerprint: a shard that was started again may have lost what it remembered.
        handed = self._handed.setdefault(child.fingerprint, {})
        news = self._news_for(child)
        request = ExchangeRequest(others=tuple(news.values()), forget=forget)
        deadline = self._children.clock() + EXCHANGE_TIMEOUT_S
        answer = await child.shard.exchange(request, call=Call(deadline=deadline))
        handed |= {shard: (report.session, report.version) for shard, report in news.items()}
        return answer

    async def _hand_over(self) -> None:
        """Hand on what the last round brought: else the others would wait for the next one."""
        async with self._running:
            children = [each for each in self._children.known() if self._leaves(each)]
            asking = [self._ask(each, ()) for each in children if self._news_for(each)]
            for answer in await asyncio.gather(*asking, return_exceptions=True):
                if isinstance(answer, BaseException) and not isinstance(answer, VectorShardError):
                    raise answer

    def _accepted(self, child: Child, reports: Iterable[ShardReport]) -> dict[int, ShardReport]:
        """Return the reports of the child's own leaf shards."""
        placement = self._children.placement
        return {
            report.shard: report
            for report in reports
            if report.cluster == placement.cluster
            and placement.child_of_shard(report.shard) == child.number
        }

    async def _judge(self, reports: dict[int, ShardReport], sessions: Mapping[int, str]) -> bool:
        reports = identified(reports)
        found = await self._verdicts_on(reports)
        unexamined = verdicts.unexamined(reports, self.memory)
        self.memory.heard(reports.values())
        stale = False
        for shard, report in reports.items():
            session = sessions.get(shard, "")
            before = self._examined.get(shard)
            if before is not None and before[0] == session:
                stale |= before[1] not in (None, report.session)
            if shard not in unexamined:
                self._examined[shard] = (session, report.session)
        for shard in sessions.keys() - reports.keys() - self._failures.keys():
            self._failures[shard] = ShardUnavailable(f"shard {shard} has made no report")
        forgettable = [each.incarnation for each in found.values() if each.forgettable]
        self._forget.update(self.memory.ripe(forgettable, self._children.clock()))
        self._before, self.verdicts, self.reports = self.verdicts, found, reports
        self._note_absent(found, sessions)
        self._note_waiting()
        return stale and not self._closed

    async def _verdicts_on(
        self, reports: Mapping[int, ShardReport]
    ) -> Mapping[str, CollectionVerdict]:
        """Return the verdicts; those of the last round, if all that they rest on is the same."""
        versions = [(each.shard, each.session, each.version) for each in reports.values()]
        unexamined = verdicts.unexamined(reports, self.memory)
        shards_total = self._children.placement.shards_total
        rest_on = (self._rested_on[0], versions, unexamined, shards_total)
        unchanged = rest_on == self._rested_on[1] and not self._has_news
        self._rested_on = (versions, rest_on)
        self._has_news = False
        if unchanged:
            return self.verdicts
        if sum(len(each.collections) for each in reports.values()) <= JUDGED_ON_LOOP:
            return verdicts.examine(reports, shards_total, self.memory)
        return await asyncio.to_thread(verdicts.examine, reports, shards_total, self.memory)

    def _note_absent(
        self, found: Mapping[str, CollectionVerdict], sessions: Mapping[int, str]
    ) -> None:
        """Note which shards are missing; one that did not answer this time stays so."""
        former, self._absent = self._absent, {}
        self._undecided = False
        holders, served = holders_of(self.reports), served_in(self.reports)
        for incarnation, verdict in found.items():
            if verdict.dropped:
                continue
            holding = holders.get(incarnation, set())
            is_held = incarnation in served or len(self.reports) < len(verdict.by_shard)
            for shard, each in verdict.by_shard.items():
                if shard not in self.reports:
                    before = former.get(incarnation, _NONE).get(shard)
                    if before is not None and self._examined.get(shard, ("",))[0] == sessions.get(
                        shard
                    ):
                        self._absent.setdefault(incarnation, {})[shard] = before
                elif each.kind is Kind.ABSENT and (not holding or shard in holding):
                    pass  # no other has it, or it has a reason to give
                elif (error := error_of(shard, each, is_held=is_held)) is not None:
                    self._absent.setdefault(incarnation, {})[shard] = error
                    self._undecided |= each.kind is Kind.ABSENT
        self._unfinished = frozenset(
            incarnation
            for incarnation, verdict in found.items()
            if not verdict.dropped
            and any(each.kind is Kind.UNFINISHED for each in verdict.by_shard.values())
        )
        for incarnation, error in of_one_name(self.reports, found).items():
            self._absent[incarnation] = dict.fromkeys(self.reports, error)
        self._missing_log.tell(self._absent, self.reports.keys(), found)

    # ---- routers above --------------------------------------------------------------------------

    async def exchange(self, request: ExchangeRequest) -> list[ShardReport]:
        """Take in the reports of a router above, and return those of a round that begins now."""
        own = self._sessions.keys()
        others = [report for report in request.others if report.shard not in own]
        self._from_above |= {report.shard: report for report in others}
        self.memory.heard(others)
        self._has_news = True
        self._forget |= set(request.forget)
        await self.again()
        return [report for _, report in sorted(self.reports.items())]


def is_due(verdict: CollectionVerdict | None) -> bool:
    """Whether a create or drop is unfinished, and can be finished."""
    if verdict is None:
        return False
    if verdict.dropped:
        return any(each.kind is Kind.UNFINISHED for each in verdict.by_shard.values())
    return verdict.completable or verdict.stage_due is not None
