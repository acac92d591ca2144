"""What a shard tells of itself, and was told of another, before a power cut and after it.

An honest disk never makes a directory look like an older copy: whatever a report has stated, a
report after a power cut must contain. The rules are those by which routers judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.membership import (
    CollectionReport,
    CollectionState,
    ExchangeRequest,
    Member,
    Sessions,
    SettleRequest,
    ShardReport,
    Stage,
    Statement,
)
from vectorshard.shard.witnesses import has_commit, statement_of

OTHER: Final = 1
"""The number of the shard that never runs, and of which a shard is told."""

OTHER_DIRECTORY: Final = "0f" * 16


@dataclass(frozen=True, slots=True)
class Seen:
    """What others have seen of a shard, and what it has promised to remember of the other one."""

    directory: str
    life: int
    opens: int
    session: int
    statements: tuple[tuple[str, int, int, int], ...]
    """Incarnation, sequence, session, accepted."""
    told: Mapping[str, int] = field(default_factory=dict)
    """The newest sequence of the other shard, by incarnation."""

    @classmethod
    def of(cls, parts: dict[str, Any]) -> Seen:
        """Return it from the mark that it was in."""
        statements = tuple((str(i), *map(int, numbers)) for i, *numbers in parts.pop("statements"))
        return cls(**parts, statements=statements)  # type: ignore[arg-type]


def seen_in(report: ShardReport, told: Mapping[str, int]) -> Seen:
    """Return what others see in a report."""
    stated = (statement_of(report, each) for each in report.collections)
    return Seen(
        report.directory,
        report.life,
        report.opens,
        report.session,
        tuple(
            (each.incarnation, each.sequence, each.session, each.accepted)
            for each in stated
            if each is not None
        ),
        dict(told),
    )


def other_report(report: ShardReport, number: int) -> ShardReport:
    """Return a report of the other shard, which has all of this one's collections."""
    return ShardReport(
        cluster=report.cluster,
        shard=OTHER,
        directory=OTHER_DIRECTORY,
        life=1,
        opens=number + 1,
        session=number + 1,
        collections=tuple(
            CollectionReport(
                name=each.name,
                incarnation=each.incarnation,
                state=CollectionState.LIVE,
                stage=Stage.COMPLETE,
                sessions=Sessions(first_sequences=(1,), sessions=(7,)),
                sequence=number + 1,
                accepted=number,
            )
            for each in report.collections
            if each.state is CollectionState.LIVE
        ),
    )


async def report_of(
    shard: LocalShard, *others: ShardReport, forget: Iterable[str] = ()
) -> ShardReport:
    """Ask a shard for its report, and tell it those of others, and which drops to forget."""
    (report,) = await shard.exchange(ExchangeRequest(others=others, forget=tuple(forget)))
    return report


def members_of(report: ShardReport) -> tuple[Member, ...]:
    """Return the members of a collection that both shards have."""
    own = Member(shard=report.shard, directory=report.directory, life=report.life)
    return own, Member(shard=OTHER, directory=OTHER_DIRECTORY, life=1)


async def settle(shard: LocalShard, report: ShardReport) -> None:
    """Finish what a router has begun: settle each collection that is not complete."""
    for each in report.collections:
        if each.state is not CollectionState.LIVE or each.stage is Stage.COMPLETE:
            continue
        for stage in (Stage.KNOWN, Stage.COMPLETE):
            request = SettleRequest(
                collection=each.name,
                incarnation=each.incarnation,
                stage=stage,
                members=members_of(report),
            )
            await shard.settle(request)


def check_tombstones(report: ShardReport, dropped: set[str], forgotten: set[str]) -> None:
    """Check that what was dropped is known to be dropped, until the shard is told to forget it."""
    states = {each.incarnation: each.state for each in report.collections}
    for incarnation in dropped:
        missing = incarnation not in states and incarnation in forgotten
        assert missing or states.get(incarnation) is CollectionState.DROPPED


def check_report(report: ShardReport, seen: Seen, may_be_dropped: set[str]) -> None:
    """Check that a report after a restart contradicts nothing that was seen before.

    `may_be_dropped` are incarnations that may have a tombstone, or may be forgotten already.
    AssertionError if a router would call the directory an older copy, or a collection lost.
    """
    assert (report.directory, report.life) == (seen.directory, seen.life)
    assert report.opens > seen.opens, "others take it for an older copy"
    assert report.session != seen.session
    found = {each.incarnation: each for each in report.collections}
    for incarnation, sequence, session, accepted in seen.statements:
        each = found.get(incarnation)
        if each is None or each.state is CollectionState.DROPPED:
            assert incarnation in may_be_dropped, f"{incarnation} is not in the register any more"
            continue
        assert each.state is CollectionState.LIVE, each
        statement = Statement(
            shard=report.shard,
            incarnation=incarnation,
            life=seen.life,
            sequence=sequence,
            session=session,
            accepted=accepted,
        )
        assert has_commit(each, statement), f"{statement} is lost: {each}"
        assert each.accepted >= accepted
        remembered = [
            kept.sequence for kept in report.statements if kept.incarnation == incarnation
        ]
        assert max(remembered, default=0) >= seen.told.get(incarnation, 0), (
            "a witness has forgotten"
        )
