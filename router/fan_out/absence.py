"""What a router puts in the place of leaf shards that it must not ask. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from vectorshard.router.fan_out.merge import by_shard
from vectorshard.router.fan_out.partial_write import Written
from vectorshard.router.fan_out.placement import Placement
from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionUnreadable,
    ShardMissing,
    VectorShardError,
)
from vectorshard.shard.types import IdArray, Int64Array, Ledger, ShardState

T = TypeVar("T")


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
