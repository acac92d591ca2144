"""What a router remembers of shards, and may hold against them. Pure.

Evidence against a shard must be older than the shard's own report: a report that was slower than a
commit, a create or a restart lacks it, and nothing is lost. Therefore a router examines in rounds.
`begin` ends what may accuse; the reports of the round are asked for after it, and what is heard in
the meantime waits for the next round.

The memory is lost with its process. It holds at most a few statements for each collection and
shard, and those of dropped collections are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from vectorshard.shard.membership import (
    CollectionReport,
    CollectionState,
    Member,
    SeenDirectory,
    ShardReport,
    Stage,
    Statement,
)
from vectorshard.shard.types import Token
from vectorshard.shard.witnesses import Recollection, statement_of

MEMBERS_KEPT: Final = 2
"""Directories of one shard in one life. Two of them contradict each other."""
SESSIONS_KEPT: Final = 8
"""Sessions of one shard whose life is known: what they acknowledge may arrive after their end."""
ROUND_S: Final = 30.0
"""A round that lasted longer is thrown away: a tombstone may have gone in the meantime."""
FORGET_AFTER_S: Final = 120.0
"""Tombstones go so long after all shards have answered without the collection.

So a shard that lacks a collection, and reports no tombstone, did not drop it since the last round.
"""


@dataclass(slots=True, kw_only=True)
class Known:
    """A collection that shards have reported, and the directories that hold it.

    `holders` are those that have reported it complete, for shards that `members` does not name.
    """

    name: str
    members: dict[int, tuple[Member, ...]] = field(default_factory=dict)
    holders: dict[int, tuple[Member, ...]] = field(default_factory=dict)


def proves_whole(collection: CollectionReport) -> bool:
    """Whether a shard's report proves that every shard had the collection.

    Earlier releases recorded no stage: then only rows prove it. What a shard has lost or set aside
    may have been complete.
    """
    if collection.state is not CollectionState.LIVE:
        return collection.state is not CollectionState.DROPPED
    if collection.members:
        return collection.stage >= Stage.KNOWN
    return collection.stage is Stage.KNOWN or collection.accepted > 0


class Memory:
    """What one router remembers. Not safe for threads: it belongs to the event loop."""

    def __init__(self) -> None:
        self.former: dict[int, ShardReport] = {}
        """The newest report of each leaf shard before the present round."""
        self.collections: dict[str, Known] = {}
        """By incarnation: those that were reported, and not dropped since."""
        self.dropped: set[str] = set()
        """Incarnations of which a tombstone was reported."""
        self._kept = Recollection()
        self._round = 0
        self._former_round: dict[int, int] = {}
        self._session_round: dict[int, int] = {}
        self._heard: list[ShardReport] = []
        self._acknowledged: dict[tuple[int, str], tuple[int, int]] = {}
        self._lives: dict[int, dict[int, int]] = {}
        self._forgettable_since_s: dict[str, float] = {}

    # ---- what arrives ---------------------------------------------------------------------------

    def heard(self, reports: Iterable[ShardReport]) -> None:
        """Take in reports. They accuse from the next round on."""
        self._heard.extend(reports)

    def acknowledged(self, token: Token) -> None:
        """Take in the token of a write. It accuses from the next round on."""
        for shard, sequence in token.sequences.items():
            session = token.sessions.get(shard)
            if session is None:
                continue
            key = (shard, token.incarnation)
            if sequence >= self._acknowledged.get(key, (0, 0))[0]:
                self._acknowledged[key] = (sequence, session)

    def forget(self, incarnations: Iterable[str]) -> None:
        """Forget collections whose drop has reached all shards."""
        for incarnation in set(incarnations):
            self.collections.pop(incarnation, None)
            self.dropped.discard(incarnation)
            for shard in self.former:
                self._kept.statements.pop((shard, incarnation), None)

    def ripe(self, forgettable: Iterable[str], now_s: float) -> list[str]:
        """Return which collections have been forgettable for FORGET_AFTER_S.

        Call it once a round, with all that are forgettable.
        """
        since = self._forgettable_since_s
        self._forgettable_since_s = {each: since.get(each, now_s) for each in forgettable}
        return [
            each
            for each, first_s in self._forgettable_since_s.items()
            if now_s - first_s >= FORGET_AFTER_S
        ]

    def begin(self) -> None:
        """Begin a round: what has arrived until now accuses. Ask for reports after it."""
        news = [each for each in self._heard if not self._is_former(each)]
        self._kept.hear(news)
        for report in news:
            for collection in report.collections:
                if collection.incarnation:
                    self._learn(report, collection)
        for report in self._heard:
            if not self._is_same_opening(report):
                self._session_round[report.shard] = self._round
            self._former_round[report.shard] = self._round
            self.former[report.shard] = report
            lives = self._lives.setdefault(report.shard, {})
            lives[report.session] = report.life
            if len(lives) > SESSIONS_KEPT:
                del lives[next(iter(lives))]
        self._heard = []
        self._round += 1
        self._state_acknowledged()
        reported = {
            collection.incarnation
            for report in self.former.values()
            for collection in report.collections
        }
        gone = self.collections.keys() - reported
        self.forget([each for each in gone if self._is_forgotten(each)])

    def _is_former(self, report: ShardReport) -> bool:
        former = self.former.get(report.shard)
        return former is not None and (former.session, former.version) == (
            report.session,
            report.version,
        )

    def _learn(self, report: ShardReport, collection: CollectionReport) -> None:
        incarnation = collection.incarnation
        if collection.state is CollectionState.DROPPED:
            self.dropped.add(incarnation)
        known = self.collections.setdefault(incarnation, Known(name=collection.name))
        for member in collection.members:
            before = known.members.get(member.shard, ())
            life = max((member.life, *(each.life for each in before)))
            same = [each for each in (*before, member) if each.life == life]
            known.members[member.shard] = tuple(dict.fromkeys(same))[:MEMBERS_KEPT]
        if statement_of(report, collection) is not None:
            holder = Member(shard=report.shard, directory=report.directory, life=report.life)
            held = known.holders.get(report.shard)
            if held is None or held[0].life < holder.life:
                known.holders[report.shard] = (holder,)

    def _state_acknowledged(self) -> None:
        """Turn acknowledgements into statements, where the life of their session is known."""
        for (shard, incarnation), (sequence, session) in self._acknowledged.items():
            life = self._lives.get(shard, {}).get(session)
            if life is None or incarnation not in self.collections:
                continue
            kept = self.statements(shard, incarnation)
            accepted = max((each.accepted for each in kept), default=0)
            live = max((each.live for each in kept), default=0)
            self._kept.state(
                Statement(
                    shard=shard,
                    incarnation=incarnation,
                    life=life,
                    sequence=sequence,
                    session=session,
                    accepted=accepted,
                    live=live,
                )
            )
        self._acknowledged = {}

    def _is_forgotten(self, incarnation: str) -> bool:
        """Whether the drop of a collection was finished, and its tombstones are gone.

        No shard reports it any more, and one of them still has the directory that held it. That it
        has none means that it was dropped, since a lost one would be reported as LOST.
        """
        members = self.members(incarnation)
        return not members or any(
            member.directory == report.directory or member.life < report.life
            for report in self.former.values()
            for member in members.get(report.shard, ())
        )

    # ---- what may accuse ------------------------------------------------------------------------

    def statements(self, shard: int, incarnation: str) -> tuple[Statement, ...]:
        """Return what is remembered of a collection of a shard, in its last life."""
        return self._kept.statements.get((shard, incarnation), ())

    def seen(self, shard: int) -> tuple[SeenDirectory, ...]:
        """Return the openings of a shard's directories that were seen in its last life."""
        return self._kept.seen.get(shard, ())

    def members(self, incarnation: str) -> Mapping[int, tuple[Member, ...]]:
        """Return the directories that hold a collection, by shard, in their last lives."""
        known = self.collections.get(incarnation)
        return {**known.holders, **known.members} if known is not None else {}

    def has_examined(self, report: ShardReport, answering: Iterable[int]) -> bool:
        """Whether all that the answering shards remember was held against this opening.

        They were asked for it after a former round had met the opening: what they took in before a
        directory was opened must not be missed because they answered earlier.
        """
        if not self._is_same_opening(report):
            return False
        met = self._session_round[report.shard]
        return all(
            self._former_round.get(other, -1) > met for other in answering if other != report.shard
        )

    def _is_same_opening(self, report: ShardReport) -> bool:
        former = self.former.get(report.shard)
        return former is not None and (former.directory, former.session) == (
            report.directory,
            report.session,
        )

    def newest_life(self, report: ShardReport) -> int:
        """Return the highest life of a shard that anything names."""
        shard = report.shard
        return max(
            (
                report.life,
                *(each.life for each in self.seen(shard)),
                *(
                    each.life
                    for (about, _), kept in self._kept.statements.items()
                    if about == shard
                    for each in kept
                ),
                *(
                    member.life
                    for known in self.collections.values()
                    for member in known.members.get(shard, ())
                ),
                *(
                    member.life
                    for collection in report.collections
                    for member in collection.members
                    if member.shard == shard
                ),
            )
        )
