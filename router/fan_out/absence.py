"""What a router puts in the place of leaf shards that it must not ask. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import numpy as np

from vectorshard.router.fan_out.merge import by_shard
from vectorshard.router.fan_out.partial_write import Written
from vectorshard.router.fan_out.placement import Placement
from vectorshard.router.fan_out.verdicts import CollectionVerdict, Kind, Verdict
from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionUnreadable,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.membership import CollectionState, ShardReport
from vectorshard.shard.types import IdArray, Int64Array, Ledger, ShardState

T = TypeVar("T")

_SET_ASIDE: Final[Mapping[CollectionState, type[VectorShardError]]] = {
    CollectionState.DAMAGED: CollectionDamaged,
    CollectionState.UNREADABLE: CollectionUnreadable,
}


def _only(shard: int) -> list[int]:
    return [shard]


def refusal_of(absent: Mapping[int, VectorShardError]) -> VectorShardError:
    """Return the error of a call that needs absent leaf shards.

    Of several kinds, it is the one that waiting resolves least.
    """
    kinds = (CollectionDamaged, ShardMissing, CollectionUnreadable, VectorShardError)
    kind, errors = next(
        (kind, [each for each in absent.values() if isinstance(each, kind)])
        for kind in kinds
        if any(isinstance(each, kind) for each in absent.values())
    )
    if kind is VectorShardError:
        return errors[0]
    return kind("; ".join(dict.fromkeys(map(str, errors))))


def joined_description(
    outcomes: Sequence[tuple[Sequence[int], CollectionDescription | BaseException]],
    absent: Mapping[int, VectorShardError],
) -> CollectionDescription:
    """Return one description for all leaf shards; those that are missing say why.

    Parameters
    ----------
    outcomes
        What each child answered, with its leaf shards.
    absent
        The leaf shards that were not asked, and why.
    """
    absent = dict(absent)
    descriptions: list[CollectionDescription] = []
    for shards, outcome in outcomes:
        if isinstance(outcome, CollectionDescription):
            descriptions.append(outcome)
        elif isinstance(outcome, ShardMissing | CollectionDamaged | CollectionUnreadable):
            absent |= dict.fromkeys(shards, outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
    if not descriptions:
        raise refusal_of(absent)
    parts = {shard.shard: shard for each in descriptions for shard in each.shards}
    parts |= {shard: _missing_part(shard, error) for shard, error in absent.items()}
    return replace(descriptions[0], shards=by_shard(parts.values()))


def _missing_part(shard: int, reason: VectorShardError) -> ShardDescription:
    return ShardDescription(
        shard=shard,
        state=ShardState.BUFFERING,
        training=False,
        ledger=Ledger(),
        missing_reason=str(reason),
    )


def refused_parts(
    placement: Placement, ids: IdArray, absent: Mapping[int, VectorShardError]
) -> Iterator[Written]:
    """Yield the rows of each absent leaf shard, by their index in `ids`, with its error."""
    if not absent:
        return
    owners = placement.shards_of(ids)
    for shard, error in absent.items():
        rows = np.flatnonzero(owners == shard)
        if rows.size:
            yield Written(rows, partial(_only, shard), error)


def without(
    parts: Sequence[tuple[T, Int64Array]], refused: Sequence[Written]
) -> list[tuple[T, Int64Array]]:
    """Return the parts without the rows that are refused, and without those that are empty then."""
    gone = np.concatenate([part.indices for part in refused])
    left = [(owner, rows[~np.isin(rows, gone)]) for owner, rows in parts]
    return [(owner, rows) for owner, rows in left if rows.size]


def error_of(shard: int, verdict: Verdict, *, is_held: bool = True) -> VectorShardError | None:
    """Return why a shard that has made its report must not be asked about a collection.

    `is_held`: another shard has it, or may have it. Otherwise there is no loss to accept.
    """
    if verdict.kind is Kind.ABSENT:
        return ShardUnavailable(verdict.reason)
    if verdict.kind is not Kind.MISSING:
        return None
    if verdict.damaged:
        return CollectionDamaged(verdict.reason)
    if not is_held:
        return ShardMissing(f"{verdict.reason}; put its disk back: no shard has the collection now")
    return ShardMissing(
        f"{verdict.reason}; put its disk back, or see what is lost with "
        f"`vectorshard accept-loss --shard-id {shard}`"
    )


def refusal_of_create(found: Iterable[CollectionVerdict]) -> ShardMissing | None:
    """Return why no collection may be created: a shard runs on another directory than it should.

    The new collection would be lost with the next change of disks. None if no shard does.
    """
    for verdict in found:
        for shard, each in verdict.by_shard.items():
            if each.whole_directory and not verdict.dropped:
                return ShardMissing(
                    f"{each.reason} (collection {verdict.name!r}); nothing is created until that "
                    "is settled: put its disk back, see what is lost with `vectorshard "
                    f"accept-loss --shard-id {shard}`, or drop what it has lost"
                )
    return None


def holders_of(reports: Mapping[int, ShardReport]) -> dict[str, set[int]]:
    """Return the shards that report each collection, by incarnation."""
    holders: dict[str, set[int]] = {}
    for shard, report in reports.items():
        for each in report.collections:
            holders.setdefault(each.incarnation, set()).add(shard)
    return holders


def served_in(reports: Mapping[int, ShardReport]) -> set[str]:
    """Return the incarnations that a shard serves, or may serve after a restart."""
    states = (CollectionState.LIVE, CollectionState.UNREADABLE)
    return {
        each.incarnation
        for report in reports.values()
        for each in report.collections
        if each.state in states
    }


def identified(reports: Mapping[int, ShardReport]) -> dict[int, ShardReport]:
    """Return the reports with the incarnations of what shards could not even identify.

    It is that of the only collection of the name that others have. Without one, it stays unknown.
    """
    incarnations: dict[str, set[str]] = {}
    for report in reports.values():
        for each in report.collections:
            if each.incarnation and each.state is not CollectionState.DROPPED:
                incarnations.setdefault(each.name, set()).add(each.incarnation)

    def whole(report: ShardReport) -> ShardReport:
        if all(each.incarnation for each in report.collections):
            return report
        collections = []
        for each in report.collections:
            known = incarnations.get(each.name, set())
            if not each.incarnation and len(known) == 1:
                each = replace(each, incarnation=next(iter(known)))
            collections.append(each)
        return replace(report, collections=tuple(collections))

    return {shard: whole(report) for shard, report in reports.items()}


def set_aside_in(
    reports: Mapping[int, ShardReport], name: str
) -> Iterator[tuple[str, VectorShardError]]:
    """Yield the incarnations, empty if unknown, that shards have set aside, and their errors."""
    for shard, report in sorted(reports.items()):
        for each in report.collections:
            if each.name == name and (kind := _SET_ASIDE.get(each.state)) is not None:
                yield each.incarnation, kind(f"shard {shard}: {each.reason}")


def of_one_name(
    reports: Mapping[int, ShardReport], found: Mapping[str, CollectionVerdict]
) -> dict[str, ShardMissing]:
    """Return the errors of collections that have one name: an old disk brought one back."""
    holders: dict[str, dict[str, list[int]]] = {}
    for shard, report in reports.items():
        for each in report.collections:
            verdict = found.get(each.incarnation)
            dropped = verdict is None or verdict.dropped
            if each.incarnation and each.state is not CollectionState.DROPPED and not dropped:
                of_name = holders.setdefault(each.name, {})
                of_name.setdefault(each.incarnation, []).append(shard)
    errors: dict[str, ShardMissing] = {}
    for name, by_incarnation in holders.items():
        if len(by_incarnation) > 1:
            told = " and ".join(
                f"{incarnation} on shard {', '.join(map(str, shards))}"
                for incarnation, shards in sorted(by_incarnation.items())
            )
            error = ShardMissing(
                f"two collections are named {name!r}: {told}; an old disk brought one of them "
                "back: put the present disk of that shard in its place, or see what is lost with "
                "`vectorshard accept-loss` for that shard"
            )
            errors |= dict.fromkeys(by_incarnation, error)
    return errors
