"""Whether shards have what the others say that they have: the rules. Pure.

A router asks all shards in a round, and judges their reports by what it knew before the round
(`Memory`). For each collection and leaf shard the verdict is one of these:

| verdict | when |
|---|---|
| MISSING | the shard has lost its directory, the collection, or commits of it |
| ABSENT | it did not answer, or has not been cross-examined yet |
| UNFINISHED | a create has to reach it, or a drop |
| DROPPED | a drop has reached it |
| PRESENT | none of them |

Nothing here is guessed. Evidence is what a shard reported as durable, or acknowledged. Evidence of
an earlier life of a shard is void, because an operator has accepted that loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from vectorshard.router.fan_out.memory import Memory, proves_whole
from vectorshard.shard.membership import (
    GIVEN_UP,
    AcceptedLoss,
    CollectionReport,
    CollectionState,
    Member,
    ShardReport,
    Stage,
    Statement,
    rows_given_up,
)
from vectorshard.shard.types import CollectionConfig
from vectorshard.shard.witnesses import has_commit


class Kind(Enum):
    """What is to be said of a collection on a leaf shard."""

    PRESENT = "present"
    MISSING = "missing"
    ABSENT = "absent"
    UNFINISHED = "unfinished"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of a collection on a leaf shard, and why.

    `damaged`: it is MISSING because the shard has set it aside. `whole_directory`: it is MISSING
    because the shard runs on another directory than it should, which concerns all collections.
    """

    kind: Kind
    reason: str = ""
    damaged: bool = False
    whole_directory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionVerdict:
    """What is to be said of a collection on every leaf shard of the placement.

    Parameters
    ----------
    dropped
        A drop has begun: repeat it on each shard that is UNFINISHED.
    forgettable
        The drop has reached all shards: their tombstones may go.
    completable
        All shards have answered, and a create may be completed on those that are UNFINISHED.
    stage_due, members_due
        What all shards have to be settled with next, None if they are settled.
    """

    name: str
    incarnation: str
    by_shard: Mapping[int, Verdict]
    dropped: bool = False
    forgettable: bool = False
    completable: bool = False
    stage_due: Stage | None = None
    members_due: tuple[Member, ...] = ()

    def missing(self) -> dict[int, str]:
        """Return the shards that are MISSING, with the reason."""
        return {
            shard: verdict.reason
            for shard, verdict in self.by_shard.items()
            if verdict.kind is Kind.MISSING
        }


PRESENT = Verdict(kind=Kind.PRESENT)


def unexamined(reports: Mapping[int, ShardReport], memory: Memory) -> frozenset[int]:
    """Return the shards that have answered, but need another round before they are examined.

    A router needs three rounds until there are none: it meets an opening, hears what the others
    remember, and judges.
    """
    return frozenset(
        shard for shard, report in reports.items() if not memory.has_examined(report, reports)
    )


def examine(
    reports: Mapping[int, ShardReport], shards_total: int, memory: Memory
) -> dict[str, CollectionVerdict]:
    """Return the verdict on every known collection, by incarnation.

    Parameters
    ----------
    reports
        Of the leaf shards that answered, by number. They were asked for after `memory.begin()`.
    shards_total
        Leaf shards in the placement.
    memory
        What the router knew before.
    """
    return _Examination(reports, shards_total, memory).verdicts()


