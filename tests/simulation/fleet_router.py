"""A model of a router: who asks whom in which order. All it concludes comes from the real rules.

Each action is a generator that yields wherever another action may come between: before a shard gets
a call, and before its answer arrives.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.fleet_shard import (
    Down,
    Ideal,
    Refused,
    Restarted,
    Shadow,
    Store,
    Unsupported,
    learn,
)
from vectorshard.router.fan_out import verdicts
from vectorshard.router.fan_out.memory import ROUND_S, Memory
from vectorshard.router.fan_out.verdicts import CollectionVerdict, Kind
from vectorshard.shard.membership import CollectionState, SettleRequest, ShardReport
from vectorshard.shard.types import CollectionConfig, IdType, IndexConfig, Metric, Token

if TYPE_CHECKING:
    from tests.simulation.fleet import Fleet

T = TypeVar("T")
Action = Generator[None, None, T]

CONFIG = CollectionConfig(
    name="a", dim=1, metric=Metric.L2, id_type=IdType.INT64, index=IndexConfig()
)


class Late(Down):
    """The deadline of an action has passed."""


class ModelRouter:
    """A router. What it remembers is lost with it: a restart makes another one."""

    def __init__(self, number: int, fleet: Fleet, random: Random, *, old: bool = False) -> None:
        self.number = number
        self.old = old
        self.memory = Memory()
        self.verdicts: Mapping[str, CollectionVerdict] = {}
        self.openings: dict[int, int] = {}
        """The session of each shard that was examined; 0 of an earlier release."""
        self.ideal: Ideal = {}
        self._fleet = fleet
        self.reports: Mapping[int, ShardReport] = {}
        self.judged_ideal: Ideal = {}
        self.unexamined: frozenset[int] = frozenset()
        self._random = random
        self._shadows: dict[int, Shadow] = {}
        self._heard: list[tuple[ShardReport, Shadow]] = []
        self._acknowledged: list[tuple[int, str, int, int]] = []
        self._lives: dict[int, int] = {}
        self._forget: list[str] = []
        self._rounds = 0
        self._is_asking = False

    def call(self, shard: int, method: str, *arguments: Any, since_s: float) -> Action[Any]:
        """Call a shard. Both ways may take their time, but none beyond a deadline."""
        yield
        if self._fleet.now_s - since_s > ROUND_S:
            raise Late
        server = self._fleet.route(self.number, shard)
        if not server.up:
            raise Down
        answer = getattr(server, method)(*arguments)
        yield
        return answer

    # ---- rounds ---------------------------------------------------------------------------------

    def round(self) -> Action[bool]:
        """Ask all shards, judge what they answer, and finish what is unfinished.

        Returns whether all that answered are examined.
        """
        while self._is_asking:
            yield
        self._is_asking = True
        try:
            return (yield from self._round())
        finally:
            self._is_asking = False

    def _round(self) -> Action[bool]:
        since_s = self._fleet.now_s
        self.memory.begin()
        self._begin_ideal()
        ideal = dict(self.ideal)
        former = self.memory.former
        others = [(former[each], self._shadows[each]) for each in sorted(former)]
        reports: dict[int, ShardReport] = {}
        shadows: dict[int, Shadow] = {}
        earlier: set[int] = set()
        shards = list(range(self._fleet.shards))
        self._random.shuffle(shards)
        forgotten, taken = self._forget, 0
        for shard in shards:
            try:
                answer = yield from self.call(shard, "exchange", others, forgotten, since_s=since_s)
            except Late:
                return False
            except Unsupported:
                earlier.add(shard)
            except Down:
                continue
            else:
                reports[shard], shadows[shard] = answer
                taken += 1
        if self._fleet.now_s - since_s > ROUND_S:
            return False
        self.verdicts = verdicts.examine(reports, self._fleet.shards, self.memory)
        self.unexamined = unexamined = verdicts.unexamined(reports, self.memory)
        self.reports, self.judged_ideal = reports, ideal
        dropped = {shard: self._fleet.route(self.number, shard).disk.forgotten for shard in reports}
        self._fleet.judge.verdicts(self.verdicts, dropped)
        self.memory.heard(reports.values())
        self._shadows.update(shadows)
        self._heard.extend((reports[shard], shadows[shard]) for shard in reports)
        self.openings = {
            shard: report.session for shard, report in reports.items() if shard not in unexamined
        }
        self.openings.update(dict.fromkeys(earlier, 0))
        if taken == len(shards):
            self.memory.forget(forgotten)
            self._fleet.judge.witnessed(others, since_s, self._fleet.live())
        due = [each.incarnation for each in self.verdicts.values() if each.forgettable]
        self._forget = self.memory.ripe(due, self._fleet.now_s)
        yield from self._finish(reports, since_s)
        return not unexamined

    def _begin_ideal(self) -> None:
        """Learn what the real memory has to know by now."""
        for report, _ in self._heard:
            self._lives[report.session] = report.life
        for report, shadow in self._heard:
            for incarnation, rows in shadow.rows.items():
                learn(self.ideal, (report.shard, incarnation), report.life, rows)
            for key, (life, rows) in shadow.ideal.items():
                learn(self.ideal, key, life, rows)
        for shard, incarnation, row, session in self._acknowledged:
            if session in self._lives and incarnation in self.memory.collections:
                learn(self.ideal, (shard, incarnation), self._lives[session], frozenset({row}))
        self._heard, self._acknowledged = [], []

    def _finish(self, reports: Mapping[int, ShardReport], since_s: float) -> Action[None]:
        """Repeat drops, complete creates, and settle."""
        for verdict in list(self.verdicts.values()):
            unfinished = [
                shard for shard, each in verdict.by_shard.items() if each.kind is Kind.UNFINISHED
            ]
            calls: list[tuple[int, str, tuple[Any, ...]]] = []
            if verdict.dropped:
                calls = [
                    (shard, "drop", (reports[shard].session, verdict.incarnation))
                    for shard in unfinished
                ]
            elif verdict.completable:
                calls = [
                    (
                        shard,
                        "create",
                        (reports[shard].session, verdict.name, verdict.incarnation, True),
                    )
                    for shard in unfinished
                ]
            elif verdict.stage_due is not None:
                request = SettleRequest(
                    collection=verdict.name,
                    incarnation=verdict.incarnation,
                    stage=verdict.stage_due,
                    members=verdict.members_due,
                )
                calls = [(shard, "settle", (request,)) for shard in reports]
            for shard, method, arguments in calls:
                try:
                    yield from self.call(shard, method, *arguments, since_s=since_s)
                except (Down, Refused):
                    break

    def examined(self) -> Action[None]:
        """Wait until all shards have answered and are examined. Raises Down otherwise."""
        for _ in range(5):
            if self._is_examined():
                return
            yield from self.round()
        if not self._is_examined():
            raise Down

    def _is_examined(self) -> bool:
        return len(self.openings) == self._fleet.shards

    # ---- what clients ask -----------------------------------------------------------------------

    def named(self, name: str) -> list[CollectionVerdict]:
        """Return the verdicts on collections of a name that are not dropped."""
        return [each for each in self.verdicts.values() if each.name == name and not each.dropped]

    def create(self, name: str) -> Action[str]:
        """Create a collection, or complete it; return its incarnation."""
        since_s = self._fleet.now_s
        if self.old:
            return (yield from self._create_as_before(name, since_s))
        yield from self.examined()
        staged = all(self.openings.values())
        if not staged:
            return (yield from self._create_as_before(name, since_s))
        found = self.named(name)
        if any(each.missing() for each in found):
            self._fleet.judge.refused_as_missing()
            raise Refused
        if len(found) > 1:
            raise Refused
        incarnation = found[0].incarnation if found else f"I{self._fleet.draw()}"
        if not found:
            openings = dict(self.openings)
            for shard in range(self._fleet.shards):
                yield from self.call(
                    shard, "create", openings[shard], name, incarnation, True, since_s=since_s
                )
        for _ in range(6):
            yield from self.round()
            verdict = self.verdicts.get(incarnation)
            if verdict is None or verdict.dropped or verdict.missing():
                raise Refused
            whole = {each.kind for each in verdict.by_shard.values()} == {Kind.PRESENT}
            if whole and verdict.stage_due is None and not verdict.members_due:
                return incarnation
        raise Down

    def _listings(self, since_s: float) -> Action[dict[int, dict[str, str]]]:
        found: dict[int, dict[str, str]] = {}
        for shard in range(self._fleet.shards):
            found[shard] = yield from self.call(shard, "listing", since_s=since_s)
        return found

    def _create_as_before(self, name: str, since_s: float) -> Action[str]:
        """Create as earlier releases do: nothing is examined."""
        found = yield from self._listings(since_s)
        known = {each[name] for each in found.values() if name in each}
        if len(known) > 1 or (known and name not in found[0]):
            raise Refused
        incarnation = known.pop() if known else f"I{self._fleet.draw()}"
        for shard in range(self._fleet.shards):
            yield from self.call(shard, "create", 0, name, incarnation, False, since_s=since_s)
        return incarnation

    def drop(self, name: str, incarnation: str = "") -> Action[None]:
        """Drop a collection wherever it is."""
        since_s = self._fleet.now_s
        if self.old:
            found = yield from self._listings(since_s)
            for shard, listing in found.items():
                if name in listing:
                    yield from self.call(shard, "drop", 0, listing[name], since_s=since_s)
            return
        yield from self.round()
        if not all(self.openings.values()):
            raise Unsupported
        heard_all = self._is_examined()
        for verdict in self.named(name):
            if incarnation not in ("", verdict.incarnation):
                continue
            begun = False
            for shard in range(self._fleet.shards):
                if shard in self.openings:
                    begun |= yield from self.call(
                        shard, "drop", 0, verdict.incarnation, since_s=since_s
                    )
            if not begun and not heard_all:
                raise Down
            if not begun:  # all have lost it together, and only this router remembers
                self.memory.forget([verdict.incarnation])
                self._fleet.judge.forgotten(verdict.incarnation)

    def write(self, name: str, row: int) -> Action[None]:
        """Write a row to its shard."""
        since_s = self._fleet.now_s
        shard = row % self._fleet.shards
        if self.old:
            listing = yield from self.call(shard, "listing", since_s=since_s)
            incarnation, session = listing.get(name, ""), 0
        else:
            yield from self.examined()
            found = self.named(name)
            session = self.openings[shard]
            if len(found) == 1 and found[0].by_shard[shard].kind is Kind.PRESENT:
                incarnation = found[0].incarnation
                if any(each.kind is Kind.UNFINISHED for each in found[0].by_shard.values()):
                    raise Refused  # a shard may take writes that an earlier release made complete
            elif session == 0:
                listing = yield from self.call(shard, "listing", since_s=since_s)
                incarnation = listing.get(name, "")
            else:
                raise Refused
        of_before = self.old or not all(self.openings.values())
        if of_before and incarnation not in self._fleet.judge.created:
            raise Refused  # earlier releases need a client that waits for the create
        try:
            sequence, written_by, files = yield from self.call(
                shard, "write", session, incarnation, row, since_s=since_s
            )
        except Restarted:
            self.openings.pop(shard, None)
            raise
        self._fleet.judge.acknowledged(shard, incarnation, row, sequence, written_by, files)
        if not self.old and written_by:
            self.memory.acknowledged(
                Token(
                    incarnation=incarnation,
                    sequences={shard: sequence},
                    sessions={shard: written_by},
                )
            )
            self._acknowledged.append((shard, incarnation, row, written_by))

    def search(self, name: str) -> Action[None]:
        """Give a strict answer, or none."""
        since_s = self._fleet.now_s
        yield from self.examined()
        if not all(self.openings.values()):
            raise Unsupported
        found = self.named(name)
        if len(found) != 1:
            raise Refused
        verdict = found[0]
        if any(each.kind is not Kind.PRESENT for each in verdict.by_shard.values()):
            raise Refused
        owed = self._fleet.judge.owed(verdict.incarnation)
        evidence, reports = self.judged_ideal, self.reports
        files: dict[int, tuple[Store, float]] = {}
        rows: dict[int, frozenset[int]] = {}
        openings = dict(self.openings)
        for shard in range(self._fleet.shards):
            try:
                rows[shard], *opened = yield from self.call(
                    shard, "search", openings[shard], verdict.incarnation, since_s=since_s
                )
            except Restarted:
                self.openings.pop(shard, None)
                raise
            files[shard] = (opened[0], opened[1])
        lives = {shard: reports[shard].life for shard in rows}
        self._fleet.judge.strict(verdict.incarnation, rows, owed, lives, evidence, files)

    # ---- what an operator asks ------------------------------------------------------------------

    def accept_loss(self, shard: int) -> Action[None]:
        """Accept what a shard has lost: only while all shards answer and are examined."""
        since_s = self._fleet.now_s
        self.openings.pop(shard, None)
        yield from self.examined()
        if not all(self.openings.values()):
            raise Unsupported
        reports = self.reports
        missing = [
            each for each in self.verdicts.values() if each.by_shard[shard].kind is Kind.MISSING
        ]
        if not missing:
            return
        losses = []
        names = {
            collection.name: collection.incarnation
            for collection in reports[shard].collections
            if collection.state is CollectionState.LIVE
        }
        for verdict in missing:
            if names.get(verdict.name, verdict.incarnation) != verdict.incarnation:
                continue  # another collection has the name: one of them has to be dropped
            elsewhere = any(
                collection.incarnation == verdict.incarnation
                and collection.state is CollectionState.LIVE
                for report in reports.values()
                for collection in report.collections
            )
            if elsewhere:
                losses.append(verdicts.loss_of(shard, verdict, reports, self.memory, CONFIG))
        life = self.memory.newest_life(reports[shard]) + 1
        self._fleet.judge.accepts(shard, [each.incarnation for each in missing])
        yield from self.call(shard, "accept_loss", losses, life, since_s=since_s)
        yield from self.round()
