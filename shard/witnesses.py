"""What shards and routers remember of a shard, merged, and how far a collection is settled. Pure.

A statement names the newest commit that a shard was seen to have, and the session that made it. A
directory that has not that commit, or has it from another session, has lost acknowledged rows.
Therefore a higher number never hides a contradiction: statements of different sessions are kept
side by side until a report of the shard itself names both sessions. A statement of an earlier life
is void, because an operator has accepted that loss.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vectorshard.shard.errors import ShardMissing
from vectorshard.shard.membership import (
    CollectionReport,
    CollectionState,
    Member,
    SeenDirectory,
    Sessions,
    SettleRequest,
    ShardReport,
    Stage,
    Statement,
)

STATEMENTS_KEPT: Final = 4
"""Statements of different sessions about one collection of one shard."""
DIRECTORIES_KEPT: Final = 8
"""Directories of one shard that were seen in its present life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What is remembered of shards: what they had, and which openings were seen."""

    statements: tuple[Statement, ...] = ()
    seen: tuple[SeenDirectory, ...] = ()


def session_at(sessions: Sessions, sequence: int) -> int:
    """Return the session that committed a sequence number; 0 if an earlier release did."""
    place = bisect_right(sessions.first_sequences, sequence)
    return sessions.sessions[place - 1] if place else 0


def has_commit(collection: CollectionReport, statement: Statement) -> bool:
    """Whether a collection contains the commit that a statement about it names."""
    return (
        statement.sequence <= collection.sequence
        and session_at(collection.sessions, statement.sequence) == statement.session
    )


def directory_of(report: ShardReport) -> SeenDirectory:
    """Return the opening of the directory that made a report."""
    return SeenDirectory(
        shard=report.shard,
        directory=report.directory,
        life=report.life,
        opens=report.opens,
        session=report.session,
    )


def statement_of(report: ShardReport, collection: CollectionReport) -> Statement | None:
    """Return what a report states of a collection; None of one that takes no writes yet."""
    if collection.state is not CollectionState.LIVE or collection.stage is not Stage.COMPLETE:
        return None
    return Statement(
        shard=report.shard,
        incarnation=collection.incarnation,
        life=report.life,
        sequence=collection.sequence,
        session=session_at(collection.sessions, collection.sequence),
        accepted=collection.accepted,
        live=collection.live,
        sum=collection.sum,
    )


def newer_statements(
    kept: Sequence[Statement], new: Statement, reported: CollectionReport | None = None
) -> tuple[Statement, ...]:
    """Return what is kept of one collection of one shard, oldest first.

    Parameters
    ----------
    kept
        What was kept before.
    new
        A statement that arrived.
    reported
        What the shard itself reports, if the statement is its own: whatever it contains of `kept`
        needs no separate statement any more. None if a witness passes the statement on.
    """
    life = max((new.life, *(each.life for each in kept)))
    left = [each for each in kept if each.life == life]
    if new.life < life:
        return tuple(left)
    if reported is not None:
        left = [each for each in left if not has_commit(reported, each)]
    same = next((each for each in left if each.session == new.session), None)
    if same is not None:
        if same.sequence >= new.sequence:
            return tuple(left)
        left.remove(same)
    elif reported is None and any(each.sequence > new.sequence for each in left):
        return tuple(left)  # its witness keeps it; most likely it is only old
    left.append(new)
    if len(left) > STATEMENTS_KEPT:
        del left[STATEMENTS_KEPT - 2]
    return tuple(left)


def newer_directories(
    kept: Sequence[SeenDirectory], new: SeenDirectory
) -> tuple[SeenDirectory, ...]:
    """Return which openings of one shard are kept: the newest of each directory in its last life.

    Two openings with one number contradict each other, and both are kept.
    """
    life = max((new.life, *(each.life for each in kept)))
    left = [each for each in kept if each.life == life]
    if new.life < life or new in left:
        return tuple(left)
    same = [each for each in left if each.directory == new.directory]
    opens = max((new.opens, *(each.opens for each in same)))
    newest = [each for each in (*same, new) if each.opens == opens][:2]
    others = [each for each in left if each.directory != new.directory]
    return (*others, *newest)[-DIRECTORIES_KEPT:]


class Recollection:
    """What is remembered, while it is merged."""

    def __init__(self, kept: Remembered = Remembered()) -> None:
        self.statements: dict[tuple[int, str], tuple[Statement, ...]] = {}
        self.seen: dict[int, tuple[SeenDirectory, ...]] = {}
        for statement in kept.statements:
            key = (statement.shard, statement.incarnation)
            self.statements[key] = (*self.statements.get(key, ()), statement)
        for seen in kept.seen:
            self.seen[seen.shard] = (*self.seen.get(seen.shard, ()), seen)

    def state(self, statement: Statement, reported: CollectionReport | None = None) -> None:
        """Add a statement; see `newer_statements`."""
        key = (statement.shard, statement.incarnation)
        self.statements[key] = newer_statements(self.statements.get(key, ()), statement, reported)

    def see(self, seen: SeenDirectory) -> None:
        """Add an opening of a directory."""
        self.seen[seen.shard] = newer_directories(self.seen.get(seen.shard, ()), seen)

    def hear(self, reports: Sequence[ShardReport]) -> None:
        """Add what shards report: first what they pass on, then what they have themselves."""
        for report in reports:
            for statement in report.statements:
                self.state(statement)
            for seen in report.seen:
                self.see(seen)
        for report in reports:
            if not self._lacks_commits(report):
                self.see(directory_of(report))
            for collection in report.collections:
                own = statement_of(report, collection)
                if own is not None:
                    self.state(own, collection)

    def _lacks_commits(self, report: ShardReport) -> bool:
        """Whether a report lacks commits that are remembered: most likely it is of an older copy.

        How often a copy was opened must not count against the directory itself, once that is back.
        """
        return any(
            statement.life == report.life and not has_commit(collection, statement)
            for collection in report.collections
            if collection.state is CollectionState.LIVE
            for statement in self.statements.get((report.shard, collection.incarnation), ())
        )

    def remembered(self) -> Remembered:
        """Return the result."""
        return Remembered(
            statements=tuple(each for kept in self.statements.values() for each in kept),
            seen=tuple(each for kept in self.seen.values() for each in kept),
        )


def remembered(
    kept: Remembered, others: Sequence[ShardReport], live: Collection[str], shard: int
) -> Remembered:
    """Return what a shard remembers of the others after an exchange.

    Equal to `kept` if the reports bring nothing new. Reports that have not changed since the last
    exchange may be left out.

    Parameters
    ----------
    kept
        What it remembered before.
    others
        Reports that a router passed on.
    live
        Incarnations that are LIVE in its own register. What it remembers of others is dropped.
    shard
        Its own number: a shard is no witness of itself.
    """
    merged = Recollection(kept)
    merged.hear([report for report in others if report.shard != shard])
    result = merged.remembered()
    return Remembered(
        statements=_in_order(
            each for each in result.statements if each.shard != shard and each.incarnation in live
        ),
        seen=tuple(
            sorted(
                (each for each in result.seen if each.shard != shard),
                key=lambda each: each.shard,
            )
        ),
    )


def _in_order(statements: Iterable[Statement]) -> tuple[Statement, ...]:
    return tuple(sorted(statements, key=lambda each: (each.shard, each.incarnation)))


def settled(
    stage: Stage, members: Sequence[Member], own: Member, request: SettleRequest
) -> tuple[Stage, tuple[Member, ...]]:
    """Return stage and members of a collection after `request`.

    A stage never goes back, except where an earlier release took it for granted: without members
    it becomes KNOWN first. A member is replaced only by one of a later life, so that a late request
    of another router changes nothing.

    Parameters
    ----------
    stage, members
        What the shard has.
    own
        The shard with its present directory and life.

    Raises
    ------
    ShardMissing
        If the members of the request are not those that the shard knows, or if they name another
        directory for this shard: then the collection was created in a directory that is gone.
    """
    wanted = {member.shard: member for member in request.members}
    meant = wanted.get(own.shard)
    # Created in this directory after the round that made the others KNOWN: not the same one.
    skips = stage is Stage.CREATED and request.stage is Stage.COMPLETE and meant is None
    if skips or (meant is not None and meant != own):
        raise ShardMissing(
            f"shard {own.shard}: collection {request.collection!r} was settled with another "
            "directory of this shard"
        )
    merged = {member.shard: member for member in members}
    for shard, member in wanted.items():
        before = merged.get(shard)
        if before is None or member.life > before.life:
            merged[shard] = member
        elif member.life == before.life and member.directory != before.directory:
            raise ShardMissing(
                f"shard {shard}: its directory is not the one that holds collection "
                f"{request.collection!r}"
            )
    if wanted and not members:
        stage = min(stage, request.stage)
    return max(stage, request.stage), tuple(merged[shard] for shard in sorted(merged))