class _Examination:
    """One round: the reports, and what they are judged by."""

    def __init__(
        self, reports: Mapping[int, ShardReport], shards_total: int, memory: Memory
    ) -> None:
        self.reports = reports
        self.shards = range(shards_total)
        self.memory = memory
        self.names: dict[str, str] = {
            incarnation: known.name for incarnation, known in memory.collections.items()
        }
        self.now: dict[str, dict[int, CollectionReport]] = {}
        self.former: dict[str, dict[int, CollectionReport]] = {}
        for shard, report in reports.items():
            for collection in filter(_is_identified, report.collections):
                self.names[collection.incarnation] = collection.name
                self.now.setdefault(collection.incarnation, {})[shard] = collection
        self.passed_on: dict[tuple[int, str], list[Statement]] = {}
        for shard, report in memory.former.items():
            for statement in report.statements:
                key = (statement.shard, statement.incarnation)
                self.passed_on.setdefault(key, []).append(statement)
            for collection in report.collections:
                self.former.setdefault(collection.incarnation, {})[shard] = collection
        self.not_answered = {
            shard: Verdict(kind=Kind.ABSENT, reason=f"shard {shard} does not answer")
            for shard in self.shards
            if shard not in reports
        }
        self.not_examined = {
            shard: Verdict(kind=Kind.ABSENT, reason=f"shard {shard} is not yet cross-examined")
            for shard in unexamined(reports, memory)
        }
        self.older = {shard: self._older(report) for shard, report in reports.items()}

    def verdicts(self) -> dict[str, CollectionVerdict]:
        """Return the verdict on every collection that is known."""
        result: dict[str, CollectionVerdict] = {}
        for incarnation, name in self.names.items():
            now = self.now.get(incarnation, {})
            if incarnation in self.memory.dropped or any(
                each.state is CollectionState.DROPPED for each in now.values()
            ):
                verdict = self._drop(name, incarnation, now)
            elif now:
                verdict = self._collection(name, incarnation, now)
            else:
                verdict = CollectionVerdict(
                    name=name,
                    incarnation=incarnation,
                    by_shard={shard: self._unreported(incarnation, shard) for shard in self.shards},
                )
            result[incarnation] = verdict
        return result

    # ---- a drop ---------------------------------------------------------------------------------

    def _drop(
        self, name: str, incarnation: str, now: Mapping[int, CollectionReport]
    ) -> CollectionVerdict:
        """Return the verdict on a collection of which one tombstone exists."""
        by_shard = dict(self.not_answered)
        for shard in self.reports:
            held = now.get(shard)
            done = held is None or held.state is CollectionState.DROPPED
            by_shard[shard] = Verdict(
                kind=Kind.DROPPED if done else Kind.UNFINISHED,
                reason=f"collection {name!r} is being dropped",
            )
        return CollectionVerdict(
            name=name,
            incarnation=incarnation,
            by_shard=by_shard,
            dropped=True,
            forgettable=all(each.kind is Kind.DROPPED for each in by_shard.values()),
        )

    # ---- a collection that some shards have -----------------------------------------------------

    def _collection(
        self, name: str, incarnation: str, now: Mapping[int, CollectionReport]
    ) -> CollectionVerdict:
        by_shard = dict(self.not_answered)
        for shard, report in self.reports.items():
            held = now.get(shard)
            if held is None:
                by_shard[shard] = self._lacking(incarnation, report, now)
            else:
                by_shard[shard] = self._held(report, held)
        kinds = {verdict.kind for verdict in by_shard.values()}
        verdict = CollectionVerdict(
            name=name,
            incarnation=incarnation,
            by_shard=by_shard,
            completable=Kind.UNFINISHED in kinds and kinds <= {Kind.PRESENT, Kind.UNFINISHED},
        )
        if kinds != {Kind.PRESENT}:
            return verdict
        members = tuple(
            Member(shard=shard, directory=report.directory, life=report.life)
            for shard, report in sorted(self.reports.items())
        )
        stages = {collection.stage for collection in now.values()}
        if stages != {Stage.COMPLETE}:
            due = Stage.KNOWN if Stage.CREATED in stages else Stage.COMPLETE
            return replace(verdict, stage_due=due, members_due=members)
        if any(collection.members != members for collection in now.values()):
            return replace(verdict, stage_due=Stage.COMPLETE, members_due=members)
        return verdict

    def _held(self, report: ShardReport, held: CollectionReport) -> Verdict:
        """Return the verdict on a shard whose register has the collection."""
        if held.state is CollectionState.UNREADABLE:
            return Verdict(kind=Kind.ABSENT, reason=f"shard {report.shard}: {held.reason}")
        if held.state is not CollectionState.LIVE:
            return _missing(
                report.shard, held.reason, damaged=held.state is CollectionState.DAMAGED
            )
        if report.shard in self.not_examined:
            return self.not_examined[report.shard]
        reason = self._other_directory(held.incarnation, report, held.members)
        reason = reason or self.older[report.shard]
        reason = reason or self._unfinished_alone(report.shard, held)
        reason = reason or next(self._lost_commits(report, held), "")
        return _on_another_directory(report.shard, reason) if reason else PRESENT

    def _lacking(
        self, incarnation: str, report: ShardReport, now: Mapping[int, CollectionReport]
    ) -> Verdict:
        """Return the verdict on a shard that does not have a collection that another one has."""
        shard = report.shard
        if shard in self.not_examined:
            return self.not_examined[shard]
        reason = self._other_directory(incarnation, report) or self.older[shard]
        if reason:
            return _on_another_directory(shard, reason)
        if any(each.life >= report.life for each in self._statements(shard, incarnation)):
            return _on_another_directory(
                shard, "it has lost the collection, of which others remember commits"
            )
        known = [other for other, each in now.items() if proves_whole(each)]
        before = self.former.get(incarnation, {})
        witness = next(
            (each for each in known if each in before and proves_whole(before[each])), None
        )
        if witness is not None:
            return _on_another_directory(
                shard, f"it does not have the collection, which shard {witness} has whole"
            )
        if known:
            return Verdict(kind=Kind.ABSENT, reason=f"shard {shard} is not yet cross-examined")
        return Verdict(
            kind=Kind.UNFINISHED, reason="the create of the collection has not reached all shards"
        )

    def _other_directory(
        self, incarnation: str, report: ShardReport, own: tuple[Member, ...] = ()
    ) -> str:
        """Return why a directory is not a member of a collection, or an empty text.

        A directory of a later life than its members know is one whose loss was accepted.
        """
        members = (
            *self.memory.members(incarnation).get(report.shard, ()),
            *(member for member in own if member.shard == report.shard),
        )
        for member in members:
            if member.life > report.life and member.directory != report.directory:
                return (
                    "its directory is not the one that went on when a loss was accepted: it was "
                    "emptied again, or the lost disk is back"
                )
            if member.life > report.life:
                return "its directory is an old one: since then a loss was accepted for this shard"
            if member.life == report.life and member.directory.startswith(GIVEN_UP):
                return "a repair gave up commits of it"
            if member.life == report.life and member.directory != report.directory:
                return "its directory is another than the one that held the collection"
        return ""

    def _older(self, report: ShardReport) -> str:
        """Return why a directory is an older copy of itself, or an empty text."""
        for seen in self.memory.seen(report.shard):
            if seen.directory != report.directory or seen.life < report.life:
                continue
            if seen.life > report.life:
                return "its directory is an old one: since then a loss was accepted for this shard"
            if seen.opens > report.opens:
                return (
                    "its directory is an older copy, or is served twice: it was opened "
                    f"{seen.opens} times, and this copy {report.opens} times"
                )
            if seen.opens == report.opens and seen.session != report.session:
                return (
                    "its directory is an older copy, or is served twice: "
                    f"opening {seen.opens} was seen with another session"
                )
        return ""

    def _unfinished_alone(self, shard: int, held: CollectionReport) -> str:
        """Return why a create that has not ended here has lost its end, or an empty text.

        It ends on a shard only after all others have become KNOWN.
        """
        if held.stage is not Stage.CREATED:
            return ""
        for other, former in self.former.get(held.incarnation, {}).items():
            if other != shard and former.stage is Stage.COMPLETE and former.members:
                return f"its create is unfinished here, though shard {other} knows that it ended"
        return ""

    def _statements(self, shard: int, incarnation: str) -> Iterator[Statement]:
        """Yield what this router remembers, and what each witness does: those may differ."""
        yield from self.memory.statements(shard, incarnation)
        yield from self.passed_on.get((shard, incarnation), ())

    def _lost_commits(self, report: ShardReport, held: CollectionReport) -> Iterator[str]:
        """Yield which remembered commits a collection does not have."""
        for statement in self._statements(report.shard, held.incarnation):
            if statement.life < report.life or has_commit(held, statement):
                continue
            yield (
                f"it is older than what others remember of it: commit {statement.sequence} of "
                f"session {statement.session:x}, now {held.sequence}"
            )

    # ---- a collection that no answering shard has -----------------------------------------------

    def _unreported(self, incarnation: str, shard: int) -> Verdict:
        """Return the verdict on a shard of a collection that only this router remembers."""
        report = self.reports.get(shard)
        if report is None:
            return self.not_answered[shard]
        if shard in self.not_examined:
            return self.not_examined[shard]
        reason = self._other_directory(incarnation, report)
        if reason:
            return _on_another_directory(shard, reason)
        return Verdict(kind=Kind.ABSENT, reason="no shard that answers has the collection")


def _is_identified(collection: CollectionReport) -> bool:
    """Whether a shard knows which collection it has set aside: else it accuses no other one."""
    return bool(collection.incarnation)


def _missing(shard: int, reason: str, *, damaged: bool = False) -> Verdict:
    return Verdict(kind=Kind.MISSING, reason=f"shard {shard}: {reason}", damaged=damaged)


def _on_another_directory(shard: int, reason: str) -> Verdict:
    return replace(_missing(shard, reason), whole_directory=True)


# ---- accepting a loss ---------------------------------------------------------------------------


def loss_of(
    shard: int,
    verdict: CollectionVerdict,
    reports: Mapping[int, ShardReport],
    memory: Memory,
    config: CollectionConfig,
) -> AcceptedLoss:
    """Return what a MISSING shard has of a collection, and what is remembered of it.

    The stage is that of the others, and so are the members: `life` and directory of the shard
    itself are the shard's to fill in. `config` is what another shard has.
    """
    held = {
        number: collection
        for number, report in reports.items()
        for collection in report.collections
        if collection.incarnation == verdict.incarnation
        and collection.state is CollectionState.LIVE
    }
    own = held.pop(shard, None)
    witness = _highest(memory.statements(shard, verdict.incarnation))
    given_up = rows_given_up(own.members) if own else 0
    accepted = own.accepted if own else 0
    witnessed = witness.accepted if witness else None
    if given_up:  # the ledger counts them as accepted and lost already
        witnessed = max(accepted, witnessed or 0)
    members = {member.shard: member for each in held.values() for member in each.members}
    return AcceptedLoss(
        collection=verdict.name,
        incarnation=verdict.incarnation,
        reason=verdict.by_shard[shard].reason,
        config=config,
        sequence=own.sequence if own else 0,
        accepted=accepted - given_up,
        live=own.live if own else 0,
        witnessed_sequence=witness.sequence if witness else None,
        witnessed_accepted=witnessed,
        witnessed_live=witness.live if witness else None,
        stage=max((each.stage for each in held.values()), default=Stage.COMPLETE),
        members=tuple(members[number] for number in sorted(members)),
    )


def _highest(statements: tuple[Statement, ...]) -> Statement | None:
    return max(statements, key=lambda each: (each.accepted, each.sequence), default=None)
